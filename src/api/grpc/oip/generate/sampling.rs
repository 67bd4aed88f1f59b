//! The JSON object of `sampling_parameters`, with the names of vLLM's `SamplingParams`.

use serde_json::{Map, Value};

use crate::{admission::GenerateCall, error::RequestError, text::Constraint};

const FIELD: &str = "sampling_parameters";

/// Reads `json` into `call`. Numbers may be written as strings, as Triton's own examples do.
///
/// # Errors
/// [`RequestError::InvalidArgument`] naming the key that is unknown or has a wrong value.
pub fn read_sampling(json: &str, call: &mut GenerateCall) -> Result<(), RequestError> {
    let object: Map<String, Value> = serde_json::from_str(json)
        .map_err(|error| RequestError::invalid(FIELD, error, "a JSON object"))?;
    for (key, value) in &object {
        if value.is_null() {
            continue;
        }
        let value = Named { key, value };
        let sampling = &mut call.sampling;
        match key.as_str() {
            "max_tokens" => call.max_tokens = Some(value.whole()?),
            "temperature" => sampling.temperature = value.number()?,
            // -1 is vLLM's "all".
            "top_k" if value.is_minus_one() => sampling.top_k = 0,
            "top_k" => sampling.top_k = value.whole()?,
            "top_p" => sampling.top_p = value.number()?,
            "min_p" => sampling.min_p = value.number()?,
            "typical_p" => sampling.typical_p = value.number()?,
            "repetition_penalty" => sampling.repetition_penalty = value.number()?,
            "presence_penalty" => sampling.presence_penalty = value.number()?,
            "frequency_penalty" => sampling.frequency_penalty = value.number()?,
            "logit_bias" => sampling.logit_bias = value.biases()?,
            "seed" => sampling.seed = Some(u64::from(value.whole()?)),
            "logprobs" => sampling.top_logprobs = value.whole()?,
            "n" => call.continuations = value.whole()?,
            "stop" => call.stop = value.texts()?,
            "stop_token_ids" => call.stop_tokens = value.ids()?,
            "ignore_eos" => call.ignore_eos = value.switch()?,
            "include_stop_str_in_output" => call.include_stop = value.switch()?,
            "skip_special_tokens" => call.keep_special_tokens = !value.switch()?,
            "json" => {
                let schema = match value.value {
                    Value::String(schema) => serde_json::from_str(schema)
                        .map_err(|error| RequestError::invalid(FIELD, error, "a JSON schema"))?,
                    schema => schema.clone(),
                };
                call.constraint = Some(Constraint::JsonSchema(schema));
            }
            "regex" => call.constraint = Some(Constraint::Regex(value.text()?)),
            "choice" => call.constraint = Some(Constraint::Choice(value.texts()?)),
            _ => {
                return Err(RequestError::invalid(
                    format!("{FIELD}.{}", key.chars().take(64).collect::<String>()),
                    "a parameter that isn't known",
                    "max_tokens, temperature, top_k, top_p, min_p, typical_p, \
                     repetition_penalty, presence_penalty, frequency_penalty, logit_bias, seed, \
                     logprobs, n, stop, stop_token_ids, ignore_eos, include_stop_str_in_output, \
                     skip_special_tokens, json, regex, choice",
                ));
            }
        }
    }
    Ok(())
}

/// A value with its key, for errors.
struct Named<'a> {
    key: &'a str,
    value: &'a Value,
}

impl Named<'_> {
    fn wrong(&self, allowed: &str) -> RequestError {
        let found: String = self.value.to_string().chars().take(64).collect();
        RequestError::invalid(format!("{FIELD}.{}", self.key), found, allowed)
    }

    fn as_f64(&self) -> Option<f64> {
        match self.value {
            Value::Number(number) => number.as_f64(),
            Value::String(text) => text.parse().ok(),
            _ => None,
        }
    }

    fn is_minus_one(&self) -> bool {
        self.as_f64() == Some(-1.0)
    }

    fn number(&self) -> Result<f32, RequestError> {
        let number = self.as_f64().ok_or_else(|| self.wrong("a number"))?;
        Ok(number as f32)
    }

    fn whole(&self) -> Result<u32, RequestError> {
        whole_number(self.value).ok_or_else(|| self.wrong("a whole number from 0"))
    }

    fn switch(&self) -> Result<bool, RequestError> {
        match self.value {
            Value::Bool(switch) => Ok(*switch),
            Value::String(text) => text.parse().map_err(|_| self.wrong("true or false")),
            _ => Err(self.wrong("true or false")),
        }
    }

    fn text(&self) -> Result<String, RequestError> {
        let text = self.value.as_str().ok_or_else(|| self.wrong("a string"))?;
        Ok(text.to_owned())
    }

    fn texts(&self) -> Result<Vec<String>, RequestError> {
        let error = || self.wrong("a string or a list of strings");
        match self.value {
            Value::String(text) => Ok(vec![text.clone()]),
            Value::Array(texts) => texts
                .iter()
                .map(|text| text.as_str().map(str::to_owned).ok_or_else(error))
                .collect(),
            _ => Err(error()),
        }
    }

    fn ids(&self) -> Result<Vec<u32>, RequestError> {
        let error = || self.wrong("a list of token ids");
        let ids = self.value.as_array().ok_or_else(error)?;
        ids.iter()
            .map(|id| whole_number(id).ok_or_else(error))
            .collect()
    }

    fn biases(&self) -> Result<Vec<(u32, f32)>, RequestError> {
        let error = || self.wrong("an object from token ids to numbers");
        let biases = self.value.as_object().ok_or_else(error)?;
        biases
            .iter()
            .map(|(id, bias)| {
                let bias = bias.as_f64().ok_or_else(error)?;
                Ok((id.parse().map_err(|_| error())?, bias as f32))
            })
            .collect()
    }
}

fn whole_number(value: &Value) -> Option<u32> {
    match value {
        Value::Number(number) => u32::try_from(number.as_u64()?).ok(),
        Value::String(text) => text.parse().ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::Prompt;

    fn read(json: &str) -> Result<GenerateCall, RequestError> {
        let mut call = GenerateCall::new(String::new(), Prompt::Text(String::new()));
        read_sampling(json, &mut call)?;
        Ok(call)
    }

    #[test]
    fn numbers_may_be_strings_as_in_tritons_examples() {
        let call = read(r#"{"temperature": "0.5", "top_p": 0.9, "max_tokens": "7", "top_k": -1}"#);
        let call = call.unwrap();
        assert_eq!(call.max_tokens, Some(7));
        assert!((call.sampling.temperature - 0.5).abs() < 1e-6);
        assert_eq!(call.sampling.top_k, 0);
    }

    #[test]
    fn unknown_and_wrong_parameters_are_named() {
        for (json, name) in [
            (r#"{"temprature": 1}"#, "temprature"),
            (r#"{"max_tokens": -1}"#, "max_tokens"),
            (r#"{"stop": 5}"#, "stop"),
            ("[1]", "sampling_parameters"),
            ("nothing", "sampling_parameters"),
        ] {
            let error = read(json).unwrap_err().to_string();
            assert!(error.contains(name), "{json}: {error}");
        }
    }
}
