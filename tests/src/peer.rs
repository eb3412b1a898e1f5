//! Peers that say what they are told to, byte by byte: a source for a real target, a target for a real source.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use mt_wire::limits::HELLO_SIZE;
use mt_wire::{Decoder, Frame, Hello, HelloReply, Message, Mode, OpenPair, Role, frame};

/// How long a peer waits for the other end before the test fails.
const PATIENCE: Duration = Duration::from_secs(60);

/// The stream that pairs are opened on.
pub const PAIR_STREAM: u16 = 1;

/// A connection of any kind.
pub trait Duplex: Read + Write + Send {}

impl<T: Read + Write + Send> Duplex for T {}

/// One end of a connection.
pub struct Peer {
    /// What is spoken on: the socket itself, or TLS on it.
    socket: Box<dyn Duplex>,
    below: TcpStream,
    decoder: Decoder,
    sequence: u64,
}

impl Peer {
    /// Connects, and says nothing yet.
    pub fn connect(address: SocketAddr) -> Self {
        Self::over(TcpStream::connect(address).expect("the target listens"))
    }

    /// Accepts one connection.
    pub fn accept(listener: &TcpListener) -> Self {
        Self::over(listener.accept().expect("a source connects").0)
    }

    fn over(socket: TcpStream) -> Self {
        let below = socket.try_clone().expect("a socket has a second handle");
        Self::on(Box::new(socket), below)
    }

    /// A peer that speaks on a stream above the socket `below`.
    pub fn on(socket: Box<dyn Duplex>, below: TcpStream) -> Self {
        below
            .set_read_timeout(Some(PATIENCE))
            .expect("a socket takes a timeout");
        below.set_nodelay(true).expect("a socket takes options");
        Self {
            socket,
            below,
            decoder: Decoder::new(),
            sequence: 1,
        }
    }

    /// Sends bytes as they are. A connection that the other end has closed already is no failure of the test.
    pub fn send_bytes(&mut self, bytes: &[u8]) {
        match self.socket.write_all(bytes) {
            Err(error) if !matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => {
                panic!("cannot send: {error}")
            }
            _ => {}
        }
    }

    /// Sends a message with its payload, in sequence.
    pub fn send(&mut self, message: &Message, payload: &[u8]) {
        let mut bytes = frame::encode(message, PAIR_STREAM, self.sequence);
        bytes.extend_from_slice(payload);
        self.sequence += 1;
        self.send_bytes(&bytes);
    }

    /// Sends a message on a stream of one's own choice, in sequence.
    pub fn send_on(&mut self, stream: u16, message: &Message) {
        let bytes = frame::encode(message, stream, self.sequence);
        self.sequence += 1;
        self.send_bytes(&bytes);
    }

    /// Ends the connection the hard way: the other end gets a reset, and what it has not read is gone.
    pub fn reset(self) {
        let hard = nix::libc::linger {
            l_onoff: 1,
            l_linger: 0,
        };
        nix::sys::socket::setsockopt(&self.below, nix::sys::socket::sockopt::Linger, &hard)
            .expect("a socket takes options");
    }

    /// Sends some bytes; whether the other end still takes them.
    pub fn still_takes(&mut self, bytes: &[u8]) -> bool {
        self.socket
            .write_all(bytes)
            .and_then(|()| self.socket.flush())
            .is_ok()
    }

    /// The number of the next frame.
    pub fn next_sequence(&mut self) -> u64 {
        self.sequence += 1;
        self.sequence - 1
    }

    /// Says hello as a source of the versions given, and reads the answer.
    pub fn hello(&mut self, version_min: u16, version_max: u16) -> HelloReply {
        let hello = Hello {
            version_min,
            version_max,
            role: Role::Source,
            features: 0,
            session_id: [7; 16],
            agent_version: "test".to_owned(),
        };
        self.send_bytes(&hello.encode());
        let mut bytes = [0; HELLO_SIZE];
        self.socket
            .read_exact(&mut bytes)
            .expect("the target answers a hello");
        HelloReply::decode(&bytes).expect("the answer to a hello can be read")
    }

    /// Reads the hello of a source and answers it.
    pub fn welcome(&mut self, reply: impl FnOnce(&Hello) -> HelloReply) -> Hello {
        let mut bytes = [0; HELLO_SIZE];
        self.socket.read_exact(&mut bytes).expect("a source says hello");
        let hello = Hello::decode(&bytes).expect("a hello can be read");
        self.send_bytes(&reply(&hello).encode());
        hello
    }

    /// Says hello and opens a pair for seeding; answers what the target answered.
    pub fn open(address: SocketAddr, machine: &str, disk: &str, size: u64) -> (Self, Message) {
        let mut peer = Self::connect(address);
        let reply = peer.hello(1, 1);
        assert_eq!(reply.outcome, Ok(1), "the target speaks version 1");
        peer.send(&open_message(machine, disk, size), &[]);
        let message = peer.next_of(|message| matches!(message, Message::PairOpened(_) | Message::Refused(_)));
        (peer, message.expect("the target answers"))
    }

    /// The next frame; `None` when the other end has closed the connection.
    pub fn next_frame(&mut self) -> Option<Frame> {
        let mut bytes = vec![0; 64 * 1024];
        loop {
            if let Some(frame) = self
                .decoder
                .next_frame()
                .expect("frames of the other end can be read")
            {
                return Some(frame);
            }
            match self.socket.read(&mut bytes) {
                Ok(0) => return None,
                Ok(count) => self.decoder.push(&bytes[..count]),
                Err(error) if is_over(&error) => return None,
                Err(error) => panic!("waited in vain for a frame: {error}"),
            }
        }
    }

    /// The next message of a kind; others before it are passed over. `None` when the connection ended.
    pub fn next_of(&mut self, wanted: impl Fn(&Message) -> bool) -> Option<Message> {
        while let Some(frame) = self.next_frame() {
            if wanted(&frame.message) {
                return Some(frame.message);
            }
        }
        None
    }

    /// Reads until the other end closes; answers the refusal, if it sent one.
    pub fn refusal(&mut self) -> Option<mt_wire::Refusal> {
        match self.next_of(|message| matches!(message, Message::Refused(_))) {
            Some(Message::Refused(refusal)) => Some(refusal),
            _ => None,
        }
    }

    /// Reads whatever comes until the other end closes; frames are not looked at.
    pub fn drain(&mut self) -> usize {
        let mut bytes = vec![0; 64 * 1024];
        let mut total = 0;
        loop {
            match self.socket.read(&mut bytes) {
                Ok(0) => return total,
                Ok(count) => total += count,
                Err(error) if is_over(&error) => return total,
                Err(error) => panic!("the other end did not close: {error}"),
            }
        }
    }

    /// Ends the sending side, so that the other end sees the end of the stream.
    pub fn finish_sending(&self) {
        let _ = self.below.shutdown(std::net::Shutdown::Write);
    }
}

/// Whether the other end has closed: TLS sends what it still has before it reads, and then meets a broken pipe.
fn is_over(error: &std::io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::UnexpectedEof
    )
}

/// The message that opens a pair for seeding.
pub fn open_message(machine: &str, disk: &str, size: u64) -> Message {
    Message::OpenPair(OpenPair {
        mode: Mode::Seed,
        machine: machine.to_owned(),
        disk: disk.to_owned(),
        size,
        logical_block_size: 512,
        resume_seeding_id: [0; 16],
        resume_offset: 0,
        generation: 0,
    })
}
