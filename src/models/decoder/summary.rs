//! What a decoder's files hold, from their headers alone: for `ferry inspect`.

use std::path::Path;

use super::super::error::LoadError;
use super::super::inspect::FileContents;
use super::super::source::Source;
use super::plan::DecoderPlan;
use super::spec::DecoderSpec;

/// A decoder's files; no weight is read.
#[derive(Debug)]
pub struct DecoderSummary {
    /// The decoder that they describe, or why it is none that Ferry runs.
    pub spec: Result<DecoderSpec, LoadError>,
    /// What the files hold.
    pub contents: FileContents,
}

impl DecoderSummary {
    /// Reads the headers of what [`DecoderModel::load`](super::DecoderModel::load) takes.
    ///
    /// # Errors
    /// If a file is missing or damaged. A model that is merely not supported is no error; see
    /// [`DecoderSummary::spec`].
    pub fn read(source: &Path) -> Result<Self, LoadError> {
        let source = Source::open(source)?;
        let spec = DecoderSpec::of(&source, None).and_then(|spec| {
            source.check(DecoderPlan::of(&source, &spec).tensors())?;
            Ok(spec)
        });
        let contents = FileContents::of(&source);
        Ok(Self { spec, contents })
    }
}
