//! A file's header, from its bytes: what metadata and tensors it has, and where they lie.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ops::Range;

use super::cursor::{Cursor, Damage};
use super::metadata::Value;
use super::tensors::{TensorInfo, TensorType};

const MAGIC: [u8; 4] = *b"GGUF";
/// Where the file has no `general.alignment`.
const DEFAULT_ALIGNMENT: u64 = 32;
/// The specification's limit for keys, and well above what tensors are called.
const MAX_NAME_BYTES: usize = 65_535;
const MAX_DIMENSIONS: u32 = 4;
/// Models have some dozens of values and, the largest, some thousands of tensors. What is kept of each
/// takes several times the bytes that it has at least in the file.
const MAX_ENTRIES: usize = 1 << 16;

/// What the header says.
#[derive(Debug)]
pub(super) struct Contents {
    pub metadata: HashMap<String, Value>,
    /// The keys in the file's order, each with where its type and value lie.
    pub order: Vec<(String, Range<usize>)>,
    pub tensors: HashMap<String, TensorInfo>,
}

impl Contents {
    pub fn parse(bytes: &[u8]) -> Result<Self, Damage> {
        let mut cursor = Cursor::new(bytes);
        if cursor.array()? != MAGIC {
            return Err("it does not begin with \"GGUF\"".to_owned());
        }
        match cursor.u32()? {
            2 | 3 => {}
            // Version 3 of the other byte order, as a little-endian reader sees it.
            0x0300_0000 | 0x0200_0000 => {
                return Err("it is big-endian; convert it to little-endian".to_owned());
            }
            version => return Err(format!("its version is {version}; supported: 2, 3")),
        }
        // The least that a tensor takes in the header: empty name, one dimension, type, offset;
        // and a metadata value: empty key, type, one byte.
        let tensors = cursor.count(8 + 4 + 8 + 4 + 8, "tensors")?;
        let values = cursor.count(8 + 4 + 1, "metadata values")?;
        for (count, what) in [(tensors, "tensors"), (values, "metadata values")] {
            if count > MAX_ENTRIES {
                return Err(format!(
                    "{count} {what} are announced; up to {MAX_ENTRIES} are read"
                ));
            }
        }
        let (metadata, order) = metadata(&mut cursor, values)?;
        let alignment = alignment(&metadata)?;
        let tensors = tensor_infos(&mut cursor, tensors, alignment, bytes.len())?;
        Ok(Self {
            metadata,
            order,
            tensors,
        })
    }
}

type Ordered = (HashMap<String, Value>, Vec<(String, Range<usize>)>);

fn metadata(cursor: &mut Cursor<'_>, count: usize) -> Result<Ordered, Damage> {
    let mut metadata = HashMap::new();
    let mut order = Vec::new();
    for _ in 0..count {
        let key = cursor.name(MAX_NAME_BYTES, "a key")?;
        let start = cursor.position();
        let value = Value::parse(cursor).map_err(|damage| format!("{key}: {damage}"))?;
        order.push((key.to_owned(), start..cursor.position()));
        match metadata.entry(key.to_owned()) {
            Entry::Vacant(entry) => entry.insert(value),
            Entry::Occupied(_) => return Err(format!("the key {key} is there twice")),
        };
    }
    Ok((metadata, order))
}

/// A power of two from 8, so that every block type is aligned in the mapped file.
fn alignment(metadata: &HashMap<String, Value>) -> Result<u64, Damage> {
    let alignment = match metadata.get("general.alignment") {
        None => DEFAULT_ALIGNMENT,
        Some(Value::Unsigned(alignment)) => *alignment,
        Some(_) => return Err("general.alignment is not a whole number".to_owned()),
    };
    if alignment.is_power_of_two() && (8..=1 << 20).contains(&alignment) {
        Ok(alignment)
    } else {
        Err(format!(
            "general.alignment is {alignment}; supported: powers of two from 8 to 1048576"
        ))
    }
}

