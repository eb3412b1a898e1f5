// SPDX-License-Identifier: MIT OR Apache-2.0
#![allow(clippy::unwrap_used, reason = "test code")]

use super::*;
use crate::answers::Ipv4;
use crate::terminal::{COLUMNS, Keys, ROWS};

const GIB: u64 = 1 << 30;

fn disk(name: &str, id: &str, content: &str) -> DiskFacts {
    DiskFacts {
        kernel_name: name.to_owned(),
        scsi_id: Some(id.to_owned()),
        model: "VMware Virtual disk".to_owned(),
        size: 16 * GIB,
        logical_block_size: 512,
        is_empty: content == "nothing",
        content: content.to_owned(),
        ..DiskFacts::default()
    }
}

fn interview() -> Interview {
    let facts = MachineFacts {
        memory: 4 * GIB,
        disks: vec![
            disk("sda", "naa.6000c290000000000000000000000001", "nothing"),
            disk(
                "sdb",
                "naa.6000c290000000000000000000000002",
                "a partition table with ext4",
            ),
        ],
        ..MachineFacts::default()
    };
    let zones = ["UTC", "Europe/Berlin", "Europe/Vienna"]
        .map(str::to_owned)
        .to_vec();
    Interview::new(&facts, zones)
}

/// Types bytes as a terminal sends them; the last outcome that is not just to go on.
fn type_in(interview: &mut Interview, bytes: &str) -> Outcome {
    let mut keys = Keys::default();
    let mut last = Outcome::Go;
    let mut typed = keys.feed(bytes.as_bytes());
    typed.extend(keys.quiet());
    for key in typed {
        let outcome = interview.key(key);
        if outcome != Outcome::Go {
            last = outcome;
        }
        let screen = interview.screen("1.2.3");
        assert!(screen.lines().count() <= ROWS, "{screen}");
        assert!(screen.lines().all(|line| line.len() < COLUMNS), "{screen}");
    }
    last
}

#[test]
fn all_questions_lead_to_answers() {
    let mut asked = interview();
    let typed = "\x15mt1.example.org\r2\r192.0.2.10/255.255.255.0\r192.0.2.1\r192.0.2.53,192.0.2.54\r\
                 \x15Europe/Berlin\rsecret pass\rsecret pass\r\x1b[B\ryes\r";
    assert_eq!(type_in(&mut asked, typed), Outcome::Go);
    assert_eq!(asked.page(), Page::Summary, "{}", asked.screen(""));
    let summary = asked.screen("1.2.3");
    for text in [
        "host name    mt1.example.org",
        "network      192.0.2.10/24, gateway 192.0.2.1",
        "time zone    Europe/Berlin",
        "disk         naa.6000c290000000000000000000000002 (sdb) 16.0 GiB",
        "i install   s save the answers",
    ] {
        assert!(summary.contains(text), "{text:?} is not in\n{summary}");
    }
    assert_eq!(asked.password(), "secret pass");
    assert_eq!(type_in(&mut asked, "i"), Outcome::Install);
    let answers = asked.answers("$6$hash".to_owned());
    assert_eq!(answers.hostname.as_deref(), Some("mt1.example.org"));
    assert_eq!(answers.time.zone, "Europe/Berlin");
    assert_eq!(answers.root, RootLogin::Hash("$6$hash".to_owned()));
    assert_eq!(
        answers.networks[0].ipv4,
        Ipv4::Static {
            address: [192, 0, 2, 10].into(),
            prefix: 24,
            gateway: Some([192, 0, 2, 1].into())
        }
    );
    assert_eq!(answers.networks[0].name_servers.len(), 2);
    assert_eq!(
        answers.storage.disk.as_deref(),
        Some("naa.6000c290000000000000000000000002")
    );
    assert!(answers.storage.clear);
    assert!(answers.contradictions().is_empty());
}

#[test]
fn nothing_wrong_gets_past_its_page() {
    for (before, typed, page, fault) in [
        ("", "\x15\r", Page::HostName, "1 to 63 characters, one has 0"),
        ("", "\x15a_b\r", Page::HostName, "letters, digits and dashes"),
        ("\r2\r", "192.0.2.10\r", Page::Address, "no prefix length"),
        ("\r2\r", "192.0.2.10/255.0.255.0\r", Page::Address, "no netmask"),
        (
            "\r2\r192.0.2.10/24\r",
            "192.0.3.1\r",
            Page::Gateway,
            "not in the net of 192.0.2.10/24",
        ),
        (
            "\r2\r192.0.2.10/24\r",
            "192.0.2.10\r",
            Page::Gateway,
            "own address",
        ),
        ("\r2\r192.0.2.10/24\r\r", "192.0.2.10\r", Page::Dns, "own address"),
        ("\r\r", "x\r", Page::Dns, "no IP address"),
        (
            "\r\r\r",
            "\x15Euro\r",
            Page::Zone,
            "there are Europe/Berlin, Europe/Vienna",
        ),
        ("\r\r\r", "\x15Mars\r", Page::Zone, "no such time zone"),
        (
            "\r\r\r\r",
            "short\r",
            Page::Password,
            "at least 8 characters, 5 so far",
        ),
        (
            "\r\r\r\rlong enough\r",
            "long enougt\r",
            Page::PasswordAgain,
            "not the same",
        ),
        (
            "\r\r\r\rlong enough\rlong enough\r\r",
            "y\r",
            Page::Confirm,
            "type yes",
        ),
    ] {
        let mut asked = interview();
        type_in(&mut asked, before);
        assert_eq!(type_in(&mut asked, typed), Outcome::Go);
        assert_eq!(asked.page(), page, "{typed:?}");
        let screen = asked.screen("1");
        assert!(screen.contains(fault), "{fault:?} is not in\n{screen}");
    }
}

