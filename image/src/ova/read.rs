// SPDX-License-Identifier: MIT OR Apache-2.0
//! Judges an OVA in one pass from front to end, without unpacking it and in bounded memory.

use std::io::{self, Read};

use tar::{Archive, EntryType};

use crate::error::Fault;
use crate::manifest::{self, Digester, Digests, Entry, MANIFEST_SIZE_MAX};
use crate::ovf::read::{OVF_SIZE_MAX, Ovf, parse as parse_ovf};
use crate::spec::guest_os;
use crate::vmdk::reader::{self as vmdk, Discard, ReadError};

/// Members examined; more is no appliance.
const MEMBERS_MAX: usize = 1_000;

/// A member of the tar.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Member {
    /// Name.
    pub name: String,
    /// Size in bytes.
    pub size: u64,
    /// For a VMDK: size of the virtual disk in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capacity: Option<u64>,
    #[serde(skip)]
    digests: Digests,
}

/// What an OVA turned out to be.
#[derive(Debug, Clone, Default, serde::Serialize)]
pub struct OvaReport {
    /// Members in their order.
    pub members: Vec<Member>,
    /// The descriptor.
    pub ovf: Option<Ovf>,
    /// Whether all digests of the manifest were there and right.
    pub manifest_verified: bool,
    /// Whether there is a signature and it fits.
    pub signature_verified: bool,
    /// `disk.EnableUUID` as the descriptor sets it; an appliance without it sees no SCSI IDs.
    pub enable_uuid: Option<String>,
    /// What is wrong. Empty: the file is good.
    pub faults: Vec<Fault>,
    /// What is odd, and not wrong.
    pub warnings: Vec<Fault>,
}

#[derive(Default)]
struct Collected {
    report: OvaReport,
    ovf: Option<(String, Vec<u8>)>,
    manifest: Option<(String, Vec<u8>)>,
    certificate: Option<(String, Vec<u8>)>,
    /// Where the last member ends, padding included.
    end: u64,
    /// What the file is instead of a tar, as far as its beginning tells.
    other: Option<&'static str>,
}

/// Zeros that end a tar: two blocks (POSIX.1-2017 pax, "ustar Interchange Format").
const END_BYTES: u64 = 1024;

/// Reads an OVA to its end and judges it.
///
/// # Errors
/// Only for failing I/O. What is wrong with the file is in the report.
pub fn read(mut input: impl Read) -> io::Result<OvaReport> {
    let mut collected = Collected::default();
    let mut begin = Vec::new();
    input.by_ref().take(512).read_to_end(&mut begin)?;
    collected.other = other_format(&begin);
    let mut archive = Archive::new(Counting {
        inner: io::Cursor::new(begin).chain(input),
        offset: 0,
    });
    let whole = members(&mut archive, &mut collected)?;
    if whole {
        behind_end(archive.into_inner(), &mut collected)?;
    }
    let mut report = collected.report;
    if report.members.is_empty() && report.faults.is_empty() {
        fault(
            &mut report,
            "tar",
            "the file holds no member: it is empty or no tar".to_owned(),
        );
    }
    match &collected.ovf {
        Some((_, bytes)) => match parse_ovf(bytes) {
            Ok((ovf, faults)) => {
                report.faults.extend(faults);
                compare_with_ovf(&mut report, &ovf);
                let uuid = ovf
                    .extra_config
                    .iter()
                    .find(|(key, _)| key.eq_ignore_ascii_case("disk.EnableUUID"));
                report.enable_uuid = uuid.map(|(_, value)| value.clone());
                report.warnings.extend(odd_guest(&ovf.guest_os));
                report.ovf = Some(ovf);
            }
            Err(found) => report.faults.push(found),
        },
        None if whole => fault(&mut report, "ovf-missing", "there is no .ovf member".to_owned()),
        None => {}
    }
    judge_manifest(
        &mut report,
        collected.manifest.as_ref(),
        collected.certificate.as_ref(),
    );
    if let (Some((ovf, _)), Some((manifest, _))) = (&collected.ovf, &collected.manifest)
        && ovf.strip_suffix(".ovf") != manifest.strip_suffix(".mf")
    {
        fault(
            &mut report,
            "manifest-name",
            format!("the manifest {manifest} does not bear the name of {ovf}"),
        );
    }
    Ok(report)
}

