// SPDX-License-Identifier: MIT OR Apache-2.0
//! A small payload that has everything the installer needs of a system, and disks to put it on.

#![allow(
    dead_code,
    clippy::unwrap_used,
    reason = "test code; not every suite uses all of it"
)]

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Notes that a test does not run here, and why; `scripts/test` reads the log.
pub fn skip(test: &str, reason: &str) {
    println!("SKIPPED {test}: {reason}");
    if let Some(path) = std::env::var_os("MT_SKIP_LOG") {
        let mut log = fs::File::options().create(true).append(true).open(path).unwrap();
        log.write_all(format!("{test}: {reason}\n").as_bytes()).unwrap();
    }
    assert!(
        std::env::var_os("MT_PROMISED").is_none_or(|value| value != "1"),
        "{test} was promised here and cannot run: {reason}"
    );
}

/// The installation medium that the run tests, where the programs for starting it are there; says why not otherwise.
pub fn medium(test: &str, programs: &[&str]) -> Option<PathBuf> {
    let missing = programs
        .iter()
        .find(|program| !Path::new("/usr/bin").join(program).is_file());
    if let Some(program) = missing {
        skip(test, &format!("there is no {program}"));
        return None;
    }
    let iso = std::env::var_os("MT_ISO").map(PathBuf::from);
    if iso.is_none() {
        skip(
            test,
            "MT_ISO names no installation medium; scripts/test builds one",
        );
    }
    iso
}

/// Files of the distribution that a payload is made of.
const FROM_HOST: &[&str] = &[
    "/usr/lib/grub/i386-pc",
    "/usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed",
    "/usr/lib/shim/shimx64.efi.signed",
    "/usr/lib/shim/mmx64.efi.signed",
    "/usr/bin/grub-mkimage",
];
const PROGRAMS: &[&str] = &[
    "mksquashfs",
    "unsquashfs",
    "mcopy",
    "mkfs.vfat",
    "losetup",
    "sfdisk",
    "mke2fs",
    "ldd",
];

/// Whether the test can run here; notes the skip when not.
pub fn can_install(test: &str) -> bool {
    if !nix::unistd::geteuid().is_root() {
        skip(test, "needs root");
        return false;
    }
    let missing = FROM_HOST.iter().find(|path| !Path::new(path).exists());
    if let Some(path) = missing {
        skip(
            test,
            &format!("there is no {path}: packages grub-pc-bin, grub-efi-amd64-signed, shim-signed"),
        );
        return false;
    }
    let folders = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];
    for program in PROGRAMS {
        if !folders
            .iter()
            .any(|folder| Path::new(folder).join(program).is_file())
        {
            skip(test, &format!("there is no program {program}"));
            return false;
        }
    }
    true
}

/// A folder for large files that are mostly holes.
pub fn scratch() -> tempfile::TempDir {
    tempfile::Builder::new()
        .prefix("mt-install-test-")
        .tempdir_in("/var/tmp")
        .unwrap()
}

pub fn run(program: &str, arguments: &[&str]) -> Output {
    Command::new(program)
        .args(arguments)
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .output()
        .unwrap()
}

pub fn done(program: &str, arguments: &[&str]) -> String {
    let output = run(program, arguments);
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}",
        text(&output)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// The installer.
pub fn installer() -> Command {
    Command::new(env!("CARGO_BIN_EXE_mt-installer"))
}

/// Makes the payload and its digest in a folder, and answers with its path.
pub fn payload(folder: &Path) -> PathBuf {
    let root = folder.join("tree");
    for name in [
        "etc/master-target",
        "boot",
        "proc",
        "tmp",
        "root",
        "home",
        "var/tmp",
        "usr/share/zoneinfo",
        "usr/lib/shim",
    ] {
        fs::create_dir_all(root.join(name)).unwrap();
    }
    for (link, to) in [
        ("bin", "usr/bin"),
        ("sbin", "usr/sbin"),
        ("lib", "usr/lib"),
        ("lib64", "usr/lib64"),
    ] {
        fs::create_dir_all(root.join(to)).unwrap();
        symlink(to, root.join(link)).unwrap();
    }
    let write = |name: &str, text: &str| fs::write(root.join(name), text).unwrap();
    write(
        "etc/shadow",
        "root:*:19000:0:99999:7:::\ndaemon:*:19000:0:99999:7:::\n",
    );
    write("etc/master-target/version", "0.0.1\n");
    write("boot/vmlinuz-6.1.0-test", "a kernel");
    write("boot/initrd.img-6.1.0-test", "an initramfs");
    write("usr/share/zoneinfo/UTC", "TZif");
    for path in FROM_HOST {
        copy(Path::new(path), &root.join(path.trim_start_matches('/')));
    }
    // Nothing of systemd is wanted but that it says yes.
    copy(Path::new("/bin/true"), &root.join("usr/bin/systemctl"));
    for program in ["/usr/bin/grub-mkimage", "/bin/true"] {
        for word in done("ldd", &[program])
            .split_whitespace()
            .filter(|word| word.starts_with('/'))
        {
            let real = fs::canonicalize(word).unwrap();
            let target = root.join(word.trim_start_matches('/'));
            fs::create_dir_all(target.parent().unwrap()).unwrap();
            fs::copy(real, target).unwrap();
        }
    }
    let payload = folder.join("payload.squashfs");
    done(
        "mksquashfs",
        &[
            root.to_str().unwrap(),
            payload.to_str().unwrap(),
            "-noappend",
            "-quiet",
            "-no-progress",
            "-comp",
            "gzip",
            "-Xcompression-level",
            "1",
        ],
    );
    fs::remove_dir_all(&root).unwrap();
    let digest = done("sha256sum", &[payload.to_str().unwrap()]);
    fs::write(folder.join("payload.sha256"), digest).unwrap();
    payload
}

