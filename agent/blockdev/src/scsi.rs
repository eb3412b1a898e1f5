//! SCSI identity: the bytes of INQUIRY and its vital product data (VPD) pages, decoded.
//!
//! Pure: bytes in, typed values out. No byte string makes these functions panic, and no length found in
//! the bytes sizes a buffer; every length is bounded by the slice it came in. Who fetches the bytes is
//! [`crate::ioctl`] (SG_IO) or [`crate::sysfs`] (`vpd_pg80`, `vpd_pg83`).
//!
//! A disk is known by its *SCSI ID*: an NAA or EUI-64 designator of VPD page 0x83 that names the logical
//! unit. T10 vendor and vendor specific designators are never an identity: emulators fill them with the
//! kernel's or the user's own text, so that two disks may show the same one, and VMware shows none of them
//! as the disk's UUID.
//!
//! Layout of page 0x83 (SPC-4, 7.8.6), all fields big-endian:
//!
//! | offset | size | meaning |
//! |---|---|---|
//! | 0 | 1 | peripheral qualifier and type |
//! | 1 | 1 | page code, 0x83 |
//! | 2 | 2 | length of what follows |
//! | 4 | .. | designators, one after the other |
//!
//! and of one designator: byte 0 protocol and code set (low nibble), byte 1 association (bits 4-5) and
//! type (low nibble), byte 3 length, then the value.
//!
//! Worked example, the page of a VMware disk with `disk.EnableUUID` set:
//! `00 83 00 14 | 01 03 00 10 | 60 00 c2 9a 71 e0 2b 4c 9d 11 8e 55 03 7f aa 01` gives
//! `naa.6000c29a71e02b4c9d118e55037faa01`.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// VPD page code: the list of supported pages.
pub const VPD_SUPPORTED_PAGES: u8 = 0x00;
/// VPD page code: the unit serial number.
pub const VPD_UNIT_SERIAL: u8 = 0x80;
/// VPD page code: device identification.
pub const VPD_DEVICE_ID: u8 = 0x83;

/// Longest designator value that can be an identity: NAA 6 and EUI-64 based 16-byte identifiers.
const ID_BYTES_MAX: usize = 16;
/// Bytes before the first designator of page 0x83, and before the value in every VPD page read here.
const VPD_HEADER_SIZE: usize = 4;
/// Bytes before the value of one designator.
const DESIGNATOR_HEADER_SIZE: usize = 4;
/// Smallest standard INQUIRY answer that carries vendor, model and revision (SPC-4, 6.6.2).
const INQUIRY_SIZE_MIN: usize = 36;

/// What kind of registered name a [`ScsiId`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ScsiIdKind {
    /// Network Address Authority designator, 8 or 16 bytes. What VMware shows: 16 bytes from `6000c29`.
    Naa,
    /// EUI-64 based designator, 8, 12 or 16 bytes.
    Eui,
}

/// The stable name of a disk, from VPD page 0x83.
///
/// Reads `naa.6000c29...`, `0x6000c29...`, `wwn-0x6000c29...`, bare hexadecimal digits, `scsi-36000c29...`
/// and `36000c29...` (as `lsscsi` and udev print it), `eui....`, in any case; prints `naa.<hex>` or
/// `eui.<hex>` in lower case, which is also how the kernel writes its sysfs attribute `wwid`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ScsiId {
    kind: ScsiIdKind,
    len: u8,
    /// The first `len` bytes are the identifier, the rest is zero, so that derived equality holds.
    bytes: [u8; ID_BYTES_MAX],
}

/// Why a text or a byte string is not a SCSI ID.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScsiIdError {
    /// The text does not have the number of hexadecimal digits an identifier has.
    #[error(
        "not a SCSI ID: {found:?} has {digits} hexadecimal digits, an NAA identifier has 16 or 32, \
         an EUI-64 identifier 16, 24 or 32"
    )]
    Length {
        /// The text as given.
        found: String,
        /// Digits found after the prefix.
        digits: usize,
    },
    /// A character that is not a hexadecimal digit.
    #[error("not a SCSI ID: {found:?} holds {bad:?}, which is not a hexadecimal digit")]
    Digit {
        /// The text as given.
        found: String,
        /// The first character that does not belong.
        bad: char,
    },
    /// The first digit of an NAA identifier says which authority gave it; only 2, 3, 5 and 6 exist.
    #[error("not a SCSI ID: {found:?} starts with {nibble:x}, an NAA identifier starts with 2, 3, 5 or 6")]
    Authority {
        /// The text as given, or the bytes in hexadecimal.
        found: String,
        /// The first four bits.
        nibble: u8,
    },
    /// Only zeros: a placeholder, not a name.
    #[error("not a SCSI ID: {found:?} is all zeros")]
    Zero {
        /// The text as given.
        found: String,
    },
}

