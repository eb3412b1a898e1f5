// SPDX-License-Identifier: MIT OR Apache-2.0
//! Puts the parts together: what `mt-image build` and `mt-image ova build` do.

pub mod check;
pub mod disk;
pub mod image;
pub mod ova;
pub mod stage;
