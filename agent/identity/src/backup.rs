//! An encrypted copy of the appliance's identity: whoever restores it at the same address has the same appliance.
//!
//! ```text
//! offset size
//!      0    8  magic "MTBK" 0d 0a 1a 0a
//!      8    2  version, little-endian: 1
//!     10   16  salt
//!     26   12  nonce
//!     38    .  the identity as store.rs writes it, with its machines; encrypted
//!      .   16  tag; authenticates bytes 0 to 37 as well
//!      .   32  SHA-256 of everything before, so that damage is told from a wrong passphrase before
//!              Argon2id runs; it protects nothing
//! ```
//!
//! Version 1 is ChaCha20-Poly1305 under a key of Argon2id (64 MiB, three passes, one lane) over the passphrase and the
//! salt. The costs are not in the file: who writes one must not choose how much memory reading it takes. The passphrase
//! is one of the backup's own, made or chosen by the rules of [`crate::passphrase`].

use argon2::{Algorithm, Argon2, Params, Version};
use rand_core::{OsRng, RngCore};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use zeroize::Zeroizing;

use crate::codec::{Malformed, Reader};
use crate::envelope::{DIGEST_SIZE, Envelope, HEAD_SIZE, Unfit};
use crate::opaque::{ARGON2_MEMORY_KIB, ARGON2_PASSES};
use crate::passphrase::Passphrase;
use crate::registry::{Machine, Registry};
use crate::store::{self, Identity, StoreError};

const VERSION: u16 = 1;
const ENVELOPE: Envelope = Envelope {
    magic: b"MTBK\r\n\x1a\n",
    version: VERSION,
};
const SALT_SIZE: usize = 16;
const HEADER_SIZE: usize = HEAD_SIZE + SALT_SIZE + NONCE_LEN;
const TAG_SIZE: usize = 16;
const KEY_SIZE: usize = 32;
/// Largest backup that is looked at, in bytes.
pub const BYTES_MAX: usize = HEADER_SIZE + store::BYTES_MAX + TAG_SIZE + DIGEST_SIZE;
const _: () = assert!(HEADER_SIZE == 38);

/// Why a backup cannot be made or read. Nothing was changed.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum BackupError {
    /// Not a backup.
    #[error("this is not a backup of an appliance's identity")]
    NotABackup,
    /// Written by a newer release.
    #[error("the backup has format version {found}, this release reads {VERSION}")]
    Version {
        /// As found.
        found: u16,
    },
    /// More than is looked at.
    #[error("the backup has {found} bytes, at most {BYTES_MAX} are looked at")]
    TooLarge {
        /// Its size.
        found: usize,
    },
    /// Bytes were changed or are missing.
    #[error("the backup is damaged: its checksum does not match")]
    Damaged,
    /// It does not open.
    #[error("the passphrase does not open the backup, or somebody has changed it")]
    NotOpened,
    /// Argon2id cannot run.
    #[error("cannot derive a key from the passphrase: {0}")]
    Derivation(String),
    /// What is inside cannot be used.
    #[error(transparent)]
    Content(#[from] StoreError),
}

impl BackupError {
    /// What to do next.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::NotABackup | Self::TooLarge { .. } => {
                "name the file that \"mt-agent identity export\" wrote"
            }
            Self::Version { .. } => "boot the release that wrote it, or a newer one",
            Self::Damaged => "copy the backup again; if it stays so, use another copy",
            Self::NotOpened => {
                "check the passphrase that the backup was written with: it is not the appliance's"
            }
            Self::Derivation(_) => "64 MiB of memory are needed; free some and try again",
            Self::Content(error) => error.hint(),
        }
    }
}

/// Writes a backup. Runs Argon2id: a tenth of a second or two of one processor.
///
/// # Errors
/// When Argon2id cannot run.
pub fn seal<'a>(
    identity: &Identity,
    machines: impl IntoIterator<Item = &'a Machine>,
    passphrase: &Passphrase,
) -> Result<Vec<u8>, BackupError> {
    let mut salt = [0; SALT_SIZE];
    let mut nonce = [0; NONCE_LEN];
    OsRng.fill_bytes(&mut salt);
    OsRng.fill_bytes(&mut nonce);
    let key = derive(passphrase, &salt)?;
    seal_with(&key, &salt, nonce, &identity.to_bytes(machines))
}

