//! TLS of the control port and the data port: the only place that builds configurations for it.
//!
//! TLS 1.3 only, `ring`, ECDSA P-256, no early data, no resumption anywhere (a ticket would skip the certificate), and
//! the two ports speak different ALPN protocols, so that a connection to one can never be taken for the other.
//!
//! | who | function | proves | is shown |
//! | --- | --- | --- | --- |
//! | machine, registering | [`registration_client`] | nothing yet | any certificate, or one under a CA with a given fingerprint |
//! | machine, later | [`peer_client`] | its certificate | one of the trusted CAs' certificates, in the expected role |
//! | control port | [`control_server`] | server certificate | none (registers), or one of the CA's (renews) |
//! | data port | [`data_server`] | server certificate | one of the CA's |
//!
//! **A finished handshake admits nobody.** It says which key speaks and that the CA once signed it. Dates are not
//! refused here, since a certificate that ran out can still be renewed; whoever accepts a connection reads the peer's
//! [`Leaf`] ([`peer_of`]) and asks [`crate::Registry::admit`], which judges dates, key and state and has a code to send
//! for each refusal. Servers' dates are checked in the handshake: nobody else would.
//!
//! The certificate that a server sends is followed by its CA's, for clients that know only the CA's fingerprint.

use std::sync::Arc;

use jiff::Timestamp;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::ring::sign::any_ecdsa_type;
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::server::NoServerSessionStorage;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::time_provider::TimeProvider;
use rustls::{
    AlertDescription, CertificateError as TlsCertificateError, ClientConfig, ClientConnection, CommonState,
    ConnectionCommon, DigitallySignedStruct, DistinguishedName, Error, OtherError, ServerConfig,
    ServerConnection, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, TrustAnchor, UnixTime};
use zeroize::Zeroize;

use crate::ca::LeafKey;
use crate::code::Code;
use crate::id::{Fingerprint, Role};
use crate::leaf::{self, CertificateError, Leaf, Usage, Validity};
use crate::opaque::{Channel, EXPORTER_LABEL};

/// ALPN protocol of registration, on the control port.
pub const ALPN_REGISTER: &[u8] = b"mt-register/1";
/// ALPN protocol of renewal, on the control port.
pub const ALPN_RENEW: &[u8] = b"mt-renew/1";
/// ALPN protocol of replication, on the data port.
pub const ALPN_DATA: &[u8] = b"mt-data/1";

/// Certificates in a chain: the leaf and its CA.
const CHAIN_MAX: usize = 2;

static ALGORITHMS: WebPkiSupportedAlgorithms = WebPkiSupportedAlgorithms {
    all: &[webpki::ring::ECDSA_P256_SHA256],
    mapping: &[(
        SignatureScheme::ECDSA_NISTP256_SHA256,
        &[webpki::ring::ECDSA_P256_SHA256],
    )],
};

/// Why TLS could not be set up or a connection not be used.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A certificate of our own, or one to trust, cannot be used.
    #[error("cannot use a certificate: {0}")]
    Certificate(#[from] CertificateError),
    /// The TLS library refused.
    #[error("cannot set up TLS: {0}")]
    Setup(String),
    /// The peer did not say what it came for.
    #[error("the peer asks for none of the protocols of this port")]
    NoProtocol,
    /// The peer showed no certificate where one is needed.
    #[error("the peer showed no certificate")]
    NoCertificate,
    /// The handshake is not over.
    #[error("the TLS handshake is not over")]
    Unfinished,
}

impl From<Error> for TlsError {
    fn from(error: Error) -> Self {
        Self::Setup(error.to_string())
    }
}