fn tensor_infos(
    cursor: &mut Cursor<'_>,
    count: usize,
    alignment: u64,
    file_len: usize,
) -> Result<HashMap<String, TensorInfo>, Damage> {
    let mut announced = Vec::new();
    for _ in 0..count {
        let name = cursor.name(MAX_NAME_BYTES, "a tensor's name")?;
        let dimensions = cursor.u32()?;
        if !(1..=MAX_DIMENSIONS).contains(&dimensions) {
            return Err(format!(
                "tensor {name} has {dimensions} dimensions; supported: 1 to {MAX_DIMENSIONS}"
            ));
        }
        let mut shape = Vec::with_capacity(dimensions as usize);
        for _ in 0..dimensions {
            shape.push(cursor.u64()?);
        }
        let dtype = TensorType::from_id(cursor.u32()?);
        announced.push((name, shape, dtype, cursor.u64()?));
    }
    let data = (cursor.position() as u64).next_multiple_of(alignment);
    let mut tensors = HashMap::with_capacity(announced.len());
    for (name, shape, dtype, offset) in announced {
        if offset % alignment != 0 {
            return Err(format!(
                "tensor {name} is at {offset}, not a multiple of the alignment {alignment}"
            ));
        }
        let info = TensorInfo::new(&shape, dtype, data, offset, file_len as u64)
            .map_err(|damage| format!("tensor {name}: {damage}"))?;
        match tensors.entry(name.to_owned()) {
            Entry::Vacant(entry) => entry.insert(info),
            Entry::Occupied(_) => return Err(format!("the tensor {name} is there twice")),
        };
    }
    check_disjoint(&tensors)?;
    Ok(tensors)
}

