// SPDX-License-Identifier: MIT OR Apache-2.0
//! The script that finds the answers file, run on the build host with folders in place of the live system's.

#![allow(clippy::unwrap_used, reason = "test code")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

struct Live(tempfile::TempDir);

impl Live {
    fn new() -> Self {
        let live = Self(tempfile::tempdir().unwrap());
        fs::create_dir_all(live.path("medium/mt")).unwrap();
        live
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Runs the script; answers with the source or the error, and the answers.
    fn find(&self, cmdline: &str) -> (Result<String, String>, Option<String>) {
        fs::write(self.path("cmdline"), format!("quiet {cmdline} console=tty0\n")).unwrap();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("overlay/usr/lib/master-target/find-answers");
        let output = Command::new("sh")
            .arg(script)
            .env("MT_RUN", self.0.path())
            .env("MT_CMDLINE", self.path("cmdline"))
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        let read = |name: &str| fs::read_to_string(self.path("answers").join(name)).ok();
        let said = match (read("source"), read("error")) {
            (Some(source), None) => Ok(source.trim_end().to_owned()),
            (None, Some(error)) => Err(error.trim_end().to_owned()),
            (None, None) => Ok(String::new()),
            both => panic!("source and error at once: {both:?}"),
        };
        (said, read("ks.cfg"))
    }
}

#[test]
fn answers_on_the_medium_are_taken() {
    let live = Live::new();
    fs::write(live.path("medium/mt/inst.ks"), "lang en_US\n").unwrap();
    fs::write(live.path("medium/other ks.cfg"), "x\n").unwrap();
    let (source, text) = live.find("");
    assert_eq!(source.unwrap(), "cdrom:/mt/inst.ks");
    assert_eq!(text.unwrap(), "lang en_US\n");
}

#[test]
fn the_boot_argument_comes_before_the_medium() {
    for given in ["cdrom:/deep/a.ks", "cdrom:deep/a.ks"] {
        let live = Live::new();
        fs::write(live.path("medium/mt/inst.ks"), "of the medium\n").unwrap();
        fs::create_dir(live.path("medium/deep")).unwrap();
        fs::write(live.path("medium/deep/a.ks"), "of the argument\n").unwrap();
        let (source, text) = live.find(&format!("inst.ks=cdrom:/no inst.ks={given}"));
        assert_eq!(source.unwrap(), given);
        assert_eq!(text.unwrap(), "of the argument\n");
    }
}

#[test]
fn what_cannot_be_had_is_an_error_and_never_other_answers() {
    let live = Live::new();
    let cases = [
        (
            "inst.ks=cdrom:/none.cfg",
            "cdrom:/none.cfg: there is no such file",
        ),
        ("inst.ks=cdrom:/empty.cfg", "cdrom:/empty.cfg: the file is empty"),
        (
            "inst.ks=cdrom:/large.cfg",
            "cdrom:/large.cfg: the file is larger than 1 MiB",
        ),
        ("inst.ks=cdrom:/mt", "cdrom:/mt: there is no such file"),
        (
            "inst.ks=hd:LABEL=mt-no-such:/ks.cfg",
            "there is no disk LABEL=mt-no-such",
        ),
        ("inst.ks=hd:mt-no-such:/ks.cfg", "there is no disk mt-no-such"),
        ("inst.ks=nfs:host:/ks.cfg", "nfs:host:/ks.cfg: not understood"),
        ("inst.ks=$(touch${IFS}/tmp/x)", "not understood"),
    ];
    fs::write(live.path("medium/empty.cfg"), "").unwrap();
    fs::write(live.path("medium/large.cfg"), vec![b'#'; (1 << 20) + 1]).unwrap();
    fs::write(live.path("medium/mt/inst.ks"), "of the medium\n").unwrap();
    for (cmdline, expected) in cases {
        let (error, text) = live.find(cmdline);
        let error = error.unwrap_err();
        assert!(error.contains(expected), "{cmdline}: {error}");
        assert_eq!(text, None, "{cmdline}");
        fs::remove_dir_all(live.path("answers")).unwrap();
    }
}

#[test]
fn no_answers_are_no_error() {
    let live = Live::new();
    assert_eq!(live.find("mt.mode=install"), (Ok(String::new()), None));
}
