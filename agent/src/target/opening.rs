//! From a name on the wire to an open disk: the pair, the gate, the seeding to go on with.

use std::net::SocketAddr;
use std::ops::Deref;
use std::sync::Arc;

use mt_wire::limits::REGION_SIZE;
use mt_wire::{ErrorCode, Mode, OpenPair, Refusal};

use super::registry::{PairHold, PairsInUse};
use crate::disks::access::DiskAccess;
use crate::disks::gate::{PairedDisk, Purpose};
use crate::disks::open::{OpenDisk, OpenError};
use crate::error::{ExitCode, Explain};
use crate::hub::Hub;
use crate::identity::caller::Caller;
use crate::io::buffers::SharedBuffers;
use crate::machines::registry::Machines;
use crate::model::{Pair, PairName};
use crate::state::StateError;

/// What opening a pair needs.
#[derive(Clone)]
pub struct Opener {
    /// State and status.
    pub hub: Hub,
    /// Which pairs have a session.
    pub pairs: PairsInUse,
    /// The way to the disks.
    pub disks: DiskAccess,
    /// The machines that are open.
    pub machines: Machines,
    /// Who speaks on the connection; none where the data port takes whoever connects.
    pub caller: Option<Caller>,
    /// What sessions borrow beyond buffers of their own: for regions that are read ahead, and for payloads.
    pub shared: (SharedBuffers, SharedBuffers),
}

/// The open disk of a pair, and the claim to be its only session. Work that is still queued when a session ends holds
/// both: no other session can begin before the last late write has come back.
#[derive(Debug)]
pub struct HeldDisk {
    // Fields are dropped in this order: the disk is closed before the pair is free.
    disk: Arc<OpenDisk>,
    _hold: PairHold,
}

impl HeldDisk {
    /// A disk, with the claim to its pair.
    pub fn new(disk: Arc<OpenDisk>, hold: PairHold) -> Self {
        Self { disk, _hold: hold }
    }
}

impl Deref for HeldDisk {
    type Target = OpenDisk;

    fn deref(&self) -> &OpenDisk {
        &self.disk
    }
}

/// A pair whose disk is open and held.
#[derive(Debug)]
pub struct OpenedPair {
    /// The disk, `O_EXCL`.
    pub disk: Arc<HeldDisk>,
    /// The pair as stored.
    pub pair: Pair,
    /// Seed or verify.
    pub mode: Mode,
    /// Size of the protected disk, bytes.
    pub size: u64,
    /// The seeding that begins or goes on; all zero when verifying.
    pub seeding_id: [u8; 16],
    /// Where it begins, bytes.
    pub start: u64,
}

