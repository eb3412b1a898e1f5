// SPDX-License-Identifier: MIT OR Apache-2.0
//! Judges a spec that could be parsed: bounds, and what contradicts what.
//!
//! All faults are found, not only the first. Each has its place, the path of its key with a number for an entry of a list
//! (`properties.3.key`), by which [`super::lines`] finds the line.

use crate::rootfs::el::names;

use super::raw::{Base, Firmware, Hardware, Image, Product, RawSpec, Rootfs, Sizes};
use super::{
    HARDWARE_VERSIONS, SOURCE_DATES, check_version, contents, guest_os, is_file_word, is_package,
    is_xml_text, property,
};

/// Largest bound of an artefact: 16 TiB, beyond which no file system of a build host goes.
const MIB_MAX: u64 = 16 << 20;
/// Code names of Debian's releases; a suite of one in an image of another mixes two systems.
const DEBIAN_RELEASES: &[&str] = &[
    "stretch", "buster", "bullseye", "bookworm", "trixie", "forky", "duke", "sid",
];

/// What a debian image cannot be built or started without, and what it is there for. They are to be named even where
/// another package would bring them: what a dependency brings today, it may drop tomorrow.
const NEEDED_PACKAGES: &[(&str, &str)] = &[
    ("initramfs-tools", "makes what the kernel starts from"),
    ("systemd", "starts the appliance"),
    ("systemd-sysv", "is the first program that the kernel starts"),
    ("udev", "finds the disks"),
    ("grub-pc-bin", "is the boot loader for BIOS"),
    ("grub-efi-amd64-bin", "is the boot loader for UEFI"),
    ("grub-efi-amd64-signed", "is the boot loader for Secure Boot"),
    ("shim-signed", "is what Secure Boot starts first"),
    ("e2fsprogs", "makes the file systems of the appliance"),
    ("dosfstools", "makes the partition of the boot loaders"),
    ("fdisk", "makes the partitions of the appliance's disk"),
];
/// Endings of the names of systemd's units; `systemctl` would take a name without one as that of a service, the link
/// that masks a unit is not found by it.
const UNIT_TYPES: &[&str] = &[
    "service",
    "socket",
    "device",
    "mount",
    "automount",
    "swap",
    "target",
    "path",
    "timer",
    "slice",
    "scope",
];

/// Faults with their places.
#[derive(Debug, Default)]
pub struct Judge {
    faults: Vec<(String, String)>,
}

impl Judge {
    /// Notes a fault at a place.
    pub fn fault(&mut self, place: impl Into<String>, text: impl Into<String>) {
        self.faults.push((place.into(), text.into()));
    }

    /// The faults, each with its place.
    pub fn into_faults(self) -> Vec<(String, String)> {
        self.faults
    }

    /// Notes a fault unless something holds.
    pub fn ensure(&mut self, holds: bool, place: impl Into<String>, text: impl FnOnce() -> String) {
        if !holds {
            self.fault(place, text());
        }
    }
}

/// All faults of a spec, each with its place.
pub fn judge(raw: &RawSpec) -> Vec<(String, String)> {
    let mut judge = Judge::default();
    judge.ensure(raw.schema == 1, "schema", || {
        format!("is {}, this program reads 1", raw.schema)
    });
    image(&mut judge, &raw.image);
    product(&mut judge, &raw.product);
    rootfs(&mut judge, &raw.rootfs);
    judge.faults.extend(hardware(&raw.hardware));
    sizes(&mut judge, &raw.sizes);
    contents::modules(&mut judge, &raw.modules);
    contents::trim(&mut judge, &raw.trim);
    property::all(&mut judge, &raw.properties);
    judge.into_faults()
}

fn image(judge: &mut Judge, image: &Image) {
    judge.ensure(is_file_word(&image.name), "image.name", || {
        format!("{:?} is no name of letters, digits and hyphens", image.name)
    });
    if let Err(text) = check_version(&image.version) {
        judge.fault("image.version", text);
    }
    judge.ensure(
        SOURCE_DATES.contains(&image.source_date),
        "image.source_date",
        || {
            format!(
                "is {}, allowed are {} (1980) to {} (2106): the image's file systems know no others",
                image.source_date,
                SOURCE_DATES.start(),
                SOURCE_DATES.end()
            )
        },
    );
}

fn product(judge: &mut Judge, product: &Product) {
    for (key, text) in [
        ("product.name", &product.name),
        ("product.vendor", &product.vendor),
        ("product.product_url", &product.product_url),
        ("product.vendor_url", &product.vendor_url),
        ("product.annotation", &product.annotation),
    ] {
        judge.ensure(is_xml_text(text), key, || {
            "holds a character that XML cannot carry".to_owned()
        });
    }
}

