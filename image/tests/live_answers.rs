// SPDX-License-Identifier: MIT OR Apache-2.0
//! The script that finds the answers file, run on the build host with folders in place of the live system's.

#![allow(clippy::unwrap_used, reason = "test code")]

mod common;

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

/// A volume on a loop device.
struct Volume {
    node: String,
}

impl Volume {
    /// Makes a volume of a kind with the answers in `ks.cfg` and in `deep/b.ks`.
    fn new(folder: &Path, kind: &str, label: &str) -> Self {
        let image = folder.join(format!("{label}.{kind}"));
        let tree = folder.join(format!("{label}.tree"));
        fs::create_dir_all(tree.join("deep")).unwrap();
        fs::write(tree.join("ks.cfg"), format!("# {label}\n")).unwrap();
        fs::write(tree.join("deep/b.ks"), "# deep\n").unwrap();
        let done = |program: &str, words: &[&str]| {
            let paths: Vec<&Path> = words.iter().map(Path::new).collect();
            let output = common::run(program, &paths);
            assert!(output.status.success(), "{program}: {}", common::text(&output));
            String::from_utf8_lossy(&output.stdout).trim().to_owned()
        };
        let (file, tree) = (image.to_str().unwrap(), tree.to_str().unwrap());
        if kind != "iso" {
            fs::File::create(&image).unwrap().set_len(8 << 20).unwrap();
        }
        match kind {
            "iso" => {
                let words = format!("-as mkisofs -quiet -r -J -V {label} -o {file} {tree}");
                done("xorriso", &words.split(' ').collect::<Vec<_>>());
            }
            "vfat" => {
                done("mkfs.vfat", &["-n", label, file]);
                for name in ["ks.cfg", "deep"] {
                    done("mcopy", &["-s", "-i", file, &format!("{tree}/{name}"), "::/"]);
                }
            }
            _ => {
                done(
                    "mke2fs",
                    &["-q", "-F", "-t", "ext4", "-L", label, "-d", tree, file],
                );
            }
        }
        let node = done("losetup", &["--find", "--show", "--read-only", file]);
        Self { node }
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        let words = ["--detach", &self.node].map(Path::new);
        common::run("losetup", &words);
    }
}

#[test]
fn loop_volumes_that_cannot_be_meant_are_told_and_never_read() {
    if !common::require(&["xorriso", "mkfs.vfat", "mcopy", "mke2fs", "losetup", "blkid"])
        || !common::require_root()
    {
        return;
    }
    let [first, second] = [(), ()].map(|()| tempfile::tempdir().unwrap());
    let ext = Volume::new(first.path(), "ext4", "MTEXT");
    for name in ["LABEL=MTEXT", &ext.node, ext.node.trim_start_matches("/dev/")] {
        let live = Live::new();
        let (error, text) = live.find(&format!("inst.ks=hd:{name}:/ks.cfg"));
        let expected = format!(
            "hd:{name}:/ks.cfg: {} holds \"ext4\"; answers are read from iso9660 and vfat only",
            ext.node
        );
        assert_eq!((error, text), (Err(expected), None));
    }
    let live = Live::new();
    let error = live.find(&format!("inst.ks=hd:{}", ext.node)).0.unwrap_err();
    assert!(
        error.contains("not understood; known are cdrom:/FILE, hd:DEVICE:/FILE"),
        "{error}"
    );

    let one = Volume::new(first.path(), "vfat", "OEMDRV");
    let two = Volume::new(second.path(), "iso", "OEMDRV");
    let live = Live::new();
    let (error, text) = live.find("");
    let error = error.unwrap_err();
    assert!(error.contains("OEMDRV: 2 volumes have this label"), "{error}");
    for volume in [one, two] {
        assert!(error.contains(&volume.node), "{error}");
    }
    assert_eq!(text, None);
}
