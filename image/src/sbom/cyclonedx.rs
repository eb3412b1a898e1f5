// SPDX-License-Identifier: MIT OR Apache-2.0
//! The software bill of materials as CycloneDX 1.5 (JSON): the distribution's packages, and the crates that the own
//! programs in the image were built from.
//!
//! The crates come from what `cargo metadata --format-version 1 --locked --filter-platform TRIPLE` prints, followed from
//! the programs along normal dependencies (what only builds or tests them is not in the image), and their digests from the
//! `Cargo.lock` of that workspace.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::Deserialize;

use super::deb_purl;
use crate::rootfs::Package;
use crate::spec::ImageSpec;

/// The own programs in the image.
pub const PROGRAMS: &[&str] = &["mt-agent", "mt-installer"];

/// A crate that a program was built from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Crate {
    /// Name.
    pub name: String,
    /// Version.
    pub version: String,
    /// SPDX expression of its licence, where it states one.
    pub license: Option<String>,
    /// SHA-256 of its archive, for crates of a registry.
    pub sha256: Option<String>,
    /// Whether it came from a registry; a crate of this workspace did not.
    pub is_foreign: bool,
    /// Crates that it uses, by [`Crate::purl`].
    pub uses: Vec<String>,
}

impl Crate {
    /// Its package URL.
    #[must_use]
    pub fn purl(&self) -> String {
        purl(&self.name, &self.version)
    }
}

fn purl(name: &str, version: &str) -> String {
    format!("pkg:cargo/{name}@{}", version.replace('+', "%2B"))
}

#[derive(Debug, Deserialize)]
struct Metadata {
    packages: Vec<MetadataPackage>,
    resolve: Option<Resolve>,
}

#[derive(Debug, Deserialize)]
struct MetadataPackage {
    id: String,
    name: String,
    version: String,
    license: Option<String>,
    source: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Debug, Deserialize)]
struct Node {
    id: String,
    deps: Vec<Dep>,
}

#[derive(Debug, Deserialize)]
struct Dep {
    pkg: String,
    dep_kinds: Vec<DepKind>,
}

#[derive(Debug, Deserialize)]
struct DepKind {
    /// Absent for a normal dependency, else `build` or `dev`.
    kind: Option<String>,
}

#[derive(Debug, Deserialize)]
struct CargoLock {
    package: Vec<LockedCrate>,
}

#[derive(Debug, Deserialize)]
struct LockedCrate {
    name: String,
    version: String,
    checksum: Option<String>,
}

/// The crates that `programs` consist of, themselves among them, sorted by name and version.
///
/// # Errors
/// In words: what of the two texts is not as cargo writes it, or which program is missing.
pub fn crates_of(metadata: &str, lock: &str, programs: &[&str]) -> Result<Vec<Crate>, String> {
    let metadata: Metadata =
        serde_json::from_str(metadata).map_err(|error| format!("not what cargo metadata prints: {error}"))?;
    let lock: CargoLock =
        toml::from_str(lock).map_err(|error| format!("its Cargo.lock is damaged: {}", error.message()))?;
    let resolve = metadata
        .resolve
        .ok_or("holds no dependencies: it was made with --no-deps")?;
    let packages: HashMap<&str, &MetadataPackage> = metadata
        .packages
        .iter()
        .map(|package| (package.id.as_str(), package))
        .collect();
    let nodes: HashMap<&str, &Node> = resolve
        .nodes
        .iter()
        .map(|node| (node.id.as_str(), node))
        .collect();
    let checksums: HashMap<(&str, &str), &str> = lock
        .package
        .iter()
        .filter_map(|found| {
            Some((
                (found.name.as_str(), found.version.as_str()),
                found.checksum.as_deref()?,
            ))
        })
        .collect();
    let mut open = Vec::new();
    for name in programs {
        let program = metadata
            .packages
            .iter()
            .find(|package| package.name == *name && package.source.is_none());
        open.push(program.ok_or(format!("holds no program {name}"))?.id.as_str());
    }
    let mut seen: BTreeSet<&str> = open.iter().copied().collect();
    let mut found = BTreeMap::new();
    while let Some(id) = open.pop() {
        let (package, node) = packages
            .get(id)
            .zip(nodes.get(id))
            .ok_or(format!("names a crate {id} that it does not describe"))?;
        let mut uses = BTreeSet::new();
        for dep in &node.deps {
            if !dep.dep_kinds.iter().any(|kind| kind.kind.is_none()) {
                continue;
            }
            if let Some(used) = packages.get(dep.pkg.as_str()) {
                uses.insert(purl(&used.name, &used.version));
            }
            if seen.insert(&dep.pkg) {
                open.push(&dep.pkg);
            }
        }
        let version = package.version.as_str();
        found.insert(
            (package.name.as_str(), version),
            Crate {
                name: package.name.clone(),
                version: package.version.clone(),
                // The older form of two licences to choose from.
                license: package.license.as_ref().map(|text| text.replace('/', " OR ")),
                sha256: checksums
                    .get(&(package.name.as_str(), version))
                    .map(|sum| (*sum).to_owned()),
                is_foreign: package.source.is_some(),
                uses: uses.into_iter().collect(),
            },
        );
    }
    Ok(found.into_values().collect())
}

