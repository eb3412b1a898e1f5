//! The messages of registration and renewal, byte by byte.
//!
//! All integers are little-endian. Every message is one frame:
//!
//! ```text
//! offset size
//!      0    4  magic "MTR1"
//!      4    1  kind
//!      5    1  reserved, zero
//!      6    2  length of the body, at most 8192
//!      8    .  body
//!
//! kind  body
//!    1  Start      2 version, 1 role, 96 KE1
//!    2  Challenge  320 KE2
//!    3  Finish     64 KE3, then the sealed application (at least 16 bytes)
//!    4  Issued     the sealed answer
//!    5  Refused    2 code, 2 oldest and 2 newest version spoken, 2 seconds to wait
//!   16  Renew      2 version, certificate request as a block            (over mutual TLS, so not sealed)
//!   17  Renewed    an answer, not sealed
//!
//! application       16 machine id, name as a block, certificate request as a block
//! answer            1 state (1 pending, 2 active), 1 count of CA certificates (1 or 2), each as a block,
//!                   certificate as a block
//! block             2 length, then so many bytes
//! sealed            ciphertext and 16 bytes of tag; ChaCha20-Poly1305 under a key that is used once (seal.rs)
//! ```
//!
//! KE1 to KE3 are OPAQUE's, as RFC 9807 writes them for ristretto255 and SHA-512.
//!
//! Example: `Refused { code: TooManyTries, wait_s: 4 }`
//!
//! ```text
//! 4d 54 52 31  05 00  08 00   27 00  01 00  01 00  04 00
//! ```

use rustls_pki_types::CertificateDer;

use crate::ca::REQUEST_BYTES_MAX;
use crate::code::Code;
use crate::codec::{Malformed, Reader, put_block};
use crate::id::{MachineId, MachineName, NAME_BYTES_MAX};
use crate::leaf::CERTIFICATE_BYTES_MAX;
use crate::opaque::{KE1_SIZE, KE2_SIZE, KE3_SIZE};

/// The version of registration that this build speaks.
///
/// * 1: OPAQUE over ristretto255 and SHA-512, Argon2id with 64 MiB and 3 passes, sealed request and certificates.
pub const VERSION: u16 = 1;

/// Size of a frame's header, in bytes.
pub const HEADER_SIZE: usize = 8;
/// Largest body, in bytes: an answer with three certificates, and room.
pub const BODY_BYTES_MAX: usize = 8192;
/// Most CA certificates in an answer: the one in force and its successor.
pub const CAS_MAX: usize = 2;

const MAGIC: [u8; 4] = *b"MTR1";
const TAG_SIZE: usize = 16;
const _: () = assert!(2 + (CAS_MAX + 1) * (2 + CERTIFICATE_BYTES_MAX) + TAG_SIZE <= BODY_BYTES_MAX);
const _: () =
    assert!(KE3_SIZE + 16 + 2 + NAME_BYTES_MAX + 2 + REQUEST_BYTES_MAX + TAG_SIZE <= BODY_BYTES_MAX);

/// A refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    /// Why.
    pub code: Code,
    /// For how long to wait before the next try, in seconds; 0 when waiting does not help.
    pub wait_s: u16,
}

/// A message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Client to server, first: what it wants to be, and OPAQUE's first message.
    Start {
        /// Version of the client.
        version: u16,
        /// The role's number; which roles there are is not the frame's business.
        role: u8,
        /// OPAQUE.
        ke1: Box<[u8; KE1_SIZE]>,
    },
    /// Server to client: OPAQUE's answer.
    Challenge {
        /// OPAQUE.
        ke2: Box<[u8; KE2_SIZE]>,
    },
    /// Client to server: proof, and what is to be certified.
    Finish {
        /// OPAQUE.
        ke3: Box<[u8; KE3_SIZE]>,
        /// A sealed [`Application`].
        sealed: Vec<u8>,
    },
    /// Server to client, last: the certificates.
    Issued {
        /// A sealed [`Answer`].
        sealed: Vec<u8>,
    },
    /// Either way, last.
    Refused(Refusal),
    /// Client to server over mutual TLS: a new key under the certificate of the connection.
    Renew {
        /// Version of the client.
        version: u16,
        /// Certificate request for the new key.
        request: Vec<u8>,
    },
    /// Server to client: the answer to it.
    Renewed(Answer),
}