fn rootfs(judge: &mut Judge, rootfs: &Rootfs) {
    match rootfs.base {
        Base::Debian => sources(judge, rootfs),
        Base::El => repositories(judge, rootfs),
    }
    judge.ensure(is_file_word(&rootfs.release), "rootfs.release", || {
        format!("{:?} is no release name", rootfs.release)
    });
    judge.ensure(!rootfs.overlay.is_empty(), "rootfs.overlay", || {
        "is empty: name the folder of the image's own files".to_owned()
    });
    judge.ensure(!rootfs.packages.is_empty(), "rootfs.packages", || {
        "is empty".to_owned()
    });
    for (list, names) in [
        ("initramfs_without", &rootfs.initramfs_without),
        ("masked_units", &rootfs.masked_units),
    ] {
        for (index, name) in names.iter().enumerate() {
            judge.ensure(
                is_file_word(&name.replace('@', "-")),
                format!("rootfs.{list}.{index}"),
                || format!("{name:?} is no name"),
            );
        }
    }
    for (index, name) in rootfs.masked_units.iter().enumerate() {
        let known = name
            .rsplit_once('.')
            .is_some_and(|(_, ending)| UNIT_TYPES.contains(&ending));
        judge.ensure(known, format!("rootfs.masked_units.{index}"), || {
            format!("{name:?} is no unit: its name ends in none of systemd's types, such as {name}.service")
        });
    }
    for (index, package) in rootfs.packages.iter().enumerate() {
        let place = format!("rootfs.packages.{index}");
        // The package manager would take the hyphen as "remove this one".
        let clean = is_package(package) && !package.ends_with('-');
        judge.ensure(clean, &place, || format!("{package:?} is no package name"));
        judge.ensure(!rootfs.packages[..index].contains(package), &place, || {
            format!("{package} is listed twice")
        });
    }
}

fn sources(judge: &mut Judge, rootfs: &Rootfs) {
    if !rootfs.packages.is_empty() {
        needed_packages(judge, &rootfs.packages);
    }
    judge.ensure(rootfs.repositories.is_empty(), "rootfs.repositories", || {
        "is for el images; a debian image has rootfs.sources".to_owned()
    });
    if rootfs.sources.is_empty() {
        let text = "is empty: a debian image needs its suites, the security suite among them";
        return judge.fault("rootfs.sources", text);
    }
    let release = rootfs.release.as_str();
    let mut suites = Vec::new();
    for (index, source) in rootfs.sources.iter().enumerate() {
        let place = format!("rootfs.sources.{index}");
        let clean = (source.starts_with("deb ") || source.starts_with("deb [")) && !source.contains('\n');
        let Some(suite) = suite_of(source).filter(|_| clean) else {
            judge.fault(
                place,
                format!("{source:?} is no \"deb ADDRESS SUITE COMPONENT...\" line"),
            );
            continue;
        };
        let named = suite.split(['-', '/']).next().unwrap_or(suite);
        judge.ensure(
            named == release || !DEBIAN_RELEASES.contains(&named),
            place,
            || format!("the suite {suite} is of the release {named}, rootfs.release is {release:?}"),
        );
        suites.push(suite);
    }
    judge.ensure(suites.contains(&release), "rootfs.release", || {
        format!(
            "is {release:?}, but no source in rootfs.sources has that suite: they have {}",
            suites.join(", ")
        )
    });
    let security = format!("{release}-security");
    judge.ensure(suites.contains(&security.as_str()), "rootfs.sources", || {
        format!("has no security suite ({security}): the kernel would be the release's first")
    });
}

/// Notes what is missing for an image that can be built and starts. The CentOS family's build looks itself: there the same
/// is in other packages from release to release.
fn needed_packages(judge: &mut Judge, packages: &[String]) {
    let kernel = packages.iter().any(|name| name.starts_with("linux-image-"));
    judge.ensure(kernel, "rootfs.packages", || {
        "has no kernel: add linux-image-amd64".to_owned()
    });
    for (name, purpose) in NEEDED_PACKAGES {
        let named = packages.iter().any(|package| package == name);
        judge.ensure(named, "rootfs.packages", || {
            format!("has no {name}, which {purpose}: add it")
        });
    }
}

