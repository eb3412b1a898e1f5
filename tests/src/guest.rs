//! A whole machine with real SCSI disks, in QEMU: what is decided by SCSI identity cannot be tried on loop devices.
//!
//! The guest (made by `scripts/lib/make-guest`) is Debian's kernel with udev, the agent under test, and a loop that
//! reads commands from a virtio port. Its kernel log goes to `console.log` in the scratch folder. It is emulated, so
//! that it runs wherever QEMU does.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::agent;
use crate::disks::{run, text};
use crate::scratch::Scratch;
use crate::skip::find_program;

/// Programs that a guest needs on this machine.
pub const PROGRAMS: [&str; 3] = ["qemu-system-x86_64", "cpio", "ldd"];

/// How long a guest may take to boot, or to carry out one command. Emulation is slow, and a busy machine slower.
const PATIENCE: Duration = Duration::from_secs(300);

/// What a machine is made of; methods add parts.
#[derive(Debug, Default)]
pub struct Machine {
    args: Vec<String>,
    controllers: u32,
}

impl Machine {
    /// A machine without disks.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds arguments for QEMU.
    #[must_use]
    pub fn with(mut self, args: &[&str]) -> Self {
        self.args.extend(args.iter().map(|arg| (*arg).to_owned()));
        self
    }

    /// Adds a PVSCSI controller; disks are attached to it as `scsi0.0`, `scsi1.0` and so on.
    #[must_use]
    pub fn with_pvscsi(mut self) -> Self {
        let device = format!("pvscsi,id=scsi{}", self.controllers);
        self.controllers += 1;
        self.with(&["-device", &device])
    }

    /// Adds a raw image as node `name`, not yet as a disk.
    #[must_use]
    pub fn with_image(self, name: &str, image: &Path) -> Self {
        let node = format!(
            "driver=raw,node-name={name},file.driver=file,file.filename={}",
            text(image)
        );
        self.with(&["-blockdev", &node])
    }

    /// Adds an image as a SCSI disk the way ESXi shows one; `more` are properties such as `wwn=0x5...`.
    #[must_use]
    pub fn with_disk(self, name: &str, image: &Path, bus: &str, more: &str) -> Self {
        let device = disk_device(name, bus, more);
        self.with_image(name, image).with(&["-device", &device])
    }

    /// Starts it and waits until udev has settled. The scratch folder holds its sockets and logs.
    ///
    /// # Panics
    /// When the guest cannot be made or does not boot; the console is printed.
    pub fn boot(self, scratch: &Scratch) -> Guest {
        let folder = PathBuf::from(run_script("make-guest"));
        let initramfs = initramfs(scratch, &folder);
        let console = scratch.join("console.log");
        let (commands, qmp) = (scratch.join("commands.sock"), scratch.join("qmp.sock"));
        let mut command = Command::new(find_program("qemu-system-x86_64").expect("QEMU is there"));
        command
            .args(["-accel", "tcg", "-machine", "pc", "-m", "768", "-smp", "1"])
            .args(["-display", "none", "-nodefaults", "-no-reboot"])
            .args([
                "-kernel",
                text(&folder.join("vmlinuz")),
                "-initrd",
                text(&initramfs),
            ])
            .args(["-append", "console=ttyS0 panic=-1 quiet"])
            .args(["-serial", &format!("file:{}", text(&console))])
            .args(["-device", "virtio-serial"])
            .args([
                "-chardev",
                &format!("socket,id=commands,path={},server=on,wait=off", text(&commands)),
            ])
            .args(["-device", "virtserialport,chardev=commands,name=mt.commands"])
            .args(["-qmp", &format!("unix:{},server=on,wait=off", text(&qmp))])
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
            qmp: BufReader::new(qmp),
            console,
        };
        guest.qmp_line();
        guest.qmp("qmp_capabilities", &json!({}));
        let ready = guest.line();
        assert_eq!(ready, "READY", "the guest says that it is ready");
        guest
    }
}

/// The QEMU device that shows node `name` as a SCSI disk.
pub fn disk_device(name: &str, bus: &str, more: &str) -> String {
    let mut device =
        format!("scsi-hd,id=disk-{name},drive={name},bus={bus},vendor=VMware,product=Virtual disk");
    if !more.is_empty() {
        let _ = write!(device, ",{more}");
    }
    device
}

