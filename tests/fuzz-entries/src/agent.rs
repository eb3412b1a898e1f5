// SPDX-License-Identifier: MIT OR Apache-2.0
//! Parsers of the agent.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::Path;

use mt_agent::broker::passing;
use mt_agent::broker::records::Records;
use mt_agent::broker::wire::{ANSWER_BYTES_MAX, Answer, REQUEST_BYTES_MAX, Request};
use mt_agent::cli::address::TargetAddress;
use mt_agent::config::Config;
use mt_agent::machines::points::Wanted;
use mt_agent::model::PairName;
use mt_agent::nbd::connection::{Action, Connection, Offer, REQUEST_BYTES_MAX as NBD_BYTES_MAX};
use mt_blockdev::scsi::ScsiId;
use mt_blockdev::sysfs::DeviceNumber;
use mt_retention::ObjectName;

const SIZE: u64 = 1 << 20;

/// A client of an export, in pieces; the first byte chooses their size. What is asked of a disk lies on it, and only the
/// writable export is written.
pub fn nbd_client(bytes: &[u8]) {
    let Some((piece, stream)) = bytes.split_first() else {
        return;
    };
    let offer = |name: &str, writable| Offer {
        name: name.to_owned(),
        size: SIZE,
        writable,
    };
    let (mut connection, _) = Connection::new(vec![offer("scsi0:0", false), offer("scsi0:1", true)]);
    let mut over = false;
    for bytes in stream.chunks(usize::from(*piece) * 8 + 1) {
        for action in connection.push(bytes) {
            assert!(!over, "{action:?} after the end");
            let (offset, len) = match action {
                Action::Send(_) => continue,
                Action::Close => {
                    over = true;
                    continue;
                }
                Action::Read { offset, len, .. } => (offset, u64::from(len)),
                Action::Write {
                    export,
                    offset,
                    content,
                    ..
                } => {
                    assert_eq!(export, 1, "a write to the export that is read-only");
                    (offset, content.len() as u64)
                }
            };
            assert!(
                len <= u64::from(NBD_BYTES_MAX) && offset + len <= SIZE,
                "{offset} and {len} are off the disk"
            );
        }
    }
}

/// What target and broker say to each other, framed and not, and the broker's own document.
pub fn broker(bytes: &[u8]) {
    let Ok((mut ours, theirs)) = UnixStream::pair() else {
        return;
    };
    // It has to fit into the socket, since nobody takes it out meanwhile.
    let sent = bytes.get(..16 << 10).unwrap_or(bytes);
    if ours.write_all(sent).is_ok() {
        drop(ours);
        for most in [REQUEST_BYTES_MAX, ANSWER_BYTES_MAX] {
            if let Ok(Some((document, _))) = passing::receive(&theirs, most) {
                assert!(document.len() <= most);
                documents(&document);
            }
        }
    }
    documents(bytes);
}

fn documents(bytes: &[u8]) {
    if let Ok(request) = serde_json::from_slice::<Request>(bytes) {
        let again = serde_json::to_vec(&request).map(|text| serde_json::from_slice::<Request>(&text).ok());
        assert_eq!(again.ok().flatten().as_ref(), Some(&request));
    }
    if let Ok(answer) = serde_json::from_slice::<Answer>(bytes) {
        let again = serde_json::to_vec(&answer).map(|text| serde_json::from_slice::<Answer>(&text).ok());
        assert_eq!(again.ok().flatten().as_ref(), Some(&answer));
    }
    let _ = Records::from_bytes(Path::new("pairs.json"), bytes);
}

/// The configuration file.
pub fn config(bytes: &[u8]) {
    match Config::from_bytes(Path::new("agent.toml"), bytes) {
        Ok(config) => assert!(config.socket.is_absolute() && config.state_dir.is_absolute()),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// Names and addresses as people write them.
pub fn texts(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    if let Ok(id) = ScsiId::parse(text) {
        assert_eq!(ScsiId::parse(&id.to_string()), Ok(id));
    }
    if let Ok(name) = text.parse::<PairName>() {
        assert_eq!(name.to_string().parse::<PairName>().as_ref(), Ok(&name));
    }
    if let Ok(number) = text.parse::<DeviceNumber>() {
        assert_eq!(number.to_string().parse::<DeviceNumber>(), Ok(number));
    }
    if let Some(object) = ObjectName::parse(text) {
        assert_eq!(object.to_string(), text, "two names for one object");
    }
    let _ = Wanted::parse(text);
    let _ = Wanted::check_name(text);
    let _ = TargetAddress::parse(text);
}
