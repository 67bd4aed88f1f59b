//! Versions of a model side by side: who is answered by which, and that changing them loses no request.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use ferry::{
    api::proto::ferry::v1::{
        EmbedRequest, GenerateRequest, GenerationOptions, ModelOptions, Sampling, TokenIds,
        generate_request::Prompt,
    },
    config::server::ModelControl,
    repository::{ModelStatus, Repository, RouteChange, Share},
};
use tempfile::TempDir;
use tonic::{Code, Request, Status};

use super::support::{Running, add_version, cosine, fixture, write_manifest};

const MODEL: &str = "tiny-bert-embed";

/// A models folder with the named fixtures as versions 1, 2, … of one model.
fn versions(fixtures: &[&Path], manifest: &str) -> TempDir {
    let models = tempfile::tempdir().unwrap();
    for (at, files) in fixtures.iter().enumerate() {
        add_version(models.path(), MODEL, at as u64 + 1, files);
    }
    write_manifest(
        models.path(),
        MODEL,
        &format!("task = \"embed\"\n{manifest}"),
    );
    models
}

fn whole() -> std::path::PathBuf {
    fixture(MODEL)
}

/// A copy of a fixture whose weights are noise to a large part.
fn damaged(name: &str) -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(fixture(name)).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), copy.path().join(file.file_name())).unwrap();
    }
    let path = copy.path().join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut state = 1_u32;
    for value in bytes[8 + header..].chunks_exact_mut(4) {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let noise = (state >> 8) as f32 / (1 << 23) as f32 - 1.0;
        let damaged = f32::from_le_bytes((&*value).try_into().unwrap()) + noise;
        value.copy_from_slice(&damaged.to_le_bytes());
    }
    std::fs::write(&path, bytes).unwrap();
    copy
}

fn request(version: &str) -> EmbedRequest {
    EmbedRequest {
        options: Some(ModelOptions {
            model: MODEL.to_owned(),
            version: version.to_owned(),
            ..ModelOptions::default()
        }),
        texts: vec!["the ferry leaves at dawn".to_owned()],
        ..EmbedRequest::default()
    }
}

/// The version that answered, and the vector.
async fn embed(
    running: &Running,
    request: Request<EmbedRequest>,
) -> Result<(String, Vec<f32>), Status> {
    let mut answer = running.typed().embed(request).await?.into_inner();
    let row = answer.rows.remove(0);
    assert_eq!(row.error, None);
    Ok((answer.model.unwrap().version, row.embedding))
}

async fn answered_by(running: &Running, version: &str) -> Result<String, Status> {
    let answer = embed(running, Request::new(request(version))).await;
    answer.map(|(version, _)| version)
}

fn status(running: &Running) -> ModelStatus {
    running.server.repository().status_of(MODEL).unwrap()
}

fn state(running: &Running, version: u64) -> &'static str {
    let status = status(running);
    let mut versions = status.versions.iter();
    versions
        .find(|status| status.version == version)
        .map_or("none", |status| status.state)
}

/// Waits for what is sure to come.
async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < Duration::from_secs(60), "never: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Runs an operation off the I/O threads, as the admin service does.
async fn operate<T: Send + 'static>(
    running: &Running,
    operation: impl FnOnce(&Repository) -> T + Send + 'static,
) -> T {
    let repository = Arc::clone(running.server.repository());
    tokio::task::spawn_blocking(move || operation(&repository))
        .await
        .unwrap()
}

fn share(version: u64, percent: f64) -> Option<Share> {
    Some(Share { version, percent })
}

#[tokio::test]
async fn a_request_names_its_version_by_number_label_or_header() {
    let models = versions(
        &[&whole(), &whole()],
        "[versions]\nserve = \"all\"\nstable = 1\nlabels = { blue = 2 }\n",
    );
    let running = Running::serving(models, |_| {}).await;
    for (named, answers) in [
        ("", "1"),
        ("1", "1"),
        ("2", "2"),
        ("stable", "1"),
        ("blue", "2"),
    ] {
        assert_eq!(
            answered_by(&running, named).await.unwrap(),
            answers,
            "{named}"
        );
    }
    let pinned = |named: &str| {
        let mut request = Request::new(request(named));
        let header = "2".parse().unwrap();
        request.metadata_mut().insert("x-ferry-version", header);
        request
    };
    assert_eq!(embed(&running, pinned("")).await.unwrap().0, "2");
    let error = embed(&running, pinned("1")).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    assert!(error.message().contains("x-ferry-version"), "{error}");
    let error = answered_by(&running, "green").await.unwrap_err();
    assert_eq!(error.code(), Code::NotFound);
    assert!(error.message().contains("1, 2, blue, stable"), "{error}");
}

