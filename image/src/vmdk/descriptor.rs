// SPDX-License-Identifier: MIT OR Apache-2.0
//! The text descriptor embedded in a VMDK, from sector 1 on, padded with zeros.
//!
//! What is read strictly is what decides about the disk: `createType`, `parentCID`, the extent and the identities.
//! The disk data base (`ddb.*`) is advice to the importing product; unknown keys are kept out of the judgement.

use super::SECTOR_SIZE;
use super::grain::ContentId;

/// Sectors kept for the descriptor; open-vmdk and qemu-img keep the same.
pub const DESCRIPTOR_SECTORS: u64 = 20;
/// `ddb.toolsVersion` for "not known".
pub const TOOLS_VERSION_UNKNOWN: u32 = 2_147_483_647;

/// A descriptor that cannot be taken, in words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct DescriptorFault(pub String);

/// What a new descriptor says.
#[derive(Debug, Clone)]
pub struct NewDescriptor<'a> {
    /// Size of the disk in sectors.
    pub capacity_sectors: u64,
    /// Identity of what the disk holds.
    pub content_id: ContentId,
    /// Name of the extent: the file's own name.
    pub extent_name: &'a str,
    /// 1024 x major + 32 x minor + patch of the open-vm-tools in the disk, or [`TOOLS_VERSION_UNKNOWN`].
    pub tools_version: u32,
}

impl NewDescriptor<'_> {
    /// Renders the text and pads it to [`DESCRIPTOR_SECTORS`].
    ///
    /// # Errors
    /// The extent's name holds a quote or a control character, or is too long.
    pub fn encode(&self) -> Result<Vec<u8>, DescriptorFault> {
        if self.extent_name.is_empty()
            || self.extent_name.len() > 1024
            || self.extent_name.chars().any(|c| c == '"' || c.is_control())
        {
            return Err(DescriptorFault(format!(
                "the name {:?} cannot stand in a VMDK descriptor (quote, control character, or length)",
                self.extent_name
            )));
        }
        // 255 x 63 is what VMware uses above 4 GB; nothing but a BIOS of the last century reads it.
        let cylinders = self.capacity_sectors.div_ceil(255 * 63).min(65_535);
        let text = format!(
            "# Disk DescriptorFile\n\
             version=1\n\
             encoding=\"UTF-8\"\n\
             CID={cid:08x}\n\
             parentCID=ffffffff\n\
             createType=\"streamOptimized\"\n\
             \n\
             # Extent description\n\
             RW {capacity} SPARSE \"{name}\"\n\
             \n\
             # The Disk Data Base\n\
             #DDB\n\
             \n\
             ddb.adapterType = \"lsilogic\"\n\
             ddb.geometry.cylinders = \"{cylinders}\"\n\
             ddb.geometry.heads = \"255\"\n\
             ddb.geometry.sectors = \"63\"\n\
             ddb.longContentID = \"{content_id}\"\n\
             ddb.toolsInstallType = \"4\"\n\
             ddb.toolsVersion = \"{tools}\"\n\
             ddb.virtualHWVersion = \"4\"\n",
            cid = self.content_id.cid(),
            capacity = self.capacity_sectors,
            name = self.extent_name,
            content_id = self.content_id,
            tools = self.tools_version,
        );
        let mut bytes = text.into_bytes();
        bytes.resize(20 * SECTOR_SIZE, 0);
        Ok(bytes)
    }
}

/// What was read from a descriptor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Descriptor {
    /// Size of the extent in sectors.
    pub capacity_sectors: u64,
    /// Name of the extent.
    pub extent_name: String,
    /// Short identity.
    pub cid: u32,
    /// Long identity, where there is one.
    pub long_content_id: Option<String>,
    /// `ddb.adapterType`, where there is one.
    pub adapter_type: Option<String>,
    /// The whole text.
    pub text: String,
}

