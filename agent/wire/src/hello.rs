//! The first 64 bytes in each direction. Frozen: they can never change, since a peer of any version must be able to
//! read them and to say in words why it refuses.
//!
//! Integers are little-endian. Reserved bytes are zero when sent and ignored when read.
//!
//! ```text
//! Hello, from whoever connects
//!   offset size
//!        0    8  magic  "MTGT" 0d 0a 1a 0a   (line ends and ^Z, so that a text-mode relay shows itself)
//!        8    2  size of this message: 64
//!       10    2  oldest protocol version spoken
//!       12    2  newest protocol version spoken
//!       14    1  role: 1 source, 2 relay, 3 target
//!       15    1  reserved
//!       16    8  features offered, one bit each; none are assigned in version 1
//!       24   16  session id, random; names this connection in both logs
//!       40   16  agent version, ASCII, padded with zeros
//!       56    4  reserved
//!       60    4  CRC-32C of bytes 0 to 59
//!
//! HelloReply, from whoever was connected to
//!        0    8  magic  "MTGA" 0d 0a 1a 0a
//!        8    2  size of this message: 64
//!       10    2  oldest protocol version spoken
//!       12    2  newest protocol version spoken
//!       14    2  version chosen; 0 when refused
//!       16    8  features accepted: a subset of those offered
//!       24   16  session id, as received
//!       40    2  refusal code, 0 when accepted (message::ErrorCode)
//!       42   14  agent version, ASCII, padded with zeros
//!       56    4  reserved
//!       60    4  CRC-32C of bytes 0 to 59
//! ```

use crate::frame::WireError;
use crate::limits::HELLO_SIZE;
use crate::message::ErrorCode;

const HELLO_MAGIC: [u8; 8] = *b"MTGT\r\n\x1a\n";
const REPLY_MAGIC: [u8; 8] = *b"MTGA\r\n\x1a\n";
const CRC_OFFSET: usize = 60;

/// What a peer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The agent on a protected machine.
    Source,
    /// A process server between source and target.
    Relay,
    /// The appliance.
    Target,
}

impl Role {
    fn from_number(number: u8) -> Result<Self, WireError> {
        match number {
            1 => Ok(Self::Source),
            2 => Ok(Self::Relay),
            3 => Ok(Self::Target),
            found => Err(WireError::Unknown {
                field: "role",
                found: u64::from(found),
            }),
        }
    }

    fn number(self) -> u8 {
        match self {
            Self::Source => 1,
            Self::Relay => 2,
            Self::Target => 3,
        }
    }
}

/// The first message of whoever connects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// Oldest protocol version the sender speaks.
    pub version_min: u16,
    /// Newest protocol version the sender speaks.
    pub version_max: u16,
    /// What the sender is.
    pub role: Role,
    /// Features offered, one bit each.
    pub features: u64,
    /// Random name of this connection.
    pub session_id: [u8; 16],
    /// Version of the sender's program, for people; at most 16 bytes are sent.
    pub agent_version: String,
}

/// The answer to a [`Hello`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HelloReply {
    /// Oldest protocol version the sender speaks.
    pub version_min: u16,
    /// Newest protocol version the sender speaks.
    pub version_max: u16,
    /// The version chosen, or why there will be no session.
    pub outcome: Result<u16, ErrorCode>,
    /// Features accepted.
    pub features: u64,
    /// The session id of the hello.
    pub session_id: [u8; 16],
    /// Version of the sender's program, for people; at most 14 bytes are sent.
    pub agent_version: String,
}

impl Hello {
    /// The 64 bytes that are sent.
    pub fn encode(&self) -> [u8; HELLO_SIZE] {
        let mut bytes = [0; HELLO_SIZE];
        bytes[0..8].copy_from_slice(&HELLO_MAGIC);
        put_size(&mut bytes);
        bytes[10..12].copy_from_slice(&self.version_min.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.version_max.to_le_bytes());
        bytes[14] = self.role.number();
        bytes[16..24].copy_from_slice(&self.features.to_le_bytes());
        bytes[24..40].copy_from_slice(&self.session_id);
        put_ascii(&mut bytes[40..56], &self.agent_version);
        seal(&mut bytes);
        bytes
    }

