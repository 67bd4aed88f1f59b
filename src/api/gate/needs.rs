//! What each call needs to be let in: the one table of paths.

use crate::{
    admission::Need,
    config::{admin::RepositoryRpcs, auth::Scope},
};

/// What a gRPC call needs, by its path `/package.Service/Method`.
pub fn of_grpc(path: &str, repository_rpcs: RepositoryRpcs) -> Need {
    let Some((service, method)) = path.strip_prefix('/').and_then(|path| path.split_once('/'))
    else {
        return Need::Scope(Scope::Infer);
    };
    match (service, method) {
        ("grpc.health.v1.Health", _)
        | ("inference.GRPCInferenceService", "ServerLive" | "ServerReady" | "ModelReady") => {
            Need::Nothing
        }
        (
            "inference.GRPCInferenceService",
            "RepositoryModelLoad" | "RepositoryModelUnload" | "TraceSetting" | "LogSettings",
        ) => match repository_rpcs {
            // An admin token comes in the place of the key, and is looked at further in.
            RepositoryRpcs::Token => Need::Nothing,
            RepositoryRpcs::Open | RepositoryRpcs::Off => Need::Scope(Scope::Operate),
        },
        ("ferry.v1.Jobs", _) => Need::Scope(Scope::Jobs),
        (
            "inference.GRPCInferenceService",
            "ServerMetadata" | "ModelMetadata" | "ModelConfig" | "ModelStatistics"
            | "RepositoryIndex",
        )
        | ("grpc.reflection.v1.ServerReflection" | "grpc.reflection.v1alpha.ServerReflection", _) => {
            Need::Key
        }
        // What is added later is not open before it stands here.
        _ => Need::Scope(Scope::Infer),
    }
}

/// What an HTTP request needs, by its path.
pub fn of_http(path: &str, open_metrics: bool) -> Need {
    let is_in = |route: &str| {
        path.strip_prefix(route)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    if is_in("/health") || is_in("/v2/health") || is_page(path) {
        Need::Nothing
    } else if path == "/metrics" {
        if open_metrics {
            Need::Nothing
        } else {
            Need::Scope(Scope::Metrics)
        }
    } else if is_in("/v1/files") || is_in("/v1/batches") {
        Need::Scope(Scope::Jobs)
    } else if is_in("/v1/models") || path == "/dashboard/status" {
        Need::Key
    } else {
        // What is added later is not open before it stands here.
        Need::Scope(Scope::Infer)
    }
}

/// Files of the dashboard tell nothing; what it shows is asked for with a key.
fn is_page(path: &str) -> bool {
    let file = path.strip_prefix("/dashboard/").unwrap_or_default();
    let kind = file.rsplit_once('.').map(|(_, kind)| kind);
    matches!(path, "/" | "/dashboard" | "/dashboard/") || matches!(kind, Some("js" | "css"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message as _;
    use prost_types::FileDescriptorSet;

    #[test]
    fn every_call_that_runs_a_model_needs_a_key_for_it() {
        let infer = Need::Scope(Scope::Infer);
        for path in [
            "/inference.GRPCInferenceService/ModelInfer",
            "/inference.GRPCInferenceService/ModelStreamInfer",
            "/ferry.v1.Inference/Embed",
            "/ferry.v1.Inference/Stream",
            "/ferry.v1.Inference/NotThereYet",
        ] {
            assert_eq!(of_grpc(path, RepositoryRpcs::Open), infer, "{path}");
        }
        for path in [
            "/v1/embeddings",
            "/v1/chat/completions",
            "/v1/",
            "/v1/x/y",
            "/rerank",
            "/v2/rerank",
            "/ferry.v1.Inference/Embed",
        ] {
            assert_eq!(of_http(path, false), infer, "{path}");
        }
    }

    #[test]
    fn nothing_is_open_by_accident() {
        for path in [
            "",
            "/x",
            "/v1x",
            "/healthx",
            "/v2/healthz",
            "/metrics/",
            "//health",
        ] {
            assert_ne!(of_http(path, true), Need::Nothing, "{path}");
        }
        for path in [
            "",
            "/",
            "/x",
            "/grpc.health.v1.HealthX/Check",
            "grpc.health.v1.Health/Check",
        ] {
            assert_ne!(
                of_grpc(path, RepositoryRpcs::Token),
                Need::Nothing,
                "{path}"
            );
        }
        assert_eq!(of_http("/metrics", false), Need::Scope(Scope::Metrics));
        let load = "/inference.GRPCInferenceService/RepositoryModelLoad";
        assert_eq!(
            of_grpc(load, RepositoryRpcs::Open),
            Need::Scope(Scope::Operate)
        );
    }

    #[test]
    fn of_all_services_only_health_is_open() {
        let files = FileDescriptorSet::decode(crate::api::proto::DESCRIPTORS).unwrap();
        for file in files.file {
            for service in &file.service {
                for method in &service.method {
                    let name = (file.package(), service.name(), method.name());
                    let path = format!("/{}.{}/{}", name.0, name.1, name.2);
                    let open = of_grpc(&path, RepositoryRpcs::Open) == Need::Nothing;
                    let health = ["ServerLive", "ServerReady", "ModelReady"].contains(&name.2);
                    assert_eq!(open, health, "{path}");
                }
            }
        }
    }
}
