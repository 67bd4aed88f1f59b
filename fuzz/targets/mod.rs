//! What is done with hostile inputs: one function a kind of input, which must come back, whatever the
//! bytes, without a panic, in bounded time and memory; and whose answers, where there is a simple
//! reference, are the reference's.
//!
//! Two drive these: libFuzzer (docs/fuzzing.md), for as long as one likes, and `cargo test --test
//! hostile_inputs`, over the seeds and some mutations of each. They use the library as anyone can.

mod batch_queue;
mod bytes;
mod chat_template;
mod configuration;
mod constraint;
mod detokenizer;
mod fixtures;
mod gguf;
mod jobs;
mod json_api;
mod prepared;
mod quantize;
mod raw_codec;
mod request_log;
mod rpc;
mod scheduler;
mod server;
mod stop_text;
mod texts;
mod traces;
mod weights;

/// One kind of hostile input.
pub struct Target {
    /// As `cargo fuzz run` and the folders of corpora call it.
    pub name: &'static str,
    /// Takes one input.
    pub run: fn(&[u8]),
    /// Inputs that are sound, or nearly so, to begin from.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Where in an input lies what tells of the rest: mutations go there most of the time.
    pub header: fn(&[u8]) -> usize,
    /// Bytes of memory that an input may take, whatever its size, and so many times its size.
    pub memory: (usize, usize),
    /// Mutations of every seed in the short form.
    pub mutations: usize,
}

const MIB: usize = 1 << 20;

/// Of an input that has no header: all of it.
fn whole(input: &[u8]) -> usize {
    input.len()
}

const fn target(name: &'static str, run: fn(&[u8]), seeds: fn() -> Vec<Vec<u8>>) -> Target {
    Target {
        name,
        run,
        seeds,
        header: whole,
        memory: (16 * MIB, 16),
        mutations: 200,
    }
}

/// All of them.
pub const TARGETS: [Target; 20] = [
    target("batch_queue", batch_queue::run, batch_queue::seeds),
    Target {
        // Two million steps, of which each may hold some bytes.
        memory: (256 * MIB, 16),
        ..target("chat_template", chat_template::run, chat_template::seeds)
    },
    target("configuration", configuration::run, configuration::seeds),
    Target {
        // Lexer states and grammar items are bounded by count.
        memory: (512 * MIB, 64),
        mutations: 40,
        ..target("constraint", constraint::run, constraint::seeds)
    },
    target("detokenizer", detokenizer::run, detokenizer::seeds),
    Target {
        header: gguf::header_len,
        ..target("gguf_header", gguf::run, gguf::seeds)
    },
    Target {
        header: gguf::header_len,
        memory: weights::MEMORY,
        mutations: 100,
        ..target("gguf_model", weights::run_gguf, weights::gguf_seeds)
    },
    Target {
        header: gguf::header_len,
        memory: (16 * MIB, 32),
        ..target("importance", quantize::run, quantize::seeds)
    },
    target("job_lines", jobs::run, jobs::seeds),
    Target {
        memory: (64 * MIB, 64),
        mutations: 40,
        ..target("json_api", json_api::run, json_api::seeds)
    },
    Target {
        mutations: 100,
        ..target("model_config", weights::run_config, weights::config_seeds)
    },
    Target {
        header: prepared::header_len,
        memory: weights::MEMORY,
        mutations: 100,
        ..target("prepared_weights", prepared::run, prepared::seeds)
    },
    target("request_log", request_log::run, request_log::seeds),
    Target {
        memory: (64 * MIB, 64),
        mutations: 40,
        ..target("rpc", rpc::run, rpc::seeds)
    },
    Target {
        header: weights::safetensors_header_len,
        memory: weights::MEMORY,
        mutations: 100,
        ..target(
            "safetensors_model",
            weights::run_safetensors,
            weights::safetensors_seeds,
        )
    },
    target("scheduler", scheduler::run, scheduler::seeds),
    target("stop_text", stop_text::run, stop_text::seeds),
    Target {
        mutations: 100,
        ..target("texts", texts::run, texts::seeds)
    },
    Target {
        mutations: 100,
        ..target("tokenizer_json", texts::run_json, texts::json_seeds)
    },
    target("traceparent", traces::run, traces::seeds),
];
