//! Files that lie: 100 mutations each of two GGUF files and two safetensors checkpoints. Loading gives
//! an error or a model, never a panic, never a hang, and never more memory than a small multiple of
//! the file. A test binary of its own, as it counts every allocation.
//!
//! The mutations are the same on every run. `FERRY_HOSTILE_SEED=7 cargo test --test hostile_files`
//! tries others.

use std::alloc::{GlobalAlloc, Layout, System};
use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use candle_core::{Device, quantized::GgmlDType};
use ferry::{
    config::Truncation,
    models::{
        DecoderBatch, DecoderModel, DecoderOptions, DecoderRow, EncoderModel, LoadOptions,
        ModelSummary, PackedBatch,
        quantize::{QuantizeOptions, quantize_model},
    },
    ops::{CacheType, Compute},
    repository::{encoder_text, head_of, infer_manifest, read_gguf_text},
};

const MUTATIONS: usize = 100;
/// What the tokenizer, the thread pool's buffers and the like may take whatever the file is.
const FIXED_BYTES: usize = 16 << 20;
/// A weight is read, laid out anew, and, if it was in 16 bits, twice as long.
const FILE_MULTIPLE: usize = 8;
/// A tiny model loads in a blink; a loop that a lie drives does not end.
const PATIENCE: Duration = Duration::from_secs(60);
/// The name of the threads that load.
const LOADING: &str = "loading";

/// Counts the bytes that are allocated, and the most that were at a time.
struct Counting;

static ALLOCATED: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator as it is; counting touches atomics only.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = ALLOCATED.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(now, Ordering::Relaxed);
        // SAFETY: the caller's promise about `layout`, passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        ALLOCATED.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: `at` came from `alloc` above with this layout, so from `System`.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// `SplitMix64`.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }
}

/// Damages a file whose header has `header` bytes; says how.
fn mutate(file: &mut Vec<u8>, header: usize, random: &mut Random) -> String {
    const LIES: [u64; 12] = [
        0,
        1,
        31,
        255,
        65_537,
        1 << 24,
        1 << 31,
        u32::MAX as u64,
        1 << 40,
        1 << 62,
        i64::MIN as u64,
        u64::MAX,
    ];
    let lie = LIES[random.below(LIES.len())];
    let at = random.below(header.saturating_sub(8));
    match random.below(8) {
        0 => {
            let mut flipped = String::new();
            for _ in 0..=random.below(4) {
                let (byte, bit) = (random.below(header), random.below(8));
                file[byte] ^= 1 << bit;
                let _ = write!(flipped, " {byte}.{bit}");
            }
            format!("bits of the header flipped:{flipped}")
        }
        1 => {
            let byte = random.below(file.len());
            file[byte] ^= 1 << random.below(8);
            format!("a bit of byte {byte} flipped")
        }
        2 => {
            let len = random.below(file.len());
            file.truncate(len);
            format!("cut to {len}")
        }
        3 => {
            file[at..at + 8].copy_from_slice(&lie.to_le_bytes());
            format!("{lie} as eight bytes at {at}")
        }
        4 => {
            file[at..at + 4].copy_from_slice(&(lie as u32).to_le_bytes());
            format!("{} as four bytes at {at}", lie as u32)
        }
        5 => lie_about_a_number(file, header, lie, random),
        6 => copy_a_piece(file, header, random),
        _ => {
            let zeroed = random.below(64).min(header - at);
            file[at..at + zeroed].fill(0);
            format!("{zeroed} zeros at {at}")
        }
    }
}

/// Replaces a run of digits (shapes and offsets of safetensors are text); elsewhere one of the counts
/// at the head of a GGUF file.
fn lie_about_a_number(file: &mut [u8], header: usize, lie: u64, random: &mut Random) -> String {
    let start = random.below(header);
    let digits = |byte: &u8| byte.is_ascii_digit();
    if file.starts_with(b"GGUF") {
        let at = [8, 16][random.below(2)];
        file[at..at + 8].copy_from_slice(&lie.to_le_bytes());
        return format!("{lie} as the count at {at}");
    }
    let Some(first) = file[start..header].iter().position(digits) else {
        return format!("nothing, as there is no number behind {start}");
    };
    let at = start + first;
    let len = file[at..header]
        .iter()
        .take_while(|byte| digits(byte))
        .count();
    for (place, byte) in file[at..at + len].iter_mut().enumerate() {
        *byte = b'0' + (lie.wrapping_add(place as u64 * 7) % 10) as u8;
    }
    format!("another number of {len} digits at {at}")
}

/// Copies some of the header over another place: names that come twice, offsets of other tensors.
fn copy_a_piece(file: &mut [u8], header: usize, random: &mut Random) -> String {
    let len = 1 + random.below(64).min(header / 4);
    let (from, to) = (random.below(header - len), random.below(header - len));
    file.copy_within(from..from + len, to);
    format!("{len} bytes of {from} at {to} again")
}

/// One of the files that are damaged.
struct Subject {
    name: &'static str,
    /// A folder with the whole of a model.
    folder: PathBuf,
    /// The file in it.
    file: &'static str,
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name)
}

