//! The integration tests, in one binary: one module a capability, against the real server over a
//! real socket, and golden outputs of other implementations.

#![allow(
    // A table of cases is long and flat.
    clippy::too_many_lines,
    // Numbers of a test fit their types.
    clippy::unnecessary_wraps
)]

mod admin;
mod architecture;
mod batching_properties;
mod bench;
mod cli;
mod compare;
mod confidence;
mod connections;
mod counting;
mod dashboard;
mod deadlines;
mod decoders;
mod device;
mod drain;
mod drift;
mod echo;
mod engine;
mod engine_generation;
mod errors;
mod explain;
mod fetch;
mod generate;
mod golden;
mod gradients;
mod hostile_requests;
mod jobs;
#[cfg(feature = "cuda")]
mod kernel_resources;
mod llama_cpp;
mod machine;
mod malformed;
mod observed;
mod open_inference;
mod openai;
mod precision;
// Some of it is for tests/faults alone.
#[allow(dead_code)]
mod process;
mod quantize;
mod repository;
mod response_cache;
mod response_cache_rows;
mod restricted;
mod security;
mod support;
mod traces;
mod traces_encrypted;
mod typed;
mod vendor;
mod versions;
mod warm;
