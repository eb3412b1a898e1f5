// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which mirror a build fetches from: the one that apt on the build host uses, by the same proxy.
//!
//! A spec names `deb.debian.org`, which is right everywhere; a build host may have a mirror of its own that is nearer,
//! or the only one it reaches. What is fetched is verified by the archive's signatures either way, and the image keeps
//! the spec's addresses.

use std::fs;
use std::path::Path;

use crate::command::Program;
use crate::error::{Error, Kind, Result};

/// Address that stands for "any Debian mirror".
const NEUTRAL: &str = "://deb.debian.org/";

/// What apt on the build host knows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostApt {
    /// Suites, each with the address of its mirror.
    mirrors: Vec<(String, String)>,
    /// Proxy for http and https, by environment variable.
    pub proxies: Vec<(&'static str, String)>,
}

impl HostApt {
    /// Asks apt; a host without apt has no mirror of its own.
    ///
    /// # Errors
    /// apt is there, but its configuration is damaged.
    pub fn read() -> Result<Self> {
        if !Path::new("/usr/bin/apt-get").exists() {
            return Ok(Self::default());
        }
        let format = "$(ORIGIN)\t$(RELEASE)\t$(REPO_URI)";
        let targets = Program::new("apt-get")
            .args(["indextargets", "--format", format, "Created-By: Packages"])
            .run()?;
        let mut proxies = Vec::new();
        for (variable, key) in [
            ("http_proxy", "Acquire::http::Proxy"),
            ("https_proxy", "Acquire::https::Proxy"),
        ] {
            let value = Program::new("apt-config")
                .args(["dump", "--format", "%v", key])
                .run()?;
            let value = String::from_utf8_lossy(&value).trim().to_owned();
            if !value.is_empty() && value != "DIRECT" {
                proxies.push((variable, value));
            }
        }
        Ok(Self {
            mirrors: parse_targets(&String::from_utf8_lossy(&targets)),
            proxies,
        })
    }

    /// The suite's release file as the mirror has it now; not verified, since only its being the same matters.
    ///
    /// # Errors
    /// The mirror cannot be reached or has no such suite.
    pub fn release_file(&self, source: &str, scratch: &Path) -> Result<Vec<u8>> {
        let resolved = self.resolve(source);
        let (url, suite) = address(&resolved).ok_or_else(|| {
            let text = format!("rootfs.sources: {source:?} names no address and suite");
            Error::new(Kind::Config, text)
        })?;
        let url = format!("{}/dists/{suite}/InRelease", url.trim_end_matches('/'));
        let file = scratch.join("InRelease");
        let mut helper = Program::new("/usr/lib/apt/apt-helper")
            .args(["-o", "Acquire::Retries=2", "-o", "APT::Sandbox::User=root"])
            .arg("download-file")
            .arg(&url)
            .arg(&file);
        for (variable, proxy) in &self.proxies {
            helper = helper.env(variable, proxy);
        }
        helper.run()?;
        let bytes = fs::read(&file).map_err(|error| Error::io("read", &file, error))?;
        fs::remove_file(&file).map_err(|error| Error::io("remove", &file, error))?;
        Ok(bytes)
    }

    /// The spec's source, with the host's mirror in place of the neutral address.
    #[must_use]
    pub fn resolve(&self, source: &str) -> String {
        let words: Vec<&str> = source.split(' ').collect();
        let Some(at) = words.iter().position(|word| word.contains(NEUTRAL)) else {
            return source.to_owned();
        };
        let suite = words.get(at + 1).copied().unwrap_or_default();
        let Some((_, mirror)) = self.mirrors.iter().find(|(known, _)| known == suite) else {
            return source.to_owned();
        };
        let mut resolved = words.clone();
        resolved[at] = mirror.trim_end_matches('/');
        resolved.join(" ")
    }
}

/// Address and suite of a `deb [OPTIONS] URL SUITE COMPONENT...` line.
fn address(source: &str) -> Option<(&str, &str)> {
    let rest = source.strip_prefix("deb ")?.trim_start();
    let rest = if rest.starts_with('[') {
        rest.split_once(']')?.1
    } else {
        rest
    };
    let mut words = rest.split_whitespace();
    Some((words.next()?, words.next()?))
}

/// Lines of origin, release and address. Other projects use Debian's suite names for their own archives, so only what
/// Debian signed counts, and a release file that was never fetched has no origin.
fn parse_targets(text: &str) -> Vec<(String, String)> {
    let mut mirrors: Vec<(String, String)> = Vec::new();
    for line in text.lines() {
        let mut fields = line.split('\t');
        if let (Some("Debian"), Some(suite), Some(mirror)) = (fields.next(), fields.next(), fields.next())
            && !mirror.is_empty()
            && !mirrors.iter().any(|(known, _)| known == suite)
        {
            mirrors.push((suite.to_owned(), mirror.to_owned()));
        }
    }
    mirrors
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_mirror_takes_the_place_of_the_neutral_address() {
        let host = HostApt {
            mirrors: parse_targets(
                "Other\tbookworm\thttps://packages.example/linux/\n\
                 Debian\tbookworm\thttp://mirror.example/debian/\n\
                 Debian\tbookworm\thttp://second.example/debian/\n\
                 Debian\tbookworm-security\thttp://mirror.example/security\n\tbookworm-updates\thttp://x.example/\n",
            ),
            proxies: Vec::new(),
        };
        assert_eq!(
            host.resolve("deb http://deb.debian.org/debian bookworm main"),
            "deb http://mirror.example/debian bookworm main"
        );
        assert_eq!(
            host.resolve(
                "deb [arch=amd64] http://deb.debian.org/debian-security bookworm-security main contrib"
            ),
            "deb [arch=amd64] http://mirror.example/security bookworm-security main contrib"
        );
        for unchanged in [
            "deb http://deb.debian.org/debian bookworm-updates main",
            "deb http://deb.debian.org/debian trixie main",
            "deb http://archive.example/debian bookworm main",
        ] {
            assert_eq!(host.resolve(unchanged), unchanged);
        }
    }
}
