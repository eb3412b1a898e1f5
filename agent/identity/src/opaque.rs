//! OPAQUE (RFC 9807), and the only place that knows the crate for it.
//!
//! Suite: ristretto255, TripleDH with SHA-512, Argon2id on the machine that registers. The appliance keeps a record
//! from which the passphrase cannot be computed but by guessing through Argon2id, and proves in each run that it has
//! it. A run is bound to its channel by a context ([`Channel`]); when the two sides see different contexts it
//! fails for both. One run tests one guess.
//!
//! Argon2id takes 64 MiB and three passes in version 1 of the registration. Other costs make another version: both
//! sides must compute the same.

use std::fmt;

use argon2::{Algorithm, Argon2, Params, Version};
use opaque_ke::key_exchange::tripledh::TripleDh;
use opaque_ke::{
    CipherSuite, ClientLogin, ClientLoginFinishParameters, ClientRegistration,
    ClientRegistrationFinishParameters, CredentialFinalization, CredentialRequest, CredentialResponse,
    Identifiers, Ristretto255, ServerLogin, ServerLoginParameters, ServerRegistration, ServerSetup,
};
use rand_core::{OsRng, RngCore};
use zeroize::{Zeroize, Zeroizing};

use crate::id::{Fingerprint, Role};
use crate::passphrase::Passphrase;

/// Size of the first message, in bytes.
pub const KE1_SIZE: usize = 96;
/// Size of the answer, in bytes.
pub const KE2_SIZE: usize = 320;
/// Size of the last message, in bytes.
pub const KE3_SIZE: usize = 64;
/// Size of the server's long-term keys, in bytes.
pub const SETUP_SIZE: usize = 128;
/// Size of the record of a passphrase, in bytes.
pub const RECORD_SIZE: usize = 192;
/// Size of the key that both sides have after a run, in bytes.
pub const SESSION_KEY_SIZE: usize = 64;

/// Label of the TLS exporter (RFC 8446, 7.5) that registration is bound to.
pub const EXPORTER_LABEL: &[u8] = b"EXPORTER-mt-register";
/// Name of the protocol in the context.
const PROTOCOL: &[u8] = b"mt-register";
/// There is one passphrase, so one name for it.
const CREDENTIAL: &[u8] = b"passphrase";

/// 64 MiB: a moment for who has the passphrase, and a price for each guess of who stole the record.
pub(crate) const ARGON2_MEMORY_KIB: u32 = 64 * 1024;
/// Passes over it.
pub(crate) const ARGON2_PASSES: u32 = 3;

struct Suite;

impl CipherSuite for Suite {
    type OprfCs = Ristretto255;
    type KeyExchange = TripleDh<Ristretto255, sha2::Sha512>;
    type Ksf = Argon2<'static>;
}

/// A run that failed. Which of its causes it was is not to be known: see [`crate::Code::NotAuthenticated`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OpaqueError {
    /// Bytes that are no message of OPAQUE.
    #[error("the peer's {0} is not a message of OPAQUE")]
    Malformed(&'static str),
    /// The passphrases or the contexts differ.
    #[error("the passphrase is wrong, or the two ends do not share one channel")]
    Failed,
    /// Keys or a record that cannot be read.
    #[error("the stored {0} is damaged")]
    Damaged(&'static str),
}

/// What a run is bound to: the connection it happens on. With the role it makes the context:
///
/// ```text
/// offset size
///      0   11  "mt-register"
///     11    2  version, little-endian
///     13   32  exporter
///     45   32  SHA-256 of the server's SubjectPublicKeyInfo
///     77    1  role
/// ```
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Channel {
    /// Keying material of the TLS connection under [`EXPORTER_LABEL`]. Whoever ends TLS in the middle has two
    /// connections, with different ones.
    pub exporter: [u8; 32],
    /// Key of the certificate that the server showed on it.
    pub server_key: Fingerprint,
}

impl fmt::Debug for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Channel")
            .field("server_key", &self.server_key)
            .finish_non_exhaustive()
    }
}

impl Channel {
    /// The context of a run.
    pub(crate) fn context(&self, version: u16, role: Role) -> [u8; 78] {
        let mut context = [0; 78];
        context[..11].copy_from_slice(PROTOCOL);
        context[11..13].copy_from_slice(&version.to_le_bytes());
        context[13..45].copy_from_slice(&self.exporter);
        context[45..77].copy_from_slice(&self.server_key.0);
        context[77] = role.number();
        context
    }
}

/// What the appliance keeps: its keys and the record of the passphrase. Never the passphrase.
#[derive(Clone)]
pub struct Secrets {
    setup: Box<ServerSetup<Suite>>,
    record: Option<ServerRegistration<Suite>>,
    /// Drawn anew with every change of the passphrase, so that a run begun with the old one cannot end.
    rotation: u64,
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secrets(..)")
    }
}

