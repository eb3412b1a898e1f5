// SPDX-License-Identifier: MIT OR Apache-2.0
//! An unattended medium: the answers file put onto a medium that is there.

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;

use mt_installer::answers::RootLogin;
use mt_installer::kickstart;

use super::{LABEL, publish, seal};
use crate::command::Program;
use crate::error::{Error, Kind, Result, counted, shown};
use crate::input::{self, Accept, KICKSTART_MAX};
use crate::publish::{Existing, folder_of, refuse_existing, refuse_no_folder_for, refuse_same};

/// What was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readers {
    /// Anybody may read the medium.
    All,
    /// Its owner only, since it holds the hash of a password, or scripts, which may hold any secret.
    Owner,
}

/// Makes an unattended medium of `iso` by putting answers on it; nothing is rebuilt, the boot entries stay. Tells who may
/// read it.
///
/// # Errors
/// The medium is none of ours or damaged, the answers are wrong, `target` exists, or xorriso failed.
pub fn embed_kickstart(iso: &Path, answers: &Path, target: &Path, existing: Existing) -> Result<Readers> {
    refuse_existing(target, existing)?;
    refuse_no_folder_for(target)?;
    for input in [iso, answers] {
        refuse_same(input, target)?;
    }
    let (_, size) = crate::cli::open_input(iso)?;
    // Absolute, since xorriso takes some relative names for addresses of drives.
    let iso = &iso
        .canonicalize()
        .map_err(|error| Error::input("find the medium", iso, error))?;
    let (text, readers) = read_answers(answers)?;
    let date = modification_date(iso, size)?;
    crate::command::require(&["xorriso"])?;
    let scratch = crate::work::WorkFolder::create(folder_of(target))?;
    let found = Program::new("xorriso")
        .args(["-indev"])
        .arg(iso)
        .args(["-find", "/mt/payload.sha256"])
        .run()?;
    if !String::from_utf8_lossy(&found).contains("/mt/payload.sha256") {
        let text = format!("{} is no installation medium of the master target", shown(iso));
        return Err(Error::new(Kind::Refused, text).hint("name the ISO that mt-image build made"));
    }
    // What is made gets a seal of its own: damage would be sealed with it, and never be told again.
    if let Some(fault) = seal::verify(iso)?.first() {
        let text = format!("{} is damaged: {fault}; nothing was written", shown(iso));
        return Err(Error::new(Kind::Faults, text)
            .hint("copy the medium again from where it was made, and compare it with SHA256SUMS"));
    }
    let (copy, made) = (scratch.path().join("inst.ks"), scratch.path().join("made.iso"));
    fs::write(&copy, &text).map_err(|error| Error::io("write", &copy, error))?;
    Program::new("xorriso")
        .args(["-indev"])
        .arg(iso)
        .arg("-outdev")
        .arg(&made)
        .arg("-map")
        .arg(&copy)
        .args(["/mt/inst.ks", "-chmod", "0644", "/mt/inst.ks", "--"])
        .args([
            "-volume_date",
            "all_file_dates",
            &date,
            "-volume_date",
            "uuid",
            &date,
        ])
        // The identifiers of the partition table would otherwise be random.
        .args(["-boot_image", "any", "replay"])
        .args(["-boot_image", "any", "gpt_disk_guid=volume_date_uuid"])
        .tied()
        .run()
        .map_err(|error| no_space_for(error, target, size))?;
    finish(&made, target, readers, existing)?;
    Ok(readers)
}

/// Seals what was made and gives it its name.
fn finish(made: &Path, target: &Path, readers: Readers, existing: Existing) -> Result<()> {
    seal::apply(made)?;
    if readers == Readers::Owner {
        // Before it has a name: the scratch folder is nobody else's.
        fs::set_permissions(made, fs::Permissions::from_mode(0o600))
            .map_err(|error| Error::io("restrict", made, error))?;
    }
    publish(made, target, existing)
}

/// Reads answers and judges them as the installer will: on the machine nobody is there to mend them. What depends on the
/// machine, such as whether it has the disk, is left to the installer.
fn read_answers(path: &Path) -> Result<(String, Readers)> {
    let bytes = input::read("kickstart file", path, KICKSTART_MAX, Accept::FileOrPipe)?;
    let refuse = |found: String| {
        let text = format!(
            "{} is no kickstart file: {found}; nothing was written",
            shown(path)
        );
        Error::new(Kind::Config, text).hint("give a text file with the commands of a kickstart file")
    };
    if bytes.is_empty() {
        return Err(refuse("it is empty".to_owned()));
    }
    if bytes.contains(&0) {
        return Err(refuse(format!("its {} bytes are no text", bytes.len())));
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        refuse(format!("byte {at} is not UTF-8"))
    })?;
    let answers = kickstart::parse(&text).map_err(|faults| {
        let lines: String = faults
            .iter()
            .map(|fault| format!("\n  line {}: {}", fault.line, fault.text))
            .collect();
        let count = counted(faults.len() as u64, "error");
        let text = format!(
            "the kickstart file {} has {count}; nothing was written:{lines}",
            shown(path)
        );
        Error::new(Kind::Config, text)
            .hint("correct the file: the installer would refuse it; \"mt-installer ks check\" checks it too")
    })?;
    let readers = match answers.root {
        RootLogin::Locked if answers.scripts.is_empty() => Readers::All,
        RootLogin::Hash(_) | RootLogin::Locked => Readers::Owner,
    };
    Ok((text, readers))
}

