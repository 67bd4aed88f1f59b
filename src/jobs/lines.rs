//! OpenAI's JSON lines: what a batch's input file holds and what its output files do.
//!
//! Source: OpenAI's Batch API, <https://platform.openai.com/docs/guides/batch>. A line in is
//! `{"custom_id", "method", "url", "body"}`, a line out `{"id", "custom_id", "response", "error"}`.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{
    id::JobId,
    record::{LineFault, Unrun},
    row::{Endpoint, NewRow, RowForm, StoredResult},
};

/// Bytes of a row's id at most.
pub(super) const MAX_ID_BYTES: usize = 512;

/// Bytes of a model's name at most.
const MAX_MODEL_BYTES: usize = 256;

/// Cuts a file into lines as it comes in. Empty lines are none, but are counted.
#[derive(Debug)]
pub struct LineSplitter {
    /// What has come of the line under way.
    begun: Vec<u8>,
    line: u32,
    max_bytes: usize,
}

impl LineSplitter {
    /// Takes lines of at most `max_bytes`.
    pub fn new(max_bytes: usize) -> Self {
        Self {
            begun: Vec::new(),
            line: 0,
            max_bytes,
        }
    }

    /// Takes bytes; hands each line that they complete to `take`, with its number from 1.
    ///
    /// # Errors
    /// What `take` says, or that a line is too long. Nothing more should be pushed then.
    pub fn push<E: From<LineFault>>(
        &mut self,
        mut bytes: &[u8],
        mut take: impl FnMut(u32, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        while let Some(end) = bytes.iter().position(|&byte| byte == b'\n') {
            let (rest, after) = (&bytes[..end], &bytes[end + 1..]);
            bytes = after;
            self.extend(rest)?;
            self.complete(&mut take)?;
        }
        Ok(self.extend(bytes)?)
    }

    /// Hands over the last line, which need not end with a line break.
    ///
    /// # Errors
    /// What `take` says.
    pub fn finish<E: From<LineFault>>(
        mut self,
        mut take: impl FnMut(u32, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        self.complete(&mut take)
    }

    fn extend(&mut self, bytes: &[u8]) -> Result<(), LineFault> {
        if self.begun.len() + bytes.len() > self.max_bytes {
            return Err(LineFault {
                line: self.line + 1,
                code: "line_too_long".to_owned(),
                message: format!(
                    "more than {} bytes, which is as long as a line may be (jobs.max_row_bytes)",
                    self.max_bytes
                ),
                param: None,
            });
        }
        self.begun.extend_from_slice(bytes);
        Ok(())
    }

    fn complete<E>(&mut self, take: &mut impl FnMut(u32, &[u8]) -> Result<(), E>) -> Result<(), E> {
        self.line += 1;
        let mut line = self.begun.trim_ascii();
        if self.line == 1 {
            // The mark that some editors begin a file with.
            line = line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line);
        }
        let taken = if line.is_empty() {
            Ok(())
        } else {
            take(self.line, line)
        };
        self.begun.clear();
        taken
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line<'a> {
    #[serde(borrow)]
    custom_id: Option<&'a RawValue>,
    #[serde(borrow)]
    method: Option<&'a RawValue>,
    #[serde(borrow)]
    url: Option<&'a RawValue>,
    #[serde(borrow)]
    body: Option<&'a RawValue>,
}

/// Of a body, what tells which model it is for and how much work it is. What has another type is
/// left to the route to refuse.
#[derive(Deserialize)]
struct Body<'a> {
    #[serde(borrow, default)]
    model: Option<&'a RawValue>,
    #[serde(borrow, default)]
    input: Option<&'a RawValue>,
    #[serde(borrow, default)]
    prompt: Option<&'a RawValue>,
    #[serde(borrow, default)]
    documents: Option<&'a RawValue>,
    #[serde(borrow, default)]
    n: Option<&'a RawValue>,
}

/// Reads line `number` of an input, of which every line must name `only` where that is given.
///
/// # Errors
/// What is wrong with the line.
pub fn read_http_row(
    number: u32,
    line: &[u8],
    only: Option<Endpoint>,
) -> Result<NewRow, LineFault> {
    let fault = |code: &str, message: String, param: Option<&str>| LineFault {
        line: number,
        code: code.to_owned(),
        message,
        param: param.map(str::to_owned),
    };
    let Line {
        custom_id,
        method,
        url,
        body,
    } = serde_json::from_slice(line).map_err(|error| {
        let message =
            format!("{error}; a line is a JSON object with custom_id, method, url and body");
        fault("invalid_json_line", message, None)
    })?;
    let text = |value: Option<&RawValue>, name: &str| -> Result<String, LineFault> {
        let wrong = || {
            fault(
                "invalid_request",
                format!("{name} must be a text"),
                Some(name),
            )
        };
        let value = value.ok_or_else(|| {
            let code = format!("missing_{name}");
            fault(&code, format!("{name} is missing"), Some(name))
        })?;
        serde_json::from_str(value.get()).map_err(|_| wrong())
    };
    let id = text(custom_id, "custom_id")?;
    check_id(&id).map_err(|message| fault("invalid_custom_id", message, Some("custom_id")))?;
    let method = text(method, "method")?;
    if method != "POST" {
        let message = format!("method is '{}'; allowed: POST", cut(&method));
        return Err(fault("invalid_method", message, Some("method")));
    }
    let url = text(url, "url")?;
    let endpoint = Endpoint::of_path(&url).filter(|route| only.is_none_or(|only| only == *route));
    let endpoint = endpoint.ok_or_else(|| {
        let allowed: Vec<_> = Endpoint::ALL
            .iter()
            .filter(|route| only.is_none_or(|only| only == **route))
            .map(|route| route.path())
            .collect();
        let allowed = allowed.join(", ");
        let message = format!("url is '{}'; allowed: {allowed}", cut(&url));
        fault("invalid_url", message, Some("url"))
    })?;
    let body = body.map_or("", RawValue::get);
    http_row(id, endpoint, body).ok_or_else(|| {
        let message = "body must be an object".to_owned();
        fault("invalid_body", message, Some("body"))
    })
}

/// A row of a body; `None` when that is no JSON object.
pub fn http_row(id: String, endpoint: Endpoint, body: &str) -> Option<NewRow> {
    let object: &RawValue = serde_json::from_str(body).ok()?;
    let body = Some(object.get()).filter(|body| body.starts_with('{'))?;
    let looked: Option<Body<'_>> = serde_json::from_str(body).ok();
    let (mut model, mut weight) = (String::new(), 1_u32);
    if let Some(looked) = looked {
        model = serde_json::from_str(text_of(looked.model)).unwrap_or_default();
        let inputs = looked.input.or(looked.prompt).or(looked.documents);
        weight = inputs.map_or(1, count);
        let each: u32 = serde_json::from_str(text_of(looked.n)).unwrap_or(1);
        weight = weight.saturating_mul(each.max(1));
    }
    if model.len() > MAX_MODEL_BYTES {
        // No model has such a name; the route will say so.
        model.clear();
    }
    Some(NewRow {
        id,
        model,
        generates: endpoint.generates(),
        weight,
        form: RowForm::Http(endpoint),
        body: body.as_bytes().to_vec(),
    })
}

fn text_of(value: Option<&RawValue>) -> &str {
    value.map(RawValue::get).unwrap_or_default()
}

/// How many texts (or lists of token ids) an input holds.
fn count(input: &RawValue) -> u32 {
    let Ok(items) = serde_json::from_str::<Vec<&RawValue>>(input.get()) else {
        return 1;
    };
    match items.first().map(|item| item.get().as_bytes()[0]) {
        Some(b'"' | b'[' | b'{') => items.len() as u32,
        // One list of token ids.
        _ => 1,
    }
}

/// Checks the id that a caller gives a row.
pub(super) fn check_id(id: &str) -> Result<(), String> {
    if id.is_empty() || id.len() > MAX_ID_BYTES {
        let bytes = id.len();
        return Err(format!("{bytes} bytes; allowed: 1 to {MAX_ID_BYTES} bytes"));
    }
    Ok(())
}

fn cut(text: &str) -> String {
    text.chars().take(64).collect()
}

/// Ids that were given already. Only 128 bits of each are kept, in which two of a million ids
/// coincide with a chance of 10⁻²⁷.
#[derive(Debug, Default)]
pub(super) struct SeenIds {
    keys: [std::hash::RandomState; 2],
    seen: HashSet<u128>,
}

impl SeenIds {
    /// Whether `id` is new; it is not any more then.
    pub(super) fn insert(&mut self, id: &str) -> bool {
        use std::hash::BuildHasher as _;
        let [high, low] = [0, 1].map(|at: usize| u128::from(self.keys[at].hash_one(id)));
        self.seen.insert(high << 64 | low)
    }
}

/// The fault of an id that was given before.
pub(super) fn duplicate_id(line: u32, id: &str) -> LineFault {
    LineFault {
        line,
        code: "duplicate_custom_id".to_owned(),
        message: format!("custom_id '{}' was given before", cut(id)),
        param: Some("custom_id".to_owned()),
    }
}

#[derive(Serialize)]
struct ResultLine<'a> {
    id: String,
    custom_id: &'a str,
    response: Option<Response<'a>>,
    error: Option<Error>,
}

