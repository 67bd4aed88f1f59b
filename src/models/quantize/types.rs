//! The types that weights may be stored in: their names, and which stands in for which.

use candle_core::quantized::GgmlDType;

/// The names that commands and manifests use, each with its type and the number that llama.cpp
/// gives to files that are mostly of it (`LLAMA_FTYPE_MOSTLY_…`; of the k-quants, the `_M` mixes).
const NAMES: [(&str, GgmlDType, u32); 13] = [
    ("f32", GgmlDType::F32, 0),
    ("f16", GgmlDType::F16, 1),
    ("bf16", GgmlDType::BF16, 32),
    ("q8_0", GgmlDType::Q8_0, 7),
    ("q4_0", GgmlDType::Q4_0, 2),
    ("q4_1", GgmlDType::Q4_1, 3),
    ("q5_0", GgmlDType::Q5_0, 8),
    ("q5_1", GgmlDType::Q5_1, 9),
    ("q2_k", GgmlDType::Q2K, 10),
    ("q3_k", GgmlDType::Q3K, 12),
    ("q4_k", GgmlDType::Q4K, 15),
    ("q5_k", GgmlDType::Q5K, 17),
    ("q6_k", GgmlDType::Q6K, 18),
];

/// All names of types.
pub fn type_names() -> impl Iterator<Item = &'static str> {
    NAMES.iter().map(|(name, ..)| *name)
}

/// The type of a name, in either case.
pub fn type_named(name: &str) -> Option<GgmlDType> {
    let mut known = NAMES.iter();
    let found = known.find(|(known, ..)| known.eq_ignore_ascii_case(name))?;
    Some(found.1)
}

/// The name of a type; what candle calls it for those that no weight has.
pub fn type_name(dtype: GgmlDType) -> &'static str {
    let mut known = NAMES.iter();
    let found = known.find(|(_, known, _)| *known == dtype);
    found.map_or("q8_1 or q8_k", |(name, ..)| name)
}

/// What `general.file_type` says of a file that is mostly of this type.
pub(super) fn file_type(dtype: GgmlDType) -> Option<u32> {
    let mut known = NAMES.iter();
    let found = known.find(|(_, known, _)| *known == dtype)?;
    Some(found.2)
}

/// The type, or the one that stands in for it where its blocks don't divide a row of `row` values:
/// of blocks of 32 with about as many bits, as llama.cpp has it. `None` where those don't fit
/// either.
pub fn fitting(dtype: GgmlDType, row: usize) -> Option<GgmlDType> {
    let substitute = match dtype {
        GgmlDType::Q2K | GgmlDType::Q3K => GgmlDType::Q4_0,
        GgmlDType::Q4K => GgmlDType::Q5_0,
        GgmlDType::Q5K => GgmlDType::Q5_1,
        GgmlDType::Q6K => GgmlDType::Q8_0,
        other => other,
    };
    [dtype, substitute]
        .into_iter()
        .find(|dtype| row.is_multiple_of(dtype.block_size()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_has_a_name_and_comes_back_from_it() {
        for name in type_names() {
            let dtype = type_named(name).expect(name);
            assert_eq!(type_name(dtype), name);
            assert_eq!(type_named(&name.to_uppercase()), Some(dtype));
            assert!(file_type(dtype).is_some());
        }
        assert_eq!(type_named("q8_k"), None);
    }

    #[test]
    fn rows_that_blocks_of_256_do_not_divide_get_blocks_of_32() {
        assert_eq!(fitting(GgmlDType::Q4K, 512), Some(GgmlDType::Q4K));
        assert_eq!(fitting(GgmlDType::Q4K, 384), Some(GgmlDType::Q5_0));
        assert_eq!(fitting(GgmlDType::Q6K, 384), Some(GgmlDType::Q8_0));
        assert_eq!(fitting(GgmlDType::Q6K, 24), None);
        assert_eq!(fitting(GgmlDType::Q4_1, 48), None);
        assert_eq!(fitting(GgmlDType::F16, 7), Some(GgmlDType::F16));
    }
}
