//! Loads the programs and has the kernel call them.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::path::PathBuf;

use libbpf_rs::btf::types::{FuncProto, Ptr, Typedef};
use libbpf_rs::{Btf, MapCore, MapFlags, MapHandle, ObjectBuilder, OpenObject, ReferencesType};

use super::{Program, StartError, Tracker};
use crate::kernel::boot_id;
use crate::layout::Entry;
#[cfg(feature = "planted-bugs")]
use crate::layout::u32_bytes;
use crate::preflight::{Facts, Layout, judge};

/// The compiled programs, aligned as ELF wants it.
#[repr(align(8))]
struct Aligned<const N: usize>([u8; N]);
static BITS: &Aligned<{ include_bytes!(concat!(env!("OUT_DIR"), "/tracker-bits.o")).len() }> =
    &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/tracker-bits.o")));
static BYTES: &Aligned<{ include_bytes!(concat!(env!("OUT_DIR"), "/tracker-bytes.o")).len() }> =
    &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/tracker-bytes.o")));

/// Requests that can be noted, over all disks, where more is not asked for. Every harvest walks through as many buckets.
const INFLIGHT_DEFAULT: u32 = 4000;
/// More is not asked of the kernel's memory: 2 million notes take 200 MB.
const INFLIGHT_MAX: u32 = 1 << 21;

/// How a tracker is started.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// How marks are kept; what suits the kernel when nothing is said.
    pub layout: Option<Layout>,
    /// Requests that can be noted, over all disks: at least the sum of [`crate::kernel::QueueFacts::requests_max`], better
    /// twice as many, since a disk whose queue is set up anew gets new requests.
    pub inflight_max: Option<u32>,
    /// A folder in a BPF file system (`/sys/fs/bpf/...`), where programs and marks are kept when this process ends, in
    /// whatever way; [`Tracker::adopt`] goes on with them.
    pub outlive: Option<PathBuf>,
    /// What is wrong with this tracker on purpose.
    #[cfg(feature = "planted-bugs")]
    pub planted: Planted,
}

/// Faults of a tracker that its tests must find.
#[cfg(feature = "planted-bugs")]
#[derive(Debug, Clone, Copy, Default)]
pub struct Planted {
    /// Marks nothing when a request is issued.
    pub no_issue_marks: bool,
    /// Marks nothing when a request completes.
    pub no_completion_marks: bool,
    /// Does not note what is under way.
    pub no_inflight: bool,
    /// Throws every so many issues away; 0 for none.
    pub skip_issue_each: u32,
    /// Throws every so many completions away; 0 for none.
    pub skip_completion_each: u32,
    /// Sees nothing of requests whose first sector is a multiple of this; 0 for none.
    pub skip_sector_each: u32,
}

