//! What happens before a version takes requests: prepared weights, the warm-up plan, the canary.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::Arc,
};

use candle_core::{Device, quantized::GgmlDType};
use ferry::{
    api::proto::inference::{
        ModelReadyRequest, RepositoryIndexRequest, RepositoryModelLoadRequest,
    },
    models::{
        DecoderModel, DecoderOptions, EncoderModel, Head, LoadOptions, PackedBatch,
        PreparedWeights, RowOutput,
        prepared::{PreparedKey, SourceFiles, Unusable},
    },
    ops::{CacheType, Compute, Pooling},
};
use tempfile::TempDir;

use super::{
    decoders::Decoder,
    support::{Running, add_version, fixture, models_of, root, write_manifest},
};

const EMBED: &str = "tiny-bert-embed";
const LLAMA: &str = "decoders/llama";

/// A version of its own, whose files may be changed, of a fixture.
fn copy(files: &Path, version: &Path) {
    fs::create_dir_all(version).unwrap();
    for entry in fs::read_dir(files).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            fs::copy(&path, version.join(path.file_name().unwrap())).unwrap();
        }
    }
}

/// A models folder with a copy of a fixture as version 1 of `model`.
fn models_with(model: &str, files: &str) -> TempDir {
    let models = tempfile::tempdir().unwrap();
    copy(&fixture(files), &models.path().join(model).join("1"));
    models
}

fn open(path: &Path, version: &Path, settings: &str) -> Arc<PreparedWeights> {
    let key = PreparedKey {
        sources: SourceFiles::of(version).unwrap(),
        settings: settings.to_owned(),
    };
    PreparedWeights::open(path.to_owned(), key)
}

/// The bits of what an encoder says about two rows.
fn encoder_bits(version: &Path, prepared: &Arc<PreparedWeights>) -> Vec<u32> {
    let head = Head::Embed {
        pooling: Pooling::Mean,
        normalize: true,
        dimension: None,
    };
    let options = LoadOptions {
        head,
        quantize: None,
        compute: Compute::F32,
    };
    let model = EncoderModel::load_with(version, &options, &Device::Cpu, prepared).unwrap();
    let mut batch = PackedBatch::with_capacity(2, 12);
    batch.push_row(&[3, 1, 4, 1, 5, 9, 2, 6], None);
    batch.push_row(&[2, 7, 1, 8], None);
    let rows = model.forward(&batch).unwrap();
    let values = rows.into_iter().flat_map(|row| match row {
        RowOutput::Embedding(values) => values,
        other => panic!("{other:?} is no embedding"),
    });
    values.map(f32::to_bits).collect()
}

/// The bits of a decoder's logits.
fn decoder_bits(
    version: &Path,
    quantize: Option<GgmlDType>,
    prepared: &PreparedWeights,
) -> Vec<u32> {
    let options = DecoderOptions {
        quantize,
        max_context: None,
    };
    let model = DecoderModel::load_with(version, &options, &Device::Cpu, prepared).unwrap();
    let cache = model.new_cache(4, 16, CacheType::F32).unwrap();
    let rows = Decoder { model, cache }.row(&[3, 1, 4, 1, 5, 9, 2, 6], 0, 0);
    rows.into_iter().flatten().map(f32::to_bits).collect()
}

#[test]
fn an_encoder_answers_the_same_bits_with_and_without_prepared_weights() {
    let models = models_with("m", EMBED);
    let version = models.path().join("m/1");
    let path = models.path().join("prepared");
    let plain = encoder_bits(&version, &PreparedWeights::off());

    let first = open(&path, &version, "");
    assert_eq!(first.unusable(), Some(&Unusable::Missing));
    assert_eq!(encoder_bits(&version, &first), plain);
    assert!(first.is_outdated());
    assert_eq!(
        first.write(false).unwrap(),
        fs::metadata(&path).unwrap().len()
    );

    let second = open(&path, &version, "");
    assert_eq!(second.unusable(), None);
    assert_eq!(encoder_bits(&version, &second), plain);
    assert!(!second.is_outdated());
}

