//! Which pairs are in use, so that no pair has two sources.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use crate::model::PairId;

/// The pairs that have a session.
#[derive(Debug, Clone, Default)]
pub struct PairsInUse {
    pairs: Arc<Mutex<HashMap<PairId, SocketAddr>>>,
}

/// Holds a pair until it is dropped.
#[derive(Debug)]
pub struct PairHold {
    pairs: PairsInUse,
    pair: PairId,
}

impl PairsInUse {
    /// Takes a pair for the source at `peer`.
    ///
    /// # Errors
    /// The address of the source that has it.
    pub fn take(&self, pair: PairId, peer: SocketAddr) -> Result<PairHold, SocketAddr> {
        let mut pairs = self.pairs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(holder) = pairs.get(&pair) {
            return Err(*holder);
        }
        pairs.insert(pair, peer);
        Ok(PairHold {
            pairs: self.clone(),
            pair,
        })
    }

    /// Whether a session uses the pair.
    pub fn contains(&self, pair: PairId) -> bool {
        self.pairs
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .contains_key(&pair)
    }
}

impl Drop for PairHold {
    fn drop(&mut self) {
        self.pairs
            .pairs
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&self.pair);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_has_one_source_at_a_time() {
        let pairs = PairsInUse::default();
        let (first, second): (SocketAddr, SocketAddr) = (
            "127.0.0.1:1000".parse().unwrap(),
            "127.0.0.1:2000".parse().unwrap(),
        );
        let hold = pairs.take(PairId(1), first).unwrap();
        assert_eq!(pairs.take(PairId(1), second).unwrap_err(), first);
        let other = pairs.take(PairId(2), second).unwrap();
        drop(hold);
        assert!(!pairs.contains(PairId(1)) && pairs.contains(PairId(2)));
        drop(other);
        pairs.take(PairId(1), second).unwrap();
    }
}
