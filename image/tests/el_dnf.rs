// SPDX-License-Identifier: MIT OR Apache-2.0
//! The CentOS family's root file system by the real dnf and rpm, from repositories of small packages that are built,
//! signed and indexed here. The packages are ours, so what is not tried is the family's own: its mirrors, its kernel and
//! its dracut, for which a script stands that writes down how it was called.

#![allow(clippy::unwrap_used, reason = "test code")]

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde_json::Value;
use sha2::{Digest, Sha256};

use common::{mt_image, text};

const KERNEL: &str = "5.14.0-1.el9.x86_64";
/// The kernel that the module of ReiserFS was built for, as ELRepo's are built for an older one.
const OTHER: &str = "5.14.0-0.el9.x86_64";
const NEEDED: &[&str] = &[
    "dnf",
    "rpm",
    "rpmbuild",
    "rpmsign",
    "createrepo_c",
    "gpg",
    "busybox",
];

/// Sub-packages of one source, so that rpmbuild runs once. `base` brings a shell, since scriptlets want one.
const SOURCE: &str = r#"
Name: base
Version: 1
Release: 1.el9
Summary: shell and tools
License: MIT
AutoReqProv: no
Provides: /bin/sh
%description
x
%package -n kernel
Summary: x
Requires: base
%description -n kernel
x
%package -n dracut
Summary: x
Requires: base
%description -n dracut
x
%package -n alpha
Summary: x
Version: 1.2
Epoch: 3
Requires: beta
Requires(post): base
%description -n alpha
x
%post -n alpha
# Wants /proc and /dev, as many scriptlets do.
grep -q "^Pid:" /proc/self/status && echo ran >/dev/null && cp /proc/self/status /opt/alpha-ran
%package -n beta
Summary: x
%description -n beta
x
%package -n slow
Summary: x
Requires(post): base
%description -n slow
x
%post -n slow
echo started >/slow-started
sleep 600
%package -n broken
Summary: x
Requires: nobody-has-this
%description -n broken
x
%package -n kmod-reiserfs
Summary: x
Requires: kernel
%description -n kmod-reiserfs
x
%package -n reiserfs-utils
Summary: x
%description -n reiserfs-utils
x
%install
mkdir -p %{buildroot}/usr/bin %{buildroot}/usr/sbin %{buildroot}/opt %{buildroot}/boot %{buildroot}/etc
ln -s usr/bin %{buildroot}/bin
ln -s usr/sbin %{buildroot}/sbin
ln -s usr/lib %{buildroot}/lib
cp @BUSYBOX@ %{buildroot}/usr/bin/busybox
for name in sh grep cp sleep cat; do ln -s busybox %{buildroot}/usr/bin/$name; done
ln -s ../bin/busybox %{buildroot}/usr/sbin/depmod
printf 'root:*:1::::::\n' >%{buildroot}/etc/shadow
modules=%{buildroot}/usr/lib/modules/@KERNEL@
other=%{buildroot}/usr/lib/modules/@OTHER@/extra
mkdir -p $modules/kernel/fs/xfs $modules/kernel/sound $modules/weak-updates $other
for module in kernel/fs/xfs/xfs kernel/sound/snd; do echo module >$modules/$module.ko; done
echo module >$other/reiserfs.ko
%if !0%{?unfit}
ln -s /usr/lib/modules/@OTHER@/extra/reiserfs.ko $modules/weak-updates/reiserfs.ko
%endif
echo kernel/fs/ext4/ext4.ko >$modules/modules.builtin
printf '#!/bin/sh\n[ -c /dev/null ] || exit 1\necho "$@" >"$5"\ncat /etc/dracut.conf.d/*.conf >>"$5"\n' \
    >%{buildroot}/usr/bin/dracut
chmod 755 %{buildroot}/usr/bin/dracut
for name in alpha beta; do echo $name >%{buildroot}/opt/$name; done
%files
/bin
/sbin
/lib
/usr/bin/busybox
/usr/bin/sh
/usr/bin/grep
/usr/bin/cp
/usr/bin/sleep
/usr/bin/cat
/usr/sbin/depmod
%attr(0600,root,root) /etc/shadow
%files -n kernel
/usr/lib/modules/@KERNEL@/kernel
/usr/lib/modules/@KERNEL@/modules.builtin
/boot
%files -n dracut
/usr/bin/dracut
%files -n alpha
/opt/alpha
%files -n beta
/opt/beta
%files -n slow
%files -n broken
%files -n kmod-reiserfs
/usr/lib/modules/@OTHER@
/usr/lib/modules/@KERNEL@/weak-updates
%files -n reiserfs-utils
"#;

