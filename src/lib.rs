//! Ferry, a batching inference server: requests board, the ferry leaves when it is full or when its
//! time has come.
//!
//! The way of a request: [`api`] decodes it, [`admission`] checks it and has [`text`] tokenize it,
//! [`batching`] or [`generation`] puts it in line, [`engine`] runs it in a batch on [`models`], and
//! the answer goes back through the handle it came with. [`repository`] knows the models, [`quality`] what an
//! answer is worth, [`telemetry`] what happened. ARCHITECTURE.md has the whole picture.

pub mod admission;
pub mod api;
pub mod batching;
pub mod cache;
pub mod cli;
pub mod config;
pub mod device;
pub mod engine;
pub mod error;
pub mod generation;
pub mod jobs;
pub mod models;
pub mod ops;
pub mod quality;
pub mod repository;
pub mod server;
pub mod telemetry;
pub mod text;
