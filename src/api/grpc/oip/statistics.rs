//! The statistics extension.

use crate::{
    admission::{Admission, AllowedModels},
    api::proto::inference as pb,
    error::RequestError,
    repository::ServedModel,
    telemetry::StatDuration,
};

/// The statistics of one model, or of all that are ready, and that the caller may ask, when
/// `name` is empty.
pub fn read(
    admission: &Admission,
    models: &AllowedModels,
    name: &str,
    version: &str,
) -> Result<pb::ModelStatisticsResponse, RequestError> {
    let models = if name.is_empty() {
        let mut ready = admission.repository().all_ready();
        ready.retain(|model| models.allows(&model.name));
        ready
    } else {
        vec![admission.look_up(name, version, models)?]
    };
    Ok(pb::ModelStatisticsResponse {
        model_stats: models.iter().map(|model| of_model(model)).collect(),
    })
}

fn of_model(model: &ServedModel) -> pb::ModelStatistics {
    let snapshot = model.statistics.read();
    let duration = |value: StatDuration| {
        Some(pb::StatisticDuration {
            count: value.count,
            ns: value.ns,
        })
    };
    pb::ModelStatistics {
        name: model.name.clone(),
        version: model.version.clone(),
        last_inference: snapshot.last_inference_ms,
        inference_count: snapshot.rows,
        execution_count: snapshot.batches,
        inference_stats: Some(pb::InferStatistics {
            success: duration(snapshot.success),
            fail: duration(snapshot.fail),
            queue: duration(snapshot.queue),
            compute_input: duration(snapshot.input),
            compute_infer: duration(snapshot.execute),
            compute_output: duration(snapshot.output),
            cache_hit: duration(snapshot.cache_hit),
            cache_miss: duration(snapshot.cache_miss),
        }),
        batch_stats: snapshot
            .by_size
            .into_iter()
            .map(
                |(rows, [input, execute, output])| pb::InferBatchStatistics {
                    batch_size: rows,
                    compute_input: duration(input),
                    compute_infer: duration(execute),
                    compute_output: duration(output),
                },
            )
            .collect(),
        memory_usage: vec![pb::MemoryUsage {
            r#type: "CPU".to_owned(),
            id: 0,
            byte_size: model.memory_bytes,
        }],
        ..pb::ModelStatistics::default()
    }
}