#[test]
fn a_decoder_answers_the_same_bits_with_and_without_prepared_weights_in_every_type() {
    let types = [
        None,
        Some(GgmlDType::Q8_0),
        Some(GgmlDType::Q4_0),
        Some(GgmlDType::Q5_1),
        Some(GgmlDType::Q4K),
        Some(GgmlDType::Q6K),
    ];
    for quantize in types {
        let models = models_with("m", LLAMA);
        let version = models.path().join("m/1");
        let path = models.path().join("prepared");
        let settings = format!("{quantize:?}");
        let plain = decoder_bits(&version, quantize, &PreparedWeights::off());
        let first = open(&path, &version, &settings);
        assert_eq!(
            decoder_bits(&version, quantize, &first),
            plain,
            "{settings}"
        );
        first.write(false).unwrap();
        let second = open(&path, &version, &settings);
        assert_eq!(second.unusable(), None, "{settings}");
        assert_eq!(
            decoder_bits(&version, quantize, &second),
            plain,
            "{settings}"
        );
        assert!(!second.is_outdated(), "{settings}");

        let other = open(&path, &version, "something else");
        assert!(matches!(other.unusable(), Some(Unusable::Foreign(_))));
    }
}

/// A version with prepared weights, and the bits that its model answers.
struct Prepared {
    models: TempDir,
    bits: Vec<u32>,
}

impl Prepared {
    fn new() -> Self {
        let models = models_with("m", EMBED);
        let it = Self {
            bits: Vec::new(),
            models,
        };
        let prepared = open(&it.path(), &it.version(), "");
        let bits = encoder_bits(&it.version(), &prepared);
        prepared.write(false).unwrap();
        Self { bits, ..it }
    }

    fn version(&self) -> PathBuf {
        self.models.path().join("m/1")
    }

    fn path(&self) -> PathBuf {
        self.models.path().join("prepared")
    }

    /// Loads with the file as it is now: it is refused for a reason, and the model is the same.
    fn refused(&self) -> Unusable {
        let prepared = open(&self.path(), &self.version(), "");
        assert_eq!(encoder_bits(&self.version(), &prepared), self.bits);
        let reason = prepared
            .unusable()
            .cloned()
            .expect("a file that is refused");
        assert!(prepared.is_outdated());
        prepared.write(false).unwrap();
        assert_eq!(open(&self.path(), &self.version(), "").unusable(), None);
        reason
    }
}

#[test]
fn a_prepared_file_that_is_cut_short_or_has_a_wrong_bit_anywhere_is_made_anew() {
    let prepared = Prepared::new();
    let whole = fs::read(prepared.path()).unwrap();
    for keep in [0, 1, 31, 32, 100, whole.len() / 2, whole.len() - 1] {
        fs::write(prepared.path(), &whole[..keep]).unwrap();
        let reason = prepared.refused();
        assert!(
            matches!(reason, Unusable::Damaged(_) | Unusable::Unreadable(_)),
            "{reason}"
        );
    }
    // Neighbours differ in what they are part of; a prime step meets all parts.
    let (mut refused, mut unread) = (0, 0);
    for at in (0..whole.len()).step_by(1511).chain(0..32) {
        let mut damaged = whole.clone();
        damaged[at] ^= 1 << (at % 8);
        fs::write(prepared.path(), &damaged).unwrap();
        let opened = open(&prepared.path(), &prepared.version(), "");
        // What lies between two sections is nobody's.
        if opened.unusable().is_some() {
            refused += 1;
        } else {
            unread += 1;
        }
        assert_eq!(
            encoder_bits(&prepared.version(), &opened),
            prepared.bits,
            "byte {at}"
        );
    }
    assert!(
        refused > 40 && unread < refused / 8,
        "{refused} refused, {unread} not read"
    );
}

