//! Raises an alarm while SCSI disks show no ID of their own: they can never be targets, and on VMware one setting of the
//! virtual machine mends all of them.

use jiff::Timestamp;

use crate::disks::facts::{DiskKind, Identity, Inventory};
use crate::hub::{Alarm, Hub, Severity};

/// Raised while a SCSI disk shows no ID.
pub const ALARM_SCSI_IDS: &str = "scsi-id-missing";
/// What it is about.
const SUBJECT: &str = "disks";

/// Whether this is a virtual machine of VMware's, as SMBIOS says.
#[must_use]
pub fn is_vmware() -> bool {
    std::fs::read_to_string("/sys/class/dmi/id/sys_vendor").is_ok_and(|vendor| vendor.starts_with("VMware"))
}

/// Raises or clears the alarm.
pub fn check(hub: &Hub, inventory: &Inventory, vmware: bool, now: Timestamp) {
    let without: Vec<&str> = inventory
        .disks
        .iter()
        .filter(|disk| disk.kind == DiskKind::Scsi && matches!(disk.identity, Identity::Missing { .. }))
        .map(|disk| disk.kernel_name.as_str())
        .collect();
    if without.is_empty() {
        hub.clear(ALARM_SCSI_IDS, SUBJECT, now);
        return;
    }
    let (severity, hint) = if vmware {
        (
            Severity::Critical,
            "power the virtual machine off, set disk.EnableUUID=TRUE in its parameters, start it: \
             \"mt-installer scsi-ids\" says how",
        )
    } else {
        (
            Severity::Warning,
            "give the disks an ID where the hypervisor can, such as wwn= of QEMU; they are never used as targets",
        )
    };
    hub.raise(Alarm {
        id: ALARM_SCSI_IDS.to_owned(),
        subject: SUBJECT.to_owned(),
        severity,
        text: format!(
            "{} of the SCSI disks {} no SCSI ID: {}",
            without.len(),
            if without.len() == 1 { "shows" } else { "show" },
            without.join(", ")
        ),
        hint: hint.to_owned(),
        since: now,
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disks::facts::testing::disk;
    use crate::state::State;

    #[test]
    fn the_alarm_names_the_disks_and_on_vmware_the_setting() {
        let folder = tempfile::tempdir().unwrap();
        let now: Timestamp = "2026-03-02T10:14:07Z".parse().unwrap();
        let hub = Hub::new(State::open(folder.path()).unwrap(), now);
        let mut nameless = disk("sdb", 2);
        nameless.identity = Identity::Missing {
            why: "VPD page 0x83 is empty".to_owned(),
        };
        let mut virtio = nameless.clone();
        virtio.kind = DiskKind::Virtio;
        let inventory = |disks| Inventory {
            disks,
            warnings: Vec::new(),
        };

        check(
            &hub,
            &inventory(vec![disk("sda", 1), nameless.clone()]),
            true,
            now,
        );
        let alarms = hub.snapshot().alarms;
        assert_eq!(alarms.len(), 1);
        assert_eq!(
            (alarms[0].id.as_str(), alarms[0].severity),
            (ALARM_SCSI_IDS, Severity::Critical)
        );
        assert_eq!(alarms[0].text, "1 of the SCSI disks shows no SCSI ID: sdb");
        assert!(
            alarms[0].hint.contains("disk.EnableUUID=TRUE"),
            "{}",
            alarms[0].hint
        );

        check(&hub, &inventory(vec![nameless]), false, now);
        let alarms = hub.snapshot().alarms;
        assert_eq!(alarms[0].severity, Severity::Warning);
        assert!(!alarms[0].hint.contains("EnableUUID"), "{}", alarms[0].hint);

        // A virtio disk has no SCSI ID and misses none.
        check(&hub, &inventory(vec![disk("sda", 1), virtio]), true, now);
        assert!(hub.snapshot().alarms.is_empty());
    }
}
