//! Compiles `kernels/*.cu` by nvcc, each to one fatbin for all architectures, and writes the table by
//! which the crate embeds them (`ops::kernels`).
//!
//! A kernel is compiled again only when its source, a header it includes, the flags or nvcc changed.
//! Read from the environment: `NVCC`, `CUDA_HOME`, `CUDA_PATH`; `FERRY_CUDA_ARCHS` (such as `90`)
//! for quick builds; `NVCC_CCBIN`, which nvcc itself reads, for another host compiler.

use std::{
    collections::BTreeSet,
    env, fmt,
    fs::{self, File},
    hash::{DefaultHasher, Hash, Hasher},
    io::Write,
    path::{Path, PathBuf},
    process::Command,
    sync::Mutex,
};

/// Turing, Ampere (data centre, workstation), Ada, Hopper; the last also as PTX, for what comes after.
const ARCHITECTURES: &str = "75,80,86,89,90";

/// What every kernel is compiled with. A warning is an error. Line numbers for compute-sanitizer.
const FLAGS: [&str; 10] = [
    "--fatbin",
    "-std=c++17",
    "-O3",
    "-lineinfo",
    // A fifth of the size, which line numbers would otherwise triple
    "-Xfatbin",
    "-compress-all",
    "--Werror=all-warnings",
    "--expt-relaxed-constexpr",
    // Registers, spills, shared memory: kept beside the fatbin, and held to kernels/resources.toml.
    "-Xptxas",
    "-v",
];

/// Why there are no kernels, in words for the one who builds.
pub struct Error(String);

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl std::error::Error for Error {}

/// Compiles all kernels into `out_dir` and tells Cargo how to link candle's.
pub fn build(out_dir: &Path) -> Result<(), Error> {
    println!("cargo:rerun-if-changed=kernels");
    for name in [
        "NVCC",
        "CUDA_HOME",
        "CUDA_PATH",
        "FERRY_CUDA_ARCHS",
        "NVCC_CCBIN",
    ] {
        println!("cargo:rerun-if-env-changed={name}");
    }
    let nvcc = Nvcc::find()?;
    let folder = out_dir.join("kernels");
    fs::create_dir_all(&folder).map_err(|error| io("make", &folder, &error))?;

    let sources = sources(Path::new("kernels"))?;
    let kernels = compile_all(&nvcc, &sources, &folder)?;
    write_table(&kernels, &out_dir.join("kernels.rs"))?;
    link_static_runtime(&nvcc, out_dir)
}

/// The compiler and how it is called.
struct Nvcc {
    path: PathBuf,
    version: String,
    flags: Vec<String>,
}

impl Nvcc {
    fn find() -> Result<Self, Error> {
        let path = candidates().find(|path| path.is_file()).ok_or_else(|| {
            Error(
                "the feature `cuda` needs nvcc, and there is none: not in $NVCC, $CUDA_HOME/bin, \
                 $CUDA_PATH/bin, $PATH, /usr/local/cuda/bin. This gets it, without root or a GPU:\n\n    \
                 eval \"$(scripts/cuda-toolkit.sh)\"\n"
                    .to_owned(),
            )
        })?;
        let output = Command::new(&path)
            .arg("--version")
            .output()
            .map_err(|error| io("run", &path, &error))?;
        let mut flags: Vec<String> = FLAGS.map(str::to_owned).to_vec();
        flags.push("-Ikernels".to_owned());
        flags.extend(code_for(&architectures()?));
        Ok(Self {
            path,
            version: String::from_utf8_lossy(&output.stdout).into_owned(),
            flags,
        })
    }

    /// Compiles one kernel; what nvcc says is the error.
    fn compile(&self, source: &Path, fatbin: &Path) -> Result<(), Error> {
        let output = Command::new(&self.path)
            .args(&self.flags)
            .arg("-o")
            .arg(fatbin)
            .arg(source)
            .output()
            .map_err(|error| io("run", &self.path, &error))?;
        if output.status.success() {
            let report = fatbin.with_extension("ptxas");
            return fs::write(&report, &output.stderr)
                .map_err(|error| io("write", &report, &error));
        }
        Err(Error(format!(
            "{} does not compile ({}):\n{}{}",
            source.display(),
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        )))
    }
}

