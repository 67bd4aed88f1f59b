//! Files of prepared weights. The checksum of the header is made right first, or nothing behind it
//! would be reached; a model that loads is then the same, whatever the file says.

use std::path::Path;

use candle_core::Device;
use ferry::{
    models::{
        EncoderModel, Head, LoadOptions, PackedBatch, PreparedWeights,
        prepared::{PreparedKey, SourceFiles},
    },
    ops::Compute,
};
use tempfile::TempDir;
use twox_hash::XxHash3_64;

use super::fixtures::{fixture, scratch};

const MODEL: &str = "tiny-bert-classify";
/// What stands before the header's JSON.
const PREFIX: usize = 32;

fn load(folder: &Path) -> (EncoderModel, std::sync::Arc<PreparedWeights>) {
    let source = fixture(MODEL);
    let key = PreparedKey {
        sources: SourceFiles::of(&source).expect("a folder"),
        settings: "as they are".to_owned(),
    };
    let prepared = PreparedWeights::open(folder.join("weights"), key);
    let options = LoadOptions {
        head: Head::SequenceClass,
        quantize: None,
        compute: Compute::F32,
    };
    let model = EncoderModel::load_with(&source, &options, &Device::Cpu, &prepared);
    (model.expect("the model's own files are sound"), prepared)
}

pub fn run(input: &[u8]) {
    let mut file = input.to_vec();
    mend(&mut file);
    let folder = scratch();
    std::fs::write(folder.path().join("weights"), &file).expect("a file");
    let (model, _) = load(folder.path());
    let mut batch = PackedBatch::new();
    batch.push_row(&[2, 5, 3], None);
    let _ = model.forward(&batch).expect("a forward pass");
}

/// Makes the header's checksum and the file's length right.
fn mend(file: &mut [u8]) {
    let length = file.len() as u64;
    if file.len() < PREFIX {
        return;
    }
    let json = u32::from_le_bytes(std::array::from_fn(|i| file[12 + i])) as usize;
    if let Some(json) = file[PREFIX..].get(..json) {
        let digest = XxHash3_64::oneshot(json);
        file[16..24].copy_from_slice(&digest.to_le_bytes());
    }
    file[24..32].copy_from_slice(&length.to_le_bytes());
}

pub fn header_len(input: &[u8]) -> usize {
    let json = input.get(12..16).and_then(|bytes| bytes.first_chunk());
    let json = json.map_or(0, |&bytes| u32::from_le_bytes(bytes) as usize);
    (PREFIX + json).min(input.len())
}

fn written() -> TempDir {
    let folder = scratch();
    let (_, prepared) = load(folder.path());
    prepared.write(true).expect("room in memory");
    folder
}

pub fn seeds() -> Vec<Vec<u8>> {
    vec![std::fs::read(written().path().join("weights")).expect("it was written")]
}
