//! What a machine is made of, and its start.

use std::io::BufReader;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::qmp::Qmp;
use super::{Guest, PATIENCE, files, tail};
use crate::disks::text;
use crate::scratch::Scratch;
use crate::skip::find_program;

/// A SCSI disk the way ESXi shows one: vendor "VMware", product "Virtual disk".
///
/// Without [`Disk::wwn`] it has no SCSI ID, as on a virtual machine without `disk.EnableUUID`.
#[derive(Debug, Clone)]
pub struct Disk {
    driver: &'static str,
    node: String,
    bus: String,
    more: Vec<(&'static str, String)>,
}

impl Disk {
    /// A disk that shows the image added as `node`, on a controller's bus such as `scsi0.0`. `node` is also the name by
    /// which it is pulled out.
    pub fn new(node: &str, bus: &str) -> Self {
        Self {
            driver: "scsi-hd",
            node: node.to_owned(),
            bus: bus.to_owned(),
            more: Vec::new(),
        }
    }

    /// An optical drive instead.
    pub fn optical(node: &str, bus: &str) -> Self {
        Self {
            driver: "scsi-cd",
            ..Self::new(node, bus)
        }
    }

    /// Gives it a SCSI ID: eight bytes, the only length QEMU has; the first digit is the kind of the NAA name, 5.
    #[must_use]
    pub fn wwn(self, wwn: u64) -> Self {
        assert!(wwn >> 60 == 5, "a SCSI ID of eight bytes begins with a 5");
        self.with("wwn", format!("{wwn:#x}"))
    }

    /// Gives it a unit serial number (VPD page 0x80).
    #[must_use]
    pub fn serial(self, serial: &str) -> Self {
        self.with("serial", serial.to_owned())
    }

    /// Puts it at this target number of its controller.
    #[must_use]
    pub fn target(self, number: u32) -> Self {
        self.with("scsi-id", number.to_string())
    }

    /// Sets a property of QEMU's device.
    #[must_use]
    pub fn with(mut self, key: &'static str, value: String) -> Self {
        self.more.push((key, value));
        self
    }

    fn words(&self) -> Vec<(&'static str, String)> {
        let mut words = vec![
            ("id", self.node.clone()),
            ("drive", self.node.clone()),
            ("bus", self.bus.clone()),
            ("vendor", "VMware".to_owned()),
            (
                "product",
                if self.driver == "scsi-hd" {
                    "Virtual disk"
                } else {
                    "Virtual CD"
                }
                .to_owned(),
            ),
        ];
        words.extend(self.more.iter().cloned());
        words
    }

    /// As an argument of QEMU's command line.
    fn argument(&self) -> String {
        let mut argument = self.driver.to_owned();
        for (key, value) in self.words() {
            argument.push_str(&format!(",{key}={value}"));
        }
        argument
    }

    /// As arguments of `device_add`.
    pub(super) fn json(&self) -> Value {
        let mut device = json!({ "driver": self.driver });
        for (key, value) in self.words() {
            // Numbers are numbers there, except for those that QEMU reads as text itself.
            device[key] = match (key, value.parse::<u64>()) {
                ("scsi-id" | "lun", Ok(number)) => json!(number),
                ("wwn", _) => {
                    json!(u64::from_str_radix(value.trim_start_matches("0x"), 16).expect("set as hex"))
                }
                _ => json!(value),
            };
        }
        device
    }
}

/// A controller of the machine; its bus is called after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Controller {
    /// VMware's paravirtual controller.
    Pvscsi,
    /// LSI Logic SAS 1068, as ESXi offers it.
    LsiSas,
    /// LSI 53C895A, the closest that QEMU has to the parallel LSI Logic of ESXi.
    LsiParallel,
}

/// What a machine is made of; methods add parts.
#[derive(Debug, Default)]
pub struct Machine {
    args: Vec<String>,
    kernel_args: String,
}

impl Machine {
    /// A machine without disks.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an argument for QEMU, with its value.
    #[must_use]
    pub fn with(mut self, option: &str, value: String) -> Self {
        self.args.push(option.to_owned());
        self.args.push(value);
        self
    }

    /// Starts no udevd, as in a rescue system.
    #[must_use]
    pub fn without_udev(mut self) -> Self {
        self.kernel_args.push_str(" mt.udev=off");
        self
    }

    /// Adds a controller. Disks are attached to its bus: `NAME.0`.
    #[must_use]
    pub fn with_controller(self, kind: Controller, name: &str) -> Self {
        let driver = match kind {
            Controller::Pvscsi => "pvscsi",
            Controller::LsiSas => "mptsas1068",
            Controller::LsiParallel => "lsi53c895a",
        };
        self.with("-device", format!("{driver},id={name}"))
    }

    /// Adds a raw image as node `node`, not yet as a disk.
    #[must_use]
    pub fn with_image(self, node: &str, image: &Path) -> Self {
        self.with_node(node, image, "")
    }

