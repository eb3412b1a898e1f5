// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the properties mean. Pure: text in, typed settings out, or every fault with the property it is in.
//!
//! Values are data: none reaches a shell, each must have the form that its property has, and no form has control
//! characters, blanks where none belong, or room for more than it needs. One fault refuses all: half of a network's
//! settings would make the appliance unreachable with no word why.

use std::net::IpAddr;

use mt_blockdev::scsi::ScsiId;

use super::environment::Properties;
use crate::kickstart::check_hash;

/// Longest value of any property.
const VALUE_BYTES_MAX: usize = 8192;

/// Prefix of our properties.
pub const PREFIX: &str = "guestinfo.";
/// Names of our properties, behind the prefix.
pub const KEYS: &[&str] = &[
    "hostname",
    "address",
    "gateway",
    "dns",
    "ntp",
    "timezone",
    "root_password_hash",
    "ssh_key",
    "retention_disk",
];

/// The property of ours that a key seems to mean and misses. Keys that are like none of them are an operator's own, for steps
/// of `custom.d/`.
#[must_use]
pub fn misspelt(key: &str) -> Option<String> {
    let name = match key.strip_prefix(PREFIX) {
        Some(name) if KEYS.contains(&name) => return None,
        Some(name) => name,
        // Where the prefix was left away, nothing else may be wrong.
        None => return KEYS.contains(&key).then(|| format!("{PREFIX}{key}")),
    };
    // The guest's tools give keys as they are written, so that no other case is found.
    let plain = name.to_ascii_lowercase().replace(['-', '.'], "_");
    let known = KEYS.iter().find(|known| {
        let distance = strsim::damerau_levenshtein(&plain, known);
        distance <= 2 && distance * 3 <= known.len()
    })?;
    Some(format!("{PREFIX}{known}"))
}

/// An address and the net it is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    /// The address.
    pub address: IpAddr,
    /// Leading bits that are the net's.
    pub prefix: u8,
}

/// Settings of the first boot; what is `None` or empty was not given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settings {
    /// Host name.
    pub hostname: Option<String>,
    /// Static address; DHCP without.
    pub address: Option<Address>,
    /// Default gateway.
    pub gateway: Option<IpAddr>,
    /// DNS servers.
    pub dns: Vec<IpAddr>,
    /// Time servers.
    pub ntp: Vec<String>,
    /// Time zone.
    pub timezone: Option<String>,
    /// Hash of root's password.
    pub root_password_hash: Option<String>,
    /// Public key of root.
    pub ssh_key: Option<String>,
    /// Disk for recovery points.
    pub retention_disk: Option<ScsiId>,
}

/// A property that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Its name.
    pub key: &'static str,
    /// What is wrong with its value, without the value where that is secret.
    pub text: String,
}

impl std::fmt::Display for Fault {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{PREFIX}{}: {}", self.key, self.text)
    }
}

/// Reads settings from properties; `zone_exists` answers whether the system knows a time zone. Properties of others are
/// not looked at, empty ones count as not given.
///
/// # Errors
/// Every fault there is.
pub fn read(properties: &Properties, zone_exists: &dyn Fn(&str) -> bool) -> Result<Settings, Vec<Fault>> {
    let mut faults = Vec::new();
    let mut settings = Settings::default();
    for key in KEYS {
        let Some(value) = properties.get(&format!("{PREFIX}{key}")) else {
            continue;
        };
        let value = value.trim_matches(' ');
        if value.is_empty() {
            continue;
        }
        if let Err(text) = set(&mut settings, key, value, zone_exists) {
            faults.push(Fault { key, text });
        }
    }
    faults.extend(contradictions(&settings));
    if faults.is_empty() {
        Ok(settings)
    } else {
        Err(faults)
    }
}

