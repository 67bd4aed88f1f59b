//! Operating a running server: `ferry.v1.Admin` on its own listener, who may use it, and
//! `ferry admin` on top of it.

use std::{
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Command, Output, Stdio},
};

use ferry::{
    api::proto::{
        ferry::v1::{self as pb, admin_client::AdminClient, progress::Step},
        inference::{RepositoryModelLoadRequest, RepositoryModelUnloadRequest},
    },
    config::{Secret, ServerConfig, admin::RepositoryRpcs},
    server::Server,
};
use serde_json::Value;
use tonic::{Code, Request, Status, Streaming, transport::Channel};
use tonic_types::StatusExt as _;

use super::support::{Running, add_version, fixture, models_of};

const MODEL: &str = "tiny-bert-embed";
const TOKEN: &str = "a-token-for-tests";

/// A server with a model of three versions, of which the third doesn't load; the first is served.
async fn three_versions(change: impl FnOnce(&mut ServerConfig)) -> Running {
    let models = models_of(&[MODEL]);
    let running = Running::serving(models, change).await;
    let folder = running.models.path();
    add_version(folder, MODEL, 2, &fixture("tiny-bert-embed-f16"));
    let broken = folder.join(MODEL).join("3");
    std::fs::create_dir(&broken).unwrap();
    std::fs::write(broken.join("config.json"), "{}").unwrap();
    running
}

fn with_token(config: &mut ServerConfig) {
    config.admin.token = Some(Secret::new(TOKEN));
}

async fn admin(running: &Running) -> AdminClient<Channel> {
    let address = running.server.admin_address.unwrap();
    AdminClient::connect(format!("http://{address}"))
        .await
        .unwrap()
}

fn bearing<T>(token: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    let authorization = format!("Bearer {token}").parse().unwrap();
    request
        .metadata_mut()
        .insert("authorization", authorization);
    request
}

fn load(version: u64) -> pb::LoadRequest {
    pb::LoadRequest {
        model: MODEL.to_owned(),
        version,
    }
}

fn swap(version: u64) -> pb::SwapRequest {
    pb::SwapRequest {
        model: MODEL.to_owned(),
        version,
    }
}

fn warm(version: u64) -> pb::WarmRequest {
    pb::WarmRequest {
        model: MODEL.to_owned(),
        version,
    }
}

fn set_route() -> pb::SetRouteRequest {
    pb::SetRouteRequest {
        model: MODEL.to_owned(),
        ..pb::SetRouteRequest::default()
    }
}

/// What happened during an action: each version's new states in order, and the end.
async fn follow(
    started: Result<tonic::Response<Streaming<pb::Progress>>, Status>,
) -> Result<(Vec<(u64, pb::VersionState)>, pb::Done), Status> {
    let mut steps = started?.into_inner();
    let mut states = Vec::new();
    loop {
        match steps.message().await?.expect("a last word").step {
            Some(Step::Change(change)) => states.push((change.version, change.to())),
            Some(Step::Waiting(_)) => {}
            Some(Step::Done(done)) => {
                assert!(steps.message().await?.is_none(), "nothing follows");
                return Ok((states, done));
            }
            None => panic!("a step without a content"),
        }
    }
}

async fn status(client: &mut AdminClient<Channel>) -> pb::ModelStatus {
    let request = pb::StatusRequest {
        model: MODEL.to_owned(),
    };
    let mut models = client.status(request).await.unwrap().into_inner().models;
    models.remove(0)
}

fn state_of(status: &pb::ModelStatus, version: u64) -> pb::VersionState {
    let version = status
        .versions
        .iter()
        .find(|found| found.version == version);
    version.unwrap().state()
}

/// The versions that answer `requests` requests that name `version`.
async fn answering(running: &Running, version: &str, requests: usize) -> Vec<String> {
    let mut client = running.typed();
    let mut answered = Vec::new();
    for _ in 0..requests {
        let request = pb::EmbedRequest {
            options: Some(pb::ModelOptions {
                model: MODEL.to_owned(),
                version: version.to_owned(),
                ..pb::ModelOptions::default()
            }),
            texts: vec!["all aboard".to_owned()],
            ..pb::EmbedRequest::default()
        };
        let answer = client.embed(request).await.unwrap().into_inner();
        answered.push(answer.model.unwrap().version);
    }
    answered
}

