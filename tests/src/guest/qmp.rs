//! QEMU's monitor protocol, as far as disks go.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde_json::{Value, json};

use super::machine::Disk;
use crate::disks::text;

/// A connection to the monitor.
#[derive(Debug)]
pub struct Qmp {
    stream: BufReader<UnixStream>,
    /// Disks that QEMU said are gone, whose removal nobody has waited for yet.
    gone: Vec<String>,
}

impl Qmp {
    /// Takes up the conversation.
    pub(super) fn new(stream: UnixStream) -> Self {
        let mut qmp = Self {
            stream: BufReader::new(stream),
            gone: Vec::new(),
        };
        let greeting = qmp.line();
        assert!(greeting.get("QMP").is_some(), "QEMU greets: {greeting}");
        qmp.execute("qmp_capabilities", &json!({}));
        qmp
    }

    /// Carries out a command and answers its result.
    ///
    /// # Panics
    /// When QEMU refuses it.
    #[track_caller]
    pub fn execute(&mut self, command: &str, arguments: &Value) -> Value {
        let line = format!("{}\n", json!({ "execute": command, "arguments": arguments }));
        self.stream
            .get_mut()
            .write_all(line.as_bytes())
            .expect("QEMU reads commands");
        loop {
            let answer = self.next();
            if let Some(result) = answer.get("return") {
                return result.clone();
            }
            assert!(
                answer.get("error").is_none(),
                "QEMU refused {command} {arguments}: {answer}"
            );
        }
    }

    /// Adds a raw image as node `name`, not yet as a disk.
    #[track_caller]
    pub fn add_image(&mut self, name: &str, image: &Path) {
        let node = json!({
            "driver": "raw", "node-name": name,
            "file": { "driver": "file", "filename": text(image) },
        });
        self.execute("blockdev-add", &node);
    }

    /// Plugs a disk in, while the guest runs.
    #[track_caller]
    pub fn plug(&mut self, disk: &Disk) {
        self.execute("device_add", &disk.json());
    }

    /// Pulls a disk out, while the guest runs, and waits until QEMU has let go of it.
    #[track_caller]
    pub fn unplug(&mut self, id: &str) {
        self.execute("device_del", &json!({ "id": id }));
        while !self.gone.iter().any(|gone| gone == id) {
            self.next();
        }
        self.gone.retain(|gone| gone != id);
    }

    fn next(&mut self) -> Value {
        let line = self.line();
        if line["event"] == "DEVICE_DELETED"
            && let Some(id) = line["data"]["device"].as_str()
        {
            self.gone.push(id.to_owned());
        }
        line
    }

    fn line(&mut self) -> Value {
        let mut line = String::new();
        let read = self.stream.read_line(&mut line);
        assert!(matches!(read, Ok(1..)), "QEMU's monitor fell silent ({read:?})");
        serde_json::from_str(&line).expect("QEMU speaks JSON")
    }
}
