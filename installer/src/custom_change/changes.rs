// SPDX-License-Identifier: MIT OR Apache-2.0
//! The list of changes as data, and what each makes of what stands there. Pure: nothing is read or written here.
//!
//! What an operator wrote is kept: own files have names of their own; where a program reads one file only, a marked
//! block goes into it; where neither works and something else stands there, the change is refused before anything is
//! done.

use super::node::Node;

/// First line of a block in somebody else's file.
pub const BLOCK_BEGIN: &str = "# BEGIN master-target (made by mt-installer; what is outside is yours)";
/// Last line of such a block.
pub const BLOCK_END: &str = "# END master-target";
/// Group whose members may read status, and user that the target runs as.
pub const GROUP: &str = "master-target";

/// Opening for SSH in the packet filter.
pub const SSH_OPENING: &[u8] = b"tcp dport 22 accept\n";

/// What to do with a file that stands there with another content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// Leave it: it is the operator's.
    Keep,
    /// Refuse the whole: replacing it would lose what somebody wrote.
    Refuse,
    /// Replace it; it comes back when the whole is undone.
    Replace,
}

/// Where in a file a block goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// First, since the first value counts.
    Top,
    /// Last, since the last value counts.
    Bottom,
}

/// Whether a file that is not there is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// Make it, so that a program that is installed later finds it.
    Create,
    /// Leave it: the file belongs to a program that is not there.
    Skip,
}

/// What is done under a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// A file of our own.
    File {
        /// Its content.
        bytes: Vec<u8>,
        /// Permission bits.
        mode: u32,
        /// What if there is one.
        existing: Existing,
    },
    /// A marked block in a file.
    Block {
        /// Its lines.
        text: &'static str,
        /// Where it goes.
        place: Place,
        /// What if there is no file.
        missing: Missing,
    },
    /// A symbolic link; replaces another link, never a file.
    Link {
        /// Where it points.
        target: &'static str,
    },
    /// A folder.
    Folder {
        /// Permission bits.
        mode: u32,
    },
    /// A group in the group file.
    Group,
    /// A user in the user file, without a password.
    User {
        /// Number of its group.
        group: u32,
    },
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// What it closes or sets, in a word or two.
    pub what: &'static str,
    /// Path below the root, without a leading slash.
    pub path: &'static str,
    /// What is done there.
    pub action: Action,
}

/// What a change makes of what stands there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It is so already.
    Satisfied,
    /// It does not apply, for this reason.
    Skipped(&'static str),
    /// This has to be put there.
    Put(Node),
    /// It cannot be done without a loss; what stands there, in words.
    Refused(String),
}

