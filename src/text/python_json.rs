//! JSON as Python's `json.dumps` writes it: the `tojson` of chat templates. Spaces after `,` and
//! `:`, characters as they are; the models have seen tools in this form.

use std::io;

use minijinja::{
    Error, ErrorKind, State, Value,
    value::{Kwargs, Serde},
};
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

/// Spaces that an indent may have.
const MAX_INDENT: usize = 16;

/// The filter `tojson(indent=None)`. Other arguments, such as `ensure_ascii=False`, say what is so
/// here in any case.
#[allow(clippy::needless_pass_by_value)] // The form that minijinja calls filters in.
pub(super) fn to_json(
    state: &State<'_, '_>,
    value: Serde<serde_json::Value>,
    arguments: Kwargs,
) -> Result<Value, Error> {
    let indent: Option<usize> = arguments.get("indent")?;
    let value = &value.0;
    let json = match indent {
        None => write(value, OneLine),
        Some(indent) => {
            let spaces = [b' '; MAX_INDENT];
            write(
                value,
                PrettyFormatter::with_indent(&spaces[..indent.min(MAX_INDENT)]),
            )
        }
    };
    let json = json.map_err(|reason| Error::new(ErrorKind::InvalidOperation, reason))?;
    state.consume_fuel(json.len() as u64 / 64)?;
    Ok(Value::from(json))
}

fn write(value: &serde_json::Value, formatter: impl Formatter) -> Result<String, String> {
    let mut bytes = Vec::new();
    let mut serializer = Serializer::with_formatter(&mut bytes, formatter);
    value
        .serialize(&mut serializer)
        .map_err(|error| error.to_string())?;
    String::from_utf8(bytes).map_err(|error| error.to_string())
}

struct OneLine;

impl Formatter for OneLine {
    fn begin_array_value<W: io::Write + ?Sized>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        writer.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_key<W: io::Write + ?Sized>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        writer.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_value<W: io::Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}
