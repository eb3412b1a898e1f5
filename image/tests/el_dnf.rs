// SPDX-License-Identifier: MIT OR Apache-2.0
//! The CentOS family's root file system by the real dnf and rpm, from repositories of small packages that are built,
//! signed and indexed here. The packages are ours, so what is not tried is the family's own: its mirrors, its kernel and
//! its dracut, for which a script stands that writes down how it was called.

#![allow(clippy::unwrap_used, reason = "test code")]

mod common;
#[path = "common/el.rs"]
mod el;

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;
use sha2::{Digest, Sha256};

use common::text;
use el::{KERNEL, Lab, p};

const ALL: &[&str] = &[
    "linux-image-amd64",
    "dracut",
    "alpha",
    "btrfs-progs",
    "kmod-reiserfs",
    "reiserfsprogs",
];

#[test]
fn el_root_is_made_of_verified_packages() {
    let Some(lab) = Lab::make("el_root_is_made_of_verified_packages") else {
        return;
    };
    let spec = lab.spec(ALL, |_| {});
    let output = lab.build(&spec);
    assert!(output.status.success(), "{}", text(&output));
    let root = lab.out();
    lab.assert_tidy(&["root"]);

    // The list names what is there, with the digests of the files it came from.
    let made: Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = made["packages"].as_array().unwrap();
    let names: Vec<&str> = packages
        .iter()
        .map(|package| package["name"].as_str().unwrap())
        .collect();
    assert_eq!(
        names,
        [
            "alpha",
            "base",
            "beta",
            "dracut",
            "kernel",
            "kmod-reiserfs",
            "reiserfs-utils"
        ]
    );
    assert_eq!(packages[0]["version"], "3:1.2-1.el9");
    for package in packages {
        let name = package["name"].as_str().unwrap();
        let bytes = std::fs::read(lab.package(name)).unwrap();
        let digest: String = Sha256::digest(&bytes)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        assert_eq!(package["sha256"], digest.as_str(), "{name}");
    }

    // The database is where the installed system looks, and nowhere else.
    let query = Command::new("rpm")
        .args(["--root", p(&root), "--dbpath", "/var/lib/rpm", "--query", "alpha"])
        .output()
        .unwrap();
    assert!(text(&query).contains("alpha-1.2-1.el9"), "{}", text(&query));
    let database: Vec<_> = std::fs::read_dir(root.join("var/lib/rpm")).unwrap().collect();
    assert!(!database.is_empty());
    let elsewhere = Command::new("find")
        .args([p(&root), "-name", ".rpmdb"])
        .output()
        .unwrap();
    assert_eq!(elsewhere.stdout, b"");

    // The scriptlet had /proc and /dev; neither is in the image, nor is anything that dnf left.
    assert!(root.join("opt/alpha-ran").is_file());
    for folder in ["proc", "dev", "var/cache/dnf", "var/lib/dnf", "var/log"] {
        let left: Vec<_> = std::fs::read_dir(root.join(folder)).unwrap().collect();
        assert!(left.is_empty(), "{folder}: {left:?}");
    }
    let modules = root.join("usr/lib/modules").join(KERNEL);
    assert!(modules.join("kernel/fs/xfs/xfs.ko").is_file() && !modules.join("kernel/sound/snd.ko").exists());
    assert!(
        std::fs::read_to_string(modules.join("modules.dep"))
            .unwrap()
            .contains("weak-updates/reiserfs.ko")
    );
    let initramfs = std::fs::read_to_string(root.join(format!("boot/initramfs-{KERNEL}.img"))).unwrap();
    assert!(
        initramfs.contains("--no-hostonly") && initramfs.contains("add_drivers+=\" xfs ext4 \""),
        "{initramfs}"
    );
    assert_eq!(std::fs::read_to_string(root.join("etc/machine-id")).unwrap(), "");
    assert_eq!(
        std::fs::read_to_string(root.join("etc/own-file")).unwrap(),
        "own\n"
    );
    assert_eq!(
        std::fs::read_link(root.join("etc/systemd/system/multipathd.service")).unwrap(),
        Path::new("/dev/null")
    );

    // What is not in the family is said; ReiserFS is in it here.
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("btrfs-progs is left out"), "{said}");
    assert!(!said.contains("ReiserFS is not available"), "{said}");

    // A second time it is refused, and the first is untouched.
    let again = lab.build(&spec);
    assert_eq!(again.status.code(), Some(5), "{}", text(&again));
    lab.assert_tidy(&["root"]);
}