impl ScsiId {
    /// Reads an identifier in any of the notations of the type's documentation.
    ///
    /// # Errors
    /// [`ScsiIdError`] says which rule the text breaks.
    pub fn parse(text: &str) -> Result<Self, ScsiIdError> {
        let trimmed = text.trim();
        let lower = trimmed.to_ascii_lowercase();
        let (kind, digits) = if let Some(rest) = lower.strip_prefix("naa.") {
            (ScsiIdKind::Naa, rest)
        } else if let Some(rest) = lower.strip_prefix("eui.") {
            (ScsiIdKind::Eui, rest)
        } else if let Some(rest) = lower.strip_prefix("wwn-0x").or_else(|| lower.strip_prefix("0x")) {
            (ScsiIdKind::Naa, rest)
        } else {
            let bare = lower.strip_prefix("scsi-").unwrap_or(&lower);
            // udev and lsscsi put the designator type before the digits: 3 is NAA, 2 is EUI-64. No
            // identifier has an odd number of digits, so an odd number can only be such a prefix.
            match (bare.len() % 2, bare.as_bytes().first()) {
                (1, Some(b'3')) => (ScsiIdKind::Naa, &bare[1..]),
                (1, Some(b'2')) => (ScsiIdKind::Eui, &bare[1..]),
                _ => (ScsiIdKind::Naa, bare),
            }
        };
        if let Some(bad) = digits.chars().find(|c| !c.is_ascii_hexdigit()) {
            return Err(ScsiIdError::Digit {
                found: trimmed.to_owned(),
                bad,
            });
        }
        let mut bytes = [0_u8; ID_BYTES_MAX];
        let count = digits.len() / 2;
        if !digits.len().is_multiple_of(2) || !Self::length_is_valid(kind, count) {
            return Err(ScsiIdError::Length {
                found: trimmed.to_owned(),
                digits: digits.len(),
            });
        }
        for (byte, pair) in bytes.iter_mut().zip(digits.as_bytes().chunks_exact(2)) {
            *byte = (nibble(pair[0]) << 4) | nibble(pair[1]);
        }
        Self::from_bytes(kind, &bytes[..count]).map_err(|err| err.about(trimmed))
    }

    /// Takes the value of a designator.
    ///
    /// An 8-byte value whose first digit is 6 breaks SPC-4 but is accepted: the kernel accepts it as well,
    /// and QEMU shows the 64-bit `wwn` of a disk exactly so.
    ///
    /// # Errors
    /// [`ScsiIdError`] says which rule the bytes break.
    pub fn from_bytes(kind: ScsiIdKind, value: &[u8]) -> Result<Self, ScsiIdError> {
        let found = || {
            value
                .iter()
                .take(ID_BYTES_MAX)
                .map(|b| format!("{b:02x}"))
                .collect::<String>()
        };
        if !Self::length_is_valid(kind, value.len()) {
            return Err(ScsiIdError::Length {
                found: found(),
                digits: value.len().saturating_mul(2),
            });
        }
        if value.iter().all(|byte| *byte == 0) {
            return Err(ScsiIdError::Zero { found: found() });
        }
        let authority = value[0] >> 4;
        if kind == ScsiIdKind::Naa && !matches!(authority, 2 | 3 | 5 | 6) {
            return Err(ScsiIdError::Authority {
                found: found(),
                nibble: authority,
            });
        }
        let mut bytes = [0_u8; ID_BYTES_MAX];
        bytes[..value.len()].copy_from_slice(value);
        let len = u8::try_from(value.len()).expect("length_is_valid allows 16 at most");
        Ok(Self { kind, len, bytes })
    }

    /// The kind of registered name this is.
    #[must_use]
    pub fn kind(&self) -> ScsiIdKind {
        self.kind
    }

