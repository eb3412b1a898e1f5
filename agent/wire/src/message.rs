//! The messages: who sends each, when, and what must follow.
//!
//! Bodies are the fields in the order of the structs below, little-endian, without padding; a text is a 16-bit length
//! and UTF-8 bytes; a list is preceded by its count.
//!
//! | kinds | used for |
//! |---|---|
//! | 1 to 15 | the connection: ping, close, refusal |
//! | 16 to 31 | opening pairs |
//! | 32 to 63 | seeding and verifying |
//! | 64 to 95 | kept for epochs |
//! | 96 to 111 | kept for the relay |
//! | 128 to 255 | kept; a sender sets *ignorable* on what a receiver need not understand |

use crate::codec::{Reader, put_text};
use crate::frame::WireError;
use crate::limits::{
    BLOCK_SIZE, BLOCKS_PER_REGION, DISK_SIZE_MAX, EXTENTS_MAX, NAME_BYTES_MAX, PAYLOAD_BYTES_MAX, RANGES_MAX,
    REGION_SIZE, REGION_WINDOW_MAX, SUB_BLOCK_SIZE, SUB_BLOCKS_PER_BLOCK, TEXT_BYTES_MAX,
};

/// BLAKE3, 32 bytes.
pub type Digest = [u8; 32];

/// Size of an [`Extent`] on the wire, in bytes.
pub(crate) const EXTENT_SIZE: usize = 48;

/// A message. Direction and order are in the crate's documentation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Either side, any time: "are you there?" Answered by [`Message::Pong`] with the same token.
    Ping {
        /// Chosen by the sender.
        token: u64,
    },
    /// Answer to [`Message::Ping`].
    Pong {
        /// As received.
        token: u64,
    },
    /// Either side: the orderly end. Nothing follows.
    Close,
    /// Target, at any time: the stream is over, and this is why. Nothing follows on the stream.
    Refused(Refusal),
    /// Source, first message of a stream.
    OpenPair(OpenPair),
    /// Target, answer to [`Message::OpenPair`]; digests follow without being asked for.
    PairOpened(PairOpened),
    /// Target: what a region of its disk holds.
    Digests(Digests),
    /// Source: which blocks of an announced region it wants in detail.
    WantSubDigests(WantSubDigests),
    /// Target, answer to [`Message::WantSubDigests`].
    SubDigests(SubDigests),
    /// Source: content that differs. The payload is the extents' bytes, in their order.
    Extents(Vec<Extent>),
    /// Source: ranges that are zero on the protected disk and are not on the target disk.
    ZeroRanges(Vec<Range>),
    /// Source: nothing more comes for the region at this offset.
    RegionDone {
        /// Offset of the region in bytes.
        offset: u64,
    },
    /// Target: everything before this offset is settled, and survives `kill -9` and power loss.
    Durable {
        /// Offset in bytes, never smaller than one sent before.
        offset: u64,
    },
    /// Source: every region is done. The target flushes and answers [`Message::SeedingDone`].
    SeedingEnd(SeedingEnd),
    /// Target: the whole disk is settled and durable.
    SeedingDone,
}

/// Why a stream or session was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// For programs.
    pub code: ErrorCode,
    /// For people: what was attempted, on what, what was found.
    pub text: String,
    /// For people: what to do next; may be empty.
    pub hint: String,
}

/// What an opened pair is to be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Make the target disk equal to the protected disk.
    Seed,
    /// Compare only; not a byte is written.
    Verify,
}

/// Names the pair and says how the protected disk looks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenPair {
    /// What for.
    pub mode: Mode,
    /// Name of the protected machine.
    pub machine: String,
    /// Name of the protected disk, such as `scsi0:1`.
    pub disk: String,
    /// Size of the protected disk in bytes.
    pub size: u64,
    /// Logical block size of the protected disk in bytes.
    pub logical_block_size: u32,
    /// The seeding that the source could go on with; all zero when there is none.
    pub resume_seeding_id: [u8; 16],
    /// Up to where the target had confirmed that seeding, in bytes.
    pub resume_offset: u64,
    /// The newest generation of the pair that the source knows; 0 when it knows none. A target whose generation is
    /// newer refuses: the source was left behind by a failover.
    pub generation: u64,
}