#[tokio::test]
async fn swapping_under_load_fails_no_request_and_frees_what_was_replaced() {
    let models = versions(
        &[&whole(), &fixture("tiny-bert-embed-f16")],
        "[versions]\nserve = [1]\n",
    );
    let running = Arc::new(Running::serving(models, |_| {}).await);
    let over = Arc::new(AtomicBool::new(false));
    let answered = Arc::new(AtomicUsize::new(0));
    let clients: Vec<_> = (0..8)
        .map(|_| {
            let (running, over) = (Arc::clone(&running), Arc::clone(&over));
            let answered = Arc::clone(&answered);
            tokio::spawn(async move {
                while !over.load(Relaxed) {
                    answered_by(&running, "").await.unwrap();
                    answered.fetch_add(1, Relaxed);
                }
            })
        })
        .collect();
    for round in 0..10 {
        let to = 2 - round % 2;
        let before = answered.load(Relaxed);
        until("requests are answered", || {
            answered.load(Relaxed) > before + 8
        })
        .await;
        let swap = operate(&running, move |models| models.swap(MODEL, to)).await;
        assert_eq!(swap.unwrap().from, Some(3 - to));
        assert_eq!(answered_by(&running, "").await.unwrap(), to.to_string());
    }
    over.store(true, Relaxed);
    for client in clients {
        client.await.unwrap();
    }
    until("the old version is gone", || state(&running, 2) == "absent").await;
    assert_eq!(state(&running, 1), "ready");
    assert_eq!(status(&running).decisions.len(), 10);
}

#[tokio::test]
async fn a_generation_ends_on_the_version_it_began_on() {
    let models = tempfile::tempdir().unwrap();
    for version in [1, 2] {
        add_version(models.path(), "llama", version, &fixture("decoders/llama"));
    }
    let manifest = "task = \"generate\"\n[versions]\nserve = [1]\n";
    write_manifest(models.path(), "llama", manifest);
    let running = Running::serving(models, |_| {}).await;
    let long = GenerateRequest {
        model: "llama".to_owned(),
        prompt: Some(Prompt::TokenIds(TokenIds { ids: vec![5, 6, 7] })),
        options: Some(GenerationOptions {
            max_tokens: Some(100),
            ignore_eos: true,
            sampling: Some(Sampling {
                temperature: Some(0.0),
                ..Sampling::default()
            }),
            ..GenerationOptions::default()
        }),
        ..GenerateRequest::default()
    };
    let mut stream = running.typed().generate(long).await.unwrap().into_inner();
    let first = stream.message().await.unwrap().unwrap();
    assert_eq!(first.model.unwrap().version, "1");
    let swapped = operate(&running, |models| models.swap("llama", 2)).await;
    assert_eq!(swapped.unwrap().in_flight, 1);
    let old_state = || {
        let status = running.server.repository().status_of("llama").unwrap();
        status.versions[0].state
    };
    // Unread, the stream holds its version: it is paused, not lost.
    assert_eq!(old_state(), "draining");
    let mut finished = false;
    while let Some(message) = stream.message().await.unwrap() {
        assert!(message.model.is_none_or(|model| model.version == "1"));
        finished |= message.finish.is_some();
    }
    assert!(finished);
    drop(stream);
    until("the old version is gone", || old_state() == "absent").await;
}

#[tokio::test]
async fn a_canary_gets_its_share_and_keeps_its_keys() {
    let models = versions(
        &[&whole(), &whole()],
        "[versions]\nserve = \"all\"\nstable = 1\n[canary]\nversion = 2\npercent = 25\n",
    );
    let running = Running::serving(models, |_| {}).await;
    let mut canary = 0;
    for _ in 0..80 {
        canary += usize::from(answered_by(&running, "").await.unwrap() == "2");
    }
    assert!((18..=22).contains(&canary), "{canary} of 80");
    for key in ["alice", "bob", "carol", "dave"] {
        let keyed = || {
            let mut request = Request::new(request(""));
            let header = key.parse().unwrap();
            request.metadata_mut().insert("x-ferry-route-key", header);
            request
        };
        let first = embed(&running, keyed()).await.unwrap().0;
        for _ in 0..5 {
            assert_eq!(embed(&running, keyed()).await.unwrap().0, first, "{key}");
        }
    }
    let none = operate(&running, |models| models.rollback(MODEL)).await;
    assert_eq!(none.unwrap().canary, None);
    assert_eq!(answered_by(&running, "").await.unwrap(), "1");
}

