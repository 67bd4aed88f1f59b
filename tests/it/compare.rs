//! `ferry compare`: a model against itself agrees wholly, a damaged copy breaks thresholds, and what
//! is wrong is named.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Output,
};

use serde_json::Value;
use tempfile::TempDir;

use super::{
    cli::{ferry, printed, refused},
    support::{Running, add_version, fixture, root},
};

/// A folder with inputs, a model as version 1, and a copy with noise in its weights as version 2.
struct Bench {
    folder: TempDir,
}

impl Bench {
    fn of(fixture_name: &str, noise: f32) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let source = fixture(fixture_name);
        add_version(&folder.path().join("models"), "model", 1, &source);
        let damaged = folder.path().join("models/model/2");
        damage(&source, &damaged, noise);
        Self { folder }
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    fn write(&self, name: &str, content: &str) -> String {
        fs::write(self.folder.path().join(name), content).unwrap();
        self.path(name)
    }

    fn compare(&self, sides: [&str; 2], arguments: &[&str]) -> Output {
        let models = self.path("models");
        let mut all = vec!["compare", sides[0], sides[1], "--models", &models];
        all.extend(arguments);
        ferry(&all)
    }

    fn json(&self, name: &str) -> Value {
        serde_json::from_slice(&fs::read(self.folder.path().join(name)).unwrap()).unwrap()
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.folder.path().join(name)).unwrap()
    }
}

/// Copies a version's folder, adding noise to every weight: by turns up and down, `noise` of its size.
fn damage(source: &Path, target: &Path, noise: f32) {
    fs::create_dir_all(target).unwrap();
    for entry in fs::read_dir(source).unwrap() {
        let path = entry.unwrap().path();
        let to = target.join(path.file_name().unwrap());
        if path.is_dir() {
            fs::create_dir(&to).unwrap();
            for file in fs::read_dir(&path).unwrap() {
                let file = file.unwrap().path();
                fs::copy(&file, to.join(file.file_name().unwrap())).unwrap();
            }
        } else if path.extension().is_some_and(|end| end == "safetensors") {
            fs::write(&to, noisy(fs::read(&path).unwrap(), noise)).unwrap();
        } else {
            fs::copy(&path, &to).unwrap();
        }
    }
}

/// The weights of a safetensors file in f32: after a length in 8 bytes and a header of that length.
fn noisy(mut bytes: Vec<u8>, noise: f32) -> Vec<u8> {
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    for (at, weight) in bytes[8 + header..].chunks_exact_mut(4).enumerate() {
        let value = f32::from_le_bytes(weight.try_into().unwrap());
        // A hash of the place: noise that is the same in every run and has no pattern.
        let mixed = (at as u32).wrapping_mul(2_654_435_761) >> 16;
        let sign = if mixed & 1 == 0 { 1.0 } else { -1.0 };
        weight.copy_from_slice(&(value * (1.0 + sign * noise)).to_le_bytes());
    }
    bytes
}

fn texts() -> String {
    let golden = fs::read(root().join("tests/golden/texts.json")).unwrap();
    let golden: Value = serde_json::from_slice(&golden).unwrap();
    let texts = golden["texts"].as_array().unwrap().iter().take(24);
    let lines: Vec<_> = texts
        .map(|text| serde_json::json!({ "text": text }).to_string())
        .collect();
    lines.join("\n")
}

fn queries() -> String {
    let query = |at: usize| {
        let documents: Vec<_> = (0..5)
            .map(|other| format!("answer {other} to {at}"))
            .collect();
        format!(
            "{}\n",
            serde_json::json!({ "query": format!("question {at}"), "documents": documents })
        )
    };
    (0..6).map(query).collect()
}

fn agreement(report: &Value) -> f64 {
    report["figures"]["agreement"].as_f64().unwrap()
}

/// Fixture, its inputs, and a threshold that a damaged copy breaks.
fn cases() -> [(&'static str, String, &'static str); 5] {
    [
        ("tiny-bert-embed", texts(), "min_cosine_p5"),
        ("tiny-bert-classify", texts(), "min_agreement"),
        ("tiny-bert-rerank", queries(), "min_kendall"),
        ("tiny-bert-tokens", texts(), "min_span_f1"),
        ("decoders/llama", texts(), "min_exact_match"),
    ]
}

#[test]
fn a_model_agrees_with_itself_wholly_and_holds_every_threshold() {
    for (model, inputs, threshold) in cases() {
        let bench = Bench::of(model, 0.0);
        let inputs = bench.write("inputs.jsonl", inputs.trim_start());
        let output = bench.compare(
            ["model@1", "model@2"],
            &[
                "--inputs",
                &inputs,
                "--max-tokens",
                "8",
                "--require",
                &format!("{threshold}=0.999999"),
                "--require",
                "max_failures=0",
                "--json",
                &bench.path("out.json"),
            ],
        );
        assert_eq!(
            output.status.code(),
            Some(0),
            "{model}: {}",
            refused(&output)
        );
        let report = bench.json("out.json");
        assert!((agreement(&report) - 1.0).abs() < 1e-6, "{model}: {report}");
        assert_eq!(report["holds"], true, "{model}");
        let ratio = &report["figures"]["cost"]["memory_ratio"];
        assert_eq!(*ratio, 1.0, "{model}: both are the same size");
        assert_eq!(
            report["least_alike"].as_array().unwrap().len(),
            0,
            "{model}: {report}"
        );
    }
}

