//! A block device that fails when told to, without device-mapper: an NBD server in user space (`nbdkit` with its error
//! filter), made a file by FUSE (`nbdfuse`), made a block device by `loop`.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::agent::wait_until;
use crate::disks::{Loop, run, text};
use crate::scratch::Scratch;
use crate::skip::find_program;

/// Programs that a [`FaultyDisk`] is made of.
pub const PROGRAMS: [&str; 3] = ["nbdkit", "nbdfuse", "fusermount3"];

/// A disk that fails while its trigger is set.
#[derive(Debug)]
pub struct FaultyDisk {
    // Fields are dropped in this order: the device, then the file below it, then the server.
    device: Loop,
    fuse: Fuse,
    trigger: PathBuf,
}

#[derive(Debug)]
struct Fuse {
    at: PathBuf,
    child: Child,
}

impl Drop for Fuse {
    fn drop(&mut self) {
        if let Some(fusermount) = find_program("fusermount3") {
            let _ = Command::new(fusermount)
                .args(["-u", "-z", text(&self.at)])
                .output();
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl FaultyDisk {
    /// A disk of `size` bytes that answers reads or writes (`error-pwrite`, `error-pread`, ...) with `errno` (`EIO`,
    /// `ENOSPC`) while the trigger is set.
    pub fn new(scratch: &Scratch, size: u64, errno: &str, operations: &[&str]) -> Self {
        let plugin = ["memory".to_owned(), format!("size={size}")];
        Self::failing(scratch, &plugin, size, errno, operations, "1")
    }

    /// A disk whose content is in `file`, also after it was pulled out. While the trigger is set, each request fails by chance:
    /// one in twenty, so that some of what is written in one go is there and some is not.
    pub fn now_and_then(scratch: &Scratch, file: &Path, errno: &str, operations: &[&str]) -> Self {
        let size = std::fs::metadata(file).expect("the file is there").len();
        let plugin = ["file".to_owned(), text(file).to_owned()];
        Self::failing(scratch, &plugin, size, errno, operations, "0.05")
    }

    /// A disk of `size` bytes each of whose writes takes so many milliseconds longer.
    pub fn slow(scratch: &Scratch, size: u64, milliseconds: u64) -> Self {
        let words = [
            "--filter=delay".to_owned(),
            "memory".to_owned(),
            format!("size={size}"),
            format!("delay-write={milliseconds}ms"),
        ];
        Self::serve(scratch, size, scratch.join("disk-fails"), &words)
    }

    fn failing(
        scratch: &Scratch,
        plugin: &[String],
        size: u64,
        errno: &str,
        operations: &[&str],
        rate: &str,
    ) -> Self {
        let trigger = scratch.join("disk-fails");
        let mut words = vec!["--filter=error".to_owned()];
        words.extend_from_slice(plugin);
        words.push(format!("error={errno}"));
        for operation in operations {
            words.push(format!("{operation}-rate={rate}"));
            words.push(format!("{operation}-file={}", text(&trigger)));
        }
        Self::serve(scratch, size, trigger, &words)
    }

    fn serve(scratch: &Scratch, size: u64, trigger: PathBuf, words: &[String]) -> Self {
        let at = scratch.sparse("faulty", 0);
        let nbdkit = find_program("nbdkit").expect("nbdkit is there");
        // The server is a child of nbdfuse and ends with it.
        let child = Command::new(find_program("nbdfuse").expect("nbdfuse is there"))
            .arg(&at)
            .args(["[", text(&nbdkit), "--exit-with-parent"])
            .args(words)
            .arg("]")
            .stdin(Stdio::null())
            .stderr(std::fs::File::create(scratch.join("nbdfuse.log")).expect("scratch has room"))
            .spawn()
            .expect("nbdfuse starts");
        let mut fuse = Fuse { at, child };
        wait_until("the disk in user space", || {
            assert!(fuse.is_running(), "nbdfuse ended, see nbdfuse.log");
            std::fs::metadata(&fuse.at).is_ok_and(|file| file.len() == size)
        });
        let device = Loop::attach(&fuse.at, &[]);
        Self {
            device,
            fuse,
            trigger,
        }
    }

    /// The block device.
    pub fn path(&self) -> &Path {
        self.device.path()
    }

    /// From now on it fails.
    pub fn fail(&self) {
        std::fs::write(&self.trigger, b"").expect("the trigger can be set");
    }

    /// From now on it works again.
    pub fn work(&self) {
        std::fs::remove_file(&self.trigger).expect("the trigger was set");
    }

    /// The server dies, as a disk does that is pulled out.
    pub fn pull(&mut self) {
        let _ = self.fuse.child.kill();
        let _ = self.fuse.child.wait();
    }

    /// What the device holds, read past its cache.
    pub fn read_all(&self, into: &Path) {
        run(
            "dd",
            &[
                &format!("if={}", text(self.path())),
                &format!("of={}", text(into)),
                "bs=1M",
                "iflag=direct",
                "status=none",
            ],
        );
    }
}

impl Fuse {
    fn is_running(&mut self) -> bool {
        self.child
            .try_wait()
            .expect("a child can be waited for")
            .is_none()
    }
}