impl Tracker {
    /// Loads the programs and has them called. No disk is tracked yet.
    ///
    /// # Errors
    /// [`StartError`] says what is missing; its hint says what to do.
    pub fn start(options: &Options) -> Result<Self, StartError> {
        let facts = Facts::gather();
        let mut features = judge(&facts)?;
        if let Some(layout) = options.layout {
            features.layout = layout;
        }
        let refused = |what: &'static str| {
            let (release, confidential) = (facts.release.clone(), facts.confidential());
            move |source| StartError::Kernel {
                what,
                release,
                lockdown: if confidential {
                    ", locked down to confidentiality"
                } else {
                    ""
                },
                source,
            }
        };
        let boot_id = boot_id().map_err(|source| StartError::Io {
            what: "the boot id",
            source,
        })?;
        let queue_first = queue_comes_first().map_err(refused("to tell the types"))?;
        // What libbpf prints is for those who write programs; the errors say what can be acted on.
        libbpf_rs::set_print(None);
        let object: &[u8] = match features.layout {
            Layout::Bits => &BITS.0,
            Layout::Bytes => &BYTES.0,
        };
        let mut open = ObjectBuilder::default()
            .open_memory(object)
            .map_err(refused("to open the object"))?;
        let inflight_max = options
            .inflight_max
            .unwrap_or(INFLIGHT_DEFAULT)
            .clamp(1, INFLIGHT_MAX)
            + 1;
        prepare(&mut open, queue_first, inflight_max, options).map_err(refused("the settings"))?;
        let object = open.load().map_err(refused("the programs"))?;
        let map = |name: &str| {
            let found = object.maps().find(|map| map.name() == name);
            let found = found.ok_or_else(|| libbpf_rs::Error::from_raw_os_error(nix::libc::ENOENT))?;
            MapHandle::try_from(&found)
        };
        let take = |name: &str| map(name).map_err(refused("the maps"));
        let mut tracker = Self {
            features,
            release: facts.release.clone(),
            boot_id,
            sysfs: PathBuf::from("/sys"),
            inflight_max,
            pins: None,
            _lock: None,
            programs: Vec::new(),
            disks: take("disks")?,
            geometry: take("geometry")?,
            counters: take("counters")?,
            inflight: take("inflight")?,
            marks: take("marks")?,
            tracked: BTreeMap::new(),
        };
        tracker
            .inflight
            .update(&Entry::SENTINEL, &Entry::zeros(), MapFlags::ANY)
            .map_err(refused("the maps"))?;
        // Issues last: what is issued before completions are seen would stay under way for ever.
        let names = if queue_first {
            ["complete", "requeue_5_10", "issue_5_10"]
        } else {
            ["complete", "requeue", "issue"]
        };
        for name in names {
            let program = object.progs_mut().find(|program| program.name() == name);
            let program = program
                .ok_or_else(|| libbpf_rs::Error::from_raw_os_error(nix::libc::ENOENT))
                .map_err(refused("the programs"))?;
            let link = program
                .attach_trace()
                .map_err(refused("to attach the programs"))?;
            let fd = program.as_fd().try_clone_to_owned();
            let fd = fd.map_err(|source| StartError::Io {
                what: "a descriptor of a program",
                source,
            })?;
            tracker.programs.push(Program {
                name,
                fd,
                link: Some(link),
                #[cfg(feature = "planted-bugs")]
                gone_unseen: false,
            });
        }
        if let Some(folder) = &options.outlive {
            tracker.pin(folder)?;
        }
        Ok(tracker)
    }

    /// Takes a program away and leaves the others, as a mishap would.
    #[cfg(feature = "planted-bugs")]
    pub fn detach(&mut self, name: &str) -> bool {
        self.programs
            .iter_mut()
            .filter(|program| program.name.starts_with(name))
            .any(|program| program.link.take().is_some())
    }

    /// Takes a program away behind the tracker's back, as it would look if the kernel did not call it any more.
    #[cfg(feature = "planted-bugs")]
    pub fn detach_unseen(&mut self, name: &str) -> bool {
        self.programs
            .iter_mut()
            .filter(|program| program.name.starts_with(name))
            .any(|program| {
                program.gone_unseen = true;
                program.link.take().is_some()
            })
    }
}

/// Sets what the programs cannot find out by themselves.
fn prepare(
    open: &mut OpenObject,
    queue_first: bool,
    inflight_max: u32,
    options: &Options,
) -> libbpf_rs::Result<()> {
    for mut program in open.progs_mut() {
        let name = program.name().to_string_lossy().into_owned();
        // The programs on issue and requeue are there for both orders of arguments.
        let wanted = name == "complete" || name.ends_with("_5_10") == queue_first;
        program.set_autoload(wanted);
    }
    for mut map in open.maps_mut() {
        if map.name() == "inflight" {
            map.set_max_entries(inflight_max)?;
        }
        #[cfg(feature = "planted-bugs")]
        if map.name().to_string_lossy().ends_with(".rodata")
            && let Some(bytes) = map.initial_value_mut()
        {
            let planted = &options.planted;
            let values = [
                u32::from(planted.no_issue_marks),
                u32::from(planted.no_completion_marks),
                u32::from(planted.no_inflight),
                planted.skip_issue_each,
                planted.skip_completion_each,
                planted.skip_sector_each,
            ];
            for (place, value) in bytes.chunks_mut(4).zip(values) {
                place.copy_from_slice(&u32_bytes(value));
            }
        }
    }
    let _ = options;
    Ok(())
}

/// Whether this kernel hands the queue to its tracepoints before the request, as it did until 5.10.
fn queue_comes_first() -> libbpf_rs::Result<bool> {
    let btf = Btf::from_vmlinux()?;
    let arguments = btf
        .type_by_name::<Typedef<'_>>("btf_trace_block_rq_issue")
        .and_then(|name| Ptr::try_from(name.referenced_type()).ok())
        .and_then(|pointer| FuncProto::try_from(pointer.referenced_type()).ok())
        .map(|function| function.iter().len())
        .ok_or_else(|| libbpf_rs::Error::from_raw_os_error(nix::libc::ENOENT))?;
    // The first is the program's own.
    Ok(arguments > 2)
}
