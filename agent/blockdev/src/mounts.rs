//! What is mounted and swapped on: `/proc/*/mountinfo` of every mount namespace that can be seen, and
//! `/proc/swaps`.
//!
//! Reads only; the root is given, so that tests use a tree of their own. The parsers are pure and skip a
//! line they cannot read: the kernel may add fields, and what one line means does not depend on others.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::sysfs::DeviceNumber;

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Device number of the file system; major 0 when it has no device of its own (btrfs, overlay, tmpfs).
    pub number: DeviceNumber,
    /// Where it is mounted, as seen from the root of its namespace.
    pub mount_point: PathBuf,
    /// File system type.
    pub fs_type: String,
    /// What was mounted: `/dev/sda2`, `tmpfs`.
    pub source: PathBuf,
    /// Whether it is in the mount namespace of this process.
    pub own_namespace: bool,
}

/// All mounts that can be seen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MountTable {
    /// The mounts, those of this process' namespace first.
    pub mounts: Vec<Mount>,
    /// How many processes did not let their namespace be read, which hides mounts: 0 for root.
    pub hidden_processes: usize,
}

/// One swap area.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Swap {
    /// Block device or file.
    pub path: PathBuf,
    /// Whether it is a regular file.
    pub is_file: bool,
}

/// A proc tree.
#[derive(Debug, Clone)]
pub struct Proc {
    root: PathBuf,
}

impl Default for Proc {
    fn default() -> Self {
        Self::new("/proc")
    }
}

impl Proc {
    /// The tree at `root`; `/proc` but for tests.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The mounts of every mount namespace a process of which can be seen, each namespace once.
    ///
    /// A namespace without any process (kept alive by a bind mount of its file) is not seen; the exclusive
    /// open of the whole disk is what finds such a mount.
    ///
    /// # Errors
    /// When this process' own mounts or the list of processes cannot be read.
    pub fn mounts(&self) -> io::Result<MountTable> {
        let own = fs::read_link(self.root.join("self/ns/mnt")).ok();
        let own_text = fs::read_to_string(self.root.join("self/mountinfo"))?;
        let mut table = MountTable {
            mounts: parse_mountinfo(&own_text, true),
            hidden_processes: 0,
        };
        let mut seen: BTreeSet<PathBuf> = own.into_iter().collect();
        for entry in fs::read_dir(&self.root)? {
            let entry = entry?;
            if !entry
                .file_name()
                .to_str()
                .is_some_and(|name| name.bytes().all(|byte| byte.is_ascii_digit()))
            {
                continue;
            }
            match fs::read_link(entry.path().join("ns/mnt")) {
                Ok(namespace) if !seen.contains(&namespace) => {
                    match fs::read_to_string(entry.path().join("mountinfo")) {
                        Ok(text) => {
                            // Only now: another process may show what this one kept or was too short-lived for.
                            seen.insert(namespace);
                            table.mounts.extend(parse_mountinfo(&text, false));
                        }
                        Err(err) => table.hidden_processes += usize::from(is_hidden(&err)),
                    }
                }
                Ok(_) => {}
                Err(err) => table.hidden_processes += usize::from(is_hidden(&err)),
            }
        }
        Ok(table)
    }

    /// The swap areas in use.
    ///
    /// # Errors
    /// When `/proc/swaps` cannot be read; a kernel without swap has none, which is no error.
    pub fn swaps(&self) -> io::Result<Vec<Swap>> {
        match fs::read_to_string(self.root.join("swaps")) {
            Ok(text) => Ok(parse_swaps(&text)),
            Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(err) => Err(err),
        }
    }
}

/// A process that ended in the meantime hides nothing; one that may not be read does.
fn is_hidden(err: &io::Error) -> bool {
    err.kind() == io::ErrorKind::PermissionDenied
}

/// Reads the text of a mountinfo file (proc_pid_mountinfo(5)).
#[must_use]
pub fn parse_mountinfo(text: &str, own_namespace: bool) -> Vec<Mount> {
    text.lines()
        .filter_map(|line| mount_line(line, own_namespace))
        .collect()
}

fn mount_line(line: &str, own_namespace: bool) -> Option<Mount> {
    // 36 35 98:0 /root /mount/point rw,noatime master:1 - ext4 /dev/root rw: a variable number of optional
    // fields stands before the hyphen.
    let mut fields = line.split(' ');
    let number = fields.nth(2)?.parse().ok()?;
    let mount_point = unescape(fields.nth(1)?);
    let mut rest = fields.skip_while(|field| *field != "-").skip(1);
    let fs_type = rest.next()?.to_owned();
    let source = unescape(rest.next()?);
    Some(Mount {
        number,
        mount_point,
        fs_type,
        source,
        own_namespace,
    })
}

/// Reads the text of `/proc/swaps`.
#[must_use]
pub fn parse_swaps(text: &str) -> Vec<Swap> {
    text.lines()
        .skip(1)
        .filter_map(|line| {
            let mut fields = line.split_whitespace();
            let path = unescape(fields.next()?);
            Some(Swap {
                path,
                is_file: fields.next()? == "file",
            })
        })
        .collect()
}

/// Undoes the kernel's octal escapes of space, tab, newline and backslash.
fn unescape(text: &str) -> PathBuf {
    use std::os::unix::ffi::OsStringExt as _;
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let digits = if byte == b'\\' {
            bytes.get(at + 1..at + 4)
        } else {
            None
        };
        let value = digits.and_then(|digits| {
            u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8)
                .ok()
                .filter(|_| !digits.contains(&b'+'))
        });
        out.push(value.unwrap_or(byte));
        at += if value.is_some() { 4 } else { 1 };
    }
    PathBuf::from(std::ffi::OsString::from_vec(out))
}

