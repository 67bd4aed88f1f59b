//! The calls of `ferry.v1.Admin`: each is checked, accounted for, and done by the repository.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::{Request, Response, Status};

use super::{
    action::{self, Outcome, Steps},
    audit::Audit,
    check, encode,
    errors::action_status,
    watch,
};
use crate::{
    admission::Operator,
    api::{
        grpc::Shared,
        proto::ferry::v1::{self as pb, admin_server::Admin},
        status::status_of,
    },
    error::RequestError,
    repository::{Repository, Route},
};

/// Actions under way at a time; each has a thread.
const MAX_ACTIONS: usize = 32;
/// Watches under way at a time.
const MAX_WATCHES: usize = 64;

/// The service.
#[derive(Debug)]
pub struct AdminService {
    shared: Shared,
    actions: Arc<Semaphore>,
    watches: Arc<Semaphore>,
}

impl AdminService {
    pub fn new(shared: Shared) -> Self {
        Self {
            shared,
            actions: Arc::new(Semaphore::new(MAX_ACTIONS)),
            watches: Arc::new(Semaphore::new(MAX_WATCHES)),
        }
    }

    fn repository(&self) -> &Arc<Repository> {
        self.shared.admission.repository()
    }

    fn check_control(&self) -> Result<(), Status> {
        let allowed = self.repository().check_control();
        allowed.map_err(|error| action_status(&error))
    }

    /// Starts an action whose steps are streamed.
    async fn start(
        &self,
        operator: Operator,
        name: &'static str,
        model: String,
        version: u64,
        work: impl FnOnce(&Repository, &str) -> Result<Outcome, RequestError> + Send + 'static,
    ) -> Result<Response<Steps>, Status> {
        check::check_name(&model).map_err(|error| status_of(&error))?;
        self.check_control()?;
        let permit = take(&self.actions, MAX_ACTIONS, "actions")?;
        let asked = match version {
            0 => String::new(),
            version => format!("version {version}"),
        };
        let audit = self.audit(operator, name, &model, asked);
        let named = model.clone();
        let steps = action::start(&self.shared, permit, audit, model, move |repository| {
            work(repository, &named)
        });
        Ok(Response::new(steps.await))
    }

    /// Does what changes a route. It goes to its end even when the caller goes away.
    async fn change(
        &self,
        operator: Operator,
        name: &'static str,
        model: String,
        asked: String,
        work: impl FnOnce(&Repository, &str) -> Result<Route, RequestError> + Send + 'static,
    ) -> Result<Response<pb::RouteResponse>, Status> {
        self.check_control()?;
        let permit = take(&self.actions, MAX_ACTIONS, "actions")?;
        let audit = self.audit(operator, name, &model, asked);
        let repository = Arc::clone(self.repository());
        let working = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            let result = work(&repository, &model);
            audit.close(&result);
            result.map(|route| (model, route))
        });
        let (model, route) = working
            .await
            .map_err(|_| status_of(&RequestError::internal("the action panicked; see the log")))?
            .map_err(|error| action_status(&error))?;
        Ok(Response::new(pb::RouteResponse {
            model,
            route: Some(encode::route(&route)),
        }))
    }

    fn audit(&self, operator: Operator, name: &'static str, model: &str, asked: String) -> Audit {
        let operators = Arc::clone(&self.shared.operators);
        Audit::open(operators, operator, name, model, asked)
    }
}

/// Takes the request apart; the interceptor has put the operator into it.
fn open<T>(request: Request<T>) -> Result<(Operator, T), Status> {
    let (_, extensions, message) = request.into_parts();
    match extensions.get::<Operator>() {
        Some(operator) => Ok((operator.clone(), message)),
        None => Err(status_of(&RequestError::Unauthenticated {
            reason: "the call did not come through the gate".to_owned(),
        })),
    }
}

fn take(
    semaphore: &Arc<Semaphore>,
    most: usize,
    what: &str,
) -> Result<OwnedSemaphorePermit, Status> {
    Arc::clone(semaphore).try_acquire_owned().map_err(|_| {
        status_of(&RequestError::Overloaded {
            what: format!("{most} {what} of operators are under way, {most} may be"),
            retry_after: std::time::Duration::from_secs(1),
        })
    })
}

#[tonic::async_trait]
impl Admin for AdminService {
    async fn status(
        &self,
        request: Request<pb::StatusRequest>,
    ) -> Result<Response<pb::StatusResponse>, Status> {
        let (_, request) = open(request)?;
        encode::named(self.repository(), &request.model)
            .await
            .map(|models| Response::new(pb::StatusResponse { models }))
            .map_err(|error| status_of(&error))
    }

    type WatchStream = watch::Changes;

    async fn watch(
        &self,
        request: Request<pb::WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let (_, request) = open(request)?;
        let permit = take(&self.watches, MAX_WATCHES, "watches")?;
        watch::start(&self.shared, permit, request)
            .await
            .map(Response::new)
            .map_err(|error| status_of(&error))
    }

    type LoadStream = Steps;

    async fn load(
        &self,
        request: Request<pb::LoadRequest>,
    ) -> Result<Response<Self::LoadStream>, Status> {
        let (operator, pb::LoadRequest { model, version }) = open(request)?;
        self.start(
            operator,
            "load",
            model,
            version,
            move |repository, model| {
                let loaded = repository.load(model, chosen(version))?;
                let version = loaded.number();
                Ok(Outcome::new(version, format!("{model} {version} is ready")))
            },
        )
        .await
    }