/// Opens the pair that a source asks for. Blocks on disks and on the state.
///
/// # Errors
/// The refusal that the source is told. Nothing has been written.
pub fn open_pair(opener: &Opener, open: &OpenPair, peer: SocketAddr) -> Result<OpenedPair, Refusal> {
    let state = opener.hub.state();
    let asked = format!("{}/{}", open.machine, open.disk);
    let name = PairName::new(&open.machine, &open.disk).map_err(|error| Refusal {
        code: ErrorCode::PairUnknown,
        text: format!("\"{asked}\" cannot be the name of a pair: {error}"),
        hint: "names are MACHINE/DISK, for example db01/scsi0:1".to_owned(),
    })?;
    let pair = state.pair(&name).map_err(|error| internal(&error))?;
    if let Some(caller) = &opener.caller {
        // Before anything else is said: what exists here is nobody's business but its owner's.
        let generation = pair.as_ref().map(|pair| pair.generation);
        caller.authorise(&name.machine, generation, open.generation)?;
    }
    let pair = pair.ok_or_else(|| Refusal {
        code: ErrorCode::PairUnknown,
        text: format!("there is no pair {name} on this target; nothing was written"),
        hint: format!(
            "on the target, as root: mt-agent pair add {name} SCSI-ID (see \"mt-agent disks list\")"
        ),
    })?;
    let hold = opener.pairs.take(pair.id, peer).map_err(|holder| Refusal {
        code: ErrorCode::PairBusy,
        text: format!("pair {name} is in use by the source at {holder}; nothing was written by this one"),
        hint: "wait for it, or stop it; a source that is gone is noticed after 30 s".to_owned(),
    })?;
    if open.generation > 0 && open.generation < pair.generation {
        return Err(Refusal {
            code: ErrorCode::Fenced,
            text: format!(
                "pair {name} is at generation {}, the source knows {}: it was left behind by a failover",
                pair.generation, open.generation
            ),
            hint: "this source may not write any more; see \"mt-agent status\" on the target".to_owned(),
        });
    }
    check_sizes(&pair, &name, open)?;
    let purpose = match open.mode {
        Mode::Seed | Mode::Epoch => Purpose::Write,
        Mode::Verify => Purpose::Verify,
    };
    let paired = PairedDisk {
        scsi_id: pair.scsi_id,
        size: pair.size,
        logical_block_size: pair.logical_block_size,
        may_overwrite: pair.adopted || pair.overwrite,
    };
    let disk = match held_by_machine(opener, &name, open.mode)? {
        Some(disk) => disk,
        None => Arc::new(
            opener
                .disks
                .open_pair(&name, &paired, purpose)
                .map_err(|error| gate_refusal(&name, &error))?,
        ),
    };
    let (seeding_id, start) = match open.mode {
        // A disk of an epoch is opened with its machine, never alone.
        Mode::Verify | Mode::Epoch => ([0; 16], 0),
        Mode::Seed => begin_or_resume(opener, &pair, open, &disk)?,
    };
    let disk = Arc::new(HeldDisk::new(disk, hold));
    Ok(OpenedPair {
        disk,
        mode: open.mode,
        size: open.size,
        seeding_id,
        start,
        pair,
    })
}

/// A machine that keeps points holds its disks itself. A verification is given the disk, once it is at the newest epoch; a
/// seeding would write past the points, and is refused.
fn held_by_machine(opener: &Opener, name: &PairName, mode: Mode) -> Result<Option<Arc<OpenDisk>>, Refusal> {
    let record = opener
        .hub
        .state()
        .machine(&name.machine)
        .map_err(|error| internal(&error))?;
    if !record.failover.takes_epochs() {
        return Err(failover_under_way(&name.machine, record.failover));
    }
    if record.store.is_some() && mode == Mode::Seed {
        return Err(Refusal {
            code: ErrorCode::DiskRefused,
            text: format!(
                "machine {} keeps recovery points; seeding {name} would write past them, and nothing was written",
                name.machine
            ),
            hint: format!(
                "send an epoch: mt-agent source send --machine {} --disk {}=PATH, with all of its disks",
                name.machine, name.disk
            ),
        });
    }
    let Some(machine) = opener.machines.get(&name.machine) else {
        return Ok(None);
    };
    if mode == Mode::Seed {
        // Without points nothing is kept that a seeding could spoil.
        opener.machines.close(&name.machine);
        return Ok(None);
    }
    machine.wait_applied().map_err(|error| error.refusal())?;
    let disk = machine.disks.iter().find(|disk| disk.name == name.disk);
    Ok(disk.map(|disk| Arc::clone(&disk.disk)))
}

/// What a source is told whose machine is being failed over.
pub fn failover_under_way(machine: &str, state: crate::failover::table::State) -> Refusal {
    Refusal {
        code: ErrorCode::FailoverUnderWay,
        text: format!("machine {machine} is {state}: nothing of its source is taken"),
        hint: format!("on the target: {}", state.way_back()),
    }
}