#[tokio::test]
async fn only_the_right_token_operates() {
    let running = three_versions(with_token).await;
    let mut client = admin(&running).await;
    let asked = pb::StatusRequest::default;
    let missing = client.status(asked()).await.unwrap_err();
    assert_eq!(missing.code(), Code::Unauthenticated);
    let message = missing.message();
    assert!(
        message.contains("FERRY_ADMIN_TOKEN"),
        "says what to do: {message}"
    );
    let wrong = client
        .swap(bearing("another-token-for-tests", swap(2)))
        .await;
    assert_eq!(wrong.unwrap_err().code(), Code::Unauthenticated);
    let right = client.status(bearing(TOKEN, asked())).await.unwrap();
    assert_eq!(right.into_inner().models[0].name, MODEL);

    // Eight more wrong ones are looked at; then even the right one has to wait.
    for _ in 0..8 {
        let wrong = client
            .status(bearing("another-token-for-tests", asked()))
            .await;
        assert_eq!(wrong.unwrap_err().code(), Code::Unauthenticated);
    }
    let limited = client.status(bearing(TOKEN, asked())).await.unwrap_err();
    assert_eq!(limited.code(), Code::ResourceExhausted);
    assert!(limited.get_details_retry_info().is_some());
    let (_, page) = running.http("/metrics").await;
    for line in [
        r#"ferry_admin_refused_total{reason="missing"} 1"#,
        r#"ferry_admin_refused_total{reason="wrong"} 9"#,
        r#"ferry_admin_refused_total{reason="limited"} 1"#,
    ] {
        assert!(page.contains(line), "{line}");
    }
}

#[tokio::test]
async fn a_probe_needs_no_token_and_reflection_does() {
    use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
    use tonic_reflection::pb::v1::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
        server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
    };
    let running = three_versions(with_token).await;
    let address = running.server.admin_address.unwrap();
    let channel = Channel::from_shared(format!("http://{address}")).unwrap();
    let channel = channel.connect().await.unwrap();
    let mut health = HealthClient::new(channel.clone());
    for service in ["", "ferry.v1.Admin"] {
        let request = HealthCheckRequest {
            service: service.to_owned(),
        };
        let answer = health.check(request).await.unwrap().into_inner();
        assert_eq!(answer.status, 1, "serving");
    }
    let list = || {
        tokio_stream::once(ServerReflectionRequest {
            host: String::new(),
            message_request: Some(MessageRequest::ListServices(String::new())),
        })
    };
    let services = |response: Option<MessageResponse>| match response {
        Some(MessageResponse::ListServicesResponse(list)) => {
            let names = list.service.into_iter().map(|service| service.name);
            names
                .filter(|name| !name.starts_with("grpc."))
                .collect::<Vec<_>>()
        }
        other => panic!("{other:?}"),
    };
    let mut reflection = ServerReflectionClient::new(channel);
    let error = reflection.server_reflection_info(list()).await.unwrap_err();
    assert_eq!(error.code(), Code::Unauthenticated);
    let request = bearing(TOKEN, list());
    let mut answers = reflection
        .server_reflection_info(request)
        .await
        .unwrap()
        .into_inner();
    let answer = answers.message().await.unwrap().unwrap().message_response;
    assert_eq!(services(answer), ["ferry.v1.Admin"]);

    // The public port neither tells of it nor has it.
    let mut reflection = ServerReflectionClient::new(running.channel());
    let mut answers = reflection
        .server_reflection_info(list())
        .await
        .unwrap()
        .into_inner();
    let answer = answers.message().await.unwrap().unwrap().message_response;
    assert!(!services(answer).contains(&"ferry.v1.Admin".to_owned()));
    let mut public = AdminClient::new(running.channel());
    let error = public
        .status(bearing(TOKEN, pb::StatusRequest::default()))
        .await;
    assert_eq!(error.unwrap_err().code(), Code::Unimplemented);
}

