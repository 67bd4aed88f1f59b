//! How the codes of a panel are stored: [`UNIT`] inputs, eight groups of four, for all outputs.
//!
//! Line by line, a byte per output and input of a group; 4-bit parts of two neighbouring groups
//! share a byte, and what a code has above its fourth bit lies in planes of one or two bits. The
//! bits per code, and with them the memory that a step must read, are those of the file.

use std::fmt::Debug;

use bytemuck::Pod;

use super::activations::UNIT;
use super::machine::{LANES, Line, Machine};

/// A storage form.
pub(super) trait Codes: Debug + Send + Sync + 'static {
    /// 4, 5 or 6, unsigned, or 8, signed.
    const BITS: u32;
    /// A unit.
    type Lines: Debug + Pod + Send + Sync;
    /// A unit of zero codes.
    const ZERO: Self::Lines;

    /// Puts the codes of an output, [`UNIT`] of them, into a unit that holds zeros there.
    fn pack(lines: &mut Self::Lines, output: usize, codes: &[u8]);

    /// The codes of an output.
    fn unpack(lines: &Self::Lines, output: usize) -> [u8; UNIT];

    /// The codes of a group for all outputs.
    fn group<M: Machine, const GROUP: usize>(lines: &Self::Lines) -> M::Codes;
}

/// 4 bits.
#[derive(Debug, Clone)]
pub(super) struct Nibbles;
/// 5 bits, the fifth in a plane: bit `g` of a byte for group `g`.
#[derive(Debug, Clone)]
pub(super) struct NibblesAndBit;
/// 6 bits, the upper two in two planes: bits `2g` and `2g + 1` for groups `g` and `4 + g`.
#[derive(Debug, Clone)]
pub(super) struct NibblesAndTwoBits;
/// 8 bits.
#[derive(Debug, Clone)]
pub(super) struct Bytes;

const ZERO: Line = Line([0; 4 * LANES]);

/// The byte of an output's `input`-th code in its line.
fn byte(output: usize, input: usize) -> usize {
    4 * output + input % 4
}

fn pack_nibbles(lines: &mut [Line], output: usize, codes: &[u8]) {
    for (input, code) in codes.iter().enumerate() {
        let group = input / 4;
        lines[group / 2].0[byte(output, input)] |= (code & 0x0F) << (4 * (group % 2));
    }
}

fn unpack_nibbles(lines: &[Line], output: usize) -> [u8; UNIT] {
    std::array::from_fn(|input| {
        let group = input / 4;
        lines[group / 2].0[byte(output, input)] >> (4 * (group % 2)) & 0x0F
    })
}

#[inline(always)]
fn nibbles<M: Machine, const GROUP: usize>(lines: &[Line]) -> M::Codes {
    let line = M::load(&lines[GROUP / 2]);
    if GROUP.is_multiple_of(2) {
        M::and(line, 0x0F)
    } else {
        M::and(M::shift_right::<4>(line), 0x0F)
    }
}

impl Codes for Nibbles {
    const BITS: u32 = 4;
    type Lines = [Line; 4];
    const ZERO: [Line; 4] = [ZERO; 4];

    fn pack(lines: &mut [Line; 4], output: usize, codes: &[u8]) {
        pack_nibbles(lines, output, codes);
    }

    fn unpack(lines: &[Line; 4], output: usize) -> [u8; UNIT] {
        unpack_nibbles(lines, output)
    }

    #[inline(always)]
    fn group<M: Machine, const GROUP: usize>(lines: &[Line; 4]) -> M::Codes {
        nibbles::<M, GROUP>(lines)
    }
}

impl Codes for NibblesAndBit {
    const BITS: u32 = 5;
    type Lines = [Line; 5];
    const ZERO: [Line; 5] = [ZERO; 5];

    fn pack(lines: &mut [Line; 5], output: usize, codes: &[u8]) {
        pack_nibbles(lines, output, codes);
        for (input, code) in codes.iter().enumerate() {
            lines[4].0[byte(output, input)] |= (code >> 4 & 1) << (input / 4);
        }
    }

    fn unpack(lines: &[Line; 5], output: usize) -> [u8; UNIT] {
        let mut codes = unpack_nibbles(lines, output);
        for (input, code) in codes.iter_mut().enumerate() {
            *code |= (lines[4].0[byte(output, input)] >> (input / 4) & 1) << 4;
        }
        codes
    }

    #[inline(always)]
    fn group<M: Machine, const GROUP: usize>(lines: &[Line; 5]) -> M::Codes {
        let plane = M::load(&lines[4]);
        let bit = match GROUP {
            0 => M::shift_left::<4>(plane),
            1 => M::shift_left::<3>(plane),
            2 => M::shift_left::<2>(plane),
            3 => M::shift_left::<1>(plane),
            4 => plane,
            5 => M::shift_right::<1>(plane),
            6 => M::shift_right::<2>(plane),
            _ => M::shift_right::<3>(plane),
        };
        M::or(nibbles::<M, GROUP>(lines), M::and(bit, 0x10))
    }
}

impl Codes for NibblesAndTwoBits {
    const BITS: u32 = 6;
    type Lines = [Line; 6];
    const ZERO: [Line; 6] = [ZERO; 6];

    fn pack(lines: &mut [Line; 6], output: usize, codes: &[u8]) {
        pack_nibbles(lines, output, codes);
        for (input, code) in codes.iter().enumerate() {
            let group = input / 4;
            lines[4 + group / 4].0[byte(output, input)] |= (code >> 4 & 3) << (2 * (group % 4));
        }
    }

