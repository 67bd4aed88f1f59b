//! Lines of a request log, as `ferry replay` reads them.

use ferry::{
    cli::read_log,
    config::{Task, request_log::Keep},
    telemetry::request_log::{
        Class, Generated, Input, Line, Message, Output, Sampling, Span, Times,
    },
};

use super::fixtures::scratch;

const TASKS: [Task; 5] = [
    Task::Embed,
    Task::Classify,
    Task::Rerank,
    Task::Tokens,
    Task::Generate,
];

pub fn run(input: &[u8]) {
    let folder = scratch();
    let path = folder.path().join("log.jsonl");
    std::fs::write(&path, input).expect("a file");
    for task in TASKS {
        let _ = read_log(&path, task, 100);
    }
    for line in input.split(|&byte| byte == b'\n') {
        let Ok(line) = serde_json::from_slice::<Line>(line) else {
            continue;
        };
        assert!(line.bytes() >= 512);
        let written = serde_json::to_vec(&line).expect("it can be written");
        let mut again: Line = serde_json::from_slice(&written).expect("what was written is right");
        // Numbers are read to the last digit but one.
        assert!((again.time_ms - line.time_ms).abs() <= line.time_ms.abs() * 1e-15);
        again.time_ms = line.time_ms;
        assert_eq!(again, line);
    }
}

fn line(task: &str, input: Input, output: Output) -> Vec<u8> {
    let line = Line {
        time_ms: 1_770_091_506_000.25,
        trace_id: Some("0af7651916cd43dd8448eb211c80319c".to_owned()),
        endpoint: "grpc".to_owned(),
        tenant: "t".to_owned(),
        task: task.to_owned(),
        model: "m".to_owned(),
        version: "1".to_owned(),
        code: "OK".to_owned(),
        error: None,
        cached: false,
        confidence: Some(0.5),
        input_tokens: 3,
        output_tokens: 1,
        times_us: Times::default(),
        inputs: Keep::Full,
        input,
        sampling: Some(Sampling {
            max_tokens: Some(5),
            temperature: 0.5,
            n: 2,
        }),
        outputs: Keep::Full,
        output,
    };
    let mut line = serde_json::to_vec(&line).expect("it can be written");
    line.push(b'\n');
    line
}

pub fn seeds() -> Vec<Vec<u8>> {
    let text = |text: &str| text.to_owned();
    vec![
        line(
            "embed",
            Input::Texts(vec![text("a"), text("b")]),
            Output::Vectors(vec![Some(vec![0.5, -1.0]), None]),
        ),
        line(
            "classify",
            Input::Texts(vec![text("a")]),
            Output::Classes(vec![Some(vec![Class(text("yes"), 0.75)])]),
        ),
        line(
            "rerank",
            Input::Pairs(vec![(text("q"), text("d")), (text("q"), text("e"))]),
            Output::Scores(vec![Some(0.25), None]),
        ),
        line(
            "tokens",
            Input::Hashes(vec![text("00ff")]),
            Output::Spans(vec![Some(vec![Span {
                label: text("PER"),
                start: 1,
                end: 3,
                confidence: 0.5,
            }])]),
        ),
        line(
            "generate",
            Input::Messages(vec![Message {
                role: text("user"),
                content: text("When?"),
            }]),
            Output::Generated(vec![Generated {
                text: text("Now."),
                tokens: vec![1, 2],
                stopped: true,
            }]),
        ),
    ]
}
