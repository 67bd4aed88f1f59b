//! What is done with a job's rows and results on disk. The rule of the room is kept here: a row is
//! taken out of `rows` and put into `results` by one transaction.

use std::sync::Arc;

use redb::{ReadableTable as _, WriteTransaction};

use super::{
    database::StoreError,
    id::{JobId, now_ms},
    record::{JobRecord, JobState, LineFault, Unrun},
    row::{NewRow, Outcome, RowWork, RunEnd, StoredResult},
    store::Store,
    table::{self, RESULTS, ROWS},
};
use crate::error::RequestError;

/// Rows that one transaction marks as not run.
const GIVEN_UP_AT_A_TIME: usize = 1024;

/// An answer that is to be kept.
pub(super) struct RowEnd {
    pub(super) index: u32,
    pub(super) failed: bool,
    pub(super) status: u16,
    pub(super) body: bytes::Bytes,
}

impl RowEnd {
    /// The end of row `index`; `None` when it is to be run again.
    pub(super) fn of(index: u32, end: RunEnd) -> Option<Self> {
        match end {
            RunEnd::Later { .. } => None,
            RunEnd::Answered {
                failed,
                status,
                body,
            } => Some(Self {
                index,
                failed,
                status,
                body,
            }),
        }
    }
}

impl Store {
    /// Adds rows at the end of a job that is being taken in.
    pub(super) fn add_rows(&self, id: JobId, rows: &[NewRow]) -> Result<(), RequestError> {
        let added: u64 = rows.iter().map(table::row_bytes).sum();
        self.check_room(added)?;
        let most = self.config.max_rows;
        self.change_job(id, |transaction, record| {
            let mut table = transaction.open_table(ROWS)?;
            for row in rows {
                if record.total >= most {
                    let allowed = format!("at most {most} (jobs.max_rows)");
                    return Err(RequestError::invalid("rows", "more rows", allowed).into());
                }
                table.insert((id.0, record.total), table::row_value(row))?;
                record.total += 1;
            }
            record.bytes += added;
            Ok(())
        })
    }

    /// Takes back the rows of a job whose input is to be read from its beginning.
    pub(super) fn clear_rows(&self, id: JobId) -> Result<(), RequestError> {
        self.change_job(id, |transaction, record| {
            drop_rows(transaction, record)?;
            record.total = 0;
            Ok(())
        })
    }

    /// Puts a job in line: all its rows are in.
    pub(super) fn queue_job(&self, id: JobId) -> Result<Arc<JobRecord>, RequestError> {
        self.change_job(id, |_, record| {
            // Who cancelled it meanwhile is heard.
            if record.state == JobState::Validating {
                record.state = JobState::Queued;
            }
            record.queued_ms = Some(now_ms());
            Ok(())
        })?;
        self.job(id)
    }

    /// Ends a job whose input is refused.
    pub(super) fn refuse_job(&self, id: JobId, faults: Vec<LineFault>) -> Result<(), RequestError> {
        self.change_job(id, |transaction, record| {
            drop_rows(transaction, record)?;
            record.total = 0;
            record.faults = faults;
            record.state = JobState::Failed;
            record.ended_ms = Some(now_ms());
            Ok(())
        })
    }

    /// Notes that a job's rows are run from now on.
    pub(super) fn start_job(&self, id: JobId) -> Result<(), RequestError> {
        self.change_job(id, |_, record| {
            if record.state == JobState::Queued {
                record.state = JobState::Running;
                record.started_ms = Some(now_ms());
            }
            Ok(())
        })
    }

    /// Has a job run no more rows. One that has ended stays as it is.
    pub(super) fn cancel_job(&self, id: JobId) -> Result<Arc<JobRecord>, RequestError> {
        if self.job(id)?.state.has_ended() {
            return self.job(id);
        }
        self.change_job(id, |_, record| {
            if !record.state.has_ended() && record.state != JobState::Cancelling {
                record.state = JobState::Cancelling;
                record.cancelling_ms = Some(now_ms());
            }
            Ok(())
        })?;
        self.job(id)
    }

    /// Rows that are still to be run, from a place on: at most so many, and one or as many as have
    /// `most_bytes` together.
    pub(super) fn rows_to_run(
        &self,
        job: &JobRecord,
        from: u32,
        most: usize,
        most_bytes: usize,
    ) -> Result<Vec<RowWork>, RequestError> {
        self.reopen_if_lost()?;
        let tenant: Arc<str> = Arc::from(job.tenant.as_str());
        let submitter = Arc::new(job.submitter.clone());
        self.database.read(|transaction| {
            let table = transaction.open_table(ROWS)?;
            let mut rows = Vec::new();
            let mut bytes = 0;
            for entry in table.range(table::from(job.id.0, from))? {
                let (key, value) = entry?;
                let row =
                    table::read_row((job.id, key.value().1), value.value(), &tenant, &submitter)?;
                bytes += row.body.len();
                rows.push(row);
                if rows.len() >= most || bytes >= most_bytes {
                    break;
                }
            }
            Ok(rows)
        })
    }

