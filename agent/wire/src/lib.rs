//! The replication protocol between source, relay and target, without I/O.
//!
//! This crate turns bytes into messages and messages into bytes. It opens no socket, reads no clock and spawns
//! nothing: the edges in `mt-agent` feed it, and so do the simulator, the fuzzer and the tests.
//!
//! # A session, from the first byte
//!
//! ```text
//! source                                   target
//!   | Hello (64 bytes, frozen)        ------> |   hello.rs
//!   | <------        HelloReply (64 bytes)    |   version chosen, or refused with a code
//!   | OpenPair                        ------> |   which pair, how large, seed or verify, where to go on
//!   | <------                    PairOpened   |   or Refused, with code, text and hint
//!   | <------                       Digests   |   of a region (1 MiB) that the target has read
//!   | WantSubDigests                  ------> |   for blocks (64 KiB) that differ
//!   | <------                    SubDigests   |   of their sub-blocks (4 KiB)
//!   | Extents + payload               ------> |   what differs, each extent with its digest
//!   | ZeroRanges                      ------> |   what is zero here and is not there
//!   | RegionDone                      ------> |   nothing more comes for this region
//!   | <------                       Durable   |   everything before this offset survives power loss
//!   | SeedingEnd                      ------> |
//!   | <------                   SeedingDone   |   after the last flush
//!   | Close                           ------> |
//! ```
//!
//! Since version 2 a connection may be for epochs instead. The disks of the machine are gone over one after the other by
//! the same exchange, with the newest state that the target holds of them, be it on the disk or still in its log:
//!
//! ```text
//! source                                   target
//!   | OpenMachine                     ------> |   all disks of a machine; held from here on
//!   | <------                 MachineOpened   |
//!   | BeginEpoch                      ------> |   the one that was cut, or a new one
//!   | <------                    EpochBegun   |
//!   | OpenPair, mode Epoch            ------> |   one disk of it, as above from PairOpened to SeedingDone, but with
//!   | <------                      Received   |   Received in place of Durable: half an epoch is never durable
//!   |    ... the next disk                    |
//!   | EpochExtents + payload          ------> |   where changes were tracked: no comparing, any disk, any order
//!   | EpochZeroRanges                 ------> |
//!   | EndEpoch                        ------> |   the instant: kind, time, name, tags, totals
//!   | <------                  EpochDurable   |   all disks of it or none survive power loss from here on
//!   | BeginEpoch, or Close            ------> |   AbandonEpoch before EndEpoch drops the epoch
//! ```
//!
//! # How later versions fit in
//!
//! * The two hello messages never change. They carry a range of versions and 64 feature bits, so a peer that
//!   knows more can offer it and one that knows less can refuse it in words.
//! * Every frame names a *stream*. Stream 0 is the connection itself; pairs and machines are opened on stream 1
//!   only, more streams need nothing but a higher number.
//! * Kinds are grouped ([`message`]): 64 to 95 are for epochs, 96 to 111 are kept for a relay. A frame whose kind is not
//!   known is refused, unless its sender set the *ignorable* flag; then it is skipped, body and payload.
//! * A message that gains a field does so in a new version. A body with bytes left over is refused: silence about a
//!   field that the sender thought important would be worse than a clear error.
//! * A relay forwards frames as they are. Payload digests are made when the source reads its disk and checked when
//!   the target writes, so that nothing on the way has to be trusted.

#![forbid(unsafe_code)]

mod codec;
pub mod decoder;
pub mod frame;
pub mod fuzz;
pub mod hello;
pub mod limits;
pub mod message;
pub mod version;

pub use decoder::{Decoder, Frame};
pub use frame::{FrameHeader, WireError};
pub use hello::{Hello, HelloReply, Role};
pub use message::{
    BeginEpoch, Consistency, Digest, Digests, EndEpoch, EpochBegun, EpochDurable, EpochExtents, EpochTotals,
    EpochZeroRanges, ErrorCode, Extent, MachineDisk, MachineOpened, Message, Mode, OpenMachine, OpenPair,
    PairOpened, Range, Refusal, SeedingEnd, SubDigests, Tag, WantSubDigests,
};