fn set(
    settings: &mut Settings,
    key: &str,
    value: &str,
    zone_exists: &dyn Fn(&str) -> bool,
) -> Result<(), String> {
    if value.len() > VALUE_BYTES_MAX {
        return Err(format!(
            "the value has {} bytes, at most {VALUE_BYTES_MAX} are taken",
            value.len()
        ));
    }
    if let Some(at) = value
        .chars()
        .position(|letter| letter.is_control() || !letter.is_ascii())
    {
        return Err(format!("character {} is no printable ASCII character", at + 1));
    }
    match key {
        "hostname" => settings.hostname = Some(hostname(value)?),
        "address" => settings.address = Some(address(value)?),
        "gateway" => settings.gateway = Some(host_address(value)?),
        "dns" => settings.dns = addresses(value)?,
        "ntp" => {
            settings.ntp = list(value, |one| {
                host_address(one)
                    .map(|_| one.to_owned())
                    .or_else(|_| hostname(one))
            })?
        }
        "timezone" => {
            let plain = |letter: char| letter.is_ascii_alphanumeric() || "_-+/".contains(letter);
            if !value.chars().all(plain) || value.starts_with('/') || value.len() > 64 || !zone_exists(value)
            {
                return Err(format!("{value:?} is no time zone, such as Europe/Berlin or UTC"));
            }
            settings.timezone = Some(value.to_owned());
        }
        "root_password_hash" => settings.root_password_hash = Some(password_hash(value)?),
        "ssh_key" => settings.ssh_key = Some(ssh_key(value)?),
        "retention_disk" => {
            settings.retention_disk = Some(ScsiId::parse(value).map_err(|error| error.to_string())?)
        }
        _ => {}
    }
    Ok(())
}

fn list<T>(value: &str, read: impl Fn(&str) -> Result<T, String>) -> Result<Vec<T>, String> {
    let parts: Vec<&str> = value.split(',').map(|part| part.trim_matches(' ')).collect();
    if parts.len() > 8 {
        return Err(format!("{} are given, at most 8 are taken", parts.len()));
    }
    parts.into_iter().map(read).collect()
}

/// A host name (RFC 1123) that Linux can hold: 64 characters, labels of 63.
///
/// # Errors
/// Which rule it breaks.
pub fn hostname(value: &str) -> Result<String, String> {
    if value.len() > 64 {
        return Err(format!(
            "a host name has at most 64 characters, this one has {}",
            value.len()
        ));
    }
    for label in value.split('.') {
        let plain = |letter: char| letter.is_ascii_alphanumeric() || letter == '-';
        if label.is_empty() || label.len() > 63 {
            return Err(format!(
                "{value:?}: each part of a host name has 1 to 63 characters, one has {}",
                label.len()
            ));
        }
        if !label.chars().all(plain) || label.starts_with('-') || label.ends_with('-') {
            return Err(format!(
                "{value:?}: a host name has letters, digits and dashes, and no dash at the end of a part"
            ));
        }
    }
    if value
        .split('.')
        .all(|label| label.bytes().all(|byte| byte.is_ascii_digit()))
    {
        return Err(format!("{value:?} is a number, not a host name"));
    }
    Ok(value.to_owned())
}

/// Addresses, separated by commas.
///
/// # Errors
/// What is wrong with one of them.
pub fn addresses(value: &str) -> Result<Vec<IpAddr>, String> {
    list(value, host_address)
}

/// The address of a machine.
///
/// # Errors
/// What is wrong with it.
pub fn host_address(value: &str) -> Result<IpAddr, String> {
    let address: IpAddr = value
        .parse()
        .map_err(|_| format!("{value:?} is no IP address, such as 192.0.2.1"))?;
    if address.is_unspecified() || address.is_multicast() || address.is_loopback() {
        return Err(format!("{address} is no address of a machine on a network"));
    }
    Ok(address)
}

/// An address with the length of its net's prefix, or a netmask instead of that.
///
/// # Errors
/// What is wrong with it.
pub fn address(value: &str) -> Result<Address, String> {
    let Some((address, prefix)) = value.split_once('/') else {
        return Err(format!("{value:?} has no prefix length, as in 192.0.2.10/24"));
    };
    let address = host_address(address)?;
    let bits = if address.is_ipv4() { 32 } else { 128 };
    let prefix = match prefix.parse::<u8>() {
        Ok(prefix) if prefix >= 1 && prefix <= bits => prefix,
        Ok(prefix) => return Err(format!("a prefix has 1 to {bits} bits, not {prefix}")),
        Err(_) => netmask(prefix)?,
    };
    let address = Address { address, prefix };
    if let IpAddr::V4(four) = address.address
        && address.prefix < 31
    {
        let host = u32::from(four) & !mask(address.prefix);
        if host == 0 || host == !mask(address.prefix) {
            return Err(format!(
                "{four} is the address of the net itself, or of all in it"
            ));
        }
    }
    Ok(address)
}

