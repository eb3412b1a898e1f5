// SPDX-License-Identifier: MIT OR Apache-2.0
//! The image spec as it stands in the file.

use serde::Deserialize;

/// The whole file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawSpec {
    /// Version of this format, 1.
    pub schema: u32,
    /// Identity of the image.
    pub image: Image,
    /// Texts for people.
    pub product: Product,
    /// The root file system.
    pub rootfs: Rootfs,
    /// Kernel modules.
    pub modules: Modules,
    /// What is left out.
    pub trim: Trim,
    /// Sizes.
    pub sizes: Sizes,
    /// The virtual machine.
    pub hardware: Hardware,
    /// Questions of the deploy wizard.
    #[serde(default)]
    pub properties: Vec<Property>,
}

/// `[image]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Image {
    /// Start of the file names.
    pub name: String,
    /// Version of the image.
    pub version: String,
    /// Seconds since 1970 that every file gets.
    pub source_date: u64,
}

/// `[product]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Product {
    /// Name in the inventory.
    pub name: String,
    /// Who makes it.
    pub vendor: String,
    /// Home page of the product, may be empty.
    #[serde(default)]
    pub product_url: String,
    /// Home page of the vendor, may be empty.
    #[serde(default)]
    pub vendor_url: String,
    /// Note on the virtual machine.
    pub annotation: String,
}

/// Family of distributions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Base {
    /// Debian, by mmdebstrap.
    Debian,
    /// The CentOS family, by dnf.
    El,
}

/// `[rootfs]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rootfs {
    /// Family.
    pub base: Base,
    /// Release: code name (debian) or major version (el).
    pub release: String,
    /// Sources in sources.list form (debian).
    #[serde(default)]
    pub sources: Vec<String>,
    /// Repositories (el).
    #[serde(default)]
    pub repositories: Vec<Repository>,
    /// Packages to install; what they depend on follows, what they recommend does not.
    pub packages: Vec<String>,
    /// Units that must not start by themselves.
    #[serde(default)]
    pub masked_units: Vec<String>,
    /// Hooks and scripts that stay out of the initramfs (debian).
    #[serde(default)]
    pub initramfs_without: Vec<String>,
    /// Folder with own files, relative to the spec.
    pub overlay: String,
}

/// `[[rootfs.repositories]]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Repository {
    /// Short name.
    pub id: String,
    /// Address.
    pub baseurl: String,
    /// File with the keys that packages must be signed with.
    pub gpgkey: String,
    /// Build on without it when it cannot be reached.
    #[serde(default)]
    pub optional: bool,
}

/// `[modules]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Modules {
    /// Modules that must be in the image; the build fails without them.
    pub required: Vec<String>,
    /// Modules for the initramfs.
    pub initramfs: Vec<String>,
    /// Folders below `kernel/` that are left out.
    #[serde(default)]
    pub drop: Vec<String>,
    /// Folders below `kernel/` that stay although a folder above is left out.
    #[serde(default)]
    pub keep: Vec<String>,
}

/// `[trim]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trim {
    /// Files and folders that are left out; one `*` in the last part matches anything.
    #[serde(default)]
    pub paths: Vec<String>,
}

/// `[sizes]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sizes {
    /// Disk of the OVA.
    pub disk_gib: u64,
    /// The build fails when the OVA is larger.
    pub ova_mib_max: u64,
    /// The build fails when the ISO is larger.
    pub iso_mib_max: u64,
}

/// Firmware of the virtual machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Firmware {
    /// UEFI.
    Efi,
    /// PC BIOS.
    Bios,
}

impl Firmware {
    /// The word VMware uses.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Efi => "efi",
            Self::Bios => "bios",
        }
    }
}

/// Kind of SCSI controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScsiKind {
    /// Paravirtual.
    Pvscsi,
    /// LSI Logic parallel.
    Lsilogic,
    /// LSI Logic SAS.
    Lsilogicsas,
}

impl ScsiKind {
    /// `ResourceSubType`; the case matters to importers.
    #[must_use]
    pub const fn sub_type(self) -> &'static str {
        match self {
            Self::Pvscsi => "VirtualSCSI",
            Self::Lsilogic => "lsilogic",
            Self::Lsilogicsas => "lsilogicsas",
        }
    }
}

/// Kind of network card.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NicKind {
    /// Paravirtual.
    Vmxnet3,
    /// Intel PRO/1000 MT.
    E1000,
}

impl NicKind {
    /// `ResourceSubType`.
    #[must_use]
    pub const fn sub_type(self) -> &'static str {
        match self {
            Self::Vmxnet3 => "VmxNet3",
            Self::E1000 => "E1000",
        }
    }
}

/// `[hardware]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hardware {
    /// Hardware version, the NN of vmx-NN.
    pub vmx: u32,
    /// Virtual processors.
    pub vcpus: u32,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Number of SCSI controllers; 4 leave room to attach 59 more disks.
    pub scsi_controllers: u32,
    /// Their kind.
    pub scsi: ScsiKind,
    /// Kind of network card.
    pub nic: NicKind,
    /// Network the card is connected to, mapped by the deploy wizard.
    pub network: String,
    /// Firmware.
    pub firmware: Firmware,
    /// Whether UEFI Secure Boot is switched on.
    #[serde(default)]
    pub secure_boot: bool,
    /// VMware's identifier of the guest.
    pub guest_os: String,
    /// CIM's number of the guest.
    pub cim_os: u32,
}

/// Type of a property.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PropertyKind {
    /// Text.
    String,
    /// Yes or no.
    Boolean,
    /// A number.
    Uint32,
}

impl PropertyKind {
    /// The word OVF uses.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::String => "string",
            Self::Boolean => "boolean",
            Self::Uint32 => "uint32",
        }
    }
}

/// `[[properties]]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Property {
    /// Key, begins with `guestinfo.`.
    pub key: String,
    /// Heading under which the wizard shows it.
    pub category: String,
    /// Name for people.
    pub label: String,
    /// One sentence for people.
    #[serde(default)]
    pub description: String,
    /// Type.
    pub kind: PropertyKind,
    /// Default.
    #[serde(default)]
    pub value: String,
    /// Shown as dots.
    #[serde(default)]
    pub password: bool,
    /// OVF qualifiers, such as `MaxLen(63)`.
    #[serde(default)]
    pub qualifiers: String,
}

/// Digest of the manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Manifest {
    /// SHA-256: ESXi 6.5 and later.
    Sha256,
    /// SHA-1: also ESXi 5.5 and 6.0.
    Sha1,
}