#[test]
fn el_says_where_there_is_no_reiserfs() {
    let Some(lab) = Lab::make("el_says_where_there_is_no_reiserfs") else {
        return;
    };
    // Release 10 has none, although a repository offers something of the name.
    let spec = lab.spec(ALL, |rootfs| {
        rootfs.insert("release".into(), "10".into());
    });
    let output = lab.build(&spec);
    assert!(output.status.success(), "{}", text(&output));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        said.contains(
            "ReiserFS is not available in this image: ELRepo makes no kmod-reiserfs for release 10"
        ),
        "{said}"
    );
    assert!(lab.out().join("usr/lib/sysimage/rpm/rpmdb.sqlite").is_file());
    assert!(
        !lab.out()
            .join("usr/lib/modules")
            .join(KERNEL)
            .join("extra")
            .exists()
    );
    std::fs::remove_dir_all(lab.out()).unwrap();

    // Release 9 without ELRepo: missed aloud, and built all the same.
    let spec = lab.spec(ALL, |rootfs| {
        rootfs["repositories"][1]["baseurl"] = "http://127.0.0.1:9/elrepo".into();
    });
    let output = lab.build(&spec);
    assert!(output.status.success(), "{}", text(&output));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    for expected in [
        "building on without an optional repository: cannot read the index of repository elrepo at \
         http://127.0.0.1:9/elrepo",
        "ReiserFS is not available in this image: no repository that could be read offers kmod-reiserfs",
    ] {
        assert!(said.contains(expected), "{expected}\n{said}");
    }
    std::fs::remove_dir_all(lab.out()).unwrap();

    // A module that is installed but not for this kernel is no ReiserFS either.
    lab.packages(&["--define", "unfit 1"]);
    let spec = lab.spec(ALL, |_| {});
    let output = lab.build(&spec);
    assert!(output.status.success(), "{}", text(&output));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let expected = format!("kmod-reiserfs is installed, but brings no module for kernel {KERNEL}");
    assert!(said.contains(&expected), "{said}");
}

#[test]
fn el_refuses_what_is_not_rightly_signed() {
    let Some(lab) = Lab::make("el_refuses_what_is_not_rightly_signed") else {
        return;
    };
    let spec = lab.spec(&["kernel", "dracut", "alpha"], |_| {});
    let beta = lab.package("beta");
    let original = std::fs::read(&beta).unwrap();

    // A stranger's signature, on a package that is only a dependency.
    lab.sign(&beta, "stranger");
    lab.index("base");
    let not_signed = "a package is not signed with the key of its repository, nothing was installed";
    lab.refused(&spec, 6, &[not_signed, "beta-1-1.el9"]);

    lab.tool("rpmsign", &["--delsign", p(&beta)]);
    lab.index("base");
    lab.refused(&spec, 6, &[not_signed, "beta-1-1.el9.x86_64.rpm is not signed"]);

    // One bit of the payload, with an index that knows: only the signature can notice.
    let mut damaged = original.clone();
    let last = damaged.len() - 20;
    damaged[last] ^= 1;
    std::fs::write(&beta, &damaged).unwrap();
    lab.index("base");
    lab.refused(&spec, 6, &[not_signed, "beta-1-1.el9"]);

    // The same with an index that does not know.
    std::fs::write(&beta, &original).unwrap();
    lab.index("base");
    std::fs::write(&beta, &damaged).unwrap();
    lab.refused(&spec, 6, &["incorrect checksum", "beta"]);

    // The spec names another key than the packages are signed with.
    std::fs::write(&beta, &original).unwrap();
    let stranger = lab.at("stranger.asc");
    let wrong = lab.spec(&["kernel", "dracut", "alpha"], |rootfs| {
        rootfs["repositories"][0]["gpgkey"] = p(&stranger).into();
    });
    lab.refused(&wrong, 6, &[not_signed]);

    // All is well again: it was the signature, nothing else.
    let spec = lab.spec(&["kernel", "dracut", "alpha"], |_| {});
    let output = lab.build(&spec);
    assert!(output.status.success(), "{}", text(&output));
}

