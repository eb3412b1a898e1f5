// SPDX-License-Identifier: MIT OR Apache-2.0
//! Small inputs of the operator (specs, answers, lock files, keys), read whole and within bounds.
//!
//! A name on the command line may be anything: a pipe that nobody writes into, a device without an end, a disk image.
//! None of them may hang this program or fill the memory, so the kind is looked at before the file is opened, and no
//! more than the bound is ever read. Large inputs such as disks are none of this module's.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use nix::fcntl::{FcntlArg, OFlag, fcntl};

use crate::error::{Error, Kind, Result, shown};

/// Largest image spec; the repository's have some KiB.
pub const SPEC_MAX: u64 = 1 << 20;
/// Largest kickstart file, as for the installer.
pub const KICKSTART_MAX: u64 = 1 << 20;
/// Largest key or certificate.
pub const KEY_MAX: u64 = 1 << 20;
/// Largest lock file and largest list of digests.
pub const LIST_MAX: u64 = 16 << 20;
/// Largest output of `cargo metadata`.
pub const METADATA_MAX: u64 = 64 << 20;
/// Largest program of this project's.
pub const PROGRAM_MAX: u64 = 1 << 30;

/// What may stand behind the name of an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accept {
    /// A regular file.
    File,
    /// A regular file, or a pipe as a shell's `<(...)` gives.
    FileOrPipe,
}

/// Reads an input whole; `what` is what it should be, such as "image spec".
///
/// # Errors
/// [`Kind::Usage`] where it is not there or no file, [`Kind::Config`] where it is larger than `bytes_max`.
pub fn read(what: &str, path: &Path, bytes_max: u64, accept: Accept) -> Result<Vec<u8>> {
    let attempt = format!("read the {what}");
    let wrong = |error| Error::input(&attempt, path, error);
    // Looked at before it is opened: opening a pipe would wait for somebody to write into it, and opening a device may
    // do whatever that device does.
    let looked = path.metadata().map_err(wrong)?.file_type();
    refuse_kind(&attempt, path, looked, accept)?;
    let file = open(path).map_err(wrong)?;
    // Again, since the name may mean another file by now.
    let metadata = file.metadata().map_err(wrong)?;
    refuse_kind(&attempt, path, metadata.file_type(), accept)?;
    let too_large = |size: &str| {
        let text = format!(
            "cannot {attempt} {}: it has {size} bytes, at most {bytes_max} are read",
            shown(path)
        );
        Error::new(Kind::Config, text).hint(format!("is this the {what}? Name another file"))
    };
    if metadata.len() > bytes_max {
        return Err(too_large(&metadata.len().to_string()));
    }
    let mut bytes = Vec::new();
    file.take(bytes_max + 1).read_to_end(&mut bytes).map_err(wrong)?;
    if bytes.len() as u64 > bytes_max {
        return Err(too_large(&format!("more than {bytes_max}")));
    }
    Ok(bytes)
}

/// Reads an input that is a text.
///
/// # Errors
/// As [`read`], and [`Kind::Config`] where it is no text in UTF-8.
pub fn read_text(what: &str, path: &Path, bytes_max: u64, accept: Accept) -> Result<String> {
    String::from_utf8(read(what, path, bytes_max, accept)?).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        let text = format!("{what} {}: it is no text in UTF-8, see byte {at}", shown(path));
        Error::new(Kind::Config, text).hint(format!("is this the {what}? Name another file"))
    })
}

/// Opens without waiting: a pipe without a writer is then at its end, and one with a writer is waited for.
fn open(path: &Path) -> std::io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open(path)?;
    fcntl(file.as_fd(), FcntlArg::F_SETFL(OFlag::empty()))?;
    Ok(file)
}

fn refuse_kind(attempt: &str, path: &Path, found: std::fs::FileType, accept: Accept) -> Result<()> {
    if found.is_file() || (accept == Accept::FileOrPipe && found.is_fifo()) {
        return Ok(());
    }
    let text = format!(
        "cannot {attempt} {}: it is {}, expected is a regular file",
        shown(path),
        kind_name(found)
    );
    Err(Error::new(Kind::Usage, text).hint("name the file itself"))
}

/// What something in a file system is, in words.
#[must_use]
pub fn kind_name(found: std::fs::FileType) -> &'static str {
    if found.is_dir() {
        "a folder"
    } else if found.is_symlink() {
        "a symbolic link"
    } else if found.is_fifo() {
        "a pipe"
    } else if found.is_socket() {
        "a socket"
    } else if found.is_block_device() || found.is_char_device() {
        "a device"
    } else {
        "a file"
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn pipe(folder: &Path) -> std::path::PathBuf {
        let path = folder.join("pipe");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        path
    }

    /// None of these ends by itself: that the test ends is the point.
    #[test]
    fn what_has_no_end_is_refused_before_it_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = pipe(folder.path());
        for (path, says) in [
            (pipe.as_path(), "it is a pipe"),
            (Path::new("/dev/zero"), "it is a device"),
            (folder.path(), "it is a folder"),
        ] {
            let error = read("image spec", path, SPEC_MAX, Accept::File).unwrap_err();
            assert_eq!(error.kind, Kind::Usage, "{error}");
            assert!(error.to_string().contains(says), "{error}");
            assert!(error.next_step().is_some());
        }
        assert_eq!(read("answers", &pipe, 10, Accept::FileOrPipe).unwrap(), b"");
        let device = read("answers", Path::new("/dev/zero"), 10, Accept::FileOrPipe);
        assert_eq!(device.unwrap_err().kind, Kind::Usage);
    }

    #[test]
    fn more_than_the_bound_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        let file = File::create(&path).unwrap();
        file.set_len(10).unwrap();
        assert_eq!(read("list", &path, 10, Accept::File).unwrap().len(), 10);
        // A hole of a size that no memory could take.
        for size in [11, 1 << 40] {
            file.set_len(size).unwrap();
            let error = read("list", &path, 10, Accept::File).unwrap_err();
            assert_eq!(error.kind, Kind::Config, "{error}");
            assert!(
                error
                    .to_string()
                    .contains(&format!("it has {size} bytes, at most 10"))
            );
        }
    }

    /// A pipe shows no size: only what comes out of it tells.
    #[test]
    fn a_pipe_is_read_to_its_end_within_the_bound() {
        for (size, taken) in [(10, true), (11, false), (40_000, false)] {
            let (end, mut writer) = std::io::pipe().unwrap();
            let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&end));
            let writing = std::thread::spawn(move || writer.write_all(&vec![b'x'; size]));
            let read = read("answers", Path::new(&path), 10, Accept::FileOrPipe);
            assert_eq!(read.is_ok(), taken, "{size}: {read:?}");
            drop(end);
            // The rest of what was too much finds nobody to read it, or room in the pipe.
            let _ = writing.join().unwrap();
        }
    }

    #[test]
    fn bytes_that_are_no_text_are_named_by_their_place() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        std::fs::write(&path, b"ab\xffcd").unwrap();
        let error = read_text("image spec", &path, 10, Accept::File).unwrap_err();
        assert_eq!(error.kind, Kind::Config);
        assert!(
            error.to_string().contains("no text in UTF-8, see byte 2"),
            "{error}"
        );
    }
}
