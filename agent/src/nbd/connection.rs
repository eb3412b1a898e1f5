//! The protocol of one connection, without I/O.
//!
//! All integers of NBD are big-endian. What a client may make us hold is bounded: an option by [`OPTION_BYTES_MAX`], a
//! write by [`REQUEST_BYTES_MAX`], options by [`OPTIONS_MAX`].

/// Longest option of a client, bytes: names are at most 4096.
pub const OPTION_BYTES_MAX: u32 = 8 * 1024;
/// Most options before a client chooses an export.
pub const OPTIONS_MAX: u32 = 64;
/// Largest read or write, bytes; what the protocol asks every server to take.
pub const REQUEST_BYTES_MAX: u32 = 32 << 20;

const MAGIC: u64 = 0x4e42_444d_4147_4943; // "NBDMAGIC"
const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054; // "IHAVEOPT"
const REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;

/// Fixed newstyle, and no padding after the export.
const HANDSHAKE_FLAGS: u16 = 0b11;

const OPT_EXPORT_NAME: u32 = 1;
const OPT_ABORT: u32 = 2;
const OPT_LIST: u32 = 3;
const OPT_INFO: u32 = 6;
const OPT_GO: u32 = 7;

const REP_ACK: u32 = 1;
const REP_SERVER: u32 = 2;
const REP_INFO: u32 = 3;
const REP_ERR_UNSUP: u32 = (1 << 31) + 1;
const REP_ERR_INVALID: u32 = (1 << 31) + 3;
const REP_ERR_UNKNOWN: u32 = (1 << 31) + 6;

const INFO_EXPORT: u16 = 0;
const INFO_BLOCK_SIZE: u16 = 3;

const FLAG_HAS_FLAGS: u16 = 1;
const FLAG_READ_ONLY: u16 = 1 << 1;
const FLAG_SEND_FLUSH: u16 = 1 << 2;
const FLAG_CAN_MULTI_CONN: u16 = 1 << 8;

const CMD_READ: u16 = 0;
const CMD_WRITE: u16 = 1;
const CMD_DISC: u16 = 2;
const CMD_FLUSH: u16 = 3;

/// What a request came to, in the numbers of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Errno {
    /// The export is read-only.
    Perm = 1,
    /// It could not be read or written.
    Io = 5,
    /// The request makes no sense.
    Invalid = 22,
    /// A write is past the end.
    NoSpace = 28,
    /// The request is larger than is taken.
    Overflow = 75,
    /// The request is of a kind that is not served.
    NotSupported = 95,
}

/// What can be had: a name and a size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// Name of the export.
    pub name: String,
    /// Size in bytes.
    pub size: u64,
    /// Whether it takes writes.
    pub writable: bool,
}

/// What the edge has to do.
#[derive(Debug, PartialEq, Eq)]
pub enum Action {
    /// Send bytes.
    Send(Vec<u8>),
    /// Read, and answer with [`Connection::done`].
    Read {
        /// Index of the export.
        export: usize,
        /// The client's name for the request.
        cookie: u64,
        /// Offset in bytes.
        offset: u64,
        /// Length in bytes.
        len: u32,
    },
    /// Write, and answer with [`Connection::done`].
    Write {
        /// Index of the export.
        export: usize,
        /// The client's name for the request.
        cookie: u64,
        /// Offset in bytes.
        offset: u64,
        /// The content.
        content: Vec<u8>,
    },
    /// The connection is over.
    Close,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    ClientFlags,
    Options,
    Transmission { export: usize },
    Over,
}

/// The server's side of one connection.
#[derive(Debug)]
pub struct Connection {
    offers: Vec<Offer>,
    phase: Phase,
    no_zeroes: bool,
    options: u32,
    pending: Vec<u8>,
}

impl Connection {
    /// A connection at which these can be had, and the bytes that greet the client. An empty name asks for the first.
    pub fn new(offers: Vec<Offer>) -> (Self, Vec<u8>) {
        let mut greeting = MAGIC.to_be_bytes().to_vec();
        greeting.extend_from_slice(&OPTION_MAGIC.to_be_bytes());
        greeting.extend_from_slice(&HANDSHAKE_FLAGS.to_be_bytes());
        let connection = Self {
            offers,
            phase: Phase::ClientFlags,
            no_zeroes: false,
            options: 0,
            pending: Vec::new(),
        };
        (connection, greeting)
    }

