//! What the quantized product needs of a machine, for [`LANES`] outputs at a time: a portable
//! version here, and one per instruction set beside it, chosen at run time.
//!
//! A *group* is four neighbouring inputs. The weights of a group lie output by output, four bytes
//! each, so that a group of the activation, repeated in each 32-bit lane, meets them all in one
//! instruction, and a lane only ever holds sums of its own output.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;

use bytemuck::{Pod, Zeroable};
use half::f16;

/// Outputs of a panel.
pub(super) const LANES: usize = 16;

/// The bytes of a group for all outputs of a panel: one cache line.
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
#[repr(C, align(64))]
pub(super) struct Line(pub [u8; 4 * LANES]);

/// Vectors over the outputs of a panel. `bits` is how many bits the codes have, a constant at each
/// call: 4, 5 or 6, unsigned, or 8, signed.
pub(super) trait Machine: Copy {
    /// Codes of one group: a byte each.
    type Codes: Copy;
    /// Sums of products that may not have been widened to 32 bits yet.
    type Partial: Copy;
    /// Two 16-bit integers per output.
    type Pairs: Copy;
    /// An integer scale per output.
    type Scale: Copy;
    /// An `i32` per output.
    type Sums: Copy;
    /// An `f32` per output.
    type Floats: Copy;

    /// Rows in the largest tile that leaves the sums in registers: 1, 4 or 8.
    const ROWS: usize;
    /// What [`Machine::add_products`] adds to every 8-bit code to make it unsigned.
    const BYTE_OFFSET: i32;

    /// Groups of codes of so many bits whose products a `Partial` can hold.
    fn room(bits: u32) -> usize;

    fn load(line: &Line) -> Self::Codes;
    fn and(codes: Self::Codes, mask: u8) -> Self::Codes;
    fn or(a: Self::Codes, b: Self::Codes) -> Self::Codes;
    /// Shifts 16-bit units: what crosses from one byte into the other is for a mask to remove.
    fn shift_right<const BY: u32>(codes: Self::Codes) -> Self::Codes;
    /// As [`Machine::shift_right`].
    fn shift_left<const BY: u32>(codes: Self::Codes) -> Self::Codes;

    fn no_products() -> Self::Partial;
    /// `partial + Σ codes · x` over a group.
    fn add_products(
        partial: Self::Partial,
        codes: Self::Codes,
        x: [i8; 4],
        bits: u32,
    ) -> Self::Partial;
    /// `sums + partial`
    fn widen(sums: Self::Sums, partial: Self::Partial, bits: u32) -> Self::Sums;
    /// `sums + partial · scale`; not for 8 bits.
    fn widen_scaled(sums: Self::Sums, partial: Self::Partial, scale: Self::Scale) -> Self::Sums;

    /// Pairs from bytes; those of output `i` at `2i` and `2i + 1`.
    fn load_pairs(pairs: &[i8; 2 * LANES]) -> Self::Pairs;
    /// The first or second of each pair.
    fn scales(pairs: Self::Pairs) -> [Self::Scale; 2];
    /// `sums + a₀·b₀ + a₁·b₁`
    fn add_pair_products(sums: Self::Sums, pairs: Self::Pairs, b: [i16; 2]) -> Self::Sums;

    fn splat_sums(value: i32) -> Self::Sums;
    /// `a - b · factor`
    fn sub_scaled(a: Self::Sums, b: Self::Sums, factor: i32) -> Self::Sums;
    fn to_floats(sums: Self::Sums) -> Self::Floats;

