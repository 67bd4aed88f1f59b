//! The parameters that completions and chat have in common: OpenAI's, and the ones that vLLM and
//! llama.cpp's server have taught clients to send.

use std::collections::BTreeMap;

use super::{
    constraints::read_constraint,
    fields::{Field, Fields, Kind},
};
use crate::{
    admission::{GenerateCall, Prompt},
    error::RequestError,
    generation::SamplingParameters,
};

/// OpenAI's parameters that say nothing about the text; accepted, so that its clients run as they
/// are, and not looked at.
const IGNORED: &[&str] = &[
    "user",
    "store",
    "metadata",
    "service_tier",
    "parallel_tool_calls",
    "safety_identifier",
    "prompt_cache_key",
    "reasoning_effort",
];

const NUMBER: &str = "a number";
const COUNT: &str = "a whole number from 0";
const SWITCH: &str = "true or false";

/// How an answer is sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Delivery {
    /// As it is generated, or in one go.
    pub stream: bool,
    /// Whether a stream ends with the usage.
    pub include_usage: bool,
}

/// A request to generate, read: a call for each prompt, and how the answer is written and sent.
#[derive(Debug)]
pub struct GenerationRequest<S> {
    /// A call for each prompt.
    pub calls: Vec<GenerateCall>,
    /// How the answer is sent.
    pub delivery: Delivery,
    /// How it is written.
    pub surface: S,
}

/// Reads what the two surfaces have in common into a call without a prompt, and how it is sent.
///
/// # Errors
/// [`RequestError::InvalidArgument`] naming the parameter that isn't understood. Ranges are checked
/// where the call is let in.
pub fn read_common(fields: &mut Fields<'_>) -> Result<(GenerateCall, Delivery), RequestError> {
    fields.ignore(IGNORED);
    let model = fields.read("model", "a model's name")?.unwrap_or_default();
    let mut call = GenerateCall::new(model, Prompt::Text(String::new()));
    call.sampling = read_sampling(fields)?;
    call.stop = match fields.take("stop") {
        Some(stop) => one_or_more(&stop, "a text, or a list of texts")?,
        None => Vec::new(),
    };
    call.include_stop = switch(fields, "include_stop_str_in_output", false)?;
    call.stop_tokens = fields
        .read("stop_token_ids", "a list of token ids")?
        .unwrap_or_default();
    call.ignore_eos = switch(fields, "ignore_eos", false)?;
    call.continuations = fields.read("n", "a whole number from 1")?.unwrap_or(1);
    call.keep_special_tokens = !switch(fields, "skip_special_tokens", true)?;
    call.constraint = read_constraint(fields)?;
    if let Some(least) = fields
        .read::<u64>("min_tokens", COUNT)?
        .filter(|&least| least > 0)
    {
        return Err(RequestError::invalid(
            "min_tokens",
            least,
            "0: a least length is not supported",
        ));
    }
    let delivery = read_delivery(fields)?;
    call.whole = !delivery.stream;
    Ok((call, delivery))
}

fn read_sampling(fields: &mut Fields<'_>) -> Result<SamplingParameters, RequestError> {
    let mut sampling = SamplingParameters::default();
    let mut set = |name: &str, target: &mut f32| {
        if let Some(value) = fields.read(name, NUMBER)? {
            *target = value;
        }
        Ok::<_, RequestError>(())
    };
    set("temperature", &mut sampling.temperature)?;
    set("top_p", &mut sampling.top_p)?;
    set("min_p", &mut sampling.min_p)?;
    set("typical_p", &mut sampling.typical_p)?;
    set("presence_penalty", &mut sampling.presence_penalty)?;
    set("frequency_penalty", &mut sampling.frequency_penalty)?;
    let names = ["repetition_penalty", "repeat_penalty"];
    if let Some(penalty) = read_alias(fields, names, NUMBER)? {
        sampling.repetition_penalty = penalty;
    }
    if let Some(top_k) = fields.take("top_k") {
        const ALLOWED: &str = "a whole number from 1, or 0 or -1 for all tokens";
        sampling.top_k = match top_k.read::<i64>(ALLOWED)? {
            -1 => 0,
            count => u32::try_from(count).map_err(|_| top_k.refuse(ALLOWED))?,
        };
    }
    if let Some(bias) = fields.take("logit_bias") {
        sampling.logit_bias = read_logit_bias(&bias)?;
    }
    if let Some(seed) = fields.take("seed") {
        const ALLOWED: &str = "a whole number of 64 bits";
        sampling.seed = Some(match seed.read::<u64>(ALLOWED) {
            Ok(seed) => seed,
            // Any number is as good a seed as another; OpenAI's may be negative.
            Err(_) => seed.read::<i64>(ALLOWED)? as u64,
        });
    }
    Ok(sampling)
}

fn read_logit_bias(field: &Field<'_>) -> Result<Vec<(u32, f32)>, RequestError> {
    let biases: BTreeMap<String, f32> = field.read("an object of token ids and numbers")?;
    let read = |(id, bias): (String, f32)| match id.parse() {
        Ok(id) => Ok((id, bias)),
        Err(_) => Err(RequestError::invalid(
            &field.path,
            format_args!("'{}'", id.chars().take(32).collect::<String>()),
            "token ids for names, such as \"50256\"",
        )),
    };
    biases.into_iter().map(read).collect()
}

fn read_delivery(fields: &mut Fields<'_>) -> Result<Delivery, RequestError> {
    let stream = switch(fields, "stream", false)?;
    let mut delivery = Delivery {
        stream,
        include_usage: false,
    };
    if let Some(field) = fields.take("stream_options") {
        let mut options = field.object("an object")?;
        delivery.include_usage = switch(&mut options, "include_usage", false)?;
        // Padding against those who watch the sizes of packets.
        options.ignore(&["include_obfuscation"]);
        options.finish()?;
        if !stream {
            let found = "options for a stream";
            let allowed = "nothing, unless stream is true";
            return Err(RequestError::invalid("stream_options", found, allowed));
        }
    }
    Ok(delivery)
}

