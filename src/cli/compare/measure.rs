//! Asks both sides in turn, and takes their times as it does: what the machine does beside falls on
//! both alike.

use std::{
    io::IsTerminal,
    time::{Duration, Instant},
};

use serde::Serialize;

use super::{
    client::{Answer, Client, Continuation, RowAnswer},
    inputs::{Input, Row},
    judge::{Findings, Judge},
    stage::Stage,
};
use crate::{cli::Failure, config::Task, quality::comparison::Comparison};

/// Rows of each round after the first, at most.
const ROUND_ROWS: usize = 256;

/// What both sides are asked.
#[derive(Debug)]
pub struct Work {
    /// Inputs; may be none where there is a text.
    pub inputs: Vec<Input>,
    /// Stretches of a text to be scored.
    pub windows: Vec<String>,
    /// Rows of a call.
    pub batch: usize,
    /// Times that rows are run; the first is what is compared, all are what is timed.
    pub rounds: usize,
    /// Tokens generated at most.
    pub max_tokens: u32,
}

/// What came of it.
#[derive(Debug)]
pub struct Outcome {
    /// How far the answers agree.
    pub comparison: Comparison,
    /// A classifier's labels, by name, as in its confusion matrix.
    pub labels: Vec<String>,
    /// What stands out.
    pub findings: Findings,
    /// Whether both sides cut texts into the same tokens; models that generate.
    pub same_tokens: bool,
    /// The sides' speed, the reference's first.
    pub paces: [Pace; 2],
    /// The candidate's time for the same work over the reference's.
    pub time_ratio: Option<f64>,
}

/// How fast a side is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
#[allow(
    clippy::struct_field_names,
    reason = "keys of the JSON report, with their unit"
)]
pub struct Pace {
    /// Rows a second; documents, of a reranker.
    pub rows_per_second: Option<f64>,
    /// Tokens of prompts read a second.
    pub prefill_tokens_per_second: Option<f64>,
    /// Tokens generated a second, one sequence alone.
    pub decode_tokens_per_second: Option<f64>,
}

/// Asks both sides, in turn.
///
/// # Errors
/// When a side isn't there, the answers can't be compared, or no row was answered by both.
pub async fn compare(stage: &Stage, work: &Work) -> Result<Outcome, Failure> {
    let same_tokens = stage.task != Task::Generate || have_same_tokens(stage, work).await?;
    let mut judge = Judge::new(stage.task, stage.reference.activation, same_tokens);
    let (paces, time_ratio) = if stage.task == Task::Generate {
        generate(stage, work, &mut judge).await?
    } else {
        run_rows(stage, work, &mut judge).await?
    };
    let (comparison, labels, findings) = judge.finish();
    if comparison.rows() == 0 {
        let first = findings.failed.first();
        let why = first.map_or_else(String::new, |failed| {
            format!("; line {} ({}): {}", failed.line, failed.side, failed.error)
        });
        return Err(format!("no row was answered by both sides{why}").into());
    }
    Ok(Outcome {
        comparison,
        labels,
        findings,
        same_tokens,
        paces,
        time_ratio,
    })
}

/// Whether both sides make the same token ids of a sample of the work.
async fn have_same_tokens(stage: &Stage, work: &Work) -> Result<bool, Failure> {
    let inputs = work.inputs.iter().map(|input| input.row.describe());
    let texts = inputs.chain(work.windows.iter().map(String::as_str));
    let sample: Vec<String> = texts.take(32).map(str::to_owned).collect();
    let reference = stage.reference.client.tokenize(sample.clone()).await?;
    Ok(reference == stage.candidate.client.tokenize(sample).await?)
}

/// Which side goes first in the `turn`-th turn: they take turns.
fn order(turn: usize) -> [usize; 2] {
    if turn.is_multiple_of(2) {
        [0, 1]
    } else {
        [1, 0]
    }
}

async fn run_rows(
    stage: &Stage,
    work: &Work,
    judge: &mut Judge,
) -> Result<([Pace; 2], Option<f64>), Failure> {
    let clients = [&stage.reference.client, &stage.candidate.client];
    // What is run first pays for cold memory; on both sides, before any time is taken.
    let first: Vec<&Row> = work
        .inputs
        .iter()
        .take(work.batch)
        .map(|input| &input.row)
        .collect();
    for client in clients {
        client.ask(stage.task, &first, 0).await?;
    }
    let mut rounds: Vec<(usize, [Duration; 2])> = Vec::new();
    for round in 0..work.rounds {
        let most = if round == 0 { usize::MAX } else { ROUND_ROWS };
        let inputs = &work.inputs[..work.inputs.len().min(most)];
        let (mut size, mut times) = (0, [Duration::ZERO; 2]);
        for (turn, chunk) in inputs.chunks(work.batch).enumerate() {
            let rows: Vec<&Row> = chunk.iter().map(|input| &input.row).collect();
            let mut answers: [Vec<RowAnswer>; 2] = Default::default();
            for side in order(turn + round) {
                let began = Instant::now();
                answers[side] = clients[side].ask(stage.task, &rows, 0).await?;
                times[side] += began.elapsed();
            }
            size += rows.iter().map(|row| row.size()).sum::<usize>();
            if round == 0 {
                let [reference, candidate] = answers;
                for ((input, ours), theirs) in chunk.iter().zip(reference).zip(candidate) {
                    judge.observe(input, ours, theirs)?;
                }
                show_progress("rows", (turn * work.batch + chunk.len(), work.inputs.len()));
            }
        }
        rounds.push((size, times));
    }
    let rate = |side: usize| {
        let rates = rounds
            .iter()
            .map(|(size, times)| per_second(*size as u64, times[side]));
        median(rates.flatten())
    };
    let pace = |side| Pace {
        rows_per_second: rate(side),
        ..Pace::default()
    };
    let ratios = rounds.iter().filter(|(_, times)| times[0] > Duration::ZERO);
    let ratio = median(ratios.map(|(_, times)| times[1].as_secs_f64() / times[0].as_secs_f64()));
    Ok(([pace(0), pace(1)], ratio))
}

