// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is in an image: package manifest and software bill of materials (SPDX 2.3, JSON), and the lock file. The bill
//! that also knows the crates of the own programs is in [`cyclonedx`].

pub mod cyclonedx;

use serde::{Deserialize, Serialize};

use crate::rootfs::Package;
use crate::spec::{Base, ImageSpec};

/// A lock file: the packages that a build must come to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lock {
    /// Version of this format, 1.
    pub schema: u32,
    /// All packages, sorted.
    pub packages: Vec<Package>,
}

impl Lock {
    /// What differs between this lock and the packages of a build, in words; empty when nothing does.
    #[must_use]
    pub fn differences(&self, packages: &[Package]) -> Vec<String> {
        let find = |list: &[Package], like: &Package| {
            list.iter()
                .find(|other| other.name == like.name && other.architecture == like.architecture)
                .cloned()
        };
        let mut found = Vec::new();
        for locked in &self.packages {
            match find(packages, locked) {
                None => found.push(format!(
                    "{} {} is locked, but not in the image",
                    locked.name, locked.version
                )),
                Some(now) if now.version != locked.version => {
                    found.push(format!(
                        "{}: {} is locked, the mirror has {}",
                        locked.name, locked.version, now.version
                    ));
                }
                Some(now) if now.sha256 != locked.sha256 => {
                    found.push(format!(
                        "{} {}: digest {} is locked, found {}",
                        locked.name, locked.version, locked.sha256, now.sha256
                    ));
                }
                Some(_) => {}
            }
        }
        let new = packages
            .iter()
            .filter(|package| find(&self.packages, package).is_none());
        found.extend(new.map(|package| {
            format!(
                "{} {} is in the image, but not locked",
                package.name, package.version
            )
        }));
        found
    }
}

/// Package URL of a package of the distribution.
fn deb_purl(base: Base, package: &Package) -> String {
    let (kind, distribution) = match base {
        Base::Debian => ("deb", "debian"),
        Base::El => ("rpm", "centos"),
    };
    let version = package.version.replace('+', "%2B").replace(':', "%3A");
    format!(
        "pkg:{kind}/{distribution}/{}@{version}?arch={}",
        package.name.replace('+', "%2B"),
        package.architecture
    )
}

/// Renders the SPDX document.
#[must_use]
pub fn spdx(spec: &ImageSpec, created: &str, packages: &[Package]) -> serde_json::Value {
    let identity = |package: &Package| {
        let clean: String = package
            .name
            .chars()
            .map(|c| {
                if c.is_ascii_alphanumeric() || c == '.' {
                    c
                } else {
                    '-'
                }
            })
            .collect();
        format!("SPDXRef-Package-{clean}-{}", package.architecture)
    };
    let described: Vec<_> = packages
        .iter()
        .map(|package| {
            serde_json::json!({
                "SPDXID": identity(package),
                "name": package.name,
                "versionInfo": package.version,
                "downloadLocation": "NOASSERTION",
                "licenseConcluded": "NOASSERTION",
                "licenseDeclared": "NOASSERTION",
                "copyrightText": "NOASSERTION",
                "checksums": [{ "algorithm": "SHA256", "checksumValue": package.sha256 }],
                "externalRefs": [{
                    "referenceCategory": "PACKAGE-MANAGER",
                    "referenceType": "purl",
                    "referenceLocator": deb_purl(spec.rootfs.base, package),
                }],
            })
        })
        .collect();
    let relations: Vec<_> = packages
        .iter()
        .map(|package| {
            serde_json::json!({
                "spdxElementId": "SPDXRef-DOCUMENT",
                "relationshipType": "DESCRIBES",
                "relatedSpdxElement": identity(package),
            })
        })
        .collect();
    serde_json::json!({
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": format!("{}-{}", spec.name, spec.version),
        "documentNamespace": format!("urn:master-target:{}:{}", spec.name, spec.version),
        "creationInfo": { "created": created, "creators": [format!("Tool: mt-image-{}", env!("CARGO_PKG_VERSION"))] },
        "packages": described,
        "relationships": relations,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, version: &str, sha256: &str) -> Package {
        Package {
            name: name.into(),
            architecture: "amd64".into(),
            version: version.into(),
            sha256: sha256.into(),
        }
    }

    #[test]
    fn every_difference_to_the_lock_is_named() {
        let lock = Lock {
            schema: 1,
            packages: vec![
                package("a", "1", "x"),
                package("b", "1", "x"),
                package("c", "1", "x"),
                package("d", "1", "x"),
            ],
        };
        assert!(lock.differences(&lock.packages).is_empty());
        let now = [
            package("a", "2", "y"),
            package("b", "1", "z"),
            package("d", "1", "x"),
            package("e", "1", "x"),
        ];
        let found = lock.differences(&now);
        assert_eq!(found.len(), 4, "{found:?}");
    }

    #[test]
    fn the_lock_file_of_the_default_image_names_a_digest_for_every_package() {
        let lock: Lock = toml::from_str(include_str!("../specs/debian.lock.toml")).unwrap();
        assert_eq!(lock.schema, 1);
        let spec = crate::spec::parse(include_str!("../specs/debian.toml")).unwrap();
        for asked in &spec.rootfs.packages {
            let locked = lock.packages.iter().find(|package| package.name == *asked);
            let locked = locked.unwrap_or_else(|| panic!("{asked} is not locked"));
            assert!(locked.sha256.len() == 64, "{asked}: {}", locked.sha256);
        }
    }

    #[test]
    fn the_spdx_document_describes_every_package() {
        let spec = crate::spec::parse(include_str!("../specs/debian.toml")).unwrap();
        let packages = [
            package("libstdc++6", "12.2.0-14+deb12u1", "ab"),
            package("xfsprogs", "6.1.0-1", "cd"),
        ];
        let document = spdx(&spec, "2026-01-01T00:00:00Z", &packages);
        assert_eq!(document["packages"].as_array().unwrap().len(), 2);
    }
}