/// Reads a backup. Runs Argon2id once the form is found to be right.
///
/// # Errors
/// See [`BackupError`].
pub fn open(bytes: &[u8], passphrase: &Passphrase) -> Result<(Identity, Registry), BackupError> {
    let parts = Parts::split(bytes)?;
    let key = derive(passphrase, parts.salt)?;
    open_with(&key, &parts)
}

fn derive(passphrase: &Passphrase, salt: &[u8]) -> Result<Zeroizing<[u8; KEY_SIZE]>, BackupError> {
    let params = Params::new(ARGON2_MEMORY_KIB, ARGON2_PASSES, 1, Some(KEY_SIZE))
        .map_err(|error| BackupError::Derivation(error.to_string()))?;
    let mut key = Zeroizing::new([0; KEY_SIZE]);
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
        .hash_password_into(passphrase.as_bytes(), salt, key.as_mut())
        .map_err(|error| BackupError::Derivation(error.to_string()))?;
    Ok(key)
}

fn cipher(key: &[u8; KEY_SIZE]) -> Result<LessSafeKey, BackupError> {
    let key = UnboundKey::new(&CHACHA20_POLY1305, key).map_err(|_| BackupError::NotOpened)?;
    Ok(LessSafeKey::new(key))
}

fn seal_with(
    key: &[u8; KEY_SIZE],
    salt: &[u8; SALT_SIZE],
    nonce: [u8; NONCE_LEN],
    plain: &[u8],
) -> Result<Vec<u8>, BackupError> {
    let mut bytes = Vec::with_capacity(HEADER_SIZE + plain.len() + TAG_SIZE + DIGEST_SIZE);
    ENVELOPE.begin(&mut bytes);
    bytes.extend_from_slice(salt);
    bytes.extend_from_slice(&nonce);
    let header = bytes.clone();
    bytes.extend_from_slice(plain);
    // In place: the plain text is nowhere but in what is wiped and in what becomes ciphertext.
    let tag = cipher(key)?
        .seal_in_place_separate_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(&header),
            &mut bytes[HEADER_SIZE..],
        )
        .map_err(|_| BackupError::NotOpened)?;
    bytes.extend_from_slice(tag.as_ref());
    Envelope::end(&mut bytes);
    Ok(bytes)
}

struct Parts<'a> {
    header: &'a [u8],
    salt: &'a [u8],
    nonce: [u8; NONCE_LEN],
    sealed: &'a [u8],
}

impl<'a> Parts<'a> {
    fn split(bytes: &'a [u8]) -> Result<Self, BackupError> {
        if bytes.len() > BYTES_MAX {
            return Err(BackupError::TooLarge { found: bytes.len() });
        }
        ENVELOPE.open(bytes).map_err(|unfit| match unfit {
            Unfit::OtherKind => BackupError::NotABackup,
            Unfit::Version(found) => BackupError::Version { found },
            Unfit::Damaged => BackupError::Damaged,
        })?;
        // Magic and version are authenticated too, so the header is all of what is before the ciphertext.
        let (header, sealed) = bytes[..bytes.len() - DIGEST_SIZE]
            .split_at_checked(HEADER_SIZE)
            .ok_or(BackupError::Damaged)?;
        let damaged = |_: Malformed| BackupError::Damaged;
        let mut fields = Reader::new(header);
        fields.bytes(HEAD_SIZE, "magic and version").map_err(damaged)?;
        Ok(Self {
            header,
            salt: fields.bytes(SALT_SIZE, "salt").map_err(damaged)?,
            nonce: fields.array("nonce").map_err(damaged)?,
            sealed,
        })
    }
}

fn open_with(key: &[u8; KEY_SIZE], parts: &Parts<'_>) -> Result<(Identity, Registry), BackupError> {
    let mut plain = Zeroizing::new(parts.sealed.to_vec());
    let nonce = Nonce::assume_unique_for_key(parts.nonce);
    let identity = cipher(key)?
        .open_in_place(nonce, Aad::from(parts.header), &mut plain)
        .map_err(|_| BackupError::NotOpened)?;
    Ok(Identity::from_bytes(identity)?)
}

