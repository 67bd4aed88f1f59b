//! Metadata values: found when the file is opened, decoded when they are asked for.

use std::collections::HashMap;
use std::ops::Range;

use super::super::error::LoadError;
use super::cursor::{Cursor, Damage};

/// Arrays of arrays of arrays have not been seen in a model; no reader needs a stack for more.
const MAX_NESTING: usize = 4;

/// One value.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
    /// Where the text lies.
    Text(Range<usize>),
    Array(ArrayValue),
}

/// An array that lies in the file; its length has been checked.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ArrayValue {
    kind: Kind,
    count: usize,
    bytes: Range<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    Text,
    Array,
    U64,
    I64,
    F64,
}

impl Kind {
    fn parse(cursor: &mut Cursor<'_>) -> Result<Self, Damage> {
        const KINDS: [Kind; 13] = [
            Kind::U8,
            Kind::I8,
            Kind::U16,
            Kind::I16,
            Kind::U32,
            Kind::I32,
            Kind::F32,
            Kind::Bool,
            Kind::Text,
            Kind::Array,
            Kind::U64,
            Kind::I64,
            Kind::F64,
        ];
        let id = cursor.u32()?;
        let kind = KINDS.get(id as usize).copied();
        kind.ok_or_else(|| format!("a value of the unknown type {id}"))
    }

    /// The bytes of a value, the least for those of varying size.
    fn least_bytes(self) -> usize {
        match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 | Self::Text => 8,
            Self::Array => 12,
        }
    }
}

impl Value {
    /// A type and a value of it.
    pub fn parse(cursor: &mut Cursor<'_>) -> Result<Self, Damage> {
        let kind = Kind::parse(cursor)?;
        Self::of(kind, cursor)
    }

    fn of(kind: Kind, cursor: &mut Cursor<'_>) -> Result<Self, Damage> {
        Ok(match kind {
            Kind::U8 => Self::Unsigned(cursor.u8()?.into()),
            Kind::I8 => Self::Signed(i8::from_le_bytes(cursor.array()?).into()),
            Kind::U16 => Self::Unsigned(u16::from_le_bytes(cursor.array()?).into()),
            Kind::I16 => Self::Signed(i16::from_le_bytes(cursor.array()?).into()),
            Kind::U32 => Self::Unsigned(cursor.u32()?.into()),
            Kind::I32 => Self::Signed(i32::from_le_bytes(cursor.array()?).into()),
            Kind::U64 => Self::Unsigned(cursor.u64()?),
            Kind::I64 => Self::Signed(i64::from_le_bytes(cursor.array()?)),
            Kind::F32 => Self::Float(f32::from_le_bytes(cursor.array()?).into()),
            Kind::F64 => Self::Float(f64::from_le_bytes(cursor.array()?)),
            Kind::Bool => match cursor.u8()? {
                0 => Self::Bool(false),
                1 => Self::Bool(true),
                other => return Err(format!("a boolean of {other}")),
            },
            Kind::Text => Self::Text(cursor.string()?),
            Kind::Array => Self::Array(ArrayValue::parse(cursor, MAX_NESTING)?),
        })
    }
}

impl ArrayValue {
    fn parse(cursor: &mut Cursor<'_>, nesting: usize) -> Result<Self, Damage> {
        if nesting == 0 {
            return Err(format!("arrays are nested deeper than {MAX_NESTING}"));
        }
        let kind = Kind::parse(cursor)?;
        let count = cursor.count(kind.least_bytes(), "values of an array")?;
        let start = cursor.position();
        match kind {
            Kind::Text => {
                for _ in 0..count {
                    cursor.string()?;
                }
            }
            Kind::Array => {
                for _ in 0..count {
                    Self::parse(cursor, nesting - 1)?;
                }
            }
            // The count was held against the file, so this does not overflow.
            _ => {
                cursor.skip(count * kind.least_bytes())?;
            }
        }
        Ok(Self {
            kind,
            count,
            bytes: start..cursor.position(),
        })
    }

    /// The values, converted one by one; `None` if there is one that does not convert.
    fn values<T>(&self, file: &[u8], convert: impl Fn(&Value) -> Option<T>) -> Option<Vec<T>> {
        if self.kind == Kind::Array {
            return None;
        }
        // `file` only up to the array's end: positions stay those of the file.
        let mut cursor = Cursor::new(&file[..self.bytes.end]);
        cursor.skip(self.bytes.start).ok()?;
        let mut values = Vec::with_capacity(self.count);
        for _ in 0..self.count {
            values.push(convert(&Value::of(self.kind, &mut cursor).ok()?)?);
        }
        Some(values)
    }
}

/// Typed access to a file's metadata: `None` where a key is absent, an error that names the key
/// where its value is of another kind.
#[derive(Debug, Clone, Copy)]
pub struct Metadata<'a> {
    file: &'a [u8],
    values: &'a HashMap<String, Value>,
}

impl<'a> Metadata<'a> {
    pub(super) fn new(file: &'a [u8], values: &'a HashMap<String, Value>) -> Self {
        Self { file, values }
    }

    /// The keys, in no order.
    pub fn keys(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        self.values.keys().map(String::as_str)
    }

    /// Whether there is a value, of whatever kind.
    pub fn contains(&self, key: &str) -> bool {
        self.values.contains_key(key)
    }

