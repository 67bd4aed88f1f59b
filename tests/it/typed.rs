//! `ferry.v1.Inference` over a real socket.

use std::collections::{BTreeMap, BTreeSet};

use ferry::api::proto::ferry::v1::{
    ClassifyRequest, ClassifyTokensRequest, EmbedRequest, ModelOptions, RerankRequest,
    StreamRequest, TokenIds, TokenizeRequest, Truncation, stream_request::Task,
    stream_response::Answer,
};
use tonic::{Code, codec::CompressionEncoding};

use super::support::{Running, cosine};

fn options(model: &str) -> Option<ModelOptions> {
    Some(ModelOptions {
        model: model.to_owned(),
        ..ModelOptions::default()
    })
}

fn embed(texts: &[&str]) -> EmbedRequest {
    EmbedRequest {
        options: options("tiny-bert-embed"),
        texts: texts.iter().map(|&text| text.to_owned()).collect(),
        ..EmbedRequest::default()
    }
}

#[tokio::test]
async fn every_answer_tells_model_version_tokens_and_times() {
    let running = Running::with(&["tiny-bert-embed"]).await;
    let answer = running.typed().embed(embed(&["one", "two words"])).await;
    let answer = answer.unwrap().into_inner();
    let model = answer.model.unwrap();
    assert_eq!((&*model.name, &*model.version), ("tiny-bert-embed", "1"));
    assert_eq!(answer.rows.len(), 2);
    for (at, row) in answer.rows.iter().enumerate() {
        let info = row.info.unwrap();
        assert_eq!(info.row as usize, at);
        assert!(info.tokens >= 3 && info.batch_rows >= 1 && !info.truncated);
        let length: f32 = row.embedding.iter().map(|value| value * value).sum();
        assert!((length - 1.0).abs() < 1e-5);
    }
    let timing = answer.timing.unwrap();
    assert!(timing.execute_us > 0 && timing.total_us >= timing.execute_us + timing.queue_us);
}

#[tokio::test]
async fn a_model_need_not_be_named_when_only_one_does_the_task() {
    let running = Running::with(&["tiny-bert-embed", "tiny-bert-classify"]).await;
    let mut request = embed(&["a text"]);
    request.options = None;
    assert!(running.typed().embed(request).await.is_ok());

    let running = Running::with(&["tiny-bert-embed", "tiny-roberta-embed"]).await;
    let mut request = embed(&["a text"]);
    request.options = None;
    let error = running.typed().embed(request).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    assert!(
        error
            .message()
            .contains("tiny-bert-embed, tiny-roberta-embed")
    );
}

#[tokio::test]
async fn token_ids_give_the_answer_of_their_text() {
    let running = Running::with(&["tiny-bert-embed"]).await;
    let mut typed = running.typed();
    let text = "The ferry leaves when it is full.";
    let request = TokenizeRequest {
        options: options("tiny-bert-embed"),
        texts: vec![text.to_owned()],
        ..TokenizeRequest::default()
    };
    let tokenized = typed.tokenize(request).await.unwrap().into_inner();
    let tokens = &tokenized.rows[0].tokens;
    let second = &tokens[1];
    let span: String = text.chars().skip(second.start as usize).collect();
    assert!(span.to_lowercase().starts_with(&second.text.to_lowercase()));
    let by_ids = EmbedRequest {
        options: options("tiny-bert-embed"),
        token_ids: vec![TokenIds {
            ids: tokens.iter().map(|token| token.id).collect(),
        }],
        ..EmbedRequest::default()
    };
    let by_ids = typed.embed(by_ids).await.unwrap().into_inner();
    let by_text = typed.embed(embed(&[text])).await.unwrap().into_inner();
    let same = cosine(&by_ids.rows[0].embedding, &by_text.rows[0].embedding);
    assert!(same > 0.999_999, "{same}");
}

#[tokio::test]
async fn a_shortened_embedding_is_the_beginning_scaled_to_length_one() {
    let running = Running::with(&["tiny-bert-embed"]).await;
    let mut typed = running.typed();
    let whole = typed.embed(embed(&["a text"])).await.unwrap().into_inner();
    let mut request = embed(&["a text"]);
    request.dimensions = 8;
    let short = typed.embed(request).await.unwrap().into_inner();
    let (whole, short) = (&whole.rows[0].embedding, &short.rows[0].embedding);
    assert_eq!(short.len(), 8);
    assert!(cosine(&whole[..8], short) > 0.999_999);
    let mut request = embed(&["a text"]);
    request.dimensions = 100_000;
    let error = typed.embed(request).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    assert!(error.message().contains("dimensions"));
}

