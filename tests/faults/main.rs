//! Faults, one module a theme: what goes wrong, what the caller is told, what is counted, and what
//! is left when it is over. `docs/faults.md` lists every case; `table` holds it to the tests.

#![allow(
    // A table of cases is long and flat.
    clippy::too_many_lines
)]
// Shared with the integration tests; each binary uses a part of it.
#[path = "../it/counting.rs"]
#[allow(dead_code)]
mod counting;
#[path = "../it/echo.rs"]
#[allow(dead_code)]
mod echo;
#[path = "../it/process.rs"]
#[allow(dead_code)]
mod process;
#[path = "../it/support.rs"]
#[allow(dead_code)]
mod support;

mod cancelled;
mod deadlines;
mod disk;
mod hung;
mod hung_server;
mod killed;
mod loading;
mod memory;
mod poison;
mod readers;
mod requests;
mod table;