    /// Adds a raw image that cannot be written, not yet as a disk.
    #[must_use]
    pub fn with_read_only_image(self, node: &str, image: &Path) -> Self {
        self.with_node(node, image, ",read-only=on")
    }

    fn with_node(self, node: &str, image: &Path, more: &str) -> Self {
        // Without locks the same image can be shown by two disks.
        let file = format!("file.driver=file,file.locking=off,file.filename={}", text(image));
        self.with("-blockdev", format!("driver=raw,node-name={node},{file}{more}"))
    }

    /// Adds a node that reads as zeros and forgets what is written: a disk that costs nothing.
    #[must_use]
    pub fn with_void(self, node: &str, size: u64) -> Self {
        self.with(
            "-blockdev",
            format!("driver=null-co,node-name={node},size={size},read-zeroes=on"),
        )
    }

    /// Adds an image as a SCSI disk.
    #[must_use]
    pub fn with_disk(self, image: &Path, disk: &Disk) -> Self {
        self.with_image(&disk.node, image).with_device(disk)
    }

    /// Adds a SCSI disk whose node was added.
    #[must_use]
    pub fn with_device(self, disk: &Disk) -> Self {
        self.with("-device", disk.argument())
    }

    /// Adds an image as a virtio disk that cannot be written: `/dev/vda`, `/dev/vdb` and so on.
    #[must_use]
    pub fn with_virtio_source(self, node: &str, image: &Path) -> Self {
        self.with_read_only_image(node, image)
            .with("-device", format!("virtio-blk-pci,drive={node}"))
    }

    /// Starts it and waits until its disks are there and udev has settled. The scratch folder holds its sockets and
    /// logs.
    ///
    /// # Panics
    /// When it does not boot; the end of its console is shown.
    pub fn boot(self, scratch: &Scratch) -> Guest {
        let begin = Instant::now();
        let (kernel, initramfs) = files::kernel_and_initramfs(scratch);
        let console = scratch.join("console.log");
        let (commands, qmp) = (scratch.join("commands.sock"), scratch.join("qmp.sock"));
        // The socket of a guest before this one would be taken for that of this one.
        for socket in [&commands, &qmp] {
            let _ = std::fs::remove_file(socket);
        }
        // Ends with the test, also where the test is killed.
        let mut command = Command::new(find_program("setpriv").expect("setpriv is there"));
        command
            .args(["--pdeathsig", "KILL", "qemu-system-x86_64"])
            .args(["-accel", "tcg", "-machine", "pc", "-m", "768", "-smp", "2"])
            // The first with AES, which every host of today has and QEMU's plain model has not: TLS crawls without it.
            .args(["-cpu", "Westmere"])
            .args(["-display", "none", "-nodefaults", "-no-reboot"])
            .args(["-kernel", text(&kernel), "-initrd", text(&initramfs)])
            .args([
                "-append",
                &format!("console=ttyS0 panic=-1 mitigations=off{}", self.kernel_args),
            ])
            .args(["-serial", &format!("file:{}", text(&console))])
            .args(["-device", "virtio-serial"])
            .args(["-chardev", &server("commands", &commands)])
            .args(["-device", "virtserialport,chardev=commands,name=mt.commands"])
            .args([
                "-chardev",
                &server("qmp", &qmp),
                "-mon",
                "chardev=qmp,mode=control",
            ])
            .args(&self.args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(scratch.join("qemu.log")).expect("scratch has room"));
        let child = command.spawn().expect("QEMU starts");
        let mut starting = Starting {
            child: Some(child),
            scratch,
        };
        let commands = starting.connect(&commands);
        let qmp = starting.connect(&qmp);
        let mut guest = Guest {
            child: starting.child.take().expect("taken once"),
            commands: BufReader::new(commands),
            qmp: Qmp::new(qmp),
            console,
        };
        let ready = guest.line();
        assert_eq!(ready, "READY", "the guest says that it is ready");
        println!("the guest booted in {:.1} s", begin.elapsed().as_secs_f32());
        guest
    }
}

fn server(id: &str, socket: &Path) -> String {
    format!("socket,id={id},path={},server=on,wait=off", text(socket))
}

/// A QEMU that is not a guest yet; killed when dropped.
struct Starting<'a> {
    child: Option<Child>,
    scratch: &'a Scratch,
}

impl Starting<'_> {
    fn connect(&mut self, socket: &Path) -> UnixStream {
        let begin = Instant::now();
        loop {
            if let Ok(stream) = UnixStream::connect(socket) {
                let timeout = stream.set_read_timeout(Some(PATIENCE));
                timeout.expect("a socket takes a timeout");
                return stream;
            }
            let ended = self
                .child
                .as_mut()
                .and_then(|child| child.try_wait().ok().flatten());
            assert!(
                ended.is_none() && begin.elapsed() < PATIENCE,
                "QEMU did not start: {}",
                tail(&self.scratch.join("qemu.log"))
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Starting<'_> {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
