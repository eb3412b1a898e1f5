//! The system's clock, for TLS.

use std::time::{SystemTime, UNIX_EPOCH};

use rustls::pki_types::UnixTime;
use rustls::time_provider::TimeProvider;

/// What the system's clock says. The one of the TLS library panics on a clock that stands before 1970, as that of a machine whose
/// battery is empty may.
#[derive(Debug, Clone, Copy)]
pub struct SystemClock;

impl TimeProvider for SystemClock {
    fn current_time(&self) -> Option<UnixTime> {
        unix_time(SystemTime::now())
    }
}

fn unix_time(now: SystemTime) -> Option<UnixTime> {
    now.duration_since(UNIX_EPOCH)
        .ok()
        .map(UnixTime::since_unix_epoch)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_clock_before_1970_is_no_time_and_no_panic() {
        assert_eq!(unix_time(UNIX_EPOCH - Duration::from_secs(1)), None);
        assert_eq!(unix_time(UNIX_EPOCH).map(|time| time.as_secs()), Some(0));
        let later = UNIX_EPOCH + Duration::from_secs(1_772_446_447);
        assert_eq!(unix_time(later).map(|time| time.as_secs()), Some(1_772_446_447));
        assert!(SystemClock.current_time().is_some());
    }
}
