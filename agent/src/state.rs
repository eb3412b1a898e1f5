//! The durable state of a target: pairs, seedings, jobs. One SQLite file, one agent.
//!
//! Written in WAL mode with `synchronous=FULL`: a method that returns has its change on the disk, power loss included.
//! Nothing on the data path waits for it but the durable marks, once a second for each pair.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;
use mt_blockdev::scsi::ScsiId;
use rusqlite::{Connection, OptionalExtension, Row, params};

use crate::error::{ExitCode, Explain};
use crate::model::{Job, JobId, JobState, NewPair, Pair, PairId, PairName, SeedingMark};

/// The steps from an empty file to today's form. A step, once released, is never changed; a new one goes to the end.
const MIGRATIONS: &[&str] = &[
    "
    CREATE TABLE pair (
        id INTEGER PRIMARY KEY,
        machine TEXT NOT NULL,
        disk TEXT NOT NULL,
        scsi_id TEXT NOT NULL UNIQUE,
        size INTEGER NOT NULL,
        protected_size INTEGER,
        logical_block_size INTEGER NOT NULL,
        generation INTEGER NOT NULL,
        adopted INTEGER NOT NULL,
        overwrite INTEGER NOT NULL,
        created TEXT NOT NULL,
        UNIQUE (machine, disk)
    ) STRICT;
    CREATE TABLE seeding (
        pair INTEGER PRIMARY KEY REFERENCES pair (id) ON DELETE CASCADE,
        seeding_id BLOB NOT NULL,
        durable INTEGER NOT NULL,
        size INTEGER NOT NULL,
        complete INTEGER NOT NULL,
        instance TEXT NOT NULL
    ) STRICT;
    CREATE TABLE job (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        document TEXT NOT NULL
    ) STRICT;
",
    "
    CREATE TABLE machine (
        name TEXT PRIMARY KEY,
        document TEXT NOT NULL
    ) STRICT;
    CREATE TABLE setting (
        key TEXT PRIMARY KEY,
        value TEXT NOT NULL
    ) STRICT;
",
    "
    CREATE TABLE registered (
        id BLOB PRIMARY KEY,
        name TEXT NOT NULL,
        role TEXT NOT NULL,
        state TEXT NOT NULL,
        key BLOB NOT NULL UNIQUE,
        next_key BLOB,
        waiting_key BLOB,
        registered TEXT NOT NULL,
        changed TEXT NOT NULL,
        not_after TEXT NOT NULL,
        approvals INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE speaks_for (
        machine TEXT PRIMARY KEY,
        registered BLOB NOT NULL REFERENCES registered (id) ON DELETE CASCADE
    ) STRICT;
    CREATE TABLE audit (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        time TEXT NOT NULL,
        who TEXT NOT NULL,
        what TEXT NOT NULL,
        result TEXT NOT NULL
    ) STRICT;
",
    "
    CREATE TRIGGER audit_grows AFTER INSERT ON audit WHEN NEW.id < (SELECT MAX(id) FROM audit)
    BEGIN SELECT RAISE(ABORT, 'the audit log is only appended to'); END;
    CREATE TRIGGER audit_keeps BEFORE UPDATE ON audit
    BEGIN SELECT RAISE(ABORT, 'the audit log is only appended to'); END;
    CREATE TRIGGER audit_stays BEFORE DELETE ON audit WHEN OLD.id > (SELECT MAX(id) FROM audit) - 100000
    BEGIN SELECT RAISE(ABORT, 'the audit log is only appended to'); END;
",
];

pub mod audit;
pub mod machines;
pub mod registered;

/// Name of the file in the state folder.
const FILE: &str = "state.db";

/// Document of a job that has its number and not yet its content.
const UNWRITTEN: &str = "{}";

/// Jobs that are kept; the oldest go first.
const JOBS_MAX: i64 = 1000;

/// Why the state cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The folder cannot be made or entered.
    #[error("cannot use the state folder {path}: {source}")]
    Folder {
        /// The folder.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// Another agent has it.
    #[error("the state folder {path} is in use by another agent (process {holder})")]
    Locked {
        /// The folder.
        path: PathBuf,
        /// Its process id, as far as it could be read.
        holder: String,
    },
    /// An older agent kept it one folder higher.
    #[error("the state folder {path} is empty, and {old} holds the state of an older agent, with its pairs")]
    Elsewhere {
        /// The folder.
        path: PathBuf,
        /// Where the state is.
        old: PathBuf,
    },
    /// A newer agent wrote it.
    #[error("{path} has form {found}, this agent knows forms up to {known}; it was left unchanged")]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its form.
        found: i64,
        /// The newest form we know.
        known: usize,
    },
    /// SQLite failed.
    #[error("state file {path}: {source}")]
    Database {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: rusqlite::Error,
    },
    /// A pair of this name exists with another disk.
    #[error("pair {name} exists already, with target disk {scsi_id}; nothing was changed")]
    PairExists {
        /// The pair.
        name: PairName,
        /// Its disk.
        scsi_id: ScsiId,
    },
    /// The disk belongs to another pair.
    #[error("target disk {scsi_id} belongs to pair {name} already; nothing was changed")]
    DiskTaken {
        /// The pair that has it.
        name: PairName,
        /// The disk.
        scsi_id: ScsiId,
    },
}

