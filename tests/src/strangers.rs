//! Peers of the data port with certificates that nobody should have: signed by whom one likes, for what one likes.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;

use mt_identity::ca::Request;
use mt_identity::store::Identity;
use mt_identity::tls::{self, ALPN_DATA};
use mt_identity::{Ca, LeafKey, MachineId, Role};
use mt_wire::limits::HELLO_SIZE;
use mt_wire::{ErrorCode, Hello, HelloReply};
use rustls::client::ResolvesClientCert;
use rustls::crypto::ring::sign::any_ecdsa_type;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::{CertifiedKey, Signer, SigningKey};
use rustls::time_provider::DefaultTimeProvider;
use rustls::{ClientConfig, ClientConnection, SignatureAlgorithm, SignatureScheme, StreamOwned};

use crate::agent::PATIENCE;

/// The appliance's identity, keys included, as whoever reads its state folder would have it.
///
/// # Panics
/// When there is none.
pub fn identity_in(state: &Path) -> Identity {
    let bytes = std::fs::read(state.join("identity")).expect("the appliance has an identity");
    Identity::from_bytes(&bytes).expect("the agent wrote it").0
}

/// A certificate of this CA for any key, id and role, as it would have been signed at a time.
pub fn certificate(
    ca: &Ca,
    key: &LeafKey,
    id: MachineId,
    role: Role,
    at: jiff::Timestamp,
) -> CertificateDer<'static> {
    let request = key.request().expect("a key asks for its certificate");
    let request = Request::check(&request).expect("it was made by us");
    ca.sign(&request, id, role, at)
        .expect("a CA signs what it likes")
        .certificate
}

/// What signs a handshake.
#[derive(Debug, Clone)]
pub enum Signs {
    /// A key.
    With(Arc<dyn SigningKey>),
    /// Nobody: the bytes are made up.
    Forged,
}

impl Signs {
    /// With this key.
    pub fn key(key: &LeafKey) -> Self {
        let der = PrivateKeyDer::Pkcs8(key.to_der().to_vec().into());
        Self::With(any_ecdsa_type(&der).expect("it is an ECDSA key"))
    }
}

#[derive(Debug)]
struct Forger;

impl SigningKey for Forger {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        offered
            .first()
            .map(|scheme| Box::new(Forgery(*scheme)) as Box<dyn Signer>)
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        SignatureAlgorithm::ECDSA
    }
}

#[derive(Debug)]
struct Forgery(SignatureScheme);

impl Signer for Forgery {
    fn sign(&self, _message: &[u8]) -> Result<Vec<u8>, rustls::Error> {
        Ok(vec![0x30; 2048])
    }

    fn scheme(&self) -> SignatureScheme {
        self.0
    }
}

#[derive(Debug)]
struct Shows(Arc<CertifiedKey>);

impl ResolvesClientCert for Shows {
    fn resolve(&self, _roots: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// What became of a stranger.
#[derive(Debug, PartialEq, Eq)]
pub enum Met {
    /// The handshake was refused, or the connection closed before an answer.
    ShownOut,
    /// The hello was answered.
    Answered(Result<u16, ErrorCode>),
}

/// Comes to the data port with this chain; with none it shows no certificate. The answer of the server is not doubted.
pub fn come(address: SocketAddr, chain: Vec<CertificateDer<'static>>, signs: &Signs) -> Met {
    let base = tls::registration_client(None, Arc::new(DefaultTimeProvider)).expect("no file is needed");
    let mut config = ClientConfig::clone(&base);
    config.alpn_protocols = vec![ALPN_DATA.to_vec()];
    if !chain.is_empty() {
        let key = match signs {
            Signs::With(key) => Arc::clone(key),
            Signs::Forged => Arc::new(Forger),
        };
        config.client_auth_cert_resolver = Arc::new(Shows(Arc::new(CertifiedKey::new(chain, key))));
    }
    let socket = TcpStream::connect(address).expect("the target listens");
    socket
        .set_read_timeout(Some(PATIENCE))
        .expect("a socket takes a timeout");
    let connection = ClientConnection::new(Arc::new(config), tls::server_name()).expect("it is good");
    say_hello(&mut StreamOwned::new(connection, socket))
}

/// Says hello on a connection, and answers what was said to that.
pub fn say_hello(stream: &mut StreamOwned<ClientConnection, TcpStream>) -> Met {
    let hello = Hello {
        version_min: 1,
        version_max: 2,
        role: mt_wire::Role::Source,
        features: 0,
        session_id: [7; 16],
        agent_version: "test".to_owned(),
    };
    let mut bytes = [0; HELLO_SIZE];
    let talked = stream
        .write_all(&hello.encode())
        .and_then(|()| stream.flush())
        .and_then(|()| stream.read_exact(&mut bytes));
    match talked {
        Ok(()) => Met::Answered(HelloReply::decode(&bytes).expect("a reply can be read").outcome),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
            panic!("the target neither answered nor closed: {error}")
        }
        Err(_) => Met::ShownOut,
    }
}
