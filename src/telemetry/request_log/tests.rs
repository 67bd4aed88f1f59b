//! The log on real files: what is covered, how files follow each other, and a disk that is full.

use std::{fs, os::unix::fs::symlink, path::Path, time::Duration};

use super::{Generated, Input, Line, Output, RequestLog, Times, writer::aged};
use crate::{
    config::{
        RequestLogConfig,
        request_log::{Keep, RedactRule},
    },
    telemetry::Metrics,
};

const LIMIT: Duration = Duration::from_secs(30);

fn line(text: &str) -> Line {
    Line {
        time_ms: 1.0,
        trace_id: None,
        endpoint: "grpc".to_owned(),
        tenant: "t".to_owned(),
        task: "generate".to_owned(),
        model: "m".to_owned(),
        version: "1".to_owned(),
        code: "OK".to_owned(),
        error: Some(format!("can't read {text}")),
        cached: false,
        confidence: Some(0.5),
        input_tokens: 3,
        output_tokens: 1,
        times_us: Times::default(),
        inputs: Keep::Full,
        input: Input::Texts(vec![text.to_owned()]),
        sampling: None,
        outputs: Keep::Full,
        output: Output::Generated(vec![Generated {
            text: format!("to {text}"),
            tokens: vec![1, 2],
            stopped: true,
        }]),
    }
}

fn read(path: &Path) -> Vec<Line> {
    fs::read_to_string(path)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn config(file: &Path) -> RequestLogConfig {
    RequestLogConfig {
        file: file.to_owned(),
        ..RequestLogConfig::default()
    }
}

#[test]
fn a_line_comes_back_as_it_was_written() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("log.jsonl");
    let metrics = Metrics::new().request_log();
    let log = RequestLog::start(&config(&file), metrics.clone()).unwrap();
    log.write(line("hello"));
    assert!(log.flush(LIMIT));
    assert_eq!(read(&file), [line("hello")]);
    assert_eq!(metrics.written.get(), 1);
}

#[test]
fn what_is_not_to_be_kept_is_in_no_line() {
    for (keep, kept) in [
        (Keep::Redacted, Some("call [number]")),
        (Keep::Hashed, None),
        (Keep::None, None),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("log.jsonl");
        let config = RequestLogConfig {
            inputs: keep,
            outputs: keep,
            redact: vec![RedactRule {
                pattern: r"\d{3,}".to_owned(),
                with: "[number]".to_owned(),
            }],
            ..config(&file)
        };
        let log = RequestLog::start(&config, Metrics::new().request_log()).unwrap();
        log.write(line("call 5551234"));
        log.write(line("call 5551234"));
        log.write(line("call 5550000"));
        assert!(log.flush(LIMIT));
        let text = fs::read_to_string(&file).unwrap();
        assert!(!text.contains("555"), "{keep:?}: {text}");
        let lines = read(&file);
        assert_eq!(lines[0].inputs, keep);
        match &lines[0].input {
            Input::Texts(texts) => assert_eq!(Some(texts[0].as_str()), kept),
            Input::Hashes(_) => {
                assert_eq!(lines[0].input, lines[1].input);
                assert_ne!(lines[0].input, lines[2].input);
            }
            other => assert_eq!(*other, Input::Omitted {}),
        }
    }
}

#[test]
fn files_follow_each_other_and_the_oldest_goes() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("log.jsonl");
    let config = RequestLogConfig {
        max_file_bytes: 1024,
        max_files: 3,
        ..config(&file)
    };
    let log = RequestLog::start(&config, Metrics::new().request_log()).unwrap();
    for number in 0..20 {
        log.write(line(&format!("text {number} {}", "x".repeat(200))));
        assert!(log.flush(LIMIT));
    }
    let files = [aged(&file, 2), aged(&file, 1), file.clone()];
    assert!(!aged(&file, 3).exists());
    let mut last = None;
    for file in &files {
        assert!(fs::metadata(file).unwrap().len() <= 1024 + 600);
        for line in read(file) {
            let Input::Texts(texts) = line.input else {
                panic!("texts expected");
            };
            let number: u32 = texts[0].split(' ').nth(1).unwrap().parse().unwrap();
            assert!(last.is_none_or(|last| number == last + 1));
            last = Some(number);
        }
    }
    assert_eq!(last, Some(19));
}

#[test]
fn a_full_disk_drops_lines_and_one_with_room_takes_them_again() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("log.jsonl");
    symlink("/dev/full", &file).unwrap();
    let metrics = Metrics::new().request_log();
    let log = RequestLog::start(&config(&file), metrics.clone()).unwrap();
    log.write(line("lost"));
    assert!(log.flush(LIMIT));
    assert_eq!((metrics.failed.get(), metrics.failing.get()), (1, 1));
    fs::remove_file(&file).unwrap();
    let began = std::time::Instant::now();
    while metrics.written.get() == 0 {
        assert!(began.elapsed() < LIMIT);
        log.write(line("kept"));
        assert!(log.flush(LIMIT));
    }
    assert_eq!(metrics.failing.get(), 0);
    assert_eq!(read(&file), [line("kept")]);
}

#[test]
fn what_finds_no_room_is_dropped_and_counted() {
    let folder = tempfile::tempdir().unwrap();
    let config = RequestLogConfig {
        max_waiting_bytes: 1024,
        ..config(&folder.path().join("log.jsonl"))
    };
    let metrics = Metrics::new().request_log();
    let log = RequestLog::start(&config, metrics.clone()).unwrap();
    log.write(line(&"x".repeat(4096)));
    assert_eq!(metrics.dropped.get(), 1);
}

#[test]
fn as_many_requests_are_taken_as_were_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let config = RequestLogConfig {
        sample: 0.3,
        ..config(&folder.path().join("log.jsonl"))
    };
    let log = RequestLog::start(&config, Metrics::new().request_log()).unwrap();
    let taken = (0..1000).filter(|_| log.takes()).count();
    assert_eq!(taken, 300);
    assert!(!RequestLog::default().takes());
}