fn subjects(scratch: &Path) -> Vec<Subject> {
    let quantized = |name: &'static str, input: &str| {
        let folder = scratch.join(name);
        std::fs::create_dir(&folder).unwrap();
        let options = QuantizeOptions {
            dtype: GgmlDType::Q8_0,
            keep: Vec::new(),
            importance: None,
        };
        quantize_model(
            &fixture(input),
            &folder.join("model.gguf"),
            &options,
            |_, _| {},
        )
        .unwrap();
        Subject {
            name,
            folder,
            file: "model.gguf",
        }
    };
    let copied = |name: &'static str, input: &str| {
        let folder = scratch.join(name);
        std::fs::create_dir(&folder).unwrap();
        for entry in std::fs::read_dir(fixture(input)).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), folder.join(entry.file_name())).unwrap();
        }
        Subject {
            name,
            folder,
            file: "model.safetensors",
        }
    };
    vec![
        quantized("encoder-gguf", "tiny-bert-classify"),
        quantized("decoder-gguf", "decoders/llama"),
        copied("encoder-safetensors", "tiny-bert-classify"),
        copied("decoder-safetensors", "decoders/llama"),
    ]
}

/// Does with a folder what serving it would: says whether it loaded, or why not.
fn serve(folder: &Path) -> Result<(), String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let manifest = infer_manifest(folder).map_err(|error| text(&error))?;
    let manifest = manifest.ok_or("nothing says what it is")?;
    let gguf = folder.join("model.gguf");
    let source = if gguf.is_file() {
        gguf.as_path()
    } else {
        folder
    };
    let _ = ModelSummary::read(source);
    if let Ok(head) = head_of(&manifest) {
        let options = LoadOptions {
            head,
            quantize: None,
            compute: Compute::F32,
        };
        let model =
            EncoderModel::load(source, &options, &Device::Cpu).map_err(|error| text(&error))?;
        let max_tokens = model.spec().max_tokens();
        let encoder = encoder_text(folder, model.spec(), max_tokens, Truncation::Right);
        encoder.map_err(|error| text(&error))?;
        let mut batch = PackedBatch::new();
        batch.push_row(&[0], None);
        model.forward(&batch).map_err(|error| text(&error))?;
        return Ok(());
    }
    if gguf.is_file() {
        read_gguf_text(&gguf).map_err(|error| text(&error))?;
    }
    let options = DecoderOptions::default();
    let model = DecoderModel::load(source, &options, &Device::Cpu).map_err(|error| text(&error))?;
    let cache = model
        .new_cache(1, 8, CacheType::F16)
        .map_err(|error| text(&error))?;
    let batch = DecoderBatch {
        tokens: vec![0],
        rows: vec![DecoderRow {
            first_position: 0,
            tokens: 1,
            blocks: vec![0],
        }],
        logit_tokens: vec![0],
    };
    model
        .forward(&batch, &cache)
        .map_err(|error| text(&error))?;
    Ok(())
}

/// The bytes before the data.
fn header_len(file: &[u8]) -> usize {
    if file.starts_with(b"GGUF") {
        // Half of these small files at the most; metadata with the tokenizer is most of that.
        return file.len() / 2;
    }
    8 + u64::from_le_bytes(*file.first_chunk().unwrap()) as usize
}

#[test]
fn a_hundred_damaged_files_of_each_kind_load_or_are_refused_within_their_own_size() {
    let seed = std::env::var("FERRY_HOSTILE_SEED").ok();
    let seed = seed.map_or(1, |seed| seed.parse().unwrap());
    let scratch = tempfile::tempdir().unwrap();
    // What panics while loading is caught below; its message would only hide the others.
    let told = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if std::thread::current().name() != Some(LOADING) {
            told(panic);
        }
    }));
    let mut wrong = Vec::new();
    for subject in subjects(scratch.path()) {
        let path = subject.folder.join(subject.file);
        let whole = std::fs::read(&path).unwrap();
        serve(&subject.folder).expect("the whole file loads");
        let header = header_len(&whole);
        let (mut loaded, mut most) = (0, 0);
        for round in 0..MUTATIONS {
            let mut random = Random(seed * 1_000_003 + round as u64);
            let mut damaged = whole.clone();
            let how = mutate(&mut damaged, header, &mut random);
            std::fs::write(&path, &damaged).unwrap();
            let allowed = FIXED_BYTES + FILE_MULTIPLE * damaged.len();
            drop(damaged);

            let before = ALLOCATED.load(Ordering::Relaxed);
            PEAK.store(before, Ordering::Relaxed);
            let (sender, receiver) = mpsc::channel();
            let folder = subject.folder.clone();
            let load = move || {
                let outcome = catch_unwind(AssertUnwindSafe(|| serve(&folder)));
                let _ = sender.send(outcome.map_err(|_| ()));
            };
            let thread = std::thread::Builder::new().name(LOADING.to_owned());
            thread.spawn(load).unwrap();
            let outcome = receiver.recv_timeout(PATIENCE);
            let peak = PEAK.load(Ordering::Relaxed).saturating_sub(before);
            most = most.max(peak);
            let case = format!("{} {round}, {how}", subject.name);
            match outcome {
                Err(late) => panic!("{case}: still loading after {PATIENCE:?} ({late})"),
                Ok(Err(())) => wrong.push(format!("{case}: a panic")),
                Ok(Ok(Ok(()))) => loaded += 1,
                Ok(Ok(Err(_))) => {}
            }
            if peak > allowed {
                wrong.push(format!(
                    "{case}: {peak} bytes, of a file that allows {allowed}"
                ));
            }
        }
        println!(
            "{}: {} bytes, {loaded} of {MUTATIONS} loaded, at most {most} bytes allocated",
            subject.name,
            whole.len()
        );
        std::fs::write(&path, &whole).unwrap();
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