impl Descriptor {
    /// Reads a descriptor area.
    ///
    /// # Errors
    /// The text is damaged, names another kind of disk, or contradicts itself.
    pub fn decode(area: &[u8]) -> Result<Self, DescriptorFault> {
        let fault = |text: String| DescriptorFault(format!("descriptor: {text}"));
        let end = area.iter().position(|&byte| byte == 0).unwrap_or(area.len());
        if let Some(at) = area[end..].iter().position(|&byte| byte != 0) {
            return Err(fault(format!(
                "byte {:#x} behind the end of the text is not zero",
                end + at
            )));
        }
        let text = std::str::from_utf8(&area[..end]).map_err(|error| fault(format!("not UTF-8: {error}")))?;
        if let Some(bad) = text
            .chars()
            .find(|c| c.is_control() && !matches!(c, '\n' | '\r' | '\t'))
        {
            return Err(fault(format!("holds the control character {bad:?}")));
        }
        if text.lines().next().map(str::trim_end) != Some("# Disk DescriptorFile") {
            return Err(fault("does not begin with \"# Disk DescriptorFile\"".to_owned()));
        }
        let mut values: Vec<(&str, &str)> = Vec::new();
        let mut extents = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            if let Some(extent) = parse_extent(line) {
                extents.push(extent);
            } else if let Some((key, value)) = line.split_once('=') {
                let (key, value) = (key.trim(), unquote(value.trim()));
                let value =
                    value.ok_or_else(|| fault(format!("line {}: a quote is missing: {line}", index + 1)))?;
                if values.iter().any(|(known, _)| known.eq_ignore_ascii_case(key)) {
                    return Err(fault(format!("line {}: {key} is given twice", index + 1)));
                }
                values.push((key, value));
            } else {
                return Err(fault(format!(
                    "line {} is neither KEY=VALUE nor an extent: {line}",
                    index + 1
                )));
            }
        }
        let get = |key: &str| {
            values
                .iter()
                .find(|(known, _)| *known == key)
                .map(|(_, value)| *value)
        };
        let need = |key: &str| get(key).ok_or_else(|| fault(format!("{key} is missing")));
        expect(need("version")?, "1", "version").map_err(fault)?;
        if let Some(encoding) = get("encoding") {
            expect(&encoding.to_ascii_uppercase(), "UTF-8", "encoding").map_err(fault)?;
        }
        expect(need("createType")?, "streamOptimized", "createType").map_err(fault)?;
        expect(need("parentCID")?, "ffffffff", "parentCID").map_err(fault)?;
        let cid = hex_u32(need("CID")?).ok_or_else(|| fault("CID is not eight hex digits".to_owned()))?;
        if cid >= 0xffff_fffe {
            return Err(fault(format!("CID {cid:08x} is reserved")));
        }
        let long_content_id = get("ddb.longContentID").map(str::to_owned);
        if let Some(long) = &long_content_id
            && (long.len() != 32 || !long.is_ascii() || hex_u32(&long[24..]) != Some(cid))
        {
            return Err(fault(format!(
                "ddb.longContentID {long} does not end in the CID {cid:08x}"
            )));
        }
        let [(capacity_sectors, extent_name)] = extents.as_slice() else {
            return Err(fault(format!("has {} extents, expected 1", extents.len())));
        };
        Ok(Self {
            capacity_sectors: *capacity_sectors,
            extent_name: extent_name.clone(),
            cid,
            long_content_id,
            adapter_type: get("ddb.adapterType").map(str::to_owned),
            text: text.to_owned(),
        })
    }
}

fn expect(found: &str, wanted: &str, key: &str) -> Result<(), String> {
    if found == wanted {
        Ok(())
    } else {
        Err(format!("{key} is {found:?}, expected {wanted:?}"))
    }
}

fn hex_u32(text: &str) -> Option<u32> {
    // from_str_radix alone would take a sign.
    (text.len() <= 8 && text.bytes().all(|byte| byte.is_ascii_hexdigit()))
        .then(|| u32::from_str_radix(text, 16).ok())
        .flatten()
}

fn unquote(value: &str) -> Option<&str> {
    match (value.strip_prefix('"'), value.ends_with('"')) {
        (Some(rest), true) => rest.strip_suffix('"').filter(|inner| !inner.contains('"')),
        (None, false) => (!value.contains('"')).then_some(value),
        _ => None,
    }
}

/// Reads `RW 2048 SPARSE "name"`; `None` when the line is something else.
fn parse_extent(line: &str) -> Option<(u64, String)> {
    let rest = line.strip_prefix("RW ")?;
    let (size, rest) = rest.split_once(' ')?;
    let name = unquote(rest.strip_prefix("SPARSE ")?)?;
    Some((size.parse().ok()?, name.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> NewDescriptor<'static> {
        NewDescriptor {
            capacity_sectors: 4_194_304,
            content_id: ContentId(*b"0123456789abcdef"),
            extent_name: "disk1.vmdk",
            tools_version: 12_352,
        }
    }

    #[test]
    fn round_trip() {
        let bytes = sample().encode().unwrap();
        assert_eq!(bytes.len(), 20 * SECTOR_SIZE);
        let read = Descriptor::decode(&bytes).unwrap();
        assert_eq!(read.capacity_sectors, 4_194_304);
        assert_eq!(read.extent_name, "disk1.vmdk");
        assert_eq!(read.cid, 0x6364_6566);
        assert!(read.text.contains("ddb.geometry.cylinders = \"262\""));
    }

    #[test]
    fn names_that_would_break_the_text_are_refused() {
        for name in ["", "a\"b", "a\nb"] {
            assert!(
                NewDescriptor {
                    extent_name: name,
                    ..sample()
                }
                .encode()
                .is_err(),
                "{name:?}"
            );
        }
    }

    #[test]
    fn contradictions_are_refused() {
        let good = String::from_utf8(sample().encode().unwrap()).unwrap();
        for (from, to) in [
            ("streamOptimized", "monolithicSparse"),
            ("parentCID=ffffffff", "parentCID=12345678"),
            ("CID=63646566", "CID=63646567"),
            ("RW 4194304", "RW x"),
            ("version=1", "version=9"),
            ("encoding=\"UTF-8\"", "encoding=\"UTF-8"),
        ] {
            assert!(
                Descriptor::decode(good.replace(from, to).as_bytes()).is_err(),
                "{from} -> {to}"
            );
        }
    }
}
