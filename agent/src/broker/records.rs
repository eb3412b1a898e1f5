//! The pairs that root has recorded: one JSON document, replaced as a whole.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::wire::Recorded;
use crate::error::{ExitCode, Explain};
use crate::identity::file;
use crate::model::PairName;

/// Version of the document.
const SCHEMA: u32 = 1;
/// Largest document, bytes: some thousands of pairs.
const BYTES_MAX: usize = 4 << 20;

/// Why there are no records, or they were not changed.
#[derive(Debug, thiserror::Error)]
pub enum RecordsError {
    /// The document cannot be read or written.
    #[error("cannot {attempt} the recorded pairs {path}: {source}")]
    Io {
        /// What was attempted.
        attempt: &'static str,
        /// The document.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// It is not what it should be.
    #[error("the recorded pairs {path} cannot be used: {found}")]
    Damaged {
        /// The document.
        path: PathBuf,
        /// What was found.
        found: String,
    },
    /// The disk is another pair's.
    #[error("target disk {} is the disk of pair {} already", .0.scsi_id, .0.pair)]
    DiskTaken(Box<Recorded>),
    /// The pair has another disk.
    #[error("pair {} has target disk {} already", .0.pair, .0.scsi_id)]
    PairTaken(Box<Recorded>),
}

impl Explain for RecordsError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Io { .. } => "see that its folder is there and root may write to it".to_owned(),
            Self::Damaged { path, .. } => format!(
                "no disk is opened without them: move {} away and pair the disks again, or restore it",
                path.display()
            ),
            Self::DiskTaken(other) | Self::PairTaken(other) => {
                format!("remove that pair first: mt-agent pair remove {}", other.pair)
            }
        })
    }

    fn exit_code(&self) -> ExitCode {
        match self {
            Self::Io { .. } | Self::Damaged { .. } => ExitCode::Unexpected,
            Self::DiskTaken(_) | Self::PairTaken(_) => ExitCode::Refused,
        }
    }
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    schema: u32,
    pairs: Vec<Recorded>,
}

/// The recorded pairs. Every change is durable when it returns.
#[derive(Debug)]
pub struct Records {
    path: PathBuf,
    pairs: Vec<Recorded>,
}

impl Records {
    /// Reads the document; without one there are none.
    ///
    /// # Errors
    /// When it cannot be read, is of another version, or names a pair or a disk twice.
    pub fn open(path: &Path) -> Result<Self, RecordsError> {
        let bytes = file::read(path, BYTES_MAX).map_err(|source| RecordsError::Io {
            attempt: "read",
            path: path.to_owned(),
            source,
        })?;
        match bytes {
            Some(bytes) => Self::from_bytes(path, &bytes),
            None => Ok(Self {
                path: path.to_owned(),
                pairs: Vec::new(),
            }),
        }
    }