/// Where nvcc may be, what was named first.
fn candidates() -> impl Iterator<Item = PathBuf> {
    let named = env::var_os("NVCC").map(PathBuf::from);
    let homes = ["CUDA_HOME", "CUDA_PATH"]
        .into_iter()
        .filter_map(env::var_os)
        .map(|home| Path::new(&home).join("bin/nvcc"));
    let path = env::var_os("PATH").unwrap_or_default();
    let on_path: Vec<_> = env::split_paths(&path)
        .map(|folder| folder.join("nvcc"))
        .collect();
    named
        .into_iter()
        .chain(homes)
        .chain(on_path)
        .chain([PathBuf::from("/usr/local/cuda/bin/nvcc")])
}

/// The architectures asked for, as in `75`, ascending.
fn architectures() -> Result<BTreeSet<u32>, Error> {
    let list = env::var("FERRY_CUDA_ARCHS").unwrap_or_else(|_| ARCHITECTURES.to_owned());
    let architectures = list
        .split(',')
        .map(|one| {
            one.trim()
                .parse()
                .ok()
                .filter(|number| (75..=999).contains(number))
        })
        .collect::<Option<BTreeSet<u32>>>();
    architectures.ok_or_else(|| {
        Error(format!(
            "FERRY_CUDA_ARCHS is '{list}'; it should list architectures from 75 on, such as \
             '{ARCHITECTURES}' or '90'"
        ))
    })
}

/// nvcc's flags for machine code of each architecture, and PTX of the newest.
fn code_for(architectures: &BTreeSet<u32>) -> Vec<String> {
    let newest = architectures.last().copied();
    let mut flags = Vec::new();
    for &number in architectures {
        flags.push("-gencode".to_owned());
        flags.push(if Some(number) == newest {
            format!("arch=compute_{number},code=[sm_{number},compute_{number}]")
        } else {
            format!("arch=compute_{number},code=sm_{number}")
        });
    }
    flags
}

/// The kernels of a folder by name; a name is that of its file.
fn sources(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let entries = fs::read_dir(folder).map_err(|error| io("list", folder, &error))?;
    let mut sources: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "cu"))
        .collect();
    sources.sort();
    Ok(sources)
}

/// Compiles what changed, as many at a time as Cargo allows; gives each kernel's name and fatbin.
fn compile_all(
    nvcc: &Nvcc,
    sources: &[PathBuf],
    folder: &Path,
) -> Result<Vec<(String, PathBuf)>, Error> {
    let waiting = Mutex::new(sources.iter());
    let failures = Mutex::new(Vec::new());
    let jobs = env::var("NUM_JOBS")
        .ok()
        .and_then(|jobs| jobs.parse().ok())
        .unwrap_or(1_usize);
    std::thread::scope(|scope| {
        for _ in 0..jobs.clamp(1, sources.len().max(1)) {
            scope.spawn(|| {
                while let Some(source) = next(&waiting) {
                    if let Err(Error(text)) = compile_if_changed(nvcc, source, folder) {
                        failures
                            .lock()
                            .unwrap_or_else(std::sync::PoisonError::into_inner)
                            .push(text);
                    }
                }
            });
        }
    });
    let failures = failures
        .into_inner()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    if failures.is_empty() {
        Ok(sources
            .iter()
            .map(|source| (name(source), fatbin_of(source, folder)))
            .collect())
    } else {
        Err(Error(failures.join("\n")))
    }
}

fn next<'a>(waiting: &Mutex<std::slice::Iter<'a, PathBuf>>) -> Option<&'a PathBuf> {
    waiting
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
        .next()
}

