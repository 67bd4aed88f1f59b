//! The real binary as a process: started, watched, ended.

use std::{
    io::{BufRead, BufReader},
    net::SocketAddr,
    process::{Child, Command, Stdio},
    thread::JoinHandle,
};

/// The binary.
pub const FERRY: &str = env!("CARGO_BIN_EXE_ferry");

/// A server that runs as a process of its own.
pub struct Served {
    pub child: Child,
    pub grpc: String,
    pub http: SocketAddr,
    /// Collects the rest of its log.
    pub log: JoinHandle<String>,
}

/// Starts the binary, with more arguments, and waits until it serves; returns its gRPC address and a
/// thread that collects the rest of its log.
pub fn start(models: &str, more: &[&str]) -> (Child, String, JoinHandle<String>) {
    let served = start_by(Command::new(FERRY), models, more);
    (served.child, served.grpc, served.log)
}

/// As [`start`], where `command` ends in the binary: a shell that sets a limit first, say.
pub fn start_by(mut command: Command, models: &str, more: &[&str]) -> Served {
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
    let serving = lines.by_ref().map_while(Result::ok).find(|line| {
        before.push(line.clone());
        line.contains(" serving ")
    });
    let serving =
        serving.unwrap_or_else(|| panic!("the server never served:\n{}", before.join("\n")));
    let value = |name: &str| {
        let value = serving.split(name).nth(1).unwrap();
        value.split(' ').next().unwrap().to_owned()
    };
    Served {
        child,
        grpc: value("grpc="),
        http: value("http=").parse().unwrap(),
        log: std::thread::spawn(move || lines.map_while(Result::ok).collect::<Vec<_>>().join("\n")),
    }
}

/// Asks a server to go down, and waits for its end; returns its exit code and log.
pub async fn terminate(child: Child, log: JoinHandle<String>) -> (Option<i32>, String) {
    let pid = child.id().to_string();
    Command::new("kill").args(["-TERM", &pid]).status().unwrap();
    let waiting = tokio::task::spawn_blocking(move || {
        let mut child = child;
        child.wait().unwrap().code()
    });
    let code = waiting.await.unwrap();
    (code, log.join().unwrap())
}
