//! Memory for the values of weights, on huge pages where the system gives them to who asks.
//!
//! A product reads a weight from front to back, faster than a core finds 4 KiB pages: on pages of
//! 2 MiB, products of 36 rows ran 8 % faster, those of 100 rows 3 %. Weights of a few hundred KiB would not fill such
//! a page, so those that a thread makes lie one after the other in chunks, each kept as long as one
//! of its weights. Mapped files need nothing of the kind: the page cache keeps them in large pages.

use std::cell::RefCell;
use std::marker::PhantomData;
use std::slice;
use std::sync::{Arc, Weak};

use bytemuck::Pod;
use memmap2::{MmapOptions, MmapRaw};

use super::values::ALIGNMENT;

/// Bytes of a huge page.
const PAGE: usize = 2 << 20;
/// Bytes of a chunk, of which only those take memory that are written to.
const CHUNK: usize = 16 * PAGE;
/// Values of fewer bytes than this are nothing that a page matters for.
const LEAST: usize = 64 << 10;

thread_local! {
    /// The chunk of this thread that has room, and where its room begins.
    static OPEN: RefCell<(Weak<MmapRaw>, usize)> = RefCell::default();
}

/// Zeroed values that nobody else has, to be written before they are shared.
pub(super) struct Pages<T: Pod> {
    chunk: Arc<MmapRaw>,
    /// In bytes.
    start: usize,
    /// In values.
    len: usize,
    values: PhantomData<T>,
}

impl<T: Pod> Pages<T> {
    /// `None` for few values, or if the system has no such memory.
    pub fn zeroed(len: usize) -> Option<Self> {
        let bytes = len.checked_mul(size_of::<T>())?;
        if bytes < LEAST || align_of::<T>() > ALIGNMENT {
            return None;
        }
        OPEN.with_borrow_mut(|(open, free)| {
            let room = open
                .upgrade()
                .filter(|chunk| chunk.len().saturating_sub(*free) >= bytes);
            let chunk = if let Some(chunk) = room {
                chunk
            } else {
                let size = bytes.max(CHUNK).next_multiple_of(PAGE);
                // Room for the first value to begin at a huge page, wherever the map does.
                let map = MmapOptions::new()
                    .len(size + PAGE)
                    .no_reserve_swap()
                    .map_anon();
                let chunk = Arc::new(MmapRaw::from(map.ok()?));
                // Advice that the kernel may not know; then the pages are small.
                #[cfg(target_os = "linux")]
                let _ = chunk.advise(memmap2::Advice::HugePage);
                *free = chunk.as_ptr().align_offset(PAGE);
                *open = Arc::downgrade(&chunk);
                chunk
            };
            let start = *free;
            if start.checked_add(bytes)? > chunk.len() {
                return None;
            }
            *free = (start + bytes).next_multiple_of(ALIGNMENT);
            Some(Self {
                chunk,
                start,
                len,
                values: PhantomData,
            })
        })
    }

    /// What keeps the values where they are.
    pub fn owner(self) -> Arc<MmapRaw> {
        self.chunk
    }

    pub fn as_mut_slice(&mut self) -> &mut [T] {
        // SAFETY: `start` is in the chunk, `bytes` before its end, and a multiple of `ALIGNMENT` from
        // the beginning of a page, as a `T` may lie. Room of a chunk is given out once, and `self`
        // is borrowed, so nobody else reads or writes these bytes. They are zero, or what was
        // written here before: any bytes are values of a `Pod`.
        unsafe {
            let start = self.chunk.as_mut_ptr().add(self.start);
            slice::from_raw_parts_mut(start.cast(), self.len)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_lie_side_by_side_and_none_in_anothers_room() {
        let mut all: Vec<Pages<u32>> = [20_000, 100_000, 17_001, 9_000_000, 50_000]
            .into_iter()
            .map(|len| Pages::zeroed(len).expect("memory"))
            .collect();
        for (i, pages) in all.iter_mut().enumerate() {
            let values = pages.as_mut_slice();
            assert!(values.iter().all(|&value| value == 0));
            assert_eq!(values.as_ptr().addr() % ALIGNMENT, 0);
            values.fill(i as u32 + 1);
        }
        for (i, pages) in all.iter_mut().enumerate() {
            assert!(pages.as_mut_slice().iter().all(|&v| v == i as u32 + 1));
        }
        assert!(Arc::ptr_eq(&all[0].chunk, &all[1].chunk));
        assert!(!Arc::ptr_eq(&all[0].chunk, &all[3].chunk));
    }

    #[test]
    fn a_chunk_ends_with_its_last_values() {
        let first = Pages::<u32>::zeroed(20_000).expect("memory");
        let chunk = Arc::downgrade(&first.chunk);
        let second = Pages::<u32>::zeroed(20_000).expect("memory");
        drop(first);
        assert!(chunk.upgrade().is_some());
        drop(second);
        assert!(chunk.upgrade().is_none());
    }

    #[test]
    fn few_values_take_no_chunk() {
        assert!(Pages::<u32>::zeroed(16).is_none());
        assert!(Pages::<u64>::zeroed(usize::MAX).is_none());
    }
}
