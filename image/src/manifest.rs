// SPDX-License-Identifier: MIT OR Apache-2.0
//! The manifest of an OVA (`.mf`) and its signature (`.cert`).
//!
//! A line is `SHA256(name)= hex`. No space before the bracket, one behind the equals sign, the algorithm as `SHA256`:
//! each deviation that other builders shipped broke imports. The certificate file starts with such a line for the
//! manifest itself, with the RSA signature (PKCS #1 v1.5) in place of the digest, and goes on with the certificate.

use ring::signature::{self, KeyPair, RsaKeyPair, UnparsedPublicKey};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use sha1::Digest;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::error::{Error, Fault, Kind, Result};
use crate::spec::Manifest;

/// Largest manifest or certificate read.
pub const MANIFEST_SIZE_MAX: u64 = 1 << 20;

/// A digest algorithm of manifests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Algorithm {
    /// SHA-1: all that ESXi 5.5 and 6.0 know.
    Sha1,
    /// SHA-256: the usual one.
    Sha256,
    /// SHA-512.
    Sha512,
}

impl From<Manifest> for Algorithm {
    fn from(manifest: Manifest) -> Self {
        match manifest {
            Manifest::Sha256 => Self::Sha256,
            Manifest::Sha1 => Self::Sha1,
        }
    }
}

impl Algorithm {
    const ALL: [Self; 3] = [Self::Sha1, Self::Sha256, Self::Sha512];

    /// The word in the manifest.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Sha1 => "SHA1",
            Self::Sha256 => "SHA256",
            Self::Sha512 => "SHA512",
        }
    }

    const fn hex_len(self) -> usize {
        match self {
            Self::Sha1 => 40,
            Self::Sha256 => 64,
            Self::Sha512 => 128,
        }
    }
}

/// All digests of one file; which one is asked for may only be known later.
#[derive(Debug, Clone, Default)]
pub struct Digester {
    sha1: sha1::Sha1,
    sha256: sha2::Sha256,
    sha512: sha2::Sha512,
}

impl Digester {
    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.sha1.update(bytes);
        self.sha256.update(bytes);
        self.sha512.update(bytes);
    }

    /// Ends and returns the digests.
    #[must_use]
    pub fn finish(self) -> Digests {
        Digests {
            sha1: hex(&self.sha1.finalize()),
            sha256: hex(&self.sha256.finalize()),
            sha512: hex(&self.sha512.finalize()),
        }
    }
}

/// Digests of one file in lower-case hex.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Digests {
    sha1: String,
    sha256: String,
    sha512: String,
}

impl Digests {
    /// Digests of bytes in memory.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        let mut digester = Digester::default();
        digester.update(bytes);
        digester.finish()
    }

    /// The digest by one algorithm.
    #[must_use]
    pub fn by(&self, algorithm: Algorithm) -> &str {
        match algorithm {
            Algorithm::Sha1 => &self.sha1,
            Algorithm::Sha256 => &self.sha256,
            Algorithm::Sha512 => &self.sha512,
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a String takes all");
        text
    })
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| {
        char::from(byte)
            .to_digit(16)
            .and_then(|value| u8::try_from(value).ok())
    };
    let pairs = text.as_bytes().chunks(2);
    pairs
        .map(|pair| Some(digit(*pair.first()?)? << 4 | digit(*pair.get(1)?)?))
        .collect()
}

/// Renders one line of a manifest.
#[must_use]
pub fn line(algorithm: Algorithm, name: &str, digest: &str) -> String {
    format!("{}({name})= {digest}\n", algorithm.word())
}

/// A line of a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// By which algorithm.
    pub algorithm: Algorithm,
    /// Of which file.
    pub name: String,
    /// Digest, or signature, in hex.
    pub digest: String,
}