#[test]
fn what_is_typed_is_checked_with_every_key() {
    let mut asked = interview();
    type_in(&mut asked, "\r2\r192.0.2.1");
    assert!(asked.screen("1").contains("! \"192.0.2.1\" has no prefix length"));
    type_in(&mut asked, "/24");
    assert!(
        asked
            .screen("1")
            .contains("  good: 192.0.2.1 in a net of 24 bits")
    );
    type_in(&mut asked, "\x7f\x7f33");
    assert!(asked.screen("1").contains("! a prefix has 1 to 32 bits, not 33"));
}

#[test]
fn back_keeps_what_was_typed_and_dhcp_asks_for_no_address() {
    let mut asked = interview();
    type_in(&mut asked, "\r2\r192.0.2.10/24\r");
    assert_eq!(asked.page(), Page::Gateway);
    type_in(&mut asked, "\x1b");
    type_in(&mut asked, "\x1b");
    assert_eq!(asked.page(), Page::Method);
    type_in(&mut asked, "\r");
    assert!(asked.screen("1").contains("> 192.0.2.10/24_"));
    type_in(&mut asked, "\x1b");
    type_in(&mut asked, "1\r");
    assert_eq!(asked.page(), Page::Dns);
    let answers = asked.answers(String::new());
    assert_eq!(answers.networks[0].ipv4, Ipv4::Dhcp);
    type_in(&mut asked, "\x1b");
    type_in(&mut asked, "\x1b");
    assert_eq!(asked.page(), Page::HostName);
    assert_eq!(type_in(&mut asked, "\x1b"), Outcome::Leave);
}

#[test]
fn a_confirmation_is_for_the_disk_it_was_given_for() {
    let mut asked = interview();
    type_in(&mut asked, "\r\r\r\rlong enough\rlong enough\r\r");
    assert_eq!(asked.page(), Page::Confirm);
    assert!(asked.screen("1").contains("(sda)"));
    type_in(&mut asked, "yes\r");
    assert_eq!(asked.page(), Page::Summary);
    type_in(&mut asked, "\x1b");
    type_in(&mut asked, "\x1b");
    type_in(&mut asked, "\x1b[B\r");
    assert_eq!(asked.page(), Page::Confirm);
    let screen = asked.screen("1");
    assert!(
        screen.contains("(sdb)") && screen.contains("holds a partition table"),
        "{screen}"
    );
    assert!(screen.contains("! type yes"), "{screen}");
    assert!(!asked.answers(String::new()).storage.clear);
}

#[test]
fn disks_that_cannot_be_used_and_no_disk_at_all_stop_there() {
    let to_disks = "\r\r\r\rlong enough\rlong enough\r";
    let mut spoilt = disk("sda", "naa.6000c290000000000000000000000001", "nothing");
    spoilt.read_only = true;
    for (disks, fault) in [
        (vec![], "there is no disk to install on"),
        (vec![spoilt], "it is read-only"),
    ] {
        let facts = MachineFacts {
            memory: GIB,
            disks,
            ..MachineFacts::default()
        };
        let mut asked = Interview::new(&facts, vec!["UTC".to_owned()]);
        type_in(&mut asked, to_disks);
        type_in(&mut asked, "\r\r");
        assert_eq!(asked.page(), Page::Disk);
        assert!(asked.screen("1").contains(fault), "{}", asked.screen("1"));
    }
    let many = (0..60).map(|n| {
        disk(
            &format!("sd{n}"),
            &format!("naa.6000c2900000000000000000000000{n:02}"),
            "ext4",
        )
    });
    let facts = MachineFacts {
        memory: GIB,
        disks: many.collect(),
        ..MachineFacts::default()
    };
    let mut asked = Interview::new(&facts, vec!["UTC".to_owned()]);
    type_in(&mut asked, to_disks);
    type_in(&mut asked, &"\x1b[B".repeat(99));
    assert!(asked.screen("1").contains("60 of 60"), "{}", asked.screen("1"));
}

#[test]
fn answers_can_be_saved_and_the_interview_goes_on() {
    let mut asked = interview();
    type_in(&mut asked, "\r\r\r\rlong enough\rlong enough\r\ryes\r");
    assert_eq!(type_in(&mut asked, "s\x15relative\r"), Outcome::Go);
    assert!(asked.screen("1").contains("an absolute path"));
    assert_eq!(
        type_in(&mut asked, "\x15/tmp/x.ks\r"),
        Outcome::Save("/tmp/x.ks".to_owned())
    );
    asked.tell("saved as /tmp/x.ks");
    assert_eq!(asked.page(), Page::Summary);
    assert!(asked.screen("1").contains("saved as /tmp/x.ks"));
}

#[test]
fn the_password_is_never_on_the_screen() {
    let mut asked = interview();
    type_in(&mut asked, "\r\r\r\rsecret pass\rsecret");
    assert!(!asked.screen("1").contains("secret"));
    assert!(asked.screen("1").contains("> ******_"));
}
