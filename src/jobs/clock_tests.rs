//! What becomes of jobs when the wall clock jumps, as when it is set, or a machine is resumed: they
//! outlive the process, so it is that clock they live by.

use std::{collections::BTreeMap, time::Duration};

use super::{
    handle::until,
    id::{JobId, now_ms},
    record::{JobRecord, JobState, Submitter, Unrun},
    runner::must_end,
    store::Store,
};
use crate::{config::JobsConfig, telemetry::Metrics};

const HOUR: u64 = 3_600_000;
/// Some time in the year 2026.
const CREATED: u64 = 1_790_000_000_000;

fn job(state: JobState) -> JobRecord {
    JobRecord {
        id: JobId(0),
        label: String::new(),
        tenant: String::new(),
        submitter: Submitter::default(),
        metadata: BTreeMap::new(),
        batch: None,
        state,
        total: 10,
        done: 4,
        failed: 0,
        unrun: 0,
        faults: Vec::new(),
        bytes: 0,
        created_ms: CREATED,
        queued_ms: Some(CREATED),
        started_ms: Some(CREATED),
        cancelling_ms: None,
        ended_ms: None,
        expires_ms: CREATED + 24 * HOUR,
    }
}

#[test]
fn a_job_ends_by_the_wall_clock_wherever_that_jumps_and_no_sooner() {
    let running = job(JobState::Running);
    assert_eq!(must_end(&running, CREATED + HOUR), None);
    // Forward by a year: its time is over. Back before its creation: it is not.
    assert_eq!(
        must_end(&running, CREATED + 8760 * HOUR),
        Some(Unrun::Expired)
    );
    assert_eq!(must_end(&running, CREATED - 8760 * HOUR), None);
    assert_eq!(must_end(&running, 0), None);
    let answered = JobRecord {
        done: 10,
        ..job(JobState::Running)
    };
    assert_eq!(
        must_end(&answered, u64::MAX),
        None,
        "nothing is left to give up"
    );
}

#[test]
fn the_wait_for_the_end_of_a_job_is_never_negative_and_ends_in_a_moment_where_it_is_over() {
    assert_eq!(until(CREATED, CREATED - 5), Duration::from_millis(5));
    assert_eq!(until(CREATED, CREATED + 8760 * HOUR), Duration::ZERO);
    assert_eq!(until(CREATED, 0), Duration::from_millis(CREATED));
}

#[test]
fn an_ended_job_is_kept_for_its_time_by_the_wall_clock() {
    let folder = tempfile::tempdir().unwrap();
    let config = JobsConfig {
        directory: folder.path().to_owned(),
        retention_hours: 2,
        ..JobsConfig::default()
    };
    let store = Store::open(config, Metrics::new().jobs()).unwrap();
    let ended = JobRecord {
        ended_ms: Some(CREATED),
        done: 10,
        ..job(JobState::Completed)
    };
    store.create_job(ended).unwrap();
    store.create_job(job(JobState::Running)).unwrap();
    for (now, kept) in [
        (CREATED + HOUR, 2),
        (CREATED - 8760 * HOUR, 2),
        (0, 2),
        (CREATED + 2 * HOUR, 1),
        // One that has not ended is kept, whatever the time.
        (u64::MAX, 1),
    ] {
        store.delete_old(now).unwrap();
        assert_eq!(store.jobs().len(), kept, "{now}");
    }
}

#[test]
fn a_file_is_kept_for_its_time_by_the_wall_clock() {
    let folder = tempfile::tempdir().unwrap();
    let config = JobsConfig {
        directory: folder.path().to_owned(),
        retention_hours: 2,
        ..JobsConfig::default()
    };
    let store = Store::open(config, Metrics::new().jobs()).unwrap();
    let file = store.create_file("rows.jsonl".to_owned()).unwrap();
    store
        .change_file(file.id, |_, file| {
            file.complete = true;
            Ok(())
        })
        .unwrap();
    let now = now_ms();
    for (at, kept) in [(now, 1), (now - 8760 * HOUR, 1), (now + 3 * HOUR, 0)] {
        store.delete_old(at).unwrap();
        assert_eq!(store.files().len(), kept, "{at}");
    }
}
