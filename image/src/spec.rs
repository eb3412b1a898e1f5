// SPDX-License-Identifier: MIT OR Apache-2.0
//! The image spec: a TOML file that says what goes into an image. Read into [`raw`], judged, and turned into
//! [`ImageSpec`]; the rest of the crate sees only the latter.
//!
//! Unknown keys are errors with their line and the nearest known key, since a misspelt key that is ignored shows up
//! in an appliance months later.

pub mod raw;

use std::path::Path;

use crate::error::{Error, Kind, Result, shown};
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
/// [`Kind::Config`] with file, line and reason.
pub fn load(path: &Path) -> Result<ImageSpec> {
    let text = std::fs::read_to_string(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::InvalidData => {
            let text = format!("image spec {}: it is no text in UTF-8", shown(path));
            Error::new(Kind::Config, text).hint("image/specs/debian.toml is a complete example")
        }
        _ => Error::input("read the image spec", path, error),
    })?;
    parse(&text).map_err(|fault| {
        let message = match fault.line {
            Some(line) => format!("image spec {}: line {line}: {}", shown(path), fault.text),
            None => format!("image spec {}: {}", shown(path), fault.text),
        };
        let error = Error::new(Kind::Config, message);
        match fault.nearest {
            Some(nearest) => error.hint(format!("did you mean \"{nearest}\"?")),
            None => error.hint("image/specs/debian.toml is a complete example"),
        }
    })
}

/// What is wrong with a spec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpecFault {
    /// Line in the file, from 1.
    pub line: Option<usize>,
    /// What was found against what is allowed.
    pub text: String,
    /// The known key most like an unknown one.
    pub nearest: Option<String>,
}

/// Parses and judges the text of a spec.
///
/// # Errors
/// The first fault.
pub fn parse(text: &str) -> std::result::Result<ImageSpec, SpecFault> {
    let raw: raw::RawSpec = toml::from_str(text).map_err(|error| {
        let line = error
            .span()
            .map(|span| 1 + text[..span.start].matches('\n').count());
        let message = error.message().to_owned();
        let nearest = nearest_key(&message);
        SpecFault {
            line,
            text: message,
            nearest,
        }
    })?;
    judge(raw).map_err(|(key, text_of_fault)| SpecFault {
        line: line_of(text, key),
        text: format!("{key}: {text_of_fault}"),
        nearest: None,
    })
}

/// Finds the known key most like the unknown one in serde's "unknown field `x`, expected one of `a`, `b`".
fn nearest_key(message: &str) -> Option<String> {
    let mut quoted = message.split('`').skip(1).step_by(2);
    let unknown = message.starts_with("unknown ").then(|| quoted.next()).flatten()?;
    quoted
        .map(|known| (strsim::jaro_winkler(unknown, known), known))
        .max_by(|left, right| left.0.total_cmp(&right.0))
        .map(|(_, known)| known.to_owned())
}

/// Line of `section.key`, so that a judgement can point to it as the parser does.
fn line_of(text: &str, key: &str) -> Option<usize> {
    let (section, name) = key.rsplit_once('.').unwrap_or(("", key));
    let mut current = String::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.starts_with('[') {
            current = line.trim_matches(|c| c == '[' || c == ']').to_owned();
        } else if current == section
            && let Some((found, _)) = line.split_once('=')
            && found.trim() == name
        {
            return Some(index + 1);
        }
    }
    None
}