/// The mount that holds an absolute, canonical path of this process' namespace: the longest mount point, of
/// several on one place the last.
#[must_use]
pub fn mount_of<'a>(mounts: &'a [Mount], path: &Path) -> Option<&'a Mount> {
    mounts
        .iter()
        .filter(|mount| mount.own_namespace && path.starts_with(&mount.mount_point))
        .max_by_key(|mount| mount.mount_point.components().count())
}

/// Tells when something is mounted or unmounted in this mount namespace: `poll` of `/proc/self/mountinfo` (proc(5)).
#[cfg(feature = "tokio")]
#[derive(Debug)]
pub struct MountEvents(tokio::io::unix::AsyncFd<fs::File>);

#[cfg(feature = "tokio")]
impl MountEvents {
    /// Begins to watch. To be called inside a tokio runtime with I/O enabled.
    ///
    /// # Errors
    /// Where `/proc` is not mounted or the runtime has no I/O.
    pub fn open() -> io::Result<Self> {
        use tokio::io::{Interest, unix::AsyncFd};
        let file = fs::File::open("/proc/self/mountinfo")?;
        // SAFETY: `as_raw_fd` of a `File` gives the descriptor that it owns until it is dropped, always the same one.
        let registered = unsafe { AsyncFd::register_with_interest(file, Interest::PRIORITY) };
        Ok(Self(registered.map_err(io::Error::from)?))
    }

    /// Waits for the next change. Cancel safe. Several changes may be told as one.
    ///
    /// # Errors
    /// When the runtime is being shut down.
    pub async fn changed(&mut self) -> io::Result<()> {
        self.0
            .ready_mut(tokio::io::Interest::PRIORITY)
            .await?
            .clear_ready();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTINFO: &str = "\
22 1 8:2 / / rw,relatime shared:1 - ext4 /dev/sda2 rw
23 22 0:21 / /proc rw shared:12 - proc proc rw
30 22 8:1 / /boot rw,relatime shared:30 master:2 - ext4 /dev/sda1 rw
31 22 254:0 / /srv/my\\040data\\134x rw - xfs /dev/mapper/vg-data rw,attr2
32 22 0:40 /@ /btrfs rw - btrfs /dev/sdc rw,subvol=/@
a broken line
33 22 8:17 / /mnt
";

    #[test]
    fn mountinfo_is_read_with_its_optional_fields_and_escapes() {
        let mounts = parse_mountinfo(MOUNTINFO, true);
        let rows: Vec<String> = mounts
            .iter()
            .map(|m| {
                format!(
                    "{} {} {} {}",
                    m.number,
                    m.mount_point.display(),
                    m.fs_type,
                    m.source.display()
                )
            })
            .collect();
        assert_eq!(
            rows,
            [
                "8:2 / ext4 /dev/sda2",
                "0:21 /proc proc proc",
                "8:1 /boot ext4 /dev/sda1",
                "254:0 /srv/my data\\x xfs /dev/mapper/vg-data",
                "0:40 /btrfs btrfs /dev/sdc",
            ]
        );
        assert_eq!(
            mount_of(&mounts, Path::new("/boot/grub"))
                .unwrap()
                .number
                .to_string(),
            "8:1"
        );
        assert_eq!(
            mount_of(&mounts, Path::new("/bootleg"))
                .unwrap()
                .number
                .to_string(),
            "8:2"
        );
    }

    #[test]
    fn swaps_are_read() {
        let text = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n\
                    /dev/sda3                               partition\t1048572\t\t0\t\t-2\n\
                    /swap\\040file                            file\t\t524284\t\t0\t\t-3\n";
        assert_eq!(
            parse_swaps(text),
            [
                Swap {
                    path: "/dev/sda3".into(),
                    is_file: false
                },
                Swap {
                    path: "/swap file".into(),
                    is_file: true
                }
            ]
        );
        assert!(parse_swaps("").is_empty());
    }

    #[test]
    fn every_namespace_is_read_once() {
        let dir = tempfile::tempdir().unwrap();
        let add = |pid: &str, namespace: &str, text: Option<&str>| {
            let process = dir.path().join(pid);
            fs::create_dir_all(process.join("ns")).unwrap();
            std::os::unix::fs::symlink(namespace, process.join("ns/mnt")).unwrap();
            if let Some(text) = text {
                fs::write(process.join("mountinfo"), text).unwrap();
            }
        };
        let other = "90 80 8:17 / /var/lib/container rw - xfs /dev/sdb1 rw\n";
        add("self", "mnt:[1]", Some(MOUNTINFO));
        add("1", "mnt:[1]", Some(MOUNTINFO));
        // Process 40 ended after its namespace was seen; 41 still shows the same namespace.
        add("40", "mnt:[2]", None);
        add("41", "mnt:[2]", Some(other));
        add("42", "mnt:[2]", Some(other));
        fs::create_dir(dir.path().join("irq")).unwrap();
        let table = Proc::new(dir.path()).mounts().unwrap();
        assert_eq!(table.mounts.iter().filter(|m| m.own_namespace).count(), 5);
        let foreign: Vec<_> = table.mounts.iter().filter(|m| !m.own_namespace).collect();
        assert_eq!(foreign.len(), 1, "{foreign:?}");
        assert_eq!(foreign[0].number.to_string(), "8:17");
        assert_eq!(table.hidden_processes, 0);
    }

    #[test]
    fn this_machine_has_a_root() {
        let table = Proc::default().mounts().unwrap();
        assert!(
            table
                .mounts
                .iter()
                .any(|m| m.mount_point == Path::new("/") && m.own_namespace)
        );
        Proc::default().swaps().unwrap();
    }
}
