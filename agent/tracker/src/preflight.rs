//! Whether this machine lets a tracker run, and what to do where it does not.
//!
//! [`Facts`] are gathered without any change to the machine; what they mean is decided by [`judge`], which is pure. Where
//! a tracker cannot run the disks are compared by digests instead, and every refusal says so.

use std::fs;
use std::path::Path;

/// What a refusal ends in: nothing is lost but time.
pub const DIGEST_MODE: &str =
    "without it the disks are read and compared by digests, which finds the same changes and takes longer";

/// Capabilities by number (linux/capability.h).
const CAP_SYS_ADMIN: u32 = 21;
const CAP_PERFMON: u32 = 38;
const CAP_BPF: u32 = 39;

/// Major and minor number of a kernel release.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct KernelVersion {
    /// Before the first dot.
    pub major: u32,
    /// Behind it.
    pub minor: u32,
}

impl KernelVersion {
    /// From a release as uname gives it: `6.1.0-28-amd64`.
    #[must_use]
    pub fn parse(release: &str) -> Option<Self> {
        let mut numbers = release.split(|c: char| !c.is_ascii_digit());
        Some(Self {
            major: numbers.next()?.parse().ok()?,
            minor: numbers.next()?.parse().ok()?,
        })
    }

    const fn new(major: u32, minor: u32) -> Self {
        Self { major, minor }
    }
}

/// The oldest kernel on which a tracker is tried: the first whose bitmaps of different lengths fit into one map
/// (`BPF_F_INNER_MAP`).
pub const KERNEL_MIN: KernelVersion = KernelVersion::new(5, 10);

/// What is known of the machine before a program is loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Release of the kernel, as uname gives it.
    pub release: String,
    /// Effective capabilities of this process, as in `/proc/self/status`; `None` when they cannot be read.
    pub capabilities: Option<u64>,
    /// Whether the kernel has its types in `/sys/kernel/btf/vmlinux`.
    pub btf: bool,
    /// Text of `/sys/kernel/security/lockdown`; `None` when the kernel has no lockdown.
    pub lockdown: Option<String>,
}

impl Facts {
    /// Looks at this machine.
    #[must_use]
    pub fn gather() -> Self {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        Self {
            release: fs::read_to_string("/proc/sys/kernel/osrelease")
                .unwrap_or_default()
                .trim()
                .to_owned(),
            capabilities: status
                .lines()
                .find_map(|line| line.strip_prefix("CapEff:"))
                .and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok()),
            btf: Path::new("/sys/kernel/btf/vmlinux").exists(),
            lockdown: fs::read_to_string("/sys/kernel/security/lockdown").ok(),
        }
    }

    /// Whether the kernel is locked down to confidentiality, where it may keep programs from reading its memory.
    #[must_use]
    pub fn confidential(&self) -> bool {
        self.lockdown
            .as_deref()
            .is_some_and(|text| text.contains("[confidentiality]"))
    }
}

/// Whether the marks are bits or bytes in the kernel's memory. What is taken from them is the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// One bit a chunk, set atomically: from kernel 5.12 on.
    Bits,
    /// One byte a chunk: eight times the memory, no atomic operation.
    Bytes,
}

/// What this kernel can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Features {
    /// How marks are kept.
    pub layout: Layout,
    /// Whether the kernel counts how often it skipped a program (`recursion_misses`, from 5.12 on). Without it a skipped
    /// program shows in the comparison of sectors only.
    pub counts_misses: bool,
}

/// Why no tracker can run here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The kernel is too old, or its release makes no sense.
    #[error("kernel {found:?} cannot track changes, it takes 5.10 or newer")]
    Kernel {
        /// What uname says.
        found: String,
    },
    /// The process may not load programs.
    #[error(
        "this process may not load programs into the kernel: it lacks CAP_SYS_ADMIN, and CAP_BPF with CAP_PERFMON"
    )]
    Privilege,
    /// The kernel does not tell its types.
    #[error("kernel {release} has no type information (BTF): there is no /sys/kernel/btf/vmlinux")]
    NoBtf {
        /// What uname says.
        release: String,
    },
}

