//! The compiled CUDA kernels, as `build/cuda.rs` embeds them: one fatbin for each `kernels/*.cu`, with
//! machine code of several architectures and PTX for later ones. `cuModuleLoadData` takes one as it is.

/// The driver reads a fatbin's headers in place.
#[repr(C, align(64))]
struct Aligned<B: ?Sized>(B);

include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

/// The fatbin of a kernel file, by its name without `.cu`.
pub fn fatbin(name: &str) -> Option<&'static [u8]> {
    let at = FATBINS.binary_search_by_key(&name, |(name, _)| name).ok()?;
    Some(FATBINS[at].1)
}

/// Which kernel files are embedded, in alphabetical order.
pub fn names() -> impl Iterator<Item = &'static str> {
    FATBINS.iter().map(|(name, _)| *name)
}