fn name(source: &Path) -> String {
    source
        .file_stem()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

fn fatbin_of(source: &Path, folder: &Path) -> PathBuf {
    folder.join(name(source)).with_extension("fatbin")
}

/// The stamp beside a fatbin names what it was made from; it is written last.
fn compile_if_changed(nvcc: &Nvcc, source: &Path, folder: &Path) -> Result<(), Error> {
    let fatbin = fatbin_of(source, folder);
    let stamp = fatbin.with_extension("stamp");
    let made_from = fingerprint(nvcc, source)?;
    if fatbin.is_file() && fs::read_to_string(&stamp).is_ok_and(|found| found == made_from) {
        return Ok(());
    }
    fs::remove_file(&stamp).ok();
    nvcc.compile(source, &fatbin)?;
    fs::write(&stamp, made_from).map_err(|error| io("write", &stamp, &error))
}

/// Names the compiler, its flags, and the text of the source with all of the repository's it includes.
fn fingerprint(nvcc: &Nvcc, source: &Path) -> Result<String, Error> {
    let mut hasher = DefaultHasher::new();
    (&nvcc.version, &nvcc.flags, env::var_os("NVCC_CCBIN")).hash(&mut hasher);
    let mut seen = BTreeSet::new();
    let mut waiting = vec![source.to_owned()];
    while let Some(path) = waiting.pop() {
        if !seen.insert(path.clone()) {
            continue;
        }
        let text = fs::read_to_string(&path).map_err(|error| io("read", &path, &error))?;
        text.hash(&mut hasher);
        let near = path.parent().unwrap_or(Path::new("."));
        for included in text.lines().filter_map(quoted_include) {
            let places = [near.join(included), Path::new("kernels").join(included)];
            waiting.extend(places.into_iter().find(|place| place.is_file()));
        }
    }
    Ok(format!("{:016x}", hasher.finish()))
}

/// The name in `#include "name"`.
fn quoted_include(line: &str) -> Option<&str> {
    let rest = line
        .trim_start()
        .strip_prefix('#')?
        .trim_start()
        .strip_prefix("include")?;
    rest.trim_start().strip_prefix('"')?.split('"').next()
}

/// Writes `static FATBINS: &[(&str, &[u8])]`. The driver reads headers in place: each is aligned.
fn write_table(kernels: &[(String, PathBuf)], path: &Path) -> Result<(), Error> {
    let write = || -> std::io::Result<()> {
        let mut file = File::create(path)?;
        writeln!(file, "static FATBINS: &[(&str, &[u8])] = &[")?;
        for (name, fatbin) in kernels {
            writeln!(
                file,
                "    ({name:?}, {{ static BYTES: &Aligned<[u8]> = &Aligned(*include_bytes!({:?})); &BYTES.0 }}),",
                fatbin.display().to_string(),
            )?;
        }
        writeln!(file, "];")
    };
    write().map_err(|error| io("write", path, &error))
}

/// candle's kernels for quantized weights ask for `-lcudart`. A folder that has the static library
/// under that name comes first, so that the binary starts where no CUDA is installed.
fn link_static_runtime(nvcc: &Nvcc, out_dir: &Path) -> Result<(), Error> {
    let home = nvcc
        .path
        .canonicalize()
        .map_err(|error| io("find", &nvcc.path, &error))?;
    let home = home
        .ancestors()
        .nth(2)
        .unwrap_or(Path::new("/usr"))
        .to_owned();
    let folders = [
        "lib64",
        "lib",
        "targets/x86_64-linux/lib",
        "targets/sbsa-linux/lib",
    ];
    let library = folders
        .iter()
        .map(|folder| home.join(folder).join("libcudart_static.a"))
        .find(|path| path.is_file())
        .ok_or_else(|| {
            Error(format!(
                "there is an nvcc, {}, but no libcudart_static.a in {}/lib64: install CUDA's \
                 development package, or take the toolkit of scripts/cuda-toolkit.sh",
                nvcc.path.display(),
                home.display(),
            ))
        })?;
    let folder = out_dir.join("cudart");
    fs::create_dir_all(&folder).map_err(|error| io("make", &folder, &error))?;
    let copy = folder.join("libcudart.a");
    fs::copy(&library, &copy).map_err(|error| io("copy", &library, &error))?;
    println!("cargo:rustc-link-search=native={}", folder.display());
    // What the static library needs of the system
    for system in ["dl", "pthread", "rt"] {
        println!("cargo:rustc-link-lib=dylib={system}");
    }
    Ok(())
}

fn io(verb: &str, path: &Path, error: &std::io::Error) -> Error {
    Error(format!("can't {verb} {}: {error}", path.display()))
}
