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
//! | 64 to 95 | machines and epochs, since version 2 |
//! | 96 to 111 | kept for the relay |
//! | 128 to 255 | kept; a sender sets *ignorable* on what a receiver need not understand |

mod check;
pub mod epoch;
mod refusal;
mod seeding;

use check::{block_mask, bounded, decode_extents, decode_ranges, put_extents, put_ranges, region_offset};
pub use epoch::{
    BeginEpoch, Consistency, EndEpoch, EpochBegun, EpochDurable, EpochExtents, EpochTotals, EpochZeroRanges,
    MachineDisk, MachineOpened, OpenMachine, Tag,
};
pub use refusal::{ErrorCode, Refusal};
pub use seeding::{
    Digests, Extent, Mode, OpenPair, PairOpened, Range, SeedingEnd, SubDigests, WantSubDigests,
};

use crate::codec::{Reader, put_text};
use crate::frame::WireError;
use crate::limits::{DISK_SIZE_MAX, SUB_BLOCK_SIZE, SUB_BLOCKS_PER_BLOCK, TEXT_BYTES_MAX};

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
    /// Target: the whole disk is settled and durable; inside an epoch, that all of it has been received.
    SeedingDone,
    /// Source, first message of a stream that is for epochs: names the machine and all of its disks.
    OpenMachine(OpenMachine),
    /// Target, answer to [`Message::OpenMachine`].
    MachineOpened(MachineOpened),
    /// Source: changes up to a new consistent instant follow.
    BeginEpoch(BeginEpoch),
    /// Target, answer to [`Message::BeginEpoch`].
    EpochBegun(EpochBegun),
    /// Source: everything of the epoch was sent, and this is the instant it leads to.
    EndEpoch(EndEpoch),
    /// Target, answer to [`Message::EndEpoch`]: the epoch survives `kill -9` and power loss, all disks or none.
    EpochDurable(EpochDurable),
    /// Source: the epoch will not be ended; nothing of it is to stay.
    AbandonEpoch,
    /// Target, answer to [`Message::AbandonEpoch`].
    EpochAbandoned,
    /// Source, inside an epoch: content that is known to have changed. The payload is the extents' bytes.
    EpochExtents(EpochExtents),
    /// Source, inside an epoch: ranges that are known to have become zero.
    EpochZeroRanges(EpochZeroRanges),
    /// Target, inside an epoch: everything of the open disk before this offset was received. A new connection of the same
    /// source can go on from here; after `kill -9` of the target the epoch begins anew.
    Received {
        /// Offset in bytes, never smaller than one sent before.
        offset: u64,
    },
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
    pub(super) const OPEN_MACHINE: u8 = 64;
    pub(super) const MACHINE_OPENED: u8 = 65;
    pub(super) const BEGIN_EPOCH: u8 = 66;
    pub(super) const EPOCH_BEGUN: u8 = 67;
    pub(super) const END_EPOCH: u8 = 68;
    pub(super) const EPOCH_DURABLE: u8 = 69;
    pub(super) const ABANDON_EPOCH: u8 = 70;
    pub(super) const EPOCH_ABANDONED: u8 = 71;
    pub(super) const EPOCH_EXTENTS: u8 = 72;
    pub(super) const EPOCH_ZERO_RANGES: u8 = 73;
    pub(super) const RECEIVED: u8 = 74;
}