/// The pair is open and the disk is held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PairOpened {
    /// The seeding this is: the one that was named, when it can be gone on with, or a new one.
    pub seeding_id: [u8; 16],
    /// Where digests will begin, in bytes: a multiple of the region size.
    pub start: u64,
    /// The pair's generation.
    pub generation: u64,
    /// Most regions that may be announced and unsettled at a time.
    pub region_window: u16,
    /// The SCSI ID of the target disk, for people.
    pub scsi_id: String,
}

/// What a region holds: per block either "all zero" or a digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Digests {
    /// Offset of the region in bytes.
    pub offset: u64,
    /// Length of the region in bytes: the region size, or what is left at the end of the disk.
    pub len: u32,
    /// One entry a block: `None` when every byte of it is zero.
    pub blocks: Vec<Option<Digest>>,
}

/// Asks for the sub-digests of some blocks of a region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WantSubDigests {
    /// Offset of the region in bytes.
    pub offset: u64,
    /// Bit n stands for block n of the region.
    pub blocks: u16,
}

/// Digests of the sub-blocks of the blocks that were asked for, in ascending order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubDigests {
    /// Offset of the region in bytes.
    pub offset: u64,
    /// Bit n stands for block n of the region.
    pub blocks: u16,
    /// One digest a sub-block, block after block; the last block of a disk may have fewer.
    pub digests: Vec<Digest>,
}

/// A piece of the disk whose content travels in the payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Offset on the disk in bytes.
    pub offset: u64,
    /// Length in bytes, 1 to 64 KiB, never over the border of a block.
    pub len: u32,
    /// BLAKE3 of the content, made when the source read it.
    pub digest: Digest,
}

/// A range of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// Offset in bytes.
    pub offset: u64,
    /// Length in bytes, at least 1.
    pub len: u64,
}

/// What a seeding or a verification came to: what was sent, or what would have to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SeedingEnd {
    /// Bytes of content that differ; when seeding they were sent.
    pub bytes_sent: u64,
    /// Bytes that are zero on the protected disk and not on the target disk; when seeding they were sent as ranges.
    pub bytes_zeroed: u64,
}

/// Why something was refused. The numbers are part of the protocol: one is never used again for something else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorCode {
    /// No protocol version in common.
    VersionUnsupported,
    /// Bytes that are not this protocol, or a message where it may not come.
    ProtocolViolation,
    /// No pair of this name.
    PairUnknown,
    /// Another source is connected to the pair.
    PairBusy,
    /// The target disk cannot be found, or not without doubt.
    DiskMissing,
    /// The target disk was found and may not be written.
    DiskRefused,
    /// Size or block size do not fit.
    DiskMismatch,
    /// Reading, writing or flushing the target disk failed.
    DiskFailed,
    /// An extent is past the end of the disk.
    OutOfRange,
    /// Content does not match its digest.
    DigestMismatch,
    /// The source's generation is older than the pair's.
    Fenced,
    /// The target ends its work.
    ShuttingDown,
    /// The target has as many sessions as it takes.
    TooManySessions,
    /// A fault of the target itself.
    Internal,
    /// The peer was silent for too long.
    TimedOut,
    /// A code that this version does not know.
    Other(u16),
}

impl ErrorCode {
    /// The number on the wire.
    pub fn number(self) -> u16 {
        match self {
            Self::VersionUnsupported => 1,
            Self::ProtocolViolation => 2,
            Self::PairUnknown => 3,
            Self::PairBusy => 4,
            Self::DiskMissing => 5,
            Self::DiskRefused => 6,
            Self::DiskMismatch => 7,
            Self::DiskFailed => 8,
            Self::OutOfRange => 9,
            Self::DigestMismatch => 10,
            Self::Fenced => 11,
            Self::ShuttingDown => 12,
            Self::TooManySessions => 13,
            Self::Internal => 14,
            Self::TimedOut => 15,
            Self::Other(number) => number,
        }
    }

    /// The code with this number.
    pub fn from_number(number: u16) -> Self {
        match number {
            1 => Self::VersionUnsupported,
            2 => Self::ProtocolViolation,
            3 => Self::PairUnknown,
            4 => Self::PairBusy,
            5 => Self::DiskMissing,
            6 => Self::DiskRefused,
            7 => Self::DiskMismatch,
            8 => Self::DiskFailed,
            9 => Self::OutOfRange,
            10 => Self::DigestMismatch,
            11 => Self::Fenced,
            12 => Self::ShuttingDown,
            13 => Self::TooManySessions,
            14 => Self::Internal,
            15 => Self::TimedOut,
            other => Self::Other(other),
        }
    }

