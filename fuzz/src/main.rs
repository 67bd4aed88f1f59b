//! libFuzzer's entry, for the target that `FERRY_FUZZ_TARGET` names.
#![no_main]

use std::sync::OnceLock;

use ferry_fuzz::targets::{TARGETS, Target};

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    static TARGET: OnceLock<&Target> = OnceLock::new();
    (TARGET.get_or_init(chosen).run)(input);
});

fn chosen() -> &'static Target {
    let name = std::env::var("FERRY_FUZZ_TARGET").unwrap_or_default();
    let target = TARGETS.iter().find(|target| target.name == name);
    target.expect("FERRY_FUZZ_TARGET names a target of fuzz/targets/mod.rs")
}
