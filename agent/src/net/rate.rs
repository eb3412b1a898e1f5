//! A token bucket: how long a sender has to wait to keep to a rate. Pure; the time comes in.

use std::time::Duration;

/// Smallest rate that can be asked for, in bytes a second. Below it a full frame would outlast the peer's patience.
pub const RATE_MIN: u64 = 64 * 1024;

/// Lets `rate` bytes a second pass, and a tenth of a second's worth at once.
#[derive(Debug)]
pub struct TokenBucket {
    rate: u64,
    /// Time at which everything that was let through so far has been paid for.
    paid_until: Duration,
}

impl TokenBucket {
    /// A bucket for `rate` bytes a second, at least [`RATE_MIN`].
    pub fn new(rate: u64) -> Self {
        Self {
            rate: rate.max(RATE_MIN),
            paid_until: Duration::ZERO,
        }
    }

    /// Most bytes that should be asked for at once.
    pub fn piece(&self) -> usize {
        usize::try_from(self.rate / 10).unwrap_or(usize::MAX)
    }

    /// Takes `bytes` at time `now` (since any fixed instant) and says how long to wait before sending them.
    pub fn take(&mut self, bytes: usize, now: Duration) -> Duration {
        // Time that was not used is not saved up: a quiet minute must not be followed by a minute at full speed.
        let begin = self
            .paid_until
            .max(now.saturating_sub(Duration::from_millis(100)));
        let nanos = bytes as u128 * 1_000_000_000 / u128::from(self.rate);
        self.paid_until = begin + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        begin.saturating_sub(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_kept_over_any_pattern() {
        let mut bucket = TokenBucket::new(1_000_000);
        let mut now = Duration::from_secs(5);
        let begin = now;
        let mut sent = 0;
        for bytes in [1, 100_000, 50, 70_000, 100_000].into_iter().cycle().take(500) {
            now += bucket.take(bytes, now);
            sent += bytes;
        }
        let allowed = (now - begin).as_secs_f64() * 1e6 + 200_000.0;
        assert!(sent as f64 <= allowed, "{sent} bytes in {:?}", now - begin);
        assert!(
            sent as f64 >= allowed - 500_000.0,
            "only {sent} bytes in {:?}",
            now - begin
        );
    }

    #[test]
    fn quiet_time_is_not_saved_up() {
        let mut bucket = TokenBucket::new(1_000_000);
        let now = Duration::from_secs(3600);
        assert_eq!(bucket.take(100_000, now), Duration::ZERO);
        assert_eq!(bucket.take(100_000, now), Duration::ZERO);
        assert_eq!(bucket.take(1, now), Duration::from_millis(100));
    }
}