#[tokio::test]
async fn a_listener_that_other_machines_reach_needs_a_token() {
    let models = models_of(&[MODEL]);
    let mut config = ServerConfig::default();
    config.models.directory = models.path().to_owned();
    config.grpc.host = "127.0.0.1".parse().unwrap();
    config.http.host = config.grpc.host;
    config.admin.host = "0.0.0.0".parse().unwrap();
    (config.grpc.port, config.http.port, config.admin.port) = (0, 0, 0);
    let error = Server::start(config.clone()).await.unwrap_err().to_string();
    assert!(
        error.contains("admin.host") && error.contains("FERRY_ADMIN_TOKEN"),
        "{error}"
    );
    config.admin.token = Some(Secret::new("short"));
    let error = Server::start(config.clone()).await.unwrap_err().to_string();
    assert!(
        error.contains("16 to 256") && !error.contains("short"),
        "{error}"
    );
    with_token(&mut config);
    assert!(Server::start(config.clone()).await.is_ok());
    config.admin.token = None;
    config.admin.enabled = false;
    let server = Server::start(config).await.unwrap();
    assert_eq!(server.admin_address, None);
}

#[tokio::test]
async fn the_public_port_is_no_way_around_the_token() {
    let load = || RepositoryModelLoadRequest {
        model_name: MODEL.to_owned(),
        ..RepositoryModelLoadRequest::default()
    };
    let unload = || RepositoryModelUnloadRequest {
        model_name: MODEL.to_owned(),
        ..RepositoryModelUnloadRequest::default()
    };
    let open = Running::with(&[MODEL]).await;
    open.open().repository_model_load(load()).await.unwrap();
    open.open().repository_model_unload(unload()).await.unwrap();

    let closed = Running::serving(models_of(&[MODEL]), with_token).await;
    let mut client = closed.open();
    let error = client.repository_model_load(load()).await.unwrap_err();
    assert_eq!(error.code(), Code::Unauthenticated);
    let error = client.repository_model_unload(unload()).await.unwrap_err();
    assert_eq!(error.code(), Code::Unauthenticated);
    assert_eq!(answering(&closed, "", 1).await, ["1"], "it serves on");
    let request = bearing(TOKEN, load());
    client.repository_model_load(request).await.unwrap();

    let off = Running::serving(models_of(&[MODEL]), |config| {
        config.admin.repository_rpcs = Some(RepositoryRpcs::Off);
    })
    .await;
    let error = off
        .open()
        .repository_model_unload(unload())
        .await
        .unwrap_err();
    assert_eq!(error.code(), Code::PermissionDenied);
    assert!(
        error.message().contains("ferry admin"),
        "{}",
        error.message()
    );
}

