//! Machines that register with a laboratory: through the command line as users do, and by hand as attackers do.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mt_identity::member::Member;
use mt_identity::registration::{Client, ClientParams, ClientStep, Fault};
use mt_identity::tls::{self, Purpose};
use mt_identity::{LeafKey, MachineId, MachineName, Passphrase, Role};
use rustls::time_provider::DefaultTimeProvider;
use rustls::{ClientConfig, ClientConnection, ServerConnection, StreamOwned};
use serde_json::Value;

use crate::agent::{self, PATIENCE, Running, Said};
use crate::lab::Lab;
use crate::peer::Peer;

impl Lab {
    /// The passphrase, which the appliance shows once.
    #[track_caller]
    pub fn passphrase(&self) -> String {
        let shown = self.verb(&["identity", "show", "--json"]).expect_done().json();
        shown["passphrase"].as_str().expect("it is shown once").to_owned()
    }

    /// A file with a passphrase.
    pub fn passphrase_file(&self, name: &str, passphrase: &str) -> PathBuf {
        self.scratch.file(name, passphrase)
    }

    /// The command that registers `name` at `address`, with its key in `state`.
    pub fn register_command(
        &self,
        address: SocketAddr,
        name: &str,
        state: &Path,
        passphrase: &Path,
    ) -> std::process::Command {
        let address = address.to_string();
        let mut command = agent::command(["register", "--json", "--name", name, "--target", &address]);
        command
            .arg("--state-dir")
            .arg(state)
            .arg("--passphrase-file")
            .arg(passphrase);
        command
    }

    /// Registers a machine by way of `address` and waits for the end.
    pub fn register_at(
        &self,
        address: SocketAddr,
        name: &str,
        state: &Path,
        passphrase: &Path,
        more: &[&str],
    ) -> Said {
        let mut command = self.register_command(address, name, state, passphrase);
        command.args(more);
        Running::start(command, self.scratch.path()).wait()
    }

    /// Registers the source of this laboratory as `name`, and approves it.
    #[track_caller]
    pub fn admit(&self, name: &str, passphrase: &Path) {
        let state = self.source_state();
        self.register_at(self.control(), name, &state, passphrase, &[])
            .expect_done();
        self.verb(&["machines", "approve", name]).expect_done();
    }

    /// The machines that registered.
    #[track_caller]
    pub fn machines(&self) -> Vec<Value> {
        let document = self.verb(&["machines", "list", "--json"]).expect_done().json();
        document["machines"]
            .as_array()
            .expect("machines are a list")
            .clone()
    }
}

/// The membership in a folder, for what the agent itself would never send.
///
/// # Panics
/// When there is none.
pub fn member_in(state: &Path) -> Member {
    let bytes = std::fs::read(state.join("member")).expect("the machine has registered");
    Member::from_bytes(&bytes).expect("the agent wrote it")
}

/// A peer that is admitted as this member and says what it is told to.
pub fn peer_of(member: &Member, address: SocketAddr) -> Peer {
    let config = member
        .client(Role::Server, Purpose::Data, Arc::new(DefaultTimeProvider))
        .expect("the machine has a certificate");
    let socket = TcpStream::connect(address).expect("the target listens");
    let below = socket.try_clone().expect("a socket has a second handle");
    Peer::on(Box::new(client_on(socket, config)), below)
}

fn client_on(socket: TcpStream, config: Arc<ClientConfig>) -> StreamOwned<ClientConnection, TcpStream> {
    socket
        .set_read_timeout(Some(PATIENCE))
        .expect("a socket takes a timeout");
    let connection = ClientConnection::new(config, tls::server_name()).expect("the configuration is good");
    StreamOwned::new(connection, socket)
}

/// One try at a passphrase, by hand and as fast as the appliance answers.
///
/// # Errors
/// The refusal, or what kept the try from being answered.
pub fn try_passphrase(address: SocketAddr, passphrase: &Passphrase) -> Result<(), Fault> {
    let config = tls::registration_client(None, Arc::new(DefaultTimeProvider)).expect("no file is needed");
    let mut stream = client_on(
        TcpStream::connect(address).expect("the appliance listens"),
        config,
    );
    while stream.conn.is_handshaking() {
        stream
            .conn
            .complete_io(&mut stream.sock)
            .expect("the appliance speaks TLS");
    }
    let key = LeafKey::generate().expect("the system has randomness");
    let params = ClientParams {
        passphrase: passphrase.clone(),
        channel: tls::client_channel(&stream.conn).expect("the handshake is over"),
        role: Role::Source,
        id: MachineId::random(),
        name: MachineName::new("guess").expect("it is a name"),
        key: &key,
        ca: None,
    };
    let (mut client, first) = Client::start(params)?;
    stream.write_all(&first).expect("the appliance takes a message");
    let mut bytes = vec![0; 16 * 1024];
    loop {
        let count = stream.read(&mut bytes).expect("the appliance answers");
        assert!(count > 0, "the appliance closed without an answer");
        match client.receive(&bytes[..count])? {
            ClientStep::More => {}
            ClientStep::Send(bytes) => stream.write_all(&bytes).expect("the appliance takes a message"),
            ClientStep::Done(_) => return Ok(()),
        }
    }
}

