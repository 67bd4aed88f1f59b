//! Safetensors checkpoints: memory-mapped, their headers checked, then read tensor by tensor into
//! f32.
//!
//! The mapping lives only while a model loads; afterwards the model owns its weights and the files
//! may be replaced.

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Component, Path, PathBuf};

use half::slice::HalfFloatSliceExt;
use memmap2::{Advice, Mmap};
use safetensors::{Dtype, SafeTensors};

use super::config_json::read_json;
use super::error::LoadError;
use super::mapping::map_file;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// Headers and indexes are some 100 bytes a tensor.
const MAX_HEADER_BYTES: u64 = 32 << 20;
const MAX_SHARDS: usize = 1024;

/// A tensor as the header describes it.
#[derive(Debug, Clone)]
pub struct TensorEntry {
    /// Element type.
    pub dtype: Dtype,
    /// Shape, outermost dimension first.
    pub shape: Vec<usize>,
    shard: usize,
    bytes: Range<usize>,
}

impl TensorEntry {
    /// Bytes in the file.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// One checkpoint, in one file or several.
#[derive(Debug)]
pub struct Checkpoint {
    shards: Vec<Mmap>,
    entries: HashMap<String, TensorEntry>,
}

impl Checkpoint {
    /// Maps the files in `dir` and reads their headers; no weights.
    ///
    /// # Errors
    /// If there are no such files, or they are damaged.
    pub fn open(dir: &Path) -> Result<Self, LoadError> {
        let mut checkpoint = Self {
            shards: Vec::new(),
            entries: HashMap::new(),
        };
        if dir.join(SINGLE).is_file() {
            checkpoint.add_shard(&dir.join(SINGLE), None)?;
        } else if dir.join(INDEX).is_file() {
            for (file, tensors) in read_index(dir)? {
                checkpoint.add_shard(&file, Some(&tensors))?;
            }
        } else {
            return Err(LoadError::NoWeights {
                dir: dir.to_owned(),
            });
        }
        Ok(checkpoint)
    }

    /// Tells the system that what is still read are vectors here and there: reading ahead would bring
    /// all of it.
    pub(super) fn expect_few_reads(&self) {
        for shard in &self.shards {
            // Advice that isn't taken costs time, nothing else.
            let _ = shard.advise(Advice::Random);
        }
    }

    /// All tensors of the files, by name.
    pub fn entries(&self) -> &HashMap<String, TensorEntry> {
        &self.entries
    }

    /// The values of a tensor by its whole name, in f32.
    pub(crate) fn values(&self, name: &str) -> Result<Vec<f32>, LoadError> {
        let entry = self.entries.get(name);
        let entry = entry.ok_or_else(|| LoadError::MissingTensor {
            name: name.to_owned(),
            expected: Vec::new(),
            why: format!("the checkpoint has {} tensors", self.entries.len()),
        })?;
        let mut values = Vec::with_capacity(entry.elements());
        self.append_f32(name, entry, &mut values)?;
        Ok(values)
    }

    /// Decodes a tensor to the end of `values`; refuses NaN and infinity.
    fn append_f32(
        &self,
        name: &str,
        entry: &TensorEntry,
        values: &mut Vec<f32>,
    ) -> Result<(), LoadError> {
        let bytes = &self.shards[entry.shard][entry.bytes.clone()];
        let begin = values.len();
        // Safetensors is little-endian and need not be aligned, hence no cast of the slice.
        match entry.dtype {
            Dtype::F32 => {
                values.extend(bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)));
            }
            Dtype::F16 => {
                let halves = bytes
                    .as_chunks()
                    .0
                    .iter()
                    .map(|b| half::f16::from_le_bytes(*b));
                let halves: Vec<half::f16> = halves.collect();
                values.resize(begin + halves.len(), 0.0);
                halves.convert_to_f32_slice(&mut values[begin..]);
            }
            Dtype::BF16 => {
                let halves = bytes.as_chunks().0.iter();
                values.extend(halves.map(|b| half::bf16::from_le_bytes(*b).to_f32()));
            }
            other => {
                return Err(LoadError::Dtype {
                    name: name.to_owned(),
                    found: format!("{other:?}"),
                });
            }
        }
        match first_not_finite(&values[begin..]) {
            Some(index) => Err(LoadError::NonFinite {
                name: name.to_owned(),
                index,
            }),
            None => Ok(()),
        }
    }

    /// Maps a file and enters its tensors; if it is part of an index, exactly those that the index
    /// puts there.
    fn add_shard(&mut self, path: &Path, wanted: Option<&[String]>) -> Result<(), LoadError> {
        let header = |reason: String| LoadError::Header {
            path: path.to_owned(),
            reason,
        };
        let map = map_file(path)?;
        let declared = map.first_chunk().map(|size| u64::from_le_bytes(*size));
        if declared.is_some_and(|size| size > MAX_HEADER_BYTES) {
            return Err(header(format!(
                "header larger than {MAX_HEADER_BYTES} bytes"
            )));
        }
        let (size, metadata) =
            SafeTensors::read_metadata(&map).map_err(|error| header(error.to_string()))?;
        let data = 8 + size;
        let shard = self.shards.len();
        let mut tensors = metadata.tensors();
        let entry = |info: &safetensors::tensor::TensorInfo| TensorEntry {
            dtype: info.dtype,
            shape: info.shape.clone(),
            shard,
            bytes: data + info.data_offsets.0..data + info.data_offsets.1,
        };
        match wanted {
            None => {
                let all = tensors.into_iter().map(|(name, info)| (name, entry(info)));
                self.entries.extend(all);
            }
            Some(names) => {
                for name in names {
                    let Some(info) = tensors.remove(name) else {
                        return Err(header(format!(
                            "{INDEX} says that {name} is here; it is not"
                        )));
                    };
                    self.entries.insert(name.clone(), entry(info));
                }
            }
        }
        self.shards.push(map);
        Ok(())
    }
}