impl Change {
    /// What there is to do, given what stands there.
    #[must_use]
    pub fn outcome(&self, before: &Node) -> Outcome {
        let put = |after: Node| {
            if after.same(before) {
                Outcome::Satisfied
            } else {
                Outcome::Put(after)
            }
        };
        match (&self.action, before) {
            (Action::Folder { .. }, Node::Folder { .. }) => Outcome::Satisfied,
            (Action::Folder { mode }, Node::Absent) => Outcome::Put(Node::Folder { mode: *mode }),
            // A folder may be a link to one, as /bin is.
            (Action::Folder { .. }, Node::Link { .. }) => Outcome::Satisfied,
            (Action::Link { target }, Node::Absent | Node::Link { .. }) => put(Node::Link {
                target: (*target).to_owned(),
            }),
            (
                Action::File {
                    existing: Existing::Keep,
                    ..
                },
                Node::File { .. },
            ) => Outcome::Skipped("the file that is there is kept"),
            (
                Action::File {
                    existing: Existing::Refuse,
                    bytes,
                    ..
                },
                Node::File { bytes: others, .. },
            ) => {
                if bytes == others {
                    Outcome::Satisfied
                } else {
                    Outcome::Refused("a file with another content".to_owned())
                }
            }
            (Action::File { bytes, mode, .. }, Node::Absent | Node::File { .. }) => put(Node::File {
                bytes: bytes.clone(),
                mode: *mode,
                owner: None,
            }),
            (
                Action::Block {
                    missing: Missing::Skip,
                    ..
                },
                Node::Absent,
            ) => Outcome::Skipped("the program it is for is not installed"),
            (Action::Block { text, place, .. }, Node::Absent) => Outcome::Put(Node::File {
                bytes: with_block("", text, *place).into_bytes(),
                mode: 0o644,
                owner: None,
            }),
            (Action::Block { text, place, .. }, Node::File { bytes, mode, owner }) => {
                match std::str::from_utf8(bytes) {
                    Ok(old) => put(Node::File {
                        bytes: with_block(old, text, *place).into_bytes(),
                        mode: *mode,
                        owner: *owner,
                    }),
                    Err(_) => Outcome::Refused("a file that is no text".to_owned()),
                }
            }
            (Action::Group | Action::User { .. }, Node::File { bytes, mode, owner }) => {
                let Ok(old) = std::str::from_utf8(bytes) else {
                    return Outcome::Refused("a file that is no text".to_owned());
                };
                if let Some(found) = unfit(old, &self.action) {
                    return Outcome::Refused(found);
                }
                let text = match &self.action {
                    Action::User { group } => with_user(old, GROUP, *group),
                    _ => with_group(old, GROUP),
                };
                match text {
                    Some(text) => put(Node::File {
                        bytes: text.into_bytes(),
                        mode: *mode,
                        owner: *owner,
                    }),
                    None => Outcome::Refused("a file without a free number from 100 to 999".to_owned()),
                }
            }
            (Action::Group, Node::Absent) => Outcome::Refused("no group file".to_owned()),
            (Action::User { .. }, Node::Absent) => Outcome::Refused("no user file".to_owned()),
            (_, Node::File { .. }) => Outcome::Refused("a file".to_owned()),
            (_, Node::Link { target }) => Outcome::Refused(format!("a link to {target}")),
            (_, Node::Folder { .. }) => Outcome::Refused("a folder".to_owned()),
            (_, Node::Other) => Outcome::Refused("neither file, link nor folder".to_owned()),
        }
    }
}

/// A text with our block in it exactly once; everything outside the block stays as it is.
#[must_use]
pub fn with_block(old: &str, block: &str, place: Place) -> String {
    let block = format!("{BLOCK_BEGIN}\n{block}{BLOCK_END}\n");
    let rest = without_block(old);
    match place {
        Place::Top => block + &rest,
        Place::Bottom => {
            let separator = if rest.is_empty() || rest.ends_with('\n') {
                ""
            } else {
                "\n"
            };
            format!("{rest}{separator}{block}")
        }
    }
}

/// A text without our block. A block without its last line is no block: what follows may be the operator's.
fn without_block(text: &str) -> String {
    let Some(begin) = text.find(BLOCK_BEGIN) else {
        return text.to_owned();
    };
    let end_line = format!("{BLOCK_END}\n");
    match text[begin..].find(&end_line) {
        Some(end) => format!("{}{}", &text[..begin], &text[begin + end + end_line.len()..]),
        None => text.to_owned(),
    }
}

/// A group file with this group in it; `None` when no number for a system's group is free.
fn with_group(old: &str, name: &str) -> Option<String> {
    with_account(old, name, |number| format!("{name}:x:{number}:"), None)
}

/// A user file with this user in it; `None` when no number for a system's user is free. It has no password, no shell and no
/// folder of its own.
fn with_user(old: &str, name: &str, group: u32) -> Option<String> {
    let line = |number| format!("{name}:*:{number}:{group}:Master target:/nonexistent:/usr/sbin/nologin");
    with_account(old, name, line, Some(group))
}

/// Why the account that has our name already is not one that the target could run as.
fn unfit(old: &str, action: &Action) -> Option<String> {
    let mut lines = old.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let fields = lines.find(|fields| fields.first() == Some(&GROUP))?;
    let number: Option<u32> = fields.get(2).and_then(|text| text.parse().ok());
    let group = match action {
        Action::User { .. } => fields.get(3).and_then(|text| text.parse().ok()),
        _ => number,
    };
    let shell = fields.get(6).copied().unwrap_or_default();
    let logs_in =
        matches!(action, Action::User { .. }) && !shell.ends_with("/nologin") && !shell.ends_with("/false");
    if number.is_none_or(|number| number == 0) || group.is_none_or(|group: u32| group == 0) {
        return Some(format!("a file in which {GROUP} is root, or has no number"));
    }
    if logs_in {
        return Some(format!(
            "a file in which {GROUP} may log in: the target runs as that user"
        ));
    }
    None
}