/// Two signed repositories in a folder whose name holds a space, and who signs.
struct Lab {
    folder: tempfile::TempDir,
}

fn p(path: &Path) -> &str {
    path.to_str().expect("test paths are UTF-8")
}

impl Lab {
    /// `None`: not here, and the skip is noted.
    fn make(test: &str) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            common::skip::skip(test, "needs root");
            return None;
        }
        let path = std::env::var_os("PATH").unwrap_or_default();
        let missing: Vec<&&str> = NEEDED
            .iter()
            .filter(|name| !std::env::split_paths(&path).any(|folder| folder.join(name).is_file()))
            .collect();
        if !missing.is_empty() {
            common::skip::skip(test, &format!("programs are missing: {missing:?}"));
            return None;
        }
        let folder = tempfile::Builder::new().prefix("mt el test ").tempdir().unwrap();
        let lab = Self { folder };
        // gpg-agent's socket wants a short path without a space; rpmsign hands the name to a shell.
        std::fs::create_dir_all(lab.at("home")).unwrap();
        for name in ["good", "elrepo", "stranger"] {
            lab.key(name);
        }
        lab.packages(&[]);
        Some(lab)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn tool(&self, program: &str, arguments: &[&str]) -> Output {
        let output = Command::new(program)
            .args(arguments)
            .env("HOME", self.at("home"))
            .env("GNUPGHOME", self.at("home"))
            .env("LC_ALL", "C.UTF-8")
            .output()
            .unwrap_or_else(|error| panic!("{program}: {error}"));
        assert!(
            output.status.success(),
            "{program} {arguments:?}: {}",
            text(&output)
        );
        output
    }

    fn key(&self, name: &str) {
        let user = format!("{name}@example.invalid");
        let fixed = ["--batch", "--quiet", "--passphrase", ""];
        self.tool(
            "gpg",
            &[
                &fixed[..],
                &["--quick-generate-key", &user, "rsa2048", "sign", "never"],
            ]
            .concat(),
        );
        let out = self.at(&format!("{name}.asc"));
        self.tool(
            "gpg",
            &["--batch", "--armor", "--output", p(&out), "--export", &user],
        );
    }

    /// Builds, signs and indexes all packages; `more` are options of rpmbuild.
    fn packages(&self, more: &[&str]) {
        let busybox = ["/usr/bin/busybox", "/bin/busybox"]
            .into_iter()
            .find(|path| Path::new(path).is_file())
            .unwrap();
        let source = SOURCE
            .replace("@BUSYBOX@", busybox)
            .replace("@KERNEL@", KERNEL)
            .replace("@OTHER@", OTHER);
        // rpmbuild cannot have spaces in its paths.
        let build = tempfile::tempdir().unwrap();
        let spec = build.path().join("test.spec");
        std::fs::write(&spec, source).unwrap();
        let top = format!("_topdir {}", p(build.path()));
        let fixed = ["-bb", "--quiet", "--target", "x86_64", "--define", &top];
        let plain = [
            "--define",
            "_build_id_links none",
            "--define",
            "__os_install_post %{nil}",
        ];
        self.tool("rpmbuild", &[&fixed[..], &plain, more, &[p(&spec)]].concat());
        for entry in std::fs::read_dir(build.path().join("RPMS/x86_64")).unwrap() {
            let from = entry.unwrap().path();
            let name = from.file_name().unwrap().to_str().unwrap().to_owned();
            let repository = if name.contains("reiserfs") {
                "elrepo"
            } else {
                "base"
            };
            std::fs::create_dir_all(self.at(repository)).unwrap();
            let to = self.at(repository).join(&name);
            std::fs::copy(&from, &to).unwrap();
            self.sign(&to, if repository == "base" { "good" } else { "elrepo" });
        }
        for repository in ["base", "elrepo"] {
            self.index(repository);
        }
    }

    fn sign(&self, package: &Path, who: &str) {
        let name = format!("_gpg_name {who}@example.invalid");
        let package = self.folder.path().join(package);
        self.tool(
            "rpmsign",
            &[
                "--define",
                &name,
                "--define",
                "__gpg /usr/bin/gpg",
                "--addsign",
                p(&package),
            ],
        );
    }

    fn package(&self, name: &str) -> PathBuf {
        let start = format!("{name}-");
        let found = ["base", "elrepo"].into_iter().find_map(|repository| {
            std::fs::read_dir(self.at(repository))
                .unwrap()
                .map(|entry| entry.unwrap().path())
                .find(|path| {
                    path.file_name()
                        .is_some_and(|file| file.to_string_lossy().starts_with(&start))
                })
        });
        found.unwrap_or_else(|| panic!("there is no package {name}"))
    }

    fn index(&self, repository: &str) {
        self.tool("createrepo_c", &["--quiet", p(&self.at(repository))]);
    }

    /// A spec made of the project's own, with this lab's repositories; `change` may change its `rootfs`.
    fn spec(&self, packages: &[&str], change: impl FnOnce(&mut toml::Table)) -> PathBuf {
        let own = concat!(env!("CARGO_MANIFEST_DIR"), "/specs/el.toml");
        let mut spec: toml::Table = std::fs::read_to_string(own).unwrap().parse().unwrap();
        let rootfs = spec["rootfs"].as_table_mut().unwrap();
        let list = |words: &[&str]| toml::Value::from(words.to_vec());
        rootfs.insert("packages".into(), list(packages));
        std::fs::create_dir_all(self.at("overlay/etc")).unwrap();
        std::fs::write(self.at("overlay/etc/own-file"), "own\n").unwrap();
        rootfs.insert("overlay".into(), "overlay".into());
        let repositories: Vec<toml::Value> = [("base", "good", false), ("elrepo", "elrepo", true)]
            .into_iter()
            .map(|(id, key, optional)| {
                let mut table = toml::Table::new();
                table.insert("id".into(), id.into());
                let address = p(&self.at(id)).replace(' ', "%20");
                table.insert("baseurl".into(), format!("file://{address}").into());
                table.insert("gpgkey".into(), p(&self.at(&format!("{key}.asc"))).into());
                table.insert("optional".into(), optional.into());
                table.into()
            })
            .collect();
        rootfs.insert("repositories".into(), repositories.into());
        change(rootfs);
        let modules = spec["modules"].as_table_mut().unwrap();
        for key in ["required", "initramfs"] {
            modules.insert(key.into(), list(&["xfs", "ext4"]));
        }
        modules.insert("drop".into(), list(&["sound"]));
        let path = self.at("spec.toml");
        std::fs::write(&path, toml::to_string(&spec).unwrap()).unwrap();
        path
    }

    fn out(&self) -> PathBuf {
        self.at("made here/root")
    }

    fn build(&self, spec: &Path) -> Output {
        std::fs::create_dir_all(self.at("made here")).unwrap();
        mt_image(&["rootfs", "--json", "--spec", p(spec), "--out", p(&self.out())])
    }

    /// Mounts and processes anywhere that have to do with this lab.
    fn traces(&self) -> Vec<String> {
        let marker = p(self.folder.path()).replace(' ', "\\040");
        let mut traces = Vec::new();
        for process in std::fs::read_dir("/proc").unwrap() {
            let process = process.unwrap().path();
            // Processes come and go while we look.
            let mounts = std::fs::read_to_string(process.join("mountinfo")).unwrap_or_default();
            let mounts = mounts.lines().filter(|line| line.contains(&marker));
            traces.extend(mounts.map(|line| format!("{}: mount {line}", process.display())));
            if std::fs::read_link(process.join("root")).is_ok_and(|root| root.starts_with(self.folder.path()))
            {
                traces.push(format!("{}: lives in the root", process.display()));
            }
        }
        traces
    }

    /// Nothing of ours is mounted, running, or left beside the result.
    fn assert_tidy(&self, left: &[&str]) {
        assert_eq!(self.traces(), Vec::<String>::new());
        let mut found: Vec<String> = std::fs::read_dir(self.at("made here"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        found.sort();
        assert_eq!(found, left);
    }

    fn refused(&self, spec: &Path, code: i32, says: &[&str]) {
        let output = self.build(spec);
        assert_eq!(output.status.code(), Some(code), "{}", text(&output));
        let said = text(&output);
        for expected in says.iter().chain(&["hint: "]) {
            assert!(said.contains(expected), "{expected:?} is missing in\n{said}");
        }
        self.assert_tidy(&[]);
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // The agent that gpg started ends; there is nobody to tell when it does not.
        let _ = Command::new("gpgconf")
            .args(["--kill", "all"])
            .env("GNUPGHOME", self.at("home"))
            .output();
    }
}

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