    /// The word for this code in logs and JSON.
    pub fn word(self) -> &'static str {
        match self {
            Self::VersionUnsupported => "version-unsupported",
            Self::ProtocolViolation => "protocol-violation",
            Self::PairUnknown => "pair-unknown",
            Self::PairBusy => "pair-busy",
            Self::DiskMissing => "disk-missing",
            Self::DiskRefused => "disk-refused",
            Self::DiskMismatch => "disk-mismatch",
            Self::DiskFailed => "disk-failed",
            Self::OutOfRange => "out-of-range",
            Self::DigestMismatch => "digest-mismatch",
            Self::Fenced => "fenced",
            Self::ShuttingDown => "shutting-down",
            Self::TooManySessions => "too-many-sessions",
            Self::Internal => "internal",
            Self::TimedOut => "timed-out",
            Self::Other(_) => "other",
        }
    }
}

mod kind {
    pub(super) const PING: u8 = 1;
    pub(super) const PONG: u8 = 2;
    pub(super) const CLOSE: u8 = 3;
    pub(super) const REFUSED: u8 = 4;
    pub(super) const OPEN_PAIR: u8 = 16;
    pub(super) const PAIR_OPENED: u8 = 17;
    pub(super) const DIGESTS: u8 = 32;
    pub(super) const WANT_SUB_DIGESTS: u8 = 33;
    pub(super) const SUB_DIGESTS: u8 = 34;
    pub(super) const EXTENTS: u8 = 35;
    pub(super) const ZERO_RANGES: u8 = 36;
    pub(super) const REGION_DONE: u8 = 37;
    pub(super) const DURABLE: u8 = 38;
    pub(super) const SEEDING_END: u8 = 39;
    pub(super) const SEEDING_DONE: u8 = 40;
}

impl Message {
    /// Whether this version knows the kind.
    pub fn is_known(kind: u8) -> bool {
        matches!(kind, kind::PING..=kind::REFUSED | kind::OPEN_PAIR..=kind::PAIR_OPENED | kind::DIGESTS..=kind::SEEDING_DONE)
    }

    /// The number of this kind of message.
    pub fn kind(&self) -> u8 {
        match self {
            Self::Ping { .. } => kind::PING,
            Self::Pong { .. } => kind::PONG,
            Self::Close => kind::CLOSE,
            Self::Refused(_) => kind::REFUSED,
            Self::OpenPair(_) => kind::OPEN_PAIR,
            Self::PairOpened(_) => kind::PAIR_OPENED,
            Self::Digests(_) => kind::DIGESTS,
            Self::WantSubDigests(_) => kind::WANT_SUB_DIGESTS,
            Self::SubDigests(_) => kind::SUB_DIGESTS,
            Self::Extents(_) => kind::EXTENTS,
            Self::ZeroRanges(_) => kind::ZERO_RANGES,
            Self::RegionDone { .. } => kind::REGION_DONE,
            Self::Durable { .. } => kind::DURABLE,
            Self::SeedingEnd(_) => kind::SEEDING_END,
            Self::SeedingDone => kind::SEEDING_DONE,
        }
    }

