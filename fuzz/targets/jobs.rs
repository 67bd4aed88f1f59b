//! JSON lines of jobs, OpenAI's and typed ones, which come in pieces of any size.

use ferry::{
    api::jobs::read_line,
    jobs::{LineFault, LineSplitter},
};

const MAX_LINE_BYTES: usize = 2048;

/// The size of the pieces, and the file.
pub fn run(input: &[u8]) {
    let Some((&size, file)) = input.split_first() else {
        return;
    };
    let whole = split(file, file.len().max(1));
    assert_eq!(split(file, usize::from(size).max(1)), whole);
    for (number, line) in whole.unwrap_or_else(|(lines, _)| lines) {
        match read_line(number, &line) {
            Ok(row) => assert!(row.weight > 0),
            Err(error) => assert!(error.to_string().contains("line")),
        }
    }
}

type Lines = Vec<(u32, Vec<u8>)>;

/// The lines; with the number of the line that is too long where one is.
fn split(file: &[u8], size: usize) -> Result<Lines, (Lines, u32)> {
    let mut lines = Lines::new();
    let mut splitter = LineSplitter::new(MAX_LINE_BYTES);
    let mut take = |number: u32, line: &[u8]| {
        assert!(line.len() <= MAX_LINE_BYTES);
        lines.push((number, line.to_vec()));
        Ok::<_, LineFault>(())
    };
    let mut fault = None;
    for piece in file.chunks(size) {
        if let Err(found) = splitter.push(piece, &mut take) {
            fault = Some(found.line);
            break;
        }
    }
    if fault.is_none() {
        fault = splitter.finish(&mut take).err().map(|found| found.line);
    }
    match fault {
        None => Ok(lines),
        Some(line) => Err((lines, line)),
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    let file = |size: u8, lines: &[&str]| [&[size], lines.join("\n").as_bytes()].concat();
    let batch = r#"{"custom_id":"a","method":"POST","url":"/v1/embeddings","body":{"input":["x","y"], "model":"m"}}"#;
    let prompt = r#"{"custom_id":"b","method":"POST","url":"/v1/completions","body":{"prompt":[1,2],"n":3}}"#;
    let typed = r#"{"id":"a","embed":{"options":{"model":"m"},"texts":["x","y"]}}"#;
    let chat = r#"{"id":"c","chat":{"model":"g","messages":[{"role":"user","content":"x"}],"options":{"n":3}}}"#;
    vec![
        file(7, &["\u{feff}", batch, "", prompt]),
        file(1, &[typed, chat, "\r"]),
        file(
            64,
            &[
                r#"{"id":"d","http":{"url":"/v1/rerank","body":"{}"}}"#,
                batch,
            ],
        ),
    ]
}