/// A man in the middle who ends TLS with a certificate of his own, and keeps what he reads in both directions.
#[derive(Debug)]
pub struct Interceptor {
    address: SocketAddr,
    read: Arc<Mutex<Vec<u8>>>,
    ended: Receiver<Vec<u8>>,
}

impl Interceptor {
    /// Stands in front of a control port; his threads end with the process.
    pub fn start(appliance: SocketAddr) -> Self {
        let now = jiff::Timestamp::now();
        let (identity, _) =
            mt_identity::store::Identity::create(now).expect("an attacker can make himself a CA");
        let (trust, own) = (
            identity.trust().expect("it is good"),
            identity.credentials().expect("they are good"),
        );
        let config = tls::control_server(&trust, &own, Arc::new(DefaultTimeProvider)).expect("it is good");
        let listener = TcpListener::bind("127.0.0.1:0").expect("there are free ports");
        let address = listener.local_addr().expect("a listener has an address");
        let read: Arc<Mutex<Vec<u8>>> = Arc::default();
        let kept = Arc::clone(&read);
        let (tell, ended) = channel();
        std::thread::spawn(move || {
            for victim in listener.incoming().flatten() {
                let victim = StreamOwned::new(
                    ServerConnection::new(Arc::clone(&config)).expect("it is good"),
                    victim,
                );
                let mut sent = Vec::new();
                // A victim that does not trust the certificate ends the handshake.
                let _ = relay(victim, appliance, &kept, &mut sent);
                if tell.send(sent).is_err() {
                    return;
                }
            }
        });
        Self { address, read, ended }
    }

    /// Waits until the next of his victims has gone, and answers what that one had sent him.
    pub fn next_victim(&self) -> Vec<u8> {
        self.ended
            .recv_timeout(Duration::from_secs(60))
            .expect("a victim came and went")
    }

    /// Where his victims connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What he has read so far.
    pub fn read(&self) -> Vec<u8> {
        self.read.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn relay(
    mut victim: StreamOwned<ServerConnection, TcpStream>,
    appliance: SocketAddr,
    read: &Mutex<Vec<u8>>,
    sent: &mut Vec<u8>,
) -> io::Result<()> {
    while victim.conn.is_handshaking() {
        victim.conn.complete_io(&mut victim.sock)?;
    }
    let config = tls::registration_client(None, Arc::new(DefaultTimeProvider)).expect("no file is needed");
    let mut server = client_on(TcpStream::connect(appliance)?, config);
    while server.conn.is_handshaking() {
        server.conn.complete_io(&mut server.sock)?;
    }
    let short = Some(Duration::from_millis(20));
    victim.sock.set_read_timeout(short)?;
    server.sock.set_read_timeout(short)?;
    loop {
        if !carry(&mut victim, &mut server, read, sent)?
            || !carry(&mut server, &mut victim, read, &mut Vec::new())?
        {
            return Ok(());
        }
    }
}

/// Carries what has come, and adds it to `sent`; false when there will be no more.
fn carry(
    from: &mut impl Read,
    to: &mut impl Write,
    read: &Mutex<Vec<u8>>,
    sent: &mut Vec<u8>,
) -> io::Result<bool> {
    let mut bytes = [0; 4096];
    match from.read(&mut bytes) {
        Ok(0) => Ok(false),
        Ok(count) => {
            sent.extend_from_slice(&bytes[..count]);
            read.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .extend_from_slice(&bytes[..count]);
            to.write_all(&bytes[..count])?;
            to.flush()?;
            Ok(true)
        }
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => Ok(true),
        Err(error) => Err(error),
    }
}

/// Keeps what goes from the machine to the appliance on the wire, to send it again; ends with the process.
#[derive(Debug)]
pub struct Recorder {
    address: SocketAddr,
    sent: Arc<Mutex<Vec<u8>>>,
}

impl Recorder {
    /// Stands in front of a port and passes bytes on as they are.
    pub fn start(appliance: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("there are free ports");
        let address = listener.local_addr().expect("a listener has an address");
        let sent: Arc<Mutex<Vec<u8>>> = Arc::default();
        let kept = Arc::clone(&sent);
        std::thread::spawn(move || {
            for machine in listener.incoming().flatten() {
                let Ok(server) = TcpStream::connect(appliance) else {
                    continue;
                };
                let (Ok(mut from), Ok(mut to)) = (machine.try_clone(), server.try_clone()) else {
                    continue;
                };
                let kept = Arc::clone(&kept);
                std::thread::spawn(move || {
                    let mut bytes = [0; 4096];
                    while let Ok(count @ 1..) = from.read(&mut bytes) {
                        kept.lock()
                            .unwrap_or_else(PoisonError::into_inner)
                            .extend_from_slice(&bytes[..count]);
                        if to.write_all(&bytes[..count]).is_err() {
                            break;
                        }
                    }
                    let _ = to.shutdown(std::net::Shutdown::Write);
                });
                std::thread::spawn(move || {
                    let (mut server, mut machine) = (server, machine);
                    let _ = io::copy(&mut server, &mut machine);
                    let _ = machine.shutdown(std::net::Shutdown::Write);
                });
            }
        });
        Self { address, sent }
    }

    /// Where machines connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What machines have sent so far.
    pub fn sent(&self) -> Vec<u8> {
        self.sent.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