    /// The name of this kind of message, for logs and errors.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Ping { .. } => "Ping",
            Self::Pong { .. } => "Pong",
            Self::Close => "Close",
            Self::Refused(_) => "Refused",
            Self::OpenPair(_) => "OpenPair",
            Self::PairOpened(_) => "PairOpened",
            Self::Digests(_) => "Digests",
            Self::WantSubDigests(_) => "WantSubDigests",
            Self::SubDigests(_) => "SubDigests",
            Self::Extents(_) => "Extents",
            Self::ZeroRanges(_) => "ZeroRanges",
            Self::RegionDone { .. } => "RegionDone",
            Self::Durable { .. } => "Durable",
            Self::SeedingEnd(_) => "SeedingEnd",
            Self::SeedingDone => "SeedingDone",
        }
    }

    /// Bytes of payload that belong to this message.
    pub fn payload_len(&self) -> usize {
        match self {
            Self::Extents(extents) => extents.iter().map(|extent| extent.len as usize).sum(),
            _ => 0,
        }
    }

    pub(crate) fn encode_body(&self, body: &mut Vec<u8>) {
        match self {
            Self::Ping { token } | Self::Pong { token } => body.extend_from_slice(&token.to_le_bytes()),
            Self::Close | Self::SeedingDone => {}
            Self::Refused(refusal) => {
                body.extend_from_slice(&refusal.code.number().to_le_bytes());
                put_text(body, &refusal.text, TEXT_BYTES_MAX);
                put_text(body, &refusal.hint, TEXT_BYTES_MAX);
            }
            Self::OpenPair(open) => {
                body.push(match open.mode {
                    Mode::Seed => 1,
                    Mode::Verify => 2,
                });
                put_text(body, &open.machine, NAME_BYTES_MAX);
                put_text(body, &open.disk, NAME_BYTES_MAX);
                body.extend_from_slice(&open.size.to_le_bytes());
                body.extend_from_slice(&open.logical_block_size.to_le_bytes());
                body.extend_from_slice(&open.resume_seeding_id);
                body.extend_from_slice(&open.resume_offset.to_le_bytes());
                body.extend_from_slice(&open.generation.to_le_bytes());
            }
            Self::PairOpened(opened) => {
                body.extend_from_slice(&opened.seeding_id);
                body.extend_from_slice(&opened.start.to_le_bytes());
                body.extend_from_slice(&opened.generation.to_le_bytes());
                body.extend_from_slice(&opened.region_window.to_le_bytes());
                put_text(body, &opened.scsi_id, NAME_BYTES_MAX);
            }
            Self::Digests(digests) => {
                let zero_mask = mask(digests.blocks.iter().map(Option::is_none));
                body.extend_from_slice(&digests.offset.to_le_bytes());
                body.extend_from_slice(&digests.len.to_le_bytes());
                body.extend_from_slice(&zero_mask.to_le_bytes());
                for digest in digests.blocks.iter().flatten() {
                    body.extend_from_slice(digest);
                }
            }
            Self::WantSubDigests(want) => {
                body.extend_from_slice(&want.offset.to_le_bytes());
                body.extend_from_slice(&want.blocks.to_le_bytes());
            }
            Self::SubDigests(sub) => {
                body.extend_from_slice(&sub.offset.to_le_bytes());
                body.extend_from_slice(&sub.blocks.to_le_bytes());
                put_count(body, sub.digests.len());
                for digest in &sub.digests {
                    body.extend_from_slice(digest);
                }
            }
            Self::Extents(extents) => {
                put_count(body, extents.len());
                for extent in extents {
                    body.extend_from_slice(&extent.offset.to_le_bytes());
                    body.extend_from_slice(&extent.len.to_le_bytes());
                    body.extend_from_slice(&[0; 4]);
                    body.extend_from_slice(&extent.digest);
                }
            }
            Self::ZeroRanges(ranges) => {
                put_count(body, ranges.len());
                for range in ranges {
                    body.extend_from_slice(&range.offset.to_le_bytes());
                    body.extend_from_slice(&range.len.to_le_bytes());
                }
            }
            Self::RegionDone { offset } | Self::Durable { offset } => {
                body.extend_from_slice(&offset.to_le_bytes())
            }
            Self::SeedingEnd(end) => {
                body.extend_from_slice(&end.bytes_sent.to_le_bytes());
                body.extend_from_slice(&end.bytes_zeroed.to_le_bytes());
            }
        }
    }

    /// Reads a message from its body. `payload_len` is what the frame announced; only [`Message::Extents`] may have
    /// one, and its extents must add up to it.
    ///
    /// # Errors
    /// On an unknown kind, a body that is too short or too long, a value beyond its limit, lists that are out of order
    /// or overlap, and a payload where none belongs.
    pub fn decode(kind: u8, body: &[u8], payload_len: usize) -> Result<Self, WireError> {
        if payload_len != 0 && kind != kind::EXTENTS {
            return Err(WireError::Contradiction {
                what: "a payload with a message that has none",
            });
        }
        let mut reader = Reader::new(body);
        let message = match kind {
            kind::PING => Self::Ping {
                token: reader.u64("token")?,
            },
            kind::PONG => Self::Pong {
                token: reader.u64("token")?,
            },
            kind::CLOSE => Self::Close,
            kind::REFUSED => Self::Refused(Refusal {
                code: ErrorCode::from_number(reader.u16("code")?),
                text: reader.text(TEXT_BYTES_MAX, "text")?,
                hint: reader.text(TEXT_BYTES_MAX, "hint")?,
            }),
            kind::OPEN_PAIR => Self::OpenPair(decode_open_pair(&mut reader)?),
            kind::PAIR_OPENED => Self::PairOpened(decode_pair_opened(&mut reader)?),
            kind::DIGESTS => Self::Digests(decode_digests(&mut reader)?),
            kind::WANT_SUB_DIGESTS => Self::WantSubDigests(WantSubDigests {
                offset: region_offset(reader.u64("region offset")?)?,
                blocks: block_mask(&mut reader)?,
            }),
            kind::SUB_DIGESTS => Self::SubDigests(decode_sub_digests(&mut reader)?),
            kind::EXTENTS => Self::Extents(decode_extents(&mut reader, payload_len)?),
            kind::ZERO_RANGES => Self::ZeroRanges(decode_ranges(&mut reader)?),
            kind::REGION_DONE => Self::RegionDone {
                offset: region_offset(reader.u64("region offset")?)?,
            },
            kind::DURABLE => Self::Durable {
                offset: bounded(reader.u64("durable offset")?, DISK_SIZE_MAX, "durable offset")?,
            },
            kind::SEEDING_END => Self::SeedingEnd(SeedingEnd {
                bytes_sent: reader.u64("bytes sent")?,
                bytes_zeroed: reader.u64("bytes zeroed")?,
            }),
            kind::SEEDING_DONE => Self::SeedingDone,
            found => {
                return Err(WireError::Unknown {
                    field: "message kind",
                    found: u64::from(found),
                });
            }
        };
        reader.end()?;
        Ok(message)
    }
}

