//! What the driver's management library tells of GPUs, with one that is made for it: this machine need
//! have none.

use std::{path::PathBuf, process::Command};

use ferry::telemetry::{
    Metrics,
    machine::{Gpus, Reading, watch},
};

/// Two GPUs: one that tells everything, and a slice that tells of its memory only. Names and layouts are
/// those of `nvml.h`.
const LIBRARY: &str = r#"
#include <string.h>
typedef struct { unsigned version; unsigned long long total, reserved, free, used; } Memory;
typedef struct { unsigned gpu, memory; } Utilization;
static int gpus[2] = {0, 1};
enum { SUCCESS = 0, INVALID = 2, NOT_SUPPORTED = 3 };
int nvmlInit_v2(void) { return SUCCESS; }
int nvmlShutdown(void) { return SUCCESS; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 2; return SUCCESS; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **gpu) {
    if (index > 1) return INVALID;
    *gpu = &gpus[index];
    return SUCCESS;
}
int nvmlDeviceGetUUID(void *gpu, char *uuid, unsigned length) {
    strncpy(uuid, *(int *)gpu ? "MIG-1" : "GPU-0", length);
    return SUCCESS;
}
int nvmlDeviceGetMemoryInfo_v2(void *gpu, Memory *memory) {
    (void)gpu;
    memory->total = 80ULL << 30;
    memory->used = 20ULL << 30;
    memory->free = 60ULL << 30;
    return SUCCESS;
}
int nvmlDeviceGetUtilizationRates(void *gpu, Utilization *rates) {
    if (*(int *)gpu) return NOT_SUPPORTED;
    rates->gpu = 75;
    rates->memory = 10;
    return SUCCESS;
}
int nvmlDeviceGetTemperature(void *gpu, int sensor, unsigned *celsius) {
    if (*(int *)gpu || sensor != 0) return NOT_SUPPORTED;
    *celsius = 61;
    return SUCCESS;
}
int nvmlDeviceGetPowerUsage(void *gpu, unsigned *milliwatts) {
    if (*(int *)gpu) return NOT_SUPPORTED;
    *milliwatts = 312500;
    return SUCCESS;
}
"#;

/// The library, compiled; `None` where there is no compiler.
fn library(folder: &std::path::Path) -> Option<PathBuf> {
    let (source, library) = (folder.join("nvml.c"), folder.join("libnvidia-ml.so.1"));
    std::fs::write(&source, LIBRARY).unwrap();
    let compiled = Command::new("cc")
        .args(["-shared", "-fPIC", "-o"])
        .args([&library, &source])
        .output();
    let Ok(compiled) = compiled else {
        eprintln!("SKIPPED: no C compiler (cc) to make a management library with");
        return None;
    };
    assert!(compiled.status.success(), "{compiled:?}");
    Some(library)
}

#[test]
fn what_a_driver_tells_of_its_gpus_is_on_the_page_and_what_it_does_not_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let Some(library) = library(folder.path()) else {
        return;
    };
    let gpus = Gpus::open(Some(&library)).unwrap();
    assert_eq!(gpus.count(), 2);
    let memory = Some((20 << 30, 80 << 30));
    let whole = Reading {
        uuid: "GPU-0".to_owned(),
        memory,
        utilization: Some(0.75),
        celsius: Some(61.0),
        watts: Some(312.5),
    };
    assert_eq!(gpus.read(0), Some(whole));
    let slice = Reading {
        uuid: "MIG-1".to_owned(),
        memory,
        utilization: None,
        celsius: None,
        watts: None,
    };
    assert_eq!(gpus.read(1), Some(slice));
    assert_eq!(gpus.read(2), None);

    let metrics = Metrics::new();
    let watching = watch(metrics.machine(), Some(&library)).unwrap();
    let page = || String::from_utf8(metrics.render()).unwrap();
    while !page().contains("uuid=\"MIG-1\"") {
        std::thread::yield_now();
    }
    let page = page();
    for line in [
        "ferry_device_memory_used_bytes{gpu=\"0\",uuid=\"GPU-0\"} 21474836480",
        "ferry_device_memory_total_bytes{gpu=\"1\",uuid=\"MIG-1\"} 85899345920",
        "ferry_device_utilization_ratio{gpu=\"0\",uuid=\"GPU-0\"} 0.75",
        "ferry_device_temperature_celsius{gpu=\"0\",uuid=\"GPU-0\"} 61",
        "ferry_device_power_watts{gpu=\"0\",uuid=\"GPU-0\"} 312.5",
    ] {
        assert!(page.contains(line), "{line} not in\n{page}");
    }
    assert!(
        !page.contains("ferry_device_utilization_ratio{gpu=\"1\""),
        "{page}"
    );
    drop(watching);
}

#[test]
fn without_the_library_there_are_no_series_of_gpus() {
    let metrics = Metrics::new();
    let nowhere = PathBuf::from("/nowhere/libnvidia-ml.so.1");
    let _watching = watch(metrics.machine(), Some(&nowhere)).unwrap();
    let page = String::from_utf8(metrics.render()).unwrap();
    assert!(
        !page.contains("ferry_device_") && page.contains("ferry_process_cpu_ratio"),
        "{page}"
    );
}
