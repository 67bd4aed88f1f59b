//! Threads that hand over to each other, in every order that shuttle finds: some thousand random
//! schedules and some of its PCT scheduler, which looks for bugs of few context switches. A deadlock is
//! a failure, too; shuttle prints the schedule that leads to what it finds, to be run again.
//!
//! `engine` compiles Ferry's own files over shuttle's atomics; what stands on crates that shuttle
//! doesn't know (crossbeam's `select!`, `ArcSwap`) is here as its protocol alone, over shuttle's
//! channels and locks. `FERRY_SCHEDULES=100000` tries as many.

mod engine;
mod leaving;

/// What Ferry's files import.
mod batching {
    pub use ferry::batching::Priority;
}

/// Runs `test` under many schedules.
fn explore(test: fn()) {
    let count = std::env::var("FERRY_SCHEDULES").ok();
    let count = count.map_or(2000, |count| count.parse().unwrap());
    shuttle::check_random(test, count);
    shuttle::check_pct(test, count / 2, 3);
}
