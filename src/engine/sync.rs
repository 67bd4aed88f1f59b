//! What the two worlds share without a lock. `tests/interleavings` compiles the files that use it
//! over shuttle's atomics in place of these, and tries them in every order it can find.

pub(in crate::engine) use std::sync::atomic;
