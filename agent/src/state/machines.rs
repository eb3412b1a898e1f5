//! What is stored of machines: where their failover is, their policy, their group; and the retention volume.

use jiff::Timestamp;
use rusqlite::{OptionalExtension, params};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{State, StateError};
use crate::failover::table;

/// What is stored of a machine. A machine of which nothing is stored replicates, with the default policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MachineRecord {
    /// Where its failover is.
    pub failover: table::State,
    /// The point of the failover, an epoch.
    pub to: Option<u64>,
    /// The newest epoch before the failover rolled: where "cancel" goes back to.
    pub before: Option<u64>,
    /// Points that the failover pinned, and that were not pinned before.
    pub pinned: Vec<u64>,
    /// Until when what is needed to undo a committed failover is kept.
    pub undo_until: Option<Timestamp>,
    /// Whether what was kept for that is gone.
    pub undo_ended: bool,
    /// Why the last step failed.
    pub failure: Option<String>,
    /// Points are kept by this.
    pub policy: Policy,
    /// Machines that share points have the same.
    pub group: Option<String>,
    /// Identity of the retention store, in hexadecimal digits.
    pub store: Option<String>,
    /// An epoch that is complete in that store, the newest or one from a moment ago: a store that ends before it was set back.
    pub committed: u64,
    /// Whether its store was dropped, and may still be there: it is removed before another is made, and never used again.
    pub dropped: bool,
    /// Why its disks may hold a part of an epoch and nothing knows which: its store went before they had what it held. Over when
    /// an epoch, which compares all of them, is complete.
    pub in_doubt: Option<String>,
}

impl Default for MachineRecord {
    fn default() -> Self {
        Self {
            failover: table::State::Replicating,
            to: None,
            before: None,
            pinned: Vec::new(),
            undo_until: None,
            undo_ended: false,
            failure: None,
            policy: Policy::default(),
            group: None,
            store: None,
            committed: 0,
            dropped: false,
            in_doubt: None,
        }
    }
}

/// Which recovery points of a machine are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Policy {
    /// Every point is kept for so long, seconds.
    pub all_for: u64,
    /// Then one an hour for so long, seconds.
    pub hourly_for: u64,
    /// Then one a day for so long, seconds.
    pub daily_for: u64,
    /// No point that is younger is ever dropped, seconds: neither by the policy, nor for space, nor by hand.
    pub minimum_age: u64,
    /// Most bytes that the machine's store may take; 0 for as many as the volume has.
    pub space: u64,
    /// An alarm is raised when the newest epoch is older than this, seconds; 0 for never.
    pub late_after: u64,
}

impl Default for Policy {
    fn default() -> Self {
        const HOUR: u64 = 3600;
        Self {
            all_for: 2 * HOUR,
            hourly_for: 24 * HOUR,
            daily_for: 30 * 24 * HOUR,
            minimum_age: HOUR,
            space: 0,
            late_after: 0,
        }
    }
}

/// Key of the setting that holds the identity of the retention volume.
const VOLUME: &str = "retention-volume";

impl State {
    /// What is stored of a machine.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn machine(&self, name: &str) -> Result<MachineRecord, StateError> {
        self.with(|connection| read(connection, name))
    }

    /// All machines of which something is stored, by name.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn machines(&self) -> Result<Vec<(String, MachineRecord)>, StateError> {
        self.with(|connection| {
            let mut statement =
                connection.prepare_cached("SELECT name, document FROM machine ORDER BY name")?;
            let rows = statement.query_map([], |row| {
                let document: String = row.get(1)?;
                Ok((row.get(0)?, parse(&document)?))
            })?;
            rows.collect()
        })
    }

    /// Changes what is stored of a machine, as one act: whoever comes at the same time sees it before or after. When `work`
    /// refuses, nothing is stored.
    ///
    /// # Errors
    /// When the file cannot be read or written. What `work` answers is inside.
    pub fn change_machine<T, E>(
        &self,
        name: &str,
        work: impl FnOnce(&mut MachineRecord) -> Result<T, E>,
    ) -> Result<Result<T, E>, StateError> {
        self.with(|connection| {
            let mut record = read(connection, name)?;
            let answer = work(&mut record);
            if answer.is_ok() {
                let document = serde_json::to_string(&record)
                    .map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))?;
                connection
                    .prepare_cached("INSERT OR REPLACE INTO machine (name, document) VALUES (?1, ?2)")?
                    .execute(params![name, document])?;
            }
            Ok(answer)
        })
    }

    /// Forgets a machine.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn forget_machine(&self, name: &str) -> Result<(), StateError> {
        self.execute("DELETE FROM machine WHERE name = ?1", [name])
    }

    /// Raises the generation of all pairs of a machine to one more than the highest, durably, and answers it.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn raise_generation(&self, machine: &str) -> Result<u64, StateError> {
        self.with(|connection| {
            connection
                .query_row(
                    "SELECT MAX(generation) FROM pair WHERE machine = ?1",
                    [machine],
                    |row| row.get::<_, Option<i64>>(0),
                )
                .and_then(|newest| {
                    let next = newest.unwrap_or(0) + 1;
                    connection.execute(
                        "UPDATE pair SET generation = ?2 WHERE machine = ?1",
                        params![machine, next],
                    )?;
                    Ok(u64::try_from(next).unwrap_or(0))
                })
        })
    }

    /// Raises the generation of all pairs of a machine to at least this, durably.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn raise_generation_to(&self, machine: &str, generation: u64) -> Result<(), StateError> {
        self.execute(
            "UPDATE pair SET generation = MAX(generation, ?2) WHERE machine = ?1",
            params![machine, i64::try_from(generation).unwrap_or(i64::MAX)],
        )
    }

    /// Identity of the retention volume that was set up.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn retention_volume(&self) -> Result<Option<String>, StateError> {
        self.with(|connection| {
            connection
                .query_row("SELECT value FROM setting WHERE key = ?1", [VOLUME], |row| {
                    row.get(0)
                })
                .optional()
        })
    }

    /// Notes the retention volume that was set up.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn set_retention_volume(&self, id: &str) -> Result<(), StateError> {
        self.execute(
            "INSERT OR REPLACE INTO setting (key, value) VALUES (?1, ?2)",
            [VOLUME, id],
        )
    }
}

fn read(connection: &rusqlite::Connection, name: &str) -> rusqlite::Result<MachineRecord> {
    let document = connection
        .query_row("SELECT document FROM machine WHERE name = ?1", [name], |row| {
            row.get::<_, String>(0)
        })
        .optional()?;
    document.map_or_else(|| Ok(MachineRecord::default()), |document| parse(&document))
}

fn parse(document: &str) -> rusqlite::Result<MachineRecord> {
    serde_json::from_str(document).map_err(|error| super::conversion(0, error))
}
