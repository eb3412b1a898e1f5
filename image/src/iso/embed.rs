// SPDX-License-Identifier: MIT OR Apache-2.0
//! An unattended medium: the answers file put onto a medium that is there.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::{LABEL, publish, seal};
use crate::command::Program;
use crate::error::{Error, Kind, Result, shown};
use crate::publish::{Existing, refuse_existing, refuse_same};

/// Makes an unattended medium of `iso` by putting answers on it; nothing is rebuilt, the boot entries stay.
///
/// # Errors
/// The medium is none of ours or damaged, the answers cannot be read, `target` exists, or xorriso failed.
pub fn embed_kickstart(iso: &Path, answers: &Path, target: &Path, existing: Existing) -> Result<()> {
    crate::command::require(&["xorriso"])?;
    refuse_existing(target, existing)?;
    for input in [iso, answers] {
        refuse_same(input, target)?;
    }
    // Absolute, since xorriso takes some relative names for addresses of drives.
    let iso = &iso
        .canonicalize()
        .map_err(|error| Error::input("find the medium", iso, error))?;
    let text = fs::read(answers).map_err(|error| Error::input("read the answers", answers, error))?;
    if text.is_empty() || text.len() > 1 << 20 || text.contains(&0) {
        let found = format!("{} is no kickstart file: {} bytes", shown(answers), text.len());
        return Err(Error::new(Kind::Config, found).hint("give a text file of at most 1 MiB"));
    }
    let date = modification_date(iso)?;
    let folder = target
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let scratch = crate::work::WorkFolder::create(folder)?;
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
        .run()?;
    seal::apply(&made)?;
    publish(&made, target, existing)
}

/// Reads when a medium of ours was made from its primary volume descriptor (ECMA-119 8.4; at byte 32768: "CD001" at 1,
/// volume identifier at 40, size in blocks of 2048 bytes at 80, modification date of 16 digits at 830).
///
/// The medium with answers gets the same date, so that the same answers on the same medium always give the same bytes.
fn modification_date(iso: &Path) -> Result<String> {
    let refuse = |found: &str| {
        let text = format!(
            "{} is no installation medium of the master target: {found}",
            shown(iso)
        );
        Err(Error::new(Kind::Config, text).hint("name the ISO that mt-image build made"))
    };
    let file = fs::File::open(iso).map_err(|error| Error::io("open", iso, error))?;
    let size = file
        .metadata()
        .map_err(|error| Error::io("examine", iso, error))?
        .len();
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
