// SPDX-License-Identifier: MIT OR Apache-2.0
//! Repositories of small packages that are built, signed and indexed here, by the real rpmbuild, rpmsign and createrepo_c.

#![allow(
    dead_code,
    clippy::unwrap_used,
    reason = "test code; each test binary uses its part"
)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::common::{self, mt_image, text};

#[path = "workshop.rs"]
mod workshop;

pub use workshop::{Workshop, p};

pub const KERNEL: &str = "5.14.0-1.el9.x86_64";
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
%package -n shim-x64
Summary: x
%description -n shim-x64
x
%package -n grub2-efi-x64
Summary: x
%description -n grub2-efi-x64
x
%package -n grub2-efi-x64-cdboot
Summary: x
%description -n grub2-efi-x64-cdboot
x
%package -n grub2-pc-modules
Summary: x
%description -n grub2-pc-modules
x
%package -n grub2-tools
Summary: x
Requires: base
%description -n grub2-tools
x
%package -n alpha
Summary: x
Version: %{?alpha_version}%{!?alpha_version:1.2}
Epoch: 3
Requires: beta
Requires(post): base
%description -n alpha
x
%post -n alpha
# Wants /proc and /dev, as many scriptlets do.
grep -q "^Pid:" /proc/self/status && echo ran >/opt/alpha-ran
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
# Stands for the family's signed kernel and loaders, which nothing here starts.
echo kernel >$modules/vmlinuz
efi=%{buildroot}/boot/efi/EFI/centos grub=%{buildroot}/usr/lib/grub/i386-pc
mkdir -p $efi $grub %{buildroot}/tmp %{buildroot}/usr/lib/systemd/system
for name in shimx64 mmx64 grubx64 gcdx64; do echo $name >$efi/$name.efi; done
for name in boot boot_hybrid cdboot; do head -c 512 /dev/zero >$grub/$name.img; done
echo module >$grub/normal.mod
printf '[Install]\nWantedBy=multi-user.target\n' >%{buildroot}/usr/lib/systemd/system/chronyd.service
printf '#!/bin/sh\nexec cp /usr/bin/busybox "$6"\n' >%{buildroot}/usr/bin/grub2-mkimage
chmod 755 %{buildroot}/usr/bin/grub2-mkimage
# What the installer's program runs with.
for file in @LIBRARIES@; do
    mkdir -p %{buildroot}$(dirname $file)
    cp -L $file %{buildroot}$file
done
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
/tmp
/usr/sbin/depmod
/usr/lib/systemd/system/chronyd.service
@LIBRARY_FILES@
%attr(0600,root,root) /etc/shadow
%files -n kernel
/usr/lib/modules/@KERNEL@/kernel
/usr/lib/modules/@KERNEL@/modules.builtin
/usr/lib/modules/@KERNEL@/vmlinuz
%dir /boot
%files -n shim-x64
/boot/efi/EFI/centos/shimx64.efi
/boot/efi/EFI/centos/mmx64.efi
%files -n grub2-efi-x64
/boot/efi/EFI/centos/grubx64.efi
%files -n grub2-efi-x64-cdboot
/boot/efi/EFI/centos/gcdx64.efi
%files -n grub2-pc-modules
/usr/lib/grub/i386-pc
%files -n grub2-tools
/usr/bin/grub2-mkimage
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
pub struct Lab {
    folder: Workshop,
}

/// Libraries of `mt-image`, which stands for the programs of the appliance. `/lib` is a link in the packages.
fn libraries() -> Vec<String> {
    let listed = Command::new("ldd")
        .arg(env!("CARGO_BIN_EXE_mt-image"))
        .output()
        .unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    let paths = listed.split_whitespace().filter(|word| word.starts_with('/'));
    paths
        .map(|path| {
            path.strip_prefix("/lib/")
                .map_or_else(|| path.to_owned(), |rest| format!("/usr/lib/{rest}"))
        })
        .collect()
}

impl Lab {
    /// `None`: not here, and the skip is noted.
    pub fn make(test: &str) -> Option<Self> {
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
        let lab = Self {
            folder: Workshop(folder),
        };
        // gpg-agent's socket wants a short path without a space; rpmsign hands the name to a shell.
        std::fs::create_dir_all(lab.at("home")).unwrap();
        for name in ["good", "elrepo", "stranger"] {
            lab.key(name);
        }
        lab.packages(&[]);
        Some(lab)
    }

    pub fn key(&self, name: &str) {
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
    pub fn packages(&self, more: &[&str]) {
        let busybox = ["/usr/bin/busybox", "/bin/busybox"]
            .into_iter()
            .find(|path| Path::new(path).is_file())
            .unwrap();
        let source = SOURCE
            .replace("@BUSYBOX@", busybox)
            .replace("@KERNEL@", KERNEL)
            .replace("@OTHER@", OTHER)
            .replace("@LIBRARY_FILES@", &libraries().join("\n"))
            .replace("@LIBRARIES@", &libraries().join(" "));
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

    pub fn sign(&self, package: &Path, who: &str) {
        let name = format!("_gpg_name {who}@example.invalid");
        let package = self.folder.0.path().join(package);
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

    pub fn package(&self, name: &str) -> PathBuf {
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

    pub fn index(&self, repository: &str) {
        self.tool("createrepo_c", &["--quiet", p(&self.at(repository))]);
    }

    /// A spec made of the project's own, with this lab's repositories; `change` may change its `rootfs`.
    pub fn spec(&self, packages: &[&str], change: impl FnOnce(&mut toml::Table)) -> PathBuf {
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

    pub fn out(&self) -> PathBuf {
        self.at("made here/root")
    }

    pub fn build(&self, spec: &Path) -> Output {
        std::fs::create_dir_all(self.at("made here")).unwrap();
        mt_image(&["rootfs", "--json", "--spec", p(spec), "--out", p(&self.out())])
    }

    /// Mounts and processes anywhere that have to do with this lab.
    pub fn traces(&self) -> Vec<String> {
        let marker = p(self.folder.0.path()).replace(' ', "\\040");
        let mut traces = Vec::new();
        for process in std::fs::read_dir("/proc").unwrap() {
            let process = process.unwrap().path();
            // Processes come and go while we look.
            let mounts = std::fs::read_to_string(process.join("mountinfo")).unwrap_or_default();
            let mounts = mounts.lines().filter(|line| line.contains(&marker));
            traces.extend(mounts.map(|line| format!("{}: mount {line}", process.display())));
            if std::fs::read_link(process.join("root"))
                .is_ok_and(|root| root.starts_with(self.folder.0.path()))
            {
                traces.push(format!("{}: lives in the root", process.display()));
            }
        }
        traces
    }

    /// Nothing of ours is mounted, running, or left beside the result.
    pub fn assert_tidy(&self, left: &[&str]) {
        assert_eq!(self.traces(), Vec::<String>::new());
        let mut found: Vec<String> = std::fs::read_dir(self.at("made here"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        found.sort();
        assert_eq!(found, left);
    }

    pub fn refused(&self, spec: &Path, code: i32, says: &[&str]) {
        let output = self.build(spec);
        assert_eq!(output.status.code(), Some(code), "{}", text(&output));
        let said = text(&output);
        for expected in says.iter().chain(&["hint: "]) {
            assert!(said.contains(expected), "{expected:?} is missing in\n{said}");
        }
        self.assert_tidy(&[]);
    }
}

impl std::ops::Deref for Lab {
    type Target = Workshop;

    fn deref(&self) -> &Workshop {
        &self.folder
    }
}