    /// Keeps the answers of rows. A row that has one already keeps it.
    pub(super) fn commit_results(&self, id: JobId, ends: &[RowEnd]) -> Result<(), RequestError> {
        let (done, failed) = self.change_job(id, |transaction, record| {
            let mut rows = transaction.open_table(ROWS)?;
            let mut results = transaction.open_table(RESULTS)?;
            let (mut done, mut failed, mut freed, mut added) = (0, 0, 0, 0);
            for end in ends {
                let Some(row) = rows.remove((id.0, end.index))? else {
                    continue;
                };
                let (form, _, _, _, row_id, _) = row.value();
                freed += table::kept_row_bytes(row.value());
                added += table::result_bytes(row_id, &end.body);
                let outcome = if end.failed {
                    failed += 1;
                    Outcome::Failed
                } else {
                    done += 1;
                    Outcome::Done
                };
                let value = (form, outcome as u8, end.status, row_id, &*end.body);
                let before = results.insert((id.0, end.index), value)?;
                debug_assert!(before.is_none(), "a row was in both tables");
            }
            if added > freed {
                self.check_room(added - freed)?;
            }
            record.done += done;
            record.failed += failed;
            record.bytes = (record.bytes + added).saturating_sub(freed);
            Ok((done, failed))
        })?;
        self.metrics.done_rows.inc_by(done.into());
        self.metrics.failed_rows.inc_by(failed.into());
        Ok(())
    }

    /// Marks rows that wait as not run, some at a time; returns whether there are more.
    pub(super) fn give_up_rows(&self, id: JobId, unrun: Unrun) -> Result<bool, RequestError> {
        let (given_up, more) = self.change_job(id, |transaction, record| {
            let mut rows = transaction.open_table(ROWS)?;
            let mut results = transaction.open_table(RESULTS)?;
            let mut places = Vec::new();
            for entry in rows
                .range(table::all_of(id.0))?
                .take(GIVEN_UP_AT_A_TIME + 1)
            {
                places.push(entry?.0.value());
            }
            let more = places.len() > GIVEN_UP_AT_A_TIME;
            places.truncate(GIVEN_UP_AT_A_TIME);
            for place in &places {
                let Some(row) = rows.remove(*place)? else {
                    continue;
                };
                let (form, _, _, _, row_id, _) = row.value();
                let value = (
                    form,
                    Outcome::Unrun as u8,
                    unrun.to_number(),
                    row_id,
                    &[][..],
                );
                results.insert(*place, value)?;
                record.unrun += 1;
                let freed = table::kept_row_bytes(row.value());
                let added = table::result_bytes(row_id, &[]);
                record.bytes = (record.bytes + added).saturating_sub(freed);
            }
            Ok((places.len(), more))
        })?;
        self.metrics.unrun_rows.inc_by(given_up as u64);
        Ok(more)
    }

    /// Ends a job all of whose rows have their results.
    pub(super) fn end_job(&self, id: JobId, unrun: Option<Unrun>) -> Result<(), RequestError> {
        let job = self.job(id)?;
        let sizes = match &job.batch {
            Some(_) => self.file_sizes(id)?,
            None => (0, 0),
        };
        self.change_job(id, |_, record| {
            record.state = unrun.map_or(JobState::Completed, Unrun::state);
            record.ended_ms = Some(now_ms());
            if let Some(batch) = &mut record.batch {
                (batch.output_bytes, batch.error_bytes) = sizes;
            }
            Ok(())
        })
    }

    /// Bytes that a batch's output and error files will have.
    fn file_sizes(&self, id: JobId) -> Result<(u64, u64), RequestError> {
        let (mut output, mut errors, mut from) = (0, 0, 0);
        loop {
            let results = self.results(id, from, 256, 4 << 20)?;
            let Some(last) = results.last() else {
                return Ok((output, errors));
            };
            from = last.index + 1;
            for result in &results {
                let bytes = super::lines::write_http_result(id, result).len() as u64;
                if result.failed {
                    errors += bytes;
                } else {
                    output += bytes;
                }
            }
        }
    }

    /// Results in the order of the rows, from a place on: at most so many, and one or as many as
    /// have `most_bytes` together.
    pub(super) fn results(
        &self,
        id: JobId,
        from: u32,
        most: usize,
        most_bytes: usize,
    ) -> Result<Vec<StoredResult>, RequestError> {
        self.reopen_if_lost()?;
        self.database.read(|transaction| {
            let table = transaction.open_table(RESULTS)?;
            let mut results = Vec::new();
            let mut bytes = 0;
            for entry in table.range(table::from(id.0, from))? {
                let (key, value) = entry?;
                let result = table::read_result(id, key.value().1, value.value())?;
                bytes += result.body.len();
                results.push(result);
                if results.len() >= most || bytes >= most_bytes {
                    break;
                }
            }
            Ok(results)
        })
    }
}

fn drop_rows(transaction: &WriteTransaction, record: &mut JobRecord) -> Result<(), StoreError> {
    transaction
        .open_table(ROWS)?
        .retain_in(table::all_of(record.id.0), |_, _| false)?;
    record.bytes = 0;
    Ok(())
}