/// A fault of a peer's certificate, as the TLS library carries it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PeerFault {
    /// Not one of ours.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// More certificates than a chain of ours has.
    #[error("the peer sent {found} certificates, at most {CHAIN_MAX} are looked at")]
    ChainTooLong {
        /// How many.
        found: usize,
    },
    /// A CA with another fingerprint than asked for, or none at all.
    #[error("the server's CA has the fingerprint {}, expected {expected}", shown(.found))]
    OtherCa {
        /// As asked for.
        expected: Fingerprint,
        /// As sent.
        found: Option<Fingerprint>,
    },
    /// One of ours, but not what was to be reached.
    #[error("the peer's certificate is that of a {found}, expected a {expected}")]
    WrongRole {
        /// As needed.
        expected: Role,
        /// As it is.
        found: Role,
    },
    /// Outside its dates by our clock.
    #[error("the server's certificate is valid from {from} to {until}, this machine's clock says {now}")]
    Time {
        /// First second of validity.
        from: Timestamp,
        /// Last second.
        until: Timestamp,
        /// By our clock.
        now: Timestamp,
    },
}

fn shown(fingerprint: &Option<Fingerprint>) -> String {
    match fingerprint {
        Some(fingerprint) => fingerprint.to_string(),
        None => "(none sent)".to_owned(),
    }
}

impl From<PeerFault> for Error {
    fn from(fault: PeerFault) -> Self {
        // The library makes the alert that the peer sees from this: so one that fits where there is one.
        let error = match fault {
            PeerFault::Certificate(CertificateError::Untrusted) => TlsCertificateError::UnknownIssuer,
            PeerFault::Certificate(CertificateError::Unreadable | CertificateError::TooLarge)
            | PeerFault::ChainTooLong { .. } => TlsCertificateError::BadEncoding,
            fault => TlsCertificateError::Other(OtherError(Arc::new(fault))),
        };
        Self::InvalidCertificate(error)
    }
}

/// The CAs that are trusted: one, and its successor while it is replaced.
#[derive(Debug, Clone)]
pub struct Trust {
    anchors: Vec<TrustAnchor<'static>>,
}

impl Trust {
    /// Trusts these.
    ///
    /// # Errors
    /// When one is not a certificate.
    pub fn new(cas: &[CertificateDer<'static>]) -> Result<Self, TlsError> {
        let anchors = cas
            .iter()
            .map(|ca| {
                webpki::anchor_from_trusted_cert(ca)
                    .map(|anchor| anchor.to_owned())
                    .map_err(|_| TlsError::Certificate(CertificateError::Unreadable))
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { anchors })
    }
}

/// What we show: our leaf, the CA that signed it, and the key.
#[derive(Debug, Clone)]
pub struct Credentials {
    certified: Arc<CertifiedKey>,
    key: Fingerprint,
}

impl Credentials {
    /// Puts leaf, CA certificate and key together.
    ///
    /// # Errors
    /// When they do not belong together.
    pub fn new(
        certificate: CertificateDer<'static>,
        ca: CertificateDer<'static>,
        key: &LeafKey,
    ) -> Result<Self, TlsError> {
        let mut der = key.for_tls();
        let signing = any_ecdsa_type(&der);
        der.zeroize();
        let certified = CertifiedKey::new(vec![certificate, ca], signing?);
        certified.keys_match()?;
        Ok(Self {
            certified: Arc::new(certified),
            key: key.fingerprint(),
        })
    }

    /// Which key it is.
    pub fn key(&self) -> Fingerprint {
        self.key
    }
}

/// What a machine connects for, once it has a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To replicate, on the data port.
    Data,
    /// To renew its certificate, on the control port.
    Renewal,
}

/// For a machine that registers. Any server will do, since registration itself finds out whether it is the right one;
/// with a fingerprint the server must be under that CA before anything is sent.
///
/// # Errors
/// When the TLS library refuses.
pub fn registration_client(
    ca: Option<Fingerprint>,
    clock: Arc<dyn TimeProvider>,
) -> Result<Arc<ClientConfig>, TlsError> {
    let verifier: Arc<dyn ServerCertVerifier> = match ca {
        Some(expected) => Arc::new(PinnedServer { expected }),
        None => Arc::new(AnyServer),
    };
    let config = ClientConfig::builder_with_details(provider(), clock)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    Ok(hardened(config, ALPN_REGISTER))
}

/// For a machine with a certificate. The server must be under the trusted CAs, in the expected role and within its
/// dates.
///
/// # Errors
/// When the TLS library refuses.
pub fn peer_client(
    trust: &Trust,
    credentials: &Credentials,
    expected: Role,
    purpose: Purpose,
    clock: Arc<dyn TimeProvider>,
) -> Result<Arc<ClientConfig>, TlsError> {
    let verifier = TrustedServer {
        trust: trust.clone(),
        expected,
    };
    let config = ClientConfig::builder_with_details(provider(), clock)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(
            &credentials.certified,
        ))));
    Ok(match purpose {
        Purpose::Data => hardened(config, ALPN_DATA),
        Purpose::Renewal => hardened(config, ALPN_RENEW),
    })
}

