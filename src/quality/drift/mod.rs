//! Drift: whether what a model is asked and says has become other than it was.
//!
//! **Pure**: no clock and no I/O. A [`Profile`] counts rows in histograms, in bounded memory; a
//! [`Watch`] compares each window's with the baseline's and keeps a state for each signal.
//!
//! | signal | what is counted | of |
//! | --- | --- | --- |
//! | output | the best class; a score in twentieths; labels of tokens; lengths of what is generated | all but embeddings |
//! | confidence | the best class's probability in twentieths | classify, tokens, generate |
//! | length | tokens of a row, two steps an octave | all |
//! | unknown | share of tokens that the vocabulary lacks | encoders |
//! | embedding | mean and spread of the vectors | embed |
//! | language | languages of texts, of a sample of the rows | all |
//!
//! Of single rows, [`Limits`] tell which are far from a baseline.

mod alarm;
mod anomaly;
mod language;
mod measures;
mod profile;
mod watch;

#[cfg(test)]
mod tests;

pub use alarm::{Alarm, State};
pub use anomaly::{Anomalies, Anomaly, Limits};
pub use language::{OTHER, language_of};
pub use measures::{centroid_shift, stability_index};
pub use profile::{Moments, Outputs, Profile, Row};
pub use watch::{Reading, Signal, Watch, Windowed};
