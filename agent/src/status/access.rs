//! Who may read, and who may change: decided by the kernel's word on the peer, `SO_PEERCRED`.
//!
//! The mode of the socket (0660, root and the group) keeps others out already. This is the second lock: it holds
//! where somebody changed the mode, and it tells reading from changing, which a mode cannot.

use std::ffi::CString;
use std::path::Path;

use nix::unistd::{Gid, Group, Uid, User, getgrouplist};

/// Longest `/proc/PID/status` that is read, bytes; 65536 groups, the kernel's limit, need about 700 KiB.
const PROC_STATUS_BYTES_MAX: u64 = 1024 * 1024;

/// The process at the other end, when it connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Effective user.
    pub uid: Uid,
    /// Effective group.
    pub gid: Gid,
    /// Process, where the kernel told it.
    pub pid: Option<i32>,
}

/// What a peer may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Access {
    /// Everything: root, and in a laboratory the user that the agent itself runs as, so that it needs no root. On an appliance
    /// that user is whoever has taken over the agent, or anything else that runs as it.
    Change,
    /// Reading: a member of the group.
    Read {
        /// Who asks.
        uid: Uid,
    },
    /// Nothing.
    Nothing {
        /// Who asks.
        uid: Uid,
    },
}

/// Decides what a peer may do; `own` is the user of the agent where that one may do everything too. Blocks on the group database.
pub fn of(peer: Peer, group: Option<Gid>, own: Option<Uid>) -> Access {
    decide(peer, group, own, is_member)
}

/// The group of this name. Blocks on the group database.
///
/// # Errors
/// When the database cannot be read; `None` when it has no such group.
pub fn group(name: &str) -> nix::Result<Option<Gid>> {
    Ok(Group::from_name(name)?.map(|group| group.gid))
}

fn decide(peer: Peer, group: Option<Gid>, own: Option<Uid>, is_member: impl Fn(Peer, Gid) -> bool) -> Access {
    if peer.uid.is_root() || Some(peer.uid) == own {
        return Access::Change;
    }
    match group {
        Some(group) if peer.gid == group || is_member(peer, group) => Access::Read { uid: peer.uid },
        _ => Access::Nothing { uid: peer.uid },
    }
}

fn is_member(peer: Peer, group: Gid) -> bool {
    let listed = || {
        let user = User::from_uid(peer.uid).ok()??;
        let name = CString::new(user.name).ok()?;
        getgrouplist(&name, user.gid).ok()
    };
    if listed().is_some_and(|groups| groups.contains(&group)) {
        return true;
    }
    // A service may have the group from its unit file and not from the database. The process could have ended and its
    // number be another's by now; what it could gain by that is to read, and the mode of the socket let it in before.
    let Some(pid) = peer.pid else { return false };
    groups_of_process(&Path::new("/proc").join(pid.to_string()), peer.uid).contains(&group)
}

/// Supplementary groups of a process, none when it is another user's by now.
fn groups_of_process(folder: &Path, uid: Uid) -> Vec<Gid> {
    use std::io::Read;
    let mut text = String::new();
    let read = std::fs::File::open(folder.join("status"))
        .and_then(|file| file.take(PROC_STATUS_BYTES_MAX).read_to_string(&mut text));
    match read {
        Ok(_) => groups_in(&text, uid),
        Err(_) => Vec::new(),
    }
}

/// Reads `Uid:` (real, effective, saved, file system) and `Groups:` of proc_pid_status(5).
fn groups_in(text: &str, uid: Uid) -> Vec<Gid> {
    let values = |key| {
        text.lines()
            .find_map(|line| line.strip_prefix(key))
            .unwrap_or_default()
            .split_whitespace()
    };
    let effective = values("Uid:").nth(1).and_then(|text| text.parse().ok());
    if effective != Some(uid.as_raw()) {
        return Vec::new();
    }
    values("Groups:")
        .filter_map(|text| text.parse().ok())
        .map(Gid::from_raw)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(uid: u32, gid: u32) -> Peer {
        Peer {
            uid: Uid::from_raw(uid),
            gid: Gid::from_raw(gid),
            pid: Some(4711),
        }
    }

    #[test]
    fn root_changes_the_group_reads_and_others_get_nothing() {
        let (root, own, group) = (None, Some(Uid::from_raw(500)), Some(Gid::from_raw(7)));
        let member = |_: Peer, _: Gid| true;
        let stranger = |_: Peer, _: Gid| false;
        let read = |uid| Access::Read {
            uid: Uid::from_raw(uid),
        };
        let nothing = |uid| Access::Nothing {
            uid: Uid::from_raw(uid),
        };
        let rows = [
            (decide(peer(0, 0), None, own, stranger), Access::Change),
            (decide(peer(500, 9), None, own, stranger), Access::Change),
            (decide(peer(500, 9), None, root, stranger), nothing(500)),
            (decide(peer(500, 7), group, root, stranger), read(500)),
            (decide(peer(1001, 7), group, root, stranger), read(1001)),
            (decide(peer(1001, 9), group, root, member), read(1001)),
            (decide(peer(1001, 9), group, root, stranger), nothing(1001)),
            // Without the group nobody is a member, whatever the database says.
            (decide(peer(1001, 7), None, root, member), nothing(1001)),
        ];
        for (number, (found, expected)) in rows.into_iter().enumerate() {
            assert_eq!(found, expected, "row {number}");
        }
    }

    #[test]
    fn groups_are_believed_only_of_the_same_user() {
        let text = "Name:\tmt-agent\nUid:\t1001\t1002\t1001\t1001\nGid:\t9\t9\t9\t9\nGroups:\t7 9 65534 \n";
        let ids: Vec<u32> = groups_in(text, Uid::from_raw(1002))
            .iter()
            .map(|gid| gid.as_raw())
            .collect();
        assert_eq!(ids, [7, 9, 65534]);
        assert_eq!(groups_in(text, Uid::from_raw(1001)), []);
        assert_eq!(groups_in("", Uid::from_raw(0)), []);
        assert_eq!(groups_in("Uid:\nGroups: x -1\n", Uid::from_raw(0)), []);
    }

    #[test]
    fn this_process_is_found_in_proc() {
        let own = nix::unistd::getgroups().unwrap();
        assert_eq!(groups_of_process(Path::new("/proc/self"), Uid::effective()), own);
    }
}
