// SPDX-License-Identifier: MIT OR Apache-2.0
//! The list of digests beside the artefacts (`SHA256SUMS`) and its detached signature (`SHA256SUMS.minisig`).
//!
//! The signature is minisign's, so that whoever has the artefacts needs no program of ours: `minisign -Vm SHA256SUMS -p KEY`
//! and `sha256sum --check SHA256SUMS`. Ed25519 over BLAKE2b of the list; keys are minisign's too, with a password or without.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use ct_codecs::{Base64, Decoder as _};
use minisign::{PublicKey, SecretKey, SecretKeyBox, SignatureBox};
use sha2::{Digest as _, Sha256};

use crate::error::{Error, Fault, Kind, Result, shown};
use crate::input::{self, Accept};
use crate::publish::{Existing, Unpublished, folder_of, refuse_existing};

/// Largest key, password file or signature that is read, bytes; minisign's have some hundred.
const SMALL_MAX: u64 = 64 * 1024;
/// How the second line of a key with a password begins: base 64 of the algorithm `Ed` and the derivation `Sc`.
const WITH_PASSWORD: &str = "RWRTY";
/// And that of one without: no derivation.
const WITHOUT_PASSWORD: &str = "RWQAA";

/// A decoded secret key, bytes, and the checksum at its end.
const KEY_BYTES: usize = 158;
const CHECKSUM_BYTES: usize = 32;

/// The signature's file beside a list.
#[must_use]
pub fn signature_path(list: &Path) -> PathBuf {
    let mut name = list.as_os_str().to_owned();
    name.push(".minisig");
    name.into()
}

/// Reads a secret key.
///
/// # Errors
/// [`Kind::Usage`] where the file is not there or a password is needed, [`Kind::Config`] where it is no key or the password is
/// not the key's.
pub fn secret_key(path: &Path, password: Option<&Path>) -> Result<SecretKey> {
    let text = input::read_text("signing key", path, SMALL_MAX, Accept::FileOrPipe)?;
    let coded = text.lines().nth(1).unwrap_or_default();
    let no_key = || {
        let text = format!("{} is no secret key of minisign", shown(path));
        Error::new(Kind::Config, text)
            .hint("make one with \"minisign -G\"; the public key beside it does not sign")
    };
    let boxed = || SecretKeyBox::from_string(&text).map_err(|_| no_key());
    if coded.starts_with(WITHOUT_PASSWORD) {
        let bytes = Base64::decode_to_vec(coded, None).map_err(|_| no_key())?;
        // minisign before 0.12 leaves the checksum of such a key out. Whether its halves belong together shows when it signs.
        if bytes.len() == KEY_BYTES && bytes.iter().rev().take(CHECKSUM_BYTES).all(|byte| *byte == 0) {
            return SecretKey::from_bytes(&bytes).map_err(|_| no_key());
        }
        return boxed()?.into_unencrypted_secret_key().map_err(|_| {
            let text = format!(
                "the signing key {} is damaged: its checksum is not right",
                shown(path)
            );
            Error::new(Kind::Config, text).hint("take it from a backup")
        });
    }
    if !coded.starts_with(WITH_PASSWORD) {
        return Err(no_key());
    }
    let Some(password) = password else {
        let text = format!("the signing key {} is protected by a password", shown(path));
        return Err(Error::new(Kind::Usage, text)
            .hint("name a file that holds the password, or a pipe such as <(...), with --password-file"));
    };
    let read = input::read_text("password file", password, SMALL_MAX, Accept::FileOrPipe)?;
    // Whatever editors and "echo" put behind it is no part of it.
    let word = read.trim_end_matches(['\r', '\n']);
    boxed()?.into_secret_key(Some(word.to_owned())).map_err(|_| {
        let text = format!(
            "cannot open the signing key {}: the password in {} is not its own, or the key is damaged",
            shown(path),
            shown(password)
        );
        Error::new(Kind::Config, text).hint("try the key with \"minisign -Sm FILE -s KEY\"")
    })
}

/// Signs a list; the signature lies beside it.
///
/// # Errors
/// The list cannot be read, the key contradicts itself, or the signature is there and is to be kept.
pub fn sign(list: &Path, key: &SecretKey, now: u64, existing: Existing) -> Result<PathBuf> {
    let target = signature_path(list);
    refuse_existing(&target, existing)?;
    let bytes = input::read("list of digests", list, input::LIST_MAX, Accept::File)?;
    let name = list.file_name().unwrap_or_default().to_string_lossy();
    let trusted = format!("timestamp:{now}\tfile:{name}\thashed");
    let damaged = || {
        Error::new(
            Kind::Config,
            "the signing key contradicts itself: what it signs cannot be verified",
        )
        .hint("the file is damaged: take it from a backup")
    };
    let public = PublicKey::from_secret_key(key).map_err(|_| damaged())?;
    let signed = minisign::sign(
        Some(&public),
        key,
        bytes.as_slice(),
        Some(&trusted),
        Some("signature of the master target's artefacts"),
    )
    .map_err(|_| damaged())?;
    verify_with(&public, &signed, &bytes).map_err(|_| damaged())?;
    let new = Unpublished::create(&target, existing)?;
    new.file()
        .write_all(signed.into_string().as_bytes())
        .map_err(|error| Error::io("write", &target, error))?;
    new.publish()?;
    Ok(target)
}