fn fault(report: &mut OvaReport, code: &'static str, text: String) {
    report.faults.push(Fault {
        code,
        offset: None,
        text,
    });
}

/// What a file is that does not begin as a tar does (POSIX.1-2017 pax, "ustar Interchange Format": the mark at byte 257).
fn other_format(begin: &[u8]) -> Option<&'static str> {
    match begin {
        [b'P', b'K', 3 | 5, _, ..] => Some("it is a ZIP archive; is the OVA in it?"),
        [0x1f, 0x8b, ..] => Some("it is compressed by gzip; unpack it first"),
        [b'K', b'D', b'M', b'V', ..] => Some("it is a VMDK; \"mt-image vmdk check\" looks at it"),
        [b'<', ..] => Some("it is XML; an OVF with its disks beside it is not read"),
        _ if begin.get(257..262) != Some(b"ustar") => Some("the mark \"ustar\" at byte 257 is missing"),
        _ => None,
    }
}

/// Knows how far the file was read.
struct Counting<R> {
    inner: R,
    offset: u64,
}

impl<R: Read> Read for Counting<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.offset += count as u64;
        Ok(count)
    }
}

/// Looks at what stands behind the end of the archive: tar fills up with zeros, and what else is there is no part of the
/// OVA, covered by no digest, and often the rest of a longer file that was there before.
///
/// A tar without its end is read by most; by others it is taken for one that was cut.
fn behind_end<R: Read>(mut input: Counting<R>, collected: &mut Collected) -> io::Result<()> {
    let mut buffer = vec![0u8; 1 << 16];
    loop {
        let begin = input.offset;
        let count = match input.read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            read => read?,
        };
        if count == 0 {
            let zeros = begin.saturating_sub(collected.end);
            if zeros < END_BYTES && !collected.report.members.is_empty() {
                let text =
                    format!("the tar ends with {zeros} bytes of zeros, expected are {END_BYTES} or more");
                collected.report.warnings.push(Fault {
                    code: "tar-end",
                    offset: Some(collected.end),
                    text,
                });
            }
            return Ok(());
        }
        if let Some(at) = buffer[..count].iter().position(|&byte| byte != 0) {
            let offset = begin + at as u64;
            let text = "data behind the end of the tar, expected are zeros up to the end of the file";
            collected.report.faults.push(Fault {
                code: "tar-end",
                offset: Some(offset),
                text: text.to_owned(),
            });
            return Ok(());
        }
    }
}

/// A guest identifier that vSphere does not know, which an import maps to "Other". An asterisk before it says just that:
/// vSphere's own exports have it.
fn odd_guest(identifier: &str) -> Option<Fault> {
    let plain = identifier.strip_prefix('*').unwrap_or(identifier);
    if plain.is_empty() || guest_os::is_known(plain) {
        return None;
    }
    let near = guest_os::nearest(plain).map_or(String::new(), |near| format!("; {near} is one"));
    Some(Fault {
        code: "ovf-guest",
        offset: None,
        text: format!(
            "osType {identifier:?} is no guest identifier that vSphere knows: an import takes \"Other\"{near}"
        ),
    })
}

