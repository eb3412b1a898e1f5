// SPDX-License-Identifier: MIT OR Apache-2.0
//! The line `network`, and the rules that host names and addresses follow.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{Checked, options};
use crate::answers::{Answers, Card, Ipv4, Ipv6, Network};

/// Checks a host name: labels of at most 63 characters (RFC 1123), and not more than the kernel takes.
///
/// # Errors
/// Says which rule it breaks.
pub fn check_host_name(name: &str) -> Checked<()> {
    if name.len() > 64 {
        return Err(format!(
            "host name {name}: {} characters, the kernel takes at most 64",
            name.len()
        ));
    }
    for label in name.split('.') {
        if label.is_empty() || label.len() > 63 {
            return Err(format!(
                "host name {name}: a part has {} characters, allowed are 1 to 63",
                label.len()
            ));
        }
        let good = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        if !label.bytes().all(good) || label.starts_with('-') || label.ends_with('-') {
            return Err(format!(
                "host name {name}: allowed are letters, digits and, within, hyphens"
            ));
        }
    }
    if name.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') {
        return Err(format!("host name {name} looks like an address"));
    }
    Ok(())
}

/// Bits of the network's part of a netmask.
///
/// # Errors
/// It is no netmask.
pub fn prefix_of(mask: &str) -> Checked<u8> {
    let wrong = || format!("netmask {mask}: expected such as 255.255.255.0");
    let bits = u32::from(mask.parse::<Ipv4Addr>().map_err(|_| wrong())?);
    let prefix = bits.leading_ones();
    if bits.checked_shl(prefix).unwrap_or(0) != 0 || prefix == 0 {
        return Err(wrong());
    }
    u8::try_from(prefix).map_err(|_| wrong())
}

/// Checks a static address of version 4.
///
/// # Errors
/// Says what does not fit.
pub fn check_ipv4(address: Ipv4Addr, prefix: u8, gateway: Option<Ipv4Addr>) -> Checked<()> {
    let bits = u32::from(address);
    if address.is_unspecified() || address.is_multicast() || address.is_loopback() || address.is_broadcast() {
        return Err(format!("address {address} cannot be that of a machine"));
    }
    let host_bits = u32::MAX.checked_shr(u32::from(prefix)).unwrap_or(0);
    let network = bits & !host_bits;
    if prefix < 31 && (bits == network || bits == network | host_bits) {
        return Err(format!(
            "address {address}/{prefix} is the network's own or its broadcast address"
        ));
    }
    if let Some(gateway) = gateway {
        if gateway == address {
            return Err(format!("gateway {gateway} is the machine's own address"));
        }
        if u32::from(gateway) & !host_bits != network {
            return Err(format!(
                "gateway {gateway} is not in the network {}/{prefix}",
                Ipv4Addr::from(network)
            ));
        }
    }
    Ok(())
}

fn check_ipv6(address: Ipv6Addr, prefix: u8, gateway: Option<Ipv6Addr>) -> Checked<()> {
    if address.is_unspecified() || address.is_multicast() || address.is_loopback() {
        return Err(format!("address {address} cannot be that of a machine"));
    }
    if let Some(gateway) = gateway {
        let host_bits = u128::MAX.checked_shr(u32::from(prefix)).unwrap_or(0);
        let same = u128::from(gateway) & !host_bits == u128::from(address) & !host_bits;
        let is_link_local = gateway.segments()[0] & 0xffc0 == 0xfe80;
        if gateway == address || !(same || is_link_local) {
            return Err(format!(
                "gateway {gateway} is not in the network of {address}/{prefix}"
            ));
        }
    }
    Ok(())
}

/// Whether a text is safe as the name of a network card.
fn card(name: &str) -> Checked<Card> {
    if name == "link" {
        return Ok(Card::Any);
    }
    let parts: Vec<&str> = name.split(':').collect();
    let is_mac = parts.len() == 6
        && parts
            .iter()
            .all(|part| part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_hexdigit()));
    if is_mac {
        return Ok(Card::Mac(name.to_ascii_lowercase()));
    }
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if name.len() > 15 || !name.bytes().all(good) || name == "bootif" {
        return Err(format!(
            "--device={name}: expected a card's name, its hardware address, or link"
        ));
    }
    Ok(Card::Name(name.to_owned()))
}