fn netmask(value: &str) -> Result<u8, String> {
    let mask: std::net::Ipv4Addr = value
        .parse()
        .map_err(|_| format!("{value:?} is neither a prefix length nor a netmask"))?;
    let bits = u32::from(mask);
    if bits == 0 || bits.leading_ones() + bits.trailing_zeros() != 32 {
        return Err(format!("{mask} is no netmask: its ones are not all in front"));
    }
    u8::try_from(bits.leading_ones()).map_err(|error| error.to_string())
}

fn mask(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0)
}

impl Address {
    /// Whether another address is in the same net.
    #[must_use]
    pub fn reaches(&self, other: IpAddr) -> bool {
        match (self.address, other) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                (u32::from(own) ^ u32::from(other)) & mask(self.prefix) == 0
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => {
                // A router of version 6 is often given by its link-local address.
                let mask = u128::MAX.checked_shl(128 - u32::from(self.prefix)).unwrap_or(0);
                other.is_unicast_link_local() || (u128::from(own) ^ u128::from(other)) & mask == 0
            }
            _ => false,
        }
    }
}

/// A hash as crypt(5) writes it. Never a password: that would lie in the machine's configuration for all to read.
fn password_hash(value: &str) -> Result<String, String> {
    // The rule of a kickstart file, since these settings can become one.
    if check_hash(value).is_ok() {
        Ok(value.to_owned())
    } else {
        // The value is not shown: it may be the password itself.
        Err("it is no password hash as \"openssl passwd -6\" makes one ($6$salt$hash)".to_owned())
    }
}

fn ssh_key(value: &str) -> Result<String, String> {
    let known = [
        "ssh-ed25519",
        "ssh-rsa",
        "ecdsa-sha2-nistp256",
        "ecdsa-sha2-nistp384",
        "ecdsa-sha2-nistp521",
        "sk-ssh-ed25519@openssh.com",
        "sk-ecdsa-sha2-nistp256@openssh.com",
    ];
    let words: Vec<&str> = value.split(' ').filter(|word| !word.is_empty()).collect();
    let kind = words.first().copied().unwrap_or_default();
    if !known.contains(&kind) {
        return Err("it is no line of a public key file, such as \"ssh-ed25519 AAAA... name\"".to_owned());
    }
    let key = words.get(1).copied().unwrap_or_default();
    let base64 = |letter: char| letter.is_ascii_alphanumeric() || "+/=".contains(letter);
    if key.len() < 40 || !key.starts_with("AAAA") || !key.chars().all(base64) {
        return Err(format!("what follows {kind} is no public key"));
    }
    Ok(words.join(" "))
}

fn contradictions(settings: &Settings) -> Vec<Fault> {
    let mut faults = Vec::new();
    let mut fault = |key, text: String| faults.push(Fault { key, text });
    if let Some(gateway) = settings.gateway {
        match settings.address {
            None => fault(
                "gateway",
                format!("{gateway} is given without {PREFIX}address; with DHCP the gateway comes from there"),
            ),
            Some(own) if own.address == gateway => {
                fault("gateway", format!("{gateway} is the appliance's own address"));
            }
            Some(own) if !own.reaches(gateway) => fault(
                "gateway",
                format!("{gateway} is not in the net of {}/{}", own.address, own.prefix),
            ),
            Some(_) => {}
        }
    }
    if let Some(own) = settings.address
        && settings.dns.contains(&own.address)
    {
        fault("dns", format!("{} is the appliance's own address", own.address));
    }
    faults
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "test code")]
mod tests {
    use super::*;

    fn zones(zone: &str) -> bool {
        zone == "UTC" || zone == "Europe/Berlin"
    }

    fn of(pairs: &[(&str, &str)]) -> Result<Settings, Vec<Fault>> {
        let properties = pairs
            .iter()
            .map(|(key, value)| (format!("{PREFIX}{key}"), (*value).to_owned()))
            .collect();
        read(&properties, &zones)
    }

