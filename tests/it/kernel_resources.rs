//! What each CUDA kernel takes of a multiprocessor stays within `kernels/resources.toml`: registers,
//! spilled bytes, shared memory, by architecture, as ptxas reports them when the crate is built.
//!
//! After a change that is meant: `make kernel-resources`, and look at the difference.

use std::{collections::BTreeMap, fs, path::Path};

use serde::{Deserialize, Serialize};

use super::support::root;

/// What a kernel takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Taken {
    registers: u32,
    /// Bytes stored to and loaded from local memory since registers ran out.
    spilled: u32,
    /// Bytes of shared memory, without what a launch adds.
    shared: u32,
    /// Bytes of stack frame.
    stack: u32,
}

impl Taken {
    fn within(self, bound: Self) -> bool {
        self.registers <= bound.registers
            && self.spilled <= bound.spilled
            && self.shared <= bound.shared
            && self.stack <= bound.stack
    }
}

/// Kernel → architecture → what it takes.
type Table = BTreeMap<String, BTreeMap<String, Taken>>;

/// The number before a word, as in `24 bytes stack frame`; 0 where the line has no such word.
fn number_before(line: &str, words: &str) -> u32 {
    let Some(at) = line.find(words) else {
        return 0;
    };
    let before = line[..at].trim_end();
    let digits = before
        .rsplit(|letter: char| !letter.is_ascii_digit())
        .next();
    digits.unwrap_or_default().parse().unwrap()
}

/// Reads what `ptxas -v` says.
fn read_report(report: &str, table: &mut Table) {
    let mut current: Option<(String, String)> = None;
    let mut taken = Taken {
        registers: 0,
        spilled: 0,
        shared: 0,
        stack: 0,
    };
    for line in report.lines() {
        let quoted: Vec<&str> = line.split('\'').collect();
        if line.contains("Compiling entry function") {
            current = Some((quoted[1].to_owned(), quoted[3].to_owned()));
        } else if line.contains("bytes stack frame") {
            taken.stack = number_before(line, "bytes stack frame");
            taken.spilled = number_before(line, "bytes spill stores")
                + number_before(line, "bytes spill loads");
        } else if line.contains("Used ") && line.contains(" registers") {
            taken.registers = number_before(line, "registers");
            taken.shared = number_before(line, "bytes smem");
            let (kernel, architecture) = current.take().expect("a kernel before its figures");
            table.entry(kernel).or_default().insert(architecture, taken);
        }
    }
}

fn reports() -> Table {
    let folder = Path::new(env!("OUT_DIR")).join("kernels");
    let mut table = Table::new();
    for name in ferry::ops::kernels::names() {
        let path = folder.join(name).with_extension("ptxas");
        read_report(&fs::read_to_string(&path).unwrap(), &mut table);
    }
    table
}

fn write(path: &Path, found: &Table) {
    use std::fmt::Write as _;
    let mut text =
        "# What each kernel may take of a multiprocessor, at most, by architecture: written by\n\
                    # `make kernel-resources`, checked by tests/it/kernel_resources.rs.\n"
            .to_owned();
    for (kernel, architectures) in found {
        writeln!(text, "\n[{kernel}]").unwrap();
        for (architecture, taken) in architectures {
            let Taken {
                registers,
                spilled,
                shared,
                stack,
            } = taken;
            writeln!(
                text,
                "{architecture} = {{ registers = {registers}, spilled = {spilled}, shared = {shared}, stack = {stack} }}"
            )
            .unwrap();
        }
    }
    fs::write(path, text).unwrap();
}

#[test]
fn no_kernel_takes_more_registers_spills_or_shared_memory_than_the_table_allows() {
    let path = root().join("kernels/resources.toml");
    let found = reports();
    if std::env::var_os("FERRY_UPDATE_KERNEL_RESOURCES").is_some() {
        write(&path, &found);
        return;
    }
    let allowed: Table = toml::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    let mut wrong = Vec::new();
    for (kernel, architectures) in &found {
        for (architecture, &taken) in architectures {
            let bound = allowed
                .get(kernel)
                .and_then(|bounds| bounds.get(architecture));
            match bound {
                None => wrong.push(format!(
                    "{kernel} for {architecture} is not in the table: {taken:?}"
                )),
                Some(&bound) if !taken.within(bound) => {
                    wrong.push(format!(
                        "{kernel} for {architecture}: {taken:?}; allowed: {bound:?}"
                    ));
                }
                Some(_) => {}
            }
        }
    }
    for kernel in allowed.keys().filter(|kernel| !found.contains_key(*kernel)) {
        wrong.push(format!(
            "{kernel} is in the table and in no file of kernels/"
        ));
    }
    assert!(
        wrong.is_empty(),
        "`make kernel-resources` takes these over:\n{}",
        wrong.join("\n")
    );
}

#[test]
fn the_figures_of_ptxas_are_read_as_it_prints_them() {
    let report = "\
ptxas info    : Compiling entry function 'ferry_x_f32' for 'sm_75'
ptxas info    : Function properties for ferry_x_f32
    16 bytes stack frame, 8 bytes spill stores, 4 bytes spill loads
ptxas info    : Used 66 registers, used 1 barriers, 4352 bytes smem, 404 bytes cmem[0], 8 bytes cmem[2]
ptxas info    : Compiling entry function 'ferry_x_f16' for 'sm_90'
ptxas info    : Function properties for ferry_x_f16
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 56 registers, used 0 barriers
";
    let mut table = Table::new();
    read_report(report, &mut table);
    let wide = Taken {
        registers: 66,
        spilled: 12,
        shared: 4352,
        stack: 16,
    };
    assert_eq!(table["ferry_x_f32"]["sm_75"], wide);
    let plain = Taken {
        registers: 56,
        spilled: 0,
        shared: 0,
        stack: 0,
    };
    assert_eq!(table["ferry_x_f16"]["sm_90"], plain);
    assert!(plain.within(wide) && !wide.within(plain));
}

#[test]
fn every_kernel_file_of_the_repository_is_embedded_as_an_aligned_fatbin() {
    use ferry::ops::kernels::{fatbin, names};

    /// The first word of a fatbin, in the order of its bytes.
    const MAGIC: [u8; 4] = 0xba55_ed50_u32.to_le_bytes();
    let mut files: Vec<String> = fs::read_dir(root().join("kernels"))
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter_map(|file| Some(file.strip_suffix(".cu")?.to_owned()))
        .collect();
    files.sort();
    assert_eq!(names().collect::<Vec<_>>(), files);
    for name in names() {
        let bytes = fatbin(name).unwrap();
        assert!(bytes.starts_with(&MAGIC), "{name}");
        assert_eq!(bytes.as_ptr().addr() % 64, 0, "{name}");
    }
    assert_eq!(fatbin("no such kernel"), None);
}