/// Renders the document. The same contents give the same bytes, serial number included.
#[must_use]
pub fn render(spec: &ImageSpec, created: &str, packages: &[Package], crates: &[Crate]) -> serde_json::Value {
    let image = format!("{}@{}", spec.name, spec.version);
    let mut components: Vec<serde_json::Value> = packages
        .iter()
        .map(|package| {
            let purl = deb_purl(spec.rootfs.base, package);
            serde_json::json!({
                "type": "library",
                "bom-ref": purl,
                "name": package.name,
                "version": package.version,
                "purl": purl,
                "hashes": [{ "alg": "SHA-256", "content": package.sha256 }],
            })
        })
        .collect();
    components.extend(crates.iter().map(|found| {
        let kind = if PROGRAMS.contains(&found.name.as_str()) {
            "application"
        } else {
            "library"
        };
        let mut component = serde_json::json!({
            "type": kind,
            "bom-ref": found.purl(),
            "name": found.name,
            "version": found.version,
        });
        if found.is_foreign {
            component["purl"] = found.purl().into();
        }
        if let Some(license) = &found.license {
            component["licenses"] = serde_json::json!([{ "expression": license }]);
        }
        if let Some(sha256) = &found.sha256 {
            component["hashes"] = serde_json::json!([{ "alg": "SHA-256", "content": sha256 }]);
        }
        component
    }));
    let direct: Vec<String> = packages
        .iter()
        .map(|package| deb_purl(spec.rootfs.base, package))
        .chain(
            crates
                .iter()
                .filter(|found| PROGRAMS.contains(&found.name.as_str()))
                .map(Crate::purl),
        )
        .collect();
    let mut dependencies = vec![serde_json::json!({ "ref": image, "dependsOn": direct })];
    dependencies.extend(
        crates
            .iter()
            .map(|found| serde_json::json!({ "ref": found.purl(), "dependsOn": found.uses })),
    );
    let mut document = serde_json::json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "timestamp": created,
            "tools": { "components": [
                { "type": "application", "name": "mt-image", "version": env!("CARGO_PKG_VERSION") },
            ] },
            "component": {
                "type": "operating-system",
                "bom-ref": image,
                "name": spec.name,
                "version": spec.version,
            },
        },
        "components": components,
        "dependencies": dependencies,
    });
    document["serialNumber"] = serial_number(&document).into();
    document
}

