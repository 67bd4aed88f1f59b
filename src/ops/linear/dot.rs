//! The inner step of the product, `sums += x · w` for the 16 outputs of half a line, in each
//! precision: over any [`Arithmetic`], and portably in bytes. Instructions that only some machines
//! have for it are in `x86`.

use std::marker::PhantomData;

use super::super::simd::{Arithmetic, WIDTH};

/// How a group of inputs is multiplied and summed, for [`WIDTH`] outputs at a time.
pub(crate) trait Dot: Copy {
    /// Weights of a group, one 32-bit word per output.
    type Weights: Copy;
    /// What is summed per output: f32, or i32 of bytes.
    type Sums: Copy;
    /// As [`Arithmetic::MANY_REGISTERS`].
    const MANY_REGISTERS: bool;

    fn zero() -> Self::Sums;
    fn load(words: &[u32; WIDTH]) -> Self::Weights;
    /// `x` is the activation's word of the group.
    fn add(sums: Self::Sums, x: u32, weights: Self::Weights) -> Self::Sums;
    /// The bits of the sums.
    fn store(sums: Self::Sums) -> [u32; WIDTH];
}

/// A group is one f32.
#[derive(Clone, Copy)]
pub(crate) struct Floats<A>(PhantomData<A>);

impl<A: Arithmetic> Dot for Floats<A> {
    type Weights = A::Vector;
    type Sums = A::Vector;

    const MANY_REGISTERS: bool = A::MANY_REGISTERS;

    #[inline(always)]
    fn zero() -> A::Vector {
        A::splat(0.0)
    }

    #[inline(always)]
    fn load(words: &[u32; WIDTH]) -> A::Vector {
        A::load(bytemuck::cast_ref(words))
    }

    #[inline(always)]
    fn add(sums: A::Vector, x: u32, weights: A::Vector) -> A::Vector {
        A::mul_add_vector(A::splat(f32::from_bits(x)), weights, sums)
    }

    #[inline(always)]
    fn store(sums: A::Vector) -> [u32; WIDTH] {
        let mut values = [0f32; WIDTH];
        A::store(sums, &mut values);
        bytemuck::cast(values)
    }
}

/// A group is two bf16, which are multiplied as f32: what a machine without an instruction for it
/// gains is memory.
#[derive(Clone, Copy)]
pub(super) struct WidenedPairs<A>(PhantomData<A>);

impl<A: Arithmetic> Dot for WidenedPairs<A> {
    type Weights = [A::Vector; 2];
    type Sums = A::Vector;

    const MANY_REGISTERS: bool = A::MANY_REGISTERS;

    #[inline(always)]
    fn zero() -> A::Vector {
        A::splat(0.0)
    }

    #[inline(always)]
    fn load(words: &[u32; WIDTH]) -> [A::Vector; 2] {
        A::load_bf16_pairs(words)
    }

    #[inline(always)]
    fn add(sums: A::Vector, x: u32, weights: [A::Vector; 2]) -> A::Vector {
        let low = A::splat(f32::from_bits(x << 16));
        let high = A::splat(f32::from_bits(x & 0xffff_0000));
        A::mul_add_vector(high, weights[1], A::mul_add_vector(low, weights[0], sums))
    }

    #[inline(always)]
    fn store(sums: A::Vector) -> [u32; WIDTH] {
        Floats::<A>::store(sums)
    }
}

/// A group is four bytes, unsigned in the activation and signed in the weight.
#[derive(Clone, Copy)]
pub(super) struct PortableBytes;

impl Dot for PortableBytes {
    type Weights = [[i8; 4]; WIDTH];
    type Sums = [i32; WIDTH];

    const MANY_REGISTERS: bool = false;

    #[inline(always)]
    fn zero() -> [i32; WIDTH] {
        [0; WIDTH]
    }

    #[inline(always)]
    fn load(words: &[u32; WIDTH]) -> [[i8; 4]; WIDTH] {
        words.map(|word| word.to_le_bytes().map(u8::cast_signed))
    }

    #[inline(always)]
    fn add(sums: [i32; WIDTH], x: u32, weights: [[i8; 4]; WIDTH]) -> [i32; WIDTH] {
        let x = x.to_le_bytes().map(i32::from);
        std::array::from_fn(|i| {
            let w = weights[i].map(i32::from);
            sums[i] + (x[0] * w[0] + x[1] * w[1]) + (x[2] * w[2] + x[3] * w[3])
        })
    }

    #[inline(always)]
    fn store(sums: [i32; WIDTH]) -> [u32; WIDTH] {
        sums.map(i32::cast_unsigned)
    }
}