/// For the control port. [`control_peer`] says who came.
///
/// # Errors
/// When the TLS library refuses.
pub fn control_server(
    trust: &Trust,
    credentials: &Credentials,
    clock: Arc<dyn TimeProvider>,
) -> Result<Arc<ServerConfig>, TlsError> {
    server(
        MachineVerifier {
            trust: trust.clone(),
            mandatory: false,
        },
        credentials,
        &[ALPN_REGISTER, ALPN_RENEW],
        clock,
    )
}

/// For the data port of the appliance or of a relay. [`peer_of`] says who came.
///
/// # Errors
/// When the TLS library refuses.
pub fn data_server(
    trust: &Trust,
    credentials: &Credentials,
    clock: Arc<dyn TimeProvider>,
) -> Result<Arc<ServerConfig>, TlsError> {
    server(
        MachineVerifier {
            trust: trust.clone(),
            mandatory: true,
        },
        credentials,
        &[ALPN_DATA],
        clock,
    )
}

/// The name to connect with. It goes nowhere: machines are known by their certificates, not by host names.
pub fn server_name() -> ServerName<'static> {
    ServerName::try_from("master-target.invalid").expect("a valid DNS name")
}

/// Who came to the control port, after the handshake.
#[derive(Debug)]
pub enum ControlPeer {
    /// Someone who wants to register, with what the run is bound to.
    Register(Channel),
    /// A machine with a certificate of ours that wants another.
    Renew(Leaf),
}

/// Says who came to the control port.
///
/// # Errors
/// When the handshake is not over or the peer does not fit what it asks for.
pub fn control_peer(
    connection: &ServerConnection,
    credentials: &Credentials,
) -> Result<ControlPeer, TlsError> {
    match connection.alpn_protocol() {
        Some(ALPN_REGISTER) => server_channel(connection, credentials).map(ControlPeer::Register),
        Some(ALPN_RENEW) => peer_leaf(connection).map(ControlPeer::Renew),
        _ if connection.is_handshaking() => Err(TlsError::Unfinished),
        _ => Err(TlsError::NoProtocol),
    }
}

/// Says who came to the data port, or whom we connected to: the certificate that the handshake found to be signed by
/// a trusted CA.
///
/// # Errors
/// When the handshake is not over or the peer came for something else.
pub fn peer_of(connection: &CommonState) -> Result<Leaf, TlsError> {
    match connection.alpn_protocol() {
        Some(ALPN_DATA | ALPN_RENEW) => peer_leaf(connection),
        _ if connection.is_handshaking() => Err(TlsError::Unfinished),
        _ => Err(TlsError::NoProtocol),
    }
}

/// What a registration is bound to, on the side of the machine.
///
/// # Errors
/// When the handshake is not over.
pub fn client_channel(connection: &ClientConnection) -> Result<Channel, TlsError> {
    if connection.alpn_protocol() != Some(ALPN_REGISTER) {
        return Err(if connection.is_handshaking() {
            TlsError::Unfinished
        } else {
            TlsError::NoProtocol
        });
    }
    let server = connection
        .peer_certificates()
        .and_then(<[_]>::first)
        .ok_or(TlsError::Unfinished)?;
    Ok(Channel {
        exporter: exporter(connection)?,
        server_key: leaf::key_of(server)?,
    })
}

