//! What an encoder's products lose in bf16 and int8, on real weights and real sentences: the bars that
//! the manifest's `compute` promises.

use candle_core::Device;
use ferry::{
    config::{ModelManifest, Truncation},
    models::{EncoderModel, LoadOptions, PackedBatch, PreparedWeights, RowOutput, prepared},
    ops::Compute,
    repository::{encoder_text, head_of},
    text::{EncodeOptions, RowInput},
};
use tempfile::TempDir;

use super::support::{cosine, root};

/// Least cosine to f32 of any sentence, and of the mean.
const BARS: [(Compute, f64, f64); 2] =
    [(Compute::Bf16, 0.999, 0.9995), (Compute::Int8, 0.99, 0.995)];
/// Least rank correlation of all similarities with those in f32.
const LEAST_SPEARMAN: f64 = 0.995;

struct MiniLm {
    folder: std::path::PathBuf,
    options: LoadOptions,
}

impl MiniLm {
    fn new(compute: Compute) -> Self {
        let folder = root().join("models/minilm");
        let manifest = ModelManifest::read(&folder.join("model.toml")).unwrap();
        let head = head_of(&manifest).unwrap();
        let options = LoadOptions {
            head,
            quantize: None,
            compute,
        };
        Self {
            folder: folder.join("1"),
            options,
        }
    }

    fn load(&self, prepared: &PreparedWeights) -> EncoderModel {
        EncoderModel::load_with(&self.folder, &self.options, &Device::Cpu, prepared).unwrap()
    }

    /// The sentences of the benchmarks, as one batch.
    fn batch(&self, model: &EncoderModel) -> PackedBatch {
        let text = encoder_text(&self.folder, model.spec(), 256, Truncation::Right).unwrap();
        let sentences = std::fs::read_to_string(root().join("benches/sentences.txt")).unwrap();
        let mut batch = PackedBatch::new();
        for line in sentences.lines() {
            let input = RowInput::Text(line.to_owned());
            let row = text.encode(&input, EncodeOptions::default()).unwrap();
            batch.push_row(&row.ids, Some(&row.type_ids));
        }
        batch
    }
}

fn embeddings(model: &EncoderModel, batch: &PackedBatch) -> Vec<Vec<f32>> {
    let outputs = model.forward(batch).unwrap();
    let embedding = |output| match output {
        RowOutput::Embedding(values) => values,
        other => panic!("no embedding but {other:?}"),
    };
    outputs.into_iter().map(embedding).collect()
}

/// Cosines of all pairs.
fn similarities(embeddings: &[Vec<f32>]) -> Vec<f64> {
    let pairs = (0..embeddings.len()).flat_map(|i| (0..i).map(move |j| (i, j)));
    pairs
        .map(|(i, j)| cosine(&embeddings[i], &embeddings[j]))
        .collect()
}

/// Pearson's correlation of the ranks; of equal values, the one that comes first ranks first.
fn spearman(a: &[f64], b: &[f64]) -> f64 {
    let ranks = |values: &[f64]| {
        let mut order: Vec<usize> = (0..values.len()).collect();
        order.sort_by(|&i, &j| values[i].total_cmp(&values[j]));
        let mut ranks = vec![0f64; values.len()];
        for (rank, index) in order.into_iter().enumerate() {
            ranks[index] = rank as f64;
        }
        ranks
    };
    let mean = (a.len() - 1) as f64 / 2.0;
    let (a, b) = (ranks(a), ranks(b));
    let pairs = || a.iter().zip(&b);
    let covariance: f64 = pairs().map(|(x, y)| (x - mean) * (y - mean)).sum();
    let variance: f64 = a.iter().map(|x| (x - mean) * (x - mean)).sum();
    covariance / variance
}

#[test]
fn embeddings_in_bf16_and_int8_stay_near_those_in_f32() {
    let exact = MiniLm::new(Compute::F32);
    let model = exact.load(&PreparedWeights::off());
    let batch = exact.batch(&model);
    let expected = embeddings(&model, &batch);
    for (compute, least, mean) in BARS {
        let model = MiniLm::new(compute).load(&PreparedWeights::off());
        let found = embeddings(&model, &batch);
        let pairs = found.iter().zip(&expected);
        let cosines: Vec<f64> = pairs.map(|(a, b)| cosine(a, b)).collect();
        let worst = cosines.iter().copied().fold(1.0, f64::min);
        let average = cosines.iter().sum::<f64>() / cosines.len() as f64;
        let order = spearman(&similarities(&found), &similarities(&expected));
        println!("{compute:?}: cosine {average:.5} (least {worst:.5}), spearman {order:.5}");
        assert!(worst >= least, "{compute:?}: {worst}");
        assert!(average >= mean, "{compute:?}: {average}");
        assert!(order >= LEAST_SPEARMAN, "{compute:?}: {order}");
    }
}

#[test]
fn prepared_weights_give_the_same_bits_in_every_precision() {
    let folder = TempDir::new().unwrap();
    for compute in [Compute::F32, Compute::Bf16, Compute::Int8] {
        let minilm = MiniLm::new(compute);
        let open = || {
            let key = prepared::PreparedKey {
                sources: prepared::SourceFiles::of(&minilm.folder).unwrap(),
                settings: compute.name().to_owned(),
            };
            PreparedWeights::open(folder.path().join(compute.name()), key)
        };
        let made = open();
        let model = minilm.load(&made);
        let batch = minilm.batch(&model);
        let expected = embeddings(&model, &batch);
        made.write(true).unwrap();

        let found = open();
        assert_eq!(found.unusable(), None);
        assert_eq!(
            embeddings(&minilm.load(&found), &batch),
            expected,
            "{compute:?}"
        );
    }
}