    /// Reads the content of a document; `path` is for messages, and where it is stored when it changes.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn from_bytes(path: &Path, bytes: &[u8]) -> Result<Self, RecordsError> {
        let damaged = |found: String| RecordsError::Damaged {
            path: path.to_owned(),
            found,
        };
        let mut records = Self {
            path: path.to_owned(),
            pairs: Vec::new(),
        };
        let document: Document = serde_json::from_slice(bytes).map_err(|error| damaged(error.to_string()))?;
        if document.schema != SCHEMA {
            return Err(damaged(format!(
                "schema {}, this program knows {SCHEMA}",
                document.schema
            )));
        }
        for pair in document.pairs {
            if let Err(error) = pair.pair.parse::<PairName>() {
                return Err(damaged(format!("the name {:?}: {error}", pair.pair)));
            }
            if records.of_disk(&pair).is_some() || records.get(&pair.pair).is_some() {
                return Err(damaged(format!("pair {} or its disk is named twice", pair.pair)));
            }
            records.pairs.push(pair);
        }
        Ok(records)
    }

    /// The record of a pair.
    #[must_use]
    pub fn get(&self, pair: &str) -> Option<&Recorded> {
        self.pairs.iter().find(|known| known.pair == pair)
    }

    fn of_disk(&self, new: &Recorded) -> Option<&Recorded> {
        self.pairs.iter().find(|known| known.scsi_id == new.scsi_id)
    }

    /// Whether a pair could be recorded: neither it nor the disk is anything else's.
    ///
    /// # Errors
    /// The record that speaks against it.
    pub fn check(&self, new: &Recorded) -> Result<(), RecordsError> {
        if let Some(other) = self.get(&new.pair).filter(|other| other.scsi_id != new.scsi_id) {
            return Err(RecordsError::PairTaken(Box::new(other.clone())));
        }
        match self.of_disk(new).filter(|other| other.pair != new.pair) {
            Some(other) => Err(RecordsError::DiskTaken(Box::new(other.clone()))),
            None => Ok(()),
        }
    }

    /// Records a pair, in the place of an older record of it.
    ///
    /// # Errors
    /// When pair or disk is taken, or the document cannot be written: then nothing has changed.
    pub fn put(&mut self, new: Recorded) -> Result<(), RecordsError> {
        self.check(&new)?;
        let mut pairs = self.pairs.clone();
        pairs.retain(|known| known.pair != new.pair);
        pairs.push(new);
        self.store(pairs)
    }

    /// Forgets a pair; whether there was one.
    ///
    /// # Errors
    /// When the document cannot be written: then nothing has changed.
    pub fn remove(&mut self, pair: &str) -> Result<bool, RecordsError> {
        let mut pairs = self.pairs.clone();
        pairs.retain(|known| known.pair != pair);
        if pairs.len() == self.pairs.len() {
            return Ok(false);
        }
        self.store(pairs).map(|()| true)
    }

    fn store(&mut self, pairs: Vec<Recorded>) -> Result<(), RecordsError> {
        let document = Document {
            schema: SCHEMA,
            pairs,
        };
        let written = serde_json::to_vec_pretty(&document)
            .map_err(io::Error::other)
            .and_then(|bytes| file::replace(&self.path, &bytes));
        written.map_err(|source| RecordsError::Io {
            attempt: "write",
            path: self.path.clone(),
            source,
        })?;
        self.pairs = document.pairs;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disks::facts::testing::id;

    fn pair(name: &str, disk: u8) -> Recorded {
        Recorded {
            pair: name.to_owned(),
            scsi_id: id(disk),
            size: 1 << 30,
            logical_block_size: 512,
            overwrite: false,
            adopted: false,
        }
    }

    #[test]
    fn records_outlive_the_process_and_keep_pairs_and_disks_apart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state/pairs.json");
        let mut records = Records::open(&path).unwrap();
        records.put(pair("db01/a", 1)).unwrap();
        records.put(pair("db01/b", 2)).unwrap();
        assert!(matches!(
            records.put(pair("db01/c", 1)),
            Err(RecordsError::DiskTaken(other)) if other.pair == "db01/a"
        ));
        assert!(matches!(
            records.put(pair("db01/a", 3)),
            Err(RecordsError::PairTaken(_))
        ));
        let mut adopted = pair("db01/a", 1);
        adopted.adopted = true;
        records.put(adopted.clone()).unwrap();
        let mut again = Records::open(&path).unwrap();
        assert_eq!(again.get("db01/a"), Some(&adopted));
        assert!(again.remove("db01/a").unwrap());
        assert!(!again.remove("db01/a").unwrap());
        let again = Records::open(&path).unwrap();
        assert!(again.get("db01/a").is_none() && again.get("db01/b").is_some());
    }

    #[test]
    fn a_document_that_is_not_right_is_never_taken_for_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pairs.json");
        let mut records = Records::open(&path).unwrap();
        records.put(pair("db01/a", 1)).unwrap();
        let good = std::fs::read_to_string(&path).unwrap();
        let twice = good.replace("db01/a", "db01/b");
        let both = serde_json::json!({
            "schema": 1,
            "pairs": [
                serde_json::from_str::<serde_json::Value>(&good).unwrap()["pairs"][0],
                serde_json::from_str::<serde_json::Value>(&twice).unwrap()["pairs"][0],
            ],
        });
        for text in [
            String::new(),
            "{}".to_owned(),
            good[..good.len() - 2].to_owned(),
            good.replace("\"schema\": 1", "\"schema\": 2"),
            good.replace("db01/a", "no slash"),
            both.to_string(),
        ] {
            std::fs::write(&path, &text).unwrap();
            assert!(Records::open(&path).is_err(), "{text}");
        }
    }

    #[test]
    fn what_cannot_be_written_is_not_recorded() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pairs.json");
        let mut records = Records::open(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        assert!(records.put(pair("db01/a", 1)).is_err());
        assert!(records.get("db01/a").is_none());
    }
}
