//! `Explain`: which words an answer hangs on.

use std::collections::BTreeMap;

use ferry::api::proto::ferry::v1::{
    ClassifyRequest, EmbedRequest, ExplainClass, ExplainMethod, ExplainOutput, ExplainRequest,
    ExplainResponse, ExplainScore, ExplainSimilarity, ModelOptions, TextField, WordShare,
    explain_request::Explained,
};
use tonic::{Code, Status};

use super::support::{Running, cosine, models_of, write_manifest};

const CLASSIFY: &str = "tiny-bert-classify";
const TEXT: &str = "Zoë took the ferry, and loved it!";

fn options(model: &str) -> Option<ModelOptions> {
    Some(ModelOptions {
        model: model.to_owned(),
        ..ModelOptions::default()
    })
}

fn class(text: &str, method: ExplainMethod) -> ExplainRequest {
    ExplainRequest {
        options: options(CLASSIFY),
        explained: Some(Explained::Classify(ExplainClass {
            text: text.to_owned(),
            label: String::new(),
        })),
        method: method.into(),
        ..ExplainRequest::default()
    }
}

async fn explain(running: &Running, request: ExplainRequest) -> Result<ExplainResponse, Status> {
    Ok(running.typed().explain(request).await?.into_inner())
}

/// The probability of each label.
async fn probabilities(running: &Running, text: &str) -> BTreeMap<String, f64> {
    let request = ClassifyRequest {
        options: options(CLASSIFY),
        texts: vec![text.to_owned()],
        ..ClassifyRequest::default()
    };
    let answer = running
        .typed()
        .classify(request)
        .await
        .unwrap()
        .into_inner();
    let scores = answer.rows[0].scores.iter();
    scores
        .map(|label| (label.label.clone(), f64::from(label.score)))
        .collect()
}

fn sum(found: &ExplainResponse) -> f64 {
    found.words.iter().map(|word| word.share).sum()
}

#[tokio::test]
async fn shares_sum_to_what_the_words_do_and_point_into_the_text() {
    let running = Running::with(&[CLASSIFY]).await;
    let found = explain(&running, class(TEXT, ExplainMethod::KernelShap))
        .await
        .unwrap();
    let words: Vec<_> = found.words.iter().map(|word| &*word.text).collect();
    assert_eq!(
        words,
        ["Zoë", "took", "the", "ferry,", "and", "loved", "it!"]
    );
    for word in &found.words {
        let length = (word.end - word.start) as usize;
        let there: String = TEXT
            .chars()
            .skip(word.start as usize)
            .take(length)
            .collect();
        assert_eq!(there, word.text);
    }
    assert!(found.exact && found.rows == 128, "{found:?}");
    assert!(found.additivity_error < 1e-9);
    assert!((found.base_value + sum(&found) - found.value).abs() < 1e-9);
    let whole = probabilities(&running, TEXT).await;
    assert!((whole[&found.label] - found.value).abs() < 1e-6);
    assert!(whole.values().all(|other| *other <= whole[&found.label]));
    let empty = probabilities(&running, "      ").await;
    assert!((empty[&found.label] - found.base_value).abs() < 1e-6);
    let (_, page) = running.http("/metrics").await;
    assert!(
        page.contains("ferry_explain_rows_total{method=\"kernel_shap\""),
        "{page}"
    );
}

#[tokio::test]
async fn occlusion_is_what_is_lost_without_a_word() {
    let running = Running::with(&[CLASSIFY]).await;
    let mut request = class(TEXT, ExplainMethod::Occlusion);
    request.explained = Some(Explained::Classify(ExplainClass {
        text: TEXT.to_owned(),
        label: "neutral".to_owned(),
    }));
    let found = explain(&running, request).await.unwrap();
    assert_eq!(found.label, "neutral");
    let whole = probabilities(&running, TEXT).await["neutral"];
    let without = probabilities(&running, &TEXT.replace("ferry,", "")).await["neutral"];
    assert!(
        (found.words[3].share - (whole - without)).abs() < 1e-6,
        "{found:?}"
    );
    let off = (found.base_value + sum(&found) - found.value).abs();
    assert!((found.additivity_error - off).abs() < 1e-12);
}

#[tokio::test]
async fn the_same_seed_finds_the_same_shares() {
    let running = Running::with(&[CLASSIFY]).await;
    let text = "one two three four five six seven eight nine ten eleven twelve";
    for method in [ExplainMethod::Lime, ExplainMethod::KernelShap] {
        let with_seed = |seed| {
            let mut request = class(text, method);
            (request.samples, request.seed) = (100, seed);
            request
        };
        let first = explain(&running, with_seed(1)).await.unwrap();
        let again = explain(&running, with_seed(1)).await.unwrap();
        let other = explain(&running, with_seed(2)).await.unwrap();
        assert!(!first.exact && first.rows <= 102);
        assert_eq!(first.words, again.words);
        assert_ne!(first.words, other.words);
    }
}

