//! `ferry quantize`: a model into a GGUF file with fewer bits a weight, and a report of what that
//! cost.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::Instant;

use candle_core::quantized::GgmlDType;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use super::Failure;
use crate::models::quantize::{
    Keep, QuantizeOptions, QuantizeReport, QuantizedTensor, quantize_model, type_name, type_named,
    type_names,
};

/// Write a model's weights in fewer bits, as a GGUF file that Ferry and llama.cpp serve.
#[derive(Debug, Args)]
pub struct Quantize {
    /// A folder with config.json, tokenizer.json and safetensors, of an encoder or a decoder; or a
    /// GGUF file.
    input: PathBuf,
    /// The GGUF file to write; one that is there is replaced when the new one is whole.
    output: PathBuf,
    /// The type of most matrices: `q8_0`, `q4_k`, `f16`; an unknown one names them all.
    #[arg(long = "type", value_name = "TYPE", value_parser = parse_type)]
    dtype: GgmlDType,
    /// Another type for some matrices, `*` in the name being anything: `blk.0.*=q8_0`. The first
    /// that matches counts.
    #[arg(long, value_name = "PATTERN=TYPE", value_parser = parse_keep)]
    keep: Vec<Keep>,
    /// An importance matrix, as llama.cpp's `imatrix` writes it; k-quants heed it.
    #[arg(long, value_name = "FILE")]
    imatrix: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Quantize {
    pub fn run(self) -> Result<(), Failure> {
        let started = Instant::now();
        let options = QuantizeOptions {
            dtype: self.dtype,
            keep: self.keep,
            importance: self.imatrix,
        };
        let bar = progress_bar();
        let progress = |tensor: &QuantizedTensor, tensors: usize| {
            bar.set_length(tensors as u64);
            bar.set_message(tensor.name.clone());
            bar.inc(1);
        };
        let report = quantize_model(&self.input, &self.output, &options, progress);
        bar.finish_and_clear();
        let report = report?;
        let seconds = started.elapsed().as_secs_f64();
        let text = if self.json {
            json(&report, seconds)?
        } else {
            table(&report, seconds)
        };
        say!("{text}");
        Ok(())
    }
}

/// Seen on a terminal only.
fn progress_bar() -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {elapsed} {msg}");
    ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

fn parse_type(name: &str) -> Result<GgmlDType, String> {
    type_named(name).ok_or_else(|| {
        let known: Vec<_> = type_names().collect();
        format!("'{name}' is no type; there are {}", known.join(", "))
    })
}

fn parse_keep(text: &str) -> Result<Keep, String> {
    let (pattern, name) = text.rsplit_once('=').ok_or("PATTERN=TYPE expected")?;
    if pattern.is_empty() {
        return Err("a pattern is needed before '='".to_owned());
    }
    Ok(Keep {
        pattern: pattern.to_owned(),
        dtype: parse_type(name)?,
    })
}

/// The report as a table.
fn table(report: &QuantizeReport, seconds: f64) -> String {
    let widest = report.tensors.iter().map(|tensor| tensor.name.len()).max();
    let widest = widest.unwrap_or(0);
    let mut lines = Vec::with_capacity(report.tensors.len() + 4);
    for tensor in &report.tensors {
        lines.push(format!(
            "{:widest$}  {:>16}  {:>5} → {:<5} {:>12} bytes  error {}{}",
            tensor.name,
            format!("{:?}", tensor.shape),
            tensor.from,
            type_name(tensor.to),
            tensor.bytes,
            percent(tensor.error),
            if tensor.by_importance {
                "  by importance"
            } else {
                ""
            },
        ));
    }
    lines.push(String::new());
    lines.extend(report.notes.iter().map(|note| format!("note: {note}")));
    lines.push(format!(
        "{} of tensors → a file of {}, {:.2} bits a weight, in {seconds:.1} s",
        mebibytes(report.input_bytes),
        mebibytes(report.output_bytes),
        report.bits_per_weight(),
    ));
    lines.join("\n")
}

/// The report for programs.
fn json(report: &QuantizeReport, seconds: f64) -> Result<String, serde_json::Error> {
    let tensors: Vec<_> = report
        .tensors
        .iter()
        .map(|tensor| {
            json!({
                "name": tensor.name, "shape": tensor.shape, "from": tensor.from,
                "to": type_name(tensor.to), "bytes": tensor.bytes,
                "relative_rmse": tensor.error, "by_importance": tensor.by_importance,
            })
        })
        .collect();
    let report = json!({
        "input_bytes": report.input_bytes,
        "output_bytes": report.output_bytes,
        "parameters": report.parameters(),
        "bits_per_weight": report.bits_per_weight(),
        "seconds": seconds,
        "notes": report.notes,
        "tensors": tensors,
    });
    serde_json::to_string_pretty(&report)
}

fn percent(error: f64) -> String {
    if error == 0.0 {
        "none".to_owned()
    } else {
        format!("{:.3}%", 100.0 * error)
    }
}

fn mebibytes(bytes: usize) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}
