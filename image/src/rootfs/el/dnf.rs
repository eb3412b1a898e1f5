// SPDX-License-Identifier: MIT OR Apache-2.0
//! dnf and rpm of a Debian host, kept from the host's own settings.
//!
//! - Everything dnf reads is one private configuration file; the host's repositories, variables and plugins are closed.
//!   What dnf writes (cache, logs, history) lies within the installed root, for dnf puts such paths there.
//! - Debian's rpm keeps its database in `$HOME/.rpmdb`, and with another root in `ROOT/$HOME/.rpmdb`, where the installed
//!   system would not find it. A private `HOME` with a `.rpmmacros` names the place the release expects (Debian bug
//!   1004863).
//! - Signatures are demanded twice: by dnf (`gpgcheck`), and by rpm itself (`_pkgverify_level`).
//! - Scriptlets want `/proc`: it is mounted in dnf's own mount namespace, and gone with it.

use std::ffi::OsString;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use super::names::Release;
use crate::command::Program;
use crate::error::{Error, Kind, Result, shown};
use crate::input::{self, Accept, KEY_MAX};
use crate::rootfs::Package;
use crate::spec::raw::Repository;

/// Fields of a package in dnf's and rpm's answers, the digest last since it may hold the separator.
const OFFER_FORMAT: &str = "%{name}|%{epoch}|%{version}|%{release}|%{arch}|%{chksum}";
const INSTALLED_FORMAT: &str = "%{NAME}|%{EPOCHNUM}|%{VERSION}|%{RELEASE}|%{ARCH}\n";

/// What dnf keeps in the root, which an appliance does not need.
const TRACES: [&str; 3] = ["var/cache/dnf", "var/lib/dnf", "var/log"];

/// dnf, with one root and a set of repositories.
#[derive(Debug)]
pub struct Dnf {
    home: PathBuf,
    configuration: PathBuf,
    root: PathBuf,
    source_date: u64,
    release: Release,
}

impl Dnf {
    /// Writes the private configuration below `scratch`. `root` is an existing folder.
    ///
    /// # Errors
    /// A key file cannot be used, the folder's name is none for dnf, or writing failed.
    pub fn prepare(
        scratch: &Path,
        root: &Path,
        source_date: u64,
        release: Release,
        repositories: &[Repository],
    ) -> Result<Self> {
        if root
            .as_os_str()
            .as_encoded_bytes()
            .iter()
            .any(u8::is_ascii_control)
        {
            let text = format!(
                "dnf cannot work in {}: the name holds a control character",
                shown(root)
            );
            return Err(
                Error::new(Kind::Usage, text).hint("name another folder for what is temporary with --work")
            );
        }
        let home = scratch.join("home");
        fs::create_dir_all(&home).map_err(|error| Error::io("create", &home, error))?;
        let macros = home.join(".rpmmacros");
        let text = format!("%_dbpath {}\n%_pkgverify_level all\n", release.database);
        fs::write(&macros, text).map_err(|error| Error::io("write", &macros, error))?;
        let configuration = scratch.join("dnf.conf");
        let text = configuration_text(&release, repositories)?;
        fs::write(&configuration, text).map_err(|error| Error::io("write", &configuration, error))?;
        Ok(Self {
            home,
            configuration,
            root: root.to_owned(),
            source_date,
            release,
        })
    }

    fn dnf(&self) -> Program {
        let mut mount = OsString::from("--mount-proc=");
        mount.push(self.root.join("proc"));
        Program::new("unshare")
            .arg("--mount")
            .arg(mount)
            .args(["--", "dnf", "--config"])
            .arg(&self.configuration)
            .arg("--installroot")
            .arg(&self.root)
            .arg(format!("--releasever={}", self.release.number))
            .env("HOME", &self.home)
            // rpm takes it for the time of installation, which its database would carry otherwise.
            .env("SOURCE_DATE_EPOCH", self.source_date.to_string())
            .contained()
    }

    /// Fetches the index of one repository.
    ///
    /// # Errors
    /// Names the repository, its address, and what dnf found.
    pub fn fetch_index(&self, repository: &Repository) -> Result<()> {
        let done = self
            .dnf()
            .args(["makecache", "--disablerepo=*"])
            .arg(format!("--enablerepo={}", repository.id))
            .run();
        let Err(error) = done else { return Ok(()) };
        let said = error.to_string();
        if !said.contains("Failed to download metadata for repo") {
            return Err(error);
        }
        let reason = said
            .lines()
            .map(|line| line.trim().trim_start_matches("- "))
            .find(|line| line.starts_with("Curl error") || line.starts_with("Status code"))
            .unwrap_or("no mirror of it answered");
        let text = format!(
            "cannot read the index of repository {} at {}: {reason}",
            repository.id, repository.baseurl
        );
        Err(Error::new(Kind::Peer, text).hint(
            "check the network and the proxy, or name a mirror that can be reached in rootfs.repositories.baseurl",
        ))
    }