pub fn network(words: &[String], answers: &mut Answers) -> Checked<()> {
    let options = options::read(
        words,
        &["noipv4", "noipv6", "nodefroute", "activate"],
        &[
            "bootproto",
            "device",
            "ip",
            "netmask",
            "gateway",
            "nameserver",
            "hostname",
            "vlanid",
            "ipv6",
            "ipv6gateway",
            "mtu",
            "onboot",
        ],
    )?;
    options.nothing_alone()?;
    if let Some(name) = options.value("hostname") {
        check_host_name(name)?;
        if answers.hostname.as_ref().is_some_and(|other| other != name) {
            return Err(format!("--hostname={name}: another host name is given above"));
        }
        answers.hostname = Some(name.to_owned());
        if words.len() == 1 {
            return Ok(());
        }
    }
    match options.value("onboot") {
        None | Some("yes" | "on" | "true" | "1") => {}
        Some(value) => {
            return Err(format!(
                "--onboot={value}: every network given here is switched on at the start; leave out what is not wanted"
            ));
        }
    }
    let address = options.parsed::<Ipv4Addr>("ip", "an address such as 192.0.2.10")?;
    let gateway = options.parsed::<Ipv4Addr>("gateway", "an address such as 192.0.2.1")?;
    let mask = options.value("netmask");
    let needs_static = |name: &str| format!("--{name} needs --bootproto=static");
    let ipv4 = match options.value("bootproto") {
        _ if options.has("noipv4") => {
            if address.is_some() || options.value("bootproto").is_some_and(|proto| proto != "dhcp") {
                return Err("--noipv4 contradicts the address".to_owned());
            }
            Ipv4::Off
        }
        Some("static") => {
            let address = address.ok_or("--bootproto=static needs --ip")?;
            let prefix = prefix_of(mask.ok_or("--bootproto=static needs --netmask")?)?;
            check_ipv4(address, prefix, gateway)?;
            Ipv4::Static {
                address,
                prefix,
                gateway,
            }
        }
        None | Some("dhcp") => Ipv4::Dhcp,
        Some(other) => return Err(format!("--bootproto={other}: known are static and dhcp")),
    };
    if !matches!(ipv4, Ipv4::Static { .. }) {
        for name in ["ip", "netmask", "gateway"] {
            if options.value(name).is_some() {
                return Err(needs_static(name));
            }
        }
    }
    let gateway6 = options.parsed::<Ipv6Addr>("ipv6gateway", "an address such as 2001:db8::1")?;
    let ipv6 = match options.value("ipv6") {
        Some(_) if options.has("noipv6") => return Err("--noipv6 contradicts --ipv6".to_owned()),
        None if options.has("noipv6") => Ipv6::Off,
        None | Some("auto") => Ipv6::Auto,
        Some("dhcp") => Ipv6::Dhcp,
        Some(text) => {
            let wrong = || format!("--ipv6={text}: expected auto, dhcp, or such as 2001:db8::10/64");
            let (address, prefix) = text.split_once('/').ok_or_else(wrong)?;
            let address = address.parse().map_err(|_| wrong())?;
            let prefix: u8 = prefix.parse().map_err(|_| wrong())?;
            if prefix == 0 || prefix > 128 {
                return Err(wrong());
            }
            check_ipv6(address, prefix, gateway6)?;
            Ipv6::Static {
                address,
                prefix,
                gateway: gateway6,
            }
        }
    };
    if gateway6.is_some() && !matches!(ipv6, Ipv6::Static { .. }) {
        return Err("--ipv6gateway needs an address in --ipv6".to_owned());
    }
    let mut name_servers = Vec::new();
    for server in options.list("nameserver") {
        let server: IpAddr = server
            .parse()
            .map_err(|_| format!("--nameserver={server}: expected addresses, separated by commas"))?;
        name_servers.push(server);
    }
    let vlan = options.parsed::<u16>("vlanid", "a number from 1 to 4094")?;
    if vlan.is_some_and(|id| id == 0 || id > 4094) {
        return Err("--vlanid: expected a number from 1 to 4094".to_owned());
    }
    let mtu = options.parsed::<u32>("mtu", "a number from 576 to 9216")?;
    if mtu.is_some_and(|mtu| !(576..=9216).contains(&mtu)) {
        return Err("--mtu: expected a number from 576 to 9216".to_owned());
    }
    answers.networks.push(Network {
        card: options.value("device").map_or(Ok(Card::Any), card)?,
        vlan,
        ipv4,
        ipv6,
        name_servers,
        mtu,
        default_route: !options.has("nodefroute"),
    });
    Ok(())
}
