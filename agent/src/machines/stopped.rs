//! Why a machine does nothing more for now, and which of these causes ends by itself.

use mt_retention::StoreError;

use super::error::MachineError;
use crate::error::Explain;

/// What stopped a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// A target disk failed. What was acknowledged is in the log: opened anew, the machine writes it again, all that is
    /// newer than the last flush that succeeded, whatever of it the disk took before.
    Disk,
    /// The retention volume failed.
    Volume,
    /// The store is older than what a source was promised.
    SetBack,
}

/// Why nothing more is applied or acknowledged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stopped {
    /// What kind of cause.
    pub cause: Cause,
    /// The error in words.
    pub why: String,
    /// What to do.
    pub hint: String,
}

impl Stopped {
    /// An error of the store or of a disk.
    pub fn by(error: &StoreError) -> Self {
        let why = crate::target::app::chain(error);
        match error {
            StoreError::Disk { id, .. } => Self {
                cause: Cause::Disk,
                why,
                hint: format!(
                    "see \"mt-agent disks list\" and the kernel log, and attach target disk {id} again, the same one; \
                     no point is lost, and what was under way goes on by itself, or with the same command again"
                ),
            },
            _ => Self {
                cause: Cause::Volume,
                why,
                hint: error.hint().unwrap_or("see the agent's log").to_owned(),
            },
        }
    }

    /// A source was promised more than the store has.
    pub fn set_back(machine: &str, why: String) -> Self {
        let hint = resync(machine, &why).hint().unwrap_or_default();
        Self {
            cause: Cause::SetBack,
            why,
            hint,
        }
    }

    /// The error of whoever wants something of the machine.
    pub fn error(&self, machine: &str) -> MachineError {
        if self.cause == Cause::SetBack {
            return resync(machine, &self.why);
        }
        MachineError::Stopped {
            machine: machine.to_owned(),
            by_disk: self.cause == Cause::Disk,
            why: self.why.clone(),
            hint: self.hint.clone(),
        }
    }
}

fn resync(machine: &str, why: &str) -> MachineError {
    MachineError::Resync {
        machine: machine.to_owned(),
        why: why.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use mt_retention::DiskIndex;

    use super::*;
    use crate::error::ExitCode;

    #[test]
    fn whoever_asks_is_told_what_failed_and_never_to_drop_points_for_a_disk() {
        let disk = Stopped::by(&StoreError::Disk {
            attempted: "writing",
            disk: DiskIndex(0),
            id: "naa.6000c290".to_owned(),
            offset: 0x1000,
            source: std::io::Error::other("pulled"),
        });
        let error = disk.error("db01");
        assert_eq!(error.exit_code(), ExitCode::DiskMissing);
        let text = format!("{error}; {}", error.hint().unwrap());
        assert!(
            text.contains("machine db01 is stopped") && text.contains("naa.6000c290"),
            "{text}"
        );
        assert!(text.contains("pulled") && !text.contains("reset"), "{text}");

        let volume = Stopped::by(&StoreError::Latched {
            why: "EIO".to_owned(),
        })
        .error("db01");
        assert_eq!(volume.exit_code(), ExitCode::Retention);
        assert!(volume.hint().unwrap().contains("retention volume"));

        let older = Stopped::set_back("db01", "older".to_owned()).error("db01");
        assert_eq!(older.code(), "resync-needed");
        assert!(older.hint().unwrap().contains("retention reset db01"));
    }
}