/// Reads a manifest; what cannot be read is a fault, and the rest is still used.
#[must_use]
pub fn parse(bytes: &[u8]) -> (Vec<Entry>, Vec<Fault>) {
    let mut entries: Vec<Entry> = Vec::new();
    let mut faults = Vec::new();
    let mut fault = |text: String| {
        faults.push(Fault {
            code: "manifest-form",
            offset: None,
            text,
        })
    };
    let Ok(text) = std::str::from_utf8(bytes) else {
        fault("the manifest is not UTF-8".to_owned());
        return (entries, faults);
    };
    if text.is_empty() {
        fault("the manifest is empty".to_owned());
    } else if !text.ends_with('\n') {
        fault("the last line of the manifest has no end".to_owned());
    }
    for (index, line) in text.split_terminator('\n').enumerate() {
        let line = line.strip_suffix('\r').unwrap_or(line);
        match parse_line(line) {
            Ok(entry) if entry.digest.len() != entry.algorithm.hex_len() => fault(format!(
                "line {}: {} hex digits for {}, expected {}",
                index + 1,
                entry.digest.len(),
                entry.algorithm.word(),
                entry.algorithm.hex_len()
            )),
            Ok(entry) if entries.iter().any(|other| other.name == entry.name) => {
                fault(format!("line {}: {} is listed twice", index + 1, entry.name));
            }
            Ok(entry) => entries.push(entry),
            Err(text) => fault(format!("line {}: {text}", index + 1)),
        }
    }
    (entries, faults)
}

/// Reads `ALGORITHM(name)= hex`.
///
/// # Errors
/// What deviates, and what importers make of it.
pub fn parse_line(line: &str) -> std::result::Result<Entry, String> {
    let (word, rest) = line
        .split_once('(')
        .ok_or_else(|| format!("{line:?} is no \"SHA256(name)= hex\""))?;
    let algorithm = Algorithm::ALL
        .into_iter()
        .find(|algorithm| algorithm.word() == word)
        .ok_or_else(|| {
            let spaced = word.ends_with(' ');
            let reason = if spaced {
                "a space stands before the bracket"
            } else {
                "the algorithm is not known by that name"
            };
            format!(
                "{word:?}: {reason}: \"Invalid OVF checksum algorithm\"; SHA1, SHA256 and SHA512 are known"
            )
        })?;
    let (name, digest) = rest
        .rsplit_once(")= ")
        .ok_or_else(|| "\")= \" is missing behind the name".to_owned())?;
    if name.is_empty() {
        return Err("the name is empty".to_owned());
    }
    if !digest
        .bytes()
        .all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
        || digest.is_empty()
    {
        return Err(format!("{digest:?} is not lower-case hex"));
    }
    Ok(Entry {
        algorithm,
        name: name.to_owned(),
        digest: digest.to_owned(),
    })
}

/// A key and its certificate, for signing.
pub struct Signer {
    key: RsaKeyPair,
    certificate_pem: String,
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Signer(..)")
    }
}

impl Signer {
    /// Takes a private key and its certificate, both PEM.
    ///
    /// # Errors
    /// The key is no RSA key of 2048 bits or more, or the certificate is for another key.
    pub fn new(key_pem: &[u8], certificate_pem: &[u8]) -> Result<Self> {
        let bad = |text: String| {
            Error::new(Kind::Config, text).hint("give an RSA key and its certificate in PEM form")
        };
        let key = match PrivateKeyDer::from_pem_slice(key_pem) {
            Ok(PrivateKeyDer::Pkcs8(der)) => RsaKeyPair::from_pkcs8(der.secret_pkcs8_der()),
            Ok(PrivateKeyDer::Pkcs1(der)) => RsaKeyPair::from_der(der.secret_pkcs1_der()),
            Ok(_) => return Err(bad("the signing key is not an RSA key".to_owned())),
            Err(error) => return Err(bad(format!("cannot read the signing key: {error}"))),
        };
        let key = key.map_err(|error| bad(format!("the signing key is not usable: {error}")))?;
        let der = CertificateDer::from_pem_slice(certificate_pem)
            .map_err(|error| bad(format!("cannot read the certificate: {error}")))?;
        let public = public_key(&der).map_err(bad)?;
        if public != key.public_key().as_ref() {
            return Err(bad("the certificate is for another key".to_owned()));
        }
        let certificate_pem = String::from_utf8(certificate_pem.to_vec())
            .map_err(|_| bad("the certificate file is not text".to_owned()))?;
        Ok(Self { key, certificate_pem })
    }