    /// Reads a hello.
    ///
    /// # Errors
    /// When the bytes are not a hello at all, are damaged, or name a role that is not known. The range of versions is
    /// *not* judged here: the answer to a foreign version is a reply, not silence.
    pub fn decode(bytes: &[u8; HELLO_SIZE]) -> Result<Self, WireError> {
        check(bytes, &HELLO_MAGIC)?;
        Ok(Self {
            version_min: u16_at(bytes, 10),
            version_max: u16_at(bytes, 12),
            role: Role::from_number(bytes[14])?,
            features: u64_at(bytes, 16),
            session_id: id_at(bytes),
            agent_version: ascii(&bytes[40..56]),
        })
    }
}

impl HelloReply {
    /// The 64 bytes that are sent.
    pub fn encode(&self) -> [u8; HELLO_SIZE] {
        let mut bytes = [0; HELLO_SIZE];
        bytes[0..8].copy_from_slice(&REPLY_MAGIC);
        put_size(&mut bytes);
        bytes[10..12].copy_from_slice(&self.version_min.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.version_max.to_le_bytes());
        let (version, code) = match self.outcome {
            Ok(version) => (version, 0),
            Err(code) => (0, code.number()),
        };
        bytes[14..16].copy_from_slice(&version.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.features.to_le_bytes());
        bytes[24..40].copy_from_slice(&self.session_id);
        bytes[40..42].copy_from_slice(&code.to_le_bytes());
        put_ascii(&mut bytes[42..56], &self.agent_version);
        seal(&mut bytes);
        bytes
    }

    /// Reads a reply.
    ///
    /// # Errors
    /// When the bytes are not a reply at all, are damaged, or accept nothing and refuse nothing.
    pub fn decode(bytes: &[u8; HELLO_SIZE]) -> Result<Self, WireError> {
        check(bytes, &REPLY_MAGIC)?;
        let version = u16_at(bytes, 14);
        let code = u16_at(bytes, 40);
        let outcome = match (version, code) {
            (0, 0) => {
                return Err(WireError::Unknown {
                    field: "hello outcome",
                    found: 0,
                });
            }
            (version, 0) => Ok(version),
            (_, code) => Err(ErrorCode::from_number(code)),
        };
        Ok(Self {
            version_min: u16_at(bytes, 10),
            version_max: u16_at(bytes, 12),
            outcome,
            features: u64_at(bytes, 16),
            session_id: id_at(bytes),
            agent_version: ascii(&bytes[42..56]),
        })
    }
}

fn put_size(bytes: &mut [u8; HELLO_SIZE]) {
    bytes[8..10].copy_from_slice(&64_u16.to_le_bytes());
}

/// Fills in the checksum.
pub(crate) fn seal(bytes: &mut [u8; HELLO_SIZE]) {
    let crc = crc32c::crc32c(&bytes[..CRC_OFFSET]);
    bytes[CRC_OFFSET..].copy_from_slice(&crc.to_le_bytes());
}

fn check(bytes: &[u8; HELLO_SIZE], magic: &[u8; 8]) -> Result<(), WireError> {
    if bytes[0..8] != magic[..] {
        return Err(WireError::NotOurProtocol {
            found: [bytes[0], bytes[1], bytes[2], bytes[3]],
        });
    }
    let size = u16_at(bytes, 8);
    if usize::from(size) != HELLO_SIZE {
        return Err(WireError::TooLarge {
            field: "hello size",
            found: u64::from(size),
            max: 64,
        });
    }
    let expected = crc32c::crc32c(&bytes[..CRC_OFFSET]);
    let found = u32::from_le_bytes([bytes[60], bytes[61], bytes[62], bytes[63]]);
    if found != expected {
        return Err(WireError::Checksum {
            part: "hello",
            found,
            expected,
        });
    }
    Ok(())
}

fn u16_at(bytes: &[u8; HELLO_SIZE], offset: usize) -> u16 {
    u16::from_le_bytes([bytes[offset], bytes[offset + 1]])
}

fn u64_at(bytes: &[u8; HELLO_SIZE], offset: usize) -> u64 {
    let mut field = [0; 8];
    field.copy_from_slice(&bytes[offset..offset + 8]);
    u64::from_le_bytes(field)
}

fn id_at(bytes: &[u8; HELLO_SIZE]) -> [u8; 16] {
    let mut id = [0; 16];
    id.copy_from_slice(&bytes[24..40]);
    id
}

