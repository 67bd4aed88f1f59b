//! Memory admission: a load that will not fit is refused before it starts, with the numbers.

use std::path::Path;

use super::load::ggml_type;
use crate::{
    config::{ModelManifest, Task, manifest::find_gguf},
    models::{DecoderSummary, ModelSummary},
};

/// Bytes that a version will take: its weights as they are kept in memory and, for a model that
/// generates, its cache, and the answers that are kept. `None` where its files can't be read; its load will say why.
pub(super) fn estimate(dir: &Path, manifest: &ModelManifest) -> Option<u64> {
    let gguf = find_gguf(dir);
    let source = gguf.as_deref().unwrap_or(dir);
    let contents = if manifest.task == Task::Generate {
        DecoderSummary::read(source).ok()?.contents
    } else {
        ModelSummary::read(source).ok()?.contents
    };
    let weights = contents.memory_bytes_as(manifest.quantize.map(ggml_type));
    let cache = match manifest.task {
        Task::Generate => manifest.generate.cache_mib << 20,
        _ => 0,
    };
    let answers = manifest.cache.max_bytes().unwrap_or(0);
    Some((weights + cache + answers) as u64)
}

/// Bytes that can still be taken before the machine, the control group that this process is in, or
/// its own address space has none. `None` where the system doesn't tell.
pub(super) fn available() -> Option<u64> {
    let page = |file: &str| std::fs::read_to_string(file).ok();
    let machine = machine_available(&page("/proc/meminfo")?)?;
    let own = || address_space(&page("/proc/self/limits")?, &page("/proc/self/status")?);
    let machine = own().map_or(machine, |own| machine.min(own));
    let read = |file: &str| {
        let path = Path::new("/sys/fs/cgroup").join(file);
        std::fs::read_to_string(path)
            .ok()?
            .trim()
            .parse::<u64>()
            .ok()
    };
    // "max", where there is no limit, is no number.
    let Some(limit) = read("memory.max") else {
        return Some(machine);
    };
    let used = read("memory.current").unwrap_or(0);
    Some(machine.min(limit.saturating_sub(used)))
}

fn machine_available(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find(|line| line.starts_with("MemAvailable:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib << 10)
}

/// What is left of the address space where it is limited (`ulimit -v`): beyond that, an allocation
/// fails, and with it the process.
fn address_space(limits: &str, status: &str) -> Option<u64> {
    let limit = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max address space"))?;
    // "unlimited" is no number.
    let limit: u64 = limit.split_whitespace().next()?.parse().ok()?;
    let taken = status
        .lines()
        .find_map(|line| line.strip_prefix("VmSize:"))?;
    let taken_kib: u64 = taken.split_whitespace().next()?.parse().ok()?;
    Some(limit.saturating_sub(taken_kib << 10))
}

/// Memory that is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "it takes about {} MiB and {} MiB are free{}; unload another version, set models.evict_idle, \
     raise models.memory_mib, or serve a smaller quantization",
    needed >> 20, free >> 20, limit_suffix(*limit)
)]
pub struct NoMemory {
    /// Bytes that the version takes.
    pub needed: u64,
    /// Bytes that are free.
    pub free: u64,
    /// The limit for all models, where one is set.
    pub limit: Option<u64>,
}

fn limit_suffix(limit: Option<u64>) -> String {
    limit.map_or_else(String::new, |limit| {
        format!(" of models.memory_mib = {}", limit >> 20)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_says_what_is_free() {
        let page = "MemTotal:  100 kB\nMemAvailable:   64 kB\n";
        assert_eq!(machine_available(page), Some(64 << 10));
        assert_eq!(machine_available("MemTotal: 100 kB\n"), None);
        assert!(available().is_none_or(|bytes| bytes > 1 << 20));
    }

    #[test]
    fn a_limit_of_the_address_space_is_a_limit() {
        let limits =
            "Limit  Soft Limit  Hard Limit  Units\nMax address space  1048576  unlimited  bytes\n";
        let status = "Name:\tferry\nVmSize:\t    1000 kB\n";
        assert_eq!(address_space(limits, status), Some(24 << 10));
        assert_eq!(address_space(limits, "VmSize: 2000 kB\n"), Some(0));
        let unlimited = limits.replacen("1048576", "unlimited", 1);
        assert_eq!(address_space(&unlimited, status), None);
    }

    #[test]
    fn what_does_not_fit_is_told_in_numbers() {
        let error = NoMemory {
            needed: 900 << 20,
            free: 100 << 20,
            limit: Some(512 << 20),
        };
        let text = error.to_string();
        assert!(text.contains("about 900 MiB and 100 MiB are free of models.memory_mib = 512"));
    }
}