fn decode_open_pair(reader: &mut Reader<'_>) -> Result<OpenPair, WireError> {
    let mode = match reader.u8("mode")? {
        1 => Mode::Seed,
        2 => Mode::Verify,
        found => {
            return Err(WireError::Unknown {
                field: "mode",
                found: u64::from(found),
            });
        }
    };
    Ok(OpenPair {
        mode,
        machine: name(reader, "machine name")?,
        disk: name(reader, "disk name")?,
        size: bounded(reader.u64("disk size")?, DISK_SIZE_MAX, "disk size")?,
        logical_block_size: reader.u32("logical block size")?,
        resume_seeding_id: reader.array("resume seeding id")?,
        resume_offset: bounded(reader.u64("resume offset")?, DISK_SIZE_MAX, "resume offset")?,
        generation: reader.u64("generation")?,
    })
}

fn decode_pair_opened(reader: &mut Reader<'_>) -> Result<PairOpened, WireError> {
    let seeding_id = reader.array("seeding id")?;
    let start = region_offset(reader.u64("start")?)?;
    let generation = reader.u64("generation")?;
    let region_window = reader.u16("region window")?;
    if !(1..=REGION_WINDOW_MAX).contains(&region_window) {
        return Err(WireError::TooLarge {
            field: "region window",
            found: u64::from(region_window),
            max: u64::from(REGION_WINDOW_MAX),
        });
    }
    Ok(PairOpened {
        seeding_id,
        start,
        generation,
        region_window,
        scsi_id: name(reader, "SCSI ID")?,
    })
}

fn decode_digests(reader: &mut Reader<'_>) -> Result<Digests, WireError> {
    let offset = region_offset(reader.u64("region offset")?)?;
    let len = reader.u32("region length")?;
    if len == 0 || u64::from(len) > REGION_SIZE {
        return Err(WireError::TooLarge {
            field: "region length",
            found: u64::from(len),
            max: REGION_SIZE,
        });
    }
    let zero_mask = reader.u16("zero mask")?;
    let block_count = usize::try_from(u64::from(len).div_ceil(BLOCK_SIZE)).unwrap_or(BLOCKS_PER_REGION);
    if block_count < BLOCKS_PER_REGION && zero_mask >> block_count != 0 {
        return Err(WireError::Contradiction {
            what: "a zero mask with bits beyond the region",
        });
    }
    let mut blocks = Vec::with_capacity(block_count);
    for index in 0..block_count {
        blocks.push(if zero_mask & (1 << index) == 0 {
            Some(reader.array("block digest")?)
        } else {
            None
        });
    }
    Ok(Digests { offset, len, blocks })
}

fn decode_sub_digests(reader: &mut Reader<'_>) -> Result<SubDigests, WireError> {
    let offset = region_offset(reader.u64("region offset")?)?;
    let blocks = block_mask(reader)?;
    let count = count(
        reader,
        BLOCKS_PER_REGION * SUB_BLOCKS_PER_BLOCK,
        "sub-digest count",
    )?;
    let mut digests = Vec::with_capacity(count);
    for _ in 0..count {
        digests.push(reader.array("sub-digest")?);
    }
    Ok(SubDigests {
        offset,
        blocks,
        digests,
    })
}