#[tokio::test]
async fn scores_and_similarities_are_explained_too() {
    let running = Running::with(&["tiny-bert-rerank", "tiny-bert-embed"]).await;
    let mut request = ExplainRequest {
        options: options("tiny-bert-rerank"),
        explained: Some(Explained::Rerank(ExplainScore {
            query: "reset password".to_owned(),
            document: "Open the settings.".to_owned(),
            explain_query: true,
        })),
        output: ExplainOutput::Logit.into(),
        ..ExplainRequest::default()
    };
    let found = explain(&running, request.clone()).await.unwrap();
    let fields: Vec<_> = found.words.iter().map(WordShare::field).collect();
    let (query, text) = (TextField::Query, TextField::Text);
    assert_eq!(fields, [query, query, text, text, text]);
    assert!(found.additivity_error < 1e-9);

    request.options = options("tiny-bert-embed");
    request.output = ExplainOutput::Unspecified.into();
    let (text, reference) = ("a small boat", "the big ferry");
    request.explained = Some(Explained::Similarity(ExplainSimilarity {
        text: text.to_owned(),
        reference: reference.to_owned(),
    }));
    let found = explain(&running, request).await.unwrap();
    let vectors = EmbedRequest {
        options: options("tiny-bert-embed"),
        texts: vec![text.to_owned(), reference.to_owned()],
        ..EmbedRequest::default()
    };
    let vectors = running
        .typed()
        .embed(vectors)
        .await
        .unwrap()
        .into_inner()
        .rows;
    let expected = cosine(&vectors[0].embedding, &vectors[1].embedding);
    assert!(
        (found.value - expected).abs() < 1e-5,
        "{found:?} {expected}"
    );
    assert_eq!(found.words.len(), 3);
}

#[tokio::test]
async fn integrated_gradients_sum_to_what_the_words_do_and_point_into_the_text() {
    let running = Running::with(&[CLASSIFY]).await;
    let with_points = |points| {
        let mut request = class(TEXT, ExplainMethod::IntegratedGradients);
        request.samples = points;
        request.output = ExplainOutput::Logit.into();
        request
    };
    let found = explain(&running, with_points(600)).await.unwrap();
    let words: Vec<_> = found.words.iter().map(|word| &*word.text).collect();
    assert_eq!(
        words,
        ["Zoë", "took", "the", "ferry,", "and", "loved", "it!"]
    );
    assert_eq!(found.method(), ExplainMethod::IntegratedGradients);
    assert!(!found.exact && found.rows == 603, "{found:?}");
    let off = (found.base_value + sum(&found) - found.value).abs();
    assert!((found.additivity_error - off).abs() < 1e-12);
    assert!(off < 0.05, "{found:?}");
    // Fewer points, and it says by how much it is off.
    let coarse = explain(&running, with_points(2)).await.unwrap();
    assert!(coarse.additivity_error > found.additivity_error);
    let mut request = with_points(8);
    request.output = ExplainOutput::Probability.into();
    let found = explain(&running, request.clone()).await.unwrap();
    let whole = probabilities(&running, TEXT).await;
    assert!((whole[&found.label] - found.value).abs() < 1e-5);
    // Another baseline, another share.
    request.replacement = "[MASK]".to_owned();
    let masked = explain(&running, request).await.unwrap();
    assert_ne!(masked.words, found.words);
    let (_, page) = running.http("/metrics").await;
    assert!(
        page.contains("ferry_explain_rows_total{method=\"integrated_gradients\""),
        "{page}"
    );
}