/// Walks over the tar; returns whether its end was reached.
fn members<R: Read>(archive: &mut Archive<R>, collected: &mut Collected) -> io::Result<bool> {
    for entry in archive.entries()?.raw(true) {
        let mut entry = match entry {
            Ok(entry) => entry,
            Err(error) if is_damage(&error) => {
                let text = match collected.other {
                    Some(other) if collected.report.members.is_empty() => {
                        format!("the file is no tar, as an OVA is: {other}")
                    }
                    _ => format!("the tar is damaged or cut short: {}", reason(&error)),
                };
                fault(&mut collected.report, "tar", text);
                return Ok(false);
            }
            Err(error) => return Err(error),
        };
        let offset = entry.raw_header_position();
        let blocks = entry.header().entry_size().unwrap_or(0).div_ceil(512);
        collected.end = entry
            .raw_file_position()
            .saturating_add(blocks.saturating_mul(512));
        let mut found = |code: &'static str, text: String| {
            collected.report.faults.push(Fault {
                code,
                offset: Some(offset),
                text,
            });
        };
        let kind = entry.header().entry_type();
        if matches!(kind, EntryType::XHeader | EntryType::XGlobalHeader) {
            found(
                "tar-pax",
                "a PAX header: vSphere does not read PAX, and its importers stumble over the extra member"
                    .to_owned(),
            );
            continue;
        }
        if !matches!(kind, EntryType::Regular | EntryType::Continuous) {
            found(
                "tar-type",
                format!(
                    "a member that is {}; an OVA holds plain files only",
                    type_name(kind)
                ),
            );
            continue;
        }
        let Ok(name) = std::str::from_utf8(&entry.path_bytes()).map(str::to_owned) else {
            found("tar-name", "a member's name is not UTF-8".to_owned());
            continue;
        };
        if name.contains(['/', '\\'])
            || name.starts_with('.')
            || name.chars().any(char::is_control)
            || name.is_empty()
        {
            found(
                "tar-name",
                format!("the member {name:?} is not a plain file name"),
            );
        }
        if collected.report.members.iter().any(|member| member.name == name) {
            found("tar-name", format!("{name} is in the tar twice"));
        }
        if collected.report.members.is_empty() && !name.ends_with(".ovf") {
            found(
                "tar-order",
                format!(
                    "the first member is {name}: \"Did not find an .ovf file at the beginning of the OVA package\""
                ),
            );
        }
        if collected.report.members.len() >= MEMBERS_MAX {
            found(
                "tar",
                format!("more than {MEMBERS_MAX} members, the rest was not examined"),
            );
            return Ok(false);
        }
        let size = entry.header().entry_size().unwrap_or(0);
        if let Err(error) = member(&mut entry, &name, size, collected) {
            if is_damage(&error) {
                fault(
                    &mut collected.report,
                    "tar",
                    format!("the tar ends within {name}: {}", reason(&error)),
                );
                return Ok(false);
            }
            return Err(error);
        }
    }
    Ok(true)
}

/// What a member is, in words.
fn type_name(kind: EntryType) -> String {
    match kind {
        EntryType::Directory => "a folder".to_owned(),
        EntryType::Symlink => "a symbolic link".to_owned(),
        EntryType::Link => "a link to another member".to_owned(),
        EntryType::Char | EntryType::Block => "a device".to_owned(),
        EntryType::Fifo => "a pipe".to_owned(),
        EntryType::GNULongName | EntryType::GNULongLink => "a long name of GNU tar".to_owned(),
        EntryType::GNUSparse => "a sparse file of GNU tar".to_owned(),
        other => format!("of the type {}", char::from(other.as_byte()).escape_default()),
    }
}

/// What the tar crate says, without the header that it quotes: 512 bytes of anything.
fn reason(error: &io::Error) -> String {
    let said = error.to_string();
    let said = said.split(" when getting ").next().unwrap_or_default();
    match said.split_once(" did not have utf-8 text") {
        Some((what, _)) => format!("a {what} of a member's header holds no number"),
        None => said.chars().take(200).collect(),
    }
}

/// The tar crate reports damage as I/O errors of these kinds; real ones come with a number of the system.
fn is_damage(error: &io::Error) -> bool {
    error.raw_os_error().is_none()
}

fn member(entry: &mut impl Read, name: &str, size: u64, collected: &mut Collected) -> io::Result<()> {
    let mut hashing = Hashing {
        inner: entry,
        digester: Digester::default(),
        count: 0,
    };
    let mut capacity = None;
    let extension = name.rsplit_once('.').map(|(_, extension)| extension);
    match extension {
        Some("vmdk") => {
            let disk = vmdk::read(&mut hashing, &mut Discard).map_err(|error| match error {
                ReadError::Read { source, .. } | ReadError::Take { source, .. } => source,
            })?;
            capacity = Some(disk.capacity);
            for mut found in disk.faults {
                found.text = format!("{name}: {}", found.text);
                collected.report.faults.push(found);
            }
        }
        Some("ovf" | "mf" | "cert") => {
            let limit = if extension == Some("ovf") {
                OVF_SIZE_MAX
            } else {
                MANIFEST_SIZE_MAX
            };
            let mut bytes = Vec::new();
            (&mut hashing).take(limit).read_to_end(&mut bytes)?;
            if size > limit {
                fault(
                    &mut collected.report,
                    "size",
                    format!("{name} has {size} bytes, expected at most {limit}"),
                );
            }
            let place = match extension {
                Some("ovf") => &mut collected.ovf,
                Some("mf") => &mut collected.manifest,
                _ => &mut collected.certificate,
            };
            if place.is_some() {
                let text = format!("{name} is a second .{} member", extension.unwrap_or_default());
                fault(&mut collected.report, "tar-name", text);
            } else {
                *place = Some((name.to_owned(), bytes));
            }
        }
        _ => {}
    }
    io::copy(&mut hashing, &mut io::sink())?;
    if hashing.count != size {
        return Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            format!("{} of {size} bytes are there", hashing.count),
        ));
    }
    let digests = hashing.digester.finish();
    collected.report.members.push(Member {
        name: name.to_owned(),
        size,
        capacity,
        digests,
    });
    Ok(())
}

