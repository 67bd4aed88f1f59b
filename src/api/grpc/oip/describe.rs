//! What the server and a model are: metadata and configuration.

use std::collections::BTreeSet;

use super::tensors::{TensorSpec, inputs_of, outputs_of};
use crate::{
    api::proto::inference::{
        self as pb, model_config::SchedulingChoice, model_metadata_response::TensorMetadata,
    },
    config::Task,
    device::Place,
    repository::ServedModel,
};

pub fn server() -> pb::ServerMetadataResponse {
    let extensions = [
        "classification",
        "model_repository",
        "model_configuration",
        "parameters",
        "schedule_policy",
        "statistics",
        "logging",
    ];
    pb::ServerMetadataResponse {
        name: "ferry".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        extensions: extensions.map(str::to_owned).to_vec(),
    }
}

pub fn metadata(model: &ServedModel) -> pb::ModelMetadataResponse {
    let describe = |spec: TensorSpec| TensorMetadata {
        name: spec.name.to_owned(),
        datatype: spec.datatype.name().to_owned(),
        shape: if generates(model) {
            vec![spec.width]
        } else {
            vec![-1, spec.width]
        },
    };
    pb::ModelMetadataResponse {
        name: model.name.clone(),
        versions: vec![model.version.clone()],
        platform: "ferry".to_owned(),
        inputs: inputs_of(model.task()).into_iter().map(describe).collect(),
        outputs: outputs_of(model).into_iter().map(describe).collect(),
    }
}

/// `max_rows` is what one request may hold; the engine splits it into batches as it sees fit.
pub fn config(model: &ServedModel, max_rows: usize) -> pb::ModelConfig {
    let batching = &model.manifest.batching;
    pb::ModelConfig {
        name: model.name.clone(),
        backend: "ferry".to_owned(),
        // One prompt a request; Ferry makes batches of many requests.
        max_batch_size: if generates(model) { 0 } else { max_rows as i32 },
        model_transaction_policy: Some(pb::ModelTransactionPolicy {
            decoupled: generates(model),
        }),
        input: inputs_of(model.task())
            .into_iter()
            .map(|spec| pb::ModelInput {
                name: spec.name.to_owned(),
                data_type: spec.datatype.config(),
                dims: vec![spec.width],
                optional: spec.optional,
                ..pb::ModelInput::default()
            })
            .collect(),
        output: outputs_of(model)
            .into_iter()
            .map(|spec| pb::ModelOutput {
                name: spec.name.to_owned(),
                data_type: spec.datatype.config(),
                dims: vec![spec.width],
                ..pb::ModelOutput::default()
            })
            .collect(),
        instance_group: vec![instance_group(model)],
        scheduling_choice: (!generates(model)).then_some(SchedulingChoice::DynamicBatching(
            pb::ModelDynamicBatching {
                max_queue_delay_microseconds: batching.max_queue_delay().as_micros() as u64,
                priority_levels: crate::batching::Priority::LEVELS as u64,
                default_priority_level: 2,
                ..pb::ModelDynamicBatching::default()
            },
        )),
        ..pb::ModelConfig::default()
    }
}

/// Its instances. Where GPUs have unlike numbers of them the count is the larger.
fn instance_group(model: &ServedModel) -> pb::ModelInstanceGroup {
    let gpus: BTreeSet<i32> = model
        .places
        .iter()
        .filter_map(|place| match place {
            Place::Cpu => None,
            Place::Cuda(ordinal) => Some(*ordinal as i32),
        })
        .collect();
    let kind = if gpus.is_empty() {
        pb::model_instance_group::Kind::Cpu
    } else {
        pb::model_instance_group::Kind::Gpu
    };
    pb::ModelInstanceGroup {
        name: format!("{}_0", model.name),
        kind: kind.into(),
        count: model.places.len().div_ceil(gpus.len().max(1)) as i32,
        gpus: gpus.into_iter().collect(),
        ..pb::ModelInstanceGroup::default()
    }
}

/// Whether a request may have many responses.
fn generates(model: &ServedModel) -> bool {
    model.task() == Task::Generate
}
