//! Recovery points that are served over NBD, to be looked at or booted without touching a disk.

use std::collections::BTreeMap;
use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use mt_retention::{DiskIndex, EpochNumber};

use super::error::MachineError;
use super::machine::Machine;
use crate::nbd::Export;
use crate::nbd::overlay::Overlay;
use crate::nbd::serve::Server;

/// Most exports at a time.
const EXPORTS_MAX: usize = 16;

/// One disk of a machine as it was at a point.
struct PointDisk {
    machine: Arc<Machine>,
    point: EpochNumber,
    disk: DiskIndex,
    size: u64,
}

/// Holds a point for as long as it is exported: whatever thins or makes room meanwhile, what is read stays what it was.
struct Held {
    machine: Arc<Machine>,
    point: EpochNumber,
}

impl Held {
    fn new(machine: &Arc<Machine>, point: EpochNumber) -> Result<Self, MachineError> {
        machine.with_store(|store| store.hold(point))?;
        Ok(Self {
            machine: Arc::clone(machine),
            point,
        })
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(store) = &mut self.machine.lock().store {
            store.release(self.point);
        }
    }
}

impl Export for PointDisk {
    fn size(&self) -> u64 {
        self.size
    }

    fn writable(&self) -> bool {
        false
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let targets = self.machine.targets();
        // One bounded step a lock: replication goes on between two of them.
        for (index, piece) in buffer.chunks_mut(1 << 20).enumerate() {
            let at = offset + ((index as u64) << 20);
            self.machine
                .with_store(|store| store.read_at(self.point, self.disk, at, piece, &targets))
                .map_err(io::Error::other)?;
        }
        Ok(())
    }

    fn write(&self, _: u64, _: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }
}

/// An export that is being served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exported {
    /// Its number.
    pub id: u64,
    /// The machine.
    pub machine: String,
    /// The point.
    pub point: u64,
    /// Whether it takes writes, which are thrown away at its end.
    pub writable: bool,
    /// The Unix socket.
    pub socket: PathBuf,
    /// Names of the exports on it: the disks.
    pub disks: Vec<String>,
}

/// All exports of a target. Clones are the same.
#[derive(Clone)]
pub struct Exports {
    folder: PathBuf,
    served: Arc<Mutex<Served>>,
}

#[derive(Default)]
struct Served {
    last: u64,
    /// A server ends before its point is let go of.
    servers: BTreeMap<u64, (Exported, Server, Held)>,
}

impl Exports {
    /// No exports; sockets and overlays go to `folder`, which is emptied.
    pub fn new(folder: PathBuf) -> Self {
        // Sockets of a process that was killed: nobody listens there any more.
        let _ = std::fs::remove_dir_all(&folder);
        Self {
            folder,
            served: Arc::default(),
        }
    }

    /// Serves all disks of a machine as they were at a point. To be called inside the asynchronous runtime.
    ///
    /// # Errors
    /// When the point is damaged, there are too many exports, or the socket cannot be made.
    pub fn add(
        &self,
        machine: &Arc<Machine>,
        point: EpochNumber,
        writable: bool,
    ) -> Result<Exported, MachineError> {
        let mut served = self.served.lock().unwrap_or_else(PoisonError::into_inner);
        if served.servers.len() >= EXPORTS_MAX {
            return Err(MachineError::refused(
                "too-many-exports",
                format!("{EXPORTS_MAX} points are exported already"),
                "end one with \"mt-agent points unexport\"",
            ));
        }
        let io = |attempted| {
            let path = self.folder.clone();
            move |source| MachineError::Io {
                attempted,
                path,
                source,
            }
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.folder)
            .map_err(io("make the folder"))?;
        let held = Held::new(machine, point)?;
        served.last += 1;
        let id = served.last;
        let mut exports: Vec<(String, Arc<dyn Export>)> = Vec::new();
        for (index, disk) in machine.disks.iter().enumerate() {
            let below: Arc<dyn Export> = Arc::new(PointDisk {
                machine: Arc::clone(machine),
                point,
                disk: DiskIndex(u16::try_from(index).unwrap_or(u16::MAX)),
                size: disk.size,
            });
            let export = if writable {
                let path = self.folder.join(format!("{id}-{index}.overlay"));
                let file = std::fs::File::options()
                    .read(true)
                    .write(true)
                    .create_new(true)
                    .open(&path)
                    .and_then(|file| std::fs::remove_file(&path).map(|()| file))
                    .map_err(io("make an overlay in"))?;
                Arc::new(Overlay::new(below, file).map_err(io("make an overlay in"))?)
            } else {
                below
            };
            exports.push((disk.name.clone(), export));
        }
        let exported = Exported {
            id,
            machine: machine.name.clone(),
            point: point.0,
            writable,
            socket: self.folder.join(format!("{id}.sock")),
            disks: machine.disks.iter().map(|disk| disk.name.clone()).collect(),
        };
        let server = Server::start(&exported.socket, exports).map_err(io("listen on a socket in"))?;
        served.servers.insert(id, (exported.clone(), server, held));
        tracing::info!(machine = %machine.name, point = point.0, socket = %exported.socket.display(), "point exported");
        Ok(exported)
    }

    /// Ends an export; says whether there was one.
    pub fn remove(&self, id: u64) -> bool {
        let mut served = self.served.lock().unwrap_or_else(PoisonError::into_inner);
        let removed = served.servers.remove(&id);
        // Ending waits for requests and takes the machine's lock; nobody has to wait for that.
        drop(served);
        removed.is_some()
    }

    /// Every export.
    pub fn all(&self) -> Vec<Exported> {
        let served = self.served.lock().unwrap_or_else(PoisonError::into_inner);
        served
            .servers
            .values()
            .map(|(exported, ..)| exported.clone())
            .collect()
    }

    /// Ends every export of a machine.
    pub fn end_all_of(&self, machine: &str) {
        let mut served = self.served.lock().unwrap_or_else(PoisonError::into_inner);
        served.servers.retain(|id, (exported, ..)| {
            let stays = exported.machine != machine;
            if !stays {
                tracing::info!(machine, export = id, "export ended: its machine is let go of");
            }
            stays
        });
    }

    /// Whether a point of a machine is exported.
    pub fn uses(&self, machine: &str) -> bool {
        self.all().iter().any(|exported| exported.machine == machine)
    }
}
