//! When the retention volume will be full, by what it took lately.

use std::collections::VecDeque;

use jiff::Timestamp;
use mt_retention::policy::seconds_to_full;

/// How far back is looked, milliseconds: long enough for a nightly burst not to be taken for the pace of a day.
const WINDOW_MS: i64 = 24 * 3_600_000;
/// Between two samples, milliseconds.
const SPACING_MS: i64 = 60_000;
/// Less than this says nothing, milliseconds.
const LEAST_MS: i64 = 10 * 60_000;

/// What the volume held at times of the last day; since the agent started.
#[derive(Debug, Default)]
pub struct Forecast {
    samples: VecDeque<(i64, u64)>,
}

/// A forecast, and what it rests on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ToFull {
    /// Seconds until the volume is full; `None` when it does not grow.
    pub seconds: Option<u64>,
    /// Seconds that were looked at.
    pub over: u64,
}

impl Forecast {
    /// Notes what the volume holds, bytes.
    pub fn note(&mut self, now: Timestamp, used: u64) {
        let now = now.as_millisecond();
        // A clock that was set back would make the past the future.
        self.samples.retain(|(then, _)| *then <= now);
        if self
            .samples
            .back()
            .is_some_and(|(then, _)| now - then < SPACING_MS)
        {
            return;
        }
        self.samples.push_back((now, used));
        while self
            .samples
            .front()
            .is_some_and(|(then, _)| now - then > WINDOW_MS)
        {
            self.samples.pop_front();
        }
    }

    /// The forecast for a volume of `total` bytes; `None` while too little is known.
    pub fn to_full(&self, total: u64) -> Option<ToFull> {
        let ((first, before), (last, used)) = (self.samples.front()?, self.samples.back()?);
        let over = u64::try_from(last - first).ok()?;
        if last - first < LEAST_MS {
            return None;
        }
        Some(ToFull {
            seconds: seconds_to_full(*used, total, used.saturating_sub(*before), over),
            over: over / 1000,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(minute: i64) -> Timestamp {
        Timestamp::from_millisecond(minute * 60_000).unwrap()
    }

    #[test]
    fn it_goes_by_the_last_day_and_says_nothing_before_it_knows() {
        let mut forecast = Forecast::default();
        for minute in 0..10 {
            forecast.note(at(minute), 1000 + minute.unsigned_abs());
            assert_eq!(forecast.to_full(5000), None);
        }
        forecast.note(at(10), 1010);
        // Ten bytes in ten minutes, 3990 left.
        let expected = ToFull {
            seconds: Some(3990 * 60),
            over: 600,
        };
        assert_eq!(forecast.to_full(5000), Some(expected));
        assert_eq!(forecast.to_full(1010).unwrap().seconds, Some(0));
        // The burst of the beginning is forgotten after a day.
        for minute in 11..11 + 24 * 60 {
            forecast.note(at(minute), 1010);
        }
        assert_eq!(forecast.to_full(5000).unwrap().seconds, None);
        assert!(forecast.samples.len() <= 24 * 60 + 1);
        // Points went, and the clock was set back: nothing is concluded from that.
        forecast.note(at(5), 700);
        assert_eq!(forecast.samples.len(), 1);
        assert_eq!(forecast.to_full(5000), None);
    }
}
