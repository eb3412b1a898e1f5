// SPDX-License-Identifier: MIT OR Apache-2.0
//! Answers from the OVF environment: for an installation from the medium in a machine that was deployed with properties.
//!
//! They are the properties of the first boot, with the same meaning. None names a disk or lets anything be lost: it has
//! to be the only disk, and empty.

use std::path::Path;

use crate::answers::{Answers, End, Network, RootLogin};
use crate::error::{Error, Kind, Result};
use crate::first_boot::environment::Properties;
use crate::first_boot::settings::{self, Settings};

/// Time zones of the system that installs, which is the one that is installed.
const ZONES: &str = "usr/share/zoneinfo";

/// Answers from properties; `None` where none of ours is among them. Zones are looked up below `root`.
///
/// # Errors
/// A property cannot be used; all that cannot are named.
pub fn answers(properties: &Properties, root: &Path) -> Result<Option<Answers>> {
    let zone_exists = |zone: &str| !zone.contains("..") && root.join(ZONES).join(zone).is_file();
    let settings = settings::read(properties, &zone_exists).map_err(|faults| {
        let lines: String = faults.iter().map(|fault| format!("\n  {fault}")).collect();
        Error::new(
            Kind::Config,
            format!("properties of the OVF environment cannot be used; nothing was written:{lines}"),
        )
        .hint("correct them where the machine was deployed, or give a kickstart file")
    })?;
    Ok((settings != Settings::default()).then(|| from_settings(settings)))
}

fn from_settings(settings: Settings) -> Answers {
    let mut answers = Answers {
        hostname: settings.hostname,
        root: settings
            .root_password_hash
            .map_or(RootLogin::Locked, RootLogin::Hash),
        ssh_keys: settings.ssh_key.into_iter().collect(),
        networks: vec![Network::with_address(
            settings.address.map(|own| (own.address, own.prefix)),
            settings.gateway,
            settings.dns,
        )],
        // Nobody is there to press a key.
        end: End::Reboot,
        ..Answers::default()
    };
    answers.time.servers = settings.ntp;
    if let Some(zone) = settings.timezone {
        answers.time.zone = zone;
    }
    answers.settings.retention_disk = settings.retention_disk.map(|id| id.to_string());
    answers
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "test code")]
mod tests {
    use super::*;
    use crate::kickstart;

    fn properties(pairs: &[(&str, &str)]) -> Properties {
        pairs
            .iter()
            .map(|(key, value)| (format!("guestinfo.{key}"), (*value).to_owned()))
            .collect()
    }

    #[test]
    fn properties_become_answers_that_a_kickstart_file_can_hold() {
        let root = tempfile::tempdir().unwrap();
        let zone = root.path().join(ZONES).join("Europe/Berlin");
        std::fs::create_dir_all(zone.parent().unwrap()).unwrap();
        std::fs::write(zone, "TZif").unwrap();
        let hash = "$6$saltsalt$".to_owned() + &"0".repeat(86);
        let given = properties(&[
            ("hostname", "mt1.example.org"),
            ("address", "192.0.2.10/24"),
            ("gateway", "192.0.2.1"),
            ("dns", "192.0.2.2,2001:db8::2"),
            ("ntp", "ntp.example.org"),
            ("timezone", "Europe/Berlin"),
            ("root_password_hash", &hash),
            (
                "ssh_key",
                "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ6hbXZhkKqvFdMDqlEw ops",
            ),
            ("retention_disk", "naa.6000c29a71e02b4c9d118e55037faa02"),
        ]);
        let answers = answers(&given, root.path()).unwrap().unwrap();
        let text = kickstart::render(&answers);
        assert_eq!(kickstart::parse(&text), Ok(answers.clone()), "{text}");
        assert!(text.contains("network --hostname=mt1.example.org"), "{text}");
        assert!(
            text.contains("--ip=192.0.2.10 --netmask=255.255.255.0 --gateway=192.0.2.1"),
            "{text}"
        );
        assert_eq!(
            (answers.storage.disk, answers.storage.clear),
            (None, false),
            "nothing may be lost by it"
        );
    }

    #[test]
    fn what_cannot_be_used_is_refused_and_nothing_of_ours_is_no_answer() {
        let root = Path::new("/");
        let refused = answers(
            &properties(&[("hostname", "$(reboot)"), ("gateway", "192.0.2.1")]),
            root,
        )
        .unwrap_err();
        for key in ["guestinfo.hostname: ", "guestinfo.gateway: "] {
            assert!(refused.to_string().contains(key), "{refused}");
        }
        let others = Properties::from([("vami.ip".to_owned(), "192.0.2.1".to_owned())]);
        assert_eq!(answers(&others, root).unwrap(), None);
    }
}
