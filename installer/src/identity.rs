// SPDX-License-Identifier: MIT OR Apache-2.0
//! The names that a disk, its partitions and its file systems get: they follow from a seed, which is new for each
//! installation, or, for an image that is to be the same each time it is made, made of what goes in.

use sha2::{Digest as _, Sha256};
use uuid::{Builder, Uuid};

/// Where names come from.
#[derive(Debug, Clone)]
pub struct Names {
    seed: String,
}

impl Names {
    /// New names.
    #[must_use]
    pub fn fresh() -> Self {
        Self::seeded(&Uuid::new_v4().to_string())
    }

    /// The same names for the same seed.
    #[must_use]
    pub fn seeded(seed: &str) -> Self {
        Self {
            seed: seed.to_owned(),
        }
    }

    /// The name of a thing.
    #[must_use]
    pub fn of(&self, thing: &str) -> Uuid {
        let digest = Sha256::new()
            .chain_update(self.seed.as_bytes())
            .chain_update([0])
            .chain_update(thing.as_bytes())
            .finalize();
        let mut bytes = [0u8; 16];
        bytes.copy_from_slice(&digest[..16]);
        Builder::from_random_bytes(bytes).into_uuid()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_always_gives_the_same_names() {
        let names = Names::seeded("a");
        assert_eq!(names.of("x"), names.of("x"));
        assert_ne!(names.of("x"), names.of("y"));
        assert_ne!(names.of("x"), Names::seeded("b").of("x"));
        assert_ne!(Names::fresh().of("x"), Names::fresh().of("x"));
        assert_eq!(names.of("x").get_version_num(), 4);
    }
}