/// Number of the group, as the change of the group file finds or gives it.
#[must_use]
pub fn group_number(old: &str) -> Option<u32> {
    let text = with_group(old, GROUP)?;
    let mut lines = text.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let own = lines.find(|fields| fields.first() == Some(&GROUP))?;
    own.get(2)?.parse().ok()
}

fn with_account(
    old: &str,
    name: &str,
    line: impl FnOnce(u32) -> String,
    wanted: Option<u32>,
) -> Option<String> {
    let accounts = || old.lines().map(|line| line.split(':').collect::<Vec<_>>());
    if accounts().any(|fields| fields.first() == Some(&name)) {
        return Some(old.to_owned());
    }
    let taken: Vec<u32> = accounts()
        .filter_map(|fields| fields.get(2).and_then(|number| number.parse().ok()))
        .collect();
    // From above, as systemd-sysusers does.
    let number = wanted
        .into_iter()
        .chain((100..=999).rev())
        .find(|number| (100..=999).contains(number) && !taken.contains(number))?;
    let separator = if old.is_empty() || old.ends_with('\n') {
        ""
    } else {
        "\n"
    };
    Some(format!("{old}{separator}{}\n", line(number)))
}

/// Rules of the distribution that assemble or activate what they find; a file of the same name below `/etc` takes
/// their place.
const RULES: &[(&str, &str)] = &[
    ("LVM", "etc/udev/rules.d/69-lvm.rules"),
    // Its name before LVM 2.03.
    ("LVM", "etc/udev/rules.d/69-lvm-metad.rules"),
    ("LVM", "etc/udev/rules.d/69-dm-lvm-metad.rules"),
    ("md", "etc/udev/rules.d/63-md-raid-arrays.rules"),
    ("md", "etc/udev/rules.d/64-md-raid-assembly.rules"),
    ("md", "etc/udev/rules.d/65-md-incremental.rules"),
    ("md", "etc/udev/rules.d/69-md-clustered-confirm-device.rules"),
    ("multipath", "etc/udev/rules.d/60-multipath.rules"),
    ("multipath", "etc/udev/rules.d/62-multipath.rules"),
    ("btrfs", "etc/udev/rules.d/64-btrfs.rules"),
    ("btrfs", "etc/udev/rules.d/64-btrfs-dm.rules"),
    ("bcache", "etc/udev/rules.d/69-bcache.rules"),
    ("dmraid", "etc/udev/rules.d/65-dmraid.rules"),
];
const RULE: &str = include_str!("../../../image/overlay/etc/udev/rules.d/69-lvm.rules");

/// Units that look for what they could start on disks.
const MASKED: &[(&str, &str)] = &[
    ("LVM", "etc/systemd/system/lvm2-monitor.service"),
    ("LVM", "etc/systemd/system/lvm2-lvmpolld.socket"),
    ("LVM", "etc/systemd/system/lvm2-lvmpolld.service"),
    ("md", "etc/systemd/system/mdmonitor.service"),
    ("md", "etc/systemd/system/mdmonitor-oneshot.timer"),
    ("md", "etc/systemd/system/mdcheck_start.timer"),
    ("md", "etc/systemd/system/mdcheck_continue.timer"),
    ("multipath", "etc/systemd/system/multipathd.service"),
    ("multipath", "etc/systemd/system/multipathd.socket"),
    ("multipath", "etc/systemd/system/multipath-tools.service"),
    ("udisks", "etc/systemd/system/udisks2.service"),
    ("ZFS", "etc/systemd/system/zfs-import-scan.service"),
    ("ZFS", "etc/systemd/system/zfs-import-cache.service"),
    // The appliance's own screen is there instead; other consoles keep their login.
    ("console", "etc/systemd/system/getty@tty1.service"),
    // Swap and mounts by what a partition table says.
    (
        "GPT, swap",
        "etc/systemd/system-generators/systemd-gpt-auto-generator",
    ),
];

