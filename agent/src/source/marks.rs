//! What the source remembers of a seeding: how far the target has confirmed it.
//!
//! A mark is only used while the image is the one it was made for (its fingerprint) and the target still knows the
//! seeding. Losing this file costs reading, never correctness.

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rusqlite::{Connection, OptionalExtension, params};

use super::SourceError;

/// Names a seeding: target address, pair, and the image's fingerprint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// Address of the target, as given.
    pub target: String,
    /// Name of the pair.
    pub pair: String,
    /// Fingerprint of the image.
    pub fingerprint: String,
}

/// A confirmed mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Mark {
    /// The target's name for the seeding; all zero when there is none.
    pub seeding_id: [u8; 16],
    /// Durable on the target up to here, bytes.
    pub durable: u64,
}

/// The newest epoch of a machine that a target has promised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Confirmed {
    /// The store that it went to; all zero when there is none.
    pub store_id: [u8; 16],
    /// Its number; 0 when there is none.
    pub epoch: u64,
}

/// The file of marks.
#[derive(Debug)]
pub struct Marks {
    path: PathBuf,
    connection: Mutex<Connection>,
}

impl Marks {
    /// Opens or makes the file in `folder`; the folder is made when it is missing, for this user alone.
    ///
    /// # Errors
    /// When folder or file cannot be made or read.
    pub fn open(folder: &Path) -> Result<Self, SourceError> {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(|source| SourceError::StateFolder {
                path: folder.to_owned(),
                source,
            })?;
        let path = folder.join("source.db");
        let open = || {
            let connection = Connection::open(&path)?;
            connection.busy_timeout(std::time::Duration::from_secs(10))?;
            connection.pragma_update(None, "journal_mode", "WAL")?;
            connection.pragma_update(None, "synchronous", "FULL")?;
            connection.execute_batch(
                "CREATE TABLE IF NOT EXISTS mark (
                     target TEXT NOT NULL, pair TEXT NOT NULL, fingerprint TEXT NOT NULL,
                     seeding_id BLOB NOT NULL, durable INTEGER NOT NULL, PRIMARY KEY (target, pair)) STRICT;
                 CREATE TABLE IF NOT EXISTS machine (
                     target TEXT NOT NULL, machine TEXT NOT NULL, store_id BLOB NOT NULL,
                     epoch INTEGER NOT NULL, PRIMARY KEY (target, machine)) STRICT",
            )?;
            Ok(connection)
        };
        match open() {
            Ok(connection) => Ok(Self {
                path: path.clone(),
                connection: Mutex::new(connection),
            }),
            Err(source) => Err(SourceError::Marks {
                path: path.clone(),
                source,
            }),
        }
    }

    /// The mark for this seeding, or none when the image is another or has changed.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn load(&self, key: &Key) -> Result<Mark, SourceError> {
        self.with(|connection| {
            let row = connection
                .query_row(
                    "SELECT seeding_id, durable FROM mark WHERE target = ?1 AND pair = ?2 AND fingerprint = ?3",
                    params![key.target, key.pair, key.fingerprint],
                    |row| Ok((row.get::<_, [u8; 16]>(0)?, row.get::<_, i64>(1)?)),
                )
                .optional()?;
            Ok(row.map_or_else(Mark::default, |(seeding_id, durable)| Mark {
                seeding_id,
                durable: u64::try_from(durable).unwrap_or(0),
            }))
        })
    }

    /// Stores a mark, synced.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn store(&self, key: &Key, mark: Mark) -> Result<(), SourceError> {
        let durable = i64::try_from(mark.durable).unwrap_or(i64::MAX);
        self.with(|connection| {
            connection.execute(
                "INSERT INTO mark (target, pair, fingerprint, seeding_id, durable) VALUES (?1, ?2, ?3, ?4, ?5)
                 ON CONFLICT (target, pair) DO UPDATE SET fingerprint = ?3, seeding_id = ?4, durable = ?5",
                params![key.target, key.pair, key.fingerprint, mark.seeding_id, durable],
            )?;
            Ok(())
        })
    }

    /// The newest epoch of a machine that the target has promised.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn confirmed(&self, target: &str, machine: &str) -> Result<Confirmed, SourceError> {
        self.with(|connection| {
            let row = connection
                .query_row(
                    "SELECT store_id, epoch FROM machine WHERE target = ?1 AND machine = ?2",
                    params![target, machine],
                    |row| Ok((row.get::<_, [u8; 16]>(0)?, row.get::<_, i64>(1)?)),
                )
                .optional()?;
            Ok(
                row.map_or_else(Confirmed::default, |(store_id, epoch)| Confirmed {
                    store_id,
                    epoch: u64::try_from(epoch).unwrap_or(0),
                }),
            )
        })
    }

    /// Remembers what the target has promised, synced.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn confirm(&self, target: &str, machine: &str, confirmed: Confirmed) -> Result<(), SourceError> {
        let epoch = i64::try_from(confirmed.epoch).unwrap_or(i64::MAX);
        self.with(|connection| {
            connection.execute(
                "INSERT OR REPLACE INTO machine (target, machine, store_id, epoch) VALUES (?1, ?2, ?3, ?4)",
                params![target, machine, confirmed.store_id, epoch],
            )?;
            Ok(())
        })
    }

    /// Forgets a seeding that is complete.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn forget(&self, key: &Key) -> Result<(), SourceError> {
        self.with(|connection| {
            connection.execute(
                "DELETE FROM mark WHERE target = ?1 AND pair = ?2",
                params![key.target, key.pair],
            )?;
            Ok(())
        })
    }

    fn with<T>(&self, work: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, SourceError> {
        let connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        work(&connection).map_err(|source| SourceError::Marks {
            path: self.path.clone(),
            source,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_for_one_image_on_one_pair_of_one_target() {
        let folder = tempfile::tempdir().unwrap();
        let key = |target: &str, pair: &str, fingerprint: &str| Key {
            target: target.into(),
            pair: pair.into(),
            fingerprint: fingerprint.into(),
        };
        let mark = Mark {
            seeding_id: [7; 16],
            durable: 1 << 40,
        };
        let marks = Marks::open(folder.path()).unwrap();
        marks.store(&key("a", "db01/0", "x"), mark).unwrap();
        drop(marks);
        let marks = Marks::open(folder.path()).unwrap();
        assert_eq!(marks.load(&key("a", "db01/0", "x")).unwrap(), mark);
        for other in [
            key("b", "db01/0", "x"),
            key("a", "db01/1", "x"),
            key("a", "db01/0", "y"),
        ] {
            assert_eq!(marks.load(&other).unwrap(), Mark::default(), "{other:?}");
        }
        marks.forget(&key("a", "db01/0", "x")).unwrap();
        assert_eq!(marks.load(&key("a", "db01/0", "x")).unwrap(), Mark::default());
    }

    #[test]
    fn a_damaged_file_is_said_to_be_one() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("source.db"), vec![0x55; 8192]).unwrap();
        let error = Marks::open(folder.path()).unwrap_err();
        assert!(matches!(error, SourceError::Marks { .. }), "{error}");
    }
}