impl Explain for StateError {
    fn hint(&self) -> Option<String> {
        if let Self::Elsewhere { path, old } = self {
            let (path, old) = (path.display(), old.display());
            return Some(format!(
                "as root: mv {old}/state.db* {path}/ && chown --reference={path} {path}/*, and the same with {old}/identity where \
                 it is there; then start it again. To begin without pairs remove {old}/state.db*"
            ));
        }
        Some(
            match self {
                Self::Elsewhere { .. } => "",
                Self::Folder { .. } => "check [agent] state_dir, its owner and the space on its file system",
                Self::Locked { .. } => "stop the other agent, or give this one its own [agent] state_dir",
                Self::Newer { .. } => "run the newer agent again, or restore a backup of the state made by this one",
                Self::Database { source, .. } if is_damage(source) => {
                    "restore it from a backup, or move it away and add the pairs again: seeding then compares and sends \
                     only what differs"
                }
                Self::Database { .. } => "check the space and the health of the file system it is on",
                Self::PairExists { .. } | Self::DiskTaken { .. } => {
                    "see \"mt-agent pair list\"; \"mt-agent pair remove\" takes a pair away without touching its disk"
                }
            }
            .to_owned(),
        )
    }

    fn exit_code(&self) -> ExitCode {
        match self {
            Self::PairExists { .. } | Self::DiskTaken { .. } | Self::Locked { .. } => ExitCode::Refused,
            Self::Elsewhere { .. } => ExitCode::Config,
            Self::Newer { .. } | Self::Folder { .. } | Self::Database { .. } => ExitCode::Unexpected,
        }
    }
}

fn is_damage(error: &rusqlite::Error) -> bool {
    use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
    matches!(error.sqlite_error_code(), Some(DatabaseCorrupt | NotADatabase))
}

/// The state, held for one agent.
#[derive(Debug)]
pub struct State {
    path: PathBuf,
    connection: Mutex<Connection>,
    /// Locked as long as this lives; also by a process that was killed, until the kernel has closed it.
    _lock: File,
}

impl State {
    /// Opens the state in `folder`, makes it when it is missing, and marks jobs as interrupted that were running when
    /// the last agent ended.
    ///
    /// # Errors
    /// See [`StateError`]. A file that cannot be read is left as it is.
    pub fn open(folder: &Path) -> Result<Self, StateError> {
        let fail = |source| StateError::Folder {
            path: folder.to_owned(),
            source,
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(fail)?;
        let path = folder.join(FILE);
        // An agent that began with an empty state would know none of its pairs, and say nothing of it.
        if let Some(old) = folder
            .parent()
            .filter(|old| old.join(FILE).exists() && !path.exists())
        {
            return Err(StateError::Elsewhere {
                path: folder.to_owned(),
                old: old.to_owned(),
            });
        }
        let lock = lock(folder)?;
        let database = |source| StateError::Database {
            path: path.clone(),
            source,
        };
        let mut connection = Connection::open(&path).map_err(database)?;
        let found: i64 = prepare(&connection).map_err(database)?;
        let known = MIGRATIONS.len();
        let done = usize::try_from(found).unwrap_or(usize::MAX);
        if done > known {
            return Err(StateError::Newer { path, found, known });
        }
        migrate(&mut connection, done).map_err(database)?;
        let state = Self {
            path: path.clone(),
            connection: Mutex::new(connection),
            _lock: lock,
        };
        state.interrupt_running()?;
        Ok(state)
    }

    /// All pairs, by name.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn pairs(&self) -> Result<Vec<Pair>, StateError> {
        self.with(|connection| {
            let mut statement = connection.prepare_cached("SELECT * FROM pair ORDER BY machine, disk")?;
            statement.query_map([], pair_of)?.collect()
        })
    }