/// Units of ours: the file, the link by which it is started, and where that points.
const UNITS: &[(&str, &str, &str, &[u8])] = &[
    (
        "usr/lib/systemd/system/master-target.service",
        "etc/systemd/system/multi-user.target.wants/master-target.service",
        "/usr/lib/systemd/system/master-target.service",
        include_bytes!("../../../agent/systemd/master-target.service"),
    ),
    (
        "usr/lib/systemd/system/master-target-broker.service",
        "etc/systemd/system/multi-user.target.wants/master-target-broker.service",
        "/usr/lib/systemd/system/master-target-broker.service",
        include_bytes!("../../../agent/systemd/master-target-broker.service"),
    ),
    (
        "usr/lib/systemd/system/master-target-firewall.service",
        "etc/systemd/system/sysinit.target.wants/master-target-firewall.service",
        "/usr/lib/systemd/system/master-target-firewall.service",
        include_bytes!("../../../agent/systemd/master-target-firewall.service"),
    ),
    (
        "usr/lib/systemd/system/master-target-first-boot.service",
        "etc/systemd/system/sysinit.target.wants/master-target-first-boot.service",
        "/usr/lib/systemd/system/master-target-first-boot.service",
        include_bytes!("../../../agent/systemd/master-target-first-boot.service"),
    ),
    (
        "usr/lib/systemd/system/master-target-console@.service",
        "etc/systemd/system/multi-user.target.wants/master-target-console@tty1.service",
        "/usr/lib/systemd/system/master-target-console@.service",
        include_bytes!("../../../agent/systemd/master-target-console@.service"),
    ),
    (
        "usr/lib/systemd/system/master-target-login@.service",
        // By this name systemd starts a login on every serial line that is a console.
        "etc/systemd/system/serial-getty@.service",
        "/usr/lib/systemd/system/master-target-console@.service",
        include_bytes!("../../../agent/systemd/master-target-login@.service"),
    ),
    (
        "usr/lib/systemd/system/master-target-scsi-ids.service",
        "etc/systemd/system/multi-user.target.wants/master-target-scsi-ids.service",
        "/usr/lib/systemd/system/master-target-scsi-ids.service",
        include_bytes!("../../../agent/systemd/master-target-scsi-ids.service"),
    ),
];

/// What is not the same on every machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// SCSI IDs of disks that the system needs besides the one of its root file system.
    pub own_disks: Vec<String>,
    /// Whether the SSH service is started at boot, so that its port has to be open.
    pub ssh_enabled: bool,
    /// Whether the packet filter is loaded at boot.
    pub firewall: bool,
    /// More ports that are open.
    pub ports: Vec<Port>,
    /// Number of the group of the target's user.
    pub group: u32,
    /// Programs to be put in place: path below the root, content.
    pub programs: Vec<(&'static str, Vec<u8>)>,
}

impl Default for Facts {
    fn default() -> Self {
        Self {
            own_disks: Vec::new(),
            ssh_enabled: false,
            firewall: true,
            ports: Vec::new(),
            group: 999,
            programs: Vec::new(),
        }
    }
}

/// A port that is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
pub struct Port {
    /// Its number.
    pub number: u16,
    /// Whether it is UDP, else TCP.
    pub udp: bool,
}