#[tokio::test]
async fn a_version_is_warmed_tried_promoted_and_rolled_back() {
    use pb::VersionState as S;
    let running = three_versions(|_| {}).await;
    let mut client = admin(&running).await;
    let before = status(&mut client).await;
    assert_eq!(
        (state_of(&before, 1), state_of(&before, 2)),
        (S::Ready, S::Absent)
    );

    let (states, done) = follow(client.warm(warm(2)).await).await.unwrap();
    assert_eq!(states.last(), Some(&(2, S::Ready)));
    assert_eq!(done.version, 2);
    assert_eq!(state_of(&done.status.unwrap(), 2), S::Ready);
    assert_eq!(
        answering(&running, "", 4).await,
        ["1"; 4],
        "warm, and no traffic"
    );
    assert_eq!(
        answering(&running, "2", 1).await,
        ["2"],
        "but for those who name it"
    );

    let canary = pb::SetRouteRequest {
        canary: Some(pb::Share {
            version: 2,
            percent: 50.0,
        }),
        labels: [("next".to_owned(), 2)].into(),
        ..set_route()
    };
    let route = client
        .set_route(canary)
        .await
        .unwrap()
        .into_inner()
        .route
        .unwrap();
    assert_eq!((route.stable, route.canary.unwrap().percent), (1, 50.0));
    let answered = answering(&running, "", 40).await;
    let by_canary = answered.iter().filter(|version| *version == "2").count();
    assert!((10..=30).contains(&by_canary), "{by_canary} of 40");
    assert_eq!(answering(&running, "next", 1).await, ["2"]);
    let shown = status(&mut client).await;
    let percents: Vec<f64> = shown
        .versions
        .iter()
        .map(|version| version.percent)
        .collect();
    assert_eq!(percents, [50.0, 50.0, 0.0]);

    let mut promote = pb::PromoteRequest {
        model: MODEL.to_owned(),
        force: false,
    };
    let error = client.promote(promote.clone()).await.unwrap_err();
    assert_eq!(
        error.code(),
        Code::FailedPrecondition,
        "too little was seen"
    );
    assert_eq!(error.get_details_error_info().unwrap().reason, "REFUSED");
    assert!(
        error.message().contains("100 are needed"),
        "{}",
        error.message()
    );
    promote.force = true;
    let route = client
        .promote(promote.clone())
        .await
        .unwrap()
        .into_inner()
        .route
        .unwrap();
    assert_eq!((route.stable, route.canary, route.previous), (2, None, 1));
    assert_eq!(answering(&running, "", 4).await, ["2"; 4]);
    let error = client.promote(promote).await.unwrap_err();
    assert_eq!(
        error.code(),
        Code::FailedPrecondition,
        "nothing is on trial now"
    );

    let rollback = pb::RollbackRequest {
        model: MODEL.to_owned(),
    };
    let route = client
        .rollback(rollback)
        .await
        .unwrap()
        .into_inner()
        .route
        .unwrap();
    assert_eq!(route.stable, 1);
    assert_eq!(answering(&running, "", 4).await, ["1"; 4]);
    let actions: Vec<String> = status(&mut client)
        .await
        .decisions
        .into_iter()
        .map(|decision| decision.action)
        .collect();
    assert_eq!(actions, ["route", "refuse", "promote", "rollback"]);
}

#[tokio::test]
async fn a_swap_tells_each_state_and_the_old_version_is_gone_at_its_end() {
    use pb::VersionState as S;
    let running = three_versions(|_| {}).await;
    let mut client = admin(&running).await;
    let (states, done) = follow(client.swap(swap(2)).await).await.unwrap();
    let of_new: Vec<S> = states
        .iter()
        .filter(|(version, _)| *version == 2)
        .map(|(_, state)| *state)
        .collect();
    assert_eq!(of_new.last(), Some(&S::Ready), "{states:?}");
    assert!(
        done.summary.contains("2 serves instead of 1"),
        "{}",
        done.summary
    );
    let after = done.status.unwrap();
    assert_eq!(
        (state_of(&after, 1), state_of(&after, 2)),
        (S::Absent, S::Ready)
    );
    assert_eq!(after.route.unwrap().stable, 2);
    assert_eq!(answering(&running, "", 1).await, ["2"]);
}

#[tokio::test]
async fn drain_and_unload_take_a_version_and_a_model_out_of_service() {
    use pb::VersionState as S;
    let running = three_versions(|_| {}).await;
    let mut client = admin(&running).await;
    follow(client.load(load(2)).await).await.unwrap();
    assert_eq!(answering(&running, "2", 1).await, ["2"]);
    let drain = pb::DrainRequest {
        model: MODEL.to_owned(),
        version: 2,
    };
    let (_, done) = follow(client.drain(drain).await).await.unwrap();
    let after = done.status.unwrap();
    assert_eq!(
        (state_of(&after, 1), state_of(&after, 2)),
        (S::Ready, S::Absent)
    );
    let unload = pb::UnloadRequest {
        model: MODEL.to_owned(),
        version: 0,
    };
    follow(client.unload(unload).await).await.unwrap();
    let request = pb::EmbedRequest {
        texts: vec!["too late".to_owned()],
        options: Some(pb::ModelOptions {
            model: MODEL.to_owned(),
            ..pb::ModelOptions::default()
        }),
        ..pb::EmbedRequest::default()
    };
    let error = running.typed().embed(request).await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable, "{}", error.message());
    follow(client.load(load(1)).await).await.unwrap();
    assert_eq!(answering(&running, "", 1).await, ["1"]);
}

