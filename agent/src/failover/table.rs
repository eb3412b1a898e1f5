//! The states of a failover, and which verb is legal where: one table.
//!
//! ```text
//!  replicating --failover--> final-sync -> fencing -> rolling -> verifying -> releasing -> awaiting-commit
//!       ^                        |            |          |           |            |          |        |
//!       |                        +------------+----------+-----------+------------+--cancel--+      commit
//!       |                                                 |                                           |
//!       +-------------------------------------------- cancelling                                  committed
//!       |                                                 ^                                           |
//!       |                                               cancel                                       undo
//!       |                                                 |                                           |
//!       +-- failover again --------------------------- undone <----------------------------------- undoing
//! ```
//!
//! From a failover that was committed, undone or failed there is a way to begin anew, which drops the points: whoever had
//! the disks meanwhile may have written to them, and points rely on blocks that nobody was to change.
//!
//! ```text
//!  committed, undone, failover-failed, cancel-failed, undo-failed --reprotect--> reprotecting --> replicating
//! ```
//!
//! A step that fails leads to a state that names what failed and can be repeated; the steps are made so that repeating
//! them is harmless. A verb that asks for what is so already, or is under way already, is a success that says so.
//!
//! What a source may send follows from the state alone ([`State::takes_epochs`]): from `fencing` on nothing is taken, and
//! the generation that is raised there keeps out what was on its way.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Where a machine is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Its source sends epochs, or may.
    Replicating,
    /// A failover has begun: the epoch that is under way is waited for, for a bounded time.
    FinalSync,
    /// The generation is raised, durably.
    Fencing,
    /// The disks are brought to the point.
    Rolling,
    /// The disks are compared with the point.
    Verifying,
    /// The disks are flushed and let go of.
    Releasing,
    /// The disks can be taken over at home. The way back is open.
    AwaitingCommit,
    /// The disks are brought back to where replication was.
    Cancelling,
    /// The failover is final; what is needed to undo it is kept for a time.
    Committed,
    /// The disks are brought back to how they were before failback.
    Undoing,
    /// The disks are as they were before failback.
    Undone,
    /// A step of the failover failed.
    FailoverFailed,
    /// A step of going back to replication failed.
    CancelFailed,
    /// A step of undoing failed.
    UndoFailed,
    /// The machine begins anew: the generation is raised, its points are dropped.
    Reprotecting,
    /// A step of beginning anew failed.
    ReprotectFailed,
}

impl State {
    /// How one comes back to replication from here.
    pub fn way_back(self) -> &'static str {
        match self {
            Self::Committed => {
                "\"mt-agent undo\" takes the failover back while that is possible; \"mt-agent reprotect\" replicates to its disks \
                 anew"
            }
            _ => "\"mt-agent cancel\" goes back to replication",
        }
    }
}

/// What somebody asks for, or what a step came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verb {
    /// Fail over to a point.
    Failover,
    /// Make the failover final.
    Commit,
    /// Go back to replication.
    Cancel,
    /// Put the disks back as they were before failback.
    Undo,
    /// Begin anew: replicate to disks that somebody else has written since, without the points of before.
    Reprotect,
    /// The step that was under way came to its end.
    StepDone,
    /// The step that was under way failed.
    StepFailed,
}

/// What a verb leads to where it is legal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// The machine is in this state from now on.
    Goes(State),
    /// It is so, or under way, already. Whether it is about the same point is for the caller to compare.
    Already,
}

/// Why a verb is not legal in a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("cannot {verb} now: {why}")]
pub struct Illegal {
    /// What was asked for.
    pub verb: Verb,
    /// Where the machine is.
    pub state: State,
    /// What speaks against it.
    pub why: &'static str,
    /// What to do instead.
    pub hint: &'static str,
}

/// Every state, for tests and for whoever shows them.
pub const STATES: [State; 16] = [
    State::Replicating,
    State::FinalSync,
    State::Fencing,
    State::Rolling,
    State::Verifying,
    State::Releasing,
    State::AwaitingCommit,
    State::Cancelling,
    State::Committed,
    State::Undoing,
    State::Undone,
    State::FailoverFailed,
    State::CancelFailed,
    State::UndoFailed,
    State::Reprotecting,
    State::ReprotectFailed,
];

/// Every verb.
pub const VERBS: [Verb; 7] = [
    Verb::Failover,
    Verb::Commit,
    Verb::Cancel,
    Verb::Undo,
    Verb::Reprotect,
    Verb::StepDone,
    Verb::StepFailed,
];