pub(super) fn check_sizes(pair: &Pair, name: &PairName, open: &OpenPair) -> Result<(), Refusal> {
    let mismatch = |text: String, hint: &str| Refusal {
        code: ErrorCode::DiskMismatch,
        text,
        hint: hint.to_owned(),
    };
    if open.size > pair.size {
        return Err(mismatch(
            format!(
                "target disk {} is {} bytes, protected disk {name} needs {}; nothing was written",
                pair.scsi_id, pair.size, open.size
            ),
            "attach a disk that is at least as large and pair it instead",
        ));
    }
    if let Some(size) = pair.protected_size
        && size != open.size
    {
        return Err(mismatch(
            format!(
                "protected disk {name} was {size} bytes and is {} now; nothing was written",
                open.size
            ),
            "if it was resized on purpose, remove the pair and add it again; the whole disk is then compared anew",
        ));
    }
    if open.size == 0 {
        return Err(mismatch(
            format!("protected disk {name} has no size; nothing was written"),
            "check the source's disk",
        ));
    }
    if open.logical_block_size != pair.logical_block_size {
        return Err(mismatch(
            format!(
                "target disk {} has logical blocks of {} bytes, protected disk {name} of {}; nothing was written",
                pair.scsi_id, pair.logical_block_size, open.logical_block_size
            ),
            "attach a disk with the same block size: partition tables and file systems depend on it",
        ));
    }
    Ok(())
}

/// Goes on with the seeding that the source names, where both sides know it and the disk was attached all the time, or
/// begins a new one. After a reboot of the appliance a disk is another attachment: what others may have done to it
/// meanwhile is not known, so all of it is compared again, which costs reading and no data.
fn begin_or_resume(
    opener: &Opener,
    pair: &Pair,
    open: &OpenPair,
    disk: &OpenDisk,
) -> Result<([u8; 16], u64), Refusal> {
    let state = opener.hub.state();
    let instance = disk.device.instance().map_err(|error| Refusal {
        code: ErrorCode::DiskFailed,
        text: format!(
            "target disk {}: {error}: {}; nothing was written",
            pair.scsi_id,
            error.io_error()
        ),
        hint: "run \"mt-agent disks list\" on the target".to_owned(),
    })?;
    let stored = state.seeding(pair.id).map_err(|error| internal(&error))?;
    if pair.protected_size.is_none() {
        state
            .set_protected_size(pair.id, open.size)
            .map_err(|error| internal(&error))?;
    }
    // From here on the content is ours to overwrite, also after a restart.
    state.set_adopted(pair.id).map_err(|error| internal(&error))?;
    if let Some(mark) = stored
        && !mark.complete
        && mark.size == open.size
        && mark.seeding_id == open.resume_seeding_id
        && mark.instance == instance
    {
        let start = mark.durable.min(open.resume_offset);
        // A mark at the end of the disk comes from a session that was cut before it was told complete: the last region
        // is compared again.
        return Ok((mark.seeding_id, start - start % REGION_SIZE));
    }
    let seeding_id = crate::random::id().map_err(|error| Refusal {
        code: ErrorCode::Internal,
        text: format!("cannot read random bytes: {error}"),
        hint: String::new(),
    })?;
    state
        .begin_seeding(pair.id, seeding_id, open.size, &instance)
        .map_err(|error| internal(&error))?;
    Ok((seeding_id, 0))
}

fn gate_refusal(name: &PairName, error: &OpenError) -> Refusal {
    let code = match error.exit_code() {
        ExitCode::DiskMissing => ErrorCode::DiskMissing,
        _ => ErrorCode::DiskRefused,
    };
    Refusal {
        code,
        text: format!("pair {name}: {error}"),
        hint: error.hint().unwrap_or_default(),
    }
}

pub(crate) fn internal(error: &StateError) -> Refusal {
    Refusal {
        code: ErrorCode::Internal,
        text: format!("the target's state cannot be used: {error}"),
        hint: error.hint().unwrap_or_default(),
    }
}
