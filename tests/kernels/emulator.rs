//! Loads a kernel that was compiled for the host and launches it, as `cuLaunchKernel` would, on
//! buffers that it may touch and no others.

use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::fs;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use libloading::{Library, Symbol};

use super::buffer::Buffer;
use super::compiler::{self, Watch};

/// The order in which the threads of a block, and the blocks, get to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// The lowest thread first, until it must wait.
    Forward,
    /// The highest first.
    Reverse,
    /// Any, by this seed.
    Random(u64),
}

impl Order {
    /// Those in which every case of every kernel runs.
    pub const ALL: [Self; 4] = [
        Self::Forward,
        Self::Reverse,
        Self::Random(1),
        Self::Random(2),
    ];
}

/// An argument of a kernel.
#[derive(Clone, Copy)]
#[allow(dead_code, reason = "not every type is an argument of every kernel")]
pub enum Argument<'a> {
    /// A pointer to the buffer's first value.
    Buffer(&'a Buffer),
    /// A pointer to nothing.
    Null,
    I32(i32),
    I64(i64),
    U64(u64),
    F32(f32),
}

/// Grid, block and dynamic shared memory of a launch.
#[derive(Clone, Copy)]
pub struct Launch {
    pub grid: [u32; 3],
    pub threads: u32,
    pub shared_bytes: usize,
}

impl Launch {
    pub fn new(grid: [u32; 3], threads: u32) -> Self {
        Self {
            grid,
            threads,
            shared_bytes: 0,
        }
    }
}

#[repr(C)]
struct Dim3 {
    x: u32,
    y: u32,
    z: u32,
}

/// The kernels of one source.
pub struct Emulator {
    library: Library,
    /// The library has one device.
    device: Mutex<()>,
}

impl Emulator {
    /// Of `kernels/<name>.cu`; `None` where there is no compiler, which is said once.
    pub fn of(name: &str) -> Option<Arc<Self>> {
        static LOADED: LazyLock<Mutex<HashMap<String, Arc<Emulator>>>> =
            LazyLock::new(Mutex::default);
        let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(emulator) = loaded.get(name) {
            return Some(Arc::clone(emulator));
        }
        let emulator = Arc::new(Self::of_source(name, &source(name))?);
        loaded.insert(name.to_owned(), Arc::clone(&emulator));
        Some(emulator)
    }

    /// Of another source, as a file of `kernels/`.
    pub fn of_source(name: &str, source: &str) -> Option<Self> {
        let path = compiler::library(name, source, Watch::Everything)?;
        // SAFETY: the library's initialisers only enter its kernels in a list.
        let library = unsafe { Library::new(path) }.expect("the compiled kernel is loaded");
        Some(Self {
            library,
            device: Mutex::new(()),
        })
    }

    /// [`Self::launch`], of a kernel that must not fail.
    ///
    /// # Panics
    /// If it does.
    pub fn run(&self, kernel: &str, launch: Launch, order: Order, arguments: &[Argument]) {
        if let Err(error) = self.launch(kernel, launch, order, arguments) {
            panic!("{error}");
        }
    }

    /// Runs `kernel` over the whole grid, or says what it did that a device would not forgive.
    pub fn launch(
        &self,
        kernel: &str,
        launch: Launch,
        order: Order,
        arguments: &[Argument],
    ) -> Result<(), String> {
        let _device = self.device.lock().unwrap_or_else(PoisonError::into_inner);
        let mut values: Vec<u64> = Vec::with_capacity(arguments.len());
        let mut buffers = Vec::new();
        for argument in arguments {
            // Little-endian: a smaller value is the first bytes of the word.
            values.push(match *argument {
                Argument::Buffer(buffer) => {
                    buffers.push(buffer);
                    buffer.start() as u64
                }
                Argument::Null => 0,
                Argument::I32(value) => u64::from(value.cast_unsigned()),
                Argument::I64(value) => value.cast_unsigned(),
                Argument::U64(value) => value,
                Argument::F32(value) => u64::from(value.to_bits()),
            });
        }
        let mut pointers: Vec<*mut c_void> =
            (values.iter_mut()).map(|v| (&raw mut *v).cast()).collect();
        let name = CString::new(kernel).expect("a kernel's name");
        let [x, y, z] = launch.grid;
        let block = Dim3 {
            x: launch.threads,
            y: 1,
            z: 1,
        };
        // SAFETY: the signatures are those of kernels/emulation/machine.cpp and watch.cpp. The
        // buffers are borrowed, and the values live, until the launch has ended; what it accesses
        // is checked against the buffers. The error's text is copied before the next launch.
        unsafe {
            let watch: Symbol<unsafe extern "C" fn(*const u8, usize, usize, *const c_char)> =
                self.symbol("ferry_emulation_watch");
            let forget: Symbol<unsafe extern "C" fn()> = self.symbol("ferry_emulation_forget");
            let set_order: Symbol<unsafe extern "C" fn(c_int, u64)> =
                self.symbol("ferry_emulation_order");
            let emulate: Symbol<
                unsafe extern "C" fn(*const c_char, Dim3, Dim3, usize, *mut *mut c_void) -> c_int,
            > = self.symbol("ferry_emulate");
            let error: Symbol<unsafe extern "C" fn() -> *const c_char> =
                self.symbol("ferry_emulation_error");

            forget();
            for buffer in &buffers {
                let name = CString::new(buffer.name).expect("a buffer's name");
                let bytes = buffer.len_bytes();
                watch(buffer.start(), bytes, buffer.element, name.as_ptr());
            }
            match order {
                Order::Forward => set_order(0, 0),
                Order::Reverse => set_order(1, 0),
                Order::Random(seed) => set_order(2, seed),
            }
            let shared = launch.shared_bytes;
            let grid = Dim3 { x, y, z };
            let code = emulate(name.as_ptr(), grid, block, shared, pointers.as_mut_ptr());
            if code != 0 {
                let text = CStr::from_ptr(error()).to_string_lossy().into_owned();
                return Err(text);
            }
        }
        match buffers.iter().find(|buffer| !buffer.guards_are_whole()) {
            Some(buffer) => Err(format!("{kernel} wrote beyond {}", buffer.name)),
            None => Ok(()),
        }
    }

    /// # Safety
    /// `T` must be the type of the symbol.
    unsafe fn symbol<T>(&self, name: &str) -> Symbol<'_, T> {
        // SAFETY: as the caller says.
        unsafe { self.library.get(name) }.expect("a function of the emulation")
    }
}

/// The source of a kernel.
pub fn source(name: &str) -> String {
    let path = compiler::kernels().join(format!("{name}.cu"));
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
