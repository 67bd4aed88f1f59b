//! The models on disk and those that are served: find, load, warm, route, swap, unload.
//!
//! Requests look a version up in an immutable table that is swapped as a whole, so looking up takes no
//! lock and a load beside it is never waited for.

mod alarm;
mod discover;
mod drift;
mod folder;
mod lease;
mod leaving;
mod load;
mod loading;
mod memory;
mod mirror;
mod rollout;
mod route;
mod routing;
mod served;
mod state_file;
mod status;
mod store;
mod table;
mod verdict;

pub use alarm::Alarm;
pub use discover::{FoundModel, find_models};
pub use drift::{DriftWatch, SeenRow};
pub use folder::follow_folder;
pub use load::{
    Calibrated, CalibrationRecord, CanaryDone, CanaryUse, LoadError, LoadSettings, LoadStage,
    LoadTimes, PreparedPlace, PreparedUse, Stage, Upkeep, digest_weights, encoder_text, head_of,
    infer_manifest, load_encoder, load_encoder_on, load_model, load_version, read_gguf_text,
    read_manifest,
};
pub use memory::NoMemory;
pub use mirror::{Mirror, MirrorCounts, Trial};
pub use rollout::run_rollouts;
pub use route::{Route, RouteChange, Share};
pub use routing::Swap;
pub use served::{Runner, ServedDecoder, ServedEncoder, ServedModel};
pub use status::{ModelStatus, TrialStatus, VersionStatus};
pub use store::Repository;
pub use table::{Decision, VersionState};
pub use verdict::{BrokenRule, Evidence, Seen, Verdict, judge};
