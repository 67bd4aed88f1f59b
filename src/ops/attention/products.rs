//! In which precision attention multiplies: f32, or pairs of bf16 where the machine has an instruction
//! for them.

use std::marker::PhantomData;

use super::super::linear::dot::{Dot, Floats};
use super::super::simd::{Arithmetic, WIDTH};
use super::super::vector_math::exp;

/// The operands of both products of attention, as 32-bit words, and its exponential.
pub(super) trait Products: Copy {
    type Dot: Dot;
    /// Values that share a word.
    const PER_WORD: usize;

    /// [`WIDTH`] words of two values.
    fn pack(low: &[f32; WIDTH], high: &[f32; WIDTH]) -> [u32; WIDTH];
    /// `e^x` for `x ≤ 0`, as exact as a weight is kept.
    fn exp<A: Arithmetic>(x: A::Vector) -> A::Vector;
}

/// A word is one f32.
#[derive(Clone, Copy)]
pub(super) struct Singles<A>(PhantomData<A>);

impl<A: Arithmetic> Products for Singles<A> {
    type Dot = Floats<A>;

    const PER_WORD: usize = 1;

    #[inline(always)]
    fn pack(low: &[f32; WIDTH], _: &[f32; WIDTH]) -> [u32; WIDTH] {
        bytemuck::cast(*low)
    }

    #[inline(always)]
    fn exp<B: Arithmetic>(x: B::Vector) -> B::Vector {
        exp::<B>(x)
    }
}
