//! Whether the marks of a disk can be believed. Pure: readings in, a verdict out.
//!
//! The kernel counts what is written to a disk by itself, and the programs count what they see; both count when a request
//! completes, the programs a moment earlier. Let `k` be what the kernel has counted since the disk was added, and `c` what
//! the programs have seen to complete, together with requests whose completion they missed and noticed later. Then:
//!
//! * `k > c + leftovers`, where leftovers are the writes that stand as under way: something was written of which nothing
//!   was seen. That is a doubt at any time, since `c` read after `k` holds all that `k` holds.
//! * Nothing is under way according to the kernel, and the programs counted nothing while all was read: `k` must equal
//!   `c + leftovers`, which then are completions that were not seen, and whose chunks are marked again with every harvest.
//! * Else `k = c` with nothing counted meanwhile is as good. Anything else is [`Verdict::Unsettled`]: read again.
//!
//! A loss can hide behind a completion of the same size that the programs have counted and the kernel not yet; but both only
//! grow, so the next reading shows it, and no point is made of a machine without one in the quiet of a freeze.

use crate::kernel::KernelCounts;
use crate::layout::Counters;

/// What was true when a disk was added.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Baseline {
    /// The boot.
    pub boot_id: [u8; 16],
    /// The kernel's number of the attachment ([`crate::kernel::DiskFolder::sequence`]).
    pub sequence: u64,
    /// Size of the disk, bytes.
    pub size: u64,
    /// How often programs had been skipped.
    pub misses: u64,
    /// What the kernel had counted when the programs had counted nothing, sectors of writes. Below it by what completed
    /// while it was read, never above it: an estimate too low raises a doubt, one too high would hide a loss.
    pub write: Option<i128>,
    /// The same for discards.
    pub discard: Option<i128>,
}

impl Baseline {
    /// Takes in one more reading. True when it was exact and agreed with the readings before.
    pub fn improve(&mut self, reading: &Reading) -> bool {
        let still = reading.before == reading.after;
        let quiet = still && reading.kernel.inflight == 0;
        let left = |sectors: u64| if quiet { i128::from(sectors) } else { 0 };
        let write = i128::from(reading.kernel.write)
            - i128::from(reading.after.settled_write())
            - left(reading.leftovers.write);
        let discard = i128::from(reading.kernel.discard)
            - i128::from(reading.after.settled_discard())
            - left(reading.leftovers.discard);
        let agreed = self.write == Some(write) && self.discard == Some(discard);
        self.write = self.write.max(Some(write));
        self.discard = self.discard.max(Some(discard));
        still && agreed
    }
}

/// Sectors of the writes that stand as under way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Leftovers {
    /// Of writes.
    pub write: u64,
    /// Of discards.
    pub discard: u64,
}

/// Both sides' counts, read in this order.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reading {
    /// What the programs had counted first.
    pub before: Counters,
    /// What stood as under way then.
    pub leftovers: Leftovers,
    /// What the kernel had counted then.
    pub kernel: KernelCounts,
    /// What the programs had counted at last.
    pub after: Counters,
}

/// All that the verdict depends on besides the baseline.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Evidence {
    /// The boot.
    pub boot_id: [u8; 16],
    /// The kernel's number of the attachment.
    pub sequence: u64,
    /// Size of the disk, bytes.
    pub size: u64,
    /// Whether the kernel counts the disk's I/O.
    pub iostats: bool,
    /// How often programs have been skipped.
    pub misses: u64,
    /// Whether all programs are attached.
    pub attached: bool,
    /// The counts.
    pub reading: Reading,
}

/// Sectors by which the sides differ: what the kernel has counted and the programs have not, negative for the opposite.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Difference {
    /// Of writes.
    pub write: i128,
    /// Of discards.
    pub discard: i128,
}

/// Whether the marks can be believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Everything written since the disk was added has been marked.
    Complete,
    /// The sides cannot be compared exactly at this moment.
    Unsettled(Difference),
    /// Something may have been missed: compare the disk.
    Doubt(Doubt),
}