#[tokio::test]
async fn a_version_that_does_not_load_is_refused_with_the_reason_and_the_old_one_serves() {
    let running = three_versions(|_| {}).await;
    let mut client = admin(&running).await;
    let error = follow(client.swap(swap(3)).await).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition);
    assert!(
        error.message().contains("config.json"),
        "{}",
        error.message()
    );
    assert_eq!(
        error.get_details_error_info().unwrap().reason,
        "LOAD_FAILED"
    );
    let after = status(&mut client).await;
    assert_eq!(state_of(&after, 3), pb::VersionState::Failed);
    let third = after.versions.iter().find(|version| version.version == 3);
    assert!(third.unwrap().reason.contains("config.json"));
    assert_eq!(after.route.unwrap().stable, 1);
    assert_eq!(answering(&running, "", 1).await, ["1"]);
    let (_, page) = running.http("/metrics").await;
    assert!(page.contains(r#"ferry_admin_actions_total{action="swap",result="failed"} 1"#));
}

#[tokio::test]
async fn what_makes_no_sense_is_refused_with_what_would() {
    let running = three_versions(|_| {}).await;
    let mut client = admin(&running).await;
    let check = |case: &str, error: Status, code: Code, part: &str| {
        assert_eq!(error.code(), code, "{case}: {}", error.message());
        assert!(
            error.message().contains(part),
            "{case}: {}",
            error.message()
        );
    };
    let request = |model: &str, version| pb::LoadRequest {
        model: model.to_owned(),
        version,
    };
    for (name, code, part) in [
        ("nobody", Code::NotFound, MODEL),
        ("", Code::InvalidArgument, "model: found no name"),
        ("../models", Code::InvalidArgument, "'/'"),
        ("..", Code::InvalidArgument, "'.' in front"),
        ("/etc", Code::InvalidArgument, "'/'"),
        ("a\0b", Code::InvalidArgument, "control characters"),
    ] {
        let loaded = follow(client.load(request(name, 1)).await).await;
        check(name, loaded.unwrap_err(), code, part);
        let unload = pb::UnloadRequest {
            model: name.to_owned(),
            version: 0,
        };
        let unloaded = follow(client.unload(unload).await).await;
        check(name, unloaded.unwrap_err(), code, part);
        let promote = pb::PromoteRequest {
            model: name.to_owned(),
            force: true,
        };
        check(name, client.promote(promote).await.unwrap_err(), code, part);
    }
    let unknown = follow(client.load(request(MODEL, 77)).await).await;
    check(
        "unknown version",
        unknown.unwrap_err(),
        Code::NotFound,
        "1, 2, 3",
    );
    let unnamed = follow(client.swap(swap(0)).await).await;
    check(
        "no version",
        unnamed.unwrap_err(),
        Code::InvalidArgument,
        "version",
    );
    let nobody = pb::StatusRequest {
        model: "nobody".to_owned(),
    };
    check(
        "status",
        client.status(nobody).await.unwrap_err(),
        Code::NotFound,
        MODEL,
    );
    let watch = pb::WatchRequest {
        model: String::new(),
        interval_ms: 1,
    };
    check(
        "watch",
        client.watch(watch).await.unwrap_err(),
        Code::InvalidArgument,
        "interval_ms",
    );

    let share = |version, percent| Some(pb::Share { version, percent });
    let routes = [
        (
            "nothing",
            set_route(),
            Code::InvalidArgument,
            "one or more of",
        ),
        (
            "a version that isn't ready",
            pb::SetRouteRequest {
                canary: share(2, 10.0),
                ..set_route()
            },
            Code::FailedPrecondition,
            "version 2",
        ),
        (
            "a version that isn't there",
            pb::SetRouteRequest {
                stable: Some(77),
                ..set_route()
            },
            Code::FailedPrecondition,
            "version 77",
        ),
        (
            "more than everything",
            pb::SetRouteRequest {
                canary: share(2, 101.0),
                ..set_route()
            },
            Code::InvalidArgument,
            "0 to 100",
        ),
        (
            "no number",
            pb::SetRouteRequest {
                shadow: share(2, f64::NAN),
                ..set_route()
            },
            Code::InvalidArgument,
            "0 to 100",
        ),
        (
            "its own canary",
            pb::SetRouteRequest {
                canary: share(1, 10.0),
                ..set_route()
            },
            Code::InvalidArgument,
            "canary",
        ),
        (
            "a label that is a number",
            pb::SetRouteRequest {
                labels: [("7".to_owned(), 1)].into(),
                ..set_route()
            },
            Code::InvalidArgument,
            "labels",
        ),
        (
            "no stable version",
            pb::SetRouteRequest {
                stable: Some(0),
                ..set_route()
            },
            Code::InvalidArgument,
            "stable",
        ),
    ];
    for (case, route, code, part) in routes {
        check(case, client.set_route(route).await.unwrap_err(), code, part);
    }
    let error = client
        .rollback(pb::RollbackRequest {
            model: MODEL.to_owned(),
        })
        .await
        .unwrap_err();
    check(
        "nothing to go back to",
        error,
        Code::FailedPrecondition,
        "swap",
    );
    assert_eq!(answering(&running, "", 1).await, ["1"], "after all that");
}

#[tokio::test]
async fn a_client_that_goes_away_does_not_stop_the_work() {
    let running = three_versions(|_| {}).await;
    let mut client = admin(&running).await;
    let watch = pb::WatchRequest::default();
    let mut changes = admin(&running)
        .await
        .watch(watch)
        .await
        .unwrap()
        .into_inner();
    drop(client.swap(swap(2)).await.unwrap());
    drop(client);
    while let Some(message) = changes.message().await.unwrap() {
        let route = message.models.first().and_then(|model| model.route.clone());
        if route.is_some_and(|route| route.stable == 2) {
            assert_eq!(answering(&running, "", 1).await, ["2"]);
            return;
        }
    }
    panic!("the watch ended");
}

#[tokio::test]
async fn a_watch_tells_of_changes_as_they_happen_and_ends_with_the_server() {
    let running = three_versions(|_| {}).await;
    let mut client = admin(&running).await;
    let request = pb::WatchRequest::default();
    let mut changes = client.watch(request).await.unwrap().into_inner();
    let first = changes.message().await.unwrap().unwrap();
    assert_eq!(first.models.len(), 1, "the first has every model");
    follow(client.warm(warm(2)).await).await.unwrap();
    loop {
        let message = changes.message().await.unwrap().unwrap();
        let ready = pb::VersionState::Ready as i32;
        if message
            .changes
            .iter()
            .any(|change| change.version == 2 && change.to == ready)
        {
            break;
        }
    }
    assert!(
        running.server.shut_down().await,
        "an open watch does not hold up the exit"
    );
    while changes.message().await.unwrap().is_some() {}
}

/// Runs `ferry admin` against a server.
async fn ferry(server: String, arguments: &[&str], token: Option<&str>) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ferry"));
    command
        .arg("admin")
        .args(arguments)
        .env("FERRY_ADMIN_SERVER", server);
    command
        .env_remove("FERRY_ADMIN_TOKEN")
        .env_remove("FERRY_ADMIN_TOKEN_FILE");
    if let Some(token) = token {
        command.env("FERRY_ADMIN_TOKEN", token);
    }
    tokio::task::spawn_blocking(move || command.output().unwrap())
        .await
        .unwrap()
}

