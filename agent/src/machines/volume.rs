//! The retention volume: a folder, or the mount point of a disk of its own, with a mark that tells it from every other.
//!
//! Before anything is read or written there, the mark is compared with the one that was noted when the volume was set up:
//! a volume that is not mounted leaves an empty folder, and another one has another mark. Either is refused; writing to
//! the folder below a mount point would fill the root file system and hide the points.
//!
//! ```text
//! retention folder/
//!   master-target-retention.json    the mark: {"format": 1, "id": "32 hexadecimal digits"}
//!   machines/NAME/                  the store of one machine, see the crate mt-retention
//! ```

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::error::MachineError;
use crate::error::ExitCode;
use crate::state::State;

/// Name of the mark.
const MARK: &str = "master-target-retention.json";
/// Its name until it is whole.
const NEW_MARK: &str = "master-target-retention.json.new";
/// Longest mark that is read, bytes.
const MARK_BYTES_MAX: u64 = 4096;
const FORMAT: u32 = 1;

#[derive(Debug, Serialize, Deserialize)]
struct Mark {
    format: u32,
    id: String,
}

/// A volume that was checked a moment ago.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Its folder.
    pub folder: PathBuf,
    /// Its identity.
    pub id: String,
}

/// How much room a volume has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Size of its file system, bytes.
    pub total: u64,
    /// What can still be written, bytes.
    pub free: u64,
}

impl Space {
    /// How full it is, in percent, rounded down.
    pub fn percent_used(self) -> u64 {
        crate::cli::output::percent(self.total.saturating_sub(self.free), self.total)
    }
}

/// Sets a folder up as the retention volume, or finds that it is that already. The folder must be empty, but for what
/// a new file system brings along.
///
/// # Errors
/// When the folder holds something, belongs to another appliance, or cannot be written.
pub fn init(folder: &Path, state: &State) -> Result<(Volume, bool), MachineError> {
    let known = state.retention_volume()?;
    if let Some(mark) = read(folder)? {
        if known.as_ref() == Some(&mark.id) {
            return Ok((volume(folder, mark.id), false));
        }
        return Err(wrong(
            ExitCode::Refused,
            folder,
            format!("it is the volume {} of another appliance", mark.id),
            "give an empty folder or disk; a volume of another appliance is not taken over",
        ));
    }
    std::fs::create_dir_all(folder).map_err(|source| io("make the folder", folder, source))?;
    let entries = std::fs::read_dir(folder).map_err(|source| io("read", folder, source))?;
    for entry in entries {
        let entry = entry.map_err(|source| io("read", folder, source))?;
        if entry.file_name() != "lost+found" && entry.file_name() != NEW_MARK {
            return Err(wrong(
                ExitCode::Refused,
                folder,
                format!(
                    "it holds something already: {}",
                    entry.file_name().to_string_lossy()
                ),
                "give an empty folder; nothing is ever removed to make room for a retention volume",
            ));
        }
    }
    if let Some(known) = known {
        return Err(wrong(
            ExitCode::Refused,
            folder,
            format!("this appliance has the volume {known} already, and its points are there"),
            "mount that one; to begin with a new one, remove the machines' pairs first",
        ));
    }
    let id = crate::random::id().map_err(|source| io("read random bytes for", folder, source))?;
    let id: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
    // 1. The mark, as a whole or not at all, 2. the note in the state. A crash in between leaves a mark that is taken for
    // another appliance's, and removing it is all there is to do.
    let text = serde_json::to_vec(&Mark {
        format: FORMAT,
        id: id.clone(),
    })
    .map_err(|source| io("encode the mark of", folder, source.into()))?;
    let (path, new) = (folder.join(MARK), folder.join(NEW_MARK));
    let write = || {
        let mut file = File::create(&new)?;
        file.write_all(&text)?;
        file.sync_all()?;
        std::fs::rename(&new, &path)?;
        File::open(folder)?.sync_all()
    };
    write().map_err(|source| {
        // What a full volume took of it would be in the way of the next try.
        let _ = std::fs::remove_file(&new);
        io("write", &path, source)
    })?;
    state.set_retention_volume(&id)?;
    Ok((volume(folder, id), true))
}

