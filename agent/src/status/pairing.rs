//! Makes and removes pairs: the acts of the local root that decide which disk may be written.
//!
//! A pair is made of a disk that the gate would admit for writing now, and that could be opened exclusively now. It is
//! opened for reading only, so nothing of it changes, and closed again; every session asks the gate anew.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use mt_blockdev::scsi::{ScsiId, ScsiIdError};

use super::model::{PairAddedDoc, PairRemovedDoc, PairRequest, SCHEMA};
use super::view;
use crate::disks::gate::{Refusal, RefusalKind};
use crate::disks::inventory::InventoryError;
use crate::disks::open::OpenError;
use crate::error::{ExitCode, Explain};
use crate::hub::Happening;
use crate::machines::error::MachineError;
use crate::model::{NameError, NewPair, PairName};
use crate::state::StateError;
use crate::target::app::{ALARM_DISK, ALARM_REFUSED, Target, chain, check_paired_disks};
use crate::target::report::{ALARM_DIFFERS, ALARM_RESYNC};

/// Stands in the register of sessions while a pair is removed, so that no source can open it meanwhile.
const NOBODY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

/// Why a pair was not made or removed. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum PairingError {
    /// The name cannot be one.
    #[error("\"{machine}/{disk}\" cannot be the name of a pair: {source}")]
    Name {
        /// Name of the machine, as given, made printable.
        machine: String,
        /// Name of the disk, as given, made printable.
        disk: String,
        /// The rule that it breaks.
        source: NameError,
    },
    /// The SCSI ID cannot be one.
    #[error("cannot pair {pair}: {source}")]
    ScsiId {
        /// The pair.
        pair: PairName,
        /// The rule that it breaks.
        source: ScsiIdError,
    },
    /// The disk that may be overwritten is not the one that is to be paired.
    #[error("will not pair {pair}: target disk is {scsi_id}, but {overwrite} is named for overwriting")]
    OtherDisk {
        /// The pair.
        pair: PairName,
        /// The target disk.
        scsi_id: ScsiId,
        /// The one that was named.
        overwrite: ScsiId,
    },
    /// The gate refuses the disk.
    #[error("will not pair {pair}: {}", .refusal.what())]
    Refused {
        /// The pair.
        pair: PairName,
        /// The target disk.
        scsi_id: ScsiId,
        /// Why.
        refusal: Refusal,
    },
    /// The disks, or the disk, could not be read.
    #[error("cannot pair {pair}: {}", chain(.source))]
    Disks {
        /// The pair.
        pair: PairName,
        /// The cause.
        source: OpenError,
    },
    /// A source uses the pair.
    #[error("will not remove pair {pair}: the source at {peer} is writing it; nothing was changed")]
    InUse {
        /// The pair.
        pair: PairName,
        /// The source.
        peer: SocketAddr,
    },
    /// Its machine is held by something else, or its points cannot be dropped.
    #[error("will not remove pair {pair}: {source}")]
    Machine {
        /// The pair.
        pair: PairName,
        /// The cause.
        source: Box<MachineError>,
    },
    /// The state refuses or fails.
    #[error(transparent)]
    State(#[from] StateError),
}

impl PairingError {
    /// One word for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Name { .. } => "bad-name",
            Self::ScsiId { .. } => "bad-scsi-id",
            Self::OtherDisk { .. } => "other-disk-named",
            Self::Refused { .. } => "disk-refused",
            Self::Disks { .. } => "disk-unreadable",
            Self::InUse { .. } => "pair-in-use",
            Self::Machine { source, .. } => source.code(),
            Self::State(error) => state_code(error),
        }
    }
}

/// One word for programs.
pub fn state_code(error: &StateError) -> &'static str {
    match error {
        StateError::PairExists { .. } => "pair-exists",
        StateError::DiskTaken { .. } => "disk-taken",
        _ => "state-failed",
    }
}

impl Explain for PairingError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Name { .. } => Some("names are MACHINE/DISK, for example db01/scsi0:1".to_owned()),
            Self::ScsiId { .. } => Some("take it from \"mt-agent disks list\"".to_owned()),
            Self::OtherDisk { .. } => {
                Some("name the same disk twice, or leave the overwriting away".to_owned())
            }
            Self::Refused {
                pair,
                scsi_id,
                refusal,
            } => match refusal.kind() {
                RefusalKind::NotEmpty | RefusalKind::Unreadable => Some(format!(
                    "if all of it may be lost: mt-agent pair add {pair} {scsi_id} --overwrite {scsi_id}"
                )),
                _ => refusal.hint(),
            },
            Self::Disks { source, .. } => source.hint(),
            Self::InUse { .. } => {
                Some("stop that source first; one that is gone is noticed after 30 s".to_owned())
            }
            Self::Machine { source, .. } => source.hint(),
            Self::State(error) => error.hint(),
        }
    }

    fn exit_code(&self) -> ExitCode {
        match self {
            Self::Name { .. } | Self::ScsiId { .. } => ExitCode::Usage,
            Self::OtherDisk { .. } | Self::InUse { .. } => ExitCode::Refused,
            Self::Refused { refusal, .. } => refusal.exit_code(),
            Self::Disks { source, .. } => source.exit_code(),
            Self::Machine { source, .. } => source.exit_code(),
            Self::State(error) => error.exit_code(),
        }
    }
}

/// The local root's hand on the pairs. One act at a time: two that would take the same disk must see each other.
#[derive(Clone)]
pub struct Pairing {
    target: Target,
    one_at_a_time: Arc<Mutex<()>>,
}

impl Pairing {
    /// The hand on a target's pairs.
    pub fn new(target: Target) -> Self {
        Self {
            target,
            one_at_a_time: Arc::default(),
        }
    }