fn put_ascii(field: &mut [u8], text: &str) {
    for (place, byte) in field.iter_mut().zip(text.bytes().filter(u8::is_ascii_graphic)) {
        *place = byte;
    }
}

/// The printable part of a padded field. Anything else a peer put there is dropped: it will be shown to people.
fn ascii(field: &[u8]) -> String {
    field
        .iter()
        .take_while(|byte| **byte != 0)
        .filter(|byte| byte.is_ascii_graphic())
        .map(|byte| char::from(*byte))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};

    fn hello() -> Hello {
        Hello {
            version_min: 1,
            version_max: 2,
            role: Role::Source,
            features: 0x8000_0000_0000_0005,
            session_id: *b"0123456789abcdef",
            agent_version: "0.1.0".into(),
        }
    }

    fn reply(outcome: Result<u16, ErrorCode>) -> HelloReply {
        HelloReply {
            version_min: 1,
            version_max: 1,
            outcome,
            features: 1,
            session_id: *b"0123456789abcdef",
            agent_version: "0.1.0".into(),
        }
    }

    /// These bytes are what deployed agents send and expect. They may never change: a change here is not a test
    /// to be mended but a break with every peer in the field.
    #[test]
    fn hello_bytes_are_frozen() {
        let mut expected = Vec::new();
        expected.extend_from_slice(b"MTGT\r\n\x1a\n");
        expected.extend_from_slice(&[0x40, 0x00, 0x01, 0x00, 0x02, 0x00, 0x01, 0x00]);
        expected.extend_from_slice(&[0x05, 0, 0, 0, 0, 0, 0, 0x80]);
        expected.extend_from_slice(b"0123456789abcdef");
        expected.extend_from_slice(b"0.1.0\0\0\0\0\0\0\0\0\0\0\0");
        expected.extend_from_slice(&[0, 0, 0, 0]);
        expected.extend_from_slice(&HELLO_CRC);
        assert_eq!(hello().encode().as_slice(), expected.as_slice());
    }

    /// As above, for the answer.
    #[test]
    fn hello_reply_bytes_are_frozen() {
        let mut expected = Vec::new();
        expected.extend_from_slice(b"MTGA\r\n\x1a\n");
        expected.extend_from_slice(&[0x40, 0x00, 0x01, 0x00, 0x01, 0x00, 0x01, 0x00]);
        expected.extend_from_slice(&[0x01, 0, 0, 0, 0, 0, 0, 0]);
        expected.extend_from_slice(b"0123456789abcdef");
        expected.extend_from_slice(&[0, 0]);
        expected.extend_from_slice(b"0.1.0\0\0\0\0\0\0\0\0\0");
        expected.extend_from_slice(&[0, 0, 0, 0]);
        expected.extend_from_slice(&REPLY_CRC);
        assert_eq!(reply(Ok(1)).encode().as_slice(), expected.as_slice());
    }

    const HELLO_CRC: [u8; 4] = [0x53, 0xca, 0x6d, 0xd5];
    const REPLY_CRC: [u8; 4] = [0xa5, 0x94, 0xad, 0x76];

    #[test]
    fn refusal_survives_the_round_trip() {
        let refused = reply(Err(ErrorCode::VersionUnsupported));
        assert_eq!(HelloReply::decode(&refused.encode()).unwrap(), refused);
    }

    #[test]
    fn another_protocol_is_named_as_such() {
        let mut bytes = [0; HELLO_SIZE];
        bytes[..16].copy_from_slice(b"GET / HTTP/1.1\r\n");
        assert_eq!(
            Hello::decode(&bytes),
            Err(WireError::NotOurProtocol { found: *b"GET " })
        );
    }

    proptest! {
        #[test]
        fn any_flipped_bit_is_noticed(bit in 0_usize..HELLO_SIZE * 8) {
            let mut bytes = hello().encode();
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(Hello::decode(&bytes).is_err());
            let mut bytes = reply(Ok(1)).encode();
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(HelloReply::decode(&bytes).is_err());
        }

        #[test]
        fn hello_round_trips(min in any::<u16>(), max in any::<u16>(), features in any::<u64>(), session_id in any::<[u8; 16]>()) {
            let hello = Hello { version_min: min, version_max: max, features, session_id, ..hello() };
            prop_assert_eq!(Hello::decode(&hello.encode()).unwrap(), hello);
        }
    }
}