impl Refusal {
    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> String {
        let remedy = match self {
            Self::Kernel { .. } => "start a kernel of 5.10 or newer to have changes tracked",
            Self::Privilege => {
                "start the agent as root; in a container, give it the capabilities BPF and PERFMON"
            }
            Self::NoBtf { .. } => "start a kernel that was built with CONFIG_DEBUG_INFO_BTF=y",
        };
        format!("{remedy}; {DIGEST_MODE}")
    }
}

/// Decides whether to try, and with what.
///
/// # Errors
/// The first reason why not.
pub fn judge(facts: &Facts) -> Result<Features, Refusal> {
    let version = KernelVersion::parse(&facts.release)
        .filter(|version| *version >= KERNEL_MIN)
        .ok_or_else(|| Refusal::Kernel {
            found: facts.release.clone(),
        })?;
    // Where they cannot be read the kernel itself will tell.
    if let Some(held) = facts.capabilities {
        let has = |number: u32| held >> number & 1 == 1;
        let enough = has(CAP_SYS_ADMIN) || (has(CAP_BPF) && has(CAP_PERFMON));
        if !enough {
            return Err(Refusal::Privilege);
        }
    }
    if !facts.btf {
        return Err(Refusal::NoBtf {
            release: facts.release.clone(),
        });
    }
    let since_5_12 = version >= KernelVersion::new(5, 12);
    Ok(Features {
        layout: if since_5_12 { Layout::Bits } else { Layout::Bytes },
        counts_misses: since_5_12,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(release: &str) -> Facts {
        Facts {
            release: release.to_owned(),
            capabilities: Some(1 << CAP_SYS_ADMIN),
            btf: true,
            lockdown: None,
        }
    }

    #[test]
    fn kernels_get_what_they_can_do() {
        let layout = |release: &str| judge(&facts(release)).map(|features| features.layout);
        assert_eq!(layout("6.1.0-28-amd64"), Ok(Layout::Bits));
        assert_eq!(layout("5.14.0-427.el9.x86_64"), Ok(Layout::Bits));
        assert_eq!(layout("5.12.0"), Ok(Layout::Bits));
        assert_eq!(layout("5.10.0-30-cloud-amd64"), Ok(Layout::Bytes));
        for release in [
            "5.9.16",
            "4.18.0-553.el8.x86_64",
            "3.10.0-1160.el7.x86_64",
            "",
            "six",
            "6",
        ] {
            let refusal = layout(release).unwrap_err();
            assert_eq!(
                refusal,
                Refusal::Kernel {
                    found: release.to_owned()
                }
            );
            assert!(refusal.hint().contains("digests"), "{}", refusal.hint());
        }
    }

    #[test]
    fn privilege_and_types_are_needed() {
        let mut some = facts("6.1.0");
        some.capabilities = Some(0);
        assert_eq!(judge(&some), Err(Refusal::Privilege));
        some.capabilities = Some(1 << CAP_BPF);
        assert_eq!(judge(&some), Err(Refusal::Privilege));
        some.capabilities = Some(1 << CAP_BPF | 1 << CAP_PERFMON);
        assert!(judge(&some).is_ok());
        some.btf = false;
        let refusal = judge(&some).unwrap_err();
        assert_eq!(
            refusal,
            Refusal::NoBtf {
                release: "6.1.0".to_owned()
            }
        );
        assert!(refusal.hint().contains("CONFIG_DEBUG_INFO_BTF") && refusal.hint().contains("digests"));
    }

    #[test]
    fn lockdown_is_read() {
        let mut some = facts("6.1.0");
        assert!(!some.confidential());
        some.lockdown = Some("none [integrity] confidentiality\n".to_owned());
        assert!(!some.confidential());
        some.lockdown = Some("none integrity [confidentiality]\n".to_owned());
        assert!(some.confidential());
    }
}