    /// Takes bytes of the client and says what is to be done, in order. After [`Action::Close`] nothing follows.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<Action> {
        let mut actions = Vec::new();
        if self.phase == Phase::Over {
            return actions;
        }
        self.pending.extend_from_slice(bytes);
        let mut taken = 0;
        loop {
            let pending = std::mem::take(&mut self.pending);
            let step = self.step(&pending[taken..], &mut actions);
            self.pending = pending;
            match step {
                Step::Took(count) => taken += count,
                Step::NeedsMore => break,
                Step::Broken => {
                    // A client that does not speak the protocol gets no answer that it could misread.
                    self.phase = Phase::Over;
                    actions.push(Action::Close);
                }
            }
            if self.phase == Phase::Over {
                break;
            }
        }
        self.pending.drain(..taken);
        actions
    }

    /// The bytes that answer a request.
    pub fn done(cookie: u64, outcome: Result<&[u8], Errno>) -> Vec<u8> {
        let (error, content) = match outcome {
            Ok(content) => (0, content),
            Err(errno) => (errno as u32, [].as_slice()),
        };
        let mut reply = Vec::with_capacity(16 + content.len());
        reply.extend_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
        reply.extend_from_slice(&error.to_be_bytes());
        reply.extend_from_slice(&cookie.to_be_bytes());
        reply.extend_from_slice(content);
        reply
    }

    fn step(&mut self, bytes: &[u8], actions: &mut Vec<Action>) -> Step {
        match self.phase {
            Phase::ClientFlags => {
                let Some(flags) = u32_at(bytes, 0) else {
                    return Step::NeedsMore;
                };
                if flags & !u32::from(HANDSHAKE_FLAGS) != 0 || flags & 1 == 0 {
                    return Step::Broken;
                }
                self.no_zeroes = flags & 2 != 0;
                self.phase = Phase::Options;
                Step::Took(4)
            }
            Phase::Options => self.option(bytes, actions),
            Phase::Transmission { export } => self.request(export, bytes, actions),
            Phase::Over => Step::NeedsMore,
        }
    }

    fn option(&mut self, bytes: &[u8], actions: &mut Vec<Action>) -> Step {
        let (Some(magic), Some(option), Some(len)) = (u64_at(bytes, 0), u32_at(bytes, 8), u32_at(bytes, 12))
        else {
            return Step::NeedsMore;
        };
        self.options += 1;
        if magic != OPTION_MAGIC || len > OPTION_BYTES_MAX || self.options > OPTIONS_MAX {
            return Step::Broken;
        }
        let end = 16 + len as usize;
        let Some(data) = bytes.get(16..end) else {
            self.options -= 1;
            return Step::NeedsMore;
        };
        match option {
            OPT_EXPORT_NAME => {
                let Some(export) = self.find(data) else {
                    // This option has no way to say no.
                    return Step::Broken;
                };
                let offer = &self.offers[export];
                let mut reply = offer.size.to_be_bytes().to_vec();
                reply.extend_from_slice(&flags_of(offer).to_be_bytes());
                if !self.no_zeroes {
                    reply.resize(reply.len() + 124, 0);
                }
                actions.push(Action::Send(reply));
                self.phase = Phase::Transmission { export };
            }
            OPT_ABORT => {
                actions.push(reply(option, REP_ACK, &[]));
                actions.push(Action::Close);
                self.phase = Phase::Over;
            }
            OPT_LIST if data.is_empty() => {
                for offer in &self.offers {
                    let len = u32::try_from(offer.name.len()).unwrap_or(0);
                    let mut data = len.to_be_bytes().to_vec();
                    data.extend_from_slice(offer.name.as_bytes());
                    actions.push(reply(option, REP_SERVER, &data));
                }
                actions.push(reply(option, REP_ACK, &[]));
            }
            OPT_LIST => actions.push(reply(option, REP_ERR_INVALID, &[])),
            OPT_INFO | OPT_GO => self.info(option, data, actions),
            _ => actions.push(reply(option, REP_ERR_UNSUP, &[])),
        }
        Step::Took(end)
    }

    fn info(&mut self, option: u32, data: &[u8], actions: &mut Vec<Action>) {
        let name = u32_at(data, 0)
            .and_then(|len| usize::try_from(len).ok())
            .and_then(|len| data.get(4..4_usize.checked_add(len)?));
        let Some(name) = name else {
            actions.push(reply(option, REP_ERR_INVALID, &[]));
            return;
        };
        let rest = &data[4 + name.len()..];
        let wanted = rest
            .get(..2)
            .map(|count| u16::from_be_bytes([count[0], count[1]]));
        if wanted.map(|count| 2 + 2 * usize::from(count)) != Some(rest.len()) {
            actions.push(reply(option, REP_ERR_INVALID, &[]));
            return;
        }
        let Some(export) = self.find(name) else {
            actions.push(reply(
                option,
                REP_ERR_UNKNOWN,
                b"no disk of this name is exported here",
            ));
            return;
        };
        let offer = &self.offers[export];
        let mut info = INFO_EXPORT.to_be_bytes().to_vec();
        info.extend_from_slice(&offer.size.to_be_bytes());
        info.extend_from_slice(&flags_of(offer).to_be_bytes());
        actions.push(reply(option, REP_INFO, &info));
        if rest[2..]
            .chunks_exact(2)
            .any(|wanted| wanted == INFO_BLOCK_SIZE.to_be_bytes())
        {
            let mut info = INFO_BLOCK_SIZE.to_be_bytes().to_vec();
            for size in [1, 4096, REQUEST_BYTES_MAX] {
                info.extend_from_slice(&size.to_be_bytes());
            }
            actions.push(reply(option, REP_INFO, &info));
        }
        actions.push(reply(option, REP_ACK, &[]));
        if option == OPT_GO {
            self.phase = Phase::Transmission { export };
        }
    }

    fn request(&mut self, export: usize, bytes: &[u8], actions: &mut Vec<Action>) -> Step {
        let Some(header) = bytes.get(..28) else {
            return Step::NeedsMore;
        };
        let (Some(magic), Some(cookie), Some(offset), Some(len)) = (
            u32_at(header, 0),
            u64_at(header, 8),
            u64_at(header, 16),
            u32_at(header, 24),
        ) else {
            return Step::NeedsMore;
        };
        let flags = u16::from_be_bytes([header[4], header[5]]);
        let command = u16::from_be_bytes([header[6], header[7]]);
        if magic != REQUEST_MAGIC {
            return Step::Broken;
        }
        let offer = &self.offers[export];
        let inside = offset
            .checked_add(u64::from(len))
            .is_some_and(|end| end <= offer.size);
        let refuse = |errno| Action::Send(Self::done(cookie, Err(errno)));
        let mut end = 28;
        match command {
            CMD_DISC => {
                self.phase = Phase::Over;
                actions.push(Action::Close);
            }
            CMD_WRITE => {
                if len > REQUEST_BYTES_MAX {
                    // Its content would have to be read to get to the next request.
                    return Step::Broken;
                }
                end += len as usize;
                let Some(content) = bytes.get(28..end) else {
                    return Step::NeedsMore;
                };
                actions.push(if !offer.writable {
                    refuse(Errno::Perm)
                } else if flags != 0 || len == 0 {
                    refuse(Errno::Invalid)
                } else if !inside {
                    refuse(Errno::NoSpace)
                } else {
                    Action::Write {
                        export,
                        cookie,
                        offset,
                        content: content.to_vec(),
                    }
                });
            }
            CMD_READ => actions.push(if len > REQUEST_BYTES_MAX {
                refuse(Errno::Overflow)
            } else if flags != 0 || len == 0 || !inside {
                refuse(Errno::Invalid)
            } else {
                Action::Read {
                    export,
                    cookie,
                    offset,
                    len,
                }
            }),
            // Writes are answered after they are done, and what is written is thrown away at the end: nothing to flush.
            CMD_FLUSH => actions.push(Action::Send(Self::done(cookie, Ok(&[])))),
            _ => actions.push(refuse(Errno::NotSupported)),
        }
        Step::Took(end)
    }

    /// The export of this name; the empty name is the first.
    fn find(&self, name: &[u8]) -> Option<usize> {
        if name.is_empty() && !self.offers.is_empty() {
            return Some(0);
        }
        self.offers.iter().position(|offer| offer.name.as_bytes() == name)
    }
}

