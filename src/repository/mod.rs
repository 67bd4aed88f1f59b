//! The models on disk and those that are served: find, load, warm, route, unload.
//!
//! Requests look a model up in an immutable map that is swapped as a whole, so looking up takes no
//! lock and a load beside it is never waited for.

mod discover;
mod load;
mod served;
mod store;

pub use discover::{FoundModel, find_models};
pub use load::{LoadError, head_of, load_model, read_gguf_text, read_manifest};
pub use served::{Runner, ServedDecoder, ServedEncoder, ServedModel};
pub use store::{ModelState, Repository, Standing};