    /// The bytes of the identifier: 8, 12 or 16 of them.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }

    fn length_is_valid(kind: ScsiIdKind, len: usize) -> bool {
        match kind {
            ScsiIdKind::Naa => matches!(len, 8 | 16),
            ScsiIdKind::Eui => matches!(len, 8 | 12 | 16),
        }
    }
}

impl ScsiIdError {
    /// The same error about the text the user wrote instead of about the bytes it decoded to.
    fn about(self, text: &str) -> Self {
        let found = text.to_owned();
        match self {
            Self::Length { digits, .. } => Self::Length { found, digits },
            Self::Digit { bad, .. } => Self::Digit { found, bad },
            Self::Authority { nibble, .. } => Self::Authority { found, nibble },
            Self::Zero { .. } => Self::Zero { found },
        }
    }
}

/// The value of one hexadecimal digit; the caller has checked that it is one.
fn nibble(digit: u8) -> u8 {
    match digit {
        b'0'..=b'9' => digit - b'0',
        b'a'..=b'f' => digit - b'a' + 10,
        _ => 0,
    }
}

impl fmt::Display for ScsiId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::with_capacity(4 + 2 * ID_BYTES_MAX);
        text.push_str(match self.kind {
            ScsiIdKind::Naa => "naa.",
            ScsiIdKind::Eui => "eui.",
        });
        for byte in self.as_bytes() {
            text.push_str(&format!("{byte:02x}"));
        }
        f.pad(&text)
    }
}

impl fmt::Debug for ScsiId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for ScsiId {
    type Err = ScsiIdError;

    fn from_str(text: &str) -> Result<Self, ScsiIdError> {
        Self::parse(text)
    }
}

impl Serialize for ScsiId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ScsiId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).map_err(de::Error::custom)
    }
}

impl utoipa::PartialSchema for ScsiId {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        utoipa::openapi::ObjectBuilder::new()
            .schema_type(utoipa::openapi::schema::Type::String)
            .description(Some(
                "SCSI ID of a disk: VPD page 0x83, as `naa.<hex>` or `eui.<hex>`",
            ))
            .pattern(Some(
                "^(naa\\.([0-9a-f]{16}|[0-9a-f]{32})|eui\\.([0-9a-f]{16}|[0-9a-f]{24}|[0-9a-f]{32}))$",
            ))
            .examples(["naa.6000c29a71e02b4c9d118e55037faa01"])
            .into()
    }
}

impl utoipa::ToSchema for ScsiId {
    fn name() -> Cow<'static, str> {
        Cow::Borrowed("ScsiId")
    }
}

/// Why the bytes of a VPD page cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum VpdError {
    /// The page is shorter than its own header.
    #[error("page has {found} bytes, its header alone needs {needed}")]
    Short {
        /// Bytes there are.
        found: usize,
        /// Bytes the header needs.
        needed: usize,
    },
    /// The device answered with another page than the one asked for.
    #[error("page code is {found:#04x}, expected {expected:#04x}")]
    PageCode {
        /// Page code in the answer.
        found: u8,
        /// Page code asked for.
        expected: u8,
    },
    /// The page says it is longer than what the device sent.
    #[error("page says it holds {declared} bytes after its header, the device sent {found}")]
    Truncated {
        /// Length in the header.
        declared: usize,
        /// Bytes after the header.
        found: usize,
    },
    /// A designator says it is longer than what is left of the page.
    #[error("designator at offset {offset:#x} says it holds {declared} bytes, the page ends after {found}")]
    Designator {
        /// Where the designator starts in the page, bytes.
        offset: usize,
        /// Length in its header.
        declared: usize,
        /// Bytes left for it.
        found: usize,
    },
}

/// What a designator names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Association {
    /// The logical unit: the disk itself.
    LogicalUnit,
    /// The target port the answer came through.
    TargetPort,
    /// The target device that holds the unit.
    TargetDevice,
    /// The reserved fourth value.
    Reserved,
}

