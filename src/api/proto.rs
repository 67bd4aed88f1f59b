//! The messages and services compiled from `proto/` by `build.rs`.
#![allow(missing_docs, unused_qualifications, clippy::all, clippy::pedantic)]

/// The Open Inference Protocol with Triton's extensions.
pub mod inference {
    tonic::include_proto!("inference");
}

/// Ferry's own services.
pub mod ferry {
    /// Version 1.
    pub mod v1 {
        tonic::include_proto!("ferry.v1");
    }
}

/// The encoded `FileDescriptorSet` of all of the above, for reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