    /// What the repositories named offer, in all versions.
    ///
    /// # Errors
    /// dnf failed, or answered what is not understood.
    pub fn offers(&self, repositories: &[&str]) -> Result<Vec<Package>> {
        let answer = self
            .dnf()
            .args([
                "repoquery",
                "--quiet",
                "--cacheonly",
                "--available",
                "--qf",
                OFFER_FORMAT,
            ])
            .args(["--disablerepo=*"])
            .args(repositories.iter().map(|id| format!("--enablerepo={id}")))
            .run()?;
        let text = String::from_utf8_lossy(&answer);
        text.lines()
            .filter(|line| !line.trim().is_empty())
            .map(|line| {
                offer(line).ok_or_else(|| {
                    Error::new(
                        Kind::Unexpected,
                        format!("dnf repoquery answered {line:?}, which is no package with a SHA-256"),
                    )
                })
            })
            .collect()
    }

    /// Installs packages and what they depend on.
    ///
    /// # Errors
    /// A package cannot be fetched, is not signed with its repository's key, depends on what is not there, or its
    /// scriptlet failed.
    pub fn install(&self, packages: &[String], repositories: &[String]) -> Result<()> {
        let done = self
            .dnf()
            .args(["install", "--disablerepo=*"])
            .args(repositories.iter().map(|id| format!("--enablerepo={id}")))
            .arg("--")
            .args(packages)
            .run();
        done.map(drop).map_err(|error| explain(&error))
    }

    /// The installed packages, without digests.
    ///
    /// # Errors
    /// rpm failed, or its database is not where the release expects it.
    pub fn installed(&self) -> Result<Vec<Package>> {
        let database = self.root.join(self.release.database.trim_start_matches('/'));
        if !database.join("rpmdb.sqlite").is_file() {
            let text = format!("there is no package database in {}", shown(&database));
            return Err(Error::new(Kind::Unexpected, text)
                .hint("rpm of this host put it elsewhere; the installed system would believe that nothing is installed"));
        }
        let answer = Program::new("rpm")
            .arg("--root")
            .arg(&self.root)
            .args(["--query", "--all", "--queryformat", INSTALLED_FORMAT])
            .env("HOME", &self.home)
            .contained()
            .run()?;
        let text = String::from_utf8_lossy(&answer);
        let mut packages = Vec::new();
        for line in text.lines() {
            let fields: Vec<&str> = line.split('|').collect();
            match fields[..] {
                // Not a package: the key that packages were verified with.
                ["gpg-pubkey", ..] => {}
                [name, epoch, version, release, architecture] => {
                    packages.push(package(
                        name,
                        epoch,
                        version,
                        release,
                        architecture,
                        String::new(),
                    ));
                }
                _ => {
                    let text = format!("rpm answered {line:?}, which is no package");
                    return Err(Error::new(Kind::Unexpected, text));
                }
            }
        }
        packages.sort();
        Ok(packages)
    }

