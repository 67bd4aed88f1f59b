//! An embedding model without a server around it: what serving is held against.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use crate::{
    cli::Failure,
    config::Task,
    models::{EncoderModel, PackedBatch},
    repository::{encoder_text, find_models, load_encoder, read_manifest},
    text::{EncodeOptions, EncodedRow, RowInput},
};

/// A model in process.
pub struct Alone {
    model: EncoderModel,
    encode: Box<dyn Fn(String) -> Result<EncodedRow, Failure>>,
    rows: Vec<EncodedRow>,
    next: usize,
}

/// What it did.
#[derive(Debug, Clone, Copy)]
pub struct InProcess {
    /// Rows a second.
    pub rows_per_second: f64,
    /// Tokens a second.
    pub tokens_per_second: f64,
}

impl Alone {
    /// Loads the newest version of a model.
    ///
    /// # Errors
    /// When it isn't there, can't be loaded or does not embed.
    pub fn load(models: &Path, name: &str) -> Result<Self, Failure> {
        let found = find_models(models)?;
        let model = found.iter().find(|model| model.name == name);
        let (model, version) = model
            .and_then(|model| Some((model, *model.versions.last()?)))
            .ok_or_else(|| format!("model '{name}' is not in {}", models.display()))?;
        let dir = model.version_dir(version);
        let manifest = read_manifest(model, &dir)?;
        if manifest.task != Task::Embed {
            return Err(format!("'{}' does '{}', not 'embed'", model.name, manifest.task).into());
        }
        let encoder = load_encoder(&dir, &manifest)?;
        let max_tokens = match manifest.input.max_tokens {
            0 => encoder.spec().max_tokens(),
            limit => limit,
        };
        let text = encoder_text(&dir, encoder.spec(), max_tokens, manifest.input.truncation)?;
        let encode = move |line| {
            let encoded = text.encode(&RowInput::Text(line), EncodeOptions::default());
            encoded.map_err(Into::into)
        };
        Ok(Self {
            model: encoder,
            encode: Box::new(encode),
            rows: Vec::new(),
            next: 0,
        })
    }

    /// Takes these texts from now on, tokenized beforehand.
    ///
    /// # Errors
    /// When one is not taken by the model.
    pub fn take_texts(&mut self, texts: Vec<String>) -> Result<(), Failure> {
        self.rows = texts
            .into_iter()
            .map(&self.encode)
            .collect::<Result<_, _>>()?;
        Ok(())
    }

    /// Runs batches of so many rows for a time.
    ///
    /// # Errors
    /// When the model fails.
    pub fn run(&mut self, rows: usize, time: Duration) -> Result<InProcess, Failure> {
        let (mut batches, mut tokens) = (0_u64, 0);
        let begin = Instant::now();
        while begin.elapsed() < time {
            let mut batch = PackedBatch::with_capacity(rows, rows * 64);
            for _ in 0..rows {
                let row = &self.rows[self.next % self.rows.len()];
                batch.push_row(&row.ids, Some(&row.type_ids));
                self.next += 1;
            }
            self.model.forward(&batch)?;
            tokens += batch.tokens().len();
            batches += 1;
        }
        let seconds = begin.elapsed().as_secs_f64();
        Ok(InProcess {
            rows_per_second: (batches * rows as u64) as f64 / seconds,
            tokens_per_second: tokens as f64 / seconds,
        })
    }
}
