// SPDX-License-Identifier: MIT OR Apache-2.0
//! Network settings as files of systemd-networkd, which the image carries.

use std::fs;
use std::net::IpAddr;
use std::path::Path;

use crate::answers::{Card, Ipv4, Ipv6, Network};

/// Folder of the files.
pub const FOLDER: &str = "etc/systemd/network";
/// Every file that is made here begins so, so that a later change can take the old ones away.
pub const PREFIX: &str = "50-mt-";

/// The files: name and text of each.
#[must_use]
pub fn files(networks: &[Network]) -> Vec<(String, String)> {
    if networks.is_empty() {
        return files(&[Network::default()]);
    }
    let mut files = Vec::new();
    for (index, network) in networks.iter().enumerate() {
        match network.vlan {
            None => files.push((
                format!("{PREFIX}{index}.network"),
                format!("{}\n{}", card_match(&network.card), addresses(network)),
            )),
            Some(id) => {
                let name = format!("vlan{id}");
                files.push((
                    format!("{PREFIX}{index}.netdev"),
                    format!("[NetDev]\nName={name}\nKind=vlan\n\n[VLAN]\nId={id}\n"),
                ));
                files.push((
                    format!("{PREFIX}{index}-card.network"),
                    format!(
                        "{}\n[Network]\nVLAN={name}\nDHCP=no\nLinkLocalAddressing=no\nIPv6AcceptRA=no\n",
                        card_match(&network.card)
                    ),
                ));
                files.push((
                    format!("{PREFIX}{index}.network"),
                    format!("[Match]\nName={name}\n\n{}", addresses(network)),
                ));
            }
        }
    }
    files
}

fn card_match(card: &Card) -> String {
    let what = match card {
        // Not what is built of cards: bonds, bridges, VLANs.
        Card::Any => "Type=ether\nKind=!*".to_owned(),
        Card::Name(name) => format!("Name={name}"),
        Card::Mac(mac) => format!("PermanentMACAddress={mac}"),
    };
    format!("[Match]\n{what}\n")
}

fn addresses(network: &Network) -> String {
    let mut text = String::new();
    if let Some(mtu) = network.mtu {
        text += &format!("[Link]\nMTUBytes={mtu}\n\n");
    }
    let dhcp = match (
        matches!(network.ipv4, Ipv4::Dhcp),
        matches!(network.ipv6, Ipv6::Dhcp),
    ) {
        (true, true) => "yes",
        (true, false) => "ipv4",
        (false, true) => "ipv6",
        (false, false) => "no",
    };
    text += &format!("[Network]\nDHCP={dhcp}\n");
    let listens = !matches!(network.ipv6, Ipv6::Off | Ipv6::Static { .. });
    text += &format!("IPv6AcceptRA={}\n", if listens { "yes" } else { "no" });
    if network.ipv6 == Ipv6::Off {
        text += "LinkLocalAddressing=no\n";
    }
    // The appliance asks for names, it does not announce any.
    text += "LLMNR=no\nMulticastDNS=no\n";
    for server in &network.name_servers {
        text += &format!("DNS={server}\n");
    }
    let mut routes = Vec::new();
    if let Ipv4::Static {
        address,
        prefix,
        gateway,
    } = network.ipv4
    {
        text += &format!("Address={address}/{prefix}\n");
        routes.extend(gateway.map(IpAddr::V4));
    }
    if let Ipv6::Static {
        address,
        prefix,
        gateway,
    } = network.ipv6
    {
        text += &format!("Address={address}/{prefix}\n");
        routes.extend(gateway.map(IpAddr::V6));
    }
    if network.default_route {
        for gateway in routes {
            text += &format!("Gateway={gateway}\n");
        }
    } else {
        text += "DefaultRouteOnDevice=no\n\n[DHCPv4]\nUseGateway=no\nUseRoutes=no\n";
    }
    text
}

/// Whether systemd-resolved keeps `/etc/resolv.conf`, with the name servers of DHCP as well.
#[must_use]
pub fn resolved_owns(root: &Path) -> bool {
    fs::read_link(root.join("etc/resolv.conf"))
        .is_ok_and(|target| target.to_string_lossy().contains("run/systemd/resolve/"))
}

/// Text of `/etc/resolv.conf` where all is known beforehand; with DHCP the answers of the servers are not.
#[must_use]
pub fn resolv_conf(networks: &[Network]) -> Option<String> {
    let servers: Vec<String> = networks
        .iter()
        .flat_map(|network| &network.name_servers)
        .map(|server| format!("nameserver {server}\n"))
        .collect();
    (!servers.is_empty()).then(|| servers.concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_said_means_dhcp_on_every_card() {
        let files = files(&[]);
        assert_eq!(files.len(), 1);
        assert!(files[0].1.contains("Type=ether\nKind=!*"), "{}", files[0].1);
        assert!(
            files[0].1.contains("DHCP=ipv4\nIPv6AcceptRA=yes"),
            "{}",
            files[0].1
        );
    }

    #[test]
    fn a_static_address_on_a_vlan() {
        let network = Network {
            card: Card::Name("eth0".to_owned()),
            vlan: Some(7),
            ipv4: Ipv4::Static {
                address: [192, 0, 2, 10].into(),
                prefix: 24,
                gateway: Some([192, 0, 2, 1].into()),
            },
            ipv6: Ipv6::Off,
            name_servers: vec![IpAddr::from([192, 0, 2, 53])],
            ..Network::default()
        };
        let files = files(std::slice::from_ref(&network));
        assert_eq!(files.len(), 3);
        let text = &files[2].1;
        for line in [
            "Name=vlan7",
            "Address=192.0.2.10/24",
            "Gateway=192.0.2.1",
            "DNS=192.0.2.53",
            "DHCP=no",
            "LinkLocalAddressing=no",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in {text}");
        }
        assert_eq!(
            resolv_conf(&[network]).as_deref(),
            Some("nameserver 192.0.2.53\n")
        );
    }
}
