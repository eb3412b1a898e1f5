//! Names of machines and keys.

use std::fmt;
use std::str::FromStr;

use rand_core::{OsRng, RngCore};
use ring::digest::{SHA256, digest};

/// Longest name of a machine, in bytes.
pub const NAME_BYTES_MAX: usize = 128;

/// What a machine is to the appliance. The number is the one on the wire, the word the one in its certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// The agent on a protected machine.
    Source,
    /// A process server between source and target.
    Relay,
    /// Another appliance.
    Target,
    /// The appliance itself, on its own ports. Never given to who registers.
    Server,
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 4] = [Self::Source, Self::Relay, Self::Target, Self::Server];

    /// The number on the wire and in files.
    pub fn number(self) -> u8 {
        match self {
            Self::Source => 1,
            Self::Relay => 2,
            Self::Target => 3,
            Self::Server => 4,
        }
    }

    /// The role with this number.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.number() == number)
    }

    /// The word for it, as in certificates and in text.
    pub fn word(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Relay => "relay",
            Self::Target => "target",
            Self::Server => "server",
        }
    }

    /// The role of this word.
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.word() == word)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// Why a text is not an id, a fingerprint or a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IdError {
    /// Not the right number of hexadecimal digits.
    #[error("it is not {digits} hexadecimal digits")]
    NotHex {
        /// How many there must be.
        digits: usize,
    },
    /// A name with nothing in it.
    #[error("the machine name is empty")]
    NameEmpty,
    /// A name that is too long.
    #[error("the machine name is longer than {NAME_BYTES_MAX} bytes")]
    NameTooLong,
    /// A character that could be mistaken for something else in a log, a path or a table.
    #[error("the machine name may only hold visible ASCII characters other than \"/\"")]
    NameCharacter,
}

/// A machine, whatever it is called and whatever its address is: 128 random bits, made once on the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MachineId(pub [u8; 16]);

impl MachineId {
    /// A new one.
    pub fn random() -> Self {
        let mut id = [0; 16];
        OsRng.fill_bytes(&mut id);
        Self(id)
    }
}

impl fmt::Display for MachineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(f, &self.0)
    }
}

impl FromStr for MachineId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        parse_hex(text).map(Self)
    }
}

/// SHA-256 of a public key as certificates hold it (SubjectPublicKeyInfo, DER). Says which key, not whose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Fingerprint(pub [u8; 32]);

impl Fingerprint {
    /// Of a SubjectPublicKeyInfo in DER.
    pub fn of_spki(der: &[u8]) -> Self {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(digest(&SHA256, der).as_ref());
        Self(bytes)
    }
}

/// `sha256:` and 64 hexadecimal digits.
impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sha256:")?;
        write_hex(f, &self.0)
    }
}

/// Reads what [`Display`](fmt::Display) writes, and what people make of it: upper case, no prefix, colons or spaces
/// between digits. All 64 digits must be there: a shortened fingerprint can be forged.
impl FromStr for Fingerprint {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let text = text.trim();
        let digits = match text.split_at_checked(7) {
            Some((prefix, digits)) if prefix.eq_ignore_ascii_case("sha256:") => digits,
            _ => text,
        };
        // A digit and the colon or space behind it: nothing longer is worth a look.
        if digits.len() > 3 * 64 {
            return Err(IdError::NotHex { digits: 64 });
        }
        let digits: String = digits
            .chars()
            .filter(|character| !matches!(character, ':' | ' ' | '-'))
            .collect();
        parse_hex(&digits).map(Self)
    }
}

/// What a machine is called, for people. Not unique, never a path, never trusted.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MachineName(String);

impl MachineName {
    /// A name of this text.
    ///
    /// # Errors
    /// See [`IdError`].
    pub fn new(text: &str) -> Result<Self, IdError> {
        if text.is_empty() {
            return Err(IdError::NameEmpty);
        }
        if text.len() > NAME_BYTES_MAX {
            return Err(IdError::NameTooLong);
        }
        if !text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/') {
            return Err(IdError::NameCharacter);
        }
        Ok(Self(text.to_owned()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for MachineName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn write_hex(f: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

fn parse_hex<const N: usize>(text: &str) -> Result<[u8; N], IdError> {
    let wrong = IdError::NotHex { digits: 2 * N };
    if text.len() != 2 * N {
        return Err(wrong);
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
        for digit in pair {
            let value = char::from(*digit).to_digit(16).ok_or(wrong)?;
            *byte = *byte << 4 | u8::try_from(value).map_err(|_| wrong)?;
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{any, prop_assert_eq, proptest};

    #[test]
    fn fingerprints_are_read_as_people_write_them() {
        let fingerprint = Fingerprint::of_spki(b"key");
        let text = fingerprint.to_string();
        let digits = text.strip_prefix("sha256:").unwrap();
        let colons = digits
            .as_bytes()
            .chunks(2)
            .map(|pair| std::str::from_utf8(pair).unwrap().to_uppercase())
            .collect::<Vec<_>>()
            .join(":");
        for text in [
            &text,
            digits,
            &text.to_uppercase(),
            &colons,
            &format!(" {text}\n"),
        ] {
            assert_eq!(text.parse::<Fingerprint>(), Ok(fingerprint), "{text}");
        }
        for wrong in [
            "",
            "sha256:",
            &digits[..62],
            &format!("{digits}0"),
            &"f".repeat(1 << 20),
        ] {
            assert!(wrong.parse::<Fingerprint>().is_err(), "{:.80}", wrong);
        }
    }

    #[test]
    fn hostile_names_are_refused() {
        for name in [
            "",
            "../../etc",
            "a\nb",
            "\x1b[2J",
            "a b",
            "db\u{e4}",
            &"x".repeat(4096),
        ] {
            assert!(MachineName::new(name).is_err(), "{name:.40?}");
        }
        assert_eq!(MachineName::new("db01.example").unwrap().as_str(), "db01.example");
    }

    proptest! {
        #[test]
        fn ids_round_trip(bytes in any::<[u8; 16]>()) {
            prop_assert_eq!(MachineId(bytes).to_string().parse::<MachineId>().unwrap(), MachineId(bytes));
        }

        #[test]
        fn no_text_panics(text in ".{0,200}") {
            let _ = text.parse::<Fingerprint>();
            let _ = text.parse::<MachineId>();
            let _ = MachineName::new(&text);
        }
    }
}
