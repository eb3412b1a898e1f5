// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the custom-change step keeps of itself, below `/var/lib/master-target/custom-change`:
//!
//! | name | what |
//! |---|---|
//! | `lock` | held while a run lasts |
//! | `journal` | one JSON line for each change, written and synced *before* the change is made |
//! | `backup/N` | the file that stood there before change N |
//! | `steps/NAME.begun`, `.done` | an operator's step was begun, has ended well; `NAME.log` is what it said |
//! | `stamp.json` | the step was done: when, by which version, the digest of what ran |
//!
//! The stamp is written last and makes the step done. A journal without a stamp is what a killed run leaves: the next one
//! undoes it from the last line to the first. A torn last line was written before its change, so there is nothing to
//! undo for it.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::node::{Node, sync_folder};
use crate::error::{Error, Kind, Result, shown};

/// Where all of it is, below the root.
pub const FOLDER: &str = "var/lib/master-target/custom-change";

/// That the step was done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// Version of this document.
    pub schema: u32,
    /// When, RFC 3339 in UTC.
    pub date: String,
    /// Version of the program that did it.
    pub version: String,
    /// SHA-256 over everything that was put in place and every operator's step that ran.
    pub digest: String,
    /// What was changed, one entry a path.
    pub changed: Vec<String>,
    /// What was so already.
    pub satisfied: Vec<String>,
    /// What did not apply, and why.
    pub skipped: Vec<String>,
    /// Operator's steps that ran.
    pub steps: Vec<String>,
}

/// One line of the journal: what stood under a path, and the digest of what is put there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Path below the root.
    pub path: String,
    /// What stood there.
    pub before: Before,
    /// What is put there.
    pub after: String,
}

/// What stood under a path; the content of a file is in `backup/`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Before {
    /// Nothing.
    Absent,
    /// A file.
    File {
        /// Name of its copy.
        backup: String,
        /// Permission bits.
        mode: u32,
        /// Owner.
        user: u32,
        /// Group.
        group: u32,
    },
    /// A symbolic link.
    Link {
        /// Where it points.
        target: String,
    },
    /// A folder.
    Folder {
        /// Permission bits.
        mode: u32,
    },
}

/// The folder in a root.
#[derive(Debug, Clone)]
pub struct Store {
    folder: PathBuf,
}

impl Store {
    /// The store of a root; nothing is made yet.
    #[must_use]
    pub fn of(root: &Path) -> Self {
        Self {
            folder: root.join(FOLDER),
        }
    }

    /// Its folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Makes the folders.
    ///
    /// # Errors
    /// They cannot be made.
    pub fn create(&self) -> Result<()> {
        use std::os::unix::fs::DirBuilderExt;
        let make = |folder: &Path, mode| {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(mode)
                .create(folder)
                .map_err(|error| Error::io("create", folder, error))
        };
        // The folder above is passed through by the target, which is not root.
        if let Some(above) = self.folder.parent() {
            make(above, 0o711)?;
        }
        make(&self.folder.join("backup"), 0o700)?;
        make(&self.folder.join("steps"), 0o700)?;
        sync_folder(&self.folder)
    }

