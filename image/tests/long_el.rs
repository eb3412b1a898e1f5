// SPDX-License-Identifier: MIT OR Apache-2.0
//! An image of the CentOS family from packages to a start: medium and appliance, built by the one command.
//!
//! The family's mirrors are no part of it. The packages have the family's names and put things where the family has them
//! (loaders below `/boot/efi/EFI/centos`, kernel in `/usr/lib/modules`, `grub2-mkimage`, dracut, `sshd.service`), are
//! signed, and come from a repository that is made here by the real rpmbuild, rpmsign and createrepo_c. Their content is
//! Debian's, whose kernel and loaders Microsoft's keys start. So what is not seen is the family's own programs at work.
//!
//! `MT_PROGRAMS` names the folder with the appliance's programs, as `scripts/test` leaves them.

#![allow(clippy::unwrap_used, reason = "test code")]

mod common;
#[path = "common/vm.rs"]
mod vm;
#[path = "common/workshop.rs"]
mod workshop;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::text;
use vm::{Firmware, Restart, Vm};
use workshop::{Workshop, p};

const NEEDED: &[&str] = &[
    "bsdtar",
    "createrepo_c",
    "dnf",
    "gpg",
    "mmdebstrap",
    "qemu-img",
    "qemu-system-x86_64",
    "rpmbuild",
    "rpmsign",
    "xorriso",
];
/// What Debian calls the content of the packages.
const CONTENT: &str = "linux-image-amd64,systemd,systemd-sysv,udev,dbus,kmod,zstd,tzdata,dracut,grub2-common,\
                       grub-common,grub-pc-bin,grub-efi-amd64-signed,shim-signed,open-vm-tools,e2fsprogs,xfsprogs,\
                       dosfstools,mtools,fdisk,lvm2,mdadm,lsscsi,sg3-utils,squashfs-tools,perl,rsync,wget,iproute2,\
                       chrony,nftables,openssh-server,less,libblkid1,libudev1";
/// Module folders that are left out before the packages are made, for speed alone.
const LEFT_OUT: [&str; 14] = [
    "sound",
    "drivers/gpu",
    "drivers/media",
    "drivers/staging",
    "drivers/infiniband",
    "drivers/iio",
    "drivers/net/ethernet",
    "drivers/net/wireless",
    "drivers/usb/gadget",
    "drivers/video",
    "drivers/hwmon",
    "drivers/isdn",
    "net/wireless",
    "fs/ocfs2",
];

/// Package, and the paths it takes from the tree; a path that ends in `/` with all below. The rest is `base`.
const PACKAGES: &[(&str, &[&str])] = &[
    ("kernel", &["usr/lib/modules/"]),
    (
        "dracut",
        &[
            "usr/lib/dracut/",
            "usr/bin/dracut",
            "usr/bin/lsinitrd",
            "etc/dracut.conf",
        ],
    ),
    (
        "shim-x64",
        &["boot/efi/EFI/centos/shimx64.efi", "boot/efi/EFI/centos/mmx64.efi"],
    ),
    ("grub2-efi-x64", &["boot/efi/EFI/centos/grubx64.efi"]),
    ("grub2-efi-x64-cdboot", &["boot/efi/EFI/centos/gcdx64.efi"]),
    ("grub2-pc-modules", &["usr/lib/grub/i386-pc/"]),
    ("grub2-tools", &["usr/bin/grub2-mkimage"]),
];

/// Removes a file or a folder that may be there.
fn remove(path: &Path) {
    if path.is_dir() && !path.is_symlink() {
        fs::remove_dir_all(path).unwrap();
    } else if path.is_symlink() || path.exists() {
        fs::remove_file(path).unwrap();
    }
}

