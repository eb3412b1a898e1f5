//! Noting in the audit log what a command changes while no agent runs.

use std::os::unix::net::UnixDatagram;
use std::path::Path;

use jiff::Timestamp;
use nix::unistd::{geteuid, getpid};

use crate::state::audit::Entry;
use crate::state::{State, StateError};

/// Where the journal takes records.
const JOURNAL: &str = "/run/systemd/journal/socket";

/// Who runs this command; to be asked before it goes on as somebody else.
pub fn who() -> String {
    format!("user {} (process {})", geteuid(), getpid())
}

/// Notes a change in the state, where there is one, and in the journal. That it cannot be written is told and stops nothing:
/// the change is made.
pub fn note(state_dir: &Path, who: &str, what: &str, result: &str) {
    let entry = Entry::new(Timestamp::now(), who, what, result);
    // No journal, no harm: there is none where a volume is mended on another machine.
    let _ = to_journal(Path::new(JOURNAL), &entry);
    if !state_dir.join("state.db").exists() {
        return;
    }
    match State::open(state_dir).and_then(|state| state.add_audit(&entry)) {
        // A change that was refused because an agent runs: its log is not ours to write.
        Ok(()) | Err(StateError::Locked { .. }) => {}
        Err(error) => tracing::warn!("cannot write the audit log: {error}"),
    }
}

/// Sends a record in the journal's own form, a line for each field; entries hold no line breaks.
fn to_journal(socket: &Path, entry: &Entry) -> std::io::Result<()> {
    let Entry {
        who, what, result, ..
    } = entry;
    let record = format!(
        "MESSAGE=audit who=\"{who}\" what=\"{what}\" result=\"{result}\"\nPRIORITY=6\nSYSLOG_IDENTIFIER=mt-agent\n"
    );
    UnixDatagram::unbound()?.send_to(record.as_bytes(), socket)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_in_the_state_and_in_the_journal() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("journal");
        let journal = UnixDatagram::bind(&socket).unwrap();
        let entry = Entry::new(Timestamp::UNIX_EPOCH, "user 0", "act\nPRIORITY=0", "done");
        to_journal(&socket, &entry).unwrap();
        let mut record = [0; 4096];
        let length = journal.recv(&mut record).unwrap();
        let record = std::str::from_utf8(&record[..length]).unwrap();
        assert_eq!(
            record,
            "MESSAGE=audit who=\"user 0\" what=\"act\\nPRIORITY=0\" result=\"done\"\nPRIORITY=6\n\
             SYSLOG_IDENTIFIER=mt-agent\n"
        );

        let state = folder.path().join("state");
        note(&state, "user 0", "act", "done");
        assert!(!state.exists(), "where no agent was, none is made up");
        drop(State::open(&state).unwrap());
        note(&state, "user 0", "act", "done");
        let page = State::open(&state).unwrap().audit(None, 10).unwrap();
        assert_eq!(page.entries.len(), 1);
        assert_eq!(page.entries[0].1.what, "act");
    }
}
