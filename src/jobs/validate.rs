//! Reads the file of a batch, line by line, into the rows of a job. Nothing of it is run until all of
//! it was understood.

use super::{
    id::JobId,
    lines::{LineSplitter, SeenIds, duplicate_id, read_http_row},
    record::{JobState, LineFault},
    row::{Endpoint, NewRow},
    store::Store,
    submission::{GROUP_BYTES, GROUP_ROWS},
};
use crate::error::RequestError;

/// Faults that are told of one file.
const MAX_FAULTS: usize = 100;

/// Why a file is read no further.
enum Stop {
    /// Its own fault; told.
    Fault(LineFault),
    /// As many faults as are told.
    Enough,
    /// The store's.
    Error(RequestError),
}

impl From<LineFault> for Stop {
    fn from(fault: LineFault) -> Self {
        Self::Fault(fault)
    }
}

/// Reads the file of the batch `id` and puts the job in line, or ends it with what is wrong. Blocks.
/// Begins from the file's beginning, whatever was read before the process ended.
///
/// # Errors
/// Those of the store; the job stays to be validated then.
pub(super) fn validate(store: &Store, id: JobId) -> Result<(), RequestError> {
    let job = store.job(id)?;
    let Some(batch) = &job.batch else {
        return Ok(());
    };
    if job.total > 0 {
        store.clear_rows(id)?;
    }
    let mut reading = Reading {
        store,
        id,
        only: Endpoint::of_path(&batch.endpoint),
        rows: Vec::new(),
        bytes: 0,
        count: 0,
        ids: SeenIds::default(),
        faults: Vec::new(),
    };
    let mut lines = LineSplitter::new(store.config.max_row_bytes);
    let mut part = Some(0);
    let read = loop {
        let Some(at) = part else {
            break lines.finish(|number, line| reading.take(number, line));
        };
        let piece = match store.file_part(batch.input, at) {
            Ok(piece) => piece,
            Err(RequestError::NotFound { .. }) => {
                let message = "the input file was deleted".to_owned();
                break Err(Stop::Fault(whole_file("file_not_found", message)));
            }
            Err(error) => return Err(error),
        };
        if store.job(id)?.state != JobState::Validating {
            // Cancelled meanwhile: what is in needs no more.
            return Ok(());
        }
        part = piece.next;
        if let Err(stop) = lines.push(&piece.bytes, |number, line| reading.take(number, line)) {
            break Err(stop);
        }
    };
    match read.and_then(|()| reading.write()) {
        Ok(()) | Err(Stop::Enough) => {}
        Err(Stop::Fault(fault)) => reading.faults.push(fault),
        Err(Stop::Error(
            error @ (RequestError::InvalidArgument { .. } | RequestError::NoRoom { .. }),
        )) => {
            let message = error.to_string();
            reading.faults.push(whole_file("too_large", message));
        }
        Err(Stop::Error(error)) => return Err(error),
    }
    let mut faults = reading.faults;
    if faults.is_empty() && reading.count == 0 {
        let message = "the input file has no lines".to_owned();
        faults.push(whole_file("empty_file", message));
    }
    if faults.is_empty() {
        store.queue_job(id).map(drop)
    } else {
        store.refuse_job(id, faults)
    }
}

fn whole_file(code: &str, message: String) -> LineFault {
    LineFault {
        line: 0,
        code: code.to_owned(),
        message,
        param: None,
    }
}

struct Reading<'a> {
    store: &'a Store,
    id: JobId,
    only: Option<Endpoint>,
    /// Rows that are not written yet.
    rows: Vec<NewRow>,
    bytes: usize,
    count: u32,
    ids: SeenIds,
    faults: Vec<LineFault>,
}

impl Reading<'_> {
    fn take(&mut self, number: u32, line: &[u8]) -> Result<(), Stop> {
        let row = match read_http_row(number, line, self.only) {
            Ok(row) if self.ids.insert(&row.id) => row,
            Ok(row) => return self.note(duplicate_id(number, &row.id)),
            Err(fault) => return self.note(fault),
        };
        let most = self.store.config.max_rows;
        if self.count >= most {
            let message = format!("more than {most} lines (jobs.max_rows)");
            return Err(Stop::Fault(LineFault {
                line: number,
                ..whole_file("too_many_lines", message)
            }));
        }
        self.count += 1;
        if !self.faults.is_empty() {
            // It will not be run; only further faults matter.
            return Ok(());
        }
        self.bytes += row.body.len();
        self.rows.push(row);
        if self.rows.len() >= GROUP_ROWS || self.bytes >= GROUP_BYTES {
            self.write()?;
        }
        Ok(())
    }

    fn note(&mut self, fault: LineFault) -> Result<(), Stop> {
        self.faults.push(fault);
        if self.faults.len() < MAX_FAULTS {
            return Ok(());
        }
        Err(Stop::Enough)
    }

    fn write(&mut self) -> Result<(), Stop> {
        let rows = std::mem::take(&mut self.rows);
        self.bytes = 0;
        if rows.is_empty() || !self.faults.is_empty() {
            return Ok(());
        }
        self.store.add_rows(self.id, &rows).map_err(Stop::Error)
    }
}