    /// Removes what dnf and rpm left beside the packages.
    ///
    /// # Errors
    /// Removing failed.
    pub fn tidy(&self) -> Result<()> {
        for name in TRACES {
            let folder = self.root.join(name);
            let entries = match fs::read_dir(&folder) {
                Ok(entries) => entries,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                Err(error) => return Err(Error::io("list", &folder, error)),
            };
            for entry in entries {
                let path = entry.map_err(|error| Error::io("list", &folder, error))?.path();
                let file = path.file_name().unwrap_or_default().to_string_lossy();
                let ours = name != "var/log" || file.starts_with("dnf") || file.starts_with("hawkey");
                if !ours {
                    continue;
                }
                let removed = if path.is_dir() {
                    fs::remove_dir_all(&path)
                } else {
                    fs::remove_file(&path)
                };
                removed.map_err(|error| Error::io("remove", &path, error))?;
            }
        }
        // Of the database's write-ahead log nothing is left to be written; the reader's index of it says nothing then.
        let database = self.root.join(self.release.database.trim_start_matches('/'));
        let log = database.join("rpmdb.sqlite-wal");
        if log.metadata().is_ok_and(|metadata| metadata.len() == 0) {
            for name in ["rpmdb.sqlite-wal", "rpmdb.sqlite-shm", ".rpm.lock"] {
                let path = database.join(name);
                match fs::remove_file(&path) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                        return Err(Error::io("remove", &path, error));
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }
}

fn configuration_text(release: &Release, repositories: &[Repository]) -> Result<String> {
    let mut text = format!(
        "[main]\n\
         gpgcheck=1\n\
         localpkg_gpgcheck=1\n\
         assumeyes=1\n\
         plugins=0\n\
         best=1\n\
         install_weak_deps=0\n\
         skip_if_unavailable=0\n\
         countme=0\n\
         retries=3\n\
         timeout=30\n\
         reposdir=/dev/null\n\
         varsdir=/dev/null\n\
         cachedir=/var/cache/dnf\n\
         persistdir=/var/lib/dnf\n\
         logdir=/var/log\n\
         module_platform_id=platform:el{}\n",
        release.number
    );
    for repository in repositories {
        let key = key_address(repository)?;
        // Writing to a string cannot fail.
        let _ = write!(
            text,
            "\n[{id}]\nname={id}\nbaseurl={url}\ngpgkey={key}\ngpgcheck=1\nenabled=1\n",
            id = repository.id,
            url = repository.baseurl
        );
    }
    Ok(text)
}

/// Address of a repository's key file, after a look at it: dnf would report a missing one as a network fault.
fn key_address(repository: &Repository) -> Result<String> {
    let path = Path::new(&repository.gpgkey);
    let refuse = |what: String| {
        Err(Error::new(
            Kind::Config,
            format!("key file of repository {}: {what}", repository.id),
        )
        .hint(format!(
            "put the public key that packages of {} are signed with into a file, and name it in \
                 rootfs.repositories.gpgkey; Debian has no package of such keys",
            repository.id
        )))
    };
    if !path.is_absolute() {
        return refuse(format!("{:?} is no absolute path", repository.gpgkey));
    }
    match input::read("key file", path, KEY_MAX, Accept::File) {
        Err(error) => refuse(error.to_string()),
        Ok(bytes) if !String::from_utf8_lossy(&bytes).contains("-----BEGIN PGP PUBLIC KEY BLOCK-----") => {
            refuse(format!("{} holds no public key in ASCII armour", shown(path)))
        }
        Ok(_) => Ok(format!("file://{}", escape(path.as_os_str().as_encoded_bytes()))),
    }
}

/// A path as an address carries it; dnf takes a list of addresses, which spaces would divide.
fn escape(path: &[u8]) -> String {
    let mut text = String::new();
    for byte in path {
        if byte.is_ascii_alphanumeric() || b"/-_.".contains(byte) {
            text.push(char::from(*byte));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(text, "%{byte:02X}");
        }
    }
    text
}

/// Says in words what dnf says in its own way, and leaves dnf's words below.
fn explain(error: &Error) -> Error {
    let said = error.to_string();
    let line = |needles: &[&str]| {
        said.lines()
            .map(str::trim)
            .find(|line| needles.iter().any(|needle| line.contains(needle)))
            .unwrap_or_default()
            .to_owned()
    };
    let signature = [
        "is not signed",
        "Public key for",
        "Problem opening package",
        "is not correct",
        "does not verify",
    ];
    let digest = [
        "incorrect checksum",
        "Downloading successful, but checksum doesn't match",
    ];
    let any = |needles: &[&str]| needles.iter().any(|needle| said.contains(needle));
    if said.contains("GPG check FAILED") || any(&["does not verify"]) {
        let text = format!(
            "a package is not signed with the key of its repository, nothing was installed: {}\n{said}",
            line(&signature)
        );
        return Error::new(Kind::Peer, text)
            .hint("do not use this mirror before you know why; compare rootfs.repositories.gpgkey with the maker's key");
    }
    if any(&digest) {
        let text = format!(
            "a package is not the one that the index of its repository describes, nothing was installed: {}\n{said}",
            line(&digest)
        );
        return Error::new(Kind::Peer, text)
            .hint("the mirror is damaged or being updated: try later, or another one");
    }
    if any(&["nothing provides", "conflicting requests", "Depsolve Error"]) {
        let text = format!(
            "the packages of the image spec do not fit together: {}\n{said}",
            line(&["nothing provides", "conflicting requests", "Problem"])
        );
        return Error::new(Kind::Config, text).hint(
            "a repository is missing in rootfs.repositories, or two of them belong to different releases",
        );
    }
    let again = Error::new(error.kind, said);
    match error.next_step() {
        Some(hint) => again.hint(hint),
        None => again,
    }
}

fn package(
    name: &str,
    epoch: &str,
    version: &str,
    release: &str,
    architecture: &str,
    sha256: String,
) -> Package {
    let epoch = if epoch == "0" {
        String::new()
    } else {
        format!("{epoch}:")
    };
    Package {
        name: name.to_owned(),
        architecture: architecture.to_owned(),
        version: format!("{epoch}{version}-{release}"),
        sha256,
    }
}

/// Reads a line of [`OFFER_FORMAT`].
fn offer(line: &str) -> Option<Package> {
    let mut fields = line.splitn(6, '|');
    let mut next = || fields.next();
    let (name, epoch, version, release, architecture) = (next()?, next()?, next()?, next()?, next()?);
    let digest = python_bytes(next()?)?;
    if digest.len() != 32 {
        return None;
    }
    let sha256 = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    Some(package(name, epoch, version, release, architecture, sha256))
}

/// The bytes in `(2, b'\x00...')`, which is how dnf, a Python program, prints a digest.
fn python_bytes(text: &str) -> Option<Vec<u8>> {
    let (kind, literal) = text.strip_prefix('(')?.split_once(", b")?;
    if kind.is_empty() || !kind.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let mut rest = literal.bytes();
    let quote = rest.next().filter(|byte| b"'\"".contains(byte))?;
    let mut bytes = Vec::new();
    loop {
        let byte = rest.next()?;
        if byte == quote {
            return Some(bytes);
        }
        if byte != b'\\' {
            bytes.push(byte);
            continue;
        }
        bytes.push(match rest.next()? {
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'x' => {
                let digits = [rest.next()?, rest.next()?];
                u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
            }
            other @ (b'\\' | b'\'' | b'"') => other,
            _ => return None,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::super::names::release;
    use super::*;

    #[test]
    fn digests_are_read_as_python_prints_them() {
        let mut text = String::from(r"alpha|1|1.2|3.el9|noarch|(2, b'|\'\\\n\r\t");
        text += &r"\x00".repeat(13);
        text += &"a".repeat(13);
        text += "')";
        let found = offer(&text).unwrap();
        assert_eq!(
            (found.name.as_str(), found.version.as_str()),
            ("alpha", "1:1.2-3.el9")
        );
        let expected = format!("7c275c0a0d09{}{}", "00".repeat(13), "61".repeat(13));
        assert_eq!(found.sha256, expected);
        for broken in [
            "",
            "alpha",
            "a|0|1|2|noarch|",
            "a|0|1|2|noarch|(1, b'short')",
            "a|0|1|2|noarch|(2, b'",
            r"a|0|1|2|noarch|(2, b'\q')",
        ] {
            assert_eq!(offer(broken), None, "{broken:?}");
        }
        let quoted = format!("a|0|1|2|noarch|(2, b\"b'{}\")", "b".repeat(30));
        assert!(offer(&quoted).unwrap().sha256.starts_with("622762"));
    }

    #[test]
    fn keys_are_looked_at_before_anything_is_fetched() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a key.asc");
        let repository = |gpgkey: &Path| Repository {
            id: "baseos".into(),
            baseurl: "https://mirror.invalid/".into(),
            gpgkey: gpgkey.to_str().unwrap().into(),
            optional: false,
        };
        for (text, says) in [(None, "cannot read"), (Some("no key"), "holds no public key")] {
            if let Some(text) = text {
                fs::write(&file, text).unwrap();
            }
            let error = key_address(&repository(&file)).unwrap_err();
            assert_eq!(error.kind, Kind::Config);
            assert!(
                error.to_string().contains(says) && error.to_string().contains("repository baseos"),
                "{error}"
            );
        }
        assert!(key_address(&repository(Path::new("key.asc"))).is_err());
        fs::write(&file, "-----BEGIN PGP PUBLIC KEY BLOCK-----\n").unwrap();
        let text = configuration_text(&release("9").unwrap(), &[repository(&file)]).unwrap();
        assert!(
            text.contains("/a%20key.asc\n") && text.matches("gpgcheck=1").count() == 3,
            "{text}"
        );
        assert!(!text.contains("gpgcheck=0"));
    }
}