    const HASH: &str = "$6$Zp2bq1pl$yLw0kAoG1c5dqyqTgr6NUE8k5hvDpDlz9MC1YwF6d9T1z2fE";
    const KEY: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJxYcVZ4sTzZ0lqb0c2dY8S0o0Qe2X3wq1J5Yb6m7n8p operator";

    #[test]
    fn all_of_them_are_read() {
        let settings = of(&[
            ("hostname", "mt1.example.org"),
            ("address", "192.0.2.10/24"),
            ("gateway", "192.0.2.1"),
            ("dns", "192.0.2.53, 2001:db8::53"),
            ("ntp", "192.0.2.5,ntp.example.org"),
            ("timezone", "Europe/Berlin"),
            ("root_password_hash", HASH),
            ("ssh_key", KEY),
            ("retention_disk", "naa.6000c29a71e02b4c9d118e55037faa01"),
        ])
        .unwrap();
        assert_eq!(settings.hostname.as_deref(), Some("mt1.example.org"));
        assert_eq!(settings.address.unwrap().prefix, 24);
        assert_eq!(settings.dns.len(), 2);
        assert_eq!(settings.ntp, ["192.0.2.5", "ntp.example.org"]);
        assert_eq!(settings.ssh_key.as_deref(), Some(KEY));
        assert_eq!(
            of(&[("address", "192.0.2.10/255.255.255.0")])
                .unwrap()
                .address
                .unwrap()
                .prefix,
            24
        );
        let six = of(&[("address", "2001:db8::10/64"), ("gateway", "fe80::1")]).unwrap();
        assert_eq!(six.address.unwrap().prefix, 64);
    }

    #[test]
    fn what_is_taken_here_is_taken_in_a_kickstart_file_too() {
        // These settings become answers, which are kept as a kickstart file. Two blanks in a key were taken here and not
        // there, and hashes of some kinds as well.
        let wide = KEY.replace("ssh-ed25519 ", "ssh-ed25519   ");
        assert_eq!(of(&[("ssh_key", &wide)]).unwrap().ssh_key.as_deref(), Some(KEY));
        let long = "a".repeat(53);
        for kind in [
            "$2b$10$",
            "$2y$10$",
            "$7$CU..../....salt$",
            "$gy$j9T$salt$",
            "$y$j9T$salt$",
        ] {
            let hash = format!("{kind}{long}");
            assert!(of(&[("root_password_hash", &hash)]).is_ok(), "{hash}");
            let file = format!("rootpw --iscrypted {hash}\nnetwork --bootproto=dhcp\n");
            let faults = crate::kickstart::parse(&file).err().unwrap_or_default();
            assert!(
                !faults.iter().any(|fault| fault.text.contains("hash")),
                "{faults:?}"
            );
        }
    }

    #[test]
    fn empty_and_foreign_properties_count_as_not_given() {
        assert_eq!(
            of(&[("hostname", ""), ("address", "  ")]).unwrap(),
            Settings::default()
        );
        assert_eq!(
            of(&[("something.else", "$(reboot)")]).unwrap(),
            Settings::default()
        );
    }