/// Why the marks of a disk are not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Doubt {
    /// What is needed cannot be read; the disk may be gone.
    #[error("the counts of the disk cannot be read: is it still attached?")]
    Unreadable,
    /// The machine was started anew.
    #[error("the machine has been started since the tracking began")]
    OtherBoot,
    /// Another disk has its device number.
    #[error("the disk was detached, and another or the same was attached in its place")]
    Replaced,
    /// A program is gone.
    #[error("a program of the tracker is not attached any more")]
    Detached,
    /// The kernel does not count.
    #[error("the kernel does not count the disk's I/O (queue/iostats is 0), so nothing can be compared")]
    IostatsOff,
    /// The size has changed.
    #[error("the disk had {was} bytes when the tracking began, now {is}")]
    Resized {
        /// When it was added.
        was: u64,
        /// Now.
        is: u64,
    },
    /// Something was written behind the end that the disk had.
    #[error("{0} writes went behind the end that the disk had when the tracking began")]
    Beyond(u64),
    /// Programs were skipped.
    #[error("the kernel skipped a program of the tracker {0} times")]
    Missed(u64),
    /// SG_IO and the like.
    #[error(
        "{0} commands were sent to the disk past the file and block layers (SG_IO or the like); what they changed is not known"
    )]
    PassThrough(u64),
    /// Not enough room for what is under way.
    #[error("{0} writes could not be noted as under way: too many at a time")]
    TooManyUnderWay(u64),
    /// Completions without an issue.
    #[error("{0} writes completed whose issue was not seen")]
    IssueUnseen(u64),
    /// Discards whose ranges are lost.
    #[error(
        "{0} discards of several ranges were not seen to complete, and their ranges are not known any more"
    )]
    ScatteredUnseen(u64),
    /// The programs could not set a mark.
    #[error("{0} writes could not be marked")]
    Unmarked(u64),
    /// The kernel has counted more than the programs.
    #[error("the kernel has counted more than was seen: {} sectors written, {} discarded", .0.write.max(0), .0.discard.max(0))]
    Lost(Difference),
    /// No exact comparison was possible.
    #[error("no moment was found in which the counts could be compared exactly; at last they differed by {} sectors written, {} discarded", .0.write, .0.discard)]
    NeverSettled(Difference),
}

/// Decides whether everything written since the baseline has been marked.
#[must_use]
pub fn judge(baseline: &Baseline, evidence: &Evidence) -> Verdict {
    let counted = &evidence.reading.after;
    let some = |count: u64| (count > 0).then_some(count);
    let missed = evidence.misses.saturating_sub(baseline.misses);
    let doubt = [
        (evidence.boot_id != baseline.boot_id).then_some(Doubt::OtherBoot),
        (evidence.sequence != baseline.sequence).then_some(Doubt::Replaced),
        (!evidence.attached).then_some(Doubt::Detached),
        (!evidence.iostats).then_some(Doubt::IostatsOff),
        (evidence.size != baseline.size).then_some(Doubt::Resized {
            was: baseline.size,
            is: evidence.size,
        }),
        some(counted.beyond).map(Doubt::Beyond),
        some(missed).map(Doubt::Missed),
        some(counted.pass_through_write).map(Doubt::PassThrough),
        some(counted.inflight_full).map(Doubt::TooManyUnderWay),
        some(counted.unmatched).map(Doubt::IssueUnseen),
        some(counted.unseen_scattered).map(Doubt::ScatteredUnseen),
        some(counted.unmarked).map(Doubt::Unmarked),
    ];
    if let Some(doubt) = doubt.into_iter().flatten().next() {
        return Verdict::Doubt(doubt);
    }
    compare(baseline, &evidence.reading)
}

fn compare(baseline: &Baseline, reading: &Reading) -> Verdict {
    let (Some(base_write), Some(base_discard)) = (baseline.write, baseline.discard) else {
        return Verdict::Doubt(Doubt::Unreadable);
    };
    let difference = Difference {
        write: i128::from(reading.kernel.write) - base_write - i128::from(reading.after.settled_write()),
        discard: i128::from(reading.kernel.discard)
            - base_discard
            - i128::from(reading.after.settled_discard()),
    };
    let (left_write, left_discard) = (
        i128::from(reading.leftovers.write),
        i128::from(reading.leftovers.discard),
    );
    let lost = Difference {
        write: difference.write - left_write,
        discard: difference.discard - left_discard,
    };
    let still = reading.before == reading.after;
    // What was issued after the leftovers were read may have completed before the kernel's counts were: then the programs
    // counted it, and `after` holds it. So this holds at any time.
    if lost.write > 0 || lost.discard > 0 {
        return Verdict::Doubt(Doubt::Lost(lost));
    }
    let exact = if reading.kernel.inflight == 0 {
        lost
    } else {
        difference
    };
    if still && exact.write == 0 && exact.discard == 0 {
        Verdict::Complete
    } else {
        Verdict::Unsettled(exact)
    }
}

#[cfg(test)]
mod tests;