/// The value of a designator, by type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DesignatorValue {
    /// Type 0, or a type this code does not read: never an identity.
    Other {
        /// Designator type, 0 to 15.
        code: u8,
        /// Value as sent.
        bytes: Vec<u8>,
    },
    /// Type 1: T10 vendor identification and free text. Never an identity.
    T10Vendor(String),
    /// Type 2: EUI-64 based identifier.
    Eui(ScsiId),
    /// Type 3: NAA identifier.
    Naa(ScsiId),
    /// Type 8: SCSI name string, UTF-8.
    Name(String),
    /// Type 2 or 3 with a value that is no identifier: wrong length, no such authority, all zeros.
    Invalid(ScsiIdError),
}

/// One designator of page 0x83.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Designator {
    /// What it names.
    pub association: Association,
    /// Its value.
    pub value: DesignatorValue,
}

impl Designator {
    /// The SCSI ID this designator carries for the logical unit, if it carries one.
    #[must_use]
    pub fn unit_id(&self) -> Option<ScsiId> {
        if self.association != Association::LogicalUnit {
            return None;
        }
        match &self.value {
            DesignatorValue::Eui(id) | DesignatorValue::Naa(id) => Some(*id),
            // `Other`, text and invalid values are listed so that a new variant has to decide.
            DesignatorValue::Other { .. }
            | DesignatorValue::T10Vendor(_)
            | DesignatorValue::Name(_)
            | DesignatorValue::Invalid(_) => None,
        }
    }
}

/// The identity and type fields of a standard INQUIRY answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inquiry {
    /// Peripheral device type, 0 for a direct access block device (SPC-4, table 138).
    pub device_type: u8,
    /// Vendor, trimmed.
    pub vendor: String,
    /// Product, trimmed.
    pub model: String,
    /// Product revision, trimmed.
    pub revision: String,
    /// Removable medium bit.
    pub removable: bool,
}

/// Reads the body of a VPD page: checks page code and length, and returns what follows the header.
fn vpd_body(page: &[u8], code: u8) -> Result<&[u8], VpdError> {
    let Some((header, rest)) = page.split_at_checked(VPD_HEADER_SIZE) else {
        return Err(VpdError::Short {
            found: page.len(),
            needed: VPD_HEADER_SIZE,
        });
    };
    if header[1] != code {
        return Err(VpdError::PageCode {
            found: header[1],
            expected: code,
        });
    }
    let declared = usize::from(u16::from_be_bytes([header[2], header[3]]));
    rest.get(..declared).ok_or(VpdError::Truncated {
        declared,
        found: rest.len(),
    })
}

/// Decodes VPD page 0x00: the codes of the pages the device has.
///
/// # Errors
/// [`VpdError`] when the bytes are not that page.
pub fn parse_vpd00(page: &[u8]) -> Result<Vec<u8>, VpdError> {
    vpd_body(page, VPD_SUPPORTED_PAGES).map(<[u8]>::to_vec)
}

/// Decodes VPD page 0x80: the unit serial number, trimmed. `None` when it is blank.
///
/// # Errors
/// [`VpdError`] when the bytes are not that page.
pub fn parse_vpd80(page: &[u8]) -> Result<Option<String>, VpdError> {
    let serial = printable(vpd_body(page, VPD_UNIT_SERIAL)?);
    Ok((!serial.is_empty()).then_some(serial))
}

/// Decodes VPD page 0x83: all designators, in the order of the page.
///
/// # Errors
/// [`VpdError`] when the page is not page 0x83, or one designator runs over its end: such a page is not
/// used at all, since what was cut may have been the name.
pub fn parse_vpd83(page: &[u8]) -> Result<Vec<Designator>, VpdError> {
    let body = vpd_body(page, VPD_DEVICE_ID)?;
    let mut designators = Vec::new();
    let mut at = 0_usize;
    while at < body.len() {
        let offset = VPD_HEADER_SIZE + at;
        let Some(header) = body.get(at..at + DESIGNATOR_HEADER_SIZE) else {
            // Up to three bytes of zero padding at the end are seen in the field; anything else is damage.
            if body[at..].iter().all(|byte| *byte == 0) {
                break;
            }
            return Err(VpdError::Designator {
                offset,
                declared: DESIGNATOR_HEADER_SIZE,
                found: body.len() - at,
            });
        };
        let start = at + DESIGNATOR_HEADER_SIZE;
        let declared = usize::from(header[3]);
        let value = body.get(start..start + declared).ok_or(VpdError::Designator {
            offset,
            declared,
            found: body.len() - start,
        })?;
        designators.push(designator(header[1], value));
        at = start + declared;
    }
    Ok(designators)
}

