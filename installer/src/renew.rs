// SPDX-License-Identifier: MIT OR Apache-2.0
//! New names at the first start of a disk that was made as an image: all appliances of one OVA would otherwise carry the
//! same UUIDs, and be taken for copies of each other.
//!
//! New are the UUIDs of the ext4 file systems and of swap, the serial number of the EFI system partition, and the GUIDs
//! of the disk and of its partitions. Nothing of the system refers to any of them but the boot menu, by `mt.root=`.
//!
//! | step | what a power loss after it leaves |
//! |---|---|
//! | the seed of the names is noted in [`MARK`] | the next start goes on with the same names |
//! | file systems, swap, EFI system partition | the same |
//! | the menu names the new root partition and the old one | a system that starts in either case |
//! | the partition table, written at once | the same |
//! | the menu names the new one only | the same |
//! | [`MARK`] goes | everything, once |
//!
//! The kernel takes a UUID of a mounted ext4 only where the checksums do not depend on it (`metadata_csum_seed`).

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use uuid::Uuid;

use crate::boot::{FAT_BACKUP, FAT_SERIAL, MENU};
use crate::command::Program;
use crate::error::{Error, Kind, Result, shown};
use crate::identity::Names;
use crate::state::replace;

/// Says that the disk still has its image's names, below the root; holds the seed of the new ones once they are chosen.
pub const MARK: &str = "etc/master-target/image-names";
/// What an image has in that file.
pub const MARK_TEXT: &str = "the first start gives this disk names of its own\n";

/// Partition types (UEFI specification, section 5.3.3; Discoverable Partitions).
const TYPE_ESP: &str = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B";
const TYPE_SWAP: &str = "0657FD6D-A4AB-43C4-84E5-0933C84B4F4F";
const TYPE_LINUX: &str = "0FC63DAF-8483-4772-8E79-3D69D8477DE4";

/// A partition in a table that sfdisk has dumped.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Part {
    number: u32,
    kind: String,
    old: Uuid,
    new: Uuid,
}

/// A table with new names.
#[derive(Debug, PartialEq, Eq)]
struct Renamed {
    script: String,
    parts: Vec<Part>,
}

/// Gives the disk of the running system its own names. Answers whether there was anything to do.
///
/// # Errors
/// A program failed, or the disk is not what an installation leaves. The next start tries again.
pub fn renew(root: &Path) -> Result<bool> {
    let mark = root.join(MARK);
    let seed = match fs::read_to_string(&mark) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(Error::io("read", &mark, error)),
    };
    let seed = match Uuid::parse_str(seed.trim()) {
        Ok(seed) => seed,
        Err(_) => {
            let seed = Uuid::new_v4();
            replace(&mark, format!("{seed}\n").as_bytes())?;
            seed
        }
    };
    let names = Names::seeded(&seed.to_string());
    let name = root.join("run/mt-system/disk");
    let disk = fs::read_to_string(&name).map_err(|error| Error::io("read", &name, error))?;
    let disk = Path::new("/dev").join(disk.trim());
    let table = dump(&disk)?;
    let renamed = rename(&table, &names).map_err(|what| {
        Error::new(
            Kind::Unexpected,
            format!(
                "the partition table of {} is not understood: {what}",
                shown(&disk)
            ),
        )
    })?;
    for part in &renamed.parts {
        renew_content(part, &names)?;
    }
    let menu = root.join(MENU);
    let old_menu = fs::read_to_string(&menu).map_err(|error| Error::io("read", &menu, error))?;
    let system = root_of(&old_menu, &renamed.parts).ok_or_else(|| {
        Error::new(
            Kind::Unexpected,
            format!("{} names no partition of {}", shown(&menu), shown(&disk)),
        )
        .hint("start the appliance from its own disk, or deploy it again")
    })?;
    if table != renamed.script {
        let both = format!("{},{}", system.new, system.old);
        replace(&menu, with_root(&old_menu, &both).as_bytes())?;
        // The disk is in use, so the kernel keeps the table as it read it; starts and sizes are the same.
        Program::new("sfdisk")
            .args(["--quiet", "--force", "--no-reread", "--no-tell-kernel"])
            .args(["--wipe", "never", "--wipe-partitions", "never"])
            .arg(&disk)
            .input(renamed.script.clone())
            .run()?;
        if dump(&disk)? != renamed.script {
            return Err(Error::new(
                Kind::Unexpected,
                format!("the partition table of {} is not what was written", shown(&disk)),
            )
            .hint("the disk may be damaged: deploy the appliance again on another one"));
        }
    }
    replace(&menu, with_root(&old_menu, &system.new.to_string()).as_bytes())?;
    fs::remove_file(&mark).map_err(|error| Error::io("remove", &mark, error))?;
    Ok(true)
}

