// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is true of the machine that was started from the installation medium.

use std::fs;
use std::path::Path;

/// Variable in which UEFI says whether it enforces Secure Boot: four bytes of attributes, then 0 or 1.
const SECURE_BOOT: &str = "sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c";

/// Who started the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Firmware {
    /// PC BIOS.
    Bios,
    /// UEFI that starts anything.
    Uefi,
    /// UEFI that starts only what is signed.
    SecureBoot,
}

/// Whether there are answers, and from where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answers {
    /// None were given.
    None,
    /// They are in `/run/mt/answers/ks.cfg`.
    Found {
        /// Where they came from.
        source: String,
        /// Number of their lines.
        lines: usize,
    },
    /// Some were given, but cannot be had.
    Failed(String),
}

/// All of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Entry of the boot menu: `install`, `unattended`; empty when not started from the medium.
    pub mode: String,
    /// Who started the kernel.
    pub firmware: Firmware,
    /// SHA-256 of the payload that was checked before it was started, if it was.
    pub payload: Option<String>,
    /// Answers.
    pub answers: Answers,
}

/// Gathers the facts below `root`; what cannot be read is taken as absent.
pub fn gather(root: &Path) -> Facts {
    let read = |name: &str| {
        fs::read(root.join(name))
            .ok()
            .map(|bytes| String::from_utf8_lossy(&bytes).trim_end().to_owned())
    };
    let cmdline = read("proc/cmdline").unwrap_or_default();
    let argument = |name: &str| {
        let mut values = cmdline
            .split_ascii_whitespace()
            .filter_map(|word| word.split_once('='));
        values
            .rfind(|(key, _)| *key == name)
            .map(|(_, value)| value.to_owned())
    };
    let firmware = if !root.join("sys/firmware/efi").is_dir() {
        Firmware::Bios
    } else if fs::read(root.join(SECURE_BOOT)).is_ok_and(|bytes| bytes.get(4) == Some(&1)) {
        Firmware::SecureBoot
    } else {
        Firmware::Uefi
    };
    let checked = read("run/mt/payload").is_some_and(|state| state == "good");
    let answers = if let Some(reason) = read("run/mt/answers/error") {
        Answers::Failed(reason)
    } else if let Some(text) = read("run/mt/answers/ks.cfg") {
        Answers::Found {
            source: read("run/mt/answers/source").unwrap_or_default(),
            lines: text.lines().count(),
        }
    } else {
        Answers::None
    };
    Facts {
        mode: argument("mt.mode").unwrap_or_default(),
        firmware,
        payload: argument("mt.payload").filter(|_| checked),
        answers,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "test code")]
mod tests {
    use super::*;

    fn put(root: &Path, name: &str, bytes: &[u8]) {
        let path = root.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    #[test]
    fn an_empty_machine_has_no_facts() {
        let root = tempfile::tempdir().unwrap();
        let facts = gather(root.path());
        assert_eq!((facts.mode.as_str(), facts.firmware), ("", Firmware::Bios));
        assert_eq!((facts.payload, facts.answers), (None, Answers::None));
    }

    #[test]
    fn facts_are_read_where_the_medium_leaves_them() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        put(
            root,
            "proc/cmdline",
            b"quiet mt.mode=install mt.mode=unattended mt.payload=ab\n",
        );
        put(root, SECURE_BOOT, &[6, 0, 0, 0, 0]);
        assert_eq!(gather(root).firmware, Firmware::Uefi);
        put(root, SECURE_BOOT, &[6, 0, 0, 0, 1]);
        put(root, "run/mt/answers/ks.cfg", b"lang en_US\nreboot\n");
        put(root, "run/mt/answers/source", b"OEMDRV:/ks.cfg (/dev/sr1)\n");
        let facts = gather(root);
        assert_eq!(facts.mode, "unattended");
        assert_eq!(facts.firmware, Firmware::SecureBoot);
        assert_eq!(facts.payload, None, "not checked, so not shown as checked");
        let source = "OEMDRV:/ks.cfg (/dev/sr1)".to_owned();
        assert_eq!(facts.answers, Answers::Found { source, lines: 2 });
        put(root, "run/mt/payload", b"good\n");
        put(root, "run/mt/answers/error", b"no network\n");
        let facts = gather(root);
        assert_eq!(facts.payload.as_deref(), Some("ab"));
        assert_eq!(facts.answers, Answers::Failed("no network".to_owned()));
    }
}