fn repositories(judge: &mut Judge, rootfs: &Rootfs) {
    if let Err(error) = names::release(&rootfs.release) {
        let text = error.to_string();
        let text = text.strip_prefix("rootfs.release ").unwrap_or(&text);
        let hint = error.next_step().unwrap_or_default();
        judge.fault("rootfs.release", format!("{text}; {hint}"));
    }
    judge.ensure(!rootfs.repositories.is_empty(), "rootfs.repositories", || {
        "is empty: an el image needs its repositories".to_owned()
    });
    judge.ensure(rootfs.sources.is_empty(), "rootfs.sources", || {
        "is for debian images; an el image has rootfs.repositories".to_owned()
    });
    for (index, repository) in rootfs.repositories.iter().enumerate() {
        let place = |key: &str| format!("rootfs.repositories.{index}.{key}");
        judge.ensure(is_file_word(&repository.id), place("id"), || {
            format!("{:?} is no name of letters, digits and hyphens", repository.id)
        });
        let twice = rootfs.repositories[..index]
            .iter()
            .any(|other| other.id == repository.id);
        judge.ensure(!twice, place("id"), || {
            format!("{} is given twice", repository.id)
        });
        let clean = !repository.baseurl.contains(char::is_whitespace) && repository.baseurl.contains("://");
        judge.ensure(clean, place("baseurl"), || {
            format!("{:?} is no address", repository.baseurl)
        });
        judge.ensure(!repository.gpgkey.is_empty(), place("gpgkey"), || {
            format!("is empty: packages of {} could not be verified", repository.id)
        });
    }
}

/// Suite of a `deb [OPTIONS] URL SUITE COMPONENT...` line.
fn suite_of(source: &str) -> Option<&str> {
    let rest = source.strip_prefix("deb ")?.trim_start();
    let rest = if rest.starts_with('[') {
        rest.split_once(']')?.1
    } else {
        rest
    };
    rest.split_whitespace().nth(1)
}

/// Faults of the virtual machine; it is judged again where the command line changes it.
pub fn hardware(hardware: &Hardware) -> Vec<(String, String)> {
    let mut judge = Judge::default();
    let known = HARDWARE_VERSIONS
        .iter()
        .any(|(version, _)| *version == hardware.vmx);
    judge.ensure(known, "hardware.vmx", || {
        let list: Vec<String> = HARDWARE_VERSIONS
            .iter()
            .map(|(version, _)| version.to_string())
            .collect();
        format!(
            "is {}, ESXi takes {} (12 and 16 are for Workstation only)",
            hardware.vmx,
            list.join(", ")
        )
    });
    judge.ensure((1..=128).contains(&hardware.vcpus), "hardware.vcpus", || {
        format!("is {}, allowed are 1 to 128", hardware.vcpus)
    });
    judge.ensure(
        hardware.vmx > 10 || hardware.vcpus <= 64,
        "hardware.vcpus",
        || format!("is {}, hardware version 10 has at most 64", hardware.vcpus),
    );
    judge.ensure(
        hardware.vmx > 10 || hardware.memory_mib <= 1011 << 10,
        "hardware.memory_mib",
        || {
            format!(
                "is {}, hardware version 10 has at most 1035264",
                hardware.memory_mib
            )
        },
    );
    let memory_ok =
        (1024..=4_194_304).contains(&hardware.memory_mib) && hardware.memory_mib.is_multiple_of(4);
    judge.ensure(memory_ok, "hardware.memory_mib", || {
        format!(
            "is {}, allowed are multiples of 4 from 1024 to 4194304",
            hardware.memory_mib
        )
    });
    judge.ensure(
        (1..=4).contains(&hardware.scsi_controllers),
        "hardware.scsi_controllers",
        || format!("is {}, a virtual machine has 1 to 4", hardware.scsi_controllers),
    );
    judge.ensure(
        !(hardware.secure_boot && hardware.firmware == Firmware::Bios),
        "hardware.secure_boot",
        || "is true, but hardware.firmware is \"bios\": Secure Boot needs \"efi\"".to_owned(),
    );
    judge.ensure(
        !(hardware.secure_boot && hardware.vmx < 13),
        "hardware.secure_boot",
        || {
            format!(
                "is true, but hardware.vmx is {}: Secure Boot came with 13",
                hardware.vmx
            )
        },
    );
    if !guest_os::is_known(&hardware.guest_os) {
        let near = guest_os::nearest(&hardware.guest_os);
        let near = near.map_or_else(
            || "vSphere knows it not; such as other3xLinux64Guest is one".to_owned(),
            |near| format!("did you mean {near}?"),
        );
        judge.fault(
            "hardware.guest_os",
            format!("{:?} is no guest identifier: {near}", hardware.guest_os),
        );
    }
    let network_ok = !hardware.network.trim().is_empty() && is_xml_text(&hardware.network);
    judge.ensure(network_ok, "hardware.network", || {
        format!("{:?} is no network name", hardware.network)
    });
    judge.into_faults()
}

fn sizes(judge: &mut Judge, sizes: &Sizes) {
    judge.ensure((2..=2048).contains(&sizes.disk_gib), "sizes.disk_gib", || {
        format!("is {}, allowed are 2 to 2048", sizes.disk_gib)
    });
    for (key, mib) in [
        ("sizes.ova_mib_max", sizes.ova_mib_max),
        ("sizes.iso_mib_max", sizes.iso_mib_max),
    ] {
        judge.ensure((1..=MIB_MAX).contains(&mib), key, || {
            format!("is {mib}, allowed are 1 to {MIB_MAX}")
        });
    }
}