fn copy(from: &Path, to: &Path) {
    if from.is_dir() {
        for entry in fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            copy(&entry.path(), &to.join(entry.file_name()));
        }
        return;
    }
    fs::create_dir_all(to.parent().unwrap()).unwrap();
    fs::copy(fs::canonicalize(from).unwrap(), to).unwrap();
    let mode = fs::metadata(from).unwrap().permissions().mode();
    fs::set_permissions(to, fs::Permissions::from_mode(mode)).unwrap();
}

/// A disk: a file that is mostly a hole, on a loop device.
pub struct Disk {
    pub file: PathBuf,
    pub node: String,
}

impl Disk {
    pub fn new(folder: &Path, size: u64) -> Self {
        Self::of_kind(folder, size, &[])
    }

    /// A disk with more options of losetup: read-only, or with other blocks.
    pub fn of_kind(folder: &Path, size: u64, options: &[&str]) -> Self {
        let file = folder.join("disk.img");
        fs::File::create(&file).unwrap().set_len(size).unwrap();
        let words = [&["--find", "--show"], options, &[file.to_str().unwrap()]].concat();
        let node = done("losetup", &words).trim().to_owned();
        Self { file, node }
    }

    /// Reads a piece of the file, past what the kernel may keep for the loop device.
    pub fn read(&self, offset: u64, len: usize) -> Vec<u8> {
        use std::os::unix::fs::FileExt as _;
        let mut bytes = vec![0u8; len];
        fs::File::open(&self.file)
            .unwrap()
            .read_exact_at(&mut bytes, offset)
            .unwrap();
        bytes
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = run("losetup", &["--detach", &self.node]);
    }
}

/// A partition as the table has it: first byte and size.
pub fn partitions(file: &Path) -> Vec<(String, u64, u64)> {
    let json: serde_json::Value =
        serde_json::from_str(&done("sfdisk", &["--json", file.to_str().unwrap()])).unwrap();
    json["partitiontable"]["partitions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|part| {
            let number = |key: &str| part[key].as_u64().unwrap() * 512;
            (
                part["name"].as_str().unwrap().to_owned(),
                number("start"),
                number("size"),
            )
        })
        .collect()
}

/// All names by which the disk, its partitions and its file systems could be taken for those of another disk.
pub fn identities(file: &Path) -> BTreeSet<String> {
    let name = file.to_str().unwrap();
    let json: serde_json::Value = serde_json::from_str(&done("sfdisk", &["--json", name])).unwrap();
    let table = &json["partitiontable"];
    let mut found = BTreeSet::from([table["id"].as_str().unwrap().to_owned()]);
    for part in table["partitions"].as_array().unwrap() {
        found.insert(part["uuid"].as_str().unwrap().to_owned());
    }
    for (label, start, size) in partitions(file) {
        if label != "mt-biosboot" {
            let (start, size) = (start.to_string(), size.to_string());
            let words = ["--probe", "--offset", &start, "--size", &size];
            let only = ["--output", "value", "--match-tag", "UUID", name];
            found.insert(done("blkid", &[&words[..], &only].concat()));
        }
    }
    assert_eq!(
        found.len(),
        12,
        "a disk, six partitions, five contents: {found:?}"
    );
    found
}

/// Asserts that everything is there and whole; says what is not.
pub fn assert_complete(file: &Path, when: &str) {
    let name = file.to_str().unwrap();
    let first = {
        use std::os::unix::fs::FileExt as _;
        let mut sector = vec![0u8; 512];
        fs::File::open(file)
            .unwrap()
            .read_exact_at(&mut sector, 0)
            .unwrap();
        sector
    };
    assert_eq!(&first[510..], [0x55, 0xaa], "{when}: the first sector");
    assert_eq!(first[0x1be + 4], 0xee, "{when}: protective MBR");
    assert!(first[..440].iter().any(|byte| *byte != 0), "{when}: boot code");
    let verified = run("sfdisk", &["--verify", name]);
    assert!(
        text(&verified).contains("No errors detected"),
        "{when}: {}",
        text(&verified)
    );
    let parts = partitions(file);
    let names: Vec<&str> = parts.iter().map(|(name, _, _)| name.as_str()).collect();
    assert_eq!(
        names,
        [
            "mt-biosboot",
            "mt-esp",
            "mt-root",
            "mt-var-crash",
            "mt-home",
            "mt-swap"
        ],
        "{when}"
    );
    for (label, start, _) in &parts {
        let place = format!("{name}?offset={start}");
        match label.as_str() {
            "mt-esp" => {
                let esp = format!("{name}@@{start}");
                let list = done("mdir", &["-b", "-i", &esp, "-/", "::"]);
                for file in [
                    "EFI/BOOT/BOOTX64.EFI",
                    "EFI/BOOT/grubx64.efi",
                    "EFI/debian/grub.cfg",
                ] {
                    assert!(list.contains(file), "{when}: no {file} in {list}");
                }
            }
            "mt-root" | "mt-var-crash" | "mt-home" => {
                // After a mount the journal may want to be replayed, which is no error.
                let checked = run("e2fsck", &["-fn", &place]);
                assert!(checked.status.success(), "{when}: {label}: {}", text(&checked));
            }
            _ => {}
        }
        if label == "mt-root" {
            let cat = |path: &str| done("debugfs", &["-R", &format!("cat {path}"), &place]);
            assert!(
                cat("/etc/fstab").contains("/dev/mt-system/part3 / ext4"),
                "{when}"
            );
            assert!(cat("/boot/grub/master-target.cfg").contains("mt.root="), "{when}");
            assert_eq!(cat("/boot/vmlinuz-6.1.0-test"), "a kernel", "{when}");
        }
    }
}