#[test]
fn prepared_weights_of_other_files_or_another_layout_are_made_anew() {
    let prepared = Prepared::new();
    let weights = prepared.version().join("model.safetensors");

    // The same content at another time, as in a copy, is the same.
    let bytes = fs::read(&weights).unwrap();
    fs::write(&weights, &bytes).unwrap();
    assert_eq!(
        open(&prepared.path(), &prepared.version(), "").unusable(),
        None
    );

    // Another layout: the header says so, and its checksum is right.
    let mut foreign = fs::read(prepared.path()).unwrap();
    let name = ferry::ops::Linear::LAYOUT.as_bytes();
    let other = "linear-99-9".as_bytes();
    let mut parts = foreign.windows(name.len());
    let at = parts.position(|part| part == name).unwrap();
    foreign[at..at + name.len()].copy_from_slice(other);
    let length = u32::from_le_bytes(foreign[12..16].try_into().unwrap()) as usize;
    let digest = twox_hash::XxHash3_64::oneshot(&foreign[32..32 + length]);
    foreign[16..24].copy_from_slice(&digest.to_le_bytes());
    fs::write(prepared.path(), &foreign).unwrap();
    let reason = prepared.refused();
    assert!(matches!(reason, Unusable::Foreign(_)), "{reason}");

    // Another content of the same length.
    let mut other = bytes;
    let last = other.len() - 2;
    other[last] ^= 1;
    fs::write(&weights, &other).unwrap();
    let changed = open(&prepared.path(), &prepared.version(), "");
    assert!(
        matches!(changed.unusable(), Some(Unusable::Stale(_))),
        "{changed:?}"
    );
    let plain = encoder_bits(&prepared.version(), &PreparedWeights::off());
    assert_ne!(plain, prepared.bits);
    assert_eq!(encoder_bits(&prepared.version(), &changed), plain);
}

#[test]
fn processes_that_start_together_find_a_whole_file_or_none() {
    let models = models_with("m", EMBED);
    let version = models.path().join("m/1");
    let path = models.path().join("p/prepared");
    let plain = encoder_bits(&version, &PreparedWeights::off());
    std::thread::scope(|scope| {
        for nth in 0..6 {
            let (path, version, plain) = (&path, &version, &plain);
            scope.spawn(move || {
                for _ in 0..5 {
                    let prepared = open(path, version, "");
                    let reason = prepared.unusable();
                    assert!(
                        matches!(reason, None | Some(Unusable::Missing)),
                        "{reason:?}"
                    );
                    assert_eq!(&encoder_bits(version, &prepared), plain);
                    // Those that don't wait may find another one writing.
                    let written = prepared.write(nth % 2 == 0);
                    assert!(written.is_ok() || nth % 2 == 1, "{written:?}");
                }
            });
        }
    });
    // What a killed process leaves behind goes with the next write.
    fs::write(models.path().join("p/prepared-dead.partial"), "half").unwrap();
    let prepared = open(&path, &version, "");
    encoder_bits(&version, &prepared);
    prepared.write(false).unwrap();
    let left: Vec<_> = fs::read_dir(models.path().join("p")).unwrap().collect();
    assert_eq!(left.len(), 1);
}

fn ferry(arguments: &[&str], models: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ferry"))
        .args(arguments)
        .arg("--models")
        .arg(models)
        .current_dir(root())
        .env_remove("FERRY_MODELS")
        .env_remove("FERRY_CONFIG")
        .output()
        .unwrap()
}

#[track_caller]
fn says(output: &Output, succeeds: bool, wanted: &str) {
    let text = [&*output.stdout, &*output.stderr].concat();
    let text = String::from_utf8(text).unwrap();
    assert_eq!(output.status.success(), succeeds, "{text}");
    assert!(text.contains(wanted), "'{wanted}' is not in {text}");
}