#[derive(Serialize)]
struct Response<'a> {
    status_code: u16,
    request_id: String,
    body: &'a RawValue,
}

#[derive(Serialize)]
struct Error {
    code: &'static str,
    message: &'static str,
}

/// The line of a result, line break included.
pub fn write_http_result(job: JobId, result: &StoredResult) -> Vec<u8> {
    let body = std::str::from_utf8(&result.body).ok();
    let body = body.and_then(|body| serde_json::from_str::<&RawValue>(body).ok());
    let number = format!("{:016x}{:08x}", job.0, result.index);
    let error = match result.unrun {
        None if body.is_some() => None,
        None => Some(Error {
            code: "server_error",
            message: "the answer is no JSON",
        }),
        Some(Unrun::Expired) => Some(Error {
            code: "batch_expired",
            message: "This request could not be executed before the completion window expired.",
        }),
        Some(Unrun::Cancelled) => Some(Error {
            code: "batch_cancelled",
            message: "This request was not executed because the batch was cancelled.",
        }),
    };
    let line = ResultLine {
        id: format!("batch_req_{number}"),
        custom_id: &result.id,
        response: body.map(|body| Response {
            status_code: result.status,
            request_id: format!("req_{number}"),
            body,
        }),
        error,
    };
    let mut json = serde_json::to_vec(&line).unwrap_or_default();
    json.push(b'\n');
    json
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(parts: &[&str], max_bytes: usize) -> Result<Vec<(u32, String)>, LineFault> {
        let mut lines = Vec::new();
        let mut splitter = LineSplitter::new(max_bytes);
        let mut take = |number: u32, line: &[u8]| {
            lines.push((number, String::from_utf8(line.to_vec()).unwrap()));
            Ok::<_, LineFault>(())
        };
        for part in parts {
            splitter.push(part.as_bytes(), &mut take)?;
        }
        splitter.finish(&mut take)?;
        Ok(lines)
    }

    #[test]
    fn lines_are_the_same_wherever_the_file_is_cut() {
        let text = "\u{feff}one\r\n\n two\nthree";
        let whole = split(&[text], 64).unwrap();
        let wanted = [(1, "one"), (3, "two"), (4, "three")];
        assert_eq!(whole, wanted.map(|(at, line)| (at, line.to_owned())));
        for cut in (0..=text.len()).filter(|&cut| text.is_char_boundary(cut)) {
            assert_eq!(split(&[&text[..cut], &text[cut..]], 64).unwrap(), whole);
        }
    }

    #[test]
    fn a_line_that_is_too_long_is_named() {
        let fault = split(&["short\n", "not so", " short\n"], 8).unwrap_err();
        assert_eq!((fault.line, fault.code.as_str()), (2, "line_too_long"));
    }

    #[test]
    fn a_row_keeps_its_body_as_it_stands() {
        let line = r#"{"custom_id":"a","method":"POST","url":"/v1/embeddings","body":{"input":["x","y"], "model":"m"}}"#;
        let row = read_http_row(1, line.as_bytes(), None).unwrap();
        assert_eq!(row.body, br#"{"input":["x","y"], "model":"m"}"#);
        assert_eq!((row.model.as_str(), row.weight), ("m", 2));
        assert!(!row.generates);
        let line = r#"{"custom_id":"b","method":"POST","url":"/v1/completions","body":{"prompt":[1,2],"n":3}}"#;
        let row = read_http_row(1, line.as_bytes(), None).unwrap();
        assert_eq!((row.weight, row.generates), (3, true));
    }

    #[test]
    fn what_is_wrong_with_a_line_is_told() {
        let only = Some(Endpoint::Embeddings);
        for (line, code) in [
            ("{", "invalid_json_line"),
            ("[]", "invalid_json_line"),
            (r#"{"custom_id":"a","extra":1}"#, "invalid_json_line"),
            (r#"{"method":"POST"}"#, "missing_custom_id"),
            (r#"{"custom_id":7}"#, "invalid_request"),
            (r#"{"custom_id":""}"#, "invalid_custom_id"),
            (r#"{"custom_id":"a","method":"GET"}"#, "invalid_method"),
            (
                r#"{"custom_id":"a","method":"POST","url":"/v1/rerank"}"#,
                "invalid_url",
            ),
            (
                r#"{"custom_id":"a","method":"POST","url":"/v1/embeddings"}"#,
                "invalid_body",
            ),
        ] {
            let fault = read_http_row(9, line.as_bytes(), only).unwrap_err();
            assert_eq!((fault.line, fault.code.as_str()), (9, code), "{line}");
        }
    }

    #[test]
    fn a_result_is_a_line_with_the_answer_as_it_was() {
        let mut result = StoredResult {
            index: 3,
            id: "a\"b".to_owned(),
            form: RowForm::Http(Endpoint::Embeddings),
            failed: false,
            unrun: None,
            status: 200,
            body: bytes::Bytes::from_static(br#"{"z":1.50, "a":[]}"#),
        };
        let line = write_http_result(JobId(1), &result);
        let line = String::from_utf8(line).unwrap();
        assert!(line.contains(r#""body":{"z":1.50, "a":[]}"#), "{line}");
        assert!(line.contains(r#""custom_id":"a\"b""#) && line.ends_with("\"error\":null}\n"));
        result.unrun = Some(Unrun::Expired);
        result.body = bytes::Bytes::new();
        let line = write_http_result(JobId(1), &result);
        let line: serde_json::Value = serde_json::from_slice(&line).unwrap();
        assert_eq!(line["error"]["code"], "batch_expired");
        assert!(line["response"].is_null());
    }

    #[test]
    fn an_id_is_seen_once() {
        let mut seen = SeenIds::default();
        assert!(seen.insert("a") && seen.insert("b") && !seen.insert("a"));
    }
}
