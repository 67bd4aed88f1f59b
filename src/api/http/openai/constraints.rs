//! The form that an answer must have, by the names that OpenAI, vLLM and llama.cpp's server give
//! it: `response_format`, `structured_outputs`, `guided_json`, `guided_regex`, `guided_choice`.

use serde_json::Value;

use super::fields::{Field, Fields, Kind};
use crate::{error::RequestError, text::Constraint};

const SCHEMA: &str = "a JSON schema";
const REGEX: &str = "a regular expression";
const CHOICE: &str = "a list of texts";

/// Reads the constraint, of which there may be one.
///
/// # Errors
/// [`RequestError::InvalidArgument`] when one isn't understood, or there are two.
pub fn read_constraint(fields: &mut Fields<'_>) -> Result<Option<Constraint>, RequestError> {
    let mut found: Option<(&str, Constraint)> = None;
    for (name, read) in READERS {
        let Some(field) = fields.take(name) else {
            continue;
        };
        let Some(constraint) = read(&field)? else {
            continue;
        };
        if let Some((other, _)) = found {
            let allowed = format!("one form only; {other} gives one already");
            return Err(RequestError::invalid(*name, "another form", allowed));
        }
        found = Some((name, constraint));
    }
    Ok(found.map(|(_, constraint)| constraint))
}

type Reader = fn(&Field<'_>) -> Result<Option<Constraint>, RequestError>;

const READERS: &[(&str, Reader)] = &[
    ("response_format", read_response_format),
    ("structured_outputs", read_structured_outputs),
    ("guided_json", |field| schema(field).map(Some)),
    ("guided_regex", |field| {
        Ok(Some(Constraint::Regex(field.read(REGEX)?)))
    }),
    ("guided_choice", |field| {
        Ok(Some(Constraint::Choice(field.read(CHOICE)?)))
    }),
];

fn read_response_format(field: &Field<'_>) -> Result<Option<Constraint>, RequestError> {
    const TYPES: &str = "\"text\", \"json_object\" or \"json_schema\"";
    let mut format = field.object("an object with a type")?;
    let kind = format.needed("type", TYPES)?;
    let constraint = match kind.read::<String>(TYPES)?.as_str() {
        "text" => None,
        // llama.cpp's server takes a schema here too.
        "json_object" => match format.take("schema") {
            Some(given) => Some(schema(&given)?),
            None => Some(Constraint::JsonObject),
        },
        "json_schema" => {
            let given = format.needed("json_schema", "an object with a schema")?;
            let mut given = given.object("an object with a schema")?;
            // `strict` is always so here: the text can't leave the schema.
            given.ignore(&["name", "description", "strict"]);
            let constraint = schema(&given.needed("schema", SCHEMA)?)?;
            given.finish()?;
            Some(constraint)
        }
        _ => return Err(kind.refuse(TYPES)),
    };
    format.finish()?;
    Ok(constraint)
}

fn read_structured_outputs(field: &Field<'_>) -> Result<Option<Constraint>, RequestError> {
    const ONE: &str = "one of json, regex, choice, json_object";
    let mut given = field.object("an object")?;
    let mut constraints = Vec::new();
    if let Some(json) = given.take("json") {
        constraints.push(schema(&json)?);
    }
    if let Some(regex) = given.read("regex", REGEX)? {
        constraints.push(Constraint::Regex(regex));
    }
    if let Some(choice) = given.read("choice", CHOICE)? {
        constraints.push(Constraint::Choice(choice));
    }
    if given.read("json_object", "true or false")? == Some(true) {
        constraints.push(Constraint::JsonObject);
    }
    given.finish()?;
    if constraints.len() > 1 {
        return Err(RequestError::invalid(&field.path, "several forms", ONE));
    }
    Ok(constraints.pop())
}

/// A schema, as JSON or as JSON in a text.
fn schema(field: &Field<'_>) -> Result<Constraint, RequestError> {
    let value: Value = if field.kind() == Kind::Text {
        let text: String = field.read(SCHEMA)?;
        serde_json::from_str(&text).map_err(|_| field.refuse(SCHEMA))?
    } else {
        field.read(SCHEMA)?
    };
    // `true` and `false` are schemas as well.
    if value.is_object() || value.is_boolean() {
        return Ok(Constraint::JsonSchema(value));
    }
    Err(field.refuse(SCHEMA))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(given: &Value) -> Result<Option<Constraint>, String> {
        let text = given.to_string();
        let mut fields = Fields::parse(text.as_bytes()).unwrap();
        let constraint = read_constraint(&mut fields).map_err(|error| error.to_string())?;
        fields.finish().map_err(|error| error.to_string())?;
        Ok(constraint)
    }

    #[test]
    fn every_way_to_ask_for_a_form_is_understood() {
        let schema = json!({"type": "object"});
        let by_schema = Some(Constraint::JsonSchema(schema.clone()));
        let named = json!({"name": "n", "strict": true, "schema": schema});
        for (given, wanted) in [
            (json!({}), None),
            (json!({"response_format": {"type": "text"}}), None),
            (
                json!({"response_format": {"type": "json_object"}}),
                Some(Constraint::JsonObject),
            ),
            (
                json!({"response_format": {"type": "json_schema", "json_schema": named}}),
                by_schema.clone(),
            ),
            (json!({"guided_json": schema}), by_schema.clone()),
            (
                json!({"guided_json": schema.to_string()}),
                by_schema.clone(),
            ),
            (json!({"structured_outputs": {"json": schema}}), by_schema),
            (
                json!({"guided_regex": "a+"}),
                Some(Constraint::Regex("a+".to_owned())),
            ),
            (
                json!({"guided_choice": ["a", "b"]}),
                Some(Constraint::Choice(vec!["a".to_owned(), "b".to_owned()])),
            ),
            (
                json!({"structured_outputs": {"json_object": true}}),
                Some(Constraint::JsonObject),
            ),
        ] {
            assert_eq!(read(&given), Ok(wanted), "{given}");
        }
    }

    #[test]
    fn two_forms_or_an_unknown_one_are_refused() {
        for (given, says) in [
            (
                json!({"guided_regex": "a", "guided_choice": ["a"]}),
                "guided_choice: found another form",
            ),
            (
                json!({"structured_outputs": {"regex": "a", "choice": ["a"]}}),
                "structured_outputs: found several forms",
            ),
            (
                json!({"structured_outputs": {"grammar": "g"}}),
                "structured_outputs.grammar: found",
            ),
            (
                json!({"response_format": {"type": "xml"}}),
                "response_format.type: found \"xml\"",
            ),
            (
                json!({"response_format": {"type": "json_schema"}}),
                "response_format.json_schema: found nothing",
            ),
            (json!({"guided_json": "no"}), "guided_json: found \"no\""),
            (json!({"guided_json": [1]}), "guided_json: found [1]"),
        ] {
            let error = read(&given).unwrap_err();
            assert!(error.starts_with(says), "{given}: {error}");
        }
    }
}