/// Reads a parameter that goes by two names, but not by both at a time with different values.
pub fn read_alias<'a, T: serde::Deserialize<'a> + PartialEq + std::fmt::Display>(
    fields: &mut Fields<'a>,
    [name, alias]: [&str; 2],
    allowed: &str,
) -> Result<Option<T>, RequestError> {
    match (
        fields.read::<T>(name, allowed)?,
        fields.read::<T>(alias, allowed)?,
    ) {
        (Some(one), Some(other)) if one != other => {
            let allowed = format!("the same as {name}, {one}, or only one of the two");
            Err(RequestError::invalid(alias, other, allowed))
        }
        (one, other) => Ok(one.or(other)),
    }
}

/// A switch with its default.
pub fn switch(fields: &mut Fields<'_>, name: &str, default: bool) -> Result<bool, RequestError> {
    Ok(fields.read(name, SWITCH)?.unwrap_or(default))
}

/// A text, or a list of texts.
pub fn one_or_more(field: &Field<'_>, allowed: &str) -> Result<Vec<String>, RequestError> {
    if field.kind() == Kind::Text {
        return Ok(vec![field.read(allowed)?]);
    }
    field.read(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<(GenerateCall, Delivery), String> {
        let mut fields = Fields::parse(json.as_bytes()).unwrap();
        let read = read_common(&mut fields).map_err(|error| error.to_string())?;
        fields.finish().map_err(|error| error.to_string())?;
        Ok(read)
    }

    #[test]
    fn what_is_left_out_or_null_is_at_its_default() {
        let (call, delivery) = read("{}").unwrap();
        assert_eq!(call.sampling, SamplingParameters::default());
        assert_eq!((call.continuations, call.model.as_str()), (1, ""));
        assert_eq!(delivery, Delivery::default());
        let (call, _) = read(r#"{"temperature":null,"stop":null,"n":null,"seed":null}"#).unwrap();
        assert_eq!(call.sampling, SamplingParameters::default());
    }

    #[test]
    #[allow(clippy::float_cmp, reason = "what is read is what was written")]
    fn every_parameter_is_read() {
        let (call, delivery) = read(
            r#"{"model":"m","temperature":0.5,"top_p":0.9,"top_k":40,"min_p":0.1,"typical_p":0.8,
            "repeat_penalty":1.1,"presence_penalty":0.2,"frequency_penalty":0.3,
            "logit_bias":{"7":-100,"9":1.5},"seed":-1,"n":3,"stop":"end","stop_token_ids":[5],
            "ignore_eos":true,"skip_special_tokens":false,"include_stop_str_in_output":true,
            "min_tokens":0,"stream":true,"stream_options":{"include_usage":true},
            "user":"u","store":false,"metadata":{"a":"b"},"service_tier":"auto",
            "parallel_tool_calls":true,"safety_identifier":"s","prompt_cache_key":"k",
            "reasoning_effort":"low"}"#,
        )
        .unwrap();
        assert_eq!(call.model, "m");
        let sampling = &call.sampling;
        assert_eq!(sampling.temperature, 0.5);
        assert_eq!((sampling.top_p, sampling.top_k), (0.9, 40));
        assert_eq!((sampling.min_p, sampling.typical_p), (0.1, 0.8));
        assert_eq!(sampling.repetition_penalty, 1.1);
        assert_eq!(
            (sampling.presence_penalty, sampling.frequency_penalty),
            (0.2, 0.3)
        );
        assert_eq!(sampling.logit_bias, [(7, -100.0), (9, 1.5)]);
        assert_eq!(sampling.seed, Some(u64::MAX));
        assert_eq!(
            (call.stop, call.stop_tokens),
            (vec!["end".to_owned()], vec![5])
        );
        assert!(call.ignore_eos && call.keep_special_tokens && call.include_stop);
        assert_eq!(call.continuations, 3);
        assert!(delivery.stream && delivery.include_usage);
        assert_eq!(read(r#"{"top_k":-1}"#).unwrap().0.sampling.top_k, 0);
    }

    #[test]
    fn what_is_not_understood_is_refused_by_its_name() {
        for (json, says) in [
            (
                r#"{"temperature":"hot"}"#,
                "temperature: found \"hot\"; allowed: a number",
            ),
            (
                r#"{"tempreature":1}"#,
                "tempreature: found a parameter that is not known",
            ),
            (r#"{"n":-1}"#, "n: found -1"),
            (r#"{"top_k":-2}"#, "top_k: found -2"),
            (r#"{"seed":1.5}"#, "seed: found 1.5"),
            (r#"{"stop":[1]}"#, "stop: found invalid type"),
            (r#"{"stop":7}"#, "stop: found 7"),
            (r#"{"logit_bias":{"the":1}}"#, "logit_bias: found 'the'"),
            (r#"{"min_tokens":4}"#, "min_tokens: found 4; allowed: 0"),
            (r#"{"stream":1}"#, "stream: found 1; allowed: true or false"),
            (r#"{"stream_options":{}}"#, "stream_options: found"),
            (
                r#"{"stream":true,"stream_options":{"x":1}}"#,
                "stream_options.x: found",
            ),
            (
                r#"{"repetition_penalty":1.1,"repeat_penalty":1.2}"#,
                "repeat_penalty: found 1.2",
            ),
        ] {
            let error = read(json).unwrap_err();
            assert!(error.starts_with(says), "{json}: {error}");
        }
    }
}
