//! The canary: inputs whose outputs were recorded run through the loaded version, and a version
//! that answers otherwise takes no requests.
//!
//! The record is `canary.json` in the version's folder, written by `ferry warm --record`. It holds
//! inputs, outputs and the tolerance that was set then; the manifest may set another.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{CanaryUse, LoadError, Loading, plan::beginning};
use crate::{
    config::{
        Task,
        manifest::{CanaryConfig, CanaryInput},
    },
    models::RowOutput,
};

const FILE: &str = "canary.json";
const FORMAT: u32 = 1;
const MAX_FILE_BYTES: u64 = 64 << 20;
/// Tokens to generate where neither manifest nor record says.
pub(super) const NEW_TOKENS: u32 = 8;

/// What is recorded where the manifest names no inputs.
const SENTENCES: [&str; 4] = [
    "The ferry leaves when it is full, or when its time has come.",
    "A small harbour on the north coast, quiet in winter.",
    "Please cancel my ticket for tomorrow and send the money back.",
    "Ein Satz in einer anderen Sprache, mit 42 Zahlen und Zeichen: §!",
];
const QUERY: &str = "When does the ferry leave?";

/// The record.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    format: u32,
    task: Task,
    recorded_by: String,
    tolerance: Tolerance,
    entries: Vec<Entry>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    input: CanaryInput,
    output: CanaryOutput,
}

/// How far outputs may be from what was recorded.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Tolerance {
    min_cosine: f64,
    max_difference: f64,
    min_equal_tokens: f64,
}

/// What the model answered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum CanaryOutput {
    /// A vector.
    Embedding(Vec<f32>),
    /// Raw scores of the row.
    Logits(Vec<f32>),
    /// Raw scores of its tokens.
    TokenLogits(Vec<f32>),
    /// A text.
    Generated {
        /// What the model thought of the prompt's tokens, from the second on.
        prompt_logprobs: Vec<f32>,
        /// The most likely tokens after it, one by one.
        tokens: Vec<u32>,
    },
}

impl From<RowOutput> for CanaryOutput {
    fn from(output: RowOutput) -> Self {
        match output {
            RowOutput::Embedding(values) => Self::Embedding(values),
            RowOutput::Logits(values) => Self::Logits(values),
            RowOutput::TokenLogits { values, .. } => Self::TokenLogits(values),
        }
    }
}

/// What was done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CanaryDone {
    /// Nothing is recorded.
    Nothing,
    /// So many outputs are as recorded.
    Checked(usize),
    /// So many outputs were recorded.
    Recorded(usize),
}

/// Checks or records the outputs that `run` gives for inputs.
pub(super) fn check_or_record(
    loading: &Loading<'_>,
    run: &mut dyn FnMut(&CanaryInput) -> Result<CanaryOutput, String>,
) -> Result<CanaryDone, LoadError> {
    let path = loading.dir.join(FILE);
    match loading.settings.canary {
        CanaryUse::Record => record(loading, path, run),
        CanaryUse::Check => check(loading, path, run),
    }
}

fn check(
    loading: &Loading<'_>,
    path: PathBuf,
    run: &mut dyn FnMut(&CanaryInput) -> Result<CanaryOutput, String>,
) -> Result<CanaryDone, LoadError> {
    let config = &loading.manifest.warmup.canary;
    let Some(record) = read(&path)? else {
        if config.required {
            return Err(LoadError::NoCanary { path });
        }
        return Ok(CanaryDone::Nothing);
    };
    let task = loading.manifest.task;
    if record.task != task {
        let reason = format!("it was recorded for task '{}', not '{task}'", record.task);
        return Err(LoadError::CanaryFile { path, reason });
    }
    let tolerance = record.tolerance.or(config);
    for (index, entry) in record.entries.iter().enumerate() {
        let deviation = match run(&entry.input) {
            Ok(output) => tolerance.compare(&output, &entry.output),
            Err(error) => Err(error),
        };
        deviation.map_err(|figures| LoadError::Canary {
            path: path.clone(),
            index,
            input: beginning(&entry.input.text),
            figures,
        })?;
    }
    Ok(CanaryDone::Checked(record.entries.len()))
}

