// SPDX-License-Identifier: MIT OR Apache-2.0
//! What an installation is told: from a kickstart file, from the console, or nothing but defaults.
//!
//! Plain data that was validated where it was made; [`Answers::contradictions`] says what does not fit together.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::Serialize;

/// All answers. The defaults install onto the only disk, if that is empty, with DHCP and without a way to log in but
/// the console's first screen.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Answers {
    /// Host name; without one it comes from DHCP, or stays `master-target`.
    pub hostname: Option<String>,
    /// Time zone and time servers.
    pub time: Time,
    /// How root logs in.
    pub root: RootLogin,
    /// Public keys of root.
    pub ssh_keys: Vec<String>,
    /// Network cards; none: DHCP on every card.
    pub networks: Vec<Network>,
    /// What may come in.
    pub firewall: Firewall,
    /// Units to switch on.
    pub services_enabled: Vec<String>,
    /// Units to switch off.
    pub services_disabled: Vec<String>,
    /// Which disk, and how it is divided.
    pub storage: Storage,
    /// What is added to the kernel's command line.
    pub kernel_arguments: String,
    /// Seconds that the boot menu waits.
    pub menu_seconds: Option<u32>,
    /// What happens at the end.
    pub end: End,
    /// The operator's own scripts.
    pub scripts: Vec<Script>,
    /// Settings of the master target.
    pub settings: Settings,
}

/// Time zone and time servers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Time {
    /// Name in the time zone database.
    pub zone: String,
    /// Time servers; none: those of the distribution.
    pub servers: Vec<String>,
    /// Whether time servers are asked at all.
    pub use_servers: bool,
}

impl Default for Time {
    fn default() -> Self {
        Self {
            zone: "UTC".to_owned(),
            servers: Vec::new(),
            use_servers: true,
        }
    }
}

/// How root logs in with a password.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RootLogin {
    /// Not at all.
    #[default]
    Locked,
    /// With the password of this hash.
    #[serde(serialize_with = "hidden")]
    Hash(String),
}

/// A hash is as good as a password to who has time: it is not printed.
fn hidden<S: serde::Serializer>(_: &str, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str("(not shown)")
}

/// One network card.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Network {
    /// Which card.
    pub card: Card,
    /// VLAN on that card.
    pub vlan: Option<u16>,
    /// Version 4 of the protocol.
    pub ipv4: Ipv4,
    /// Version 6.
    pub ipv6: Ipv6,
    /// Name servers.
    pub name_servers: Vec<IpAddr>,
    /// Size of the largest packet.
    pub mtu: Option<u32>,
    /// Whether the way to everywhere goes through this card.
    pub default_route: bool,
}

impl Default for Network {
    fn default() -> Self {
        Self {
            card: Card::Any,
            vlan: None,
            ipv4: Ipv4::Dhcp,
            ipv6: Ipv6::Auto,
            name_servers: Vec::new(),
            mtu: None,
            default_route: true,
        }
    }
}

impl Network {
    /// Every card with this address and the length of its prefix, or with DHCP. A gateway of the other version of the
    /// protocol is left out.
    #[must_use]
    pub fn with_address(
        own: Option<(IpAddr, u8)>,
        gateway: Option<IpAddr>,
        name_servers: Vec<IpAddr>,
    ) -> Self {
        let (ipv4, ipv6) = match own {
            None => (Ipv4::Dhcp, Ipv6::Auto),
            Some((IpAddr::V4(address), prefix)) => {
                let gateway = match gateway {
                    Some(IpAddr::V4(gateway)) => Some(gateway),
                    _ => None,
                };
                let own = Ipv4::Static {
                    address,
                    prefix,
                    gateway,
                };
                (own, Ipv6::Auto)
            }
            Some((IpAddr::V6(address), prefix)) => {
                let gateway = match gateway {
                    Some(IpAddr::V6(gateway)) => Some(gateway),
                    _ => None,
                };
                let own = Ipv6::Static {
                    address,
                    prefix,
                    gateway,
                };
                (Ipv4::Off, own)
            }
        };
        Self {
            ipv4,
            ipv6,
            name_servers,
            ..Self::default()
        }
    }
}

/// How a network card is told from others.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Card {
    /// Every wired card.
    Any,
    /// The card of this name.
    Name(String),
    /// The card with this hardware address, in lower case with colons.
    Mac(String),
}

/// Addresses of version 4.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Ipv4 {
    /// None.
    Off,
    /// From a DHCP server.
    Dhcp,
    /// This one.
    Static {
        /// Address.
        address: Ipv4Addr,
        /// Bits of the network's part.
        prefix: u8,
        /// The way out of the network.
        gateway: Option<Ipv4Addr>,
    },
}

/// Addresses of version 6.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Ipv6 {
    /// None.
    Off,
    /// As the network's routers say.
    Auto,
    /// From a DHCP server.
    Dhcp,
    /// This one.
    Static {
        /// Address.
        address: Ipv6Addr,
        /// Bits of the network's part.
        prefix: u8,
        /// The way out of the network.
        gateway: Option<Ipv6Addr>,
    },
}

/// What may come in besides the appliance's own ports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Firewall {
    /// Whether anything is kept out at all.
    pub enabled: bool,
    /// Whether SSH may come in.
    pub ssh: bool,
    /// More ports.
    pub ports: BTreeSet<Port>,
}

impl Default for Firewall {
    fn default() -> Self {
        Self {
            enabled: true,
            ssh: false,
            ports: BTreeSet::new(),
        }
    }
}

