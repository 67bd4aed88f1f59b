//! `/metrics`: Ferry's own metrics, and the same under the names that others look for.
//!
//! - `nv_inference_…`, as Triton tells them, so that what scrapes Triton reads Ferry.
//! - `vllm:…`, the names that the Gateway API inference extension takes from a model server unless it
//!   is told others (`TotalQueuedRequests`, `TotalRunningRequests`, `KVCacheUtilization`, block size).

use std::fmt::{Display, Write as _};

use axum::{
    extract::State,
    http::header,
    response::{IntoResponse, Response},
};

use crate::{
    api::grpc::Shared,
    repository::{Runner, ServedModel},
    telemetry::Outcome,
};

/// The page.
pub async fn page(State(shared): State<Shared>) -> Response {
    let content_type = "text/plain; version=0.0.4; charset=utf-8";
    let mut page = shared.metrics.render();
    let models = shared.admission.repository().all_ready();
    let also = shared.metrics.config();
    let mut more = Text::default();
    if also.triton_names {
        triton(&mut more, &models);
    }
    if also.gateway_names {
        gateway(&mut more, &models);
    }
    page.extend_from_slice(more.0.as_bytes());
    ([(header::CONTENT_TYPE, content_type)], page).into_response()
}

/// Families in Prometheus' text format.
#[derive(Default)]
struct Text(String);

impl Text {
    /// A family with one value for each of `models` that has one.
    fn family<'a, V: Display>(
        &mut self,
        (name, kind, help): (&str, &str, &str),
        samples: impl Iterator<Item = (Vec<(&'static str, &'a str)>, V)>,
    ) {
        // Writing into a string never fails.
        let _ = write!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
        for (labels, value) in samples {
            let labels: Vec<String> = labels
                .into_iter()
                .map(|(key, value)| format!("{key}=\"{}\"", escaped(value)))
                .collect();
            let _ = writeln!(self.0, "{name}{{{}}} {value}", labels.join(","));
        }
    }
}