impl Workshop {
    /// The tree of all packages, with everything where the family has it.
    fn tree(&self) {
        let tree = self.at("tree");
        // The build host's own sources and proxy: whichever mirror it reaches.
        let include = format!("--include={CONTENT}");
        let fixed = [
            "--quiet",
            "--variant=minbase",
            "--mode=root",
            "--format=directory",
        ];
        let more = [
            "--skip=output/dev",
            "--aptopt=APT::Install-Recommends \"false\"",
            &include,
        ];
        let suites = [
            "deb http://deb.debian.org/debian bookworm main",
            "deb http://deb.debian.org/debian-security bookworm-security main",
        ];
        let target = ["bookworm", p(&tree)];
        self.tool("mmdebstrap", &[&fixed[..], &more, &target, &suites].concat());
        let version = fs::read_dir(tree.join("usr/lib/modules"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .next()
            .unwrap();
        let modules = tree.join("usr/lib/modules").join(&version);
        for folder in LEFT_OUT {
            remove(&modules.join("kernel").join(folder));
        }
        let centos = tree.join("boot/efi/EFI/centos");
        fs::create_dir_all(&centos).unwrap();
        for (from, to) in [
            (format!("boot/vmlinuz-{version}"), modules.join("vmlinuz")),
            ("usr/bin/grub-mkimage".into(), tree.join("usr/bin/grub2-mkimage")),
            (
                "usr/lib/shim/shimx64.efi.signed".into(),
                centos.join("shimx64.efi"),
            ),
            ("usr/lib/shim/mmx64.efi.signed".into(), centos.join("mmx64.efi")),
            (
                "usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed".into(),
                centos.join("grubx64.efi"),
            ),
            (
                "usr/lib/grub/x86_64-efi-signed/gcdx64.efi.signed".into(),
                centos.join("gcdx64.efi"),
            ),
            (
                "lib/systemd/system/ssh.service".into(),
                tree.join("lib/systemd/system/sshd.service"),
            ),
            (
                "lib/systemd/system/chrony.service".into(),
                tree.join("lib/systemd/system/chronyd.service"),
            ),
        ] {
            fs::rename(tree.join(from), to).unwrap();
        }
        for name in [
            "usr/lib/shim",
            "usr/lib/grub/x86_64-efi-signed",
            "usr/share/doc",
            "usr/share/man",
            "usr/share/locale",
            "var/lib/apt",
            "var/lib/dpkg",
            "var/log",
            "var/cache",
            "var/lib/dbus/machine-id",
            // The builder's: /proc is mounted while packages are installed, and /dev holds what they need.
            "proc",
            "dev",
            // Names and starts of the units that are called otherwise above.
            "etc/systemd/system/sshd.service",
            "etc/systemd/system/chronyd.service",
            "etc/systemd/system/multi-user.target.wants/ssh.service",
            "etc/systemd/system/multi-user.target.wants/chrony.service",
        ] {
            remove(&tree.join(name));
        }
        for entry in fs::read_dir(tree.join("etc/ssh")).unwrap() {
            let path = entry.unwrap().path();
            if p(&path).contains("ssh_host_") {
                remove(&path);
            }
        }
        for entry in fs::read_dir(tree.join("boot")).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                remove(&path);
            }
        }
    }

    /// Moves what a package takes out of the tree, and makes, signs and collects the package.
    fn package(&self, name: &str, takes: &[&str], more: &str) {
        let (tree, build) = (self.at("tree"), self.at("build"));
        let own = build.join("own");
        for path in takes {
            let to = own.join(path.trim_end_matches('/'));
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::rename(tree.join(path.trim_end_matches('/')), to).unwrap();
        }
        let content = if takes.is_empty() { &tree } else { &own };
        let mut files = String::new();
        if takes.is_empty() {
            for entry in fs::read_dir(content).unwrap() {
                files += &format!("/{}\n", entry.unwrap().file_name().to_str().unwrap());
            }
        } else {
            takes
                .iter()
                .for_each(|path| files += &format!("/{}\n", path.trim_end_matches('/')));
        }
        let spec = build.join("one.spec");
        let source = format!(
            "Name: {name}\nVersion: 1\nRelease: 1.el9\nSummary: x\nLicense: MIT\nAutoReqProv: no\n{more}%description\nx\n\
             %install\ncp -a {}/. %{{buildroot}}/\n%files\n%defattr(-,root,root)\n{files}",
            p(content)
        );
        fs::write(&spec, source).unwrap();
        let top = format!("_topdir {}", p(&build.join("top")));
        let mut arguments = vec!["-bb", "--quiet", "--target", "x86_64"];
        for define in [
            &top,
            "_build_id_links none",
            "__os_install_post %{nil}",
            "_binary_payload w1.gzdio",
        ] {
            arguments.extend(["--define", define]);
        }
        arguments.push(p(&spec));
        self.tool("rpmbuild", &arguments);
        let made = build.join(format!("top/RPMS/x86_64/{name}-1-1.el9.x86_64.rpm"));
        let package = self.at("repository").join(made.file_name().unwrap());
        fs::rename(made, &package).unwrap();
        let who = [
            "--define",
            "_gpg_name good@example.invalid",
            "--define",
            "__gpg /usr/bin/gpg",
        ];
        self.tool("rpmsign", &[&who[..], &["--addsign", p(&package)]].concat());
        fs::remove_dir_all(&build).unwrap();
        fs::create_dir(&build).unwrap();
    }