fn record(
    loading: &Loading<'_>,
    path: PathBuf,
    run: &mut dyn FnMut(&CanaryInput) -> Result<CanaryOutput, String>,
) -> Result<CanaryDone, LoadError> {
    let config = &loading.manifest.warmup.canary;
    let task = loading.manifest.task;
    let mut entries = Vec::new();
    for (index, input) in inputs(config, task).into_iter().enumerate() {
        let output = run(&input).map_err(|figures| LoadError::Canary {
            path: path.clone(),
            index,
            input: beginning(&input.text),
            figures,
        })?;
        entries.push(Entry { input, output });
    }
    let recorded = entries.len();
    let record = Record {
        format: FORMAT,
        task,
        recorded_by: format!("ferry {}", env!("CARGO_PKG_VERSION")),
        tolerance: Tolerance::default().or(config),
        entries,
    };
    write(&path, &record).map_err(|error| LoadError::CanaryFile {
        path,
        reason: error.to_string(),
    })?;
    Ok(CanaryDone::Recorded(recorded))
}

fn inputs(config: &CanaryConfig, task: Task) -> Vec<CanaryInput> {
    if !config.inputs.is_empty() {
        return config.inputs.clone();
    }
    let input = |text: &str| CanaryInput {
        text: text.to_owned(),
        query: (task == Task::Rerank).then(|| QUERY.to_owned()),
        max_tokens: None,
    };
    SENTENCES.into_iter().map(input).collect()
}

fn read(path: &Path) -> Result<Option<Record>, LoadError> {
    let wrong = |reason: String| LoadError::CanaryFile {
        path: path.to_owned(),
        reason,
    };
    match fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(wrong(error.to_string())),
        Ok(file) if file.len() > MAX_FILE_BYTES => {
            return Err(wrong(format!("more than {MAX_FILE_BYTES} bytes")));
        }
        Ok(_) => {}
    }
    let bytes = fs::read(path).map_err(|error| wrong(error.to_string()))?;
    let record: Record =
        serde_json::from_slice(&bytes).map_err(|error| wrong(error.to_string()))?;
    if record.format != FORMAT {
        let reason = format!("format {}; this build reads {FORMAT}", record.format);
        return Err(wrong(reason));
    }
    Ok(Some(record))
}

/// Whole or not at all: a server may be about to read it.
fn write(path: &Path, record: &Record) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let folder = path.parent().unwrap_or(Path::new("."));
    let file = tempfile::Builder::new()
        .prefix("canary-")
        .permissions(fs::Permissions::from_mode(0o644))
        .tempfile_in(folder)?;
    serde_json::to_writer_pretty(file.as_file(), record)?;
    file.persist(path)?;
    Ok(())
}

impl Default for Tolerance {
    /// Room for other instructions summing in another order, none for other weights.
    fn default() -> Self {
        Self {
            min_cosine: 0.999,
            max_difference: 0.05,
            min_equal_tokens: 0.5,
        }
    }
}

impl Tolerance {
    /// With what the manifest sets in place of it.
    fn or(self, config: &CanaryConfig) -> Self {
        Self {
            min_cosine: config.min_cosine.unwrap_or(self.min_cosine),
            max_difference: config.max_difference.unwrap_or(self.max_difference),
            min_equal_tokens: config.min_equal_tokens.unwrap_or(self.min_equal_tokens),
        }
    }

    /// Whether an output is as recorded; else the figures.
    fn compare(&self, found: &CanaryOutput, recorded: &CanaryOutput) -> Result<(), String> {
        match (found, recorded) {
            (CanaryOutput::Embedding(found), CanaryOutput::Embedding(recorded)) => {
                self.compare_vectors(found, recorded)
            }
            (CanaryOutput::Logits(found), CanaryOutput::Logits(recorded)) => {
                self.compare_numbers("logit", found, recorded)
            }
            (CanaryOutput::TokenLogits(found), CanaryOutput::TokenLogits(recorded)) => {
                self.compare_numbers("logit of a token", found, recorded)
            }
            (
                CanaryOutput::Generated {
                    prompt_logprobs: found,
                    tokens,
                },
                CanaryOutput::Generated {
                    prompt_logprobs: recorded,
                    tokens: recorded_tokens,
                },
            ) => {
                self.compare_numbers("log-probability of the prompt", found, recorded)?;
                self.compare_tokens(tokens, recorded_tokens)
            }
            _ => Err("the record has an output of another kind".to_owned()),
        }
    }

