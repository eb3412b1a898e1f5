//! The audit log in the state: who asked for which change, when, and what came of it. Only ever appended to.

use jiff::Timestamp;
use rusqlite::params;

use super::{State, StateError};

/// Entries that are kept; the oldest go first. About 20 MB.
const ENTRIES_MAX: i64 = 100_000;

/// One change that was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// When it was answered.
    pub time: Timestamp,
    /// Who asked: a local user and process, or the address of a peer.
    pub who: String,
    /// What for.
    pub what: String,
    /// What came of it.
    pub result: String,
}

impl State {
    /// Adds an entry.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn add_audit(&self, entry: &Entry) -> Result<(), StateError> {
        self.with(|connection| {
            connection
                .prepare_cached("INSERT INTO audit (time, who, what, result) VALUES (?1, ?2, ?3, ?4)")?
                .execute(params![
                    entry.time.to_string(),
                    entry.who,
                    entry.what,
                    entry.result
                ])?;
            let newest = connection.last_insert_rowid();
            connection
                .prepare_cached("DELETE FROM audit WHERE id <= ?1")?
                .execute([newest - ENTRIES_MAX])
                .map(|_| ())
        })
    }

    /// The newest entries, newest first.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn audit(&self, count: u32) -> Result<Vec<Entry>, StateError> {
        self.with(|connection| {
            let mut statement = connection
                .prepare_cached("SELECT time, who, what, result FROM audit ORDER BY id DESC LIMIT ?1")?;
            statement
                .query_map([count], |row| {
                    let time: String = row.get(0)?;
                    Ok(Entry {
                        time: time.parse().map_err(|error| super::conversion(0, error))?,
                        who: row.get(1)?,
                        what: row.get(2)?,
                        result: row.get(3)?,
                    })
                })?
                .collect()
        })
    }
}
