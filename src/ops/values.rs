//! The values of a weight in the layout that a kernel reads: made at load and kept in memory, or
//! part of a file that is mapped, and then shared with whoever maps the same file.

use std::fmt::{self, Debug};
use std::ops::{Deref, Range};
use std::ptr::NonNull;
use std::slice;
use std::sync::Arc;

use bytemuck::Pod;
use memmap2::{Mmap, MmapRaw};

use super::pages::Pages;

/// Where the values of a mapped file begin: at a multiple of this, one cache line.
pub const ALIGNMENT: usize = 64;

/// Some bytes of a mapped file, which stays mapped as long as they live; cheap to clone.
#[derive(Clone)]
pub struct MappedBytes {
    map: Arc<Mmap>,
    range: Range<usize>,
}

impl MappedBytes {
    /// The bytes in `range`, if the file has them.
    pub fn new(map: &Arc<Mmap>, range: Range<usize>) -> Option<Self> {
        map.get(range.clone())?;
        let map = Arc::clone(map);
        Some(Self { map, range })
    }
}

impl Deref for MappedBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map[self.range.clone()]
    }
}

impl Debug for MappedBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} mapped bytes", self.range.len())
    }
}

/// Values that do not change any more; cheap to clone. Reading them costs what it costs of a `Vec`.
pub struct Values<T: Pod> {
    start: NonNull<T>,
    len: usize,
    owner: Owner<T>,
}

/// What keeps the values where they are.
#[derive(Clone)]
#[allow(dead_code, reason = "held for as long as the values live, never read")]
enum Owner<T> {
    Memory(Arc<Vec<T>>),
    Pages(Arc<MmapRaw>),
    File(MappedBytes),
}

impl<T: Pod> Values<T> {
    /// `len` values that `fill` writes; they are zero before.
    pub fn filled(len: usize, fill: impl FnOnce(&mut [T])) -> Self {
        let Some(mut pages) = Pages::zeroed(len) else {
            let mut values = vec![T::zeroed(); len];
            fill(&mut values);
            return values.into();
        };
        let values = pages.as_mut_slice();
        fill(values);
        Self {
            start: NonNull::from(values).cast(),
            len,
            owner: Owner::Pages(pages.owner()),
        }
    }

    /// The bytes of a file as values in place. `None` if they don't begin where a `T` may, or are
    /// not a whole number of them.
    pub fn mapped(bytes: MappedBytes) -> Option<Self> {
        let values: &[T] = bytemuck::try_cast_slice(&bytes).ok()?;
        Some(Self {
            start: NonNull::from(values).cast(),
            len: values.len(),
            owner: Owner::File(bytes),
        })
    }

    /// As they lie in memory.
    pub fn as_bytes(&self) -> &[u8] {
        bytemuck::cast_slice(self)
    }
}

impl<T: Pod> From<Vec<T>> for Values<T> {
    fn from(values: Vec<T>) -> Self {
        let values = Arc::new(values);
        Self {
            start: NonNull::from(values.as_slice()).cast(),
            len: values.len(),
            owner: Owner::Memory(values),
        }
    }
}

impl<T: Pod> Deref for Values<T> {
    type Target = [T];

    #[inline(always)]
    fn deref(&self) -> &[T] {
        // SAFETY: all constructors take pointer and length from a slice of the owner, which lives
        // as long as `self`. No owner moves or changes its values: nobody has a `&mut` to the
        // vector in the `Arc`, a file's map stays where it is, read-only, until it is dropped, and so
        // does a chunk of pages, whose room `Pages` gave out once and is gone.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl<T: Pod> Clone for Values<T> {
    fn clone(&self) -> Self {
        Self {
            start: self.start,
            len: self.len,
            owner: self.owner.clone(),
        }
    }
}

impl<T: Pod> Debug for Values<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = match self.owner {
            Owner::Memory(_) | Owner::Pages(_) => "in memory",
            Owner::File(_) => "mapped",
        };
        write!(f, "{} values {place}", self.len)
    }
}

// SAFETY: `Values` gives out nothing but `&[T]`, as the `Arc`s that it holds would; the pointer is
// into what they own.
unsafe impl<T: Pod + Send + Sync> Send for Values<T> {}
// SAFETY: as above.
unsafe impl<T: Pod + Send + Sync> Sync for Values<T> {}

#[cfg(test)]
mod tests {
    use super::super::testing::map_of as map;
    use super::*;

    #[test]
    fn mapped_values_are_the_bytes_of_the_file_and_outlive_every_other_handle() {
        let numbers: Vec<f32> = (0..100).map(|i| i as f32).collect();
        let map = map(bytemuck::cast_slice(&numbers));
        let bytes = MappedBytes::new(&map, 64..128).unwrap();
        let values = Values::<[f32; 4]>::mapped(bytes).unwrap();
        let copy = values.clone();
        drop((map, values));
        assert_eq!(copy.as_flattened(), &numbers[16..32]);
        assert_eq!(
            copy.as_bytes(),
            bytemuck::cast_slice::<f32, u8>(&numbers[16..32])
        );
    }

    #[test]
    fn bytes_that_are_not_there_or_not_aligned_are_no_values() {
        let map = map(&[0; 64]);
        assert!(MappedBytes::new(&map, 32..65).is_none());
        #[allow(
            clippy::reversed_empty_ranges,
            reason = "what a damaged header may say"
        )]
        let reversed = 33..32;
        assert!(MappedBytes::new(&map, reversed).is_none());
        let at = |range| MappedBytes::new(&map, range).unwrap();
        assert!(Values::<f32>::mapped(at(2..6)).is_none());
        assert!(Values::<f32>::mapped(at(4..10)).is_none());
        assert!(Values::<f32>::mapped(at(4..12)).is_some());
    }

    #[test]
    fn many_values_and_few_are_those_that_were_filled_in() {
        for len in [3, 100_000] {
            let values = Values::<u32>::filled(len, |values| {
                assert!(values.iter().all(|&value| value == 0));
                for (i, value) in values.iter_mut().enumerate() {
                    *value = i as u32;
                }
            });
            let copy = values.clone();
            drop(values);
            assert!(copy.iter().copied().eq(0..len as u32));
        }
    }

    #[test]
    fn values_in_memory_are_those_of_the_vector() {
        let values = Values::from(vec![1u16, 2, 3]);
        assert_eq!(*values.clone(), [1, 2, 3]);
        assert!(Values::from(Vec::<u16>::new()).is_empty());
    }
}
