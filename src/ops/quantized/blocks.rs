//! The blocks of a GGML file, decoded into what all its formats have in common: codes, a scale,
//! and a minimum or an offset.
//!
//! The layouts are those of ggml's `ggml-common.h` (`block_q4_0`, …); a row of a weight is a
//! sequence of blocks, and all numbers are little-endian.

use super::activations::{SUPER, UNIT};

/// 32 inputs: `w = d·(code - offset) + m`, the offset being the format's.
pub(super) struct Block32 {
    pub codes: [u8; UNIT],
    /// `d`, the bits of an f16.
    pub scale: u16,
    /// `m`, the bits of an f16; 0 where the format has none.
    pub minimum: u16,
}

/// 256 inputs: `w = d·s·(code - offset) - d_min·m`, `s` and `m` per 16 or 32 inputs.
pub(super) struct Block256 {
    pub codes: [u8; SUPER],
    /// `s` per 16 inputs, or per 32 in the first eight.
    pub scales: [i8; 16],
    /// `m`, likewise; 0 where the format has none.
    pub minima: [i8; 16],
    /// `d`, the bits of an f16.
    pub scale: u16,
    /// `d_min`, the bits of an f16.
    pub minimum: u16,
}

fn half(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

/// 4-bit codes of 32 inputs: the lower halves of the bytes, then the upper.
fn halves(bytes: &[u8]) -> [u8; UNIT] {
    std::array::from_fn(|i| bytes[i % 16] >> (4 * (i / 16)) & 0x0F)
}

fn with_fifth_bits(mut codes: [u8; UNIT], bits: &[u8]) -> [u8; UNIT] {
    for (i, code) in codes.iter_mut().enumerate() {
        *code |= (bits[i / 8] >> (i % 8) & 1) << 4;
    }
    codes
}

/// `d`, 16 bytes of codes; offset 8.
pub(super) fn q4_0(bytes: &[u8]) -> Block32 {
    Block32 {
        codes: halves(&bytes[2..]),
        scale: half(bytes, 0),
        minimum: 0,
    }
}

/// `d`, `m`, 16 bytes of codes.
pub(super) fn q4_1(bytes: &[u8]) -> Block32 {
    Block32 {
        codes: halves(&bytes[4..]),
        scale: half(bytes, 0),
        minimum: half(bytes, 2),
    }
}

/// `d`, 4 bytes of fifth bits, 16 of codes; offset 16.
pub(super) fn q5_0(bytes: &[u8]) -> Block32 {
    Block32 {
        codes: with_fifth_bits(halves(&bytes[6..]), &bytes[2..]),
        scale: half(bytes, 0),
        minimum: 0,
    }
}

/// `d`, `m`, 4 bytes of fifth bits, 16 of codes.
pub(super) fn q5_1(bytes: &[u8]) -> Block32 {
    Block32 {
        codes: with_fifth_bits(halves(&bytes[8..]), &bytes[4..]),
        scale: half(bytes, 0),
        minimum: half(bytes, 2),
    }
}

/// `d`, 32 signed bytes.
pub(super) fn q8_0(bytes: &[u8]) -> Block32 {
    Block32 {
        codes: std::array::from_fn(|i| bytes[2 + i]),
        scale: half(bytes, 0),
        minimum: 0,
    }
}

/// `d`, a sum that a weight has no use for, 32 signed bytes.
pub(super) fn q8_1(bytes: &[u8]) -> Block32 {
    Block32 {
        codes: std::array::from_fn(|i| bytes[4 + i]),
        scale: half(bytes, 0),
        minimum: 0,
    }
}

/// 2-bit codes, four to a byte: those of 32 neighbouring bytes are 128 inputs.
fn quarters(bytes: &[u8]) -> [u8; SUPER] {
    std::array::from_fn(|i| bytes[i / 128 * 32 + i % 32] >> (2 * (i % 128 / 32)) & 3)
}

/// 16 bytes of scales (lower half) and minima (upper), 64 of codes, `d`, `d_min`; per 16 inputs.
pub(super) fn q2k(bytes: &[u8]) -> Block256 {
    Block256 {
        codes: quarters(&bytes[16..]),
        scales: std::array::from_fn(|i| (bytes[i] & 0x0F).cast_signed()),
        minima: std::array::from_fn(|i| (bytes[i] >> 4).cast_signed()),
        scale: half(bytes, 80),
        minimum: half(bytes, 82),
    }
}

/// 32 bytes of third bits, 64 of codes, 12 of scales with an offset of 32, `d`; per 16 inputs,
/// offset 4.
pub(super) fn q3k(bytes: &[u8]) -> Block256 {
    let mut codes = quarters(&bytes[32..]);
    for (i, code) in codes.iter_mut().enumerate() {
        *code |= (bytes[i % 32] >> (i / 32) & 1) << 2;
    }
    let packed = &bytes[96..];
    Block256 {
        codes,
        scales: std::array::from_fn(|i| {
            let low = packed[i % 8] >> (4 * (i / 8)) & 0x0F;
            let high = packed[8 + i % 4] >> (2 * (i / 4)) & 3;
            (low | high << 4).cast_signed() - 32
        }),
        minima: [0; 16],
        scale: half(bytes, 108),
        minimum: 0,
    }
}

/// The 6-bit scales and minima of `Q4_K` and `Q5_K`: four and four in the lower bits of eight
/// bytes; of the other four and four, the lower halves in the last four bytes and the upper bits
/// in those that the first eight leave free.
fn scales_and_minima(packed: &[u8]) -> [[i8; 16]; 2] {
    let mut both = [[0; 16]; 2];
    for i in 0..4 {
        let low = packed[8 + i];
        let [scale, minimum] = [packed[i], packed[4 + i]];
        both[0][i] = (scale & 63).cast_signed();
        both[1][i] = (minimum & 63).cast_signed();
        both[0][4 + i] = (low & 0x0F | scale >> 6 << 4).cast_signed();
        both[1][4 + i] = (low >> 4 | minimum >> 6 << 4).cast_signed();
    }
    both
}

/// 4-bit codes: 32 bytes hold 64 inputs, the lower halves first.
fn halves_of_64(bytes: &[u8]) -> [u8; SUPER] {
    std::array::from_fn(|i| bytes[i / 64 * 32 + i % 32] >> (4 * (i % 64 / 32)) & 0x0F)
}

/// `d`, `d_min`, 12 bytes of scales and minima, 128 of codes; per 32 inputs.
pub(super) fn q4k(bytes: &[u8]) -> Block256 {
    let [scales, minima] = scales_and_minima(&bytes[4..]);
    Block256 {
        codes: halves_of_64(&bytes[16..]),
        scales,
        minima,
        scale: half(bytes, 0),
        minimum: half(bytes, 2),
    }
}

/// As [`q4k`], with 32 bytes of fifth bits before the codes.
pub(super) fn q5k(bytes: &[u8]) -> Block256 {
    let [scales, minima] = scales_and_minima(&bytes[4..]);
    let mut codes = halves_of_64(&bytes[48..]);
    for (i, code) in codes.iter_mut().enumerate() {
        *code |= (bytes[16 + i % 32] >> (i / 32) & 1) << 4;
    }
    Block256 {
        codes,
        scales,
        minima,
        scale: half(bytes, 0),
        minimum: half(bytes, 2),
    }
}

/// 128 bytes of lower halves, 64 of upper bits, 16 signed scales, `d`; per 16 inputs, offset 32.
pub(super) fn q6k(bytes: &[u8]) -> Block256 {
    let upper = quarters(&bytes[128..]);
    Block256 {
        // In 128 inputs, the lower halves of 64 bytes come first.
        codes: std::array::from_fn(|i| {
            bytes[i / 128 * 64 + i % 64] >> (4 * (i % 128 / 64)) & 0x0F | upper[i] << 4
        }),
        scales: std::array::from_fn(|i| bytes[192 + i].cast_signed()),
        minima: [0; 16],
        scale: half(bytes, 208),
        minimum: 0,
    }
}