/// Checks that the volume which was set up is there and can be written.
///
/// # Errors
/// When it was never set up, is not there, is another one, or is read-only.
pub fn check(folder: &Path, state: &State) -> Result<Volume, MachineError> {
    let Some(known) = state.retention_volume()? else {
        return Err(wrong(
            ExitCode::Refused,
            folder,
            "it has not been set up".to_owned(),
            "run \"mt-agent retention init\"",
        ));
    };
    match read(folder)? {
        None => Err(wrong(
            ExitCode::DiskMissing,
            folder,
            format!("the volume {known} is not there: the folder has no mark"),
            "mount it; nothing is written below a mount point where nothing is mounted",
        )),
        Some(mark) if mark.id != known => Err(wrong(
            ExitCode::DiskMissing,
            folder,
            format!("it is the volume {}, this appliance has {known}", mark.id),
            "mount the volume that belongs to this appliance",
        )),
        Some(mark) => {
            let volume = volume(folder, mark.id);
            if is_read_only(folder)? {
                return Err(wrong(
                    ExitCode::DiskMissing,
                    folder,
                    "it is read-only".to_owned(),
                    "the kernel does that after an error: check the log and the disk, then mount it anew",
                ));
            }
            Ok(volume)
        }
    }
}

/// The volume in a folder, whoever's it is, for looking only.
///
/// # Errors
/// When there is none, or its mark cannot be read.
pub fn look(folder: &Path) -> Result<Volume, MachineError> {
    match read(folder)? {
        Some(mark) => Ok(volume(folder, mark.id)),
        None => Err(wrong(
            ExitCode::DiskMissing,
            folder,
            "there is no retention volume: the folder has no mark".to_owned(),
            "mount the volume, or name another folder with --folder",
        )),
    }
}

/// How much room the volume has.
///
/// # Errors
/// When the file system does not answer.
pub fn space(folder: &Path) -> Result<Space, MachineError> {
    let stat = nix::sys::statvfs::statvfs(folder)
        .map_err(|errno| io("ask for the space of", folder, errno.into()))?;
    let unit = stat.fragment_size();
    Ok(Space {
        total: stat.blocks() * unit,
        free: stat.blocks_available() * unit,
    })
}

impl Volume {
    /// The folder of a machine's store. Letters, digits, `-` and `_` stand for themselves, all else is escaped, so that no
    /// name leads out of the volume.
    pub fn machine(&self, name: &str) -> PathBuf {
        let mut file = String::new();
        for byte in name.bytes() {
            if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_') {
                file.push(char::from(byte));
            } else {
                file.push_str(&format!("%{byte:02x}"));
            }
        }
        self.folder.join("machines").join(file)
    }

    /// Names of the machines that have a folder on the volume, in order.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub fn machines(&self) -> Result<Vec<String>, MachineError> {
        let path = self.folder.join("machines");
        let list = || -> std::io::Result<Vec<String>> {
            let mut names = Vec::new();
            let entries = match std::fs::read_dir(&path) {
                // Made with the first store.
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(names),
                entries => entries?,
            };
            for entry in entries {
                let name = unescaped(&entry?.file_name().to_string_lossy());
                // Only what this program would have written: other folders are somebody else's.
                names.extend(name.filter(|name| self.machine(name).is_dir()));
            }
            names.sort();
            Ok(names)
        };
        list().map_err(|source| io("list", &path, source))
    }
}

/// The name of a machine of its folder.
fn unescaped(file: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = file.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        if *first == b'%' {
            let (digits, after) = after.split_at_checked(2)?;
            bytes.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
            rest = after;
        } else {
            bytes.push(*first);
            rest = after;
        }
    }
    String::from_utf8(bytes).ok()
}

fn is_read_only(folder: &Path) -> Result<bool, MachineError> {
    // A mount that was made read-only says so in its flags; one that the kernel shut down, when something is written.
    let flags = nix::sys::statvfs::statvfs(folder)
        .map_err(|errno| io("ask for the state of", folder, errno.into()))?
        .flags();
    if flags.contains(nix::sys::statvfs::FsFlags::ST_RDONLY) {
        return Ok(true);
    }
    let path = folder.join(".writable");
    match File::create(&path).and_then(|file| file.sync_all()) {
        Ok(()) => Ok(false),
        Err(error) if error.kind() == ErrorKind::ReadOnlyFilesystem => Ok(true),
        // Full is not read-only: room may be made.
        Err(error) if error.kind() == ErrorKind::StorageFull => Ok(false),
        Err(error) => Err(io("write to", folder, error)),
    }
}