    /// The stamp, where the step was done.
    ///
    /// # Errors
    /// It cannot be read, or is damaged.
    pub fn stamp(&self) -> Result<Option<Stamp>> {
        let path = self.folder.join("stamp.json");
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io("read", &path, error)),
        };
        serde_json::from_slice(&text).map(Some).map_err(|error| {
            // It exists, so the step was done: never taken for undone.
            Error::new(
                Kind::Refused,
                format!("{} is damaged: {error}; nothing was changed", shown(&path)),
            )
            .hint("the step was done once; what it keeps of itself was changed since")
        })
    }

    /// Makes the step done.
    ///
    /// # Errors
    /// The stamp cannot be written.
    pub fn write_stamp(&self, stamp: &Stamp) -> Result<()> {
        let text = serde_json::to_vec_pretty(stamp)
            .map_err(|error| Error::new(Kind::Unexpected, format!("cannot render JSON: {error}")))?;
        file(text).put(&self.folder.join("stamp.json"))
    }

    /// The journal's entries; none when there is no journal.
    ///
    /// # Errors
    /// It cannot be read, or a line but the last is damaged.
    pub fn entries(&self) -> Result<Vec<Entry>> {
        let path = self.folder.join("journal");
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(Error::io("read", &path, error)),
        };
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let lines = whole.lines().enumerate();
        lines
            .map(|(index, line)| {
                serde_json::from_str(line).map_err(|error| {
                    Error::new(
                        Kind::Refused,
                        format!("{}, line {}: {error}", shown(&path), index + 1),
                    )
                    .hint("an earlier run was killed and cannot be undone; put back the files in backup/ by hand")
                })
            })
            .collect()
    }

    /// Whether there is a journal.
    #[must_use]
    pub fn has_journal(&self) -> bool {
        self.folder.join("journal").exists()
    }

    /// Notes what stood there before it is changed; durable when this returns.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn note(&self, number: usize, path: &str, before: &Node, after: &Node) -> Result<()> {
        let before = match before {
            Node::Absent | Node::Other => Before::Absent,
            Node::Link { target } => Before::Link {
                target: target.clone(),
            },
            Node::Folder { mode } => Before::Folder { mode: *mode },
            Node::File { bytes, mode, owner } => {
                let backup = number.to_string();
                file(bytes.clone()).put(&self.folder.join("backup").join(&backup))?;
                let (user, group) = owner.unwrap_or_default();
                Before::File {
                    backup,
                    mode: *mode,
                    user,
                    group,
                }
            }
        };
        let entry = Entry {
            path: path.to_owned(),
            before,
            after: digest(after),
        };
        let journal = self.folder.join("journal");
        let mut line = serde_json::to_vec(&entry)
            .map_err(|error| Error::new(Kind::Unexpected, format!("cannot render JSON: {error}")))?;
        line.push(b'\n');
        OpenOptions::new()
            .create(true)
            .append(true)
            .open(&journal)
            .and_then(|mut file| file.write_all(&line).and_then(|()| file.sync_all()))
            .map_err(|error| Error::io("write", &journal, error))?;
        sync_folder(&self.folder)
    }

    /// What stood there, with its content.
    ///
    /// # Errors
    /// The copy cannot be read.
    pub fn before(&self, entry: &Entry) -> Result<Node> {
        Ok(match &entry.before {
            Before::Absent => Node::Absent,
            Before::Link { target } => Node::Link {
                target: target.clone(),
            },
            Before::Folder { mode } => Node::Folder { mode: *mode },
            Before::File {
                backup,
                mode,
                user,
                group,
            } => {
                let path = self.folder.join("backup").join(backup);
                let bytes = fs::read(&path).map_err(|error| Error::io("read", &path, error))?;
                Node::File {
                    bytes,
                    mode: *mode,
                    owner: Some((*user, *group)),
                }
            }
        })
    }

    /// Removes the journal: nothing is left to undo.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn forget_journal(&self) -> Result<()> {
        Node::Absent.put(&self.folder.join("journal"))
    }

    /// Path of what is kept of an operator's step.
    #[must_use]
    pub fn step(&self, name: &str, kind: &str) -> PathBuf {
        self.folder.join("steps").join(format!("{name}.{kind}"))
    }
}

fn file(bytes: Vec<u8>) -> Node {
    Node::File {
        bytes,
        mode: 0o600,
        owner: None,
    }
}

/// Digest of what is put under a path, to tell it later from what somebody else put there.
#[must_use]
pub fn digest(node: &Node) -> String {
    use sha2::{Digest, Sha256};
    let mut hasher = Sha256::new();
    match node {
        Node::Absent => hasher.update(b"absent"),
        Node::Other => hasher.update(b"other"),
        Node::Link { target } => hasher.update(format!("link {target}")),
        Node::Folder { .. } => hasher.update(b"folder"),
        Node::File { bytes, mode, .. } => {
            hasher.update(format!("file {mode:o} "));
            hasher.update(bytes);
        }
    }
    hex(&hasher.finalize())
}

/// Lower-case hexadecimal digits.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
