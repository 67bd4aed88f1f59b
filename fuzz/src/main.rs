//! libFuzzer's entry, for the target that `FERRY_FUZZ_TARGET` names. Before anything else it writes the
//! target's seeds into the folder `FERRY_FUZZ_SEEDS`, where libFuzzer then finds them.
#![no_main]

use std::{fs, path::Path, sync::OnceLock};

use ferry_fuzz::targets::{TARGETS, Target};

static TARGET: OnceLock<&Target> = OnceLock::new();

libfuzzer_sys::fuzz_target!(
    init: {
        spare_the_caught();
        if let Ok(folder) = std::env::var("FERRY_FUZZ_SEEDS") {
            write_seeds(Path::new(&folder)).expect("a folder that can be written to");
        }
    },
    |input: &[u8]| {
        (target().run)(input);
    }
);

fn target() -> &'static Target {
    TARGET.get_or_init(|| {
        let name = std::env::var("FERRY_FUZZ_TARGET").unwrap_or_default();
        let target = TARGETS.iter().find(|target| target.name == name);
        target.unwrap_or_else(|| {
            let names: Vec<_> = TARGETS.iter().map(|target| target.name).collect();
            panic!("FERRY_FUZZ_TARGET is '{name}'; there are {}", names.join(" "))
        })
    })
}

/// libFuzzer's own hook ends the process at any panic. Those of the library that reads tokenizers are
/// known, and caught by Ferry; one that is not caught ends the process all the same.
fn spare_the_caught() {
    let ends = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let file = panic.location().map_or("", |location| location.file());
        if !file.contains("/tokenizers-") && !file.contains("/spm_precompiled-") {
            ends(panic);
        }
    }));
}

fn write_seeds(folder: &Path) -> std::io::Result<()> {
    fs::create_dir_all(folder)?;
    for (at, seed) in (target().seeds)().iter().enumerate() {
        fs::write(folder.join(format!("seed-{at:02}")), seed)?;
    }
    Ok(())
}