impl Message {
    /// Whether this version knows the kind.
    pub fn is_known(kind: u8) -> bool {
        matches!(kind, kind::PING..=kind::REFUSED | kind::OPEN_PAIR..=kind::PAIR_OPENED | kind::DIGESTS..=kind::SEEDING_DONE
            | kind::OPEN_MACHINE..=kind::RECEIVED)
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
            Self::OpenMachine(_) => kind::OPEN_MACHINE,
            Self::MachineOpened(_) => kind::MACHINE_OPENED,
            Self::BeginEpoch(_) => kind::BEGIN_EPOCH,
            Self::EpochBegun(_) => kind::EPOCH_BEGUN,
            Self::EndEpoch(_) => kind::END_EPOCH,
            Self::EpochDurable(_) => kind::EPOCH_DURABLE,
            Self::AbandonEpoch => kind::ABANDON_EPOCH,
            Self::EpochAbandoned => kind::EPOCH_ABANDONED,
            Self::EpochExtents(_) => kind::EPOCH_EXTENTS,
            Self::EpochZeroRanges(_) => kind::EPOCH_ZERO_RANGES,
            Self::Received { .. } => kind::RECEIVED,
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
            Self::OpenMachine(_) => "OpenMachine",
            Self::MachineOpened(_) => "MachineOpened",
            Self::BeginEpoch(_) => "BeginEpoch",
            Self::EpochBegun(_) => "EpochBegun",
            Self::EndEpoch(_) => "EndEpoch",
            Self::EpochDurable(_) => "EpochDurable",
            Self::AbandonEpoch => "AbandonEpoch",
            Self::EpochAbandoned => "EpochAbandoned",
            Self::EpochExtents(_) => "EpochExtents",
            Self::EpochZeroRanges(_) => "EpochZeroRanges",
            Self::Received { .. } => "Received",
        }
    }

    /// Bytes of payload that belong to this message.
    pub fn payload_len(&self) -> usize {
        match self {
            Self::Extents(extents) | Self::EpochExtents(EpochExtents { extents, .. }) => {
                extents.iter().map(|extent| extent.len as usize).sum()
            }
            _ => 0,
        }
    }

    pub(crate) fn encode_body(&self, body: &mut Vec<u8>) {
        match self {
            Self::Ping { token } | Self::Pong { token } => body.extend_from_slice(&token.to_le_bytes()),
            Self::Close | Self::SeedingDone | Self::AbandonEpoch | Self::EpochAbandoned => {}
            Self::Refused(refusal) => {
                body.extend_from_slice(&refusal.code.number().to_le_bytes());
                put_text(body, &refusal.text, TEXT_BYTES_MAX);
                put_text(body, &refusal.hint, TEXT_BYTES_MAX);
            }
            Self::OpenPair(open) => open.encode(body),
            Self::PairOpened(opened) => opened.encode(body),
            Self::Digests(digests) => digests.encode(body),
            Self::WantSubDigests(want) => {
                body.extend_from_slice(&want.offset.to_le_bytes());
                body.extend_from_slice(&want.blocks.to_le_bytes());
            }
            Self::SubDigests(sub) => sub.encode(body),
            Self::Extents(extents) => put_extents(body, extents),
            Self::ZeroRanges(ranges) => put_ranges(body, ranges),
            Self::OpenMachine(open) => open.encode(body),
            Self::MachineOpened(opened) => opened.encode(body),
            Self::BeginEpoch(begin) => begin.encode(body),
            Self::EpochBegun(begun) => begun.encode(body),
            Self::EndEpoch(end) => end.encode(body),
            Self::EpochDurable(durable) => durable.encode(body),
            Self::EpochExtents(changed) => {
                body.extend_from_slice(&changed.disk.to_le_bytes());
                put_extents(body, &changed.extents);
            }
            Self::EpochZeroRanges(zeroed) => {
                body.extend_from_slice(&zeroed.disk.to_le_bytes());
                put_ranges(body, &zeroed.ranges);
            }
            Self::RegionDone { offset } | Self::Durable { offset } | Self::Received { offset } => {
                body.extend_from_slice(&offset.to_le_bytes())
            }
            Self::SeedingEnd(end) => {
                body.extend_from_slice(&end.bytes_sent.to_le_bytes());
                body.extend_from_slice(&end.bytes_zeroed.to_le_bytes());
            }
        }
    }

    /// Reads a message from its body. `payload_len` is what the frame announced; only [`Message::Extents`] and
    /// [`Message::EpochExtents`] may have one, and their extents must add up to it.
    ///
    /// # Errors
    /// On an unknown kind, a body that is too short or too long, a value beyond its limit, lists that are out of order
    /// or overlap, and a payload where none belongs.
    pub fn decode(kind: u8, body: &[u8], payload_len: usize) -> Result<Self, WireError> {
        if payload_len != 0 && kind != kind::EXTENTS && kind != kind::EPOCH_EXTENTS {
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
            kind::OPEN_PAIR => Self::OpenPair(seeding::decode_open_pair(&mut reader)?),
            kind::PAIR_OPENED => Self::PairOpened(seeding::decode_pair_opened(&mut reader)?),
            kind::DIGESTS => Self::Digests(seeding::decode_digests(&mut reader)?),
            kind::WANT_SUB_DIGESTS => Self::WantSubDigests(WantSubDigests {
                offset: region_offset(reader.u64("region offset")?)?,
                blocks: block_mask(&mut reader)?,
            }),
            kind::SUB_DIGESTS => Self::SubDigests(seeding::decode_sub_digests(&mut reader)?),
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
            kind::OPEN_MACHINE => Self::OpenMachine(OpenMachine::decode(&mut reader)?),
            kind::MACHINE_OPENED => Self::MachineOpened(MachineOpened::decode(&mut reader)?),
            kind::BEGIN_EPOCH => Self::BeginEpoch(BeginEpoch::decode(&mut reader)?),
            kind::EPOCH_BEGUN => Self::EpochBegun(EpochBegun::decode(&mut reader)?),
            kind::END_EPOCH => Self::EndEpoch(EndEpoch::decode(&mut reader)?),
            kind::EPOCH_DURABLE => Self::EpochDurable(EpochDurable::decode(&mut reader)?),
            kind::ABANDON_EPOCH => Self::AbandonEpoch,
            kind::EPOCH_ABANDONED => Self::EpochAbandoned,
            kind::EPOCH_EXTENTS => Self::EpochExtents(EpochExtents {
                disk: epoch::disk_index(&mut reader)?,
                extents: decode_extents(&mut reader, payload_len)?,
            }),
            kind::EPOCH_ZERO_RANGES => Self::EpochZeroRanges(EpochZeroRanges {
                disk: epoch::disk_index(&mut reader)?,
                ranges: decode_ranges(&mut reader)?,
            }),
            kind::RECEIVED => Self::Received {
                offset: bounded(reader.u64("received offset")?, DISK_SIZE_MAX, "received offset")?,
            },
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

/// Number of sub-blocks in a block of `len` bytes.
pub fn sub_block_count(len: usize) -> usize {
    (len as u64)
        .div_ceil(SUB_BLOCK_SIZE)
        .try_into()
        .unwrap_or(SUB_BLOCKS_PER_BLOCK)
}

#[cfg(test)]
mod tests;