/// Reads a public key: minisign's file, or the line in it.
///
/// # Errors
/// [`Kind::Usage`] where it is neither, [`Kind::Config`] where the file is no key.
pub fn public_key(text: &str) -> Result<PublicKey> {
    if let Ok(key) = PublicKey::from_base64(text) {
        return Ok(key);
    }
    let path = Path::new(text);
    let content = input::read_text("public key", path, SMALL_MAX, Accept::FileOrPipe)?;
    let boxed = minisign::PublicKeyBox::from_string(&content).and_then(PublicKey::from_box);
    boxed.map_err(|_| {
        let text = format!("{} is no public key of minisign", shown(path));
        Error::new(Kind::Config, text)
            .hint("name the file with the maker's public key (.pub), or the line in it")
    })
}

fn verify_with(key: &PublicKey, signature: &SignatureBox, bytes: &[u8]) -> minisign::Result<()> {
    minisign::verify(key, signature, std::io::Cursor::new(bytes), true, false, false)
}

/// Checks the signature of a list, and then every file that the list names. Without a good signature no file is looked at: the list
/// could say anything.
///
/// # Errors
/// List or signature cannot be read.
pub fn verify(list: &Path, key: &PublicKey) -> Result<Vec<Fault>> {
    let bytes = input::read("list of digests", list, input::LIST_MAX, Accept::File)?;
    let path = signature_path(list);
    let text = input::read_text("signature", &path, SMALL_MAX, Accept::File)?;
    let fault = |code, text| Fault {
        code,
        offset: None,
        text,
    };
    let Ok(signature) = SignatureBox::from_string(&text) else {
        let text = format!("{} is no signature of minisign", shown(&path));
        return Ok(vec![fault("signature", text)]);
    };
    if verify_with(key, &signature, &bytes).is_err() {
        let text = format!(
            "{} is not what the owner of this key signed: the list, its signature or the key is another",
            shown(list)
        );
        return Ok(vec![fault("signature", text)]);
    }
    let mut faults = Vec::new();
    for (number, line) in String::from_utf8_lossy(&bytes).lines().enumerate() {
        let Some((digest, name)) = entry(line) else {
            faults.push(fault(
                "line",
                format!("line {} of {} is no digest and name", number + 1, shown(list)),
            ));
            continue;
        };
        let path = folder_of(list).join(name);
        match digest_of(&path) {
            Ok(found) if found == digest => {}
            Ok(_) => faults.push(fault(
                "digest",
                format!("{} is not the file that was signed for", shown(&path)),
            )),
            Err(error) => faults.push(fault("missing", format!("cannot read {}: {error}", shown(&path)))),
        }
    }
    Ok(faults)
}

/// One line of `sha256sum`: digest, two characters, a name in this folder.
fn entry(line: &str) -> Option<(&str, &str)> {
    let (digest, rest) = line.split_at_checked(64)?;
    let name = rest.strip_prefix("  ").or_else(|| rest.strip_prefix(" *"))?;
    let plain = !name.is_empty() && !name.contains('/') && name != ".." && name != ".";
    (plain && digest.bytes().all(|byte| byte.is_ascii_hexdigit())).then_some((digest, name))
}

fn digest_of(path: &Path) -> std::io::Result<String> {
    if !path.symlink_metadata()?.is_file() {
        return Err(std::io::Error::other("it is no regular file"));
    }
    let mut file = File::open(path)?;
    let mut hash = Sha256::new();
    let mut bytes = vec![0; 1 << 20];
    loop {
        match file.read(&mut bytes)? {
            0 => break,
            count => hash.update(&bytes[..count]),
        }
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_names_a_file_of_this_folder() {
        let digest = "0f".repeat(32);
        for (line, name) in [
            (format!("{digest}  a b"), Some("a b")),
            (format!("{digest} *x.iso"), Some("x.iso")),
            (format!("{digest}  ../x"), None),
            (format!("{digest}  /etc/passwd"), None),
            (format!("{digest}  .."), None),
            (format!("{digest}  "), None),
            (format!("{}  x", &digest[1..]), None),
            ("x".repeat(80), None),
            ("\u{e9}".repeat(80), None),
            (String::new(), None),
        ] {
            assert_eq!(entry(&line).map(|(_, name)| name), name, "{line}");
        }
    }
}