fn escaped(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

type Models = [std::sync::Arc<ServedModel>];

fn labels(model: &ServedModel) -> Vec<(&'static str, &str)> {
    vec![("model", &model.name), ("version", &model.version)]
}

fn triton(text: &mut Text, models: &Models) {
    let readings: Vec<_> = models
        .iter()
        .map(|model| (model, model.statistics.read()))
        .collect();
    let mut each = |name: &str, kind: &str, help: &str, read: &dyn Fn(&_) -> u64| {
        let samples = readings
            .iter()
            .map(|(model, reading)| (labels(model), read(reading)));
        text.family((name, kind, help), samples);
    };
    each(
        "nv_inference_request_success",
        "counter",
        "Number of successful inference requests, all batch sizes",
        &|reading: &crate::telemetry::Snapshot| reading.success.count,
    );
    each(
        "nv_inference_count",
        "counter",
        "Number of inferences performed (does not include cached requests)",
        &|reading| reading.rows,
    );
    each(
        "nv_inference_exec_count",
        "counter",
        "Number of model executions performed (does not include cached requests)",
        &|reading| reading.batches,
    );
    each(
        "nv_inference_request_duration_us",
        "counter",
        "Cumulative inference request duration in microseconds (includes cached requests)",
        &|reading| reading.success.ns / 1000,
    );
    each(
        "nv_inference_queue_duration_us",
        "counter",
        "Cumulative inference queuing duration in microseconds (includes cached requests)",
        &|reading| reading.queue.ns / 1000,
    );
    each(
        "nv_inference_compute_input_duration_us",
        "counter",
        "Cumulative compute input duration in microseconds (does not include cached requests)",
        &|reading| reading.input.ns / 1000,
    );
    each(
        "nv_inference_compute_infer_duration_us",
        "counter",
        "Cumulative compute inference duration in microseconds (does not include cached requests)",
        &|reading| reading.execute.ns / 1000,
    );
    each(
        "nv_inference_compute_output_duration_us",
        "counter",
        "Cumulative inference compute output duration in microseconds (does not include cached \
         requests)",
        &|reading| reading.output.ns / 1000,
    );
    each(
        "nv_cache_num_hits_per_model",
        "counter",
        "Number of cache hits per model",
        &|reading| reading.cache_hit.count,
    );
    each(
        "nv_cache_num_misses_per_model",
        "counter",
        "Number of cache misses per model",
        &|reading| reading.cache_miss.count,
    );
    let failures = models.iter().flat_map(|model| {
        let reasons = [
            ("REJECTED", &[Outcome::Overloaded][..]),
            ("CANCELED", &[Outcome::Cancelled]),
            ("BACKEND", &[Outcome::Internal]),
            (
                "OTHER",
                &[
                    Outcome::Invalid,
                    Outcome::DeadlineExceeded,
                    Outcome::Unavailable,
                ],
            ),
        ];
        reasons.map(|(reason, outcomes)| {
            let mut labels = labels(model);
            labels.push(("reason", reason));
            let requests = outcomes.iter().map(|&at| model.metrics.requests(at));
            (labels, requests.sum::<u64>())
        })
    });
    let help = "Number of failed inference requests, all batch sizes";
    text.family(("nv_inference_request_failure", "counter", help), failures);
    let pending = models
        .iter()
        .map(|model| (labels(model), model.traffic.in_flight()));
    let help = "Instantaneous number of pending requests awaiting execution per-model.";
    let name = "nv_inference_pending_request_count";
    text.family((name, "gauge", help), pending);
}

fn gateway(text: &mut Text, models: &Models) {
    fn model_name(model: &ServedModel) -> Vec<(&'static str, &str)> {
        vec![("model_name", &model.name)]
    }
    let waiting = models.iter().map(|model| {
        let waiting = model.metrics.waiting_rows.get();
        (model_name(model), waiting)
    });
    let help = "Number of requests waiting to be processed.";
    text.family(("vllm:num_requests_waiting", "gauge", help), waiting);
    let running = models.iter().map(|model| {
        let running = match &model.runner {
            Runner::Decoder(decoder) => decoder.metrics.running.get(),
            Runner::Encoder(_) => {
                let waiting = model.metrics.waiting_rows.get();
                (model.traffic.in_flight() as i64 - waiting).max(0)
            }
        };
        (model_name(model), running)
    });
    let help = "Number of requests in model execution batches.";
    text.family(("vllm:num_requests_running", "gauge", help), running);
    let decoders: Vec<_> = models
        .iter()
        .filter_map(|model| match &model.runner {
            Runner::Decoder(decoder) => Some((model, &decoder.metrics)),
            Runner::Encoder(_) => None,
        })
        .collect();
    let used = decoders.iter().map(|(model, metrics)| {
        let used = metrics.used_blocks.get();
        let all = used + metrics.cached_blocks.get() + metrics.free_blocks.get();
        (model_name(model), used as f64 / all.max(1) as f64)
    });
    let help = "KV-cache usage. 1 means 100 percent usage.";
    text.family(("vllm:kv_cache_usage_perc", "gauge", help), used);
    let sizes: Vec<(String, String)> = decoders
        .iter()
        .map(|(model, metrics)| {
            let blocks = [
                &metrics.used_blocks,
                &metrics.cached_blocks,
                &metrics.free_blocks,
            ];
            let blocks: i64 = blocks.iter().map(|gauge| gauge.get()).sum();
            (
                model.manifest.generate.block_size.to_string(),
                blocks.to_string(),
            )
        })
        .collect();
    let info = decoders
        .iter()
        .zip(&sizes)
        .map(|((model, _), (size, blocks))| {
            let mut labels = model_name(model);
            labels.push(("block_size", size.as_str()));
            labels.push(("num_gpu_blocks", blocks.as_str()));
            (labels, 1)
        });
    let help = "Information of the KV cache.";
    text.family(("vllm:cache_config_info", "gauge", help), info);
}
