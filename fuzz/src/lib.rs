//! Ferry's fuzz targets, for libFuzzer: see `targets/mod.rs` and docs/fuzzing.md.

#[path = "../targets/mod.rs"]
pub mod targets;