    /// Makes the text of the `.cert` file for a manifest.
    ///
    /// # Errors
    /// The key could not sign.
    pub fn sign(&self, manifest_name: &str, manifest: &[u8]) -> Result<String> {
        let mut signature = vec![0; self.key.public().modulus_len()];
        self.key
            .sign(
                &signature::RSA_PKCS1_SHA256,
                &ring::rand::SystemRandom::new(),
                manifest,
                &mut signature,
            )
            .map_err(|_| Error::new(Kind::Unexpected, "cannot sign the manifest: the key refused"))?;
        Ok(line(Algorithm::Sha256, manifest_name, &hex(&signature)) + &self.certificate_pem)
    }
}

fn public_key(certificate: &CertificateDer<'_>) -> std::result::Result<Vec<u8>, String> {
    let (rest, parsed) = X509Certificate::from_der(certificate)
        .map_err(|error| format!("the certificate is damaged: {error}"))?;
    if !rest.is_empty() {
        return Err("bytes follow the certificate".to_owned());
    }
    Ok(parsed.public_key().subject_public_key.data.to_vec())
}

/// Verifies a `.cert` file against the manifest it signs. Says nothing about who the signer is.
///
/// # Errors
/// What is wrong.
pub fn verify_signature(
    certificate_file: &[u8],
    manifest_name: &str,
    manifest: &[u8],
) -> std::result::Result<(), String> {
    let text =
        std::str::from_utf8(certificate_file).map_err(|_| "the certificate file is not text".to_owned())?;
    let entry = parse_line(text.lines().next().unwrap_or_default())?;
    if entry.name != manifest_name {
        return Err(format!(
            "the signature is for {:?}, the manifest is {manifest_name:?}",
            entry.name
        ));
    }
    let signature =
        unhex(&entry.digest).ok_or_else(|| "the signature is not whole bytes of hex".to_owned())?;
    let der = CertificateDer::from_pem_slice(certificate_file)
        .map_err(|error| format!("the file has no readable certificate: {error}"))?;
    let key = public_key(&der)?;
    let scheme: &dyn signature::VerificationAlgorithm = match entry.algorithm {
        Algorithm::Sha1 => &signature::RSA_PKCS1_2048_8192_SHA1_FOR_LEGACY_USE_ONLY,
        Algorithm::Sha256 => &signature::RSA_PKCS1_2048_8192_SHA256,
        Algorithm::Sha512 => &signature::RSA_PKCS1_2048_8192_SHA512,
    };
    UnparsedPublicKey::new(scheme, key)
        .verify(manifest, &signature)
        .map_err(|_| "the signature does not fit to manifest and certificate".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_broke_imports_are_explained() {
        for (line, says) in [
            ("SHA256 (x.vmdk)= 00", "space stands before"),
            ("SHA2-256(x.vmdk)= 00", "not known by that name"),
            ("SHA256(x.vmdk) = 00", "\")= \" is missing"),
            ("SHA256(x.vmdk)=00", "\")= \" is missing"),
            ("SHA256(x.vmdk)= 0G", "not lower-case hex"),
            ("00  x.vmdk", "is no"),
        ] {
            let error = parse_line(line).unwrap_err();
            assert!(error.contains(says), "{line}: {error}");
        }
    }

    #[test]
    fn every_flipped_bit_is_a_fault_or_another_entry() {
        let digests = Digests::of(b"abc");
        let text = line(Algorithm::Sha256, "a.ovf", digests.by(Algorithm::Sha256))
            + &line(Algorithm::Sha1, "b.vmdk", digests.by(Algorithm::Sha1));
        let good = parse(text.as_bytes());
        assert_eq!((good.0.len(), good.1.len()), (2, 0));
        for at in 0..text.len() {
            for bit in 0..8 {
                let mut bad = text.clone().into_bytes();
                bad[at] ^= 1 << bit;
                assert_ne!(parse(&bad), good, "byte {at} bit {bit}");
            }
        }
    }

    #[test]
    fn digests_are_the_published_ones() {
        let digests = Digests::of(b"abc");
        assert_eq!(
            digests.by(Algorithm::Sha1),
            "a9993e364706816aba3e25717850c26c9cd0d89d"
        );
        assert!(digests.by(Algorithm::Sha256).starts_with("ba7816bf8f01cfea"));
        assert!(digests.by(Algorithm::Sha512).starts_with("ddaf35a193617aba"));
    }
}
