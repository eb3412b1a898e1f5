// SPDX-License-Identifier: MIT OR Apache-2.0
//! The image spec: a TOML file that says what goes into an image. Read into [`raw`], judged, and turned into
//! [`ImageSpec`]; the rest of the crate sees only the latter.
//!
//! Unknown keys are errors with their line and the nearest known key, since a misspelt key that is ignored shows up
//! in an appliance months later. What is well-formed and senseless is judged by rooms: `judge` for most, `contents` for
//! what is left out of the image, `property` for what the deploy wizard asks.

mod contents;
pub mod guest_os;
mod judge;
mod lines;
mod property;
pub mod raw;

use std::path::Path;

use crate::error::{Error, Kind, Result, counted, shown};
use crate::input::{self, Accept, SPEC_MAX};
pub use raw::{Base, Firmware, Manifest, NicKind, PropertyKind, ScsiKind};

/// Hardware versions ESXi takes and the first release that does; 12 and 16 are Workstation's.
pub const HARDWARE_VERSIONS: [(u32, &str); 11] = [
    (10, "5.5"),
    (11, "6.0"),
    (13, "6.5"),
    (14, "6.7"),
    (15, "6.7 U2"),
    (17, "7.0"),
    (18, "7.0 U1"),
    (19, "7.0 U2"),
    (20, "8.0"),
    (21, "8.0 U2"),
    (22, "9.0"),
];

/// A spec that was judged: every value is in its bounds and none contradicts another.
#[derive(Debug, Clone)]
pub struct ImageSpec {
    /// Name of the image, start of the file names.
    pub name: String,
    /// Version of the image.
    pub version: String,
    /// Time that all files in the image get, in seconds since 1970, so that a second build gives the same bytes.
    pub source_date: u64,
    /// What the deploy wizard shows.
    pub product: raw::Product,
    /// What the root file system is made of.
    pub rootfs: raw::Rootfs,
    /// Kernel modules that stay, and those of the initramfs.
    pub modules: raw::Modules,
    /// What is left out.
    pub trim: raw::Trim,
    /// Size of the appliance's disk and bounds of the artefacts.
    pub sizes: raw::Sizes,
    /// The virtual machine.
    pub hardware: raw::Hardware,
    /// What the deploy wizard asks.
    pub properties: Vec<raw::Property>,
}

/// Reads and judges a spec file.
///
/// # Errors
/// [`Kind::Config`] with file, lines and reasons.
pub fn load(path: &Path) -> Result<ImageSpec> {
    parse(&read(path)?).map_err(|faults| error_of(path, &faults))
}

/// Reads the text of a spec file.
///
/// # Errors
/// It cannot be read, or is no text.
pub fn read(path: &Path) -> Result<String> {
    input::read_text("image spec", path, SPEC_MAX, Accept::File)
}

/// Line of a key such as `rootfs.overlay` in the text of a spec.
#[must_use]
pub fn line_of(text: &str, key: &str) -> Option<usize> {
    lines::Lines::of(text).line(key)
}

/// The error of a spec that has faults.
#[must_use]
pub fn error_of(path: &Path, faults: &[SpecFault]) -> Error {
    let text = match faults {
        [fault] => format!("image spec {}: {fault}", shown(path)),
        _ => {
            let lines: String = faults.iter().map(|fault| format!("\n  {fault}")).collect();
            let count = counted(faults.len() as u64, "fault");
            format!("image spec {} has {count}:{lines}", shown(path))
        }
    };
    let error = Error::new(Kind::Config, text);
    match faults.iter().find_map(|fault| fault.nearest.as_ref()) {
        Some(nearest) => error.hint(format!("did you mean \"{nearest}\"?")),
        None => error.hint("image/specs/debian.toml is a complete example"),
    }
}

/// What is wrong with a spec.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct SpecFault {
    /// Line in the file, from 1.
    pub line: Option<usize>,
    /// What was found against what is allowed.
    pub text: String,
    /// The known key most like an unknown one.
    pub nearest: Option<String>,
}

