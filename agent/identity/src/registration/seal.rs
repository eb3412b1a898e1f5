//! Sealing under the key of an OPAQUE run.
//!
//! Each direction has its own key, HKDF-SHA256 of the session key with the direction as info, and seals one message
//! with it; so the nonce can be zero. The associated data is the direction's text again and, from client to server,
//! KE3, which ties the application to the proof in front of it.

use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hkdf::{HKDF_SHA256, Salt};

use super::Fault;
use crate::opaque::SESSION_KEY_SIZE;

/// Which way a sealed part goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    ToServer,
    ToClient,
}

impl Direction {
    fn info(self) -> &'static [u8] {
        match self {
            Self::ToServer => b"mt-register/1 client to server",
            Self::ToClient => b"mt-register/1 server to client",
        }
    }

    fn what(self) -> &'static str {
        match self {
            Self::ToServer => "application",
            Self::ToClient => "answer",
        }
    }
}

fn key(session_key: &[u8; SESSION_KEY_SIZE], direction: Direction) -> Result<LessSafeKey, Fault> {
    Salt::new(HKDF_SHA256, b"")
        .extract(session_key)
        .expand(&[direction.info()], &CHACHA20_POLY1305)
        .map(|key| LessSafeKey::new(UnboundKey::from(key)))
        .map_err(|_| Fault::Seal(direction.what()))
}

fn associated(direction: Direction, tied_to: &[u8]) -> Aad<Vec<u8>> {
    Aad::from([direction.info(), tied_to].concat())
}

pub(super) fn seal(
    session_key: &[u8; SESSION_KEY_SIZE],
    direction: Direction,
    tied_to: &[u8],
    mut plain: Vec<u8>,
) -> Result<Vec<u8>, Fault> {
    let nonce = Nonce::assume_unique_for_key([0; NONCE_LEN]);
    key(session_key, direction)?
        .seal_in_place_append_tag(nonce, associated(direction, tied_to), &mut plain)
        .map_err(|_| Fault::Seal(direction.what()))?;
    Ok(plain)
}

pub(super) fn open(
    session_key: &[u8; SESSION_KEY_SIZE],
    direction: Direction,
    tied_to: &[u8],
    mut sealed: Vec<u8>,
) -> Result<Vec<u8>, Fault> {
    let nonce = Nonce::assume_unique_for_key([0; NONCE_LEN]);
    let len = key(session_key, direction)?
        .open_in_place(nonce, associated(direction, tied_to), &mut sealed)
        .map_err(|_| Fault::Seal(direction.what()))?
        .len();
    sealed.truncate(len);
    Ok(sealed)
}
