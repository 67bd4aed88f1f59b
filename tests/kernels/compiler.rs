//! Compiles a kernel's source for the host, once for each content of its sources.

use std::collections::hash_map::DefaultHasher;
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

const FLAGS: [&str; 11] = [
    "-std=c++17",
    "-g1",
    "-fPIC",
    "-fvisibility=hidden",
    // Kernels read their numbers in vectors, through pointers to another type.
    "-fno-strict-aliasing",
    // As written, on hosts that have fused multiply-adds too.
    "-ffp-contract=off",
    "-DFERRY_EMULATION",
    "-Wall",
    "-Wextra",
    "-Wno-unknown-pragmas",
    "-Werror",
];

/// Does the emulation see each access to memory?
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub enum Watch {
    /// Every access is checked for its bounds and for races; some thirty times slower.
    Everything,
    /// For large models through the emulated device.
    #[allow(dead_code, reason = "for those who run whole models")]
    Nothing,
}

/// The folder of the kernels.
pub fn kernels() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels")
}

/// A library of the kernel `name` with this source, which may include what lies in `kernels/`.
/// `None`, and a line that says so, where there is no compiler.
///
/// # Panics
/// If the source does not compile.
pub fn library(name: &str, source: &str, watch: Watch) -> Option<PathBuf> {
    let Some(compiler) = compiler() else {
        eprintln!("SKIPPED: no C++ compiler (c++, g++, clang++) to compile kernel {name} with");
        return None;
    };
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("kernels");
    fs::create_dir_all(&folder).expect("a folder for compiled kernels");
    let mut key = DefaultHasher::new();
    (source, watch, compiler, FLAGS).hash(&mut key);
    for file in headers() {
        fs::read(file).expect("a readable source").hash(&mut key);
    }
    let stem = format!("{name}-{:016x}", key.finish());
    let library = folder.join(format!("{stem}.so"));
    if library.exists() {
        return Some(library);
    }
    // Nobody else writes here; the library appears whole under its name.
    let place = tempfile::tempdir_in(&folder).expect("a folder to compile in");
    let place = place.path();
    let copy = place.join(format!("{name}.cu"));
    fs::write(&copy, source).expect("the source is written");
    let mut command = Command::new(compiler);
    command.args(FLAGS).arg("-I").arg(kernels());
    match watch {
        Watch::Everything => command.args(["-O1", "-fsanitize=thread"]),
        Watch::Nothing => command.arg("-O2"),
    };
    command.args(["-x", "c++", "-c"]).arg(copy);
    run(command.arg("-o").arg(place.join("kernel.o")));
    // Linked without the sanitizer: its functions are those of watch.cpp.
    let mut command = Command::new(compiler);
    command.args(["-shared", "-Wl,-Bsymbolic", "-Wl,--no-undefined"]);
    command
        .arg(place.join("kernel.o"))
        .args(machine(compiler, &folder));
    run(command.args(["-ldl", "-o"]).arg(place.join("kernel.so")));
    fs::rename(place.join("kernel.so"), &library).expect("the library is put in place");
    Some(library)
}

/// The emulated device itself, compiled once for all kernels.
fn machine(compiler: &str, folder: &Path) -> [PathBuf; 2] {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let mut key = DefaultHasher::new();
    (compiler, FLAGS).hash(&mut key);
    for file in headers() {
        fs::read(file).expect("a readable source").hash(&mut key);
    }
    let key = key.finish();
    ["machine", "watch"].map(|part| {
        let object = folder.join(format!("{part}-{key:016x}.o"));
        if !object.exists() {
            let place = tempfile::tempdir_in(folder).expect("a folder to compile in");
            let whole = place.path().join("part.o");
            let mut command = Command::new(compiler);
            command.args(FLAGS).args(["-O2", "-c"]);
            command.arg(kernels().join("emulation").join(format!("{part}.cpp")));
            run(command.arg("-o").arg(&whole));
            fs::rename(whole, &object).expect("the object is put in place");
        }
        object
    })
}

fn compiler() -> Option<&'static str> {
    ["c++", "g++", "clang++"].into_iter().find(|compiler| {
        let version = Command::new(compiler).arg("--version").output();
        version.is_ok_and(|output| output.status.success())
    })
}

/// All that a kernel may include.
fn headers() -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = [kernels(), kernels().join("emulation")]
        .iter()
        .flat_map(|folder| fs::read_dir(folder).expect("the folder of the kernels"))
        .map(|entry| entry.expect("an entry of the folder").path())
        .filter(|path| path.is_file() && path.extension().is_some_and(|e| e != "cu" && e != "md"))
        .collect();
    files.sort();
    files
}

fn run(command: &mut Command) {
    let output = command.output().expect("the compiler runs");
    assert!(
        output.status.success(),
        "{command:?}:\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
