//! The broker: the one process of an appliance that may open disks, and that no network reaches.
//!
//! `mt-agent target` is what strangers talk to. So it runs as a user of its own, without a device, and asks the broker: for
//! the facts of the disks, and for the open disk of a pair *by the pair's name*. Which disk that is, and whether what it
//! holds may be lost, the broker knows from a record of its own, which only root can change (`mt-agent pair add|remove`
//! speaks to it first). Gate, exclusive open and the second look are the same as without it ([`crate::disks`]). Whoever has
//! taken over the target can write the disks that are paired, and nothing else.
//!
//! | module | does |
//! |---|---|
//! | [`wire`] | what is said, and its limits |
//! | [`passing`] | frames on the socket, and the descriptor that travels with one |
//! | [`records`] | the recorded pairs |
//! | [`serve`] | answers |
//! | [`client`] | asks |

pub mod client;
pub mod passing;
pub mod records;
pub mod serve;
pub mod wire;