fn dump(disk: &Path) -> Result<String> {
    let table = Program::new("sfdisk").arg("--dump").arg(disk).run()?;
    Ok(String::from_utf8_lossy(&table).into_owned())
}

/// The table with new names for the disk and each partition; everything else stays.
fn rename(table: &str, names: &Names) -> std::result::Result<Renamed, String> {
    let mut parts = Vec::new();
    let mut script = String::new();
    let mut disk = false;
    for line in table.lines() {
        if line.starts_with("label-id: ") {
            disk = true;
            script += &format!("label-id: {}\n", upper(names.of("disk")));
        } else if let Some((device, fields)) = line.split_once(" : ") {
            let digits = device.len() - device.trim_end_matches(|one: char| one.is_ascii_digit()).len();
            let number: u32 = device[device.len() - digits..]
                .parse()
                .map_err(|_| format!("{device} has no number"))?;
            let field = |name: &str| {
                fields
                    .split(", ")
                    .find_map(|field| field.trim().strip_prefix(name))
                    .ok_or_else(|| format!("partition {number} has no {name}"))
            };
            let old = field("uuid=")?;
            let part = Part {
                number,
                kind: field("type=")?.to_owned(),
                old: Uuid::parse_str(old).map_err(|error| format!("partition {number}: {error}"))?,
                new: names.of(&format!("partition {number}")),
            };
            script += &line.replace(old, &upper(part.new));
            script += "\n";
            parts.push(part);
        } else {
            script += line;
            script += "\n";
        }
    }
    if !disk || parts.is_empty() {
        return Err("it has no label-id or no partition".to_owned());
    }
    Ok(Renamed { script, parts })
}

/// A GUID as sfdisk prints it.
fn upper(uuid: Uuid) -> String {
    uuid.to_string().to_uppercase()
}

/// New names inside a partition.
fn renew_content(part: &Part, names: &Names) -> Result<()> {
    let device = format!("/dev/mt-system/part{}", part.number);
    let id = names.of(&format!("content {}", part.number));
    match part.kind.as_str() {
        TYPE_LINUX => {
            Program::new("tune2fs")
                .args(["-U", &id.to_string(), &device])
                .run()?;
        }
        TYPE_SWAP => {
            Program::new("swaplabel")
                .args(["-U", &id.to_string(), &device])
                .run()?;
        }
        TYPE_ESP => {
            let path = Path::new(&device);
            let file = File::options()
                .write(true)
                .open(path)
                .map_err(|error| Error::io("open", path, error))?;
            for copy in [0, FAT_BACKUP] {
                file.write_all_at(&id.as_bytes()[..4], copy + FAT_SERIAL)
                    .map_err(|error| Error::io("write", path, error))?;
            }
            file.sync_all().map_err(|error| Error::io("write", path, error))?;
        }
        _ => {}
    }
    Ok(())
}

/// The partition that the menu starts from, by its old name or its new one.
fn root_of<'a>(menu: &str, parts: &'a [Part]) -> Option<&'a Part> {
    let value = menu
        .split_whitespace()
        .find_map(|word| word.strip_prefix("mt.root="))?;
    let named: Vec<Uuid> = value
        .split(',')
        .filter_map(|one| Uuid::parse_str(one).ok())
        .collect();
    parts
        .iter()
        .find(|part| named.contains(&part.old) || named.contains(&part.new))
}