/// Every change, in the order in which they are made: what closes comes before what starts.
#[must_use]
pub fn all(facts: &Facts) -> Vec<Change> {
    let mut changes = Vec::new();
    let mut add = |what, path, action| changes.push(Change { what, path, action });
    let file = |bytes: &[u8], mode| Action::File {
        bytes: bytes.to_vec(),
        mode,
        existing: Existing::Refuse,
    };
    let kept = |bytes: &[u8]| Action::File {
        bytes: bytes.to_vec(),
        mode: 0o644,
        existing: Existing::Keep,
    };
    let block = |text, place, missing| Action::Block { text, place, missing };
    macro_rules! system {
        ($path:literal) => {
            include_bytes!(concat!("../../system/", $path))
        };
    }
    let mut own_disks = system!("etc/master-target/own-disks").to_vec();
    for id in &facts.own_disks {
        own_disks.extend_from_slice(format!("{id}\n").as_bytes());
    }
    add(
        "foreign disks",
        "usr/lib/master-target/own-disk",
        file(system!("usr/lib/master-target/own-disk"), 0o755),
    );
    add("foreign disks", "etc/master-target/own-disks", kept(&own_disks));
    add(
        "foreign disks",
        "etc/udev/rules.d/10-master-target-foreign.rules",
        file(system!("etc/udev/rules.d/10-master-target-foreign.rules"), 0o644),
    );
    for (what, path) in RULES {
        add(what, path, file(RULE.as_bytes(), 0o644));
    }
    add(
        "LVM",
        "etc/lvm/devices/master-target.devices",
        file(
            include_bytes!("../../../image/overlay/etc/lvm/devices/master-target.devices"),
            0o644,
        ),
    );
    add(
        "LVM",
        "etc/lvm/lvmlocal.conf",
        block(
            include_str!("../../system/blocks/lvmlocal.conf"),
            Place::Bottom,
            Missing::Create,
        ),
    );
    let mdadm = include_str!("../../system/blocks/mdadm.conf");
    add(
        "md",
        "etc/mdadm/mdadm.conf",
        block(mdadm, Place::Top, Missing::Create),
    );
    // Where the CentOS family has it. mdadm reads the other one when this is not there.
    add("md", "etc/mdadm.conf", block(mdadm, Place::Top, Missing::Skip));
    add(
        "multipath",
        "etc/multipath/conf.d/master-target.conf",
        file(include_bytes!("../../../image/overlay/etc/multipath.conf"), 0o644),
    );
    for (what, path) in MASKED {
        add(what, path, Action::Link { target: "/dev/null" });
    }
    add(
        "os-prober",
        "etc/default/grub",
        block(
            include_str!("../../system/blocks/grub"),
            Place::Bottom,
            Missing::Skip,
        ),
    );
    add(
        "disk time-outs",
        "etc/udev/rules.d/98-master-target-disks.rules",
        file(system!("etc/udev/rules.d/98-master-target-disks.rules"), 0o644),
    );
    add("crash dumps", "var/crash", Action::Folder { mode: 0o700 });
    add(
        "crash dumps",
        "etc/default/kdump-tools",
        block(
            include_str!("../../system/blocks/kdump-tools"),
            Place::Bottom,
            Missing::Skip,
        ),
    );
    add(
        "crash dumps",
        "etc/kdump.conf",
        block(
            include_str!("../../system/blocks/kdump.conf"),
            Place::Bottom,
            Missing::Skip,
        ),
    );
    add(
        "kernel settings",
        "etc/sysctl.d/90-master-target.conf",
        file(system!("etc/sysctl.d/90-master-target.conf"), 0o644),
    );
    add(
        "packet filter",
        "etc/master-target/firewall.d",
        Action::Folder { mode: 0o755 },
    );
    if facts.ssh_enabled {
        add(
            "packet filter",
            "etc/master-target/firewall.d/ssh.nft",
            file(SSH_OPENING, 0o644),
        );
    }
    if !facts.ports.is_empty() {
        let rules: String = facts
            .ports
            .iter()
            .map(|port| {
                let protocol = if port.udp { "udp" } else { "tcp" };
                format!("{protocol} dport {} accept\n", port.number)
            })
            .collect();
        add(
            "packet filter",
            "etc/master-target/firewall.d/ports.nft",
            file(rules.as_bytes(), 0o644),
        );
    }
    add(
        "packet filter",
        "etc/master-target/nftables.conf",
        file(system!("etc/master-target/nftables.conf"), 0o644),
    );
    add(
        "group",
        "usr/lib/sysusers.d/master-target.conf",
        file(include_bytes!("../../../agent/systemd/sysusers.conf"), 0o644),
    );
    add("group", "etc/group", Action::Group);
    add("user", "etc/passwd", Action::User { group: facts.group });
    // The target's own folder in it is made by its unit.
    add("agent", "var/lib/master-target", Action::Folder { mode: 0o711 });
    add(
        "agent",
        "etc/master-target/agent.toml",
        kept(include_bytes!("../../../agent/config/agent.toml")),
    );
    for (path, bytes) in &facts.programs {
        let action = Action::File {
            bytes: bytes.clone(),
            mode: 0o755,
            existing: Existing::Replace,
        };
        add("programs", path, action);
    }
    for (unit, _, _, bytes) in UNITS {
        add("units", unit, file(bytes, 0o644));
    }
    for (_, wanted, target, _) in UNITS {
        if !facts.firewall && wanted.ends_with("master-target-firewall.service") {
            continue;
        }
        add("units", wanted, Action::Link { target });
    }
    changes
}
