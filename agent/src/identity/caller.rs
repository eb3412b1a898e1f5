//! Who speaks on a connection of the data port, and what he may open.

use jiff::Timestamp;
use mt_identity::registry::{Denial, Machine, Pair, Session, authorise};
use mt_identity::{Leaf, MachineId};
use mt_wire::{ErrorCode, Refusal};
use tokio::sync::watch;

use super::keeper::Keeper;

/// A machine that was admitted.
#[derive(Clone)]
pub struct Caller {
    keeper: Keeper,
    /// As it was when it was admitted.
    machine: Machine,
    session: Session,
    address: String,
}

impl Caller {
    /// Asks the registry about the peer of a finished handshake. Blocks on the state.
    ///
    /// # Errors
    /// What the peer is told before the connection is closed.
    pub fn admit(keeper: Keeper, leaf: &Leaf, address: String) -> Result<Self, Denial> {
        let (machine, session) = keeper.admit(leaf, Timestamp::now())?;
        Ok(Self {
            keeper,
            machine,
            session,
            address,
        })
    }

    /// Which machine.
    pub fn id(&self) -> MachineId {
        self.machine.id
    }

    /// Counts changes after which [`Self::must_end`] is to be asked.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.keeper.changes()
    }

    /// Why the session has to end, as the peer is told; `None` when it may go on.
    pub fn must_end(&self) -> Option<Refusal> {
        self.keeper.must_end(self.session).map(|denial| refusal(&denial))
    }

    /// Whether it may open a pair of the protected machine `name`: `generation` is that of the pair, `None` where there is
    /// no such pair, and `offered` what the peer knows of it, 0 for nothing. Blocks on the state.
    ///
    /// # Errors
    /// What the peer is told: of the pair of another the same as of one that does not exist.
    pub fn authorise(&self, name: &str, generation: Option<u64>, offered: u64) -> Result<(), Refusal> {
        if let Some(refusal) = self.must_end() {
            return Err(refusal);
        }
        let speaker = self.keeper.state().speaker_for(name);
        let speaker = speaker.map_err(|error| crate::target::opening::internal(&error))?;
        // A pair that nobody speaks for is of an id that no machine has.
        let source = speaker.unwrap_or(MachineId([0; 16]));
        let pair = generation.map(|generation| Pair {
            source,
            relays: &[],
            generation,
        });
        let offered = match (offered, generation) {
            (0, Some(generation)) => generation,
            (offered, _) => offered,
        };
        authorise(&self.machine, pair.as_ref(), offered).map_err(|denial| {
            tracing::warn!(peer = %self.address, "stream refused: {denial}");
            refusal(&denial)
        })
    }
}

/// What a peer is told of a denial: a code, its words and its remedy, and nothing of the registry.
fn refusal(denial: &Denial) -> Refusal {
    let code = denial.code();
    Refusal {
        code: ErrorCode::from_number(code.number()),
        text: format!("{code}; nothing was written"),
        hint: match ErrorCode::from_number(code.number()) {
            ErrorCode::PairUnknown => {
                "on the target, as root: \"mt-agent pair list\" shows the pairs, \"mt-agent machines list\" for which of \
                 them this machine was approved (\"machines approve ID --as NAME\")"
                    .to_owned()
            }
            _ => code.hint().to_owned(),
        },
    }
}