    /// Makes a pair, or finds that it is there already. Blocks on disks and on the state.
    ///
    /// # Errors
    /// See [`PairingError`].
    pub fn add(&self, request: &PairRequest, now: Timestamp) -> Result<PairAddedDoc, PairingError> {
        let _guard = self.one_at_a_time.lock().unwrap_or_else(PoisonError::into_inner);
        let pair = name(&request.machine, &request.disk)?;
        let parse = |text: &str| ScsiId::parse(text);
        let bad = |source| PairingError::ScsiId {
            pair: pair.clone(),
            source,
        };
        let scsi_id = parse(&request.scsi_id).map_err(bad)?;
        let overwrite = request.overwrite.as_deref().map(parse).transpose().map_err(bad)?;
        if let Some(overwrite) = overwrite.filter(|overwrite| *overwrite != scsi_id) {
            return Err(PairingError::OtherDisk {
                pair,
                scsi_id,
                overwrite,
            });
        }
        let hub = &self.target.hub;
        for other in hub.state().pairs()? {
            if other.name == pair && other.scsi_id == scsi_id {
                let nothing_new = overwrite.is_none() || other.overwrite || other.adopted;
                if nothing_new {
                    let pair = view::pair_now(hub, &other)?;
                    return Ok(PairAddedDoc {
                        schema: SCHEMA,
                        added: false,
                        pair,
                    });
                }
            } else if other.name == pair {
                return Err(StateError::PairExists {
                    name: pair,
                    scsi_id: other.scsi_id,
                }
                .into());
            } else if other.scsi_id == scsi_id {
                return Err(StateError::DiskTaken {
                    name: other.name,
                    scsi_id,
                }
                .into());
            }
        }
        let new = self.look_at_disk(&pair, scsi_id, overwrite.is_some())?;
        let stored = hub.state().add_pair(&new, now)?;
        tracing::info!(
            pair = %pair, scsi_id = %scsi_id, overwrite = stored.overwrite,
            "pair added: target disk of {} bytes", stored.size
        );
        hub.pairs_changed(
            Happening::PairAdded {
                pair: pair.to_string(),
            },
            now,
        );
        Ok(PairAddedDoc {
            schema: SCHEMA,
            added: true,
            pair: view::pair_now(hub, &stored)?,
        })
    }

    /// Removes a pair; its disk is not touched, and nobody holds it afterwards. With the last pair of a machine whose
    /// failover is final the machine is forgotten. Blocks on the state, and while its machine is let go of.
    ///
    /// # Errors
    /// See [`PairingError`].
    pub fn remove(&self, machine: &str, disk: &str, now: Timestamp) -> Result<PairRemovedDoc, PairingError> {
        let _guard = self.one_at_a_time.lock().unwrap_or_else(PoisonError::into_inner);
        let pair = name(machine, disk)?;
        let hub = &self.target.hub;
        let answer = |removed| PairRemovedDoc {
            schema: SCHEMA,
            removed,
            pair: pair.to_string(),
        };
        let Some(stored) = hub.state().pair(&pair)? else {
            return Ok(answer(false));
        };
        let hold = self.target.pairs.take(stored.id, NOBODY);
        let _hold = hold.map_err(|peer| PairingError::InUse {
            pair: pair.clone(),
            peer,
        })?;
        let refused = |source| PairingError::Machine {
            pair: pair.clone(),
            source: Box::new(source),
        };
        self.target.failovers.let_go(machine).map_err(refused)?;
        let others = hub
            .state()
            .pairs()?
            .iter()
            .any(|other| other.name.machine == machine && other.name != pair);
        if !others {
            self.target.machines.forget_committed(machine).map_err(refused)?;
        }
        let removed = hub.state().remove_pair(&pair)?;
        tracing::info!(pair = %pair, scsi_id = %stored.scsi_id, "pair removed; its disk was not touched");
        for alarm in [ALARM_DISK, ALARM_REFUSED, ALARM_RESYNC, ALARM_DIFFERS] {
            hub.clear(alarm, &pair.to_string(), now);
        }
        hub.pairs_changed(
            Happening::PairRemoved {
                pair: pair.to_string(),
            },
            now,
        );
        Ok(answer(removed))
    }

    /// Asks the gate for the disk, and opens it once to see that nobody else has it.
    fn look_at_disk(
        &self,
        pair: &PairName,
        scsi_id: ScsiId,
        may_overwrite: bool,
    ) -> Result<NewPair, PairingError> {
        let refused = |refusal| PairingError::Refused {
            pair: pair.clone(),
            scsi_id,
            refusal,
        };
        let unreadable = |source| PairingError::Disks {
            pair: pair.clone(),
            source,
        };
        let disks = &self.target.disks;
        let inventory = disks
            .gather()
            .map_err(|error: InventoryError| unreadable(error.into()))?;
        // The newest facts are the ones to show, whatever comes of this.
        check_paired_disks(&self.target.hub, &inventory, Timestamp::now());
        let looked = disks.may_be_paired(pair, scsi_id, may_overwrite, &inventory);
        let paired = looked.map_err(|error| match error {
            OpenError::Refused(refusal) => refused(refusal),
            error => unreadable(error),
        })?;
        Ok(NewPair {
            name: pair.clone(),
            scsi_id,
            size: paired.size,
            logical_block_size: paired.logical_block_size,
            overwrite: may_overwrite,
        })
    }
}

fn name(machine: &str, disk: &str) -> Result<PairName, PairingError> {
    PairName::new(machine, disk).map_err(|source| PairingError::Name {
        machine: printable(machine),
        disk: printable(disk),
        source,
    })
}

/// What somebody sent, safe for a terminal and short.
fn printable(text: &str) -> String {
    text.chars().take(40).flat_map(char::escape_default).collect()
}
