// SPDX-License-Identifier: MIT OR Apache-2.0
//! What an installation and a first start are told.

use std::path::Path;

use mt_installer::answers::Answers;
use mt_installer::first_boot::environment::{self, Properties};
use mt_installer::first_boot::settings::{self, PREFIX};
use mt_installer::kickstart::{parse, render};
use mt_installer::ovf_answers;
use mt_installer::terminal::Keys;

/// A kickstart file: any text gives answers or faults, and answers survive being written and read again.
pub fn kickstart(bytes: &[u8]) {
    mt_installer::kickstart::fuzz(bytes);
}

/// The OVF environment that a hypervisor hands to the machine.
pub fn ovf_environment(bytes: &[u8]) {
    if let Ok(properties) = environment::parse(bytes) {
        meaning(&properties);
    }
}

/// Single `guestinfo` keys, one a line: `hostname=mt01`.
pub fn guestinfo(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let lines = text.lines().filter_map(|line| line.split_once('='));
    meaning(
        &lines
            .map(|(key, value)| (format!("{PREFIX}{key}"), value.to_owned()))
            .collect(),
    );
}

/// What properties mean: nothing that is taken could be more than a value, and all of it can be a kickstart file.
fn meaning(properties: &Properties) {
    for key in properties.keys() {
        let _ = settings::misspelt(key);
    }
    if let Ok(settings) = settings::read(properties, &|zone| zone == "Europe/Berlin") {
        let texts = [
            &settings.hostname,
            &settings.timezone,
            &settings.root_password_hash,
            &settings.ssh_key,
        ];
        let texts = texts.into_iter().flatten().chain(&settings.ntp);
        for text in texts {
            assert!(text.bytes().all(|byte| (0x20..0x7f).contains(&byte)), "{text:?}");
        }
    }
    if let Ok(Some(answers)) = ovf_answers::answers(properties, Path::new("/nowhere")) {
        let read: Result<Answers, _> = parse(&render(&answers));
        assert!(read.is_ok(), "{:?} of {}", read.err(), render(&answers));
    }
}

/// What comes from a keyboard or a serial line.
pub fn console_keys(bytes: &[u8]) {
    let mut keyboard = Keys::default();
    for piece in bytes.chunks(3) {
        assert!(keyboard.feed(piece).len() <= bytes.len());
    }
    let _ = keyboard.quiet();
}
