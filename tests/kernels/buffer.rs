//! Device memory as the emulation has it: ordinary memory, with guards on both sides, and NaN where
//! nothing was written.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::ptr;

use half::{bf16, f16};

/// Alignment of a device allocation, and bytes of the guards around it.
const GUARD: usize = 256;
/// NaN as f32, f16 and bf16, and no valid index.
const POISON: [u8; 2] = [0xff, 0x7f];

/// Types of activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Number {
    F32,
    F16,
    Bf16,
}

impl Number {
    pub const ALL: [Self; 3] = [Self::F32, Self::F16, Self::Bf16];

    /// As in the names of the kernels.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        }
    }

    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    /// Half a unit in the last place, relative: what one rounding may cost.
    pub fn rounding(self) -> f32 {
        match self {
            Self::F32 => f32::EPSILON / 2.0,
            Self::F16 => f16::EPSILON.to_f32() / 2.0,
            Self::Bf16 => bf16::EPSILON.to_f32() / 2.0,
        }
    }

    /// The nearest values of this type.
    pub fn round(self, values: &[f32]) -> Vec<f32> {
        let round = |x: &f32| match self {
            Self::F32 => *x,
            Self::F16 => f16::from_f32(*x).to_f32(),
            Self::Bf16 => bf16::from_f32(*x).to_f32(),
        };
        values.iter().map(round).collect()
    }
}

/// An allocation on the emulated device.
pub struct Buffer {
    pub(super) name: &'static str,
    start: *mut u8,
    bytes: usize,
    /// Bytes of a value.
    pub(super) element: usize,
}

impl Buffer {
    /// `values`, rounded to `number`.
    pub fn numbers(name: &'static str, number: Number, values: &[f32]) -> Self {
        let bytes: Vec<u8> = match number {
            Number::F32 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Number::F16 => (values.iter())
                .flat_map(|x| f16::from_f32(*x).to_le_bytes())
                .collect(),
            Number::Bf16 => (values.iter())
                .flat_map(|x| bf16::from_f32(*x).to_le_bytes())
                .collect(),
        };
        Self::bytes(name, number.bytes(), &bytes)
    }

    /// f32, as weights of norms and biases are.
    pub fn floats(name: &'static str, values: &[f32]) -> Self {
        Self::numbers(name, Number::F32, values)
    }

    /// u32 (or i32) values.
    pub fn indices(name: &'static str, values: &[u32]) -> Self {
        let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        Self::bytes(name, 4, &bytes)
    }

    /// To be written by the kernel: NaN until it is.
    pub fn output(name: &'static str, number: Number, count: usize) -> Self {
        Self::poisoned(name, number.bytes(), count * number.bytes())
    }

    /// Any values of `element` bytes each.
    pub fn bytes(name: &'static str, element: usize, bytes: &[u8]) -> Self {
        let buffer = Self::poisoned(name, element, bytes.len());
        // SAFETY: `start` has room for as many bytes, and nobody else has it yet.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), buffer.start, bytes.len()) };
        buffer
    }

    fn poisoned(name: &'static str, element: usize, bytes: usize) -> Self {
        let layout = Self::layout(bytes);
        // SAFETY: the layout has a size, of two guards at least.
        let whole = unsafe { alloc(layout) };
        if whole.is_null() {
            handle_alloc_error(layout);
        }
        for i in 0..layout.size() {
            // SAFETY: inside of the allocation.
            unsafe { whole.add(i).write(POISON[i % 2]) };
        }
        Self {
            name,
            // SAFETY: the first guard is inside of the allocation.
            start: unsafe { whole.add(GUARD) },
            bytes,
            element,
        }
    }

    fn layout(bytes: usize) -> Layout {
        Layout::from_size_align(bytes + 2 * GUARD, GUARD).expect("a layout of a test's size")
    }

    pub(super) fn start(&self) -> *mut u8 {
        self.start
    }

    pub(super) fn len_bytes(&self) -> usize {
        self.bytes
    }

    /// The bytes, as the latest launch left them.
    pub fn to_bytes(&self) -> Vec<u8> {
        // SAFETY: as many bytes are initialised from `start` on, and no kernel runs: a launch
        // borrows the buffer for as long.
        unsafe { std::slice::from_raw_parts(self.start, self.bytes) }.to_vec()
    }

    /// The values of a buffer of numbers.
    pub fn to_floats(&self, number: Number) -> Vec<f32> {
        assert_eq!(self.element, number.bytes(), "{}", self.name);
        let bytes = self.to_bytes();
        let pairs = || bytes.chunks_exact(2).map(|b| [b[0], b[1]]);
        match number {
            Number::F32 => (bytes.chunks_exact(4))
                .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
                .collect(),
            Number::F16 => pairs().map(|b| f16::from_le_bytes(b).to_f32()).collect(),
            Number::Bf16 => pairs().map(|b| bf16::from_le_bytes(b).to_f32()).collect(),
        }
    }

    /// Has something been written around the buffer?
    pub(super) fn guards_are_whole(&self) -> bool {
        let end = GUARD + self.bytes;
        (0..GUARD).chain(end..end + GUARD).all(|i| {
            // SAFETY: inside of the allocation, which begins a guard before `start`.
            let byte = unsafe { self.start.sub(GUARD).add(i).read() };
            byte == POISON[i % 2]
        })
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: allocated a guard before `start` with the same layout.
        unsafe { dealloc(self.start.sub(GUARD), Self::layout(self.bytes)) };
    }
}