/// A UUID of version 8 (RFC 9562: of one's own making), from the contents.
fn serial_number(document: &serde_json::Value) -> String {
    let digest = blake3::hash(document.to_string().as_bytes());
    let mut bytes: [u8; 16] = [0; 16];
    bytes.copy_from_slice(&digest.as_bytes()[..16]);
    bytes[6] = (bytes[6] & 0x0f) | 0x80;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!(
        "urn:uuid:{}-{}-{}-{}-{}",
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..]
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const METADATA: &str = r#"{
        "packages": [
            { "id": "p1", "name": "mt-agent", "version": "0.1.0", "license": "MIT OR Apache-2.0", "source": null },
            { "id": "p2", "name": "serde", "version": "1.0.1", "license": "MIT/Apache-2.0", "source": "registry+x" },
            { "id": "p3", "name": "cc", "version": "1.2.3", "license": "MIT", "source": "registry+x" },
            { "id": "p4", "name": "proptest", "version": "1.0.0", "license": "MIT", "source": "registry+x" },
            { "id": "p5", "name": "itoa", "version": "1.0.0+x", "license": null, "source": "registry+x" },
            { "id": "p6", "name": "other", "version": "1.0.0", "license": null, "source": "registry+x" }
        ],
        "resolve": { "nodes": [
            { "id": "p1", "deps": [
                { "pkg": "p2", "dep_kinds": [{ "kind": null }] },
                { "pkg": "p3", "dep_kinds": [{ "kind": "build" }] },
                { "pkg": "p4", "dep_kinds": [{ "kind": "dev" }] }
            ] },
            { "id": "p2", "deps": [{ "pkg": "p5", "dep_kinds": [{ "kind": "dev" }, { "kind": null }] }] },
            { "id": "p5", "deps": [] }
        ] }
    }"#;
    const LOCK: &str = "[[package]]\nname = \"serde\"\nversion = \"1.0.1\"\nchecksum = \"ab\"\n\
                        [[package]]\nname = \"mt-agent\"\nversion = \"0.1.0\"\n";

    #[test]
    fn crates_are_those_that_the_program_consists_of() {
        let crates = crates_of(METADATA, LOCK, &["mt-agent"]).unwrap();
        let names: Vec<&str> = crates.iter().map(|found| found.name.as_str()).collect();
        assert_eq!(names, ["itoa", "mt-agent", "serde"]);
        assert_eq!(crates[1].uses, ["pkg:cargo/serde@1.0.1"]);
        assert_eq!(crates[2].uses, ["pkg:cargo/itoa@1.0.0%2Bx"]);
        assert_eq!(crates[2].license.as_deref(), Some("MIT OR Apache-2.0"));
        assert_eq!(crates[2].sha256.as_deref(), Some("ab"));
        assert!(!crates[1].is_foreign && crates[1].sha256.is_none());
    }

    #[test]
    fn what_cargo_did_not_write_is_told() {
        let missing = crates_of(METADATA, LOCK, &["mt-installer"]).unwrap_err();
        assert!(missing.contains("no program mt-installer"), "{missing}");
        assert!(crates_of("{}", LOCK, &[]).is_err());
        assert!(crates_of(METADATA, "package = 1", &[]).is_err());
        let shallow = METADATA.replace("\"resolve\": {", "\"resolve\": null, \"was\": {");
        assert!(crates_of(&shallow, LOCK, &[]).unwrap_err().contains("--no-deps"));
    }

    #[test]
    fn every_reference_leads_to_a_component() {
        let spec = crate::spec::parse(include_str!("../../specs/debian.toml")).unwrap();
        let packages = [Package {
            name: "libstdc++6".into(),
            architecture: "amd64".into(),
            version: "12.2.0-14".into(),
            sha256: "cd".into(),
        }];
        let crates = crates_of(METADATA, LOCK, &["mt-agent"]).unwrap();
        let document = render(&spec, "2026-01-01T00:00:00Z", &packages, &crates);
        let listed = document["components"].as_array().unwrap();
        let known: BTreeSet<&str> = listed
            .iter()
            .chain([&document["metadata"]["component"]])
            .map(|component| component["bom-ref"].as_str().unwrap())
            .collect();
        assert_eq!(known.len(), 5, "four components and the image, no name twice");
        for entry in document["dependencies"].as_array().unwrap() {
            assert!(known.contains(entry["ref"].as_str().unwrap()));
            for used in entry["dependsOn"].as_array().unwrap() {
                assert!(known.contains(used.as_str().unwrap()), "{used}");
            }
        }
        let again = render(&spec, "2026-01-01T00:00:00Z", &packages, &crates);
        assert_eq!(document, again);
        let other = render(&spec, "2026-01-01T00:00:00Z", &packages, &[]);
        assert_ne!(document["serialNumber"], other["serialNumber"]);
    }
}