#[tokio::test]
async fn classes_are_ranked_and_low_confidence_is_flagged() {
    let running = Running::with(&["tiny-bert-classify", "tiny-bert-multilabel"]).await;
    let mut typed = running.typed();
    let request = |model: &str, least: f32| ClassifyRequest {
        options: options(model),
        texts: vec!["What a wonderful crossing!".to_owned()],
        top_k: 2,
        min_confidence: least,
        ..ClassifyRequest::default()
    };
    let answer = typed.classify(request("tiny-bert-classify", 0.0)).await;
    let row = answer.unwrap().into_inner().rows.remove(0);
    assert_eq!(row.scores.len(), 2);
    assert_eq!(row.label, row.scores[0].label);
    assert!((row.margin - (row.scores[0].score - row.scores[1].score)).abs() < 1e-6);
    assert!(!row.low_confidence);
    let answer = typed.classify(request("tiny-bert-classify", 1.0)).await;
    assert!(answer.unwrap().into_inner().rows[0].low_confidence);
    let error = typed.classify(request("tiny-bert-classify", 1.5)).await;
    assert!(error.unwrap_err().message().contains("min_confidence"));

    // Labels that each hold or not need not sum to one.
    let mut request = request("tiny-bert-multilabel", 0.0);
    request.top_k = 0;
    let answer = typed.classify(request).await.unwrap().into_inner();
    let sum: f32 = answer.rows[0].scores.iter().map(|label| label.score).sum();
    assert!((sum - 1.0).abs() > 1e-3, "{sum}");
}

#[tokio::test]
async fn documents_come_back_best_first() {
    let running = Running::with(&["tiny-bert-rerank"]).await;
    let documents: Vec<String> = ["a", "the boat", "password settings", "nine to five"]
        .map(String::from)
        .to_vec();
    let request = RerankRequest {
        options: options("tiny-bert-rerank"),
        query: "How do I reset my password?".to_owned(),
        documents: documents.clone(),
        top_n: 3,
        return_documents: true,
        ..RerankRequest::default()
    };
    let answer = running.typed().rerank(request).await.unwrap().into_inner();
    assert_eq!(answer.rows.len(), 3);
    assert!(answer.rows.is_sorted_by(|a, b| a.score >= b.score));
    for row in &answer.rows {
        assert_eq!(row.document, documents[row.info.unwrap().row as usize]);
        let sigmoid = 1.0 / (1.0 + (-row.logit).exp());
        assert!((row.score - sigmoid).abs() < 1e-6);
    }
}

#[tokio::test]
async fn spans_point_into_the_text() {
    let running = Running::with(&["tiny-bert-tokens"]).await;
    let text = "Zoë and Ada took the ferry to Ærø at dawn with a small boat.";
    let request = ClassifyTokensRequest {
        options: options("tiny-bert-tokens"),
        texts: vec![text.to_owned()],
        ..ClassifyTokensRequest::default()
    };
    let answer = running.typed().classify_tokens(request).await;
    let spans = answer.unwrap().into_inner().rows.remove(0).spans;
    assert!(!spans.is_empty());
    for span in spans {
        let length = (span.end - span.start) as usize;
        let found: String = text
            .chars()
            .skip(span.start as usize)
            .take(length)
            .collect();
        assert_eq!(found, span.text);
        assert!(["PER", "LOC"].contains(&&*span.label));
        assert!((0.0..=1.0).contains(&span.confidence));
    }
}

#[tokio::test]
async fn a_row_that_is_too_long_fails_alone() {
    let running = Running::with(&["tiny-bert-embed"]).await;
    let long = "word ".repeat(500);
    let mut request = embed(&["short", &long, "brief"]);
    request.options.as_mut().unwrap().truncation = Truncation::Error.into();
    let answer = running.typed().embed(request).await.unwrap().into_inner();
    assert!(answer.rows[0].error.is_none() && answer.rows[2].error.is_none());
    let error = answer.rows[1].error.as_ref().unwrap();
    assert_eq!(error.code, Code::InvalidArgument as i32);
    assert!(
        error
            .message
            .starts_with("texts[1]: found 1502 tokens; allowed: at most 64"),
        "{}",
        error.message
    );

    let cut = running
        .typed()
        .embed(embed(&[&long]))
        .await
        .unwrap()
        .into_inner();
    let info = cut.rows[0].info.unwrap();
    assert!(info.truncated);
    assert_eq!(info.tokens, 64);
}

