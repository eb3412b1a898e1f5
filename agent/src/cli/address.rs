//! The address of a target as people write it: a host name, an IPv4 or an IPv6 address, with or without a port.

use std::net::Ipv6Addr;

/// Where a target is. Names are looked up when it is connected to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetAddress {
    /// As a connection wants it: an IPv6 address in brackets.
    host: String,
    port: Option<u16>,
}

impl TargetAddress {
    /// Reads what was typed.
    ///
    /// # Errors
    /// Without a host, with a host that has spaces or slashes, or with a port that is none.
    pub fn parse(text: &str) -> Result<Self, String> {
        if let Ok(address) = text.parse::<Ipv6Addr>() {
            return Ok(Self {
                host: format!("[{address}]"),
                port: None,
            });
        }
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
            _ => (text, None),
        };
        let port = match port.map(str::parse::<u16>) {
            None => None,
            Some(Ok(port @ 1..)) => Some(port),
            Some(_) => return Err("the port is a number from 1 to 65535, as in mt01:9443".to_owned()),
        };
        let bracketed = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        let good = match bracketed {
            // A link-local address names its interface behind a percent sign.
            Some(address) => {
                let (address, _) = address.split_once('%').unwrap_or((address, ""));
                address.parse::<Ipv6Addr>().is_ok()
            }
            None => {
                let fits = |character: char| {
                    !character.is_whitespace() && !character.is_control() && !"/\\[]:@".contains(character)
                };
                !host.is_empty() && host.chars().all(fits)
            }
        };
        if !good {
            return Err(
                "expected HOST or HOST:PORT, such as mt01:9443, 192.0.2.7 or [2001:db8::7]:9443".to_owned(),
            );
        }
        Ok(Self {
            host: host.to_owned(),
            port,
        })
    }

    /// `HOST:PORT`, with this port where none was given.
    #[must_use]
    pub fn with_port(&self, usual: u16) -> String {
        format!("{}:{}", self.host, self.port.unwrap_or(usual))
    }
}

#[cfg(test)]
mod tests {
    use super::TargetAddress;

    #[test]
    fn a_port_that_was_not_given_is_the_usual_one() {
        for (given, meant) in [
            ("mt01", "mt01:443"),
            ("mt01:8443", "mt01:8443"),
            ("192.0.2.7", "192.0.2.7:443"),
            ("2001:db8::7", "[2001:db8::7]:443"),
            ("[2001:db8::7]", "[2001:db8::7]:443"),
            ("[2001:db8::7]:8443", "[2001:db8::7]:8443"),
            ("[fe80::7%2]:8443", "[fe80::7%2]:8443"),
        ] {
            assert_eq!(TargetAddress::parse(given).unwrap().with_port(443), meant);
        }
    }

    #[test]
    fn what_is_no_address_is_refused_before_it_is_connected_to() {
        for bad in [
            "",
            ":9443",
            "mt01:",
            "mt01:0",
            "mt01:99999",
            "mt01:-1",
            "mt01:https",
            "/var/tmp/disk.img",
            "a b",
            "[mt01]:1",
            "https://mt01",
            "[::1",
            "root@mt01",
            "1:2:3",
            "mt01\n",
        ] {
            assert!(TargetAddress::parse(bad).is_err(), "{bad:?}");
        }
    }
}
