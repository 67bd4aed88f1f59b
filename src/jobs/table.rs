//! The tables of the database, and how rows and results are written in them.

use std::sync::Arc;

use bytes::Bytes;
use redb::{TableDefinition, TableHandle as _, WriteTransaction};
use serde::{Serialize, de::DeserializeOwned};

use super::{
    database::StoreError,
    id::JobId,
    record::{Submitter, Unrun},
    row::{NewRow, Outcome, RowForm, RowWork, StoredResult},
};

/// A record each, as JSON.
pub(super) type Records = TableDefinition<'static, u64, &'static [u8]>;

/// Form, whether it generates, weight, model, id, body.
type Row = (u8, u8, u32, &'static str, &'static str, &'static [u8]);

/// Form, outcome, HTTP status, id, body.
type Ended = (u8, u8, u16, &'static str, &'static [u8]);

pub(super) const JOBS: Records = TableDefinition::new("jobs");
pub(super) const FILES: Records = TableDefinition::new("files");
/// Rows that are still to be run, by job and place.
pub(super) const ROWS: TableDefinition<'static, (u64, u32), Row> = TableDefinition::new("rows");
/// Rows that have ended, by job and place.
pub(super) const RESULTS: TableDefinition<'static, (u64, u32), Ended> =
    TableDefinition::new("results");
/// The contents of files, by file and place.
pub(super) const PARTS: TableDefinition<'static, (u64, u32), &'static [u8]> =
    TableDefinition::new("parts");

/// What a row costs beside its body, id and model: its key and the entry around it.
const ENTRY_BYTES: usize = 48;

/// Makes every table, so that readers find them.
pub(super) fn create_all(transaction: &WriteTransaction) -> Result<(), StoreError> {
    transaction.open_table(JOBS)?;
    transaction.open_table(FILES)?;
    transaction.open_table(ROWS)?;
    transaction.open_table(RESULTS)?;
    transaction.open_table(PARTS)?;
    Ok(())
}

/// The keys of everything that job or file `number` has in a table.
pub(super) fn all_of(number: u64) -> std::ops::RangeInclusive<(u64, u32)> {
    from(number, 0)
}

/// The same, from a place on.
pub(super) fn from(number: u64, place: u32) -> std::ops::RangeInclusive<(u64, u32)> {
    (number, place)..=(number, u32::MAX)
}

pub(super) fn put_record(
    transaction: &WriteTransaction,
    table: Records,
    number: u64,
    record: &impl Serialize,
) -> Result<(), StoreError> {
    let json = serde_json::to_vec(record).map_err(StoreError::damaged)?;
    transaction
        .open_table(table)?
        .insert(number, json.as_slice())?;
    Ok(())
}

pub(super) fn read_record<T: DeserializeOwned>(
    table: Records,
    json: &[u8],
) -> Result<T, StoreError> {
    serde_json::from_slice(json)
        .map_err(|error| StoreError::damaged(format_args!("table {}: {error}", table.name())))
}

/// What a row is counted with.
pub(super) fn row_bytes(row: &NewRow) -> u64 {
    (row.body.len() + row.id.len() + row.model.len() + ENTRY_BYTES) as u64
}

pub(super) fn row_value(row: &NewRow) -> (u8, u8, u32, &str, &str, &[u8]) {
    (
        row.form.to_byte(),
        row.generates.into(),
        row.weight,
        &row.model,
        &row.id,
        &row.body,
    )
}

/// What a row that is kept is counted with.
pub(super) fn kept_row_bytes(value: (u8, u8, u32, &str, &str, &[u8])) -> u64 {
    let (_, _, _, model, id, body) = value;
    (body.len() + id.len() + model.len() + ENTRY_BYTES) as u64
}

/// What a result is counted with.
pub(super) fn result_bytes(id: &str, body: &[u8]) -> u64 {
    (body.len() + id.len() + ENTRY_BYTES) as u64
}

pub(super) fn read_row(
    (job, index): (JobId, u32),
    value: (u8, u8, u32, &str, &str, &[u8]),
    tenant: &Arc<str>,
    submitter: &Arc<Submitter>,
) -> Result<RowWork, StoreError> {
    let (form, generates, weight, model, id, body) = value;
    Ok(RowWork {
        job,
        index,
        id: id.to_owned(),
        tenant: Arc::clone(tenant),
        submitter: Arc::clone(submitter),
        form: read_form(form)?,
        body: Bytes::copy_from_slice(body),
        model: model.to_owned(),
        generates: generates != 0,
        weight,
    })
}

pub(super) fn read_result(
    job: JobId,
    index: u32,
    value: (u8, u8, u16, &str, &[u8]),
) -> Result<StoredResult, StoreError> {
    let (form, outcome, status, id, body) = value;
    let outcome = Outcome::from_byte(outcome)
        .ok_or_else(|| StoreError::damaged(format_args!("{job}: row {index} ended in no way")))?;
    Ok(StoredResult {
        index,
        id: id.to_owned(),
        form: read_form(form)?,
        failed: outcome != Outcome::Done,
        unrun: (outcome == Outcome::Unrun).then(|| Unrun::from_number(status)),
        status,
        body: Bytes::copy_from_slice(body),
    })
}

fn read_form(byte: u8) -> Result<RowForm, StoreError> {
    RowForm::from_byte(byte)
        .ok_or_else(|| StoreError::damaged(format_args!("a row of unknown form {byte}")))
}
