// SPDX-License-Identifier: MIT OR Apache-2.0
//! The lines about disks and partitions.

use super::{Checked, options};
use crate::answers::{Answers, FileSystem, Part, Role, same_disk};

/// Takes the name of the disk; all lines that name one must name the same.
fn disk(name: &str, answers: &mut Answers) -> Checked<()> {
    if name.contains(',') {
        return Err(format!("{name}: the system lives on one disk; name one"));
    }
    if !name.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(format!("{name}: no name of a disk"));
    }
    match &answers.storage.disk {
        Some(other) if !same_disk(other, name) => Err(format!("disk {name}: the lines above name {other}")),
        _ => {
            answers.storage.disk = Some(name.to_owned());
            Ok(())
        }
    }
}

pub fn ignoredisk(words: &[String], answers: &mut Answers) -> Checked<()> {
    let options = options::read(words, &[], &["only-use"])?;
    options.nothing_alone()?;
    let name = options
        .value("only-use")
        .ok_or("--only-use is missing: the disk to install on is named, not those to leave alone")?;
    disk(name, answers)
}

pub fn clearpart(words: &[String], answers: &mut Answers) -> Checked<()> {
    let options = options::read(words, &["all", "none", "initlabel"], &["drives", "disklabel"])?;
    options.nothing_alone()?;
    if let Some(label) = options.value("disklabel")
        && label != "gpt"
    {
        return Err(format!("--disklabel={label}: the partition table is always gpt"));
    }
    if options.has("all") == options.has("none") {
        return Err("one of --all and --none is needed".to_owned());
    }
    if let Some(name) = options.value("drives") {
        disk(name, answers)?;
    }
    answers.storage.clear = options.has("all");
    Ok(())
}

pub fn autopart(words: &[String], answers: &Answers) -> Checked<()> {
    let options = options::read(words, &[], &["type", "fstype"])?;
    options.nothing_alone()?;
    if let Some(kind) = options.value("type")
        && kind != "plain"
    {
        return Err(format!(
            "--type={kind}: only plain; volumes would be found on disks of guests too"
        ));
    }
    if let Some(kind) = options.value("fstype")
        && kind != "ext4"
    {
        return Err(format!("--fstype={kind}: only ext4"));
    }
    if answers.storage.parts.is_empty() {
        Ok(())
    } else {
        Err("autopart and part exclude each other".to_owned())
    }
}

pub fn bootloader(words: &[String], answers: &mut Answers) -> Checked<()> {
    let options = options::read(words, &[], &["location", "append", "timeout", "boot-drive"])?;
    options.nothing_alone()?;
    if let Some(place) = options.value("location")
        && place != "mbr"
    {
        return Err(format!("--location={place}: only mbr"));
    }
    if let Some(name) = options.value("boot-drive") {
        disk(name, answers)?;
    }
    if let Some(text) = options.value("append") {
        // The text goes into a menu that GRUB's shell reads.
        let good = |byte: u8| byte.is_ascii_alphanumeric() || b" -_=.,:/@+%".contains(&byte);
        if !text.bytes().all(good) {
            return Err(format!(
                "--append=\"{text}\": allowed are letters, digits, spaces and -_=.,:/@+%"
            ));
        }
        for word in text.split(' ') {
            let name = word.split('=').next().unwrap_or(word);
            if name == "root" || name.starts_with("mt.") {
                return Err(format!("--append: {name} is set by the installer"));
            }
        }
        answers.kernel_arguments = text
            .split(' ')
            .filter(|word| !word.is_empty())
            .collect::<Vec<_>>()
            .join(" ");
    }
    answers.menu_seconds = options.parsed("timeout", "a number of seconds")?;
    Ok(())
}

pub fn part(words: &[String], answers: &mut Answers) -> Checked<()> {
    let options = options::read(
        words,
        &["grow", "recommended", "asprimary"],
        &["fstype", "size", "maxsize", "ondisk", "ondrive", "fsoptions"],
    )?;
    let name = options.one_alone("the mount point")?;
    let role = match name {
        "biosboot" => Role::BiosBoot,
        "/boot/efi" => Role::Esp,
        "swap" => Role::Swap,
        path => mount_point(path)?,
    };
    let (fs, known): (FileSystem, &[&str]) = match role {
        Role::BiosBoot => (FileSystem::None, &["biosboot"]),
        Role::Esp => (FileSystem::Vfat, &["efi", "vfat"]),
        Role::Swap => (FileSystem::Swap, &["swap"]),
        Role::Mount(_) => (FileSystem::Ext4, &["ext4"]),
    };
    if let Some(kind) = options.value("fstype")
        && !known.contains(&kind)
    {
        return Err(format!("--fstype={kind}: {name} has {}", known[0]));
    }
    let size_mib: Option<u64> = options.parsed("size", "a number of MiB")?;
    if size_mib.is_some() == options.has("recommended") && !(role == Role::BiosBoot && size_mib.is_some()) {
        return Err("one of --size and --recommended is needed".to_owned());
    }
    if size_mib == Some(0) {
        return Err("--size=0: expected a number of MiB".to_owned());
    }
    let least = role.least_mib();
    if let Some(mib) = size_mib.filter(|mib| *mib < least && !options.has("grow")) {
        return Err(format!("--size={mib}: {name} needs {least} MiB or more"));
    }
    let max_mib: Option<u64> = options.parsed("maxsize", "a number of MiB")?;
    if max_mib.is_some() && !options.has("grow") {
        return Err("--maxsize needs --grow".to_owned());
    }
    if max_mib.zip(size_mib).is_some_and(|(max, size)| max < size) {
        return Err("--maxsize is smaller than --size".to_owned());
    }
    let options_text = options.value("fsoptions").map(str::to_owned);
    if let Some(text) = &options_text {
        let good = |byte: u8| byte.is_ascii_alphanumeric() || b"-_=.,:/@".contains(&byte);
        if !text.bytes().all(good) {
            return Err(format!("--fsoptions={text}: no mount options"));
        }
    }
    for option in ["ondisk", "ondrive"] {
        if let Some(name) = options.value(option) {
            disk(name, answers)?;
        }
    }
    if answers.storage.parts.iter().any(|other| other.role == role) {
        return Err(format!("{name} is given twice"));
    }
    answers.storage.parts.push(Part {
        role,
        fs,
        size_mib,
        grow: options.has("grow"),
        max_mib,
        options: options_text,
    });
    Ok(())
}

fn mount_point(path: &str) -> Checked<Role> {
    let wrong = |why: &str| format!("{path}: {why}");
    if path.starts_with("raid.") || path.starts_with("pv.") || path.starts_with("btrfs.") {
        return Err(wrong(
            "no RAID, LVM or btrfs: they would be found on disks of guests too",
        ));
    }
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./".contains(&byte);
    if !path.starts_with('/') || !path.bytes().all(good) || path.len() > 200 {
        return Err(wrong("expected a mount point, swap or biosboot"));
    }
    if path != "/"
        && path[1..]
            .split('/')
            .any(|part| part.is_empty() || part == "." || part == "..")
    {
        return Err(wrong("expected a plain path"));
    }
    let system = [
        "/boot", "/etc", "/usr", "/bin", "/sbin", "/lib", "/lib64", "/dev", "/proc", "/sys", "/run",
    ];
    if system.iter().any(|folder| {
        path.strip_prefix(folder)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }) {
        return Err(wrong("has to be on the root file system"));
    }
    Ok(Role::Mount(path.to_owned()))
}
