//! A disk without room: what needs it fails and says so, all else goes on, and it comes back with the
//! room. The disk is a small tmpfs in a mount namespace of the process's own, which needs no privilege
//! where user namespaces are allowed; elsewhere these tests are skipped, loudly.

use std::{
    fs::File,
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use ferry::api::proto::ferry::v1::{
    Job, JobRow, JobRows, SubmitRequest, inference_client::InferenceClient,
    job_row::Request as Asked, jobs_client::JobsClient, submit_request::Part,
};
use tonic::{Code, Status, transport::Channel};

use super::{
    process::{FERRY, Served, start_by},
    requests::{EMBED, embed},
    support::{http_get, metric_at, models_of},
};

/// A command that ends in `program`, in a world where `disk` is a disk of so many KiB.
fn on_small_disk(disk: &Path, kib: u32, program: &str) -> Command {
    let disk = disk.display();
    let script = format!("mount -t tmpfs -o size={kib}k tmpfs '{disk}' && exec \"$0\" \"$@\"");
    let mut command = Command::new("unshare");
    command.args(["--map-root-user", "--mount", "sh", "-c", &script, program]);
    command
}

/// Whether there can be such a disk here.
fn can_mount(disk: &Path) -> bool {
    let tried = on_small_disk(disk, 64, "true").output();
    let can = tried.as_ref().is_ok_and(|output| output.status.success());
    if !can {
        eprintln!("SKIPPED: no small disk can be mounted here without privileges: {tried:?}");
    }
    can
}

async fn submit(channel: &Channel, rows: usize) -> Result<Job, Status> {
    let row = |at: usize| JobRow {
        id: at.to_string(),
        request: Some(Asked::Embed(embed(1, 60))),
    };
    let rows = JobRows {
        rows: (0..rows).map(row).collect(),
    };
    let part = SubmitRequest {
        part: Some(Part::Rows(rows)),
    };
    let submitted = JobsClient::new(channel.clone())
        .submit(tokio_stream::iter([part]))
        .await;
    submitted.map(tonic::Response::into_inner)
}

/// Takes all the room there is.
fn fill(path: &Path) {
    let mut file = File::create(path).unwrap();
    for size in [1 << 16, 1 << 12, 1] {
        let chunk = vec![0; size];
        while file.write_all(&chunk).is_ok() {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_fails_jobs_and_the_request_log_and_no_call_and_both_come_back_with_room() {
    let disk = tempfile::tempdir().unwrap();
    if !can_mount(disk.path()) {
        return;
    }
    let models = models_of(&[EMBED]);
    let settings = tempfile::NamedTempFile::new().unwrap();
    let (log, jobs) = (disk.path().join("requests.log"), disk.path().join("jobs"));
    let text = format!("[request_log]\nfile = {log:?}\n[jobs]\ndirectory = {jobs:?}\n");
    std::fs::write(settings.path(), text).unwrap();
    let more = ["--config", settings.path().to_str().unwrap()];
    let command = on_small_disk(disk.path(), 8 << 10, FERRY);
    let Served {
        mut child,
        grpc,
        http,
        log: _log,
    } = start_by(command, models.path().to_str().unwrap(), &more);
    // Its disk, seen from outside.
    let inside = |path: &Path| -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", child.id()));
        root.join(path.strip_prefix("/").unwrap())
    };
    let filler = inside(&disk.path().join("filler"));
    let channel = Channel::from_shared(format!("http://{grpc}")).unwrap();
    let channel = channel.connect().await.unwrap();
    let mut client = InferenceClient::new(channel.clone());
    let call = embed(1, 8);
    client.embed(call.clone()).await.unwrap();
    submit(&channel, 10).await.unwrap();

    fill(&filler);
    let began = Instant::now();
    while metric_at(http, "ferry_request_log_failing").await == 0 {
        client.embed(call.clone()).await.unwrap();
        assert!(began.elapsed() < Duration::from_secs(20));
    }
    let error = submit(&channel, 10_000).await.unwrap_err();
    assert_eq!(error.code(), Code::ResourceExhausted, "{error}");
    for _ in 0..20 {
        client.embed(call.clone()).await.unwrap();
    }
    assert_eq!(http_get(http, "/health/ready").await.0, 200);

    std::fs::remove_file(&filler).unwrap();
    let began = Instant::now();
    while let Err(error) = submit(&channel, 10).await {
        assert_eq!(error.code(), Code::ResourceExhausted, "{error}");
        assert!(began.elapsed() < Duration::from_secs(20));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    while metric_at(http, "ferry_request_log_failing").await == 1 {
        client.embed(call.clone()).await.unwrap();
        assert!(began.elapsed() < Duration::from_secs(20));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for line in std::fs::read_to_string(inside(&log)).unwrap().lines() {
        assert!(
            serde_json::from_str::<serde_json::Value>(line).is_ok(),
            "{line}"
        );
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn prepared_weights_that_find_no_room_are_left_out_whole() {
    let disk = tempfile::tempdir().unwrap();
    if !can_mount(disk.path()) {
        return;
    }
    let models = models_of(&[EMBED]);
    let config = tempfile::NamedTempFile::new().unwrap();
    let text = format!("[models]\nprepared_directory = {:?}\n", disk.path());
    std::fs::write(config.path(), text).unwrap();
    let warm = |command: &mut Command| {
        command
            .args(["warm", "--models", models.path().to_str().unwrap()])
            .args(["--config", config.path().to_str().unwrap()])
            .output()
            .unwrap()
    };
    // Half of what they take; what is left on the disk is told after it.
    let script = format!(
        "\"$0\" \"$@\"; code=$?; find {:?} -type f; exit $code",
        disk.path()
    );
    let mut command = on_small_disk(disk.path(), 48, "sh");
    let refused = warm(command.args(["-c", &script, FERRY]));
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success());
    assert!(said.contains("No space left"), "{said}");
    let left = String::from_utf8_lossy(&refused.stdout);
    assert!(
        !left.contains("prepared-") && !left.contains(".prepared"),
        "{left}"
    );

    let mut command = on_small_disk(disk.path(), 4 << 10, FERRY);
    let fits = warm(&mut command);
    assert!(
        fits.status.success(),
        "{}",
        String::from_utf8_lossy(&fits.stderr)
    );
}
