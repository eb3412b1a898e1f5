//! Protocol versions, newest first, and how two peers agree on one.

/// A version of the protocol and what it brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u16)]
pub enum Version {
    // A new version goes on top of this list, with what it changed. Adding a message or a field without a new
    // version breaks peers that are already deployed.
    /// Machines and epochs: kinds 64 to 74, and [`Mode::Epoch`](crate::Mode::Epoch) in `OpenPair`.
    V2 = 2,
    /// Hello, one pair per connection, seeding and verifying by digests, durable marks.
    V1 = 1,
}

/// Oldest version this build speaks.
pub const VERSION_MIN: u16 = 1;
/// Newest version this build speaks.
pub const VERSION_MAX: u16 = 2;

impl Version {
    /// The version with this number, when this build speaks it.
    pub fn from_number(number: u16) -> Option<Self> {
        match number {
            1 => Some(Self::V1),
            2 => Some(Self::V2),
            _ => None,
        }
    }

    /// The number that stands for this version on the wire.
    pub fn number(self) -> u16 {
        self as u16
    }
}

/// Picks the newest version that both sides speak; `None` when the two ranges do not meet.
pub fn negotiate(peer_min: u16, peer_max: u16) -> Option<Version> {
    if peer_min > peer_max {
        return None;
    }
    let newest = peer_max.min(VERSION_MAX);
    if newest < peer_min.max(VERSION_MIN) {
        return None;
    }
    Version::from_number(newest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_that_meet_give_the_newest_common_version() {
        for (min, max, expected) in [
            (1, 1, Some(Version::V1)),
            (0, 1, Some(Version::V1)),
            (1, 2, Some(Version::V2)),
            (1, 9, Some(Version::V2)),
            (2, 9, Some(Version::V2)),
            (3, 9, None),
            (0, 0, None),
            (5, 1, None),
            (u16::MAX, u16::MAX, None),
        ] {
            assert_eq!(negotiate(min, max), expected, "peer speaks {min} to {max}");
        }
    }
}
