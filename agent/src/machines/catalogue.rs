//! The catalogue of a store: what makes opening it quick, in SQLite beside its segments.
//!
//! It holds a summary of each sealed segment (see `mt_retention::Catalogue`), so that opening reads one block of a segment
//! instead of its footer, and where damage was found, so that the points which depend on it are marked again at the
//! next opening. It follows the log and never leads it: the segments are the truth, each summary counts only with
//! the trailer of its segment, and a catalogue that is missing, old, damaged or of another store costs time and nothing else.
//! No SQL is on the data path.
//!
//! | table | holds |
//! |---|---|
//! | `segment` | number of a sealed segment; its summary, as mt-retention's module `summary` describes it |
//! | `finding` | number of a segment in which damage was found; a JSON list of the findings; BLAKE3 of number and list |
//!
//! `application_id` is `MTRC`, `user_version` the form, written in WAL mode with `synchronous=FULL`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use mt_retention::{Finding, Storage, Store};
use rusqlite::{Connection, OpenFlags, OptionalExtension, params};

/// Name of the file in the folder of a store.
pub const FILE: &str = "catalogue.db";
/// `MTRC` in a database's header.
const APPLICATION: i64 = 0x4d54_5243;
const FORM: i64 = 1;
const TABLES: &str = "
    CREATE TABLE segment (number INTEGER PRIMARY KEY, summary BLOB NOT NULL) STRICT;
    CREATE TABLE finding (number INTEGER PRIMARY KEY, document TEXT NOT NULL, digest BLOB NOT NULL) STRICT;
";
/// Most summaries that are taken from a store at once: its lock is held meanwhile.
const SUMMARIES_AT_ONCE: usize = 32;

/// The catalogue of one store.
#[derive(Debug)]
pub struct Catalogue {
    connection: Connection,
    /// Segments of which it has a summary.
    known: BTreeSet<u64>,
}

/// Summaries of segments on their way from a store to its catalogue.
#[derive(Debug, Default)]
pub struct News {
    added: Vec<(u64, Vec<u8>)>,
    gone: Vec<u64>,
}

impl mt_retention::Catalogue for Catalogue {
    fn summary(&self, segment: u64) -> Option<Vec<u8>> {
        let number = i64::try_from(segment).ok()?;
        self.connection
            .prepare_cached("SELECT summary FROM segment WHERE number = ?1")
            .and_then(|mut statement| statement.query_row([number], |row| row.get(0)).optional())
            .ok()
            .flatten()
    }
}

impl Catalogue {
    /// Opens the catalogue in the folder of a store, or begins a new one; what was wrong with the old one is said.
    ///
    /// # Errors
    /// When none can be written there.
    pub fn open(folder: &Path) -> rusqlite::Result<(Self, Option<String>)> {
        let path = folder.join(FILE);
        let was_there = path.exists();
        let why = match Self::open_file(&path) {
            Ok(Some(catalogue)) => return Ok((catalogue, None)),
            Ok(None) => was_there.then(|| "it is no catalogue of this form".to_owned()),
            Err(error) => Some(error.to_string()),
        };
        remove(folder)?;
        let connection = Connection::open(&path)?;
        prepare(&connection)?;
        connection.execute_batch(&format!(
            "BEGIN; {TABLES} PRAGMA application_id = {APPLICATION}; PRAGMA user_version = {FORM}; COMMIT;"
        ))?;
        let catalogue = Self {
            connection,
            known: BTreeSet::new(),
        };
        Ok((catalogue, why))
    }