    /// The number of values of an array.
    pub fn array_len(&self, key: &str) -> Option<usize> {
        match self.values.get(key) {
            Some(Value::Array(array)) => Some(array.count),
            _ => None,
        }
    }

    /// A whole number of any type that fits.
    ///
    /// # Errors
    /// If the value is none.
    pub fn u64(&self, key: &str) -> Result<Option<u64>, LoadError> {
        self.scalar(key, "a whole number, not negative", unsigned)
    }

    /// A whole number of any type that fits.
    ///
    /// # Errors
    /// If the value is none.
    pub fn u32(&self, key: &str) -> Result<Option<u32>, LoadError> {
        self.scalar(key, "a whole number below 2³²", |value| {
            u32::try_from(unsigned(value)?).ok()
        })
    }

    /// A number.
    ///
    /// # Errors
    /// If the value is none.
    pub fn f32(&self, key: &str) -> Result<Option<f32>, LoadError> {
        self.scalar(key, "a number", float)
    }

    /// True or false.
    ///
    /// # Errors
    /// If the value is neither.
    pub fn bool(&self, key: &str) -> Result<Option<bool>, LoadError> {
        self.scalar(key, "true or false", boolean)
    }

    /// A string.
    ///
    /// # Errors
    /// If the value is none, or not UTF-8.
    pub fn text(&self, key: &str) -> Result<Option<&'a str>, LoadError> {
        self.scalar(key, "a string in UTF-8", |value| self.utf8(value))
    }

    /// An array of strings.
    ///
    /// # Errors
    /// If the value is none, or one of them is not UTF-8.
    pub fn texts(&self, key: &str) -> Result<Option<Vec<&'a str>>, LoadError> {
        self.array(key, "an array of strings in UTF-8", |value| {
            self.utf8(value)
        })
    }

    /// An array of numbers.
    ///
    /// # Errors
    /// If the value is none.
    pub fn f32s(&self, key: &str) -> Result<Option<Vec<f32>>, LoadError> {
        self.array(key, "an array of numbers", float)
    }

    /// An array of whole numbers.
    ///
    /// # Errors
    /// If the value is none, or one of them is not an `i32`.
    pub fn i32s(&self, key: &str) -> Result<Option<Vec<i32>>, LoadError> {
        self.array(key, "an array of whole numbers", |value| match value {
            Value::Unsigned(value) => i32::try_from(*value).ok(),
            Value::Signed(value) => i32::try_from(*value).ok(),
            _ => None,
        })
    }

    /// An array of whole numbers, none negative.
    ///
    /// # Errors
    /// If the value is none, or one of them is not a `u32`.
    pub fn u32s(&self, key: &str) -> Result<Option<Vec<u32>>, LoadError> {
        self.array(key, "an array of whole numbers, none negative", |value| {
            u32::try_from(unsigned(value)?).ok()
        })
    }

    /// An array of truth values.
    ///
    /// # Errors
    /// If the value is none.
    pub fn bools(&self, key: &str) -> Result<Option<Vec<bool>>, LoadError> {
        self.array(key, "an array of true and false", boolean)
    }

    /// The error for the value that `key` has.
    pub(in crate::models) fn unsupported(&self, key: &str, supported: &str) -> LoadError {
        let found = match self.values.get(key) {
            None => "missing".to_owned(),
            Some(Value::Unsigned(value)) => value.to_string(),
            Some(Value::Signed(value)) => value.to_string(),
            Some(Value::Float(value)) => value.to_string(),
            Some(Value::Bool(value)) => value.to_string(),
            Some(value @ Value::Text(_)) => match self.utf8(value) {
                Some(text) if text.len() <= 80 => format!("\"{text}\""),
                _ => "a string".to_owned(),
            },
            Some(Value::Array(array)) => format!("an array of {} {:?}", array.count, array.kind),
        };
        LoadError::Metadata {
            key: key.to_owned(),
            found,
            supported: supported.to_owned(),
        }
    }

    fn scalar<T>(
        &self,
        key: &str,
        expected: &str,
        convert: impl Fn(&Value) -> Option<T>,
    ) -> Result<Option<T>, LoadError> {
        let value = self.values.get(key);
        let value =
            value.map(|value| convert(value).ok_or_else(|| self.unsupported(key, expected)));
        value.transpose()
    }

    fn array<T>(
        &self,
        key: &str,
        expected: &str,
        convert: impl Fn(&Value) -> Option<T>,
    ) -> Result<Option<Vec<T>>, LoadError> {
        self.scalar(key, expected, |value| match value {
            Value::Array(array) => array.values(self.file, &convert),
            _ => None,
        })
    }

    fn utf8(&self, value: &Value) -> Option<&'a str> {
        match value {
            Value::Text(range) => std::str::from_utf8(&self.file[range.clone()]).ok(),
            _ => None,
        }
    }
}

fn unsigned(value: &Value) -> Option<u64> {
    match value {
        Value::Unsigned(value) => Some(*value),
        Value::Signed(value) => u64::try_from(*value).ok(),
        _ => None,
    }
}

fn float(value: &Value) -> Option<f32> {
    match value {
        Value::Float(value) => Some(*value as f32),
        _ => None,
    }
}

fn boolean(value: &Value) -> Option<bool> {
    match value {
        Value::Bool(value) => Some(*value),
        _ => None,
    }
}