    fn compare_vectors(&self, found: &[f32], recorded: &[f32]) -> Result<(), String> {
        check_lengths("values", found.len(), recorded.len())?;
        let cosine = cosine(found, recorded);
        let least = self.min_cosine;
        // Not the other way round, so that a NaN fails.
        if cosine >= least {
            return Ok(());
        }
        Err(format!(
            "the embedding's cosine with the recorded one is {cosine:.6}; at least {least} needed"
        ))
    }

    fn compare_numbers(&self, what: &str, found: &[f32], recorded: &[f32]) -> Result<(), String> {
        check_lengths("values", found.len(), recorded.len())?;
        let most = self.max_difference;
        let mut largest = 0.0;
        for (found, recorded) in found.iter().zip(recorded) {
            let difference = f64::from((found - recorded).abs());
            // A NaN is no less than anything.
            if difference.is_nan() || difference > largest {
                largest = difference;
            }
        }
        if largest <= most {
            return Ok(());
        }
        Err(format!(
            "a {what} differs from the recorded one by {largest:.4}; at most {most} allowed"
        ))
    }

    fn compare_tokens(&self, found: &[u32], recorded: &[u32]) -> Result<(), String> {
        let pairs = found.iter().zip(recorded);
        let equal = pairs
            .take_while(|(found, recorded)| found == recorded)
            .count();
        let least = (self.min_equal_tokens * recorded.len() as f64).ceil() as usize;
        if equal >= least {
            return Ok(());
        }
        let of = recorded.len();
        Err(format!(
            "the text begins with {equal} of the {of} recorded tokens; at least {least} needed"
        ))
    }
}

fn check_lengths(what: &str, found: usize, recorded: usize) -> Result<(), String> {
    if found == recorded {
        return Ok(());
    }
    Err(format!("{found} {what}; {recorded} were recorded"))
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        let products = a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y));
        products.sum()
    };
    dot(a, b) / (dot(a, a).sqrt() * dot(b, b).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vector_that_points_elsewhere_or_is_not_a_number_deviates() {
        let tolerance = Tolerance::default();
        let embedding = |values: [f32; 2]| CanaryOutput::Embedding(values.to_vec());
        let recorded = embedding([1.0, 0.0]);
        assert_eq!(
            tolerance.compare(&embedding([2.0, 0.001]), &recorded),
            Ok(())
        );
        let error = tolerance.compare(&embedding([1.0, 1.0]), &recorded);
        assert!(error.unwrap_err().contains("0.707107"));
        assert!(
            tolerance
                .compare(&embedding([f32::NAN, 0.0]), &recorded)
                .is_err()
        );
        assert!(
            tolerance
                .compare(&embedding([0.0, 0.0]), &recorded)
                .is_err()
        );
        let short = CanaryOutput::Embedding(vec![1.0]);
        assert!(tolerance.compare(&short, &recorded).is_err());
    }

    #[test]
    fn logits_deviate_by_their_largest_difference() {
        let tolerance = Tolerance::default();
        let logits = |values: [f32; 3]| CanaryOutput::Logits(values.to_vec());
        let recorded = logits([0.5, -2.0, 7.0]);
        assert_eq!(
            tolerance.compare(&logits([0.5, -2.04, 7.0]), &recorded),
            Ok(())
        );
        let error = tolerance.compare(&logits([0.4, -2.2, 7.0]), &recorded);
        assert!(error.unwrap_err().contains("0.2000"));
        for bad in [f32::NAN, f32::INFINITY] {
            assert!(
                tolerance
                    .compare(&logits([bad, -2.0, 7.0]), &recorded)
                    .is_err()
            );
        }
        let other = CanaryOutput::Embedding(vec![0.5, -2.0, 7.0]);
        assert!(tolerance.compare(&other, &recorded).is_err());
    }

    #[test]
    fn a_generated_text_must_begin_as_recorded() {
        let tolerance = Tolerance::default();
        let text = |tokens: &[u32]| CanaryOutput::Generated {
            prompt_logprobs: vec![-1.0],
            tokens: tokens.to_vec(),
        };
        let recorded = text(&[1, 2, 3, 4]);
        assert_eq!(tolerance.compare(&text(&[1, 2, 9, 9]), &recorded), Ok(()));
        let error = tolerance.compare(&text(&[1, 9, 3, 4]), &recorded);
        assert!(error.unwrap_err().contains("1 of the 4"));
    }
}
