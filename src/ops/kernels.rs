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

#[cfg(test)]
mod tests {
    use super::*;

    /// The first word of a fatbin, in the order of its bytes.
    const MAGIC: [u8; 4] = 0xba55_ed50_u32.to_le_bytes();

    #[test]
    fn every_kernel_file_of_the_repository_is_embedded_as_an_aligned_fatbin() {
        let mut files: Vec<String> =
            std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/kernels"))
                .expect("the kernels' folder")
                .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
                .filter_map(|file| Some(file.strip_suffix(".cu")?.to_owned()))
                .collect();
        files.sort();
        assert_eq!(names().collect::<Vec<_>>(), files);
        for name in names() {
            let bytes = fatbin(name).expect("a name of the table");
            assert!(bytes.starts_with(&MAGIC), "{name}");
            assert_eq!(bytes.as_ptr().addr() % 64, 0, "{name}");
        }
        assert_eq!(fatbin("no such kernel"), None);
    }
}
