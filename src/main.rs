//! The `ferry` binary: see [`ferry::cli`].

use std::process::ExitCode;

/// Keeps freed pages for the next step's activations; the system's allocator gives large ones back
/// to the kernel and pays for page faults at every op.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    ferry::cli::main()
}