impl State {
    /// The word for people and programs.
    pub fn word(self) -> &'static str {
        match self {
            Self::Replicating => "replicating",
            Self::FinalSync => "final-sync",
            Self::Fencing => "fencing",
            Self::Rolling => "rolling",
            Self::Verifying => "verifying",
            Self::Releasing => "releasing",
            Self::AwaitingCommit => "awaiting-commit",
            Self::Cancelling => "cancelling",
            Self::Committed => "committed",
            Self::Undoing => "undoing",
            Self::Undone => "undone",
            Self::FailoverFailed => "failover-failed",
            Self::CancelFailed => "cancel-failed",
            Self::UndoFailed => "undo-failed",
            Self::Reprotecting => "reprotecting",
            Self::ReprotectFailed => "reprotect-failed",
        }
    }

    /// The state of this word.
    pub fn from_word(word: &str) -> Option<Self> {
        STATES.into_iter().find(|state| state.word() == word)
    }

    /// Whether a step is under way: after a restart of the agent it is begun again.
    pub fn is_running(self) -> bool {
        matches!(
            self,
            Self::FinalSync
                | Self::Fencing
                | Self::Rolling
                | Self::Verifying
                | Self::Releasing
                | Self::Cancelling
                | Self::Undoing
                | Self::Reprotecting
        )
    }

    /// Whether a source may begin or end an epoch.
    pub fn takes_epochs(self) -> bool {
        matches!(self, Self::Replicating | Self::FinalSync)
    }

    /// What `verb` leads to.
    ///
    /// # Errors
    /// [`Illegal`], with the reason and the way out; nothing is to be changed then.
    pub fn next(self, verb: Verb) -> Result<Next, Illegal> {
        use Next::{Already, Goes};
        use State as S;
        use Verb as V;
        let illegal = |why, hint| {
            Err(Illegal {
                verb,
                state: self,
                why,
                hint,
            })
        };
        match (self, verb) {
            // The steps of a failover, one after the other.
            (S::FinalSync, V::StepDone) => Ok(Goes(S::Fencing)),
            (S::Fencing, V::StepDone) => Ok(Goes(S::Rolling)),
            (S::Rolling, V::StepDone) => Ok(Goes(S::Verifying)),
            (S::Verifying, V::StepDone) => Ok(Goes(S::Releasing)),
            (S::Releasing, V::StepDone) => Ok(Goes(S::AwaitingCommit)),
            (S::FinalSync | S::Fencing | S::Rolling | S::Verifying | S::Releasing, V::StepFailed) => {
                Ok(Goes(S::FailoverFailed))
            }
            // The steps back.
            (S::Cancelling, V::StepDone) => Ok(Goes(S::Replicating)),
            (S::Cancelling, V::StepFailed) => Ok(Goes(S::CancelFailed)),
            (S::Undoing, V::StepDone) => Ok(Goes(S::Undone)),
            (S::Undoing, V::StepFailed) => Ok(Goes(S::UndoFailed)),
            (S::Reprotecting, V::StepDone) => Ok(Goes(S::Replicating)),
            (S::Reprotecting, V::StepFailed) => Ok(Goes(S::ReprotectFailed)),

            // Once points are being dropped there is one way only.
            (S::Reprotecting | S::ReprotectFailed, V::Failover | V::Commit | V::Cancel | V::Undo) => illegal(
                "the machine is being protected anew, without the points of before",
                "wait for that; \"mt-agent reprotect\" repeats one that failed",
            ),
            (S::Replicating | S::Reprotecting, V::Reprotect) => Ok(Already),
            (
                S::Committed
                | S::Undone
                | S::FailoverFailed
                | S::CancelFailed
                | S::UndoFailed
                | S::ReprotectFailed,
                V::Reprotect,
            ) => Ok(Goes(S::Reprotecting)),
            (
                S::FinalSync | S::Fencing | S::Rolling | S::Verifying | S::Releasing | S::AwaitingCommit,
                V::Reprotect,
            ) => illegal(
                "the failover has not been committed",
                "\"mt-agent cancel\" goes back to replication and keeps the points; where the machine was started at \
                 home, \"mt-agent commit\" comes first",
            ),
            (S::Cancelling | S::Undoing, V::Reprotect) => illegal(
                "the failover is being taken back",
                "wait for its job, see \"mt-agent jobs list\"",
            ),

            (S::Replicating | S::Undone | S::FailoverFailed, V::Failover) => Ok(Goes(S::FinalSync)),
            (
                S::FinalSync | S::Fencing | S::Rolling | S::Verifying | S::Releasing | S::AwaitingCommit,
                V::Failover,
            ) => Ok(Already),
            (S::Cancelling | S::CancelFailed, V::Failover) => illegal(
                "the last failover is being taken back",
                "wait until it is cancelled; \"mt-agent cancel\" repeats a cancelling that failed",
            ),
            (S::Committed, V::Failover) => illegal(
                "a failover was committed already",
                "\"mt-agent undo\" takes it back; \"mt-agent reprotect\" replicates to its disks anew",
            ),
            (S::Undoing | S::UndoFailed, V::Failover) => illegal(
                "the last failover is being undone",
                "wait until it is undone; \"mt-agent undo\" repeats an undoing that failed",
            ),

            (S::AwaitingCommit, V::Commit) => Ok(Goes(S::Committed)),
            (S::Committed, V::Commit) => Ok(Already),
            (S::Replicating | S::Undone, V::Commit) => {
                illegal("there is no failover", "\"mt-agent failover\" begins one")
            }
            (S::FinalSync | S::Fencing | S::Rolling | S::Verifying | S::Releasing, V::Commit) => illegal(
                "the failover has not come to its end",
                "wait for its job, see \"mt-agent jobs list\"",
            ),
            (S::FailoverFailed, V::Commit) => illegal(
                "the failover failed",
                "repeat it with \"mt-agent failover\", or take it back with \"mt-agent cancel\"",
            ),
            (S::Cancelling | S::CancelFailed | S::Undoing | S::UndoFailed, V::Commit) => illegal(
                "the failover is being taken back",
                "begin a new one when that is done",
            ),

            (S::Replicating | S::Cancelling, V::Cancel) => Ok(Already),
            (
                S::FinalSync
                | S::Fencing
                | S::Rolling
                | S::Verifying
                | S::Releasing
                | S::AwaitingCommit
                | S::FailoverFailed
                | S::CancelFailed
                | S::Undone
                | S::UndoFailed,
                V::Cancel,
            ) => Ok(Goes(S::Cancelling)),
            (S::Committed, V::Cancel) => illegal(
                "the failover was committed",
                "\"mt-agent undo\" puts the disks back as they were before failback, within the kept time; \"mt-agent \
                 reprotect\" replicates to them anew",
            ),
            (S::Undoing, V::Cancel) => illegal(
                "the failover is being undone",
                "wait for that; then \"mt-agent cancel\" goes back to replication",
            ),

            (S::Committed | S::UndoFailed, V::Undo) => Ok(Goes(S::Undoing)),
            (S::Undoing | S::Undone, V::Undo) => Ok(Already),
            (S::Replicating | S::Cancelling | S::CancelFailed, V::Undo) => illegal(
                "there is no failover that was committed",
                "\"mt-agent roll MACHINE --to before-failback\" brings the disks there without a failover",
            ),
            (
                S::FinalSync
                | S::Fencing
                | S::Rolling
                | S::Verifying
                | S::Releasing
                | S::AwaitingCommit
                | S::FailoverFailed,
                V::Undo,
            ) => illegal(
                "the failover has not been committed",
                "\"mt-agent cancel\" goes back to replication",
            ),

            (
                S::Replicating
                | S::AwaitingCommit
                | S::Committed
                | S::Undone
                | S::FailoverFailed
                | S::CancelFailed
                | S::UndoFailed
                | S::ReprotectFailed,
                V::StepDone | V::StepFailed,
            ) => illegal("no step is under way", "this is a fault of the agent; report it"),
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Failover => "fail over",
            Self::Commit => "commit",
            Self::Cancel => "cancel",
            Self::Undo => "undo",
            Self::Reprotect => "reprotect",
            Self::StepDone => "end a step",
            Self::StepFailed => "fail a step",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table once more, as people would draw it: a row for each state, a column for each verb. `.` is illegal, `=`
    /// is so already, a word is where it goes.
    #[rustfmt::skip]
    const DRAWN: [(State, [&str; 7]); 16] = [
        //                       failover      commit       cancel        undo       reprotect       done               failed
        (State::Replicating,     ["final-sync", ".",         "=",          ".",       "=",            ".",               "."]),
        (State::FinalSync,       ["=",          ".",         "cancelling", ".",       ".",            "fencing",         "failover-failed"]),
        (State::Fencing,         ["=",          ".",         "cancelling", ".",       ".",            "rolling",         "failover-failed"]),
        (State::Rolling,         ["=",          ".",         "cancelling", ".",       ".",            "verifying",       "failover-failed"]),
        (State::Verifying,       ["=",          ".",         "cancelling", ".",       ".",            "releasing",       "failover-failed"]),
        (State::Releasing,       ["=",          ".",         "cancelling", ".",       ".",            "awaiting-commit", "failover-failed"]),
        (State::AwaitingCommit,  ["=",          "committed", "cancelling", ".",       ".",            ".",               "."]),
        (State::Cancelling,      [".",          ".",         "=",          ".",       ".",            "replicating",     "cancel-failed"]),
        (State::Committed,       [".",          "=",         ".",          "undoing", "reprotecting", ".",               "."]),
        (State::Undoing,         [".",          ".",         ".",          "=",       ".",            "undone",          "undo-failed"]),
        (State::Undone,          ["final-sync", ".",         "cancelling", "=",       "reprotecting", ".",               "."]),
        (State::FailoverFailed,  ["final-sync", ".",         "cancelling", ".",       "reprotecting", ".",               "."]),
        (State::CancelFailed,    [".",          ".",         "cancelling", ".",       "reprotecting", ".",               "."]),
        (State::UndoFailed,      [".",          ".",         "cancelling", "undoing", "reprotecting", ".",               "."]),
        (State::Reprotecting,    [".",          ".",         ".",          ".",       "=",            "replicating",     "reprotect-failed"]),
        (State::ReprotectFailed, [".",          ".",         ".",          ".",       "reprotecting", ".",               "."]),
    ];

    #[test]
    fn every_state_and_every_verb() {
        let mut cells = 0;
        for (state, row) in DRAWN {
            for (verb, drawn) in VERBS.into_iter().zip(row) {
                let found = match state.next(verb) {
                    Ok(Next::Goes(next)) => next.word(),
                    Ok(Next::Already) => "=",
                    Err(illegal) => {
                        assert!(!illegal.why.is_empty() && !illegal.hint.is_empty());
                        "."
                    }
                };
                assert_eq!(found, drawn, "{verb} in {state}");
                cells += 1;
            }
        }
        assert_eq!(cells, STATES.len() * VERBS.len());
    }

    #[test]
    fn words_name_one_state_each() {
        for state in STATES {
            assert_eq!(State::from_word(state.word()), Some(state));
        }
        assert_eq!(State::from_word("elsewhere"), None);
    }

    /// Whatever happened, there is a way back to replication, and none of it passes a state in which a source could
    /// write disks that are being rolled.
    #[test]
    fn from_everywhere_there_is_a_way_back() {
        // What broke: a committed failover had no verb that led back to replication but undo, whose time ends.
        assert_eq!(
            State::Committed.next(Verb::Reprotect),
            Ok(Next::Goes(State::Reprotecting))
        );
        for state in STATES {
            let mut reached = vec![state];
            let mut index = 0;
            while let Some(from) = reached.get(index).copied() {
                index += 1;
                for verb in VERBS {
                    if let Ok(Next::Goes(next)) = from.next(verb)
                        && !reached.contains(&next)
                    {
                        reached.push(next);
                    }
                }
            }
            assert!(reached.contains(&State::Replicating), "no way back from {state}");
        }
        for state in STATES {
            if state.takes_epochs() {
                continue;
            }
            for verb in VERBS {
                // Only these acts open a fenced machine to its source again: a cancelling or a reprotecting that came to its
                // end, and a failover that is begun anew.
                if let Ok(Next::Goes(next)) = state.next(verb)
                    && next.takes_epochs()
                {
                    let is_last_step = matches!(state, State::Cancelling | State::Reprotecting);
                    let opens = (is_last_step && verb == Verb::StepDone) || verb == Verb::Failover;
                    assert!(opens, "{verb} in {state} leads to {next}");
                }
            }
        }
    }

    #[test]
    fn a_running_step_ends_and_nothing_else_does() {
        for state in STATES {
            let ends = state.next(Verb::StepDone).is_ok() && state.next(Verb::StepFailed).is_ok();
            assert_eq!(ends, state.is_running(), "{state}");
        }
    }
}