fn document(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text} {}", told(output)))
}

fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[tokio::test]
async fn the_command_line_swaps_routes_and_rolls_back_in_json() {
    let running = three_versions(|_| {}).await;
    let server = running.server.admin_address.unwrap().to_string();
    let run = |arguments: &'static [&'static str]| ferry(server.clone(), arguments, None);
    let done = |output: Output| {
        assert_eq!(output.status.code(), Some(0), "{}", told(&output));
        document(&output)
    };
    let warmed = run(&["warm", MODEL, "2", "--json"]).await;
    assert!(
        told(&warmed).contains("tiny-bert-embed 2: ready"),
        "{}",
        told(&warmed)
    );
    assert_eq!(done(warmed)["status"]["versions"][1]["state"], "ready");
    let route = done(
        run(&[
            "route", MODEL, "--canary", "2:25", "--label", "next=2", "--json",
        ])
        .await,
    );
    assert_eq!(route["route"]["canary"]["percent"], 25.0);
    assert_eq!(route["route"]["labels"]["next"], 2);
    let status = done(run(&["status", MODEL, "--json"]).await);
    assert_eq!(status["models"][0]["versions"][1]["percent"], 25.0);
    let route = done(run(&["promote", MODEL, "--force", "--json"]).await);
    assert_eq!(
        (&route["route"]["stable"], &route["route"]["previous"]),
        (&2.into(), &1.into())
    );
    let route = done(run(&["rollback", MODEL, "--json"]).await);
    assert_eq!(route["route"]["stable"], 1);
    let swapped = done(run(&["swap", MODEL, "2", "--json"]).await);
    assert_eq!(swapped["version"], 2);
    assert_eq!(swapped["status"]["route"]["stable"], 2);
    let shown = done(run(&["route", MODEL, "--json"]).await);
    assert_eq!(shown["route"]["stable"], 2);
    done(run(&["load", MODEL, "1", "--json"]).await);
    done(run(&["drain", MODEL, "1", "--json"]).await);
    let unloaded = done(run(&["unload", MODEL, "--json"]).await);
    assert_eq!(unloaded["status"]["route"]["stable"], Value::Null);
}

