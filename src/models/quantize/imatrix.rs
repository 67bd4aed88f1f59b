//! Importance matrices, as llama.cpp's `imatrix` writes them: of each weight, how large the inputs
//! of its columns are, on the average over some text, squared.
//!
//! ```text
//! GGUF    NAME.in_sum2 [matrices, inputs], NAME.counts [matrices]      importance = sum / count
//! legacy  entries i32, each: name (length i32), calls i32, values i32, values f32
//!                                                                      importance = value / calls
//! ```
//! Only models without experts are quantized here, so there is one matrix to a name.

use std::collections::HashMap;
use std::path::Path;

use candle_core::Device;

use super::super::error::LoadError;
use super::super::gguf::GgufFile;
use super::super::mapping::map_file;
use super::error::QuantizeError;

/// What each input of a weight counts, by the weight's name.
#[derive(Debug, Default)]
pub(super) struct Importance(HashMap<String, Vec<f32>>);

impl Importance {
    pub fn read(path: &Path) -> Result<Self, QuantizeError> {
        let wrong = |reason: String| QuantizeError::Importance {
            path: path.to_owned(),
            reason,
        };
        let map = map_file(path)?;
        let entries = if map.starts_with(b"GGUF") {
            drop(map);
            from_gguf(path).map_err(|error| wrong(error.to_string()))?
        } else {
            from_legacy(&map).ok_or_else(|| {
                wrong("it is neither a GGUF file nor whole in the older form".to_owned())
            })?
        };
        for (name, values) in &entries {
            let right = |value: &f32| value.is_finite() && *value >= 0.0;
            if !values.iter().all(right) {
                return Err(wrong(format!(
                    "{name} has a value that is no mean of squares"
                )));
            }
        }
        if entries.is_empty() {
            return Err(wrong("it has no entries".to_owned()));
        }
        Ok(Self(entries))
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// What the inputs of a weight count, `[row]`. `None` where nothing is known of it.
    pub fn of(&self, name: &str, row: usize) -> Result<Option<&[f32]>, String> {
        match self.0.get(name) {
            None => Ok(None),
            Some(values) if values.len() == row => Ok(Some(values)),
            Some(values) => {
                let found = values.len();
                Err(format!(
                    "{name} has {found} values; the model has {row} inputs"
                ))
            }
        }
    }
}

fn from_gguf(path: &Path) -> Result<HashMap<String, Vec<f32>>, LoadError> {
    let file = GgufFile::open(path)?;
    let values = |name: &str| -> Result<Vec<f32>, LoadError> {
        let tensor = file.tensor(name, &Device::Cpu)?.dequantize(&Device::Cpu)?;
        Ok(tensor.flatten_all()?.to_vec1()?)
    };
    let mut entries = HashMap::new();
    for tensor in file.tensors().keys() {
        let Some(name) = tensor.strip_suffix(".in_sum2") else {
            continue;
        };
        let counts = values(&format!("{name}.counts"))?;
        let sums = values(tensor)?;
        // Of several matrices (experts) the sizes will not be those of a row, and be refused.
        let count = counts.first().copied().unwrap_or(0.0);
        let mean = |sum| if count > 0.0 { sum / count } else { 1.0 };
        entries.insert(name.to_owned(), sums.into_iter().map(mean).collect());
    }
    Ok(entries)
}

/// `None` if the file ends early or a length is negative.
fn from_legacy(bytes: &[u8]) -> Option<HashMap<String, Vec<f32>>> {
    let mut rest = bytes;
    let count = take_count(&mut rest)?;
    let mut entries = HashMap::new();
    for _ in 0..count {
        let len = take_count(&mut rest)?;
        let name = std::str::from_utf8(rest.split_off(..len)?).ok()?;
        let calls = take_count(&mut rest)?.max(1) as f32;
        let len = take_count(&mut rest)?;
        let values = rest.split_off(..len.checked_mul(4)?)?.as_chunks().0;
        let values = values
            .iter()
            .map(|value| f32::from_le_bytes(*value) / calls);
        entries.insert(name.to_owned(), values.collect());
    }
    Some(entries)
}

fn take_count(rest: &mut &[u8]) -> Option<usize> {
    let bytes = rest.split_off(..4)?;
    let count = i32::from_le_bytes(*bytes.first_chunk()?);
    usize::try_from(count).ok()
}

#[cfg(test)]
mod tests {
    use super::super::super::gguf::testing::GgufWriter;
    use super::super::super::testing::TempDir;
    use super::*;

    fn legacy() -> Vec<u8> {
        let mut bytes = Vec::from(1_i32.to_le_bytes());
        bytes.extend(1_i32.to_le_bytes());
        bytes.push(b'w');
        bytes.extend(2_i32.to_le_bytes());
        bytes.extend(3_i32.to_le_bytes());
        bytes.extend(
            [2.0_f32, 4.0, 0.0]
                .iter()
                .flat_map(|value| value.to_le_bytes()),
        );
        bytes
    }

    #[test]
    fn both_forms_give_means() -> Result<(), Box<dyn std::error::Error>> {
        let dir = TempDir::new()?;
        let path = dir.path().join("imatrix");
        std::fs::write(&path, legacy())?;
        let importance = Importance::read(&path)?;
        assert_eq!(importance.of("w", 3)?, Some(&[1.0, 2.0, 0.0][..]));
        assert_eq!(importance.of("other", 3)?, None);
        assert!(importance.of("w", 4).is_err());

        GgufWriter::new()
            .f32_tensor("w.in_sum2", &[1, 3], &[2.0, 4.0, 0.0])
            .f32_tensor("w.counts", &[1, 1], &[2.0])
            .write(&path)?;
        let importance = Importance::read(&path)?;
        assert_eq!(importance.of("w", 3)?, Some(&[1.0, 2.0, 0.0][..]));
        Ok(())
    }

    #[test]
    fn damaged_files_are_errors() -> Result<(), Box<dyn std::error::Error>> {
        let dir = TempDir::new()?;
        let path = dir.path().join("imatrix");
        let good = legacy();
        let mut negative = good.clone();
        negative[4..8].copy_from_slice(&(-1_i32).to_le_bytes());
        let mut huge = good.clone();
        huge[13..17].copy_from_slice(&i32::MAX.to_le_bytes());
        let mut not_a_number = good.clone();
        not_a_number[17..21].copy_from_slice(&f32::NAN.to_le_bytes());
        let cut = good[..good.len() - 1].to_vec();
        for bad in [Vec::new(), vec![0; 4], negative, huge, not_a_number, cut] {
            std::fs::write(&path, &bad)?;
            assert!(Importance::read(&path).is_err(), "{bad:?}");
        }
        GgufWriter::new()
            .f32_tensor("w.in_sum2", &[1, 3], &[2.0, 4.0, 0.0])
            .write(&path)?;
        assert!(Importance::read(&path).is_err());
        Ok(())
    }
}