#[test]
fn a_damaged_copy_breaks_a_threshold_with_exit_code_2() {
    for (model, inputs, threshold) in cases() {
        let bench = Bench::of(model, 0.5);
        let inputs = bench.write("inputs.jsonl", &inputs);
        let output = bench.compare(
            ["model@1", "model@2"],
            &[
                "--inputs",
                &inputs,
                "--max-tokens",
                "8",
                "--require",
                &format!("{threshold}=0.99"),
                "--require",
                "min_rows=2",
                "--json",
                &bench.path("out.json"),
                "--junit",
                &bench.path("out.xml"),
                "--markdown",
                &bench.path("out.md"),
                "--html",
                &bench.path("out.html"),
            ],
        );
        assert_eq!(
            output.status.code(),
            Some(2),
            "{model}: {}",
            refused(&output)
        );
        let error = refused(&output);
        let broken = format!("threshold broken: {threshold}: found ");
        assert!(
            error.contains(&broken) && error.contains("at least 0.99"),
            "{error}"
        );
        assert!(!error.contains("min_rows"), "{error}");

        let report = bench.json("out.json");
        assert!(agreement(&report) < 0.99, "{model}: {report}");
        assert!(
            !report["least_alike"].as_array().unwrap().is_empty(),
            "{model}"
        );
        let junit = bench.text("out.xml");
        assert!(junit.contains("tests=\"2\" failures=\"1\""), "{junit}");
        assert!(
            bench.text("out.md").contains("1 of 2 thresholds broken"),
            "{model}"
        );
        let page = bench.text("out.html");
        assert!(page.contains("1 of 2 thresholds broken"), "{model}");
        for elsewhere in ["<script", "src=", "href=", "url(", "@import"] {
            assert!(
                !page.contains(elsewhere),
                "{model}: the page needs {elsewhere}"
            );
        }
    }
}