enum Step {
    Took(usize),
    NeedsMore,
    Broken,
}

fn flags_of(offer: &Offer) -> u16 {
    // Several connections see the same: reads of a point never change, and writes go to one overlay.
    let flags = FLAG_HAS_FLAGS | FLAG_SEND_FLUSH | FLAG_CAN_MULTI_CONN;
    if offer.writable {
        flags
    } else {
        flags | FLAG_READ_ONLY
    }
}

fn reply(option: u32, kind: u32, data: &[u8]) -> Action {
    let mut bytes = REPLY_MAGIC.to_be_bytes().to_vec();
    bytes.extend_from_slice(&option.to_be_bytes());
    bytes.extend_from_slice(&kind.to_be_bytes());
    bytes.extend_from_slice(&u32::try_from(data.len()).unwrap_or(0).to_be_bytes());
    bytes.extend_from_slice(data);
    Action::Send(bytes)
}

fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    bytes
        .get(offset..)?
        .first_chunk()
        .map(|field| u32::from_be_bytes(*field))
}

fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    bytes
        .get(offset..)?
        .first_chunk()
        .map(|field| u64::from_be_bytes(*field))
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};

    use super::*;

    fn connection() -> Connection {
        let offer = |name: &str, writable| Offer {
            name: name.into(),
            size: 8192,
            writable,
        };
        Connection::new(vec![offer("scsi0:0", false), offer("scsi0:1", true)]).0
    }

    fn option(number: u32, data: &[u8]) -> Vec<u8> {
        let mut bytes = OPTION_MAGIC.to_be_bytes().to_vec();
        bytes.extend_from_slice(&number.to_be_bytes());
        bytes.extend_from_slice(&u32::try_from(data.len()).unwrap().to_be_bytes());
        bytes.extend_from_slice(data);
        bytes
    }

    fn go(name: &str) -> Vec<u8> {
        let mut data = u32::try_from(name.len()).unwrap().to_be_bytes().to_vec();
        data.extend_from_slice(name.as_bytes());
        data.extend_from_slice(&[0, 0]);
        option(OPT_GO, &data)
    }

    fn request(command: u16, flags: u16, offset: u64, len: u32, content: &[u8]) -> Vec<u8> {
        let mut bytes = REQUEST_MAGIC.to_be_bytes().to_vec();
        bytes.extend_from_slice(&flags.to_be_bytes());
        bytes.extend_from_slice(&command.to_be_bytes());
        bytes.extend_from_slice(&7_u64.to_be_bytes());
        bytes.extend_from_slice(&offset.to_be_bytes());
        bytes.extend_from_slice(&len.to_be_bytes());
        bytes.extend_from_slice(content);
        bytes
    }

    fn open(name: &str) -> Connection {
        let mut connection = connection();
        assert!(connection.push(&[0, 0, 0, 3]).is_empty());
        let actions = connection.push(&go(name));
        assert_eq!(actions.last(), Some(&reply(OPT_GO, REP_ACK, &[])), "{actions:?}");
        connection
    }

    #[test]
    fn requests_are_answered_or_refused_by_number() {
        let refused = |errno| vec![Action::Send(Connection::done(7, Err(errno)))];
        let rows = [
            (
                "scsi0:0",
                request(CMD_WRITE, 0, 0, 512, &[1; 512]),
                refused(Errno::Perm),
            ),
            (
                "scsi0:1",
                request(CMD_WRITE, 0, 8192, 512, &[1; 512]),
                refused(Errno::NoSpace),
            ),
            (
                "scsi0:1",
                request(CMD_WRITE, 0, u64::MAX, 2, &[1; 2]),
                refused(Errno::NoSpace),
            ),
            (
                "scsi0:0",
                request(CMD_READ, 0, 8191, 2, &[]),
                refused(Errno::Invalid),
            ),
            (
                "scsi0:0",
                request(CMD_READ, 0, 0, 0, &[]),
                refused(Errno::Invalid),
            ),
            (
                "scsi0:0",
                request(CMD_READ, 0, u64::MAX, u32::MAX, &[]),
                refused(Errno::Overflow),
            ),
            (
                "scsi0:0",
                request(CMD_READ, 9, 0, 1, &[]),
                refused(Errno::Invalid),
            ),
            ("scsi0:0", request(99, 0, 0, 1, &[]), refused(Errno::NotSupported)),
            (
                "scsi0:0",
                request(CMD_FLUSH, 0, 0, 0, &[]),
                vec![Action::Send(Connection::done(7, Ok(&[])))],
            ),
            ("scsi0:0", request(CMD_DISC, 0, 0, 0, &[]), vec![Action::Close]),
            (
                "scsi0:1",
                request(CMD_WRITE, 0, 0, u32::MAX, &[]),
                vec![Action::Close],
            ),
            (
                "",
                request(CMD_READ, 0, 1, 8191, &[]),
                vec![Action::Read {
                    export: 0,
                    cookie: 7,
                    offset: 1,
                    len: 8191,
                }],
            ),
            (
                "scsi0:1",
                request(CMD_WRITE, 0, 3, 2, &[8, 9]),
                vec![Action::Write {
                    export: 1,
                    cookie: 7,
                    offset: 3,
                    content: vec![8, 9],
                }],
            ),
        ];
        for (name, bytes, expected) in rows {
            assert_eq!(open(name).push(&bytes), expected, "{bytes:?}");
        }
    }

    #[test]
    fn options_that_lie_are_refused_and_a_foreign_protocol_is_left() {
        let mut long_name = 100_u32.to_be_bytes().to_vec();
        long_name.extend_from_slice(b"abc");
        for data in [
            long_name,
            vec![],
            vec![0, 0, 0, 0],
            vec![0, 0, 0, 0, 0, 9],
            vec![255; 8],
        ] {
            let mut connection = connection();
            connection.push(&[0, 0, 0, 3]);
            let actions = connection.push(&option(OPT_GO, &data));
            assert_eq!(actions, [reply(OPT_GO, REP_ERR_INVALID, &[])], "{data:?}");
        }
        let mut connection = connection();
        connection.push(&[0, 0, 0, 3]);
        let actions = connection.push(&go("scsi9:9"));
        let [Action::Send(bytes)] = &actions[..] else {
            panic!("{actions:?}")
        };
        assert_eq!(u32_at(bytes, 12), Some(REP_ERR_UNKNOWN));
        assert_eq!(
            connection.push(&option(5, &[])),
            [reply(5, REP_ERR_UNSUP, &[])],
            "no TLS here"
        );
        assert_eq!(connection.push(b"GET / HTTP/1.1\r\n\r\n"), [Action::Close]);
        assert!(connection.push(&go("")).is_empty(), "nothing follows the end");
    }

    #[test]
    fn a_client_that_only_asks_is_bounded() {
        let mut connection = connection();
        connection.push(&[0, 0, 0, 3]);
        let mut closed = false;
        for _ in 0..=OPTIONS_MAX {
            closed = connection.push(&option(OPT_LIST, &[])).contains(&Action::Close);
        }
        assert!(closed);
        let mut connection = self::connection();
        connection.push(&[0, 0, 0, 3]);
        let mut bytes = option(OPT_GO, &[]);
        bytes[12..16].copy_from_slice(&u32::MAX.to_be_bytes());
        assert_eq!(connection.push(&bytes), [Action::Close]);
    }

    proptest! {
        #[test]
        fn pieces_make_no_difference(piece in 1_usize..40, content in vec(any::<u8>(), 1..600)) {
            let mut bytes = vec![0, 0, 0, 3];
            bytes.extend(option(OPT_LIST, &[]));
            bytes.extend(go("scsi0:1"));
            let len = u32::try_from(content.len()).unwrap();
            bytes.extend(request(CMD_WRITE, 0, 5, len, &content));
            bytes.extend(request(CMD_READ, 0, 5, len, &[]));
            bytes.extend(request(CMD_DISC, 0, 0, 0, &[]));
            let whole = connection().push(&bytes);
            let mut pieces = connection();
            let in_pieces: Vec<Action> = bytes.chunks(piece).flat_map(|piece| pieces.push(piece)).collect();
            prop_assert_eq!(&whole, &in_pieces);
            let written = Action::Write { export: 1, cookie: 7, offset: 5, content };
            prop_assert!(whole.contains(&written));
        }

        #[test]
        fn any_bytes_are_met_without_panic(bytes in vec(any::<u8>(), 0..400), opened in any::<bool>()) {
            let mut connection = if opened { open("scsi0:1") } else { connection() };
            for action in connection.push(&bytes) {
                if let Action::Read { offset, len, .. } = action {
                    prop_assert!(offset + u64::from(len) <= 8192);
                }
            }
        }
    }
}