fn decode_extents(reader: &mut Reader<'_>, payload_len: usize) -> Result<Vec<Extent>, WireError> {
    let count = count(reader, EXTENTS_MAX, "extent count")?;
    let mut extents = Vec::with_capacity(count);
    let mut end_of_last = 0;
    let mut total = 0_u64;
    for _ in 0..count {
        let offset = bounded(reader.u64("extent offset")?, DISK_SIZE_MAX, "extent offset")?;
        let len = reader.u32("extent length")?;
        let reserved = reader.u32("extent flags")?;
        if reserved != 0 {
            return Err(WireError::Unknown {
                field: "extent flags",
                found: u64::from(reserved),
            });
        }
        if len == 0 || u64::from(len) > BLOCK_SIZE - offset % BLOCK_SIZE {
            return Err(WireError::Contradiction {
                what: "an extent that is empty or crosses the border of a block",
            });
        }
        if offset < end_of_last {
            return Err(WireError::Contradiction {
                what: "extents that overlap or are out of order",
            });
        }
        end_of_last = offset + u64::from(len);
        total += u64::from(len);
        extents.push(Extent {
            offset,
            len,
            digest: reader.array("extent digest")?,
        });
    }
    if total != payload_len as u64 || total > PAYLOAD_BYTES_MAX as u64 {
        return Err(WireError::Contradiction {
            what: "extents that do not add up to the payload",
        });
    }
    Ok(extents)
}

fn decode_ranges(reader: &mut Reader<'_>) -> Result<Vec<Range>, WireError> {
    let count = count(reader, RANGES_MAX, "range count")?;
    let mut ranges = Vec::with_capacity(count);
    let mut end_of_last = 0;
    for _ in 0..count {
        let offset = bounded(reader.u64("range offset")?, DISK_SIZE_MAX, "range offset")?;
        let len = bounded(reader.u64("range length")?, DISK_SIZE_MAX, "range length")?;
        if len == 0 || offset < end_of_last {
            return Err(WireError::Contradiction {
                what: "ranges that are empty, overlap or are out of order",
            });
        }
        end_of_last = offset + len;
        ranges.push(Range { offset, len });
    }
    Ok(ranges)
}

fn name(reader: &mut Reader<'_>, field: &'static str) -> Result<String, WireError> {
    let text = reader.text(NAME_BYTES_MAX, field)?;
    if text.is_empty() || text.chars().any(char::is_control) {
        return Err(WireError::NotText { field });
    }
    Ok(text)
}

fn region_offset(offset: u64) -> Result<u64, WireError> {
    if !offset.is_multiple_of(REGION_SIZE) {
        return Err(WireError::Contradiction {
            what: "a region that does not begin at a multiple of the region size",
        });
    }
    bounded(offset, DISK_SIZE_MAX, "region offset")
}

fn block_mask(reader: &mut Reader<'_>) -> Result<u16, WireError> {
    match reader.u16("block mask")? {
        0 => Err(WireError::Contradiction {
            what: "a block mask that names no block",
        }),
        blocks => Ok(blocks),
    }
}

fn bounded(value: u64, max: u64, field: &'static str) -> Result<u64, WireError> {
    if value <= max {
        Ok(value)
    } else {
        Err(WireError::TooLarge {
            field,
            found: value,
            max,
        })
    }
}

fn count(reader: &mut Reader<'_>, max: usize, field: &'static str) -> Result<usize, WireError> {
    let found = u64::from(reader.u32(field)?);
    match usize::try_from(bounded(found, max as u64, field)?) {
        Ok(0) | Err(_) => Err(WireError::Contradiction {
            what: "a list with nothing in it",
        }),
        Ok(count) => Ok(count),
    }
}

fn put_count(body: &mut Vec<u8>, count: usize) {
    let count = u32::try_from(count).unwrap_or(u32::MAX);
    body.extend_from_slice(&count.to_le_bytes());
}

/// A bit for each block, lowest first.
fn mask(bits: impl Iterator<Item = bool>) -> u16 {
    bits.take(BLOCKS_PER_REGION)
        .enumerate()
        .fold(0, |mask, (index, bit)| mask | u16::from(bit) << index)
}

/// Number of sub-blocks in a block of `len` bytes.
pub fn sub_block_count(len: usize) -> usize {
    (len as u64)
        .div_ceil(SUB_BLOCK_SIZE)
        .try_into()
        .unwrap_or(SUB_BLOCKS_PER_BLOCK)
}

#[cfg(test)]
mod tests;