impl Message {
    /// What it is called.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Start { .. } => "Start",
            Self::Challenge { .. } => "Challenge",
            Self::Finish { .. } => "Finish",
            Self::Issued { .. } => "Issued",
            Self::Refused(_) => "Refused",
            Self::Renew { .. } => "Renew",
            Self::Renewed(_) => "Renewed",
        }
    }

    fn kind(&self) -> u8 {
        match self {
            Self::Start { .. } => 1,
            Self::Challenge { .. } => 2,
            Self::Finish { .. } => 3,
            Self::Issued { .. } => 4,
            Self::Refused(_) => 5,
            Self::Renew { .. } => 16,
            Self::Renewed(_) => 17,
        }
    }

    /// The whole frame.
    ///
    /// # Panics
    /// When a part is beyond its limit: what this crate builds is not.
    pub fn encode(&self) -> Vec<u8> {
        let mut body = Vec::new();
        match self {
            Self::Start { version, role, ke1 } => {
                body.extend_from_slice(&version.to_le_bytes());
                body.push(*role);
                body.extend_from_slice(&ke1[..]);
            }
            Self::Challenge { ke2 } => body.extend_from_slice(&ke2[..]),
            Self::Finish { ke3, sealed } => {
                body.extend_from_slice(&ke3[..]);
                body.extend_from_slice(sealed);
            }
            Self::Issued { sealed } => body.extend_from_slice(sealed),
            Self::Refused(Refusal { code, wait_s }) => {
                for field in [code.number(), VERSION, VERSION, *wait_s] {
                    body.extend_from_slice(&field.to_le_bytes());
                }
            }
            Self::Renew { version, request } => {
                body.extend_from_slice(&version.to_le_bytes());
                put_block(&mut body, request);
            }
            Self::Renewed(answer) => answer.encode(&mut body),
        }
        assert!(
            body.len() <= BODY_BYTES_MAX,
            "messages are built within their limits"
        );
        let len = u16::try_from(body.len()).expect("bounded above");
        let mut frame = Vec::with_capacity(HEADER_SIZE + body.len());
        frame.extend_from_slice(&MAGIC);
        frame.extend_from_slice(&[self.kind(), 0]);
        frame.extend_from_slice(&len.to_le_bytes());
        frame.append(&mut body);
        frame
    }

    fn decode(kind: u8, body: &[u8]) -> Result<Self, Malformed> {
        let mut fields = Reader::new(body);
        match kind {
            1 => {
                let message = Self::Start {
                    version: fields.u16("version")?,
                    role: fields.u8("role")?,
                    ke1: Box::new(fields.array("KE1")?),
                };
                fields.end()?;
                Ok(message)
            }
            2 => {
                let ke2 = Box::new(fields.array("KE2")?);
                fields.end()?;
                Ok(Self::Challenge { ke2 })
            }
            3 => Ok(Self::Finish {
                ke3: Box::new(fields.array("KE3")?),
                sealed: sealed(fields)?,
            }),
            4 => Ok(Self::Issued {
                sealed: sealed(fields)?,
            }),
            5 => {
                let code = Code::from_number(fields.u16("code")?);
                // Which versions the peer speaks: for a later build that speaks several.
                fields.bytes(4, "versions")?;
                let wait_s = fields.u16("wait")?;
                fields.end()?;
                Ok(Self::Refused(Refusal { code, wait_s }))
            }
            16 => {
                let message = Self::Renew {
                    version: fields.u16("version")?,
                    request: fields.block(REQUEST_BYTES_MAX, "certificate request")?.to_vec(),
                };
                fields.end()?;
                Ok(message)
            }
            17 => Answer::decode(body).map(Self::Renewed),
            _ => Err(Malformed::Meaningless { field: "kind" }),
        }
    }
}

fn sealed(fields: Reader<'_>) -> Result<Vec<u8>, Malformed> {
    let sealed = fields.rest();
    if sealed.len() < TAG_SIZE {
        return Err(Malformed::TooShort {
            field: "sealed part",
            wanted: TAG_SIZE,
            left: sealed.len(),
        });
    }
    Ok(sealed.to_vec())
}

/// What a client asks to be certified. Only read from who knows the passphrase.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Application {
    /// The machine.
    pub id: MachineId,
    /// Its name, for people.
    pub name: MachineName,
    /// Certificate request, not checked yet.
    pub request: Vec<u8>,
}