/// Says where there is no space, and how much is needed: xorriso knows neither.
fn no_space_for(error: Error, target: &Path, size: u64) -> Error {
    if !error.is_no_space() {
        return error;
    }
    let text = format!(
        "cannot write {}: no space is left in {} for its {} MiB; nothing was written",
        shown(target),
        shown(folder_of(target)),
        size.div_ceil(1 << 20)
    );
    Error::new(Kind::Unexpected, text)
        .hint("free space there, or name a folder on another file system with --out")
}

/// Reads when a medium of ours was made from its primary volume descriptor (ECMA-119 8.4; at byte 32768: "CD001" at 1,
/// volume identifier at 40, size in blocks of 2048 bytes at 80, modification date of 16 digits at 830).
///
/// The medium with answers gets the same date, so that the same answers on the same medium always give the same bytes.
fn modification_date(iso: &Path, size: u64) -> Result<String> {
    let refuse = |found: &str| {
        let text = format!(
            "{} is no installation medium of the master target: {found}",
            shown(iso)
        );
        Err(Error::new(Kind::Config, text).hint("name the ISO that mt-image build made"))
    };
    let file = fs::File::open(iso).map_err(|error| Error::io("open", iso, error))?;
    let mut descriptor = [0u8; 2048];
    if size < 17 * 2048 || file.read_exact_at(&mut descriptor, 16 * 2048).is_err() {
        return refuse(&format!("it has {size} bytes"));
    }
    if &descriptor[1..6] != b"CD001" {
        return refuse("it has no ISO 9660 file system");
    }
    let label = String::from_utf8_lossy(&descriptor[40..72]).trim_end().to_owned();
    if label != LABEL {
        return refuse(&format!("its label is {label:?}, expected is {LABEL:?}"));
    }
    let blocks: [u8; 4] = descriptor[80..84].try_into().expect("four bytes");
    let expected = u64::from(u32::from_le_bytes(blocks)) * 2048;
    if size < expected {
        return refuse(&format!("it has {size} of {expected} bytes"));
    }
    let date = &descriptor[830..846];
    if !date.iter().all(u8::is_ascii_digit) {
        return refuse("its volume descriptor holds no modification date");
    }
    Ok(date.iter().copied().map(char::from).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answers(text: &[u8]) -> Result<(String, Readers)> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.ks");
        fs::write(&path, text).unwrap();
        read_answers(&path)
    }

    fn hash() -> String {
        format!("rootpw --iscrypted $6$salt${}\n", "a".repeat(86))
    }

    #[test]
    fn answers_are_judged_as_the_installer_does() {
        let text = "lang en_US\nreboott\nrootpw secret\n";
        let error = answers(text.as_bytes()).unwrap_err();
        assert_eq!(error.kind, Kind::Config);
        let said = error.to_string();
        let faults = kickstart::parse(text).unwrap_err();
        assert_eq!(faults.len(), 2);
        for fault in faults {
            let line = format!("\n  line {}: {}", fault.line, fault.text);
            assert!(said.contains(&line), "{line} is not in {said}");
        }
        // Whether a machine has this disk is for the installer on that machine to say.
        let disk = "ignoredisk --only-use=naa.6000c29a71e000000000000000000001\n";
        assert!(answers(disk.as_bytes()).is_ok());
    }

    #[test]
    fn what_is_no_text_is_refused() {
        for (bytes, says) in [
            (&b""[..], "it is empty"),
            (b"reboot\n\0", "are no text"),
            (b"reboot\n\xff\n", "byte 7 is not UTF-8"),
        ] {
            let error = answers(bytes).unwrap_err();
            assert_eq!(error.kind, Kind::Config);
            assert!(error.to_string().contains(says), "{error}");
        }
    }

    #[test]
    fn a_medium_that_may_hold_a_secret_is_for_its_owner() {
        let script = "rootpw --lock\n%post\necho root:secret | chpasswd\n%end\n".to_owned();
        let rows = [
            (hash(), 0o600),
            (script, 0o600),
            ("rootpw --lock\n".to_owned(), 0o644),
        ];
        for (text, mode) in rows {
            let (_, readers) = answers(text.as_bytes()).unwrap();
            let folder = tempfile::tempdir().unwrap();
            let (made, target) = (folder.path().join("made"), folder.path().join("target"));
            fs::write(&made, vec![1u8; 40_000]).unwrap();
            fs::set_permissions(&made, fs::Permissions::from_mode(0o644)).unwrap();
            finish(&made, &target, readers, Existing::Keep).unwrap();
            let found = target.metadata().unwrap().permissions().mode() & 0o777;
            assert_eq!(found, mode, "{text}");
            assert!(seal::verify(&target).unwrap().is_empty());
        }
    }

    #[test]
    fn a_full_disk_is_told_without_what_xorriso_said() {
        let raw = Error::new(Kind::Unexpected, "xorriso ran out of space: ...").no_space_left();
        let error = no_space_for(raw, Path::new("some/folder/x.iso"), 5 << 20);
        assert_eq!(
            error.to_string(),
            "cannot write some/folder/x.iso: no space is left in some/folder for its 5 MiB; nothing was written"
        );
        let other = Error::new(Kind::Unexpected, "xorriso failed");
        assert_eq!(
            no_space_for(other, Path::new("x"), 1).to_string(),
            "xorriso failed"
        );
    }
}
