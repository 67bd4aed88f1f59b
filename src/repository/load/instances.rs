//! The instances of a model that answers a row in one forward pass: which device each runs on, and
//! whose weights.
//!
//! On the CPU all share one copy. On a GPU each has its own, with its own stream: tensors belong to
//! the stream that they were made with.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{LoadError, Loading, encoder::run_shape};
use crate::{
    config::manifest::WarmupShape,
    device::Place,
    engine::{Forward, Reload, Supervision},
    models::{EncoderModel, LoadOptions, PreparedWeights},
};

/// Where each instance runs, and how one is made.
pub(super) struct Instances {
    /// Each instance's place.
    pub(super) places: Vec<Place>,
    source: Arc<PathBuf>,
    options: LoadOptions,
}

impl Instances {
    /// As many as the manifest asks for, and at least one for each device, in turn.
    pub(super) fn new(loading: &Loading<'_>, source: PathBuf, options: LoadOptions) -> Self {
        let asked = loading.manifest.resources.instances;
        let count = asked.max(loading.places.len());
        Self {
            places: loading.places.iter().copied().cycle().take(count).collect(),
            source: Arc::new(source),
            options,
        }
    }

    /// Copies of the weights.
    pub(super) fn copies(&self) -> usize {
        match self.places[0] {
            Place::Cpu => 1,
            Place::Cuda(_) => self.places.len(),
        }
    }

    /// The first instance is loaded; loads the others, where they don't share its weights.
    pub(super) fn load_others(&self, first: EncoderModel) -> Result<Vec<Forward>, LoadError> {
        let mut forwards = vec![forward_of(first)];
        for place in &self.places[1..] {
            forwards.push(match place {
                Place::Cpu => Arc::clone(&forwards[0]),
                Place::Cuda(_) => load(*place, &self.source, &self.options)?,
            });
        }
        Ok(forwards)
    }

    /// Runs a small batch on the instances that have weights of their own, but for the first.
    pub(super) fn warm_others(
        &self,
        forwards: &[Forward],
        max_tokens: usize,
    ) -> Result<(), LoadError> {
        for (index, forward) in forwards.iter().enumerate().take(self.copies()).skip(1) {
            let tokens = max_tokens.min(16);
            run_shape(forward, index, WarmupShape { rows: 1, tokens })?;
        }
        Ok(())
    }

    /// What the engine does about an instance that is lost: loads it anew where it was. On the CPU,
    /// where nothing is wrong with the weights, whoever takes the place of one that hangs takes them,
    /// too.
    pub(super) fn supervision(
        &self,
        loading: &Loading<'_>,
        forwards: &[Forward],
    ) -> Supervision<Forward> {
        let (places, options) = (self.places.clone(), self.options.clone());
        let source = Arc::clone(&self.source);
        let shared: Vec<_> = forwards.iter().map(Arc::downgrade).collect();
        let reload: Reload<Forward> = Arc::new(move |instance| {
            if let (Place::Cpu, Some(same)) = (places[instance], shared[instance].upgrade()) {
                return Ok(same);
            }
            load(places[instance], &source, &options).map_err(|error| error.to_string())
        });
        let settings = loading.settings;
        settings
            .alarm
            .supervision(&loading.model.name, settings, reload)
    }
}

fn load(place: Place, source: &Path, options: &LoadOptions) -> Result<Forward, LoadError> {
    let device = place.open()?;
    let off = PreparedWeights::off();
    Ok(forward_of(EncoderModel::load_with(
        source, options, &device, &off,
    )?))
}

fn forward_of(encoder: EncoderModel) -> Forward {
    Arc::new(move |batch| encoder.forward(batch))
}
