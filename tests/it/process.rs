//! The real binary as a process: started, watched, ended.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
};

/// Starts the binary, with more arguments, and waits until it serves; returns its gRPC address and a
/// thread that collects the rest of its log.
pub fn start(models: &str, more: &[&str]) -> (Child, String, std::thread::JoinHandle<String>) {
    start_by(Command::new(env!("CARGO_BIN_EXE_ferry")), models, more)
}

/// As [`start`], where `command` ends in the binary: a shell that sets a limit first, say.
pub fn start_by(
    mut command: Command,
    models: &str,
    more: &[&str],
) -> (Child, String, std::thread::JoinHandle<String>) {
    let mut child = command
        .args(["serve", "--models", models, "--host", "127.0.0.1"])
        .args(["--grpc-port", "0", "--http-port", "0", "--admin-port", "0"])
        .args(more)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut before = Vec::new();
    let serving = lines
        .by_ref()
        .map_while(Result::ok)
        .find(|line| {
            before.push(line.clone());
            line.contains(" serving ")
        })
        .unwrap_or_else(|| panic!("the server never served:\n{}", before.join("\n")));
    let address = serving.split("grpc=").nth(1).unwrap();
    let address = address.split(' ').next().unwrap().to_owned();
    let rest =
        std::thread::spawn(move || lines.map_while(Result::ok).collect::<Vec<_>>().join("\n"));
    (child, address, rest)
}

pub async fn terminate(
    child: Child,
    log: std::thread::JoinHandle<String>,
) -> (Option<i32>, String) {
    let pid = child.id().to_string();
    Command::new("kill").args(["-TERM", &pid]).status().unwrap();
    let waiting = tokio::task::spawn_blocking(move || {
        let mut child = child;
        child.wait().unwrap().code()
    });
    let code = waiting.await.unwrap();
    (code, log.join().unwrap())
}