    fn repository(&self) {
        for folder in ["home", "build", "repository"] {
            fs::create_dir(self.at(folder)).unwrap();
        }
        let user = "good@example.invalid";
        let fixed = [
            "--batch",
            "--quiet",
            "--passphrase",
            "",
            "--quick-generate-key",
            user,
        ];
        self.tool("gpg", &[&fixed[..], &["rsa2048", "sign", "never"]].concat());
        let key = self.at("key.asc");
        self.tool(
            "gpg",
            &["--batch", "--armor", "--output", p(&key), "--export", user],
        );
        self.tree();
        for (name, takes) in PACKAGES {
            self.package(name, takes, "Requires: base\n");
        }
        self.package("base", &[], "Provides: /bin/sh\n");
        fs::remove_dir_all(self.at("tree")).unwrap();
        self.tool("createrepo_c", &["--quiet", p(&self.at("repository"))]);
    }

    /// The project's own spec, with this repository and what it offers.
    fn spec(&self) -> PathBuf {
        let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("specs");
        let mut spec: toml::Table = fs::read_to_string(own.join("el.toml")).unwrap().parse().unwrap();
        let rootfs = spec["rootfs"].as_table_mut().unwrap();
        let names: Vec<&str> = PACKAGES.iter().map(|(name, _)| *name).collect();
        rootfs.insert("packages".into(), names.into());
        rootfs.insert("overlay".into(), p(&own.join("../overlay")).into());
        let mut repository = toml::Table::new();
        repository.insert("id".into(), "local".into());
        repository.insert(
            "baseurl".into(),
            format!("file://{}", p(&self.at("repository"))).into(),
        );
        repository.insert("gpgkey".into(), p(&self.at("key.asc")).into());
        rootfs.insert("repositories".into(), vec![toml::Value::from(repository)].into());
        let path = self.at("el.toml");
        fs::write(&path, toml::to_string(&spec).unwrap()).unwrap();
        path
    }
}

#[test]
fn vm_an_image_of_the_centos_family_starts() {
    let Some(programs) = std::env::var_os("MT_PROGRAMS").map(PathBuf::from) else {
        common::skip_here(
            "MT_PROGRAMS names no folder with the appliance's programs; scripts/test makes one",
        );
        return;
    };
    if !common::require_root() || !common::require(NEEDED) {
        return;
    }
    let lab = Workshop(
        tempfile::Builder::new()
            .prefix("mt-el-")
            .tempdir_in("/var/tmp")
            .unwrap(),
    );
    lab.repository();
    let spec = lab.spec();
    let mut command = Command::new(env!("CARGO_BIN_EXE_mt-image"));
    command.args(["build", "--spec", p(&spec)]);
    for (option, value) in [
        ("--agent", programs.join("mt-agent")),
        ("--installer", programs.join("mt-installer")),
        ("--work", lab.at("work")),
        ("--out", lab.at("out")),
    ] {
        command.arg(option).arg(value);
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    let [iso, ova] = ["iso", "ova"].map(|kind| lab.at(&format!("out/master-target-el-0.1.0.{kind}")));
    println!("{}", text(&output));

    // The medium, under Secure Boot, to the first screen.
    let drive = format!("file={},if=none,id=i0,media=cdrom,readonly=on", p(&iso));
    let words = ["-device", "ide-cd,drive=i0,bootindex=0", "-drive", &drive];
    let mut vm = Vm::start(
        lab.0.path(),
        Firmware::SecureBoot,
        Restart::Ends,
        &words.map(str::to_owned),
    );
    let said = vm.wait_for("Press Enter to restart.");
    for expected in [
        "firmware  UEFI, Secure Boot on\r\n",
        "mode      install\r\n",
        "payload   good, SHA-256 ",
        "answers   none\r\n",
    ] {
        assert!(said.contains(expected), "{expected:?} is not in {said}");
    }
    drop(vm);

    // The appliance's disk, under BIOS, to the login, from the disk that dracut found by the appliance's own rule.
    let folder = lab.at("unpacked");
    fs::create_dir(&folder).unwrap();
    let unpacked = common::run("bsdtar", &["-xf".as_ref(), &ova, "-C".as_ref(), &folder]);
    assert!(unpacked.status.success(), "{}", text(&unpacked));
    let vmdk = folder.join("master-target-el-0.1.0-disk1.vmdk");
    let disk = lab.at("disk.qcow2");
    let words = ["convert", "-f", "vmdk", "-O", "qcow2"].map(Path::new);
    let converted = common::run("qemu-img", &[&words[..], &[&vmdk, &disk]].concat());
    assert!(converted.status.success(), "{}", text(&converted));
    let drive = format!("file={},if=none,id=d0,format=qcow2", p(&disk));
    let words = [
        "-device",
        "pvscsi,id=s0",
        "-drive",
        &drive,
        "-device",
        "scsi-hd,drive=d0,bus=s0.0,wwn=0x6000c29000000001,vendor=VMware,product=Virtual disk,bootindex=0",
    ];
    let mut vm = Vm::start(
        lab.0.path(),
        Firmware::Bios,
        Restart::Ends,
        &words.map(str::to_owned),
    );
    vm.wait_for(" login: ");
}