#[tokio::test]
async fn integrated_gradients_explain_scores_and_similarities_of_f32_models_alone() {
    let names = ["tiny-bert-rerank", "tiny-bert-embed", CLASSIFY];
    let models = models_of(&names);
    let f32 = "task = \"embed\"\ncompute = \"f32\"";
    write_manifest(models.path(), "tiny-bert-embed", f32);
    let quantized = "task = \"classify\"\nquantize = \"q8_0\"";
    write_manifest(models.path(), CLASSIFY, quantized);
    let running = Running::serving(models, |_| {}).await;
    let document = "Open the settings.";
    let score = |query| ExplainRequest {
        options: options("tiny-bert-rerank"),
        explained: Some(Explained::Rerank(ExplainScore {
            query: "reset password".to_owned(),
            document: document.to_owned(),
            explain_query: query,
        })),
        method: ExplainMethod::IntegratedGradients.into(),
        samples: 300,
        ..ExplainRequest::default()
    };
    let found = explain(&running, score(true)).await.unwrap();
    let fields: Vec<_> = found.words.iter().map(WordShare::field).collect();
    let (query, text) = (TextField::Query, TextField::Text);
    assert_eq!(fields, [query, query, text, text, text]);
    assert!(found.additivity_error < 0.05, "{found:?}");
    // The query alone is the baseline then, and it stays.
    let alone = explain(&running, score(false)).await.unwrap();
    assert_eq!(alone.words.len(), 3);
    assert!((alone.value - found.value).abs() < 1e-5);
    assert!((alone.base_value - found.base_value).abs() > 1e-9);

    let mut similarity = ExplainRequest {
        options: options("tiny-bert-embed"),
        explained: Some(Explained::Similarity(ExplainSimilarity {
            text: "a small boat".to_owned(),
            reference: "the big ferry".to_owned(),
        })),
        method: ExplainMethod::IntegratedGradients.into(),
        samples: 200,
        ..ExplainRequest::default()
    };
    let found = explain(&running, similarity.clone()).await.unwrap();
    assert!(found.words.len() == 3 && found.additivity_error < 0.05);
    similarity.method = ExplainMethod::KernelShap.into();
    similarity.samples = 0;
    let shap = explain(&running, similarity).await.unwrap();
    assert!((found.value - shap.value).abs() < 1e-5);

    let refused = class(TEXT, ExplainMethod::IntegratedGradients);
    let error = explain(&running, refused).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    assert!(error.message().contains("are quantized"), "{error:?}");
    let mut several = score(true);
    several.replacement = "two tokens".to_owned();
    let error = explain(&running, several).await.unwrap_err();
    assert!(error.message().contains("one token of"), "{error:?}");
}

#[tokio::test]
async fn what_can_not_be_explained_is_said() {
    let running = Running::with(&[CLASSIFY]).await;
    let change = |change: &dyn Fn(&mut ExplainRequest)| {
        let mut request = class(TEXT, ExplainMethod::KernelShap);
        change(&mut request);
        request
    };
    let of = |text: &str, label: &str| {
        Some(Explained::Classify(ExplainClass {
            text: text.to_owned(),
            label: label.to_owned(),
        }))
    };
    for (request, says) in [
        (
            change(&|asked| asked.explained = None),
            "explained: found nothing",
        ),
        (
            change(&|asked| asked.explained = of(" ", "")),
            "classify.text: found no words",
        ),
        (
            change(&|asked| asked.explained = of("x", "good")),
            "label: found good; allowed: one of negative",
        ),
        (change(&|asked| asked.method = 9), "method: found 9"),
        (change(&|asked| asked.output = 9), "output: found 9"),
        (
            change(&|asked| asked.samples = 13),
            "samples: found 13; allowed: 14 or more",
        ),
        (change(&|asked| asked.samples = 5000), "at most 4096"),
        (
            change(&|asked| asked.max_features = 500),
            "max_features: found 500; allowed: 1 to 128",
        ),
        (
            change(&|asked| asked.replacement = "x".repeat(65)),
            "replacement",
        ),
    ] {
        let error = explain(&running, request).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{}", error.message());
        assert!(error.message().contains(says), "{}", error.message());
    }
    // Nothing came of all that but errors, so nothing is under way that would refuse this one.
    assert!(
        explain(&running, class(TEXT, ExplainMethod::Lime))
            .await
            .is_ok()
    );
}

#[tokio::test]
async fn a_long_text_is_explained_by_groups_of_words_within_its_deadline() {
    let running = Running::with(&[CLASSIFY]).await;
    let text = "word ".repeat(300);
    let mut request = class(&text, ExplainMethod::Occlusion);
    request.max_features = 10;
    let found = explain(&running, request).await.unwrap();
    assert_eq!((found.words.len(), found.rows), (10, 12));
    assert!(found.truncated);

    let mut late = tonic::Request::new(class(&text, ExplainMethod::KernelShap));
    late.set_timeout(std::time::Duration::from_millis(1));
    let error = running.typed().explain(late).await.unwrap_err();
    let late = [
        Code::DeadlineExceeded,
        Code::Cancelled,
        Code::ResourceExhausted,
    ];
    assert!(late.contains(&error.code()), "{error:?}");
}

#[tokio::test]
async fn perturbed_rows_leave_the_response_cache_alone() {
    let models = models_of(&[CLASSIFY]);
    let manifest = "task = \"classify\"\n[cache]\nmax_mib = 1";
    write_manifest(models.path(), CLASSIFY, manifest);
    let running = Running::serving(models, |_| {}).await;
    explain(&running, class(TEXT, ExplainMethod::KernelShap))
        .await
        .unwrap();
    let (_, page) = running.http("/metrics").await;
    let name = format!("ferry_cache_misses_total{{model=\"{CLASSIFY}\",version=\"1\"}} 0");
    assert!(page.contains(&name), "{page}");
}
