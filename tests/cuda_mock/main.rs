//! Ferry on a CUDA device that is none: candle and cudarc as they are, and below them a mock driver
//! that runs Ferry's own kernels as the host's emulation does. See docs/cuda-mock.md.
#![cfg(feature = "cuda")]

#[allow(dead_code, reason = "whole models run unwatched")]
#[path = "../kernels/compiler.rs"]
mod compiler;
mod decoders;
mod driver;
mod encoders;
mod mock;
mod ops;