#[tokio::test]
async fn the_command_line_shows_tables_and_says_what_to_do() {
    let running = three_versions(with_token).await;
    let address = running.server.admin_address.unwrap().to_string();
    let run = |arguments: &'static [&'static str]| ferry(address.clone(), arguments, Some(TOKEN));
    let output = run(&["status"]).await;
    let table = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<&str> = table.lines().collect();
    assert!(lines[0].starts_with("MODEL"), "{table}");
    assert!(
        lines[1].contains("tiny-bert-embed") && lines[1].contains("100 %"),
        "{table}"
    );

    // A version that doesn't load: 3, with the reason.
    let output = run(&["swap", MODEL, "3"]).await;
    assert_eq!(output.status.code(), Some(3), "{}", told(&output));
    assert!(told(&output).contains("config.json"), "{}", told(&output));
    let output = run(&["swap", MODEL, "3", "--json"]).await;
    assert_eq!(output.status.code(), Some(3));
    assert_eq!(document(&output)["error"]["reason"], "LOAD_FAILED");
    let output = run(&["route", MODEL, "--canary", "2:10"]).await;
    assert_eq!(
        output.status.code(),
        Some(3),
        "not ready: {}",
        told(&output)
    );

    // Mistakes: 1, with what would be right.
    for (arguments, part) in [
        (&["swap", "nobody", "1"][..], "tiny-bert-embed"),
        (&["swap", MODEL, "77"], "no version '77'"),
        (&["swap", "../x", "1"], "folder"),
        (
            &["status", "--token", "wrong-token-for-tests"],
            "ferry.toml",
        ),
        (&["status", "--token-file", "/nowhere"], "/nowhere"),
        (&["status", "--server", "https://localhost:1"], "--ca"),
        (&["status", "--server", "http://127.0.0.1:1"], "ferry serve"),
    ] {
        let output = run(arguments).await;
        assert_eq!(
            output.status.code(),
            Some(1),
            "{arguments:?}: {}",
            told(&output)
        );
        assert!(
            told(&output).contains(part),
            "{arguments:?}: {}",
            told(&output)
        );
    }
    let output = ferry(address.clone(), &["status"], None).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(told(&output).contains("--token-file"), "{}", told(&output));
    let public = running.server.grpc_address.to_string();
    let output = ferry(public, &["status"], Some(TOKEN)).await;
    assert!(
        told(&output).contains("admin listener"),
        "{}",
        told(&output)
    );
}