const RULES: &str = "[rollout]\nmin_requests = 20\nmin_agreement = 0.95\nmax_p99_ratio = 0\n";

/// Requests until both versions have answered enough of them.
async fn compare(running: &Running, least: u64) {
    let began = Instant::now();
    loop {
        answered_by(running, "").await.unwrap();
        let compared = status(running)
            .trial
            .map_or(0, |trial| trial.copies.mirrored);
        if compared >= least {
            return;
        }
        assert!(
            began.elapsed() < Duration::from_secs(60),
            "{compared} compared"
        );
    }
}

#[tokio::test]
async fn a_damaged_shadow_is_refused_promotion_with_the_figures() {
    let bad = damaged(MODEL);
    let manifest = format!(
        "[versions]\nserve = \"all\"\nstable = 1\n[shadow]\nversion = 2\npercent = 100\n{RULES}"
    );
    let running = Running::serving(versions(&[&whole(), bad.path()], &manifest), |_| {}).await;
    let early = operate(&running, |models| models.promote(MODEL, false)).await;
    assert!(early.unwrap_err().to_string().contains("20 are needed"));
    compare(&running, 20).await;
    // Its answers went to nobody.
    assert_eq!(answered_by(&running, "").await.unwrap(), "1");
    let refused = operate(&running, |models| models.promote(MODEL, false)).await;
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("min_agreement: found"), "{refused}");
    let status = status(&running);
    assert_eq!(status.route.stable, Some(1));
    assert_eq!(status.decisions.last().unwrap().action, "refuse");
    let metrics = running.http("/metrics").await.1;
    assert!(
        metrics.contains(r#"ferry_mirrored_requests_total{candidate="2""#),
        "{metrics}"
    );
    let forced = operate(&running, |models| models.promote(MODEL, true)).await;
    assert_eq!(forced.unwrap().stable, Some(2));
}

#[tokio::test]
async fn a_good_shadow_is_promoted() {
    let manifest = format!(
        "[versions]\nserve = \"all\"\nstable = 1\n[shadow]\nversion = 2\npercent = 100\n{RULES}"
    );
    let running = Running::serving(versions(&[&whole(), &whole()], &manifest), |_| {}).await;
    compare(&running, 20).await;
    let promoted = operate(&running, |models| models.promote(MODEL, false)).await;
    let route = promoted.unwrap();
    assert_eq!(
        (route.stable, route.previous, route.shadow),
        (Some(2), Some(1), None)
    );
    assert_eq!(answered_by(&running, "").await.unwrap(), "2");
    // And back: the old one is loaded again if it has gone.
    let back = operate(&running, |models| models.rollback(MODEL)).await;
    assert_eq!(back.unwrap().stable, Some(1));
    assert_eq!(answered_by(&running, "").await.unwrap(), "1");
}

#[tokio::test]
async fn a_damaged_canary_is_rolled_back_by_the_rules() {
    let bad = damaged(MODEL);
    let manifest = format!(
        "[versions]\nserve = \"all\"\nstable = 1\n[canary]\nversion = 2\npercent = 50\n{RULES}\
         automatic = true\nwindow_seconds = 0.2\ncompare_percent = 100\n"
    );
    let running = Running::serving(versions(&[&whole(), bad.path()], &manifest), |_| {}).await;
    let began = Instant::now();
    while status(&running).route.canary.is_some() {
        answered_by(&running, "").await.unwrap();
        assert!(began.elapsed() < Duration::from_secs(60));
    }
    let status = status(&running);
    let decision = status.decisions.last().unwrap();
    assert_eq!(
        (decision.action, decision.by, decision.version),
        ("rollback", "rollout", 2)
    );
    let reason = &decision.reason;
    assert!(
        reason.contains("min_agreement: found") && reason.contains("p99"),
        "{reason}"
    );
    assert_eq!(status.route.stable, Some(1));
    assert_eq!(answered_by(&running, "").await.unwrap(), "1");
}