#[test]
fn warm_writes_what_the_next_start_needs_and_verify_tells_whether_it_is_there() {
    let models = models_with("m", EMBED);
    let models = models.path();
    says(
        &ferry(&["warm", "m", "--verify"], models),
        false,
        "there is none yet",
    );
    says(&ferry(&["warm", "m"], models), true, "written: ");
    says(&ferry(&["warm"], models), true, "up to date");
    says(
        &ferry(&["warm", "m", "--verify"], models),
        true,
        "up to date",
    );

    let file = models.join("m/1/.ferry/weights.prepared");
    let mut bytes = fs::read(&file).unwrap();
    let last = bytes.len() - 70;
    bytes[last] ^= 0x10;
    fs::write(&file, bytes).unwrap();
    says(&ferry(&["warm", "m", "--verify"], models), false, "damaged");
    says(&ferry(&["warm", "m"], models), true, "written anew: ");
    says(
        &ferry(&["warm", "m", "--verify"], models),
        true,
        "up to date",
    );
    says(&ferry(&["warm", "nobody"], models), false, "nobody");
}

#[test]
fn prepared_weights_can_be_kept_elsewhere_or_not_at_all() {
    let models = models_with("m", EMBED);
    let config = |text: &str| {
        let path = models.path().join("ferry.toml");
        fs::write(&path, text).unwrap();
        let path = path.to_str().unwrap().to_owned();
        ferry(&["warm", "m", "--config", &path], models.path())
    };
    let elsewhere = models.path().join("kept/elsewhere");
    let text = format!("[models]\nprepared_directory = {elsewhere:?}\n");
    says(&config(&text), true, "written: ");
    assert!(elsewhere.join("m/1/weights.prepared").is_file());
    says(&config("[models]\nprepared = \"off\"\n"), true, "off");
    assert!(!models.path().join("m/1/.ferry").exists());
}

#[test]
fn a_recorded_decoder_is_checked_and_one_that_answers_otherwise_is_refused() {
    let models = models_with("m", LLAMA);
    let manifest = "task = \"generate\"\n[generate]\ncache_mib = 8\n[warmup.canary]\nrequired = true\n\
                    [[warmup.canary.inputs]]\ntext = \"once upon a time\"\nmax_tokens = 6\n";
    write_manifest(models.path(), "m", manifest);
    let models = models.path();
    says(&ferry(&["warm", "m"], models), false, "canary.required");
    says(
        &ferry(&["warm", "m", "--record"], models),
        true,
        "1 recorded",
    );
    says(&ferry(&["warm", "m"], models), true, "1 as recorded");

    let path = models.join("m/1/canary.json");
    let mut record: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let tokens = &mut record["entries"][0]["output"]["generated"]["tokens"];
    assert_eq!(tokens.as_array().unwrap().len(), 6);
    tokens[0] = (tokens[0].as_u64().unwrap() + 1).into();
    fs::write(&path, record.to_string()).unwrap();
    says(
        &ferry(&["warm", "m"], models),
        false,
        "begins with 0 of the 6 recorded tokens",
    );
    fs::write(&path, "{").unwrap();
    says(&ferry(&["warm", "m"], models), false, "canary.json");
}

#[tokio::test]
async fn a_version_that_answers_otherwise_than_recorded_leaves_the_old_one_serving() {
    let models = models_with("m", EMBED);
    write_manifest(models.path(), "m", "task = \"embed\"\n");
    says(
        &ferry(&["warm", "m", "--record"], models.path()),
        true,
        "4 recorded",
    );
    let running = Running::serving(models, |_| {}).await;

    // Another model's weights with this one's record.
    let second = running.models.path().join("m/2");
    copy(&fixture("tiny-roberta-embed"), &second);
    fs::copy(
        running.models.path().join("m/1/canary.json"),
        second.join("canary.json"),
    )
    .unwrap();
    let mut open = running.open();
    let load = RepositoryModelLoadRequest {
        model_name: "m".to_owned(),
        ..RepositoryModelLoadRequest::default()
    };
    let error = open.repository_model_load(load).await.unwrap_err();
    let reason = error.message();
    assert!(
        reason.contains("canary.json") && reason.contains("entry 0"),
        "{reason}"
    );
    assert!(
        reason.contains("cosine") || reason.contains("values"),
        "{reason}"
    );
    let ready = ModelReadyRequest {
        name: "m".to_owned(),
        version: "1".to_owned(),
    };
    assert!(open.model_ready(ready).await.unwrap().into_inner().ready);
}