fn designator(kind: u8, value: &[u8]) -> Designator {
    let association = match (kind >> 4) & 0x3 {
        0 => Association::LogicalUnit,
        1 => Association::TargetPort,
        2 => Association::TargetDevice,
        _ => Association::Reserved,
    };
    let value = match kind & 0xf {
        1 => DesignatorValue::T10Vendor(printable(value)),
        2 => match ScsiId::from_bytes(ScsiIdKind::Eui, value) {
            Ok(id) => DesignatorValue::Eui(id),
            Err(err) => DesignatorValue::Invalid(err),
        },
        3 => match ScsiId::from_bytes(ScsiIdKind::Naa, value) {
            Ok(id) => DesignatorValue::Naa(id),
            Err(err) => DesignatorValue::Invalid(err),
        },
        8 => DesignatorValue::Name(printable(value)),
        code => DesignatorValue::Other {
            code,
            bytes: value.to_vec(),
        },
    };
    Designator { association, value }
}

/// Picks the disk's SCSI ID from its designators; `None` when no designator is one.
///
/// The order is that of the kernel's `designator_prio` (drivers/scsi/scsi_lib.c), so that the result is
/// what sysfs shows as `wwid`: NAA 6, EUI-64 of 16 and of 12 bytes, NAA 5, NAA 2, EUI-64 of 8 bytes, NAA 3;
/// of two with the same rank the later one. Unlike the kernel, name strings and T10 vendor
/// designators never win: they are no registered name of a disk.
#[must_use]
pub fn identity(designators: &[Designator]) -> Option<ScsiId> {
    // `max_by_key` returns the last of several equal elements, as the kernel does.
    designators
        .iter()
        .filter_map(Designator::unit_id)
        .max_by_key(rank)
}

fn rank(id: &ScsiId) -> u8 {
    match (id.kind, id.bytes[0] >> 4, id.len) {
        (ScsiIdKind::Naa, 6, _) => 7,
        (ScsiIdKind::Eui, _, 16) => 6,
        (ScsiIdKind::Eui, _, 12) => 5,
        (ScsiIdKind::Naa, 5, _) => 4,
        (ScsiIdKind::Naa, 2, _) => 3,
        (ScsiIdKind::Eui, _, _) => 2,
        (ScsiIdKind::Naa, _, _) => 1,
    }
}

/// Decodes a standard INQUIRY answer.
///
/// # Errors
/// [`VpdError::Short`] when it is shorter than 36 bytes.
pub fn parse_inquiry(answer: &[u8]) -> Result<Inquiry, VpdError> {
    let Some(head) = answer.get(..INQUIRY_SIZE_MIN) else {
        return Err(VpdError::Short {
            found: answer.len(),
            needed: INQUIRY_SIZE_MIN,
        });
    };
    Ok(Inquiry {
        device_type: head[0] & 0x1f,
        removable: head[1] & 0x80 != 0,
        vendor: printable(&head[8..16]),
        model: printable(&head[16..32]),
        revision: printable(&head[32..36]),
    })
}

/// Text of a device, made safe to show: printable ASCII stays, everything else becomes `?`, then trimmed.
///
/// NUL ends the text, as devices pad with it.
fn printable(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    let text: String = bytes[..end]
        .iter()
        .map(|b| {
            if matches!(b, 0x20..=0x7e) {
                char::from(*b)
            } else {
                '?'
            }
        })
        .collect();
    text.trim().to_owned()
}

/// Entry point of the fuzzer: decodes any bytes as page 0x83 and checks what must hold for every result.
#[doc(hidden)]
pub fn fuzz_vpd83(data: &[u8]) {
    let Ok(designators) = parse_vpd83(data) else {
        return;
    };
    let Some(id) = identity(&designators) else { return };
    assert_eq!(
        ScsiId::parse(&id.to_string()),
        Ok(id),
        "an identity survives its own text"
    );
    assert!(
        designators.iter().any(|d| d.unit_id() == Some(id)),
        "an identity is one of the designators"
    );
    assert!(
        data.windows(id.as_bytes().len())
            .any(|window| window == id.as_bytes()),
        "bytes come from the page"
    );
}

#[cfg(test)]
mod tests;