    /// The pair of this name.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn pair(&self, name: &PairName) -> Result<Option<Pair>, StateError> {
        self.with(|connection| {
            connection
                .query_row(
                    "SELECT * FROM pair WHERE machine = ?1 AND disk = ?2",
                    [&name.machine, &name.disk],
                    pair_of,
                )
                .optional()
        })
    }

    /// Adds a pair, or finds that it is there already with the same disk. A pair that is there takes over a
    /// permission to overwrite.
    ///
    /// # Errors
    /// When the name or the disk belongs to another pair, or the file cannot be written.
    pub fn add_pair(&self, new: &NewPair, now: Timestamp) -> Result<Pair, StateError> {
        for pair in self.pairs()? {
            if pair.name == new.name && pair.scsi_id != new.scsi_id {
                return Err(StateError::PairExists {
                    name: pair.name,
                    scsi_id: pair.scsi_id,
                });
            }
            if pair.name != new.name && pair.scsi_id == new.scsi_id {
                return Err(StateError::DiskTaken {
                    name: pair.name,
                    scsi_id: pair.scsi_id,
                });
            }
        }
        self.with(|connection| {
            connection.query_row(
                "INSERT INTO pair (machine, disk, scsi_id, size, logical_block_size, generation, adopted, overwrite, created)
                 VALUES (?1, ?2, ?3, ?4, ?5, 1, 0, ?6, ?7)
                 ON CONFLICT (machine, disk) DO UPDATE SET overwrite = overwrite OR excluded.overwrite
                 RETURNING *",
                params![
                    new.name.machine,
                    new.name.disk,
                    new.scsi_id.to_string(),
                    to_sql(new.size),
                    new.logical_block_size,
                    new.overwrite,
                    now.to_string()
                ],
                pair_of,
            )
        })
    }

    /// Removes a pair and its seeding; says whether it was there.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn remove_pair(&self, name: &PairName) -> Result<bool, StateError> {
        self.with(|connection| {
            let rows = connection.execute(
                "DELETE FROM pair WHERE machine = ?1 AND disk = ?2",
                [&name.machine, &name.disk],
            )?;
            Ok(rows > 0)
        })
    }

    /// Notes that we begin to write the pair's disk, so that its content is ours from now on.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn set_adopted(&self, pair: PairId) -> Result<(), StateError> {
        self.execute(
            "UPDATE pair SET adopted = 1 WHERE id = ?1 AND adopted = 0",
            params![pair.0],
        )
    }

    /// Fixes the size of the protected disk, bytes.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn set_protected_size(&self, pair: PairId, size: u64) -> Result<(), StateError> {
        self.execute(
            "UPDATE pair SET protected_size = ?2 WHERE id = ?1",
            params![pair.0, to_sql(size)],
        )
    }

    /// The newest seeding of a pair.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn seeding(&self, pair: PairId) -> Result<Option<SeedingMark>, StateError> {
        self.with(|connection| {
            let sql = "SELECT seeding_id, durable, size, complete, instance FROM seeding WHERE pair = ?1";
            connection
                .query_row(sql, params![pair.0], |row| {
                    Ok(SeedingMark {
                        seeding_id: row.get(0)?,
                        durable: from_sql(row.get(1)?),
                        size: from_sql(row.get(2)?),
                        complete: row.get(3)?,
                        instance: row.get(4)?,
                    })
                })
                .optional()
        })
    }

    /// Begins a seeding: what was marked durable of an older one is forgotten.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn begin_seeding(
        &self,
        pair: PairId,
        seeding_id: [u8; 16],
        size: u64,
        instance: &str,
    ) -> Result<(), StateError> {
        self.execute(
            "INSERT OR REPLACE INTO seeding (pair, seeding_id, durable, size, complete, instance)
             VALUES (?1, ?2, 0, ?3, 0, ?4)",
            params![pair.0, seeding_id, to_sql(size), instance],
        )
    }

    /// Moves the durable mark of a seeding forward, bytes. The disk was flushed before.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn store_mark(&self, pair: PairId, seeding_id: [u8; 16], durable: u64) -> Result<(), StateError> {
        self.execute(
            "UPDATE seeding SET durable = ?3 WHERE pair = ?1 AND seeding_id = ?2",
            params![pair.0, seeding_id, to_sql(durable)],
        )
    }

    /// Notes that a seeding is complete.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn complete_seeding(&self, pair: PairId, seeding_id: [u8; 16]) -> Result<(), StateError> {
        self.execute(
            "UPDATE seeding SET durable = size, complete = 1 WHERE pair = ?1 AND seeding_id = ?2",
            params![pair.0, seeding_id],
        )
    }

    /// Adds a job and gives it its number; the number in `job` is not looked at.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn insert_job(&self, job: &Job) -> Result<Job, StateError> {
        self.with(|connection| {
            // As one act: a job without its document could not be read when the state is opened again.
            let transaction = connection.unchecked_transaction()?;
            transaction.execute("INSERT INTO job (document) VALUES (?1)", [UNWRITTEN])?;
            let job = Job {
                id: JobId(transaction.last_insert_rowid()),
                ..job.clone()
            };
            put_job(&transaction, &job)?;
            transaction.execute("DELETE FROM job WHERE id <= ?1", [job.id.0 - JOBS_MAX])?;
            transaction.commit()?;
            Ok(job)
        })
    }

    /// Stores a job as it is now.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn update_job(&self, job: &Job) -> Result<(), StateError> {
        self.with(|connection| put_job(connection, job))
    }

    /// Jobs, newest first, at most 1000.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn jobs(&self) -> Result<Vec<Job>, StateError> {
        self.with(|connection| {
            let mut statement = connection.prepare_cached("SELECT document FROM job ORDER BY id DESC")?;
            statement.query_map([], job_of)?.collect()
        })
    }

    /// The job of this number.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn job(&self, id: JobId) -> Result<Option<Job>, StateError> {
        self.with(|connection| {
            connection
                .query_row("SELECT document FROM job WHERE id = ?1", [id.0], job_of)
                .optional()
        })
    }

    fn interrupt_running(&self) -> Result<(), StateError> {
        // Left behind by older agents that were killed while they added a job.
        self.execute("DELETE FROM job WHERE document = ?1", [UNWRITTEN])?;
        for mut job in self.jobs()? {
            if job.state == JobState::Running {
                job.state = JobState::Interrupted;
                job.error = Some("the agent was stopped or killed while the job ran".to_owned());
                job.hint = Some(
                    "run the same command on the source again: it goes on from the last durable mark"
                        .to_owned(),
                );
                self.update_job(&job)?;
            }
        }
        Ok(())
    }

    fn execute(&self, sql: &str, values: impl rusqlite::Params) -> Result<(), StateError> {
        self.with(|connection| connection.prepare_cached(sql)?.execute(values).map(|_| ()))
    }

    fn with<T>(&self, work: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, StateError> {
        let connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        work(&connection).map_err(|source| StateError::Database {
            path: self.path.clone(),
            source,
        })
    }
}

