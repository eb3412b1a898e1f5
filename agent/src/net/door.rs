//! The door of both ports: who has not shown who he is costs little, and cannot keep others out.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use mt_identity::limits::{Admission, Slot, UNAUTHENTICATED_TIME, Unwelcome};
use tokio::sync::oneshot;
use tokio::time::timeout;

/// Counts connections of both ports that have not authenticated.
#[derive(Debug, Clone)]
pub struct Door {
    shared: Arc<Mutex<Strangers>>,
    opened: Instant,
}

#[derive(Debug, Default)]
struct Strangers {
    admission: Admission,
    /// Dropped to tell a connection that it has to make room.
    stay: HashMap<Slot, oneshot::Sender<()>>,
}

/// A connection that has not authenticated; its place is free again when this is dropped.
#[derive(Debug)]
pub struct Guest {
    door: Door,
    slot: Slot,
    evicted: oneshot::Receiver<()>,
}

/// Why a guest was shown out.
#[derive(Debug, thiserror::Error)]
pub enum ShownOut {
    /// It took too long.
    #[error("it did not show who it is within {} s", UNAUTHENTICATED_TIME.as_secs())]
    TooSlow,
    /// Others needed the place.
    #[error(
        "too many connections of its address, or of all, have not shown who they are, and others need its place"
    )]
    Crowded,
}

impl Door {
    /// A door that nobody has come to.
    pub fn new() -> Self {
        Self {
            shared: Arc::default(),
            opened: Instant::now(),
        }
    }

    /// Somebody connected from this address.
    ///
    /// # Errors
    /// When the address has too many connections already; close this one.
    pub fn admit(&self, address: IpAddr) -> Result<Guest, Unwelcome> {
        let mut strangers = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        let admitted = strangers.admission.admit(address, self.opened.elapsed())?;
        if let Some(evicted) = admitted.evicted {
            strangers.stay.remove(&evicted);
        }
        let (stay, evicted) = oneshot::channel();
        strangers.stay.insert(admitted.slot, stay);
        Ok(Guest {
            door: self.clone(),
            slot: admitted.slot,
            evicted,
        })
    }
}

impl Default for Door {
    fn default() -> Self {
        Self::new()
    }
}

/// Says of a guest that its handshake is over, from within its work.
#[derive(Debug)]
pub struct Handshake {
    door: Door,
    slot: Slot,
}

impl Handshake {
    /// It is over.
    pub fn done(self) {
        let mut strangers = self.door.shared.lock().unwrap_or_else(PoisonError::into_inner);
        strangers.admission.shaken(self.slot);
    }
}

impl Guest {
    /// To be told when the handshake of this guest is over.
    pub fn handshake(&self) -> Handshake {
        Handshake {
            door: self.door.clone(),
            slot: self.slot,
        }
    }

    /// Does what a guest may do, for as long as it may stay.
    ///
    /// # Errors
    /// When its time was over or its place was needed; the work was dropped where it stood.
    pub async fn within<T>(&mut self, work: impl Future<Output = T>) -> Result<T, ShownOut> {
        tokio::select! {
            done = timeout(UNAUTHENTICATED_TIME, work) => done.map_err(|_| ShownOut::TooSlow),
            _ = &mut self.evicted => Err(ShownOut::Crowded),
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let mut strangers = self.door.shared.lock().unwrap_or_else(PoisonError::into_inner);
        strangers.admission.release(self.slot);
        strangers.stay.remove(&self.slot);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mt_identity::limits::{CONNECTIONS_MAX, CONNECTIONS_PER_ADDRESS};

    fn address(number: usize) -> IpAddr {
        format!("192.0.2.{number}").parse().unwrap()
    }

    /// Idle connections from a few addresses fill the house; somebody else still comes in, and the idle one that made
    /// room ends.
    #[tokio::test]
    async fn idle_connections_make_room() {
        let door = Door::new();
        let mut idle: Vec<Guest> = (0..CONNECTIONS_MAX)
            .map(|number| door.admit(address(number / CONNECTIONS_PER_ADDRESS)).unwrap())
            .collect();
        assert_eq!(door.admit(address(0)).unwrap_err(), Unwelcome::TooManyFromAddress);
        let mut newcomer = door.admit(address(200)).unwrap();
        let first = idle[0].within(std::future::pending::<()>()).await;
        assert!(matches!(first, Err(ShownOut::Crowded)));
        assert_eq!(newcomer.within(async { 7 }).await.unwrap(), 7);
        drop((idle, newcomer));
        assert_eq!(door.shared.lock().unwrap().admission.count(), 0);
        assert!(door.shared.lock().unwrap().stay.is_empty());
    }
}