    /// Opens the catalogue in the folder of a store for reading only, without leaving anything there; `None` when there is
    /// none that can be used.
    pub fn look(folder: &Path) -> Option<Self> {
        let mut uri = "file:".to_owned();
        for byte in folder.join(FILE).as_os_str().as_encoded_bytes() {
            match byte {
                b'/' | b'-' | b'_' | b'.' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' => {
                    uri.push(char::from(*byte))
                }
                other => uri.push_str(&format!("%{other:02x}")),
            }
        }
        // What the owner has in its write-ahead log is not seen; those footers are read instead.
        uri.push_str("?immutable=1");
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
        let connection = Connection::open_with_flags(uri, flags).ok()?;
        Self::of(connection).ok().flatten()
    }

    fn open_file(path: &Path) -> rusqlite::Result<Option<Self>> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        if !path.exists() {
            return Ok(None);
        }
        let connection = Connection::open_with_flags(path, flags)?;
        prepare(&connection)?;
        Self::of(connection)
    }

    fn of(connection: Connection) -> rusqlite::Result<Option<Self>> {
        let number = |pragma: &str| connection.pragma_query_value(None, pragma, |row| row.get::<_, i64>(0));
        if number("application_id")? != APPLICATION || number("user_version")? != FORM {
            return Ok(None);
        }
        let sound: String = connection.pragma_query_value(None, "quick_check", |row| row.get(0))?;
        if sound != "ok" {
            return Ok(None);
        }
        let known = {
            let mut statement = connection.prepare("SELECT number FROM segment")?;
            let rows = statement.query_map([], |row| row.get::<_, i64>(0))?;
            rows.filter_map(|number| number.map(|number| u64::try_from(number).ok()).transpose())
                .collect::<rusqlite::Result<_>>()?
        };
        Ok(Some(Self { connection, known }))
    }

    /// What a store has sealed and dropped that the catalogue does not know; `None` when it is up to date.
    pub fn news<S: Storage>(&self, store: &Store<S>) -> Option<News> {
        let sealed = store.sealed_segments();
        let news = News {
            added: sealed
                .iter()
                .filter(|number| !self.known.contains(number))
                .take(SUMMARIES_AT_ONCE)
                .filter_map(|number| Some((*number, store.summary(*number)?)))
                .collect(),
            gone: self
                .known
                .iter()
                .filter(|number| sealed.binary_search(number).is_err())
                .copied()
                .collect(),
        };
        (!news.added.is_empty() || !news.gone.is_empty()).then_some(news)
    }

    /// Takes news over, as one act.
    ///
    /// # Errors
    /// When the file cannot be written; then it may lack what it was told.
    pub fn take(&mut self, news: &News) -> rusqlite::Result<()> {
        let transaction = self.connection.transaction()?;
        for (number, summary) in &news.added {
            transaction
                .prepare_cached("INSERT OR REPLACE INTO segment (number, summary) VALUES (?1, ?2)")?
                .execute(params![signed(*number), summary])?;
        }
        for number in &news.gone {
            for statement in [
                "DELETE FROM segment WHERE number = ?1",
                "DELETE FROM finding WHERE number = ?1",
            ] {
                transaction.execute(statement, [signed(*number)])?;
            }
        }
        transaction.commit()?;
        for number in &news.gone {
            self.known.remove(number);
        }
        self.known.extend(news.added.iter().map(|(number, _)| *number));
        Ok(())
    }

    /// Takes everything over that a store has sealed and dropped.
    ///
    /// # Errors
    /// As [`Catalogue::take`].
    pub fn follow<S: Storage>(&mut self, store: &Store<S>) -> rusqlite::Result<()> {
        while let Some(news) = self.news(store) {
            self.take(&news)?;
        }
        Ok(())
    }

    /// Forgets the summaries that did not count, so that right ones take their place.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn forget_summaries(&mut self) -> rusqlite::Result<()> {
        self.connection.execute("DELETE FROM segment", [])?;
        self.known.clear();
        Ok(())
    }

    /// Notes what was found in a segment; nothing found takes back what was noted before.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn note(&self, segment: u64, findings: &[Finding]) -> rusqlite::Result<()> {
        let number = signed(segment);
        if findings.is_empty() {
            let statement = "DELETE FROM finding WHERE number = ?1";
            return self.connection.execute(statement, [number]).map(|_| ());
        }
        let document = serde_json::to_string(findings)
            .map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))?;
        self.connection
            .execute(
                "INSERT OR REPLACE INTO finding (number, document, digest) VALUES (?1, ?2, ?3)",
                params![number, document, digest(number, &document)],
            )
            .map(|_| ())
    }

    /// Segments in which damage was found before, and whether a note of that kind cannot be read any more.
    pub fn damaged(&self) -> (Vec<u64>, bool) {
        let read = || -> rusqlite::Result<Vec<(i64, String, Vec<u8>)>> {
            let mut statement = self
                .connection
                .prepare("SELECT number, document, digest FROM finding ORDER BY number")?;
            let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
            rows.collect()
        };
        let Ok(rows) = read() else {
            return (Vec::new(), true);
        };
        let sound = rows
            .iter()
            .all(|(number, text, found)| digest(*number, text) == *found);
        let numbers = rows
            .iter()
            .filter_map(|(number, _, _)| u64::try_from(*number).ok());
        (numbers.collect(), !sound)
    }
}

/// Removes the catalogue of a store.
///
/// # Errors
/// When a file cannot be removed.
pub fn remove(folder: &Path) -> rusqlite::Result<()> {
    for file in files(folder) {
        match std::fs::remove_file(&file) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(rusqlite::Error::ToSqlConversionFailure(Box::new(error)));
            }
            _ => {}
        }
    }
    Ok(())
}

fn files(folder: &Path) -> [PathBuf; 3] {
    ["", "-wal", "-shm"].map(|end| folder.join(format!("{FILE}{end}")))
}

fn prepare(connection: &Connection) -> rusqlite::Result<()> {
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn digest(number: i64, document: &str) -> Vec<u8> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&number.to_le_bytes()).update(document.as_bytes());
    hasher.finalize().as_bytes().to_vec()
}
