//! Protocol in, protocol out: the Open Inference Protocol, Ferry's typed service, health,
//! reflection and the HTTP side. No decisions here: decode, call, encode.

mod account;
pub mod codec;
mod context;
mod gate;
mod generation;
pub mod grpc;
pub mod http;
pub mod jobs;
pub mod json;
pub mod listener;
pub mod proto;
mod request_log;
pub mod status;
pub mod trace;

pub use account::{Answered, answer_call};
pub use generation::{AccountedGeneration, start_generation};