/// A port that is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Port {
    /// Its number.
    pub number: u16,
    /// Whether it is UDP, else TCP.
    pub udp: bool,
}

/// Which disk, and how it is divided.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Storage {
    /// The disk by any of its names; none: the only one there is.
    pub disk: Option<String>,
    /// Whether what is on the disk may be lost.
    pub clear: bool,
    /// Partitions; none: the usual ones.
    pub parts: Vec<Part>,
}

/// A partition asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Part {
    /// What it is for.
    pub role: Role,
    /// File system, where one can be chosen.
    pub fs: FileSystem,
    /// Size in MiB; none: recommended.
    pub size_mib: Option<u64>,
    /// Whether it takes what is left.
    pub grow: bool,
    /// How far it grows, MiB.
    pub max_mib: Option<u64>,
    /// Mount options.
    pub options: Option<String>,
}

/// Whether two names mean one disk as they are written: `vda` is `/dev/vda`.
#[must_use]
pub fn same_disk(one: &str, other: &str) -> bool {
    let plain = |name: &str| name.strip_prefix("/dev/").unwrap_or(name).to_owned();
    plain(one) == plain(other)
}

/// What a partition is for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Holds GRUB for BIOS.
    BiosBoot,
    /// EFI system partition.
    Esp,
    /// Memory on disk.
    Swap,
    /// Mounted there.
    Mount(String),
}

/// Kinds of file system an appliance can live on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FileSystem {
    /// None: a boot loader's partition.
    None,
    /// FAT, for firmware.
    Vfat,
    /// The appliance's own.
    Ext4,
    /// Swap.
    Swap,
}

/// What happens at the end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// The machine waits for somebody.
    #[default]
    Halt,
    /// The machine starts what was installed.
    Reboot,
    /// The machine is switched off.
    PowerOff,
}

/// A script of the operator's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Script {
    /// When it runs.
    pub when: When,
    /// What runs it.
    pub interpreter: String,
    /// Whether the installation ends when it fails.
    pub error_ends: bool,
    /// Its text.
    pub body: String,
    /// Line of the kickstart file it begins at; 0 when there was none.
    pub line: usize,
}

/// When a script runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum When {
    /// Before anything is written, on the machine that installs.
    Pre,
    /// After everything is in place, inside the new system.
    Post,
    /// After everything is in place, on the machine that installs.
    PostOutside,
}

/// Settings of the master target itself: section `%addon master_target`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Settings {
    /// SCSI ID of the disk for recovery points.
    pub retention_disk: Option<String>,
    /// Text of the agent's configuration file.
    pub agent: Option<String>,
}

impl Answers {
    /// Whether SSH is switched on: somebody asked for it, or gave a key that is of no other use.
    #[must_use]
    pub fn ssh(&self) -> bool {
        let named = |units: &[String]| units.iter().any(|unit| is_ssh(unit));
        !named(&self.services_disabled)
            && (self.firewall.ssh || !self.ssh_keys.is_empty() || named(&self.services_enabled))
    }

    /// What does not fit together, one sentence each.
    #[must_use]
    pub fn contradictions(&self) -> Vec<String> {
        let mut found = Vec::new();
        if let Some(unit) = self
            .services_enabled
            .iter()
            .find(|unit| self.services_disabled.contains(unit))
        {
            found.push(format!("service {unit} is enabled and disabled"));
        }
        if self.services_disabled.iter().any(|unit| is_ssh(unit)) && !self.ssh_keys.is_empty() {
            found.push("an SSH key is given and SSH is disabled".to_owned());
        }
        let mut addresses = BTreeSet::new();
        let mut cards = BTreeSet::new();
        for network in &self.networks {
            if !cards.insert((network.card.clone(), network.vlan)) {
                found.push("two networks are given for the same card".to_owned());
            }
            let own = [
                match network.ipv4 {
                    Ipv4::Static { address, .. } => Some(IpAddr::V4(address)),
                    _ => None,
                },
                match network.ipv6 {
                    Ipv6::Static { address, .. } => Some(IpAddr::V6(address)),
                    _ => None,
                },
            ];
            for address in own.into_iter().flatten() {
                if !addresses.insert(address) {
                    found.push(format!("address {address} is given twice"));
                }
            }
        }
        if self.networks.len() > 1 && self.networks.iter().any(|network| network.card == Card::Any) {
            found.push("several networks are given, and one of them names no card".to_owned());
        }
        if let Some(hash) = self.settings.retention_disk.as_ref()
            && self.storage.disk.as_ref() == Some(hash)
        {
            found.push(format!("disk {hash} is both the system's and the retention disk"));
        }
        let mut roles = BTreeSet::new();
        for part in &self.storage.parts {
            if !roles.insert(&part.role) {
                found.push(format!("two partitions are given for {}", part.role.name()));
            }
        }
        if !self.storage.parts.is_empty() && !roles.contains(&Role::Mount("/".to_owned())) {
            found.push("partitions are given, and none of them is /".to_owned());
        }
        found
    }
}

fn is_ssh(unit: &str) -> bool {
    matches!(unit.strip_suffix(".service").unwrap_or(unit), "ssh" | "sshd")
}

impl Role {
    /// Smallest size of such a partition in MiB: what the appliance fits into, what FAT32 takes.
    #[must_use]
    pub fn least_mib(&self) -> u64 {
        match self {
            Self::Mount(path) if path == "/" => 2_560,
            Self::Esp => 36,
            _ => 1,
        }
    }

    /// For messages.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::BiosBoot => "biosboot",
            Self::Esp => "/boot/efi",
            Self::Swap => "swap",
            Self::Mount(path) => path,
        }
    }
}