fn server_channel(connection: &ServerConnection, credentials: &Credentials) -> Result<Channel, TlsError> {
    Ok(Channel {
        exporter: exporter(connection)?,
        server_key: credentials.key,
    })
}

fn exporter<D>(connection: &ConnectionCommon<D>) -> Result<[u8; 32], TlsError> {
    connection
        .export_keying_material([0; 32], EXPORTER_LABEL, None)
        .map_err(|_| TlsError::Unfinished)
}

fn peer_leaf(connection: &CommonState) -> Result<Leaf, TlsError> {
    if connection.is_handshaking() {
        return Err(TlsError::Unfinished);
    }
    let certificate = connection
        .peer_certificates()
        .and_then(<[_]>::first)
        .ok_or(TlsError::NoCertificate)?;
    Ok(Leaf::read(certificate)?)
}

/// What a failed connection says to people, with a hint. Covers what the peer refuses by an alert: the codes of this
/// crate come only where both sides speak.
pub fn explain(error: &Error) -> (String, &'static str) {
    match error {
        Error::InvalidCertificate(TlsCertificateError::Other(OtherError(fault))) => {
            let hint = match fault.downcast_ref::<PeerFault>() {
                Some(PeerFault::OtherCa { .. }) => {
                    "compare the fingerprint with the appliance's console; if they differ, you are not talking to it"
                }
                Some(PeerFault::Time { .. }) => "set the clocks of both machines",
                _ => "check host and port, and that nothing between the machines ends TLS",
            };
            (fault.to_string(), hint)
        }
        Error::InvalidCertificate(TlsCertificateError::UnknownIssuer) => (
            "the server's certificate was not signed by the appliance that this machine is registered with"
                .to_owned(),
            "check host and port; if the appliance was made anew, register again",
        ),
        Error::AlertReceived(AlertDescription::UnknownCA) => (
            "the appliance did not sign this machine's certificate".to_owned(),
            Code::KeyUnknown.hint(),
        ),
        Error::AlertReceived(AlertDescription::CertificateRequired) => (
            "the appliance wants a certificate and this machine has none".to_owned(),
            Code::KeyUnknown.hint(),
        ),
        Error::AlertReceived(AlertDescription::NoApplicationProtocol) => (
            "the port does not speak what this machine came for".to_owned(),
            "check the port: machines register on the control port and replicate on the data port",
        ),
        Error::AlertReceived(AlertDescription::ProtocolVersion) | Error::PeerIncompatible(_) => (
            format!("the peer does not speak TLS 1.3 in the way needed: {error}"),
            "check host and port, and that nothing between the machines ends TLS",
        ),
        Error::FailedToGetCurrentTime => (
            "this machine's clock stands before 1970, so no certificate can be judged".to_owned(),
            "set the clocks of both machines",
        ),
        Error::InvalidMessage(_) => ("the peer does not speak TLS".to_owned(), "check host and port"),
        error => (
            format!("TLS failed: {error}"),
            "check host and port, and that nothing between the machines ends TLS",
        ),
    }
}

fn provider() -> Arc<CryptoProvider> {
    use rustls::crypto::ring::cipher_suite::{
        TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256,
    };
    Arc::new(CryptoProvider {
        // As strong as the keys that vouch for it (P-256, 128 bits), and four rounds of fourteen cheaper for each block.
        cipher_suites: vec![
            TLS13_AES_128_GCM_SHA256,
            TLS13_AES_256_GCM_SHA384,
            TLS13_CHACHA20_POLY1305_SHA256,
        ],
        signature_verification_algorithms: ALGORITHMS,
        ..rustls::crypto::ring::default_provider()
    })
}

fn hardened(mut config: ClientConfig, protocol: &[u8]) -> Arc<ClientConfig> {
    config.resumption = rustls::client::Resumption::disabled();
    config.enable_early_data = false;
    config.enable_sni = false;
    config.alpn_protocols = vec![protocol.to_vec()];
    Arc::new(config)
}