    fn splat(value: f32) -> Self::Floats;
    fn load_f32(values: &[f32; LANES]) -> Self::Floats;
    /// From the bits of f16.
    fn load_f16(values: &[u16; LANES]) -> Self::Floats;
    /// From the bits of bf16.
    fn load_bf16(values: &[u16; LANES]) -> Self::Floats;
    fn store(floats: Self::Floats, values: &mut [f32; LANES]);
    fn mul(a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// `a·b + c`
    fn mul_add(a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats;
    /// `c - a·b`
    fn mul_sub(a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats;
}

/// A piece of work for [`InstructionSet::run`]; all that it calls in its loops must be `#[inline(always)]`.
pub(super) trait Work {
    fn run<M: Machine>(self);
}

/// A [`Machine`] that this one is.
#[derive(Debug, Clone, Copy)]
pub(super) struct InstructionSet(Set);

#[derive(Debug, Clone, Copy)]
enum Set {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl InstructionSet {
    /// The best there is. An atomic load or two.
    pub fn best() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            if avx512::is_there() {
                return Self(Set::Avx512);
            }
            if avx2::is_there() {
                return Self(Set::Avx2);
            }
        }
        Self(Set::Portable)
    }

    /// Runs `work` with it.
    pub fn run<W: Work>(self, work: W) {
        match self.0 {
            Set::Portable => work.run::<Portable>(),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: a value is made of this only where all that the function enables is there.
            Set::Avx2 => unsafe { avx2::run(work) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Set::Avx512 => unsafe { avx512::run(work) },
        }
    }
}

/// All that this machine has, the portable one first, for tests to compare.
#[cfg(test)]
pub(super) fn available() -> Vec<InstructionSet> {
    let mut sets = vec![InstructionSet(Set::Portable)];
    #[cfg(target_arch = "x86_64")]
    {
        if avx2::is_there() {
            sets.push(InstructionSet(Set::Avx2));
        }
        if avx512::is_there() {
            sets.push(InstructionSet(Set::Avx512));
        }
    }
    sets
}

/// Loops over arrays.
#[derive(Clone, Copy)]
pub(super) struct Portable;

impl Machine for Portable {
    type Codes = [u8; 4 * LANES];
    type Partial = [i32; LANES];
    type Pairs = [i8; 2 * LANES];
    type Scale = [i32; LANES];
    type Sums = [i32; LANES];
    type Floats = [f32; LANES];

    const ROWS: usize = 1;
    const BYTE_OFFSET: i32 = 0;

    #[inline(always)]
    fn room(_bits: u32) -> usize {
        8
    }

    #[inline(always)]
    fn load(line: &Line) -> Self::Codes {
        line.0
    }

    #[inline(always)]
    fn and(codes: Self::Codes, mask: u8) -> Self::Codes {
        codes.map(|code| code & mask)
    }

    #[inline(always)]
    fn or(a: Self::Codes, b: Self::Codes) -> Self::Codes {
        std::array::from_fn(|i| a[i] | b[i])
    }

    #[inline(always)]
    fn shift_right<const BY: u32>(codes: Self::Codes) -> Self::Codes {
        codes.map(|code| code >> BY)
    }

    #[inline(always)]
    fn shift_left<const BY: u32>(codes: Self::Codes) -> Self::Codes {
        codes.map(|code| code << BY)
    }

    #[inline(always)]
    fn no_products() -> Self::Partial {
        [0; LANES]
    }

    #[inline(always)]
    fn add_products(
        partial: Self::Partial,
        codes: Self::Codes,
        x: [i8; 4],
        bits: u32,
    ) -> Self::Partial {
        let mut sums = partial;
        for (sum, codes) in sums.iter_mut().zip(codes.as_chunks::<4>().0) {
            for (code, x) in codes.iter().zip(x) {
                let code = if bits == 8 {
                    i32::from(code.cast_signed())
                } else {
                    i32::from(*code)
                };
                *sum += code * i32::from(x);
            }
        }
        sums
    }

    #[inline(always)]
    fn widen(sums: Self::Sums, partial: Self::Partial, _bits: u32) -> Self::Sums {
        std::array::from_fn(|i| sums[i] + partial[i])
    }

    #[inline(always)]
    fn widen_scaled(sums: Self::Sums, partial: Self::Partial, scale: Self::Scale) -> Self::Sums {
        std::array::from_fn(|i| sums[i] + partial[i] * scale[i])
    }

    #[inline(always)]
    fn load_pairs(pairs: &[i8; 2 * LANES]) -> Self::Pairs {
        *pairs
    }

    #[inline(always)]
    fn scales(pairs: Self::Pairs) -> [Self::Scale; 2] {
        [0, 1].map(|which| std::array::from_fn(|i| i32::from(pairs[2 * i + which])))
    }

    #[inline(always)]
    fn add_pair_products(sums: Self::Sums, pairs: Self::Pairs, b: [i16; 2]) -> Self::Sums {
        let [b0, b1] = b.map(i32::from);
        std::array::from_fn(|i| {
            sums[i] + i32::from(pairs[2 * i]) * b0 + i32::from(pairs[2 * i + 1]) * b1
        })
    }

    #[inline(always)]
    fn splat_sums(value: i32) -> Self::Sums {
        [value; LANES]
    }

    #[inline(always)]
    fn sub_scaled(a: Self::Sums, b: Self::Sums, factor: i32) -> Self::Sums {
        std::array::from_fn(|i| a[i] - b[i] * factor)
    }

    #[inline(always)]
    fn to_floats(sums: Self::Sums) -> Self::Floats {
        sums.map(|sum| sum as f32)
    }

    #[inline(always)]
    fn splat(value: f32) -> Self::Floats {
        [value; LANES]
    }

    #[inline(always)]
    fn load_f32(values: &[f32; LANES]) -> Self::Floats {
        *values
    }

    #[inline(always)]
    fn load_f16(values: &[u16; LANES]) -> Self::Floats {
        values.map(|bits| f16::from_bits(bits).to_f32())
    }

    #[inline(always)]
    fn load_bf16(values: &[u16; LANES]) -> Self::Floats {
        values.map(|bits| f32::from_bits(u32::from(bits) << 16))
    }

    #[inline(always)]
    fn store(floats: Self::Floats, values: &mut [f32; LANES]) {
        *values = floats;
    }

    #[inline(always)]
    fn mul(a: Self::Floats, b: Self::Floats) -> Self::Floats {
        std::array::from_fn(|i| a[i] * b[i])
    }

    #[inline(always)]
    fn mul_add(a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats {
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }

    #[inline(always)]
    fn mul_sub(a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats {
        std::array::from_fn(|i| c[i] - a[i] * b[i])
    }
}