/// The index of the first NaN or infinity. A chunk is looked at as a whole first, which takes one
/// instruction for several values.
fn first_not_finite(values: &[f32]) -> Option<usize> {
    const CHUNK: usize = 1024;
    let is_bad = |chunk: &&[f32]| {
        !chunk
            .iter()
            .fold(true, |fine, value| fine & value.is_finite())
    };
    let (nth, chunk) = values
        .chunks(CHUNK)
        .enumerate()
        .find(|(_, chunk)| is_bad(chunk))?;
    let within = chunk.iter().position(|value| !value.is_finite())?;
    Some(nth * CHUNK + within)
}

/// The shards of an index and the tensors of each, in file order.
fn read_index(dir: &Path) -> Result<Vec<(PathBuf, Vec<String>)>, LoadError> {
    let path = dir.join(INDEX);
    let syntax = |reason: String| LoadError::Syntax {
        path: path.clone(),
        reason,
    };
    let index = read_json(&path, MAX_HEADER_BYTES)?;
    let map = index.get("weight_map").and_then(|map| map.as_object());
    let map = map.ok_or_else(|| syntax("no weight_map".to_owned()))?;
    let mut files: HashMap<&str, Vec<String>> = HashMap::new();
    for (tensor, file) in map {
        let file = file
            .as_str()
            .filter(|file| is_plain_file_name(file))
            .ok_or_else(|| syntax(format!("the file of {tensor} is {file}, not a file name")))?;
        files.entry(file).or_default().push(tensor.clone());
    }
    if files.len() > MAX_SHARDS {
        return Err(syntax(format!(
            "{} files; supported: {MAX_SHARDS}",
            files.len()
        )));
    }
    let mut files: Vec<_> = files
        .into_iter()
        .map(|(file, tensors)| (dir.join(file), tensors))
        .collect();
    files.sort();
    Ok(files)
}

/// An index must not lead out of its directory.
fn is_plain_file_name(name: &str) -> bool {
    let mut components = Path::new(name).components();
    matches!(components.next(), Some(Component::Normal(part)) if part == name)
        && components.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::super::testing::{TempDir, Tensors, bert_tensors, write_safetensors};
    use super::*;
    use serde_json::json;

    #[test]
    fn an_index_cannot_lead_out_of_its_directory() {
        for name in ["../x", "/etc/passwd", "a/b", "", ".", "..", "x/"] {
            assert!(!is_plain_file_name(name), "{name}");
        }
        assert!(is_plain_file_name("model-00001-of-00002.safetensors"));
    }

    #[test]
    fn shards_are_read_by_their_index() -> Result<(), Box<dyn std::error::Error>> {
        let dir = TempDir::new()?;
        let (mut map, mut parts) = (serde_json::Map::new(), [Tensors::new(), Tensors::new()]);
        for (i, (name, tensor)) in bert_tensors("").into_iter().enumerate() {
            map.insert(name.clone(), json!(format!("part-{}", i % 2)));
            parts[i % 2].insert(name, tensor);
        }
        for (i, part) in parts.iter().enumerate() {
            write_safetensors(&dir.path().join(format!("part-{i}")), part);
        }
        let write_index = |map| {
            let index = json!({"metadata": {}, "weight_map": map}).to_string();
            std::fs::write(dir.path().join(INDEX), index)
        };
        write_index(map.clone())?;
        let checkpoint = Checkpoint::open(dir.path())?;
        assert_eq!(checkpoint.entries().len(), map.len());

        map.insert("ghost".to_owned(), json!("part-0"));
        write_index(map)?;
        let error = Checkpoint::open(dir.path()).expect_err("a ghost");
        assert!(error.to_string().contains("ghost"), "{error}");
        Ok(())
    }

    #[test]
    fn damaged_files_are_errors() -> Result<(), Box<dyn std::error::Error>> {
        let dir = TempDir::new()?;
        let error = Checkpoint::open(dir.path()).expect_err("no file");
        assert!(matches!(error, LoadError::NoWeights { .. }), "{error}");

        let path = dir.path().join(SINGLE);
        write_safetensors(&path, &bert_tensors(""));
        let good = std::fs::read(&path)?;
        let mut lying = good.clone();
        lying[..8].copy_from_slice(&u64::MAX.to_le_bytes());
        let cut = good[..good.len() - 1].to_vec();
        for bad in [
            Vec::new(),
            good[..7].to_vec(),
            good[..100].to_vec(),
            cut,
            lying,
        ] {
            std::fs::write(&path, &bad)?;
            let error = Checkpoint::open(dir.path()).expect_err("damaged");
            let named = matches!(error, LoadError::Header { .. } | LoadError::Io { .. });
            assert!(named, "{error}");
        }
        Ok(())
    }
}
