//! Ferry's fuzz targets, for libFuzzer: see `targets/mod.rs` and docs/fuzzing.md.

#[path = "../targets/mod.rs"]
pub mod targets;

use targets::{TARGETS, Target};

/// The target of this name.
pub fn find(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}
