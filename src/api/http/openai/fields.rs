//! A JSON object, field by field: each is taken by its name and with its type, and what nobody took
//! is refused by its name. Nothing is copied or built before its type is known, so that a body costs
//! little more memory than its bytes.

use serde::{
    Deserialize,
    de::{Deserializer, Error as _, MapAccess, Visitor},
};
use serde_json::value::RawValue;

use crate::error::RequestError;

/// Fields of one object at most; no protocol here has as many.
const MAX_FIELDS: usize = 128;

/// Characters of a value, or of a name, that an error shows.
const SHOWN: usize = 64;

/// The fields of an object that have not been taken yet.
#[derive(Debug)]
pub struct Fields<'a> {
    /// What stands before a field's name in errors: empty, or such as `messages[3].`.
    prefix: String,
    entries: Vec<(String, &'a RawValue)>,
}

/// A value with the path that errors name it by.
#[derive(Debug, Clone)]
pub struct Field<'a> {
    /// Such as `messages[3].content`.
    pub path: String,
    raw: &'a RawValue,
}

/// What kind of value a field holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Text,
    List,
    Object,
    /// A number or a truth value.
    Plain,
}

impl<'a> Fields<'a> {
    /// The fields of a body.
    ///
    /// # Errors
    /// [`RequestError::InvalidArgument`] when it is not JSON or not an object.
    pub fn parse(body: &'a [u8]) -> Result<Self, RequestError> {
        let Entries(entries) = serde_json::from_slice(body).map_err(|error| {
            let found = if error.is_data() {
                format!("JSON that is no plain object: {error}")
            } else {
                format!("invalid JSON: {error}")
            };
            RequestError::invalid("body", cut(&found, 200), "a JSON object")
        })?;
        Ok(Self {
            prefix: String::new(),
            entries,
        })
    }

    /// Takes a field; `None` when it is not there or null.
    pub fn take(&mut self, name: &str) -> Option<Field<'a>> {
        let at = self.entries.iter().position(|(known, _)| known == name)?;
        let (name, raw) = self.entries.swap_remove(at);
        (raw.get() != "null").then(|| Field {
            path: format!("{}{name}", self.prefix),
            raw,
        })
    }

    /// Takes and reads a field; `None` when it is not there or null.
    ///
    /// # Errors
    /// [`RequestError::InvalidArgument`] when its value is of another type; `allowed` says which.
    pub fn read<T: Deserialize<'a>>(
        &mut self,
        name: &str,
        allowed: &str,
    ) -> Result<Option<T>, RequestError> {
        self.take(name).map(|field| field.read(allowed)).transpose()
    }

    /// Takes and reads a field that must be there.
    ///
    /// # Errors
    /// [`RequestError::InvalidArgument`] when it is not there or of another type.
    pub fn need<T: Deserialize<'a>>(
        &mut self,
        name: &str,
        allowed: &str,
    ) -> Result<T, RequestError> {
        self.needed(name, allowed)?.read(allowed)
    }

    /// Takes a field that must be there.
    ///
    /// # Errors
    /// [`RequestError::InvalidArgument`] when it is not.
    pub fn needed(&mut self, name: &str, allowed: &str) -> Result<Field<'a>, RequestError> {
        self.take(name).ok_or_else(|| {
            RequestError::invalid(format!("{}{name}", self.prefix), "nothing", allowed)
        })
    }

    /// Drops fields that are known and have no meaning here.
    pub fn ignore(&mut self, names: &[&str]) {
        self.entries
            .retain(|(name, _)| !names.contains(&name.as_str()));
    }

    /// Refuses what has not been taken. A null says nothing and passes.
    ///
    /// # Errors
    /// [`RequestError::InvalidArgument`] naming the first field that is not known.
    pub fn finish(self) -> Result<(), RequestError> {
        let mut left = self.entries.iter().filter(|(_, raw)| raw.get() != "null");
        let Some((name, _)) = left.next() else {
            return Ok(());
        };
        Err(RequestError::invalid(
            format!("{}{}", self.prefix, cut(name, SHOWN)),
            "a parameter that is not known",
            "see docs: leave it out, or mend its name",
        ))
    }
}

impl<'a> Field<'a> {
    /// What kind of value it holds.
    pub fn kind(&self) -> Kind {
        match self.raw.get().as_bytes().first() {
            Some(b'"') => Kind::Text,
            Some(b'[') => Kind::List,
            Some(b'{') => Kind::Object,
            _ => Kind::Plain,
        }
    }

    /// Of a list that is not empty: the kind of its first element.
    pub fn first_kind(&self) -> Option<Kind> {
        let inside = self.raw.get().strip_prefix('[')?.trim_start();
        match inside.as_bytes().first()? {
            b']' => None,
            b'"' => Some(Kind::Text),
            b'[' => Some(Kind::List),
            b'{' => Some(Kind::Object),
            _ => Some(Kind::Plain),
        }
    }

