//! Failover of a machine: from "the source writes" to "the disks are at the chosen point and can be taken over at home",
//! and every way back.
//!
//! [`table`] is the whole of what may follow what; it is pure, and tested for every state and every verb.

pub mod table;
