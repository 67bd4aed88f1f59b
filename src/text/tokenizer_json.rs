//! `tokenizer.json`, a stranger's file: the library that reads it panics on some that are damaged, which is
//! an error like any other here.

use std::panic::{AssertUnwindSafe, catch_unwind};

use tokenizers::Tokenizer;

/// The tokenizer of a `tokenizer.json`.
///
/// # Errors
/// What is wrong with it, in the library's words where it has any.
pub(super) fn read_tokenizer(json: &[u8]) -> Result<Tokenizer, String> {
    let read = AssertUnwindSafe(|| Tokenizer::from_bytes(json).map_err(|error| error.to_string()));
    catch_unwind(read).unwrap_or_else(|_| Err("it is damaged: reading it fails midway".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_makes_the_library_panic_is_damaged() {
        let path = "tests/fixtures/decoders/llama/tokenizer.json";
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
        let sound = std::fs::read_to_string(path).unwrap();
        assert!(read_tokenizer(sound.as_bytes()).is_ok());
        // What the fuzzer found: a control character in a text of the decoder.
        let decoder = sound.find("\"decoder\"").unwrap();
        let kind = decoder + sound[decoder..].find("\"type\"").unwrap() + 2;
        let damaged = format!("{}\0{}", &sound[..kind], &sound[kind..]);
        let reason = read_tokenizer(damaged.as_bytes()).unwrap_err();
        assert!(!reason.is_empty());
    }
}