impl Secrets {
    /// New keys and a record of the passphrase. Takes as long as a registration does: Argon2id runs.
    ///
    /// # Errors
    /// When Argon2id cannot run (no memory).
    pub fn new(passphrase: &Passphrase) -> Result<Self, OpaqueError> {
        let mut secrets = Self::without_passphrase();
        secrets.rotate(passphrase)?;
        Ok(secrets)
    }

    /// New keys, and no passphrase that would be right.
    pub(crate) fn without_passphrase() -> Self {
        Self {
            setup: Box::new(ServerSetup::new(&mut OsRng)),
            record: None,
            rotation: OsRng.next_u64(),
        }
    }

    /// Replaces the passphrase. The old one is worthless at once, for runs under way too; certificates stay.
    ///
    /// # Errors
    /// When Argon2id cannot run; the old one stays in force then.
    pub fn rotate(&mut self, passphrase: &Passphrase) -> Result<(), OpaqueError> {
        let failed = |_| OpaqueError::Failed;
        let password = passphrase.as_bytes();
        let start = ClientRegistration::<Suite>::start(&mut OsRng, password).map_err(failed)?;
        let response =
            ServerRegistration::<Suite>::start(&self.setup, start.message, CREDENTIAL).map_err(failed)?;
        let argon2 = argon2();
        let mut finish = start
            .state
            .finish(
                &mut OsRng,
                password,
                response.message,
                ClientRegistrationFinishParameters::new(Identifiers::default(), Some(&argon2)),
            )
            .map_err(failed)?;
        finish.export_key.as_mut_slice().zeroize();
        self.record = Some(ServerRegistration::finish(finish.message));
        self.rotation = OsRng.next_u64();
        Ok(())
    }

    /// Takes every passphrase away: all runs fail, in the way in which wrong passphrases do.
    pub fn forget(&mut self) {
        self.record = None;
        self.rotation = OsRng.next_u64();
    }

    /// Keys and record for the state.
    pub fn to_parts(&self) -> (Zeroizing<Vec<u8>>, Option<Zeroizing<Vec<u8>>>) {
        let setup = wiped(self.setup.serialize().as_mut_slice());
        let record = self
            .record
            .as_ref()
            .map(|record| wiped(record.serialize().as_mut_slice()));
        (setup, record)
    }

    /// Reads what [`Self::to_parts`] gave.
    ///
    /// # Errors
    /// When it is damaged.
    pub fn from_parts(setup: &[u8], record: Option<&[u8]>) -> Result<Self, OpaqueError> {
        if setup.len() != SETUP_SIZE {
            return Err(OpaqueError::Damaged("OPAQUE keys"));
        }
        let setup = ServerSetup::deserialize(setup).map_err(|_| OpaqueError::Damaged("OPAQUE keys"))?;
        let record = record
            .map(|record| {
                ServerRegistration::deserialize(record).map_err(|_| OpaqueError::Damaged("passphrase record"))
            })
            .transpose()?;
        Ok(Self {
            setup: Box::new(setup),
            record,
            rotation: OsRng.next_u64(),
        })
    }
}

fn argon2() -> Argon2<'static> {
    let params =
        Params::new(ARGON2_MEMORY_KIB, ARGON2_PASSES, 1, None).expect("constants within Argon2's bounds");
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
}

/// The key that both sides have after a run. Wiped on drop.
pub(crate) type SessionKey = Zeroizing<[u8; SESSION_KEY_SIZE]>;

/// The client's half of a run.
pub(crate) struct ClientRun(ClientLogin<Suite>);

impl ClientRun {
    pub(crate) fn start(passphrase: &Passphrase) -> Result<(Self, [u8; KE1_SIZE]), OpaqueError> {
        let start = ClientLogin::start(&mut OsRng, passphrase.as_bytes()).map_err(|_| OpaqueError::Failed)?;
        let mut ke1 = [0; KE1_SIZE];
        ke1.copy_from_slice(&start.message.serialize());
        Ok((Self(start.state), ke1))
    }

    /// Checks that the server knows the passphrase and shares the context. Runs Argon2id.
    pub(crate) fn finish(
        self,
        passphrase: &Passphrase,
        ke2: &[u8; KE2_SIZE],
        context: &[u8],
    ) -> Result<([u8; KE3_SIZE], SessionKey), OpaqueError> {
        let response =
            CredentialResponse::deserialize(ke2).map_err(|_| OpaqueError::Malformed("challenge"))?;
        let argon2 = argon2();
        let params = ClientLoginFinishParameters::new(Some(context), Identifiers::default(), Some(&argon2));
        let mut result = self
            .0
            .finish(&mut OsRng, passphrase.as_bytes(), response, params)
            .map_err(|_| OpaqueError::Failed)?;
        result.export_key.as_mut_slice().zeroize();
        let mut ke3 = [0; KE3_SIZE];
        ke3.copy_from_slice(&result.message.serialize());
        Ok((ke3, take_key(result.session_key.as_mut_slice())))
    }
}

