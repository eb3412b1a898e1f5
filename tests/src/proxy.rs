//! A TCP proxy between source and target that counts every byte and can hold, cut or damage the stream at an exact
//! place. What it counts is the measure of "how little travels": neither side's own account is asked.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use crate::agent::PATIENCE;

/// What happens when so many bytes went from source to target, over all connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// Byte `at` and those after it wait until [`Proxy::release`].
    HoldAt(u64),
    /// The connection ends before byte `at`; later ones pass.
    CutAt(u64),
    /// The lowest bit of byte `at` is turned over.
    FlipAt(u64),
}

#[derive(Debug)]
struct State {
    to_target: u64,
    to_source: u64,
    fault: Fault,
    /// Whether byte `at` of a hold has arrived.
    held: bool,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    target: SocketAddr,
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The proxy; its threads end with the process.
#[derive(Debug)]
pub struct Proxy {
    shared: Arc<Shared>,
    address: SocketAddr,
}

impl Proxy {
    /// A proxy in front of `target`.
    pub fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("there are free ports");
        let address = listener.local_addr().expect("a listener has an address");
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                to_target: 0,
                to_source: 0,
                fault: Fault::None,
                held: false,
            }),
            changed: Condvar::new(),
            target,
        });
        let served = Arc::clone(&shared);
        thread::spawn(move || {
            for source in listener.incoming().flatten() {
                // A target that is down is met by the source as a connection that ends.
                if let Ok(target) = TcpStream::connect(served.target) {
                    serve(&served, source, target);
                }
            }
        });
        Self { shared, address }
    }

    /// Where the source has to connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Arms a fault; places count from the first byte of the proxy's life.
    pub fn set_fault(&self, fault: Fault) {
        let mut state = self.shared.lock();
        state.fault = fault;
        state.held = false;
        drop(state);
        self.shared.changed.notify_all();
    }

    /// Waits until the byte that is to be held has arrived.
    ///
    /// Answers false when it did not arrive: `is_over` said that nothing more will come.
    pub fn wait_held(&self, mut is_over: impl FnMut() -> bool) -> bool {
        let begin = std::time::Instant::now();
        let mut state = self.shared.lock();
        while !state.held {
            if is_over() {
                return false;
            }
            assert!(begin.elapsed() < PATIENCE, "the place to hold at was not reached");
            let waited = self.shared.changed.wait_timeout(state, Duration::from_millis(5));
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// Lets held bytes go on.
    pub fn release(&self) {
        self.set_fault(Fault::None);
    }

    /// Bytes that went to the target so far.
    pub fn to_target(&self) -> u64 {
        self.shared.lock().to_target
    }

    /// Bytes that went to the source so far.
    pub fn to_source(&self) -> u64 {
        self.shared.lock().to_source
    }
}

fn serve(shared: &Arc<Shared>, source: TcpStream, target: TcpStream) {
    let clone = |socket: &TcpStream| socket.try_clone().expect("sockets can be cloned");
    let _ = source.set_nodelay(true);
    let _ = target.set_nodelay(true);
    let (source_reads, target_writes) = (clone(&source), clone(&target));
    let up = Arc::clone(shared);
    thread::spawn(move || {
        pass_up(&up, &source_reads, &target_writes);
        let _ = target_writes.shutdown(Shutdown::Write);
    });
    let down = Arc::clone(shared);
    thread::spawn(move || {
        let mut bytes = vec![0; 64 * 1024];
        let (mut from, mut to) = (&target, &source);
        while let Ok(count @ 1..) = from.read(&mut bytes) {
            down.lock().to_source += count as u64;
            if to.write_all(&bytes[..count]).is_err() {
                break;
            }
        }
        let _ = source.shutdown(Shutdown::Both);
        let _ = target.shutdown(Shutdown::Both);
        down.changed.notify_all();
    });
}

fn pass_up(shared: &Shared, mut source: &TcpStream, mut target: &TcpStream) {
    let mut bytes = vec![0; 64 * 1024];
    while let Ok(count @ 1..) = source.read(&mut bytes) {
        let mut begin = 0;
        while begin < count {
            let (pass, cut) = admit(shared, &mut bytes[begin..count], source);
            if target.write_all(&bytes[begin..begin + pass]).is_err() {
                let _ = source.shutdown(Shutdown::Both);
                return;
            }
            begin += pass;
            if cut {
                let _ = source.shutdown(Shutdown::Both);
                let _ = target.shutdown(Shutdown::Both);
                return;
            }
        }
    }
}

/// How many of these bytes may pass now, and whether the connection is to be cut behind them. Waits where they are
/// held.
fn admit(shared: &Shared, bytes: &mut [u8], source: &TcpStream) -> (usize, bool) {
    let mut state = shared.lock();
    loop {
        let begin = state.to_target;
        let end = begin + bytes.len() as u64;
        let before = |at: u64| usize::try_from(at - begin).expect("bounded by the length of a buffer");
        match state.fault {
            Fault::HoldAt(at) if at < end => {
                if at > begin {
                    state.to_target = at;
                    return (before(at), false);
                }
                state.held = true;
                shared.changed.notify_all();
                let waited = shared.changed.wait_timeout(state, Duration::from_millis(20));
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
                if source.peer_addr().is_err() {
                    return (0, true);
                }
            }
            Fault::CutAt(at) if (begin..end).contains(&at) => {
                state.to_target = at;
                state.fault = Fault::None;
                return (before(at), true);
            }
            Fault::FlipAt(at) if (begin..end).contains(&at) => {
                bytes[before(at)] ^= 1;
                state.fault = Fault::None;
                state.to_target = end;
                return (bytes.len(), false);
            }
            _ => {
                state.to_target = end;
                return (bytes.len(), false);
            }
        }
    }
}