type Judgement<T> = std::result::Result<T, (&'static str, String)>;

fn ensure(holds: bool, key: &'static str, text: impl FnOnce() -> String) -> Judgement<()> {
    if holds { Ok(()) } else { Err((key, text())) }
}

fn judge(raw: raw::RawSpec) -> Judgement<ImageSpec> {
    ensure(raw.schema == 1, "schema", || {
        format!("is {}, this program reads 1", raw.schema)
    })?;
    let image = raw.image;
    ensure(is_file_word(&image.name), "image.name", || {
        format!("{:?} is no name of letters, digits and hyphens", image.name)
    })?;
    check_version(&image.version).map_err(|text| ("image.version", text))?;
    for (key, text) in [
        ("product.name", &raw.product.name),
        ("product.vendor", &raw.product.vendor),
        ("product.annotation", &raw.product.annotation),
    ] {
        ensure(is_xml_text(text), key, || {
            "holds a character that XML cannot carry".to_owned()
        })?;
    }
    judge_rootfs(&raw.rootfs)?;
    judge_hardware(&raw.hardware)?;
    judge_sizes(&raw.sizes)?;
    judge_modules(&raw.modules)?;
    for path in &raw.trim.paths {
        let clean = path.starts_with('/') && path.len() > 2 && !path.split('/').any(|part| part == "..");
        ensure(clean, "trim.paths", || {
            format!("{path:?} is no absolute path within the root file system")
        })?;
    }
    let properties = raw.properties;
    for (index, property) in properties.iter().enumerate() {
        judge_property(property)?;
        ensure(
            !properties[..index].iter().any(|other| other.key == property.key),
            "properties.key",
            || format!("{} is given twice", property.key),
        )?;
    }
    Ok(ImageSpec {
        name: image.name,
        version: image.version,
        source_date: image.source_date,
        product: raw.product,
        rootfs: raw.rootfs,
        modules: raw.modules,
        trim: raw.trim,
        sizes: raw.sizes,
        hardware: raw.hardware,
        properties,
    })
}

fn judge_rootfs(rootfs: &raw::Rootfs) -> Judgement<()> {
    match rootfs.base {
        Base::Debian => {
            ensure(!rootfs.sources.is_empty(), "rootfs.sources", || {
                "is empty: a debian image needs its suites, the security suite among them".to_owned()
            })?;
            ensure(rootfs.repositories.is_empty(), "rootfs.repositories", || {
                "is for el images; a debian image has rootfs.sources".to_owned()
            })?;
            let secured = rootfs
                .sources
                .iter()
                .any(|source| suite_of(source).is_some_and(|suite| suite.ends_with("-security")));
            ensure(secured, "rootfs.sources", || {
                "has no security suite: the kernel would be the release's first".to_owned()
            })?;
            for source in &rootfs.sources {
                let clean =
                    (source.starts_with("deb ") || source.starts_with("deb [")) && !source.contains('\n');
                ensure(clean, "rootfs.sources", || {
                    format!("{source:?} is no \"deb ...\" line")
                })?;
            }
        }
        Base::El => {
            ensure(!rootfs.repositories.is_empty(), "rootfs.repositories", || {
                "is empty: an el image needs its repositories".to_owned()
            })?;
            ensure(rootfs.sources.is_empty(), "rootfs.sources", || {
                "is for debian images; an el image has rootfs.repositories".to_owned()
            })?;
            for repository in &rootfs.repositories {
                ensure(is_file_word(&repository.id), "rootfs.repositories.id", || {
                    format!("{:?} is no name of letters, digits and hyphens", repository.id)
                })?;
                let clean =
                    !repository.baseurl.contains(char::is_whitespace) && repository.baseurl.contains("://");
                ensure(clean, "rootfs.repositories.baseurl", || {
                    format!("{:?} is no address", repository.baseurl)
                })?;
                ensure(
                    !repository.gpgkey.is_empty(),
                    "rootfs.repositories.gpgkey",
                    || format!("is empty: packages of {} could not be verified", repository.id),
                )?;
            }
        }
    }
    ensure(is_file_word(&rootfs.release), "rootfs.release", || {
        format!("{:?} is no release name", rootfs.release)
    })?;
    ensure(!rootfs.packages.is_empty(), "rootfs.packages", || {
        "is empty".to_owned()
    })?;
    let names = rootfs.initramfs_without.iter().chain(&rootfs.masked_units);
    for name in names {
        let clean = is_file_word(&name.replace('@', "-"));
        ensure(clean, "rootfs.masked_units", || format!("{name:?} is no name"))?;
    }
    for (index, package) in rootfs.packages.iter().enumerate() {
        ensure(is_package(package), "rootfs.packages", || {
            format!("{package:?} is no package name")
        })?;
        ensure(
            !rootfs.packages[..index].contains(package),
            "rootfs.packages",
            || format!("{package} is listed twice"),
        )?;
    }
    Ok(())
}

/// Suite of a `deb [OPTIONS] URL SUITE COMPONENT...` line.
fn suite_of(source: &str) -> Option<&str> {
    let rest = source.strip_prefix("deb ")?.trim_start();
    let rest = if rest.starts_with('[') {
        rest.split_once(']')?.1
    } else {
        rest
    };
    rest.split_whitespace().nth(1)
}

fn judge_hardware(hardware: &raw::Hardware) -> Judgement<()> {
    let known = HARDWARE_VERSIONS
        .iter()
        .any(|(version, _)| *version == hardware.vmx);
    ensure(known, "hardware.vmx", || {
        let list: Vec<String> = HARDWARE_VERSIONS
            .iter()
            .map(|(version, _)| version.to_string())
            .collect();
        format!(
            "is {}, ESXi takes {} (12 and 16 are for Workstation only)",
            hardware.vmx,
            list.join(", ")
        )
    })?;
    ensure((1..=128).contains(&hardware.vcpus), "hardware.vcpus", || {
        format!("is {}, allowed are 1 to 128", hardware.vcpus)
    })?;
    let memory_ok =
        (1024..=4_194_304).contains(&hardware.memory_mib) && hardware.memory_mib.is_multiple_of(4);
    ensure(memory_ok, "hardware.memory_mib", || {
        format!(
            "is {}, allowed are multiples of 4 from 1024 to 4194304",
            hardware.memory_mib
        )
    })?;
    ensure(
        (1..=4).contains(&hardware.scsi_controllers),
        "hardware.scsi_controllers",
        || format!("is {}, a virtual machine has 1 to 4", hardware.scsi_controllers),
    )?;
    ensure(
        !(hardware.secure_boot && hardware.firmware == Firmware::Bios),
        "hardware.secure_boot",
        || "is true, but hardware.firmware is \"bios\": Secure Boot needs \"efi\"".to_owned(),
    )?;
    ensure(
        !(hardware.secure_boot && hardware.vmx < 13),
        "hardware.secure_boot",
        || {
            format!(
                "is true, but hardware.vmx is {}: Secure Boot came with 13",
                hardware.vmx
            )
        },
    )?;
    ensure(is_file_word(&hardware.guest_os), "hardware.guest_os", || {
        format!("{:?} is no guest identifier", hardware.guest_os)
    })?;
    let network_ok = !hardware.network.trim().is_empty() && is_xml_text(&hardware.network);
    ensure(network_ok, "hardware.network", || {
        format!("{:?} is no network name", hardware.network)
    })
}

/// Judges the hardware again, after the command line changed it.
///
/// # Errors
/// What is wrong, in words.
pub fn recheck_hardware(spec: &ImageSpec) -> std::result::Result<(), String> {
    judge_hardware(&spec.hardware).map_err(|(key, text)| format!("{key}: {text}"))
}

fn judge_sizes(sizes: &raw::Sizes) -> Judgement<()> {
    ensure((2..=2048).contains(&sizes.disk_gib), "sizes.disk_gib", || {
        format!("is {}, allowed are 2 to 2048", sizes.disk_gib)
    })?;
    ensure(
        sizes.ova_mib_max > 0 && sizes.iso_mib_max > 0,
        "sizes.ova_mib_max",
        || "a bound is 0".to_owned(),
    )
}

fn judge_modules(modules: &raw::Modules) -> Judgement<()> {
    for name in modules.initramfs.iter().chain(&modules.required) {
        ensure(is_package(name), "modules.required", || {
            format!("{name:?} is no module name")
        })?;
    }
    let missing = modules
        .initramfs
        .iter()
        .find(|name| !modules.required.contains(name));
    ensure(missing.is_none(), "modules.initramfs", || {
        format!(
            "{} is not among modules.required, so it could be trimmed",
            missing.map_or("", String::as_str)
        )
    })?;
    for folder in modules.drop.iter().chain(&modules.keep) {
        let clean =
            !folder.is_empty() && !folder.starts_with('/') && !folder.split('/').any(|part| part == "..");
        ensure(clean, "modules.drop", || {
            format!("{folder:?} is no folder below /lib/modules/VERSION/kernel")
        })?;
    }
    Ok(())
}

fn judge_property(property: &raw::Property) -> Judgement<()> {
    let clean = property.key.starts_with("guestinfo.")
        && property
            .key
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
    ensure(clean, "properties.key", || {
        format!("{:?} is no key that begins with \"guestinfo.\"", property.key)
    })?;
    for text in [
        &property.label,
        &property.description,
        &property.value,
        &property.category,
        &property.qualifiers,
    ] {
        ensure(is_xml_text(text), "properties.label", || {
            format!("{}: holds a character that XML cannot carry", property.key)
        })?;
    }
    ensure(
        !property.password || property.value.is_empty(),
        "properties.value",
        || {
            format!(
                "{}: a password with a default would be a secret in the image",
                property.key
            )
        },
    )
}

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