/// The server's half of a run.
pub(crate) struct ServerRun {
    login: ServerLogin<Suite>,
    rotation: u64,
}

impl ServerRun {
    pub(crate) fn start(
        secrets: &Secrets,
        ke1: &[u8; KE1_SIZE],
        context: &[u8],
    ) -> Result<(Self, [u8; KE2_SIZE]), OpaqueError> {
        let request =
            CredentialRequest::deserialize(ke1).map_err(|_| OpaqueError::Malformed("first message"))?;
        let params = ServerLoginParameters {
            context: Some(context),
            identifiers: Identifiers::default(),
        };
        // Without a record the answer is made from a dummy: same form, same work.
        let start = ServerLogin::start(
            &mut OsRng,
            &secrets.setup,
            secrets.record.clone(),
            request,
            CREDENTIAL,
            params,
        )
        .map_err(|_| OpaqueError::Malformed("first message"))?;
        let mut ke2 = [0; KE2_SIZE];
        ke2.copy_from_slice(&start.message.serialize());
        let run = Self {
            login: start.state,
            rotation: secrets.rotation,
        };
        Ok((run, ke2))
    }

    /// Checks that the client knew the passphrase and shares the context.
    pub(crate) fn finish(
        self,
        secrets: &Secrets,
        ke3: &[u8; KE3_SIZE],
        context: &[u8],
    ) -> Result<SessionKey, OpaqueError> {
        let message =
            CredentialFinalization::deserialize(ke3).map_err(|_| OpaqueError::Malformed("last message"))?;
        let params = ServerLoginParameters {
            context: Some(context),
            identifiers: Identifiers::default(),
        };
        let mut result = self
            .login
            .finish(message, params)
            .map_err(|_| OpaqueError::Failed)?;
        let key = take_key(result.session_key.as_mut_slice());
        if secrets.rotation != self.rotation {
            return Err(OpaqueError::Failed);
        }
        Ok(key)
    }
}

/// A copy that wipes itself, of bytes that are wiped here.
fn wiped(bytes: &mut [u8]) -> Zeroizing<Vec<u8>> {
    let copy = Zeroizing::new(bytes.to_vec());
    bytes.zeroize();
    copy
}

fn take_key(bytes: &mut [u8]) -> SessionKey {
    let mut key = Zeroizing::new([0; SESSION_KEY_SIZE]);
    key.copy_from_slice(bytes);
    bytes.zeroize();
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    fn channel(byte: u8) -> Channel {
        Channel {
            exporter: [byte; 32],
            server_key: Fingerprint([9; 32]),
        }
    }

    /// Deployed agents compute with these bytes.
    #[test]
    fn the_context_is_frozen() {
        let context = channel(7).context(1, Role::Relay);
        let mut expected = b"mt-register\x01\x00".to_vec();
        expected.extend_from_slice(&[7; 32]);
        expected.extend_from_slice(&[9; 32]);
        expected.push(2);
        assert_eq!(context.as_slice(), expected);
    }

    #[test]
    fn stored_parts_work_and_damaged_ones_are_refused() {
        let passphrase = Passphrase::generate();
        let secrets = Secrets::new(&passphrase).unwrap();
        let (setup, record) = secrets.to_parts();
        let record = record.unwrap();
        assert_eq!((setup.len(), record.len()), (SETUP_SIZE, RECORD_SIZE));
        let again = Secrets::from_parts(&setup, Some(&record)).unwrap();
        let context = channel(1).context(1, Role::Source);
        let (client, ke1) = ClientRun::start(&passphrase).unwrap();
        let (server, ke2) = ServerRun::start(&again, &ke1, &context).unwrap();
        let (ke3, key) = client.finish(&passphrase, &ke2, &context).unwrap();
        assert_eq!(*server.finish(&again, &ke3, &context).unwrap(), *key);
        assert!(Secrets::from_parts(&setup[1..], Some(&record)).is_err());
        assert!(Secrets::from_parts(&setup, Some(&record[1..])).is_err());
        assert!(Secrets::from_parts(&[0xff; SETUP_SIZE], None).is_err());
        assert_eq!(format!("{secrets:?}"), "Secrets(..)");
    }

    #[test]
    fn a_rotation_ends_runs_that_began_before_it() {
        let old = Passphrase::generate();
        let mut secrets = Secrets::new(&old).unwrap();
        let context = channel(1).context(1, Role::Source);
        let (client, ke1) = ClientRun::start(&old).unwrap();
        let (server, ke2) = ServerRun::start(&secrets, &ke1, &context).unwrap();
        let (ke3, _) = client.finish(&old, &ke2, &context).unwrap();
        secrets.forget();
        assert_eq!(
            server.finish(&secrets, &ke3, &context).unwrap_err(),
            OpaqueError::Failed
        );
    }
}