fn read(folder: &Path) -> Result<Option<Mark>, MachineError> {
    use std::io::Read;
    let path = folder.join(MARK);
    let mut text = String::new();
    let read = File::open(&path).and_then(|file| file.take(MARK_BYTES_MAX).read_to_string(&mut text));
    match read {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(io("read", &path, source)),
        Ok(_) => {}
    }
    let mark: Mark = serde_json::from_str(&text).map_err(|error| {
        wrong(
            ExitCode::Retention,
            folder,
            format!("its mark cannot be read: {error}"),
            "restore the mark from a backup; the stores beside it are not touched",
        )
    })?;
    if mark.format != FORMAT {
        return Err(wrong(
            ExitCode::Retention,
            folder,
            format!("its mark has form {}, this agent knows {FORMAT}", mark.format),
            "run the newer agent again",
        ));
    }
    Ok(Some(mark))
}

fn volume(folder: &Path, id: String) -> Volume {
    Volume {
        folder: folder.to_owned(),
        id,
    }
}

fn wrong(exit_code: ExitCode, folder: &Path, found: String, hint: &str) -> MachineError {
    MachineError::Volume {
        path: folder.to_owned(),
        found,
        hint: hint.to_owned(),
        exit_code,
    }
}

fn io(attempted: &'static str, path: &Path, source: std::io::Error) -> MachineError {
    MachineError::Io {
        attempted,
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(folder: &Path) -> State {
        State::open(&folder.join("state")).unwrap()
    }

    #[test]
    fn a_volume_is_set_up_once_and_known_again() {
        let scratch = tempfile::tempdir().unwrap();
        let state = state(scratch.path());
        let folder = scratch.path().join("retention");
        assert!(
            check(&folder, &state)
                .unwrap_err()
                .to_string()
                .contains("not been set up")
        );
        let (volume, made) = init(&folder, &state).unwrap();
        assert!(made);
        assert_eq!(
            init(&folder, &state).unwrap(),
            (volume.clone(), false),
            "a second time changes nothing"
        );
        assert_eq!(check(&folder, &state).unwrap(), volume);
        assert!(space(&folder).unwrap().total > 0);
    }

    #[test]
    fn what_is_not_the_volume_is_refused() {
        let scratch = tempfile::tempdir().unwrap();
        let first = state(scratch.path());
        let folder = scratch.path().join("retention");
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("somebody's file"), "precious").unwrap();
        let error = init(&folder, &first).unwrap_err();
        assert!(error.to_string().contains("holds something"), "{error}");
        std::fs::remove_file(folder.join("somebody's file")).unwrap();
        std::fs::create_dir(folder.join("lost+found")).unwrap();
        init(&folder, &first).unwrap();

        // Not mounted: the folder below is empty.
        let gone = scratch.path().join("gone");
        std::fs::rename(&folder, &gone).unwrap();
        std::fs::create_dir(&folder).unwrap();
        let error = check(&folder, &first).unwrap_err();
        assert!(error.to_string().contains("is not there"), "{error}");
        let error = init(&folder, &first).unwrap_err();
        assert!(error.to_string().contains("has the volume"), "{error}");

        // Another one in its place.
        let second = State::open(&scratch.path().join("other state")).unwrap();
        init(&folder, &second).unwrap();
        let error = check(&folder, &first).unwrap_err();
        assert!(error.to_string().contains("this appliance has"), "{error}");
        let error = init(&folder, &first).unwrap_err();
        assert!(error.to_string().contains("another appliance"), "{error}");

        // A mark that says nothing.
        std::fs::write(folder.join(MARK), "{}").unwrap();
        assert!(
            check(&folder, &second)
                .unwrap_err()
                .to_string()
                .contains("cannot be read")
        );
    }

    #[test]
    fn no_name_of_a_machine_leads_out_of_the_volume() {
        let volume = volume(Path::new("/r"), String::new());
        for (name, folder) in [
            ("db01", "/r/machines/db01"),
            ("..", "/r/machines/%2e%2e"),
            (".", "/r/machines/%2e"),
            ("a.b", "/r/machines/a%2eb"),
            ("a%2eb", "/r/machines/a%252eb"),
        ] {
            assert_eq!(volume.machine(name), Path::new(folder));
            let file = Path::new(folder).file_name().unwrap().to_str().unwrap();
            assert_eq!(unescaped(file).as_deref(), Some(name));
        }
        for file in ["%", "%2", "%zz", "%ff"] {
            assert_eq!(unescaped(file), None);
        }
    }
}