struct Starting<'a> {
    child: Option<Child>,
    scratch: &'a Scratch,
}

impl Starting<'_> {
    fn connect(&mut self, socket: &Path) -> UnixStream {
        let begin = Instant::now();
        loop {
            if let Ok(stream) = UnixStream::connect(socket) {
                stream
                    .set_read_timeout(Some(PATIENCE))
                    .expect("a socket takes a timeout");
                return stream;
            }
            let ended = self
                .child
                .as_mut()
                .and_then(|child| child.try_wait().ok().flatten());
            assert!(
                ended.is_none() && begin.elapsed() < PATIENCE,
                "QEMU did not start: {}",
                std::fs::read_to_string(self.scratch.join("qemu.log")).unwrap_or_default()
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

/// What a command in the guest said.
#[derive(Debug)]
pub struct Said {
    /// Exit code.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Said {
    /// Standard output as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("no JSON: {error}\n{self:?}"))
    }
}

/// A running guest; killed when dropped.
#[derive(Debug)]
pub struct Guest {
    child: Child,
    commands: BufReader<UnixStream>,
    qmp: BufReader<UnixStream>,
    console: PathBuf,
}

impl Guest {
    /// Runs a shell script in the guest and waits for its end.
    #[track_caller]
    pub fn run(&mut self, script: &str) -> Said {
        let line = format!("{}\n", base64(script.as_bytes()));
        self.commands
            .get_mut()
            .write_all(line.as_bytes())
            .expect("the guest reads commands");
        let mut said = Said {
            code: -1,
            stdout: String::new(),
            stderr: String::new(),
        };
        loop {
            let line = self.line();
            match line.split_once(' ').unwrap_or((&line, "")) {
                ("STDOUT", rest) => said.stdout = unbase64(rest),
                ("STDERR", rest) => said.stderr = unbase64(rest),
                ("CODE", rest) => {
                    said.code = rest.parse().expect("exit codes are numbers");
                    return said;
                }
                _ => panic!("the guest said {line:?}"),
            }
        }
    }

    /// Runs a script that has to succeed; answers its standard output.
    #[track_caller]
    pub fn done(&mut self, script: &str) -> String {
        let said = self.run(script);
        assert_eq!(said.code, 0, "{script}\n{}\n{}", said.stdout, said.stderr);
        said.stdout.trim_end().to_owned()
    }

    /// Runs a script until it succeeds.
    #[track_caller]
    pub fn wait_until(&mut self, what: &str, script: &str) {
        let begin = Instant::now();
        while self.run(script).code != 0 {
            assert!(begin.elapsed() < agent::PATIENCE, "waited in vain for {what}");
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Carries out a command of QEMU's monitor protocol and answers its result.
    #[track_caller]
    pub fn qmp(&mut self, command: &str, arguments: &Value) -> Value {
        let line = format!("{}\n", json!({ "execute": command, "arguments": arguments }));
        self.qmp
            .get_mut()
            .write_all(line.as_bytes())
            .expect("QEMU reads commands");
        loop {
            let answer = self.qmp_line();
            if let Some(result) = answer.get("return") {
                return result.clone();
            }
            assert!(answer.get("error").is_none(), "QEMU refused {command}: {answer}");
        }
    }

    /// Plugs a node in as a SCSI disk.
    pub fn plug(&mut self, name: &str, bus: &str, more: &[(&str, &str)]) {
        let mut device = json!({
            "driver": "scsi-hd", "id": format!("disk-{name}"), "drive": name, "bus": bus,
            "vendor": "VMware", "product": "Virtual disk",
        });
        for (key, value) in more {
            device[*key] = json!(value);
        }
        self.qmp("device_add", &device);
    }

    /// Pulls a disk out.
    pub fn unplug(&mut self, name: &str) {
        self.qmp("device_del", &json!({ "id": format!("disk-{name}") }));
    }

    /// The kernel's console so far.
    pub fn console(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.console).unwrap_or_default()).into_owned()
    }

    /// Ends it in good order: everything that was written is in the images.
    pub fn power_off(mut self) {
        self.commands
            .get_mut()
            .write_all(format!("{}\n", base64(b"sync; poweroff -f")).as_bytes())
            .expect("the guest reads commands");
        let begin = Instant::now();
        while self
            .child
            .try_wait()
            .expect("a child can be waited for")
            .is_none()
        {
            assert!(begin.elapsed() < PATIENCE, "the guest did not power off");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    #[track_caller]
    fn line(&mut self) -> String {
        let mut line = String::new();
        let read = self.commands.read_line(&mut line);
        assert!(
            matches!(read, Ok(1..)),
            "the guest fell silent ({read:?}); its console:\n{}",
            self.console()
        );
        line.trim_end().to_owned()
    }

    fn qmp_line(&mut self) -> Value {
        let mut line = String::new();
        let read = self.qmp.read_line(&mut line);
        assert!(matches!(read, Ok(1..)), "QEMU fell silent ({read:?})");
        serde_json::from_str(&line).expect("QEMU speaks JSON")
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs one of the scripts that make things and answers what it printed: a path.
///
/// # Panics
/// When it fails.
pub fn run_script(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../scripts/lib")
        .join(name);
    let output = Command::new(&path)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("cannot start {name}: {error}"));
    assert!(
        output.status.success(),
        "{name}: {}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
}

/// The guest's initramfs with the agent and its libraries behind it: the kernel unpacks one archive after the other.
fn initramfs(scratch: &Scratch, folder: &Path) -> PathBuf {
    let stage = scratch.join("initramfs.d");
    let (programs, libraries) = (stage.join("usr/bin"), stage.join("usr/lib/x86_64-linux-gnu"));
    for folder in [&programs, &libraries] {
        std::fs::create_dir_all(folder).expect("scratch has room");
    }
    let agent = agent::binary();
    match find_program("strip") {
        // Debug information would fill the guest's memory.
        Some(_) => drop(run(
            "strip",
            &["-o", text(&programs.join("mt-agent")), text(&agent)],
        )),
        None => drop(std::fs::copy(&agent, programs.join("mt-agent")).expect("scratch has room")),
    }
    let mut names = vec!["usr/bin/mt-agent".to_owned()];
    for line in run("ldd", &[text(&agent)]).lines() {
        let path = line.split_whitespace().find(|word| word.starts_with('/'));
        if let Some(path) = path.map(Path::new)
            && let Some(name) = path.file_name().and_then(|name| name.to_str())
            && !name.starts_with("ld-linux")
        {
            std::fs::copy(path, libraries.join(name)).expect("scratch has room");
            names.push(format!("usr/lib/x86_64-linux-gnu/{name}"));
        }
    }
    let mut cpio = Command::new(find_program("cpio").expect("cpio is there"))
        .args(["--create", "--format=newc", "--quiet", "--owner=0:0"])
        .current_dir(&stage)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("cpio starts");
    let list = names.join("\n");
    cpio.stdin
        .take()
        .expect("its input is a pipe")
        .write_all(list.as_bytes())
        .expect("cpio reads its list");
    let second = cpio.wait_with_output().expect("cpio ends");
    assert!(second.status.success(), "cpio: {}", second.status);
    let mut archive = std::fs::read(folder.join("initramfs")).expect("the guest was made");
    archive.extend_from_slice(&second.stdout);
    scratch.file("initramfs", archive)
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

fn base64(bytes: &[u8]) -> String {
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let group = chunk
            .iter()
            .fold(0_u32, |group, byte| group << 8 | u32::from(*byte))
            << (8 * (3 - chunk.len()));
        for place in 0..4 {
            let index = usize::try_from(group >> (18 - 6 * place) & 63).expect("six bits fit");
            text.push(if place > u32::try_from(chunk.len()).expect("at most three") {
                '='
            } else {
                char::from(ALPHABET[index])
            });
        }
    }
    text
}

fn unbase64(text: &str) -> String {
    let mut bytes = Vec::new();
    let (mut group, mut bits) = (0_u32, 0);
    for byte in text.bytes().filter(|byte| *byte != b'=') {
        let Some(value) = ALPHABET.iter().position(|known| *known == byte) else {
            continue;
        };
        group = (group << 6 | u32::try_from(value).expect("six bits fit")) & 0x00ff_ffff;
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            bytes.push(u8::try_from(group >> bits & 0xff).expect("eight bits fit"));
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_there_and_back() {
        assert_eq!(base64(b"any carnal pleas"), "YW55IGNhcm5hbCBwbGVhcw==");
        for text in ["", "a", "ab", "abc", "abcd", "echo \"$x\"\n"] {
            assert_eq!(unbase64(&base64(text.as_bytes())), text);
        }
    }
}
