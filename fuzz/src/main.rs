//! One binary a target, all from this file: the binary's name is the target's.
#![no_main]

use std::sync::OnceLock;

use ferry_fuzz::{find, targets::Target};

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    static TARGET: OnceLock<&Target> = OnceLock::new();
    let target = TARGET.get_or_init(|| find(env!("CARGO_BIN_NAME")).expect("a target"));
    (target.run)(input);
});
