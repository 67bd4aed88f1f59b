//! A file of prepared weights, mapped and checked.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

use candle_core::quantized::GgmlDType;
use memmap2::{Advice, Mmap};

use super::header::{Header, Section, TABLE, WeightEntry, digest, kind_of, kind_of_linear, layout};
use super::{PreparedKey, Unusable};
use crate::models::error::LoadError;
use crate::models::mapping::map_file;
use crate::ops::values::ALIGNMENT;
use crate::ops::{Compute, Linear, MappedBytes, QuantizedWeight, Values};

/// A sound file that was made from and for what is asked.
#[derive(Debug)]
pub(super) struct PreparedFile {
    weights: HashMap<String, FoundWeight>,
}

#[derive(Debug)]
struct FoundWeight {
    kind: String,
    shape: [usize; 2],
    sections: Vec<MappedBytes>,
}

impl PreparedFile {
    pub fn open(path: &Path, key: &PreparedKey) -> Result<Self, Unusable> {
        let map = match map_file(path) {
            Ok(map) => Arc::new(map),
            Err(LoadError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Err(Unusable::Missing);
            }
            Err(error) => return Err(Unusable::Unreadable(error.to_string())),
        };
        // What is not in memory yet is read ahead while the header is checked; a system that does
        // not take the advice reads it as it is needed.
        let _ = map.advise(Advice::WillNeed);
        let (header, begin) = Header::parse(&map)?;
        if header.layout != layout() {
            let (found, ours) = (header.layout, layout());
            let reason = format!("its layout is '{found}', this build's '{ours}'");
            return Err(Unusable::Foreign(reason));
        }
        if header.settings != key.settings {
            let (found, ours) = (header.settings, &key.settings);
            let reason = format!("it was made for '{found}', not for '{ours}'");
            return Err(Unusable::Foreign(reason));
        }
        key.sources.check(&header.sources)?;
        let mut weights = HashMap::with_capacity(header.weights.len());
        for entry in header.weights {
            let found = FoundWeight::check(&map, begin, &entry)?;
            weights.insert(entry.name, found);
        }
        Ok(Self { weights })
    }

    pub fn table(&self, name: &str, shape: [usize; 2]) -> Option<Values<f32>> {
        let [rows] = self.find(name, TABLE, shape)? else {
            return None;
        };
        let values = Values::mapped(rows.clone())?;
        (Some(values.len()) == shape[0].checked_mul(shape[1])).then_some(values)
    }

    pub fn linear(&self, name: &str, shape: [usize; 2], compute: Compute) -> Option<Linear> {
        let [panels] = self.find(name, &kind_of_linear(compute), shape)? else {
            return None;
        };
        let [outputs, inputs] = shape;
        Linear::mapped(outputs, inputs, panels.clone(), None, compute).ok()
    }

    pub fn quantized(
        &self,
        name: &str,
        dtype: GgmlDType,
        shape: [usize; 2],
    ) -> Option<QuantizedWeight> {
        let sections = self.find(name, &kind_of(dtype), shape)?;
        let [outputs, inputs] = shape;
        QuantizedWeight::mapped(dtype, outputs, inputs, sections).ok()
    }

    fn find(&self, name: &str, kind: &str, shape: [usize; 2]) -> Option<&[MappedBytes]> {
        let weight = self.weights.get(name)?;
        (weight.kind == kind && weight.shape == shape).then_some(&weight.sections)
    }
}

impl FoundWeight {
    fn check(map: &Arc<Mmap>, begin: usize, entry: &WeightEntry) -> Result<Self, Unusable> {
        let section = |section: &Section| {
            let start = begin.checked_add(section.offset);
            let start = start.filter(|start| start.is_multiple_of(ALIGNMENT));
            let end = start.and_then(|start| start.checked_add(section.bytes));
            let bytes = start.zip(end);
            let bytes = bytes.and_then(|(start, end)| MappedBytes::new(map, start..end));
            bytes
                .filter(|bytes| digest(bytes) == section.digest)
                .ok_or_else(|| Unusable::Damaged(format!("the weight {}", entry.name)))
        };
        Ok(Self {
            kind: entry.kind.clone(),
            shape: entry.shape,
            sections: entry
                .sections
                .iter()
                .map(section)
                .collect::<Result<_, _>>()?,
        })
    }
}