#[test]
fn el_names_what_is_missing() {
    let Some(lab) = Lab::make("el_names_what_is_missing") else {
        return;
    };
    let plain = &["kernel", "dracut", "alpha"];
    let spec = lab.spec(&["kernel", "no-such-package", "sg3-utils"], |_| {});
    let says = [
        "asks for no-such-package, sg3_utils (for sg3-utils)",
        "(base, elrepo)",
    ];
    lab.refused(&spec, 3, &says);
    let spec = lab.spec(&["kernel", "dracut", "broken"], |_| {});
    lab.refused(&spec, 3, &["do not fit together", "nobody-has-this"]);

    // Mirrors: a name that nobody has, a port where nobody listens, a folder that does not exist.
    for (address, says) in [
        ("http://mirror.invalid/os", "resolve"),
        ("http://127.0.0.1:9/os", "connect"),
        ("file:///nonexistent/os", "file://"),
    ] {
        let spec = lab.spec(plain, |rootfs| {
            rootfs["repositories"][0]["baseurl"] = address.into();
        });
        let named = format!("cannot read the index of repository base at {address}: ");
        lab.refused(
            &spec,
            6,
            &[
                &named,
                says,
                "name a mirror that can be reached in rootfs.repositories.baseurl",
            ],
        );
    }
    let spec = lab.spec(plain, |rootfs| {
        rootfs["repositories"][0]["gpgkey"] = "/nonexistent/key".into();
    });
    lab.refused(&spec, 3, &["key file of repository base", "/nonexistent/key"]);
    let spec = lab.spec(plain, |rootfs| {
        rootfs.insert("release".into(), "8".into());
    });
    lab.refused(&spec, 3, &["release 8", "package database"]);
}

/// A child that does not outlive a failed test.
struct Ended(std::process::Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // After an orderly end both do nothing.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn el_leaves_nothing_when_killed() {
    use nix::sys::signal::{Signal, kill};
    let Some(lab) = Lab::make("el_leaves_nothing_when_killed") else {
        return;
    };
    let spec = lab.spec(&["kernel", "dracut", "slow"], |_| {});
    std::fs::create_dir_all(lab.at("made here")).unwrap();
    let started = |folder: &Path| {
        std::fs::read_dir(folder)
            .unwrap()
            .any(|entry| entry.unwrap().path().join("root/slow-started").is_file())
    };
    let wait = |what: &str, done: &dyn Fn() -> bool| {
        let deadline = Instant::now() + Duration::from_secs(120);
        while !done() {
            assert!(Instant::now() < deadline, "waited in vain for {what}");
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        let mut child = Ended(
            Command::new(env!("CARGO_BIN_EXE_mt-image"))
                .args(["rootfs", "--spec", p(&spec), "--out", p(&lab.out())])
                .stderr(std::process::Stdio::null())
                .spawn()
                .unwrap(),
        );
        // In the midst of a scriptlet: processes in the root, /proc mounted in it.
        wait("the scriptlet", &|| started(&lab.at("made here")));
        let traces = lab.traces().join("\n");
        assert!(
            traces.contains("lives in the root"),
            "the check below would see nothing: {traces}"
        );
        kill(
            nix::unistd::Pid::from_raw(child.0.id().try_into().unwrap()),
            signal,
        )
        .unwrap();
        child.0.wait().unwrap();
        wait("the work folder to go", &|| {
            std::fs::read_dir(lab.at("made here")).unwrap().next().is_none()
        });
        wait("the processes to go", &|| lab.traces().is_empty());
        lab.assert_tidy(&[]);
    }
}