impl Application {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = self.id.0.to_vec();
        put_block(&mut bytes, self.name.as_str().as_bytes());
        put_block(&mut bytes, &self.request);
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut fields = Reader::new(bytes);
        let id = MachineId(fields.array("machine id")?);
        let name = fields.block(NAME_BYTES_MAX, "machine name")?;
        let name = std::str::from_utf8(name)
            .ok()
            .and_then(|name| MachineName::new(name).ok())
            .ok_or(Malformed::Meaningless {
                field: "machine name",
            })?;
        let request = fields.block(REQUEST_BYTES_MAX, "certificate request")?.to_vec();
        fields.end()?;
        Ok(Self { id, name, request })
    }
}

/// What the server gives: certificates, and whether they admit already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Whether the operator has approved the machine and this key.
    pub approved: bool,
    /// The CAs to trust: the one in force first, then, while it is replaced, its successor.
    pub cas: Vec<CertificateDer<'static>>,
    /// The machine's certificate, signed by the first.
    pub certificate: CertificateDer<'static>,
}

impl Answer {
    pub(crate) fn encode(&self, bytes: &mut Vec<u8>) {
        let count = u8::try_from(self.cas.len()).unwrap_or(u8::MAX);
        assert!(
            (1..=CAS_MAX).contains(&usize::from(count)),
            "one CA, or one and its successor"
        );
        bytes.extend_from_slice(&[if self.approved { 2 } else { 1 }, count]);
        for ca in &self.cas {
            put_block(bytes, ca);
        }
        put_block(bytes, &self.certificate);
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut fields = Reader::new(bytes);
        let approved = match fields.u8("state")? {
            1 => false,
            2 => true,
            _ => return Err(Malformed::Meaningless { field: "state" }),
        };
        let count = usize::from(fields.u8("count of CAs")?);
        if !(1..=CAS_MAX).contains(&count) {
            return Err(Malformed::TooLarge {
                field: "count of CAs",
                found: count,
                max: CAS_MAX,
            });
        }
        let mut certificate = || {
            let der = fields.block(CERTIFICATE_BYTES_MAX, "certificate")?;
            Ok(CertificateDer::from(der.to_vec()))
        };
        let cas = (0..count)
            .map(|_| certificate())
            .collect::<Result<_, Malformed>>()?;
        let certificate = certificate()?;
        fields.end()?;
        Ok(Self {
            approved,
            cas,
            certificate,
        })
    }
}

/// Collects bytes until they make one message. Holds at most one: what comes behind it before it is answered is an
/// error, since both sides wait for each other.
#[derive(Debug, Default)]
pub struct Decoder {
    pending: Vec<u8>,
}

impl Decoder {
    /// Adds bytes as they arrived; the message when it is complete.
    ///
    /// # Errors
    /// As soon as a header is complete and wrong, before its body is waited for.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Option<Message>, Malformed> {
        // Whatever is more than the largest message cannot be good, and is not copied.
        let left = self.pending.len() + bytes.len();
        if left > HEADER_SIZE + BODY_BYTES_MAX {
            return Err(Malformed::TooLarge {
                field: "message",
                found: left,
                max: HEADER_SIZE + BODY_BYTES_MAX,
            });
        }
        self.pending.extend_from_slice(bytes);
        let known = self.pending.len().min(MAGIC.len());
        if self.pending[..known] != MAGIC[..known] {
            return Err(Malformed::Meaningless { field: "magic" });
        }
        let Some((header, body)) = self.pending.split_first_chunk::<HEADER_SIZE>() else {
            return Ok(None);
        };
        if header[5] != 0 {
            return Err(Malformed::Meaningless {
                field: "reserved byte",
            });
        }
        let len = usize::from(u16::from_le_bytes([header[6], header[7]]));
        if len > BODY_BYTES_MAX {
            return Err(Malformed::TooLarge {
                field: "body",
                found: len,
                max: BODY_BYTES_MAX,
            });
        }
        if body.len() < len {
            return Ok(None);
        }
        if body.len() > len {
            return Err(Malformed::TooLong {
                left: body.len() - len,
            });
        }
        let message = Message::decode(header[4], body)?;
        self.pending.clear();
        Ok(Some(message))
    }
}