    type WarmStream = Steps;

    async fn warm(
        &self,
        request: Request<pb::WarmRequest>,
    ) -> Result<Response<Self::WarmStream>, Status> {
        let (operator, pb::WarmRequest { model, version }) = open(request)?;
        let version = check::need_version(version).map_err(|error| status_of(&error))?;
        self.start(
            operator,
            "warm",
            model,
            version,
            move |repository, model| {
                repository.warm(model, version)?;
                Ok(Outcome::new(version, format!("{model} {version} is ready")))
            },
        )
        .await
    }

    type SwapStream = Steps;

    async fn swap(
        &self,
        request: Request<pb::SwapRequest>,
    ) -> Result<Response<Self::SwapStream>, Status> {
        let (operator, pb::SwapRequest { model, version }) = open(request)?;
        let version = check::need_version(version).map_err(|error| status_of(&error))?;
        self.start(
            operator,
            "swap",
            model,
            version,
            move |repository, model| {
                let swap = repository.swap(model, version)?;
                Ok(Outcome {
                    version,
                    summary: encode::swapped(model, &swap),
                    drains: swap.from.into_iter().collect(),
                })
            },
        )
        .await
    }

    type UnloadStream = Steps;

    async fn unload(
        &self,
        request: Request<pb::UnloadRequest>,
    ) -> Result<Response<Self::UnloadStream>, Status> {
        let (operator, pb::UnloadRequest { model, version }) = open(request)?;
        self.start(
            operator,
            "unload",
            model,
            version,
            move |repository, model| {
                repository.unload(model, chosen(version))?;
                Ok(Outcome::new(
                    version,
                    format!("{} takes no more requests", what(model, version)),
                ))
            },
        )
        .await
    }

    type DrainStream = Steps;

    async fn drain(
        &self,
        request: Request<pb::DrainRequest>,
    ) -> Result<Response<Self::DrainStream>, Status> {
        let (operator, pb::DrainRequest { model, version }) = open(request)?;
        self.start(
            operator,
            "drain",
            model,
            version,
            move |repository, model| {
                let loaded = encode::ready_versions(repository, model);
                repository.unload(model, chosen(version))?;
                Ok(Outcome {
                    version,
                    summary: format!(
                        "{} has answered everything and is unloaded",
                        what(model, version)
                    ),
                    drains: match chosen(version) {
                        Some(version) => vec![version],
                        None => loaded,
                    },
                })
            },
        )
        .await
    }

    async fn set_route(
        &self,
        request: Request<pb::SetRouteRequest>,
    ) -> Result<Response<pb::RouteResponse>, Status> {
        let (operator, request) = open(request)?;
        let change = check::check_name(&request.model)
            .and_then(|()| check::route_change(&request))
            .map_err(|error| status_of(&error))?;
        let asked = check::describe(&change);
        self.change(
            operator,
            "route",
            request.model,
            asked,
            move |repository, model| repository.set_route(model, &change),
        )
        .await
    }

    async fn promote(
        &self,
        request: Request<pb::PromoteRequest>,
    ) -> Result<Response<pb::RouteResponse>, Status> {
        let (operator, pb::PromoteRequest { model, force }) = open(request)?;
        check::check_name(&model).map_err(|error| status_of(&error))?;
        let asked = if force { "by force" } else { "" };
        self.change(
            operator,
            "promote",
            model,
            asked.to_owned(),
            move |repository, model| repository.promote(model, force),
        )
        .await
    }

    async fn rollback(
        &self,
        request: Request<pb::RollbackRequest>,
    ) -> Result<Response<pb::RouteResponse>, Status> {
        let (operator, pb::RollbackRequest { model }) = open(request)?;
        check::check_name(&model).map_err(|error| status_of(&error))?;
        self.change(
            operator,
            "rollback",
            model,
            String::new(),
            Repository::rollback,
        )
        .await
    }

    async fn record_baseline(
        &self,
        request: Request<pb::RecordBaselineRequest>,
    ) -> Result<Response<pb::RecordBaselineResponse>, Status> {
        let (operator, pb::RecordBaselineRequest { model, version }) = open(request)?;
        check::check_name(&model).map_err(|error| status_of(&error))?;
        let permit = take(&self.actions, MAX_ACTIONS, "actions")?;
        let audit = self.audit(operator, "baseline", &model, what(&model, version));
        let repository = Arc::clone(self.repository());
        // The file system may be slow.
        let working = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            let result = repository.record_baseline(&model, chosen(version));
            audit.close(&result);
            result.map(|(version, rows)| pb::RecordBaselineResponse {
                model,
                version,
                rows,
            })
        });
        working
            .await
            .map_err(|_| status_of(&RequestError::internal("the action panicked; see the log")))?
            .map(Response::new)
            .map_err(|error| action_status(&error))
    }
}

/// The version that was chosen, if one was.
fn chosen(version: u64) -> Option<u64> {
    Some(version).filter(|version| *version > 0)
}

/// A version, or the whole model.
fn what(model: &str, version: u64) -> String {
    match version {
        0 => model.to_owned(),
        version => format!("{model} {version}"),
    }
}
