//! text-embeddings-inference's own route.

use serde::{Serialize, de::IgnoredAny};

use super::{
    Asked, Refusal, Reply,
    http::{HttpConnection, read},
};

#[derive(Serialize)]
struct EmbedRequest<'a> {
    inputs: &'a [String],
}

/// Embeds rows.
pub async fn embed(
    connection: &mut HttpConnection,
    asked: &Asked,
    texts: &[String],
) -> Result<Reply, Refusal> {
    let body = json(&EmbedRequest { inputs: texts })?;
    let response = connection.post("/embed", asked, body).await?;
    let tokens = response.headers().get("x-compute-tokens").cloned();
    let body = read(response).await?;
    // The numbers are looked at as JSON and not kept.
    let vectors: Vec<Vec<IgnoredAny>> = serde_json::from_slice(&body)
        .map_err(|error| Refusal::new("MALFORMED_ANSWER", error.to_string()))?;
    whole(vectors.len(), texts.len())?;
    Ok(Reply {
        rows: vectors.len(),
        read_tokens: tokens.and_then(|count| count.to_str().ok()?.parse().ok()),
        ..Reply::default()
    })
}

/// A message's bytes.
pub fn json(message: &impl Serialize) -> Result<Vec<u8>, Refusal> {
    serde_json::to_vec(message).map_err(|error| Refusal::new("MALFORMED_CALL", error.to_string()))
}

/// Checks that each row has its answer.
pub fn whole(answered: usize, sent: usize) -> Result<(), Refusal> {
    if answered == sent {
        return Ok(());
    }
    let what = format!("{sent} rows were sent, {answered} are answered");
    Err(Refusal::new("MALFORMED_ANSWER", what))
}