    /// Reads the value; `allowed` says what type it has to have.
    ///
    /// # Errors
    /// [`RequestError::InvalidArgument`] when it has another.
    pub fn read<T: Deserialize<'a>>(&self, allowed: &str) -> Result<T, RequestError> {
        serde_json::from_str(self.raw.get()).map_err(|error| match self.kind() {
            // Which element is wrong is more telling than how the value begins.
            Kind::List | Kind::Object => {
                let error = error.to_string();
                RequestError::invalid(&self.path, cut(&error, 200), allowed)
            }
            Kind::Text | Kind::Plain => self.refuse(allowed),
        })
    }

    /// The elements of a list.
    ///
    /// # Errors
    /// [`RequestError::InvalidArgument`] when it is none.
    pub fn items(&self, allowed: &str) -> Result<Vec<Field<'a>>, RequestError> {
        let items: Vec<&RawValue> = self.read(allowed)?;
        let named = items.into_iter().enumerate().map(|(at, raw)| Field {
            path: format!("{}[{at}]", self.path),
            raw,
        });
        Ok(named.collect())
    }

    /// The fields of an object.
    ///
    /// # Errors
    /// [`RequestError::InvalidArgument`] when it is none.
    pub fn object(&self, allowed: &str) -> Result<Fields<'a>, RequestError> {
        let Entries(entries) = self.read(allowed)?;
        Ok(Fields {
            prefix: format!("{}.", self.path),
            entries,
        })
    }

    /// The error of a value that is not what is allowed.
    pub fn refuse(&self, allowed: &str) -> RequestError {
        RequestError::invalid(&self.path, cut(self.raw.get(), SHOWN), allowed)
    }
}

fn cut(text: &str, characters: usize) -> String {
    match text.char_indices().nth(characters) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

struct Entries<'a>(Vec<(String, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Entries<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(EntriesVisitor)
    }
}

struct EntriesVisitor;

impl<'de> Visitor<'de> for EntriesVisitor {
    type Value = Entries<'de>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries<'de>, A::Error> {
        let mut entries: Vec<(String, &'de RawValue)> = Vec::new();
        while let Some((name, raw)) = map.next_entry::<String, &'de RawValue>()? {
            if entries.len() == MAX_FIELDS {
                return Err(A::Error::custom("too many fields"));
            }
            if entries.iter().any(|(known, _)| *known == name) {
                let name = cut(&name, SHOWN);
                return Err(A::Error::custom(format_args!("field '{name}' twice")));
            }
            entries.push((name, raw));
        }
        Ok(Entries(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finish(text: &str) -> Result<(), String> {
        let fields = Fields::parse(text.as_bytes()).map_err(|error| error.to_string())?;
        fields.finish().map_err(|error| error.to_string())
    }

    #[test]
    fn a_field_that_nobody_takes_is_refused_by_its_name() {
        let error = finish(r#"{"temprature": 1}"#).unwrap_err();
        assert!(
            error.starts_with("temprature: found a parameter"),
            "{error}"
        );
        assert_eq!(finish(r#"{"temprature": null}"#), Ok(()));
    }

    #[test]
    fn what_is_no_object_is_refused() {
        for (body, says) in [
            ("", "invalid JSON"),
            ("{", "invalid JSON"),
            (r#"{"a":1} x"#, "invalid JSON"),
            ("[1]", "no plain object"),
            ("\"text\"", "no plain object"),
            (r#"{"a":1,"a":2}"#, "field 'a' twice"),
        ] {
            let error = finish(body).unwrap_err();
            assert!(error.contains(says), "{body}: {error}");
        }
        let many: Vec<_> = (0..200).map(|at| format!("\"f{at}\":0")).collect();
        let error = finish(&format!("{{{}}}", many.join(","))).unwrap_err();
        assert!(error.contains("too many fields"), "{error}");
        assert!(Fields::parse(&[b'{', 0xff, b'}']).is_err());
    }

    #[test]
    fn a_wrong_type_is_told_with_path_and_value() {
        let mut fields = Fields::parse(br#"{"a": {"b": ["x", 1]}, "n": "many"}"#).unwrap();
        let error = fields.read::<u32>("n", "a whole number").unwrap_err();
        assert_eq!(
            error.to_string(),
            "n: found \"many\"; allowed: a whole number"
        );
        let mut inner = fields.needed("a", "").unwrap().object("").unwrap();
        let items = inner.take("b").unwrap().items("a list").unwrap();
        assert_eq!(items[1].path, "a.b[1]");
        assert_eq!(
            (items[0].kind(), items[1].kind()),
            (Kind::Text, Kind::Plain)
        );
        assert!(items[1].read::<String>("a text").is_err());
    }

    #[test]
    fn a_deeply_nested_value_is_refused_not_followed() {
        let deep = format!("{{\"a\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
        let mut fields = Fields::parse(deep.as_bytes()).unwrap();
        assert!(fields.read::<serde_json::Value>("a", "a value").is_err());
    }
}