    #[test]
    fn every_wrong_value_is_refused_with_its_reason() {
        let long = "x".repeat(10 << 10);
        let label = "h".repeat(64);
        for (key, value, reason) in [
            ("hostname", "$(reboot)", "letters, digits and dashes"),
            ("hostname", "`id`", "letters, digits and dashes"),
            ("hostname", "a b", "letters, digits and dashes"),
            ("hostname", "a\nb", "character 2 is no printable"),
            ("hostname", "a\x1b[2J", "character 2 is no printable"),
            ("hostname", "m\u{fc}nchen", "character 2 is no printable"),
            ("hostname", label.as_str(), "1 to 63 characters, one has 64"),
            ("hostname", "a..b", "one has 0"),
            ("hostname", "-a", "no dash at the end"),
            ("hostname", "192.0.2.1", "is a number"),
            ("hostname", long.as_str(), "the value has 10240 bytes"),
            ("address", "192.0.2.10", "no prefix length"),
            ("address", "192.0.2.10/33", "1 to 32 bits"),
            ("address", "192.0.2.10/0", "1 to 32 bits"),
            ("address", "192.0.2.10/255.0.255.0", "no netmask"),
            (
                "address",
                "192.0.2.10/$(id)",
                "neither a prefix length nor a netmask",
            ),
            ("address", "192.0.2.0/24", "of the net itself"),
            ("address", "192.0.2.255/24", "of the net itself"),
            ("address", "127.0.0.1/8", "no address of a machine"),
            ("address", "224.0.0.1/8", "no address of a machine"),
            ("address", "192.0.2.300/24", "no IP address"),
            ("dns", "192.0.2.53;reboot", "no IP address"),
            (
                "dns",
                "1.1.1.1,1.1.1.2,1.1.1.3,1.1.1.4,1.1.1.5,1.1.1.6,1.1.1.7,1.1.1.8,1.1.1.9",
                "at most 8",
            ),
            ("ntp", "a b", "letters, digits and dashes"),
            ("timezone", "../../etc/shadow", "is no time zone"),
            ("timezone", "/etc/shadow", "is no time zone"),
            ("timezone", "Mars/Olympus", "is no time zone"),
            ("root_password_hash", "secret", "no password hash"),
            ("root_password_hash", "$6$x$short", "no password hash"),
            // Half a hash was taken here and refused in the kickstart file that is made of it: nobody has its password.
            (
                "root_password_hash",
                "$6$saltsalt$0123456789012345678901",
                "no password hash",
            ),
            (
                "root_password_hash",
                "$6$salt$aaaaaaaaaaaaaaaaaaaaaaaa:0:",
                "no password hash",
            ),
            (
                "ssh_key",
                "command=\"id\" ssh-rsa AAAA",
                "no line of a public key file",
            ),
            ("ssh_key", "ssh-rsa AAAA", "no public key"),
            ("ssh_key", "ssh-rsa AAAA\nssh-rsa BBBB", "no printable ASCII"),
            ("retention_disk", "sdb", "not a SCSI ID"),
        ] {
            let faults = of(&[(key, value)]).unwrap_err();
            assert_eq!(faults.len(), 1, "{faults:?}");
            assert_eq!(faults[0].key, key);
            assert!(
                faults[0].text.contains(reason),
                "{key} {value:?}: {:?}",
                faults[0].text
            );
            assert!(!faults[0].to_string().contains('\x1b'));
        }
        let secret = of(&[("root_password_hash", "my-password")]).unwrap_err();
        assert!(!secret[0].text.contains("my-password"));
    }

    #[test]
    fn what_does_not_fit_together_is_refused() {
        for (pairs, reason) in [
            (vec![("gateway", "192.0.2.1")], "without guestinfo.address"),
            (
                vec![("address", "192.0.2.10/24"), ("gateway", "192.0.3.1")],
                "not in the net of 192.0.2.10/24",
            ),
            (
                vec![("address", "192.0.2.10/24"), ("gateway", "192.0.2.10")],
                "own address",
            ),
            (
                vec![("address", "192.0.2.10/24"), ("gateway", "2001:db8::1")],
                "not in the net",
            ),
            (
                vec![("address", "192.0.2.10/24"), ("dns", "192.0.2.10")],
                "own address",
            ),
        ] {
            let faults = of(&pairs).unwrap_err();
            assert!(faults[0].text.contains(reason), "{faults:?}");
        }
        let all = of(&[("hostname", "-"), ("address", "x"), ("timezone", "x")]).unwrap_err();
        assert_eq!(all.len(), 3, "all faults are told at once");
    }

    #[test]
    fn keys_that_miss_ours_are_known_and_others_are_left() {
        for (key, meant) in [
            ("guestinfo.hostnam", "hostname"),
            ("guestinfo.Hostname", "hostname"),
            ("hostname", "hostname"),
            ("guestinfo.ssh-key", "ssh_key"),
        ] {
            assert_eq!(misspelt(key), Some(format!("{PREFIX}{meant}")), "{key}");
        }
        for key in ["guestinfo.hostname", "guestinfo.site", "site", "vmtools.x", ""] {
            assert_eq!(misspelt(key), None, "{key}");
        }
    }
}