fn server(
    verifier: MachineVerifier,
    credentials: &Credentials,
    protocols: &[&[u8]],
    clock: Arc<dyn TimeProvider>,
) -> Result<Arc<ServerConfig>, TlsError> {
    let mut config = ServerConfig::builder_with_details(provider(), clock)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(
            &credentials.certified,
        ))));
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    Ok(Arc::new(config))
}

fn bounded(intermediates: &[CertificateDer<'_>]) -> Result<(), PeerFault> {
    let found = intermediates.len() + 1;
    if found > CHAIN_MAX {
        return Err(PeerFault::ChainTooLong { found });
    }
    Ok(())
}

/// The server must be a leaf of ours in this role, and valid by our clock.
fn check_server(
    certificate: &CertificateDer<'_>,
    anchors: &[TrustAnchor<'_>],
    expected: Role,
    now: UnixTime,
) -> Result<(), PeerFault> {
    let leaf = leaf::verify_chain(certificate, anchors, Usage::Server)?;
    if leaf.role != expected {
        return Err(PeerFault::WrongRole {
            expected,
            found: leaf.role,
        });
    }
    let now = i64::try_from(now.as_secs())
        .ok()
        .and_then(|seconds| Timestamp::from_second(seconds).ok())
        .unwrap_or(Timestamp::MAX);
    match leaf.validity(now) {
        Validity::Valid => Ok(()),
        Validity::NotYet { .. } | Validity::Expired { .. } => Err(PeerFault::Time {
            from: leaf.not_before,
            until: leaf.not_after,
            now,
        }),
    }
}

/// What all verifiers of servers share: the proof that the server holds the key of its certificate.
macro_rules! server_signatures {
    () => {
        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Err(Error::General("TLS 1.2 is not spoken here".to_owned()))
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            verify_tls13_signature(message, certificate, signature, &ALGORITHMS)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            ALGORITHMS.supported_schemes()
        }
    };
}

/// Takes any server, for registration alone.
#[derive(Debug)]
struct AnyServer;

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        bounded(intermediates)?;
        leaf::key_of(certificate).map_err(PeerFault::from)?;
        Ok(ServerCertVerified::assertion())
    }

    server_signatures!();
}

/// Takes a server under the CA with this fingerprint.
#[derive(Debug)]
struct PinnedServer {
    expected: Fingerprint,
}

impl ServerCertVerifier for PinnedServer {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        bounded(intermediates)?;
        let other = |found| PeerFault::OtherCa {
            expected: self.expected,
            found,
        };
        let ca = intermediates.first().ok_or_else(|| other(None))?;
        let found = leaf::key_of(ca).map_err(PeerFault::from)?;
        if found != self.expected {
            return Err(other(Some(found)).into());
        }
        let anchor = webpki::anchor_from_trusted_cert(ca).map_err(|_| other(None))?;
        check_server(certificate, &[anchor], Role::Server, now)?;
        Ok(ServerCertVerified::assertion())
    }

    server_signatures!();
}

/// Takes a server under the CAs that registration gave.
#[derive(Debug)]
struct TrustedServer {
    trust: Trust,
    expected: Role,
}

impl ServerCertVerifier for TrustedServer {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        bounded(intermediates)?;
        check_server(certificate, &self.trust.anchors, self.expected, now)?;
        Ok(ServerCertVerified::assertion())
    }

    server_signatures!();
}

/// Takes machines under the CA, whatever their dates: the registry decides.
#[derive(Debug)]
struct MachineVerifier {
    trust: Trust,
    mandatory: bool,
}

impl ClientCertVerifier for MachineVerifier {
    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // Machines have one certificate; strangers need not learn which CA this is.
        &[]
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        bounded(intermediates)?;
        leaf::verify_chain(certificate, &self.trust.anchors, Usage::Client).map_err(PeerFault::from)?;
        Ok(ClientCertVerified::assertion())
    }

    server_signatures!();
}

#[cfg(test)]
mod tests;