#[tokio::test]
async fn a_good_canary_is_widened_step_by_step_and_promoted() {
    let manifest = format!(
        "[versions]\nserve = \"all\"\nstable = 1\n[canary]\nversion = 2\npercent = 25\n{RULES}\
         automatic = true\nwindow_seconds = 0.1\ncompare_percent = 100\nsteps = [50]\n\
         promote_after = 1\n"
    );
    let running = Running::serving(versions(&[&whole(), &whole()], &manifest), |_| {}).await;
    let began = Instant::now();
    while status(&running).route.stable != Some(2) {
        answered_by(&running, "").await.unwrap();
        assert!(began.elapsed() < Duration::from_secs(60));
    }
    let actions: Vec<_> = status(&running)
        .decisions
        .iter()
        .map(|decision| decision.action)
        .collect();
    assert_eq!(actions, ["step", "promote"]);
}

#[tokio::test]
async fn a_generating_shadow_is_judged_by_what_it_thinks_of_the_text() {
    let models = tempfile::tempdir().unwrap();
    for version in [1, 2] {
        add_version(models.path(), MODEL, version, &fixture("decoders/llama"));
    }
    let manifest = "task = \"generate\"\n[versions]\nserve = \"all\"\nstable = 1\n\
                    [shadow]\nversion = 2\npercent = 100\n";
    write_manifest(models.path(), MODEL, manifest);
    let running = Running::serving(models, |_| {}).await;
    let request = || GenerateRequest {
        model: MODEL.to_owned(),
        prompt: Some(Prompt::TokenIds(TokenIds { ids: vec![5, 6, 7] })),
        options: Some(GenerationOptions {
            max_tokens: Some(8),
            ..GenerationOptions::default()
        }),
        ..GenerateRequest::default()
    };
    let began = Instant::now();
    loop {
        let mut stream = running
            .typed()
            .generate(request())
            .await
            .unwrap()
            .into_inner();
        while stream.message().await.unwrap().is_some() {}
        let trial = status(&running).trial.unwrap();
        if trial.copies.mirrored >= 3 {
            assert_eq!(trial.copies.failed, 0);
            let agreement = trial.evidence.agreement.unwrap();
            assert!((agreement - 1.0).abs() < 1e-9, "{agreement}");
            return;
        }
        assert!(
            began.elapsed() < Duration::from_secs(60),
            "{:?}",
            trial.copies
        );
    }
}

#[tokio::test]
async fn a_route_to_what_is_not_ready_or_no_share_is_refused() {
    let models = versions(&[&whole(), &whole()], "[versions]\nserve = [1]\n");
    let running = Running::serving(models, |_| {}).await;
    let route = |change: RouteChange| async {
        let route = operate(&running, move |models| models.set_route(MODEL, &change)).await;
        route.map_err(|error| error.to_string())
    };
    let canary = |version, percent| RouteChange {
        canary: Some(share(version, percent)),
        ..RouteChange::default()
    };
    let absent = route(canary(2, 5.0)).await.unwrap_err();
    assert!(
        absent.contains("version 2") && absent.contains("warm it first"),
        "{absent}"
    );
    operate(&running, |models| models.warm(MODEL, 2))
        .await
        .unwrap();
    assert_eq!(answered_by(&running, "2").await.unwrap(), "2");
    assert_eq!(route(canary(2, 5.0)).await.unwrap().canary, share(2, 5.0));
    assert!(
        route(canary(2, 101.0))
            .await
            .unwrap_err()
            .contains("0 to 100")
    );
    assert!(route(canary(1, 5.0)).await.unwrap_err().contains("stable"));
    let label = RouteChange {
        labels: [("7up".to_owned(), Some(1))].into(),
        ..RouteChange::default()
    };
    assert!(route(label).await.unwrap_err().contains("7up"));
    let cut_off = operate(&running, |models| models.unload(MODEL, Some(1))).await;
    assert!(
        cut_off
            .unwrap_err()
            .to_string()
            .contains("swap to another (such as 2) first")
    );
    let none = operate(&running, |models| models.swap(MODEL, 3)).await;
    assert!(none.unwrap_err().to_string().contains("on disk 1, 2"));
}