#[tokio::test]
async fn cutting_left_keeps_the_end() {
    let running = Running::with(&["tiny-bert-embed"]).await;
    let mut typed = running.typed();
    let long = format!("{}boat", "hour ".repeat(100));
    let request = |truncation: Truncation| TokenizeRequest {
        options: Some(ModelOptions {
            model: "tiny-bert-embed".to_owned(),
            truncation: truncation.into(),
            max_tokens: 8,
            ..ModelOptions::default()
        }),
        texts: vec![long.clone()],
        ..TokenizeRequest::default()
    };
    let mut ends = Vec::new();
    for truncation in [Truncation::Left, Truncation::Right] {
        let answer = typed
            .tokenize(request(truncation))
            .await
            .unwrap()
            .into_inner();
        let tokens = &answer.rows[0].tokens;
        assert_eq!(tokens.len(), 8);
        ends.push(tokens[6].end as usize);
    }
    assert_eq!(ends[0], long.chars().count());
    assert!(ends[1] < 40);
}

#[tokio::test]
async fn a_stream_answers_every_row_by_its_id() {
    let running = Running::with(&["tiny-bert-embed", "tiny-bert-rerank"]).await;
    let requests = (0..40).map(|at| StreamRequest {
        id: at.to_string(),
        task: match at % 4 {
            0 => Some(Task::Rerank(RerankRequest {
                options: options("tiny-bert-rerank"),
                query: "which?".to_owned(),
                documents: vec!["this".to_owned(), "that".to_owned(), "those".to_owned()],
                ..RerankRequest::default()
            })),
            1 => None,
            2 => Some(Task::Embed(EmbedRequest {
                options: options("nobody"),
                texts: vec!["x".to_owned()],
                ..EmbedRequest::default()
            })),
            _ => Some(Task::Embed(embed(&["first", "second"]))),
        },
    });
    let requests: Vec<_> = requests.collect();
    let answers = running.typed().stream(tokio_stream::iter(requests)).await;
    let mut answers = answers.unwrap().into_inner();
    let mut rows: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    let mut last = BTreeSet::new();
    while let Some(answer) = answers.message().await.unwrap() {
        let id: u32 = answer.id.parse().unwrap();
        assert!(!last.contains(&id), "an answer after the last");
        let row = match answer.answer.unwrap() {
            Answer::Embed(row) => row.info.unwrap().row,
            Answer::Rerank(row) => row.info.unwrap().row,
            Answer::Error(error) => {
                let expected = match id % 4 {
                    1 => Code::InvalidArgument,
                    _ => Code::NotFound,
                };
                assert_eq!(error.code, expected as i32);
                0
            }
            other => panic!("{other:?}"),
        };
        rows.entry(id).or_default().push(row);
        if answer.last {
            last.insert(id);
        }
    }
    assert_eq!(last.len(), 40);
    for (id, mut rows) in rows {
        rows.sort_unstable();
        let expected: &[u32] = match id % 4 {
            0 => &[0, 1, 2],
            3 => &[0, 1],
            _ => &[0],
        };
        assert_eq!(rows, expected, "request {id}");
    }
}

#[tokio::test]
async fn compressed_calls_are_answered_compressed() {
    let running = Running::with(&["tiny-bert-embed"]).await;
    for encoding in [CompressionEncoding::Gzip, CompressionEncoding::Zstd] {
        let mut typed = running
            .typed()
            .send_compressed(encoding)
            .accept_compressed(encoding);
        let answer = typed.embed(embed(&["a text"])).await.unwrap();
        assert!(answer.metadata().get("grpc-encoding").is_some());
    }
}

#[tokio::test]
async fn metrics_count_what_was_done() {
    let running = Running::with(&["tiny-bert-embed"]).await;
    let mut typed = running.typed();
    typed.embed(embed(&["a", "b", "c"])).await.unwrap();
    typed.embed(embed(&[])).await.unwrap_err();
    let (status, page) = running.http("/metrics").await;
    assert_eq!(status, 200);
    for line in [
        r#"ferry_requests_total{model="tiny-bert-embed",outcome="ok",version="1"} 1"#,
        r#"ferry_requests_total{model="tiny-bert-embed",outcome="invalid",version="1"} 1"#,
        r#"ferry_rows_total{model="tiny-bert-embed",version="1"} 3"#,
        r#"ferry_queue_delay_seconds_count{model="tiny-bert-embed",version="1"} 3"#,
    ] {
        assert!(page.contains(line), "{line} not in\n{page}");
    }
    assert_eq!(running.http("/health/live").await.0, 200);
    assert_eq!(running.http("/health/ready").await.0, 200);
}
