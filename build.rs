//! Compiles the protos in pure Rust (no `protoc`) and keeps their descriptors for reflection; with the
//! feature `cuda`, also the CUDA kernels.

#[cfg(feature = "cuda")]
#[path = "build/cuda.rs"]
mod cuda;

use std::{env, error::Error, path::PathBuf};

const PROTOS: [&str; 5] = [
    "proto/inference/model_config.proto",
    "proto/inference/grpc_service.proto",
    "proto/ferry/v1/inference.proto",
    "proto/ferry/v1/admin.proto",
    "proto/ferry/v1/jobs.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(PROTOS, ["proto"])?;

    let out_dir = PathBuf::from(env::var("OUT_DIR")?);
    std::fs::write(
        out_dir.join("descriptors.bin"),
        prost::Message::encode_to_vec(&descriptors),
    )?;

    tonic_prost_build::configure()
        // Tensor contents are large; `Bytes` lets them be sliced out of the received frame.
        .bytes(".inference.ModelInferRequest.raw_input_contents")
        .bytes(".inference.ModelInferResponse.raw_output_contents")
        .codec_path("crate::api::codec::InputCheckedCodec")
        .compile_fds(descriptors)?;

    #[cfg(feature = "cuda")]
    cuda::build(&out_dir)?;
    Ok(())
}