    fn unpack(lines: &[Line; 6], output: usize) -> [u8; UNIT] {
        let mut codes = unpack_nibbles(lines, output);
        for (input, code) in codes.iter_mut().enumerate() {
            let group = input / 4;
            let plane = lines[4 + group / 4].0[byte(output, input)];
            *code |= (plane >> (2 * (group % 4)) & 3) << 4;
        }
        codes
    }

    #[inline(always)]
    fn group<M: Machine, const GROUP: usize>(lines: &[Line; 6]) -> M::Codes {
        let plane = M::load(&lines[4 + GROUP / 4]);
        let bits = match GROUP % 4 {
            0 => M::shift_left::<4>(plane),
            1 => M::shift_left::<2>(plane),
            2 => plane,
            _ => M::shift_right::<2>(plane),
        };
        M::or(nibbles::<M, GROUP>(lines), M::and(bits, 0x30))
    }
}

impl Codes for Bytes {
    const BITS: u32 = 8;
    type Lines = [Line; 8];
    const ZERO: [Line; 8] = [ZERO; 8];

    fn pack(lines: &mut [Line; 8], output: usize, codes: &[u8]) {
        for (input, code) in codes.iter().enumerate() {
            lines[input / 4].0[byte(output, input)] = *code;
        }
    }

    fn unpack(lines: &[Line; 8], output: usize) -> [u8; UNIT] {
        std::array::from_fn(|input| lines[input / 4].0[byte(output, input)])
    }

    #[inline(always)]
    fn group<M: Machine, const GROUP: usize>(lines: &[Line; 8]) -> M::Codes {
        M::load(&lines[GROUP])
    }
}

/// Adds the products of a unit with `R` rows to `sums`: `Σ codes · x`, or with `scales`
/// `s₀ · Σ` over the first half and `s₁ · Σ` over the second, which are equal unless `SPLIT`.
#[inline(always)]
pub(super) fn add_unit<M: Machine, C: Codes, const R: usize, const SPLIT: bool>(
    sums: &mut [M::Sums; R],
    lines: &C::Lines,
    x: [&[i8; UNIT]; R],
    scales: Option<[M::Scale; 2]>,
) {
    let mut partial = [M::no_products(); R];
    let room = M::room(C::BITS);
    add_group::<M, C, R, 0>(&mut partial, lines, x);
    add_group::<M, C, R, 1>(&mut partial, lines, x);
    if room < 4 {
        widen::<M, C, R>(sums, &mut partial, scales.map(|scales| scales[0]));
    }
    add_group::<M, C, R, 2>(&mut partial, lines, x);
    add_group::<M, C, R, 3>(&mut partial, lines, x);
    if room < 8 || SPLIT {
        widen::<M, C, R>(sums, &mut partial, scales.map(|scales| scales[0]));
    }
    add_group::<M, C, R, 4>(&mut partial, lines, x);
    add_group::<M, C, R, 5>(&mut partial, lines, x);
    if room < 4 {
        widen::<M, C, R>(sums, &mut partial, scales.map(|scales| scales[1]));
    }
    add_group::<M, C, R, 6>(&mut partial, lines, x);
    add_group::<M, C, R, 7>(&mut partial, lines, x);
    widen::<M, C, R>(sums, &mut partial, scales.map(|scales| scales[1]));
}

#[inline(always)]
#[allow(clippy::needless_range_loop, reason = "see simd.rs")]
fn add_group<M: Machine, C: Codes, const R: usize, const GROUP: usize>(
    partial: &mut [M::Partial; R],
    lines: &C::Lines,
    x: [&[i8; UNIT]; R],
) {
    let codes = C::group::<M, GROUP>(lines);
    for r in 0..R {
        let x = x[r].as_chunks::<4>().0[GROUP];
        partial[r] = M::add_products(partial[r], codes, x, C::BITS);
    }
}

/// Moves what `partial` holds over to `sums`.
#[inline(always)]
#[allow(clippy::needless_range_loop, reason = "see simd.rs")]
fn widen<M: Machine, C: Codes, const R: usize>(
    sums: &mut [M::Sums; R],
    partial: &mut [M::Partial; R],
    scale: Option<M::Scale>,
) {
    for r in 0..R {
        sums[r] = match scale {
            Some(scale) => M::widen_scaled(sums[r], partial[r], scale),
            None => M::widen(sums[r], partial[r], C::BITS),
        };
        partial[r] = M::no_products();
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::Random;
    use super::*;

    #[test]
    fn what_is_packed_comes_back() {
        fn check<C: Codes>() {
            let mut random = Random::new(u64::from(C::BITS));
            let mut lines = C::ZERO;
            let codes: Vec<[u8; UNIT]> = (0..LANES)
                .map(|_| std::array::from_fn(|_| (random.next() >> 40) as u8 >> (8 - C::BITS)))
                .collect();
            for (output, codes) in codes.iter().enumerate() {
                C::pack(&mut lines, output, codes);
            }
            for (output, codes) in codes.iter().enumerate() {
                assert_eq!(&C::unpack(&lines, output), codes, "{} bits", C::BITS);
            }
        }
        check::<Nibbles>();
        check::<NibblesAndBit>();
        check::<NibblesAndTwoBits>();
        check::<Bytes>();
    }
}