/// Digests what is read through it.
struct Hashing<'a, R> {
    inner: &'a mut R,
    digester: Digester,
    count: u64,
}

impl<R: Read> Read for Hashing<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.digester.update(&buffer[..count]);
        self.count += count as u64;
        Ok(count)
    }
}

fn compare_with_ovf(report: &mut OvaReport, ovf: &Ovf) {
    for file in &ovf.files {
        let Some(member) = report.members.iter().find(|member| member.name == file.href) else {
            fault(
                report,
                "file-missing",
                format!("the descriptor names {:?}, which is not in the OVA", file.href),
            );
            continue;
        };
        if file.transformed {
            continue;
        }
        let (member_size, capacity) = (member.size, member.capacity);
        if let Some(size) = file.size
            && size != member_size
        {
            let text = format!(
                "the descriptor gives {} {size} bytes, it has {member_size}: \"Wrong file size\"",
                file.href
            );
            fault(report, "file-size", text);
        }
        for disk in ovf
            .disks
            .iter()
            .filter(|disk| disk.file.as_ref() == Some(&file.id))
        {
            if let (Some(declared), Some(real)) = (disk.capacity, capacity)
                && declared < real
            {
                let text = format!(
                    "disk {} is declared with {declared} bytes, the VMDK has {real}: the import ends at 95 % with HTTP 500",
                    disk.id
                );
                fault(report, "disk-capacity", text);
            }
        }
    }
}

fn judge_manifest(
    report: &mut OvaReport,
    manifest: Option<&(String, Vec<u8>)>,
    certificate: Option<&(String, Vec<u8>)>,
) {
    let Some((manifest_name, bytes)) = manifest else {
        if let Some((name, _)) = certificate {
            fault(
                report,
                "signature",
                format!("{name} signs a manifest that is not there"),
            );
        }
        return;
    };
    let (entries, form) = manifest::parse(bytes);
    let before = report.faults.len();
    report.faults.extend(form);
    compare_digests(
        report,
        &entries,
        &[Some(manifest_name), certificate.map(|(name, _)| name)],
    );
    report.manifest_verified = report.faults.len() == before;
    if let Some((name, certificate)) = certificate {
        match manifest::verify_signature(certificate, manifest_name, bytes) {
            Ok(()) => report.signature_verified = true,
            Err(text) => fault(report, "signature", format!("{name}: {text}")),
        }
    }
}

fn compare_digests(report: &mut OvaReport, entries: &[Entry], exempt: &[Option<&String>]) {
    let mut faults = Vec::new();
    for entry in entries {
        match report.members.iter().find(|member| member.name == entry.name) {
            None => faults.push(format!(
                "the manifest lists {:?}, which is not in the OVA",
                entry.name
            )),
            Some(member) if member.digests.by(entry.algorithm) != entry.digest => faults.push(format!(
                "the {} of {} is {}, the manifest says {}",
                entry.algorithm.word(),
                entry.name,
                member.digests.by(entry.algorithm),
                entry.digest
            )),
            Some(_) => {}
        }
    }
    for member in &report.members {
        let listed = entries.iter().any(|entry| entry.name == member.name);
        if !listed && !exempt.contains(&Some(&member.name)) {
            faults.push(format!("{} is not in the manifest", member.name));
        }
    }
    faults
        .into_iter()
        .for_each(|text| fault(report, "manifest", text));
}
