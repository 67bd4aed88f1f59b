//! Builds the mock driver and the emulated kernels, and puts them where cudarc looks first.

use std::error::Error;
use std::ffi::{CStr, CString, c_char};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use super::compiler::{self, Watch};
use candle_core::Device;
use ferry::device::Place;
use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

/// What a test gives back.
pub type Outcome = Result<(), Box<dyn Error>>;

/// The mock, for one test at a time: the device is the process's.
pub struct Mock {
    driver: &'static Library,
    /// Allocations that were there before: of a test whose context was broken, in which nothing can be
    /// freed.
    lost: usize,
    _turn: MutexGuard<'static, ()>,
}

/// Runs `test` on a device of its own; afterwards everything that it allocated must be freed, and
/// the mock must have had nothing to complain of.
pub fn on_device(test: impl FnOnce(&Device, &Mock) -> Outcome) {
    let Some(mock) = Mock::new() else { return };
    let device = Place::Cuda(0).open().expect("the mock's device");
    let outcome = test(&device, &mock);
    drop(device);
    let faults = mock.faults();
    mock.reset();
    if let Err(error) = outcome {
        panic!("{error}\n{faults}");
    }
    assert_eq!(faults, "", "the mock complained");
    assert_eq!(mock.live_allocations(), 0, "device memory was not freed");
}

impl Mock {
    /// `None` where there is no C++ compiler to build it with.
    pub fn new() -> Option<Self> {
        static TURN: Mutex<()> = Mutex::new(());
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let driver = LOADED.as_ref()?;
        let mut mock = Self {
            driver,
            lost: 0,
            _turn: turn,
        };
        mock.reset();
        mock.faults();
        mock.lost = mock.live_allocations();
        Some(mock)
    }

    /// Launches of all kernels so far.
    pub fn launches_of_all(&self) -> usize {
        self.launches(std::ptr::null())
    }

    /// Launches of one kernel so far.
    pub fn launches_of(&self, kernel: &str) -> usize {
        let name = CString::new(kernel).expect("a kernel's name");
        self.launches(name.as_ptr())
    }

    fn launches(&self, name: *const c_char) -> usize {
        self.call::<unsafe extern "C" fn(*const c_char) -> usize, _>(
            b"ferry_mock_launches\0",
            |launches| {
                // SAFETY: the mock's own signature; null stands for all, else a name that outlives
                // the call.
                unsafe { launches(name) }
            },
        )
    }

    /// How often the host waited for the device so far.
    pub fn waits(&self) -> usize {
        self.count(b"ferry_mock_waits\0")
    }

    /// Allocations of device memory in this turn that are not freed.
    pub fn live_allocations(&self) -> usize {
        self.count(b"ferry_mock_live_allocations\0") - self.lost
    }

    /// What was done wrong since the last call, a line each.
    pub fn faults(&self) -> String {
        self.call::<unsafe extern "C" fn() -> *const c_char, _>(
            b"ferry_mock_take_faults\0",
            |take| {
                // SAFETY: the mock's own signature; the text stays until the next call.
                unsafe { CStr::from_ptr(take()) }
                    .to_string_lossy()
                    .into_owned()
            },
        )
    }

    /// Makes the `count`th allocation from now on fail.
    pub fn fail_allocation(&self, count: usize) {
        self.call::<unsafe extern "C" fn(usize), _>(b"ferry_mock_fail_allocation\0", |fail| {
            // SAFETY: the mock's own signature.
            unsafe { fail(count) }
        });
    }

    /// Forgets an error that the context kept.
    pub fn reset(&self) {
        self.call::<unsafe extern "C" fn(), _>(b"ferry_mock_reset\0", |reset| {
            // SAFETY: the mock's own signature.
            unsafe { reset() }
        });
    }

    fn count(&self, name: &[u8]) -> usize {
        self.call::<unsafe extern "C" fn() -> usize, _>(name, |count| {
            // SAFETY: the mock's own signature.
            unsafe { count() }
        })
    }