/// For a fuzzer: everything but the derivation of the key.
pub(crate) fn fuzz(bytes: &[u8]) {
    if let Ok(parts) = Parts::split(bytes) {
        let _ = open_with(&[0; KEY_SIZE], &parts);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::envelope::resealed;
    use crate::testing::now;
    use proptest::prelude::{any, prop_assert, proptest};
    use std::sync::OnceLock;

    struct Sample {
        passphrase: Passphrase,
        fingerprint: crate::Fingerprint,
        bytes: Vec<u8>,
    }

    fn sample() -> &'static Sample {
        static SAMPLE: OnceLock<Sample> = OnceLock::new();
        SAMPLE.get_or_init(|| {
            let (identity, passphrase) = Identity::create(now()).unwrap();
            let bytes = seal(&identity, [], &passphrase).unwrap();
            let fingerprint = identity.ca.fingerprint();
            Sample {
                passphrase,
                fingerprint,
                bytes,
            }
        })
    }

    #[test]
    fn a_backup_opens_with_its_passphrase_only() {
        let sample = sample();
        let (identity, _) = open(&sample.bytes, &sample.passphrase).unwrap();
        assert_eq!(identity.ca.fingerprint(), sample.fingerprint);
        let wrong = open(&sample.bytes, &Passphrase::generate()).unwrap_err();
        assert_eq!(wrong, BackupError::NotOpened);
        // The same identity twice gives other bytes, and neither shows any of what is inside.
        let again = seal(&identity, [], &sample.passphrase).unwrap();
        assert_ne!(again[10..], sample.bytes[10..]);
        let plain = identity.to_bytes([]);
        for secret in plain.chunks_exact(16).skip(3) {
            assert!(!sample.bytes.windows(16).any(|window| window == secret));
        }
    }

    #[test]
    fn every_cut_and_every_flipped_byte_is_refused() {
        let Sample {
            passphrase, bytes, ..
        } = sample();
        for at in 0..bytes.len() {
            assert!(Parts::split(&bytes[..at]).is_err(), "cut at {at}");
            let mut changed = bytes.clone();
            changed[at] ^= 0x01;
            let error = open(&changed, passphrase).unwrap_err();
            let expected = match at {
                0..8 => BackupError::NotABackup,
                8 => BackupError::Version { found: 0 },
                9 => BackupError::Version { found: 0x101 },
                _ => BackupError::Damaged,
            };
            assert_eq!(error, expected, "flipped at {at}");
        }
    }

    /// Whoever changes a backup can give it a checksum that matches. The key is derived once, but for the salt's bytes.
    #[test]
    fn every_byte_flipped_on_purpose_is_refused() {
        let Sample {
            passphrase, bytes, ..
        } = sample();
        let key = derive(passphrase, Parts::split(bytes).unwrap().salt).unwrap();
        assert!(open_with(&key, &Parts::split(bytes).unwrap()).is_ok());
        for at in 10..bytes.len() - DIGEST_SIZE {
            let mut changed = bytes.clone();
            changed[at] ^= 0x80;
            let changed = resealed(changed);
            let parts = Parts::split(&changed).unwrap();
            assert_eq!(
                open_with(&key, &parts).unwrap_err(),
                BackupError::NotOpened,
                "flipped at {at}"
            );
            if at == 10 || at == 25 {
                assert_eq!(open(&changed, passphrase).unwrap_err(), BackupError::NotOpened);
            }
        }
    }

    #[test]
    fn other_files_and_newer_versions_are_named_as_such() {
        let passphrase = &sample().passphrase;
        for (bytes, error) in [
            (b"PK\x03\x04".to_vec(), BackupError::NotABackup),
            (Vec::new(), BackupError::NotABackup),
            (
                vec![b'M'; BYTES_MAX + 1],
                BackupError::TooLarge { found: BYTES_MAX + 1 },
            ),
            (
                [&ENVELOPE.magic[..], &[2, 0]].concat(),
                BackupError::Version { found: 2 },
            ),
            ([&ENVELOPE.magic[..], &[1]].concat(), BackupError::Damaged),
        ] {
            assert_eq!(open(&bytes, passphrase).unwrap_err(), error);
            assert!(!error.hint().is_empty());
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            fuzz(&bytes);
            let framed = [&ENVELOPE.magic[..], &[1, 0], &bytes, &[0; DIGEST_SIZE]].concat();
            fuzz(&resealed(framed.clone()));
            prop_assert!(Parts::split(&framed).is_err());
        }
    }
}
