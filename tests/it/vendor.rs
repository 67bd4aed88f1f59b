//! The copy of candle-core in `vendor/` is the published crate but for one word.

use std::{collections::BTreeMap, fs, path::Path};

use sha2::{Digest, Sha256};

use super::support::root;

/// Sums of all files below a folder, by path from it; `Cargo.toml` with the published word.
fn sums(folder: &Path, base: &Path, found: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sums(&path, base, found);
            continue;
        }
        let mut bytes = fs::read(&path).unwrap();
        let name = path.strip_prefix(base).unwrap().display().to_string();
        if name == "Cargo.toml" {
            let text = String::from_utf8(bytes).unwrap();
            assert_eq!(text.matches("\"dynamic-loading\"").count(), 1);
            bytes = text
                .replace("\"dynamic-loading\"", "\"dynamic-linking\"")
                .into_bytes();
        }
        let sum = Sha256::digest(&bytes);
        found.insert(name, format!("{sum:x}"));
    }
}

#[test]
fn the_copy_of_candle_core_is_the_published_crate_but_for_the_word_that_makes_cuda_optional() {
    let vendor = root().join("vendor");
    let published: BTreeMap<String, String> = fs::read_to_string(vendor.join("candle-core.sha256"))
        .unwrap()
        .lines()
        .map(|line| line.split_once("  ./").unwrap())
        .map(|(sum, name)| (name.to_owned(), sum.to_owned()))
        .collect();
    let base = vendor.join("candle-core");
    let mut here = BTreeMap::new();
    sums(&base, &base, &mut here);
    assert!(published.len() > 50);
    assert_eq!(here, published);
}