/// Sums of the times of a side that generates.
#[derive(Debug, Clone, Copy, Default)]
struct Times {
    read: u64,
    reading: Duration,
    written: u64,
    writing: Duration,
}

impl Times {
    fn add(&mut self, text: &Continuation) {
        self.read += text.prompt_tokens;
        self.reading += text.first;
        // The first token comes with the prompt's end.
        self.written += text.tokens.len().saturating_sub(1) as u64;
        self.writing += text.rest;
    }

    fn pace(&self) -> Pace {
        Pace {
            rows_per_second: None,
            prefill_tokens_per_second: per_second(self.read, self.reading),
            decode_tokens_per_second: per_second(self.written, self.writing),
        }
    }

    /// Time it would take for as many tokens as `other` read and wrote.
    fn time_for(&self, other: &Self) -> Option<f64> {
        let each = |time: Duration, tokens: u64| time.as_secs_f64() / tokens.max(1) as f64;
        let reading = each(self.reading, self.read) * other.read as f64;
        let writing = each(self.writing, self.written) * other.written as f64;
        let time = reading + writing;
        (time > 0.0).then_some(time)
    }
}

async fn generate(
    stage: &Stage,
    work: &Work,
    judge: &mut Judge,
) -> Result<([Pace; 2], Option<f64>), Failure> {
    let clients: [&Client; 2] = [&stage.reference.client, &stage.candidate.client];
    let (mut generating, mut scoring) = ([Times::default(); 2], [Times::default(); 2]);
    for (turn, input) in work.inputs.iter().enumerate() {
        let mut answers: [Option<RowAnswer>; 2] = Default::default();
        for side in order(turn) {
            let rows = [&input.row];
            let mut answer = clients[side]
                .ask(Task::Generate, &rows, work.max_tokens)
                .await?;
            answers[side] = answer.pop();
        }
        if let [Some(ours), Some(theirs)] = answers {
            if let (Ok(Answer::Text(ours)), Ok(Answer::Text(theirs))) = (&ours, &theirs) {
                generating[0].add(ours);
                generating[1].add(theirs);
            }
            judge.observe(input, ours, theirs)?;
        }
        show_progress("prompts", (turn + 1, work.inputs.len()));
    }
    for (turn, window) in work.windows.iter().enumerate() {
        let mut scored: [Continuation; 2] = Default::default();
        for side in order(turn) {
            let score = clients[side].score(window).await;
            scored[side] = score.map_err(|error| {
                let at = turn + 1;
                format!("stretch {at} of the text: {error} (--window makes them shorter)")
            })?;
            // The scored tokens are the prompt's: nothing is written.
            let mut times = scored[side].clone();
            (times.tokens, times.rest) = (Vec::new(), Duration::ZERO);
            scoring[side].add(&times);
        }
        judge.observe_given(window, &scored[0], &scored[1]);
        show_progress("stretches of text", (turn + 1, work.windows.len()));
    }
    let times = if work.inputs.is_empty() {
        scoring
    } else {
        generating
    };
    let ratio = times[1]
        .time_for(&times[0])
        .zip(times[0].time_for(&times[0]));
    Ok((
        times.map(|times| times.pace()),
        ratio.map(|(theirs, ours)| theirs / ours),
    ))
}

fn per_second(count: u64, time: Duration) -> Option<f64> {
    (count > 0 && time > Duration::ZERO).then(|| count as f64 / time.as_secs_f64())
}

fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

/// Says on a terminal how far it is.
fn show_progress(what: &str, (done, all): (usize, usize)) {
    if std::io::stderr().is_terminal() {
        say_aside_part!("\r{done} of {all} {what}");
        if done == all {
            say_aside!();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_side_s_time_is_that_for_the_same_tokens() {
        let seconds = Duration::from_secs;
        let reference = Times {
            read: 10,
            reading: seconds(1),
            written: 10,
            writing: seconds(10),
        };
        // Twice as fast a token, and it wrote three times as many.
        let candidate = Times {
            read: 10,
            reading: seconds(1),
            written: 30,
            writing: seconds(15),
        };
        let ratio =
            candidate.time_for(&reference).unwrap() / reference.time_for(&reference).unwrap();
        assert!((ratio - 6.0 / 11.0).abs() < 1e-9);
        assert_eq!(Times::default().time_for(&reference), None);
    }

    #[test]
    fn the_sides_take_turns_to_go_first() {
        assert_eq!((order(0), order(1)), ([0, 1], [1, 0]));
    }
}