#[test]
fn what_is_wrong_is_named_and_exits_with_1() {
    let bench = Bench::of("tiny-bert-embed", 0.0);
    let good = bench.write("good.jsonl", "{\"text\": \"a\"}\n");
    let bad = bench.write("bad.jsonl", "{\"text\": \"a\"}\n\n{\"txt\": \"b\"}\n");
    let llama = fixture("decoders/llama");
    let llama = llama.to_str().unwrap();
    let thresholds = bench.write("thresholds.toml", "min_agreement = 0.9\nmin_cosine = 0.5\n");
    let sides = ["model@1", "model@2"];
    let cases: [(_, &[&str], _); 10] = [
        (
            sides,
            &["--inputs", &bad],
            "bad.jsonl line 3: embed wants \"text\"",
        ),
        (
            sides,
            &["--inputs", "nowhere.jsonl"],
            "nowhere.jsonl: No such file",
        ),
        (sides, &[], "give --inputs"),
        (
            ["model@1", "model@7"],
            &["--inputs", &good],
            "no version '7'; there are: 1, 2",
        ),
        (
            ["model@1", "other"],
            &["--inputs", &good],
            "there are: model",
        ),
        (["model@1", llama], &["--inputs", &good], "does embed and"),
        (
            sides,
            &["--inputs", &good, "--require", "max_js=0.1"],
            "max_js is none for models that do embed",
        ),
        (
            sides,
            &["--inputs", &good, "--require", "min_agreement=2"],
            "allowed: 0 to 1",
        ),
        (
            sides,
            &["--inputs", &good, "--thresholds", &thresholds],
            "line 2",
        ),
        (sides, &["--inputs", &good, "--limit", "0"], "at least 1"),
    ];
    for (sides, arguments, expected) in cases {
        let output = bench.compare(sides, arguments);
        let error = refused(&output);
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn a_row_that_one_side_fails_on_is_counted_and_named() {
    let bench = Bench::of("tiny-bert-embed", 0.0);
    let manifest = "task = \"embed\"\n[input]\nmax_tokens = 16\ntruncation = \"error\"\n";
    let strict = bench.folder.path().join("models/strict");
    add_version(
        &bench.folder.path().join("models"),
        "strict",
        1,
        &fixture("tiny-bert-embed"),
    );
    fs::write(strict.join("model.toml"), manifest).unwrap();
    let long = "word ".repeat(40);
    let inputs = bench.write("inputs.txt", &format!("short\n{long}\nshort too\n"));
    let output = bench.compare(
        ["model@1", "strict"],
        &[
            "--inputs",
            &inputs,
            "--require",
            "max_failures=0.1",
            "--json",
            &bench.path("out.json"),
        ],
    );
    assert_eq!(output.status.code(), Some(2), "{}", refused(&output));
    let report = bench.json("out.json");
    assert_eq!(report["figures"]["rows"], 2);
    assert_eq!(report["figures"]["failures"]["candidate"], 1);
    assert_eq!(report["failed"][0]["line"], 2);
    assert_eq!(report["failed"][0]["side"], "candidate");
}

#[test]
fn a_given_text_has_the_perplexity_that_its_scores_make() {
    let bench = Bench::of("decoders/llama", 0.3);
    let text = bench.write("text.txt", "All aboard! The ferry leaves when it is full.");
    let output = bench.compare(
        ["model@1", "model@2"],
        &[
            "--text",
            &text,
            "--window",
            "24",
            "--json",
            &bench.path("out.json"),
        ],
    );
    assert_eq!(output.status.code(), Some(0), "{}", refused(&output));
    let found = &bench.json("out.json")["figures"]["generate"];
    let number = |key: &str| found[key].as_f64().unwrap();
    let ratio = number("candidate_perplexity") / number("reference_perplexity");
    assert!((number("perplexity_ratio") / ratio - 1.0).abs() < 1e-6);
    // A tiny random model holds all of its 320 tokens about as likely.
    assert!(
        (50.0..5000.0).contains(&number("reference_perplexity")),
        "{found}"
    );
    assert!(number("given_tokens") >= 20.0, "{found}");
    assert!(found["kl"]["mean"].as_f64().unwrap() > 0.0);
    assert!(number("token_agreement") < 1.0);

    let output = bench.compare(
        ["model@1", "model@1"],
        &["--text", &text, "--window", "4096"],
    );
    printed(&output);
    let long = bench.write("long.txt", &"All aboard! ".repeat(400));
    let output = bench.compare(["model@1", "model@1"], &["--text", &long]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        refused(&output).contains("--window"),
        "{}",
        refused(&output)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn models_of_a_running_server_are_compared_too() {
    let running = Running::with(&[
        "tiny-bert-embed",
        "tiny-distilbert-embed",
        "tiny-bert-classify",
    ])
    .await;
    let address = running.server.grpc_address.to_string();
    let folder = tempfile::tempdir().unwrap();
    let inputs = folder.path().join("inputs.jsonl");
    fs::write(&inputs, texts()).unwrap();
    let inputs = inputs.to_str().unwrap().to_owned();
    let compare = |sides: [&'static str; 2]| {
        let (address, inputs) = (address.clone(), inputs.clone());
        tokio::task::spawn_blocking(move || {
            ferry(&[
                "compare", sides[0], sides[1], "--server", &address, "--inputs", &inputs,
            ])
        })
    };
    let text = printed(
        &compare(["tiny-bert-embed@1", "tiny-bert-embed"])
            .await
            .unwrap(),
    );
    assert!(text.contains("agreement 1:"), "{text}");
    printed(
        &compare(["tiny-bert-embed", "tiny-distilbert-embed@1"])
            .await
            .unwrap(),
    );
    printed(
        &compare(["tiny-bert-classify", "tiny-bert-classify"])
            .await
            .unwrap(),
    );
    for (sides, expected) in [
        (["tiny-bert-embed@9", "tiny-bert-embed"], "9"),
        (["tiny-bert-embed", "nobody"], "nobody"),
        (
            ["tiny-bert-embed", "tiny-bert-classify"],
            "nothing to compare",
        ),
    ] {
        let output = compare(sides).await.unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(refused(&output).contains(expected), "{}", refused(&output));
    }
}

fn real(model: &str) -> PathBuf {
    let path = root().join("models").join(model).join("1");
    let hint = "`make test` or `python3 models/fetch.py encoders` brings it";
    assert!(path.is_dir(), "{model} is not there; {hint}");
    path
}

#[test]
fn two_real_embedders_are_told_apart_and_one_agrees_with_itself() {
    let (minilm, paraphrase) = (real("minilm"), real("paraphrase-l3"));
    let (minilm, paraphrase) = (minilm.to_str().unwrap(), paraphrase.to_str().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("out.json");
    let compare = |other: &str| -> Value {
        let sentences = root().join("benches/sentences.txt");
        printed(&ferry(&[
            "compare",
            minilm,
            other,
            "--inputs",
            sentences.to_str().unwrap(),
            "--limit",
            "24",
            "--rounds",
            "1",
            "--json",
            json.to_str().unwrap(),
        ]));
        serde_json::from_slice(&fs::read(&json).unwrap()).unwrap()
    };
    let same = compare(minilm);
    assert!(agreement(&same) > 0.999_999, "{same}");
    let other = compare(paraphrase);
    // Both know which sentences are alike, in spaces that have nothing to do with one another.
    assert!(agreement(&other) < 0.5, "{other}");
    let spearman = other["figures"]["embed"]["spearman"].as_f64().unwrap();
    assert!(spearman > 0.5, "{other}");
}