impl std::fmt::Display for SpecFault {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.line {
            Some(line) => write!(formatter, "line {line}: {}", self.text),
            None => formatter.write_str(&self.text),
        }
    }
}

/// Parses and judges the text of a spec.
///
/// # Errors
/// What cannot be parsed alone; otherwise all faults, in the order of their lines.
pub fn parse(text: &str) -> std::result::Result<ImageSpec, Vec<SpecFault>> {
    let raw: raw::RawSpec = toml::from_str(text).map_err(|error| {
        let message = error.message().to_owned();
        let nearest = nearest_key(&message);
        vec![SpecFault {
            line: error.span().map(|span| lines::line_at(text, span.start)),
            text: message,
            nearest,
        }]
    })?;
    let found = judge::judge(&raw);
    if !found.is_empty() {
        let lines = lines::Lines::of(text);
        let mut faults: Vec<SpecFault> = found
            .into_iter()
            .map(|(place, text)| SpecFault {
                line: lines.line(&place),
                text: format!("{}: {text}", lines::key_of(&place)),
                nearest: None,
            })
            .collect();
        faults.sort_by_key(|fault| fault.line);
        return Err(faults);
    }
    Ok(ImageSpec {
        name: raw.image.name,
        version: raw.image.version,
        source_date: raw.image.source_date,
        product: raw.product,
        rootfs: raw.rootfs,
        modules: raw.modules,
        trim: raw.trim,
        sizes: raw.sizes,
        hardware: raw.hardware,
        properties: raw.properties,
    })
}

/// Finds the known key most like the unknown one in serde's "unknown field `x`, expected one of `a`, `b`"; none where
/// they are nothing alike.
fn nearest_key(message: &str) -> Option<String> {
    let mut quoted = message.split('`').skip(1).step_by(2);
    let unknown = message.starts_with("unknown ").then(|| quoted.next()).flatten()?;
    quoted
        .map(|known| (strsim::damerau_levenshtein(unknown, known), known))
        // A third of the letters: what differs in more is another word, and the message lists all that are known.
        .filter(|(distance, known)| distance * 3 <= known.chars().count().max(unknown.chars().count()))
        .min()
        .map(|(_, known)| known.to_owned())
}

/// Judges the hardware again, after the command line changed it.
///
/// # Errors
/// What is wrong, in words.
pub fn recheck_hardware(spec: &ImageSpec) -> std::result::Result<(), String> {
    match judge::hardware(&spec.hardware).first() {
        Some((key, text)) => Err(format!("{key}: {text}")),
        None => Ok(()),
    }
}

/// Earliest and latest time that everything in an image can bear: the file system of its boot loaders (FAT) begins in
/// 1980, and the one of its root (squashfs) counts seconds since 1970 in 32 bits.
pub const SOURCE_DATES: std::ops::RangeInclusive<u64> = 315_532_800..=4_294_967_295;

/// Judges a version: it becomes part of file names, XML and the tar.
///
/// # Errors
/// What is wrong, in words.
pub fn check_version(version: &str) -> std::result::Result<(), String> {
    let clean = !version.is_empty()
        && version.len() <= 40
        && version.starts_with(|c: char| c.is_ascii_alphanumeric())
        && version
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b".-+~_".contains(&byte));
    if clean {
        Ok(())
    } else {
        Err(format!(
            "{version:?} is no version: up to 40 letters, digits and . - + ~ _, beginning with a letter or digit"
        ))
    }
}

fn is_file_word(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 60
        && !text.starts_with('-')
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
        && !text.starts_with('.')
}

fn is_package(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"+-._".contains(&byte))
}

/// Characters of XML 1.0.
fn is_xml_text(text: &str) -> bool {
    text.chars()
        .all(|c| c == '\n' || c == '\t' || (c >= ' ' && !matches!(c, '\u{fffe}' | '\u{ffff}')))
}

#[cfg(test)]
mod tests;
