// SPDX-License-Identifier: MIT OR Apache-2.0
//! Puts the master target on a disk: of a virtual machine that was started from the ISO, or of the OVA on a build host.
//!
//! | module | does | I/O |
//! |---|---|---|
//! | [`answers`] | what an installation is told | no |
//! | [`facts`] | what is true of the machine's disks | reads |
//! | [`plan`] | answers and facts in, a plan or a refusal out | no |
//! | [`execute`] | does what the plan says | writes |
//! | [`boot`], [`configure`], [`filesystem`], [`payload`] | the steps' own knowledge | writes |
//! | [`unattended`] | the installation from the medium without questions | writes |
//! | [`ovf_answers`] | answers from the OVF environment | no |
//! | [`renew`] | new names at the first start of an image | writes |
//! | [`target`] | the disk or image that is written to | writes |
//! | [`console`] | asks on the console what no answers file says | no |
//! | [`status_screen`] | the screen of the installed appliance | no |
//! | [`terminal`] | keys and screens | console |
//! | [`custom_change`] | makes a system a master target, once | writes |
//! | [`first_boot`] | settings given at deployment | writes |
//! | [`scsi_ids`], [`selftest`] | whether disks can be told apart, file systems work | reads |
//! | [`command`] | starts the installation's programs | |

/// Prints to standard error as `eprint!` does. Where that cannot be written (a reader that has gone away, a full disk) the work
/// goes on: nothing that is said on the way is worth a disk that is half made.
#[macro_export]
macro_rules! tell {
    ($($argument:tt)*) => {{
        let _ = ::std::io::Write::write_fmt(&mut ::std::io::stderr(), ::std::format_args!($($argument)*));
    }};
}

/// As [`tell!`], with the end of the line.
#[macro_export]
macro_rules! tell_line {
    ($($argument:tt)*) => {
        $crate::tell!("{}\n", ::std::format_args!($($argument)*))
    };
}

pub mod answers;
pub mod boot;
pub mod cli;
pub mod command;
pub mod configure;
pub mod console;
pub mod custom_change;
pub mod error;
pub mod execute;
pub mod facts;
pub mod filesystem;
pub mod first_boot;
pub mod identity;
pub mod kickstart;
pub mod medium;
pub mod network;
pub mod ovf_answers;
pub mod payload;
pub mod plan;
pub mod renew;
pub mod screen;
pub mod scsi_ids;
pub mod selftest;
pub mod state;
pub mod status_screen;
pub mod target;
pub mod terminal;
pub mod unattended;