/// Takes the folder for this process, and says who has it when it is taken.
fn lock(folder: &Path) -> Result<File, StateError> {
    let fail = |source| StateError::Folder {
        path: folder.to_owned(),
        source,
    };
    let path = folder.join("agent.lock");
    let mut options = OpenOptions::new();
    let mut file = options
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(fail)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            let read = file.take(20).read_to_string(&mut holder);
            let holder = if read.is_ok() && !holder.trim().is_empty() {
                holder.trim()
            } else {
                "unknown"
            };
            return Err(StateError::Locked {
                path: folder.to_owned(),
                holder: holder.to_owned(),
            });
        }
        Err(TryLockError::Error(source)) => return Err(fail(source)),
    }
    file.set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| writeln!(file, "{}", std::process::id()))
        .map_err(fail)?;
    Ok(file)
}

/// Sets the connection up and tells how many migrations the file has seen.
fn prepare(connection: &Connection) -> rusqlite::Result<i64> {
    connection.busy_timeout(std::time::Duration::from_secs(10))?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    connection.query_row("PRAGMA user_version", [], |row| row.get(0))
}

fn migrate(connection: &mut Connection, done: usize) -> rusqlite::Result<()> {
    for (index, step) in MIGRATIONS.iter().enumerate().skip(done) {
        let transaction = connection.transaction()?;
        transaction.execute_batch(step)?;
        transaction.pragma_update(None, "user_version", to_sql(index as u64 + 1))?;
        transaction.commit()?;
    }
    Ok(())
}

fn put_job(connection: &Connection, job: &Job) -> rusqlite::Result<()> {
    let document = serde_json::to_string(job)
        .map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))?;
    connection
        .prepare_cached("UPDATE job SET document = ?2 WHERE id = ?1")?
        .execute(params![job.id.0, document])?;
    Ok(())
}

fn job_of(row: &Row<'_>) -> rusqlite::Result<Job> {
    let document: String = row.get(0)?;
    serde_json::from_str(&document).map_err(|error| conversion(0, error))
}

fn pair_of(row: &Row<'_>) -> rusqlite::Result<Pair> {
    let scsi_id: String = row.get("scsi_id")?;
    let created: String = row.get("created")?;
    Ok(Pair {
        id: PairId(row.get("id")?),
        name: PairName {
            machine: row.get("machine")?,
            disk: row.get("disk")?,
        },
        scsi_id: scsi_id.parse().map_err(|error| conversion(3, error))?,
        size: from_sql(row.get("size")?),
        protected_size: row.get::<_, Option<i64>>("protected_size")?.map(from_sql),
        logical_block_size: row.get("logical_block_size")?,
        generation: from_sql(row.get("generation")?),
        adopted: row.get("adopted")?,
        overwrite: row.get("overwrite")?,
        created: created.parse().map_err(|error| conversion(10, error))?,
    })
}

fn conversion(column: usize, error: impl std::error::Error + Send + Sync + 'static) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, Box::new(error))
}

/// SQLite's integers are signed; what we store is bounded by the largest disk (2^50) or counts up from 1.
fn to_sql(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn from_sql(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

#[cfg(test)]
mod tests;