#[tokio::test]
async fn a_watch_in_a_pipe_prints_a_line_for_each_change() {
    let running = three_versions(|_| {}).await;
    let mut client = admin(&running).await;
    let mut watching = Command::new(env!("CARGO_BIN_EXE_ferry"))
        .args(["admin", "status", "--watch"])
        .env(
            "FERRY_ADMIN_SERVER",
            running.server.admin_address.unwrap().to_string(),
        )
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(watching.stdout.take().unwrap()).lines();
    let (began, has_begun) = tokio::sync::oneshot::channel();
    let reading = tokio::task::spawn_blocking(move || {
        let mut first = lines.by_ref().map_while(Result::ok);
        // The table of what there is: a header and three versions.
        let table: Vec<String> = first.by_ref().take(4).collect();
        began.send(table).unwrap();
        first.find(|line| line == "tiny-bert-embed 2: ready")
    });
    let table = has_begun.await.unwrap();
    assert!(table[0].starts_with("MODEL"), "{table:?}");
    follow(client.warm(warm(2)).await).await.unwrap();
    assert!(reading.await.unwrap().is_some());
    watching.kill().unwrap();
    watching.wait().unwrap();
}

#[tokio::test]
async fn every_action_is_in_the_audit_log_with_who_and_how_it_went() {
    let models = models_of(&[MODEL]);
    add_version(models.path(), MODEL, 2, &fixture("tiny-bert-embed-f16"));
    let tokens = models.path().join("tokens");
    std::fs::write(
        &tokens,
        format!("anna {TOKEN}\nbert another-token-for-tests\n"),
    )
    .unwrap();
    let (mut child, address, log) = start(models.path(), &tokens);
    for (arguments, token, code) in [
        (&["swap", MODEL, "1"][..], TOKEN, 0),
        (&["swap", MODEL, "9"], "another-token-for-tests", 1),
        (&["swap", MODEL, "1"], "nobody-s-token-here", 1),
    ] {
        let output = ferry(address.clone(), arguments, Some(token)).await;
        assert_eq!(output.status.code(), Some(code), "{}", told(&output));
    }
    let pid = child.id().to_string();
    Command::new("kill").args(["-TERM", &pid]).status().unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let log: Vec<Value> = log
        .join()
        .unwrap()
        .iter()
        .filter_map(|line| serde_json::from_str(line).ok())
        .filter(|event: &Value| event["target"] == "ferry::audit")
        .map(|event| event["fields"].clone())
        .collect();
    assert_eq!(log.len(), 3, "{log:?}");
    for (event, token, result) in [(&log[0], "anna", "ok"), (&log[1], "bert", "failed")] {
        assert_eq!(event["action"], "swap");
        assert_eq!(event["model"], MODEL);
        assert_eq!(event["peer"], "127.0.0.1");
        assert_eq!(event["token"], token);
        assert_eq!(event["result"], result);
    }
    assert_eq!(log[2]["message"], "operator refused");
    let text = format!("{log:?}");
    assert!(
        !text.contains(TOKEN) && !text.contains("nobody-s-token"),
        "no token in the log"
    );
}

/// Starts the binary with a token file; returns its admin address and a thread that collects its log.
fn start(
    models: &Path,
    tokens: &Path,
) -> (
    std::process::Child,
    String,
    std::thread::JoinHandle<Vec<String>>,
) {
    let config = models.join("ferry.toml");
    std::fs::write(&config, "[log]\nformat = \"json\"\n").unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_ferry"))
        .arg("serve")
        .args([
            "--grpc-port",
            "0",
            "--http-port",
            "0",
            "--admin-port",
            "0",
            "--host",
            "127.0.0.1",
        ])
        .arg("--models")
        .arg(models)
        .arg("--config")
        .arg(config)
        .arg("--admin-token-file")
        .arg(tokens)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut admin = None;
    for line in lines.by_ref().map_while(Result::ok) {
        let event: Value = serde_json::from_str(&line).unwrap();
        let fields = &event["fields"];
        if let Some(address) = fields["admin"].as_str() {
            admin = Some(address.to_owned());
        }
        if fields["message"] == "serving" {
            break;
        }
    }
    let rest = std::thread::spawn(move || lines.map_while(Result::ok).collect());
    (child, admin.expect("the server never served"), rest)
}