#[tokio::test]
async fn a_plan_that_can_not_run_is_an_error_that_names_its_entry() {
    let models = models_of(&[EMBED]);
    add_version(models.path(), "decoder", 1, &fixture(LLAMA));
    write_manifest(
        models.path(),
        EMBED,
        "task = \"embed\"\n[warmup]\nshapes = [{ rows = 1, tokens = 4 }, { rows = 65, tokens = 2 }]\n",
    );
    write_manifest(
        models.path(),
        "decoder",
        "task = \"generate\"\n[generate]\ncache_mib = 8\n[[warmup.prompts]]\ntext = \"a\"\n\
         [[warmup.prompts]]\ntext = \"once upon a time\"\nmax_tokens = 4096\n",
    );
    let running = Running::serving(models, |_| {}).await;
    let mut open = running.open();
    let index = open
        .repository_index(RepositoryIndexRequest::default())
        .await;
    let models = index.unwrap().into_inner().models;
    let reason = |name: &str| {
        let model = models.iter().find(|model| model.name == name).unwrap();
        model.reason.clone()
    };
    let shape = reason(EMBED);
    assert!(
        shape.contains("warmup.shapes[1]") && shape.contains("batching.max_rows"),
        "{shape}"
    );
    let prompt = reason("decoder");
    assert!(
        prompt.contains("warmup.prompts[1] (\"once upon a time\")"),
        "{prompt}"
    );
}

#[test]
fn a_plan_runs_as_often_as_it_says_and_a_prompt_through_the_engine() {
    let models = models_with("m", LLAMA);
    let manifest = "task = \"generate\"\n[generate]\ncache_mib = 8\n[warmup]\nrounds = 3\n\
                    shapes = [{ rows = 3, tokens = 5 }]\n\
                    [[warmup.prompts]]\ntext = \"once upon a time\"\nmax_tokens = 2\n";
    write_manifest(models.path(), "m", manifest);
    let output = ferry(&["warm", "m", "--log", "ferry=debug"], models.path());
    let printed = String::from_utf8([&*output.stdout, &*output.stderr].concat()).unwrap();
    assert!(output.status.success(), "{printed}");
    let done = printed.matches("warm-up entry done").count();
    assert_eq!(done, 6, "{printed}");
}

#[test]
fn a_wrong_plan_is_refused_with_its_line() {
    let models = models_with("m", EMBED);
    for (text, wanted) in [
        ("[warmup]\nrounds = 101\n", "line 3: warmup.rounds = 101"),
        ("[warmup]\nseconds = -1.0\n", "line 3: warmup.seconds"),
        (
            "[warmup]\nshapes = [{ rows = 0, tokens = 8 }]\n",
            "shapes[0] without tokens",
        ),
        (
            "[warmup]\nprompts = [{ text = \"a\" }]\n",
            "use warmup.shapes",
        ),
        ("[warmup]\nshape = []\n", "unknown field"),
        (
            "[warmup.canary]\nmin_cosine = 1.5\n",
            "line 3: warmup.canary.min_cosine",
        ),
        ("[warmup.canary]\ninputs = [{ text = \"\" }]\n", "inputs[0]"),
        (
            "[warmup.canary]\ninputs = [{ text = \"a\", query = \"b\" }]\n",
            "inputs[0]",
        ),
    ] {
        write_manifest(models.path(), "m", &format!("task = \"embed\"\n{text}"));
        says(&ferry(&["warm", "m"], models.path()), false, wanted);
    }
}