#[tokio::test]
async fn a_load_that_does_not_fit_is_refused_before_it_starts() {
    let models = versions(&[&whole(), &whole()], "[versions]\nserve = [1]\n");
    // The fixture takes a good tenth of a MiB: one fits, two do not.
    let generating = "task = \"generate\"\n[generate]\ncache_mib = 64\n";
    add_version(models.path(), "llama", 1, &fixture("decoders/llama"));
    write_manifest(models.path(), "llama", generating);
    let running = Running::serving(models, |config| config.models.memory_mib = 16).await;
    let status = running.server.repository().status_of("llama").unwrap();
    let version = &status.versions[0];
    assert_eq!(version.state, "failed");
    assert!(
        version.reason.contains("takes about 64 MiB"),
        "{}",
        version.reason
    );
    assert!(
        version.reason.contains("models.memory_mib = 16"),
        "{}",
        version.reason
    );
    assert_eq!(answered_by(&running, "").await.unwrap(), "1");
}

#[tokio::test]
async fn an_idle_model_makes_room_and_comes_back_when_it_is_asked_for() {
    let models = versions(&[&whole()], "");
    add_version(models.path(), "llama", 1, &fixture("decoders/llama"));
    let generating = "task = \"generate\"\n[generate]\ncache_mib = 15\n";
    write_manifest(models.path(), "llama", generating);
    let running = Running::serving(models, |config| {
        config.models.memory_mib = 15;
        config.models.evict_idle = true;
        config.models.serve = vec![MODEL.to_owned()];
    })
    .await;
    let error = operate(&running, |models| models.load("llama", None)).await;
    // 15 MiB of cache and the weights: too much by themselves, whoever leaves.
    assert!(error.unwrap_err().to_string().contains("MiB are free"));
    assert!(running.server.repository().is_evicted(MODEL));
    assert_eq!(state(&running, 1), "absent");
    assert_eq!(answered_by(&running, "").await.unwrap(), "1");
    assert!(!running.server.repository().is_evicted(MODEL));
}

#[tokio::test]
async fn the_folder_is_followed() {
    let models = versions(&[&whole()], "");
    let running = Running::serving(models, |config| {
        config.models.control = ModelControl::Watch;
        config.models.poll_seconds = 0.05;
    })
    .await;
    let folder = running.models.path().to_owned();
    add_version(&folder, MODEL, 2, &fixture("tiny-bert-embed-f16"));
    until("version 2 answers", || {
        status(&running).route.stable == Some(2)
    })
    .await;
    until("version 1 is gone", || state(&running, 1) == "absent").await;
    // A version that does not load is told of, and changes nothing.
    let broken = tempfile::tempdir().unwrap();
    std::fs::write(broken.path().join("config.json"), "{}").unwrap();
    add_version(&folder, MODEL, 3, broken.path());
    until("version 3 has failed", || state(&running, 3) == "failed").await;
    assert_eq!(answered_by(&running, "").await.unwrap(), "2");
    std::fs::rename(folder.join(MODEL), folder.join(".gone")).unwrap();
    until("the model is unloaded", || {
        status(&running).stable().is_none()
    })
    .await;
    let error = answered_by(&running, "").await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable);
}

#[tokio::test]
async fn routes_outlive_a_restart_where_there_is_a_state_file() {
    let state = tempfile::tempdir().unwrap();
    let file = state.path().join("routes.json");
    let serve = |models: TempDir| {
        let file = file.clone();
        Running::serving(models, |config| config.models.state_file = file)
    };
    let running = serve(versions(&[&whole(), &whole()], "")).await;
    assert_eq!(answered_by(&running, "").await.unwrap(), "2");
    let swap = operate(&running, |models| models.swap(MODEL, 1)).await;
    assert_eq!(swap.unwrap().from, Some(2));
    drop(running);
    let running = serve(versions(&[&whole(), &whole()], "")).await;
    assert_eq!(answered_by(&running, "").await.unwrap(), "1");
    // Until somebody asks for the newest.
    operate(&running, |models| models.load(MODEL, None))
        .await
        .unwrap();
    assert_eq!(answered_by(&running, "").await.unwrap(), "2");
}

#[tokio::test]
async fn the_answers_of_versions_are_their_own() {
    let bad = damaged(MODEL);
    let models = versions(&[&whole(), bad.path()], "[versions]\nserve = \"all\"\n");
    let running = Running::serving(models, |_| {}).await;
    let vector = |version: &'static str| embed(&running, Request::new(request(version)));
    let (first, second) = (vector("1").await.unwrap().1, vector("2").await.unwrap().1);
    assert!(cosine(&first, &second) < 0.9);
    assert_eq!(vector("1").await.unwrap().1, first);
}