/// Tensors that share bytes would let a small file fill the memory.
fn check_disjoint(tensors: &HashMap<String, TensorInfo>) -> Result<(), Damage> {
    let mut order: Vec<_> = tensors.iter().collect();
    order.sort_by_key(|(_, info)| (info.bytes.start, info.bytes.end));
    for pair in order.windows(2) {
        let [(first, before), (second, after)] = [pair[0], pair[1]];
        if before.bytes.end > after.bytes.start {
            return Err(format!("the tensors {first} and {second} overlap"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::testing::GgufWriter;
    use super::*;

    fn small() -> GgufWriter {
        GgufWriter::new()
            .string("general.architecture", "llama")
            .u32("count", 7)
            .bool("flag", false)
            .strings("texts", &["one", "two"])
            .f32s("numbers", &[1.0, 2.0, 3.0])
            .f32_tensor("a", &[2, 3], &[0.5; 6])
            .f32_tensor("b", &[5], &[1.5; 5])
    }

    fn refused(bytes: &[u8]) -> Damage {
        Contents::parse(bytes).expect_err("a damaged file")
    }

    #[test]
    fn a_file_cut_short_anywhere_is_an_error() {
        let bytes = small().bytes();
        assert!(Contents::parse(&bytes).is_ok());
        for len in 0..bytes.len() {
            refused(&bytes[..len]);
        }
    }

    #[test]
    fn no_single_wrong_byte_makes_it_panic() {
        let bytes = small().bytes();
        for at in 0..bytes.len() {
            for value in [0, 1, 9, 0x7f, 0x80, 0xff] {
                let mut damaged = bytes.clone();
                damaged[at] = value;
                if let Ok(contents) = Contents::parse(&damaged) {
                    for info in contents.tensors.values() {
                        assert!(info.bytes.end <= damaged.len());
                    }
                }
            }
        }
    }

    #[test]
    fn counts_that_the_file_has_no_room_for_are_refused() {
        let bytes = small().bytes();
        // Tensors, metadata values, and the length of the first key.
        for at in [8, 16, 24] {
            for lie in [u64::MAX, u64::MAX / 2, 1 << 40, bytes.len() as u64] {
                let mut damaged = bytes.clone();
                damaged[at..at + 8].copy_from_slice(&lie.to_le_bytes());
                assert!(refused(&damaged).contains("announced"));
            }
        }
        for kind in [0, 1, 4, 6, 7, 8, 9, 10, 12] {
            for lie in [u64::MAX, 1 << 61, 1 << 40] {
                let mut array = Vec::from(u32::to_le_bytes(kind));
                array.extend(lie.to_le_bytes());
                array.extend([0; 64]);
                refused(&GgufWriter::new().value("key", 9, &array).bytes());
            }
        }
    }

    #[test]
    fn more_entries_than_a_model_has_are_refused() {
        let mut file = small().bytes();
        file.resize(64 << 20, 0);
        for at in [8, 16] {
            let mut damaged = file.clone();
            damaged[at..at + 8].copy_from_slice(&65_537_u64.to_le_bytes());
            let damage = refused(&damaged);
            assert!(damage.contains("65537"), "{damage}");
        }
    }

    #[test]
    fn nesting_has_an_end() {
        let mut array = Vec::new();
        for _ in 0..100_000 {
            array.extend(9_u32.to_le_bytes());
            array.extend(1_u64.to_le_bytes());
        }
        array.extend(0_u32.to_le_bytes());
        array.extend(0_u64.to_le_bytes());
        let damage = refused(&GgufWriter::new().value("key", 9, &array).bytes());
        assert!(damage.contains("nested"), "{damage}");
    }

    #[test]
    fn tensors_that_lie_are_refused_by_name() {
        let cases = [
            ("dimensions", vec![], 0, 0),
            ("dimensions", vec![1; 5], 0, 0),
            ("shape", vec![0, 4], 0, 0),
            ("shape", vec![u64::MAX, 2], 0, 0),
            ("shape", vec![1 << 32, 1 << 32, 1 << 32, 1 << 32], 0, 0),
            ("beyond", vec![1 << 40], 0, 0),
            ("beyond", vec![4], 0, u64::MAX - 31),
            ("beyond", vec![4], 0, 1 << 40),
            ("beyond", vec![4], 999, 1 << 40),
            ("alignment", vec![4], 0, 4),
            ("block", vec![33], 2, 0),
            ("block", vec![32], 12, 0),
        ];
        for (reason, shape, kind, offset) in cases {
            let bytes = GgufWriter::new()
                .raw_tensor("culprit", &shape, kind, offset, &[0; 1024])
                .bytes();
            let damage = refused(&bytes);
            assert!(
                damage.contains("culprit") && damage.contains(reason),
                "{damage}"
            );
        }
    }

    #[test]
    fn nothing_is_there_twice() {
        let key = GgufWriter::new().u32("key", 1).u32("key", 1).bytes();
        assert!(refused(&key).contains("twice"));
        let tensor = GgufWriter::new()
            .f32_tensor("t", &[1], &[0.0])
            .f32_tensor("t", &[1], &[0.0])
            .bytes();
        assert!(refused(&tensor).contains("twice"));
        let overlap = GgufWriter::new()
            .raw_tensor("a", &[16], 0, 0, &[0; 128])
            .raw_tensor("b", &[16], 0, 32, &[])
            .bytes();
        assert!(refused(&overlap).contains("overlap"));
    }

    #[test]
    fn the_alignment_is_a_power_of_two() {
        for wrong in [0, 1, 4, 24, 33, u32::MAX] {
            let bytes = GgufWriter::new().u32("general.alignment", wrong).bytes();
            assert!(refused(&bytes).contains("alignment"), "{wrong}");
        }
        assert!(
            refused(&GgufWriter::new().bool("general.alignment", true).bytes()).contains("number")
        );
    }

    #[test]
    fn other_formats_and_versions_are_told_apart() {
        let mut bytes = small().bytes();
        bytes[4] = 1;
        assert!(refused(&bytes).contains("version is 1"));
        bytes[4..8].copy_from_slice(&[0, 0, 0, 3]);
        assert!(refused(&bytes).contains("big-endian"));
        bytes[0] = b'X';
        assert!(refused(&bytes).contains("GGUF"));
        assert!(refused(&[]).contains("ends at byte 0"));
    }
}