/// The menu with another root partition in each of its entries.
fn with_root(menu: &str, value: &str) -> String {
    let mut parts = menu.split("mt.root=");
    let mut text = parts.next().unwrap_or_default().to_owned();
    for rest in parts {
        let end = rest.find([' ', '\n']).unwrap_or(rest.len());
        text += &format!("mt.root={value}{}", &rest[end..]);
    }
    text
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "test code")]
mod tests {
    use super::*;
    use crate::boot::Menu;

    const TABLE: &str = "label: gpt\nlabel-id: 5B2F0A52-8A0B-4B4C-9B2F-0D7B7E4D3A11\ndevice: /dev/sda\nunit: sectors\n\
        first-lba: 34\nlast-lba: 33554398\nsector-size: 512\n\n\
        /dev/sda1 : start=        2048, size=        2048, type=21686148-6449-6E6F-744E-656564454649, uuid=0B9E6F10-3A5C-4C39-8F0E-2E4C9B6A7D01, name=\"mt-biosboot\"\n\
        /dev/sda3 : start=      206848, size=    16777216, type=0FC63DAF-8483-4772-8E79-3D69D8477DE4, uuid=0B9E6F10-3A5C-4C39-8F0E-2E4C9B6A7D03, name=\"mt-root\"\n";
    const ROOT: Uuid = uuid::uuid!("0b9e6f10-3a5c-4c39-8f0e-2e4c9b6a7d03");

    #[test]
    fn a_table_gets_new_names_and_keeps_everything_else() {
        let names = Names::seeded("one");
        let renamed = rename(TABLE, &names).unwrap();
        assert_eq!(renamed.parts.len(), 2);
        assert_eq!((renamed.parts[1].number, renamed.parts[1].old), (3, ROOT));
        for part in &renamed.parts {
            assert_ne!(part.old, part.new);
            assert!(renamed.script.contains(&upper(part.new)));
            assert!(!renamed.script.contains(&upper(part.old)));
        }
        let blank = |text: &str| -> String {
            let text = text.lines().filter(|line| !line.starts_with("label-id: "));
            text.map(|line| line.split("uuid=").next().unwrap_or_default())
                .collect()
        };
        assert_eq!(blank(&renamed.script), blank(TABLE));
        // The same once more, as after a power loss: nothing is left to do.
        let again = rename(&renamed.script, &names).unwrap();
        assert_eq!(again.script, renamed.script);
        assert_ne!(
            rename(TABLE, &Names::seeded("two")).unwrap().script,
            renamed.script
        );
        for text in [
            "",
            "label: gpt\n",
            "label-id: x\n/dev/sda1 : start=1, size=2, type=83\n",
        ] {
            assert!(rename(text, &names).is_err(), "{text}");
        }
    }

    #[test]
    fn the_menu_names_both_partitions_and_then_the_new_one() {
        let menu = Menu {
            root: ROOT,
            arguments: "a=b",
            seconds: 1,
            version: "1",
        }
        .text();
        let parts = rename(TABLE, &Names::seeded("one")).unwrap().parts;
        let system = root_of(&menu, &parts).unwrap();
        assert_eq!(system.number, 3);
        let both = with_root(&menu, &format!("{},{}", system.new, system.old));
        assert_eq!(
            both.matches(&format!("mt.root={},{ROOT} ", system.new)).count(),
            3
        );
        // Cut here: the partition is found under either name.
        assert_eq!(root_of(&both, &parts), Some(system));
        let after = with_root(&both, &system.new.to_string());
        assert_eq!(after, menu.replace(&ROOT.to_string(), &system.new.to_string()));
        assert_eq!(with_root("no such word\n", "x"), "no such word\n");
        assert_eq!(root_of("mt.root=nonsense", &parts), None);
    }

    #[test]
    fn a_disk_that_was_installed_has_its_own_names_already() {
        let root = tempfile::tempdir().unwrap();
        assert!(!renew(root.path()).unwrap());
    }
}