    fn call<F: Copy, T>(&self, name: &[u8], call: impl FnOnce(F) -> T) -> T {
        // SAFETY: `F` is the signature in kernels/mock/device.h.
        let function = unsafe { self.driver.get::<F>(name) }.expect("a function of the mock");
        call(*function)
    }
}

/// The mock's libraries, loaded by path: from then on, whoever opens `libcuda.so` by its name gets
/// the one that is loaded.
static LOADED: LazyLock<Option<Library>> = LazyLock::new(|| {
    let folder = build()?;
    let mut driver = None;
    for name in ["libcublas.so", "libcurand.so", "libcuda.so"] {
        // SAFETY: the mock's initializers only make tables.
        let library = unsafe { Library::open(Some(folder.join(name)), RTLD_NOW | RTLD_GLOBAL) };
        driver = Some(library.expect("the mock that was just built"));
        if name != "libcuda.so" {
            std::mem::forget(driver.take());
        }
    }
    driver
});

/// Builds what is older than its sources; gives the folder that `LD_LIBRARY_PATH` takes.
pub fn build() -> Option<PathBuf> {
    let compiler = ["c++", "g++", "clang++"]
        .into_iter()
        .find(|name| Command::new(name).arg("--version").output().is_ok());
    let Some(compiler) = compiler else {
        eprintln!("SKIPPED: no C++ compiler (c++, g++, clang++) to build the mock driver with");
        return None;
    };
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let kernels = root.join("kernels");
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cuda-mock");
    fs::create_dir_all(folder.join("kernels")).expect("a folder for the mock");

    let mock = folder.join("libcuda.so");
    let sources = files(&kernels.join("mock"));
    if older(&mock, &sources) {
        let mut command = shared(compiler, &mock);
        command.args(sources.iter().filter(|source| is(source, "cpp")));
        run(command.args(["-O2", "-Wl,-soname,libcuda.so", "-ldl"]));
    }
    // The others have their functions in the driver's library.
    for name in ["libcublas.so", "libcurand.so"] {
        let library = folder.join(name);
        if older(&library, std::slice::from_ref(&mock)) {
            let mut command = shared(compiler, &library);
            command.arg(format!("-Wl,-soname,{name},--no-as-needed,-rpath,$ORIGIN"));
            run(command.arg("-L").arg(&folder).arg("-lcuda"));
        }
    }

    // Kernels that are no more would be found, too.
    for old in files(&folder.join("kernels")) {
        let source = kernels.join(old.file_stem()?).with_extension("cu");
        if !source.exists() {
            fs::remove_file(old).ok();
        }
    }
    for kernel in files(&kernels).iter().filter(|file| is(file, "cu")) {
        let name = kernel.file_stem()?.to_string_lossy();
        let source = fs::read_to_string(kernel).expect("a kernel's source");
        let compiled = compiler::library(&name, &source, Watch::Nothing)?;
        let place = folder.join("kernels").join(format!("{name}.so"));
        // A library is named by its content: where the link leads says whether it is the newest.
        if fs::read_link(&place).ok().as_ref() != Some(&compiled) {
            fs::remove_file(&place).ok();
            symlink(&compiled, &place).expect("a link to the compiled kernel");
        }
    }
    Some(folder)
}

fn shared(compiler: &str, library: &Path) -> Command {
    let mut command = Command::new(compiler);
    command
        .args(["-std=c++17", "-fPIC", "-shared", "-o"])
        .arg(library);
    command
}

fn run(command: &mut Command) {
    let output = command.output().expect("the compiler that was just there");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}\n{said}");
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("a folder of the repository");
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let mut files: Vec<PathBuf> = paths.filter(|path| path.is_file()).collect();
    files.sort();
    files
}

fn is(path: &Path, extension: &str) -> bool {
    path.extension().is_some_and(|found| found == extension)
}

fn older(made: &Path, sources: &[PathBuf]) -> bool {
    let modified = |path: &Path| -> Option<SystemTime> { fs::metadata(path).ok()?.modified().ok() };
    let made = modified(made);
    sources.iter().any(|source| made < modified(source))
}
