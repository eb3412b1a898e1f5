// SPDX-License-Identifier: MIT OR Apache-2.0
#![allow(clippy::panic, reason = "test code")]

use super::*;
use crate::terminal::{COLUMNS, Keys};

fn view(root_locked: bool) -> View {
    View {
        version: "1.2.3".to_owned(),
        host: "mt1".to_owned(),
        addresses: vec!["192.0.2.10/24 (ens192)".to_owned()],
        scsi_ids: "good: 3 SCSI disks, each with its own ID".to_owned(),
        agent: Ok(Agent {
            pairs: 2,
            jobs: 1,
            alarms: vec!["target disk \x1b[2J is not attached".to_owned()],
        }),
        faults: Vec::new(),
        root_locked,
        network: Form::default(),
    }
}

fn press(screen: &mut Screen, view: &View, bytes: &[u8]) -> Vec<Wish> {
    let mut keys = Keys::default();
    let mut all = keys.feed(bytes);
    all.extend(keys.quiet());
    all.into_iter()
        .map(|key| screen.key(key, view))
        .filter(|wish| *wish != Wish::None)
        .collect()
}

#[test]
fn the_status_is_on_the_screen_and_cannot_steer_it() {
    let text = Screen::default().text(&view(false));
    for line in [
        "name       mt1",
        "address    192.0.2.10/24 (ens192)",
        "SCSI IDs   good: 3",
        "agent      running",
        "pairs      2, 1 jobs",
    ] {
        assert!(text.contains(line), "{line:?} is not in\n{text}");
    }
    assert!(!text.contains('\x1b'), "{text}");
    let mut full = view(true);
    full.agent = Err("x".repeat(200));
    full.addresses = vec!["192.0.2.10/24".to_owned(); 40];
    full.faults = vec!["guestinfo.hostname: wrong".to_owned(); 40];
    let text = Screen::default().text(&full);
    assert!(
        text.lines().count() <= ROWS && text.lines().all(|line| line.len() < COLUMNS),
        "{text}"
    );
    assert!(text.contains("none was applied"), "{text}");
}

#[test]
fn without_a_password_one_can_be_set() {
    let (mut screen, locked) = (Screen::default(), view(true));
    assert!(press(&mut screen, &locked, b"pshort\r").is_empty());
    assert!(
        screen.text(&locked).contains("! at least 8"),
        "{}",
        screen.text(&locked)
    );
    assert!(press(&mut screen, &locked, b" enough\rshort enougt\r").is_empty());
    assert!(!screen.text(&locked).contains("enough"));
    assert_eq!(
        press(&mut screen, &locked, b"\x7fh\r"),
        [Wish::Password("short enough".to_owned())]
    );
    let (mut screen, set) = (Screen::default(), view(false));
    assert_eq!(press(&mut screen, &set, b"\r"), [Wish::Login]);
    // Nobody logs in where there is no password.
    assert!(press(&mut Screen::default(), &locked, b"\r").is_empty());
}

#[test]
fn a_restart_is_asked_twice() {
    let (mut screen, view) = (Screen::default(), view(false));
    assert!(press(&mut screen, &view, b"rn").is_empty());
    assert!(press(&mut screen, &view, b"y").is_empty());
    assert_eq!(press(&mut screen, &view, b"ry"), [Wish::Reboot]);
    assert_eq!(press(&mut screen, &view, b"l"), [Wish::Log]);
    screen.show_log((0..99).map(|line| format!("line {line}")).collect());
    assert!(screen.text(&view).contains("line 98") && screen.text(&view).lines().count() <= ROWS);
}

#[test]
fn root_s_password_opens_password_and_network_and_a_pause_closes_them() {
    let (mut screen, set) = (Screen::default(), view(false));
    for key in ["n", "p"] {
        let wishes = press(&mut screen, &set, format!("{key}let me in\r").as_bytes());
        assert_eq!(wishes, [Wish::Unlock("let me in".to_owned())]);
        assert!(!screen.text(&set).contains("let me in"));
        screen.unlock(false, &set);
        assert!(screen.text(&set).contains("not root's password"));
    }
    press(&mut screen, &set, b"nright\r");
    screen.unlock(true, &set);
    assert!(screen.text(&set).contains("Host name"), "{}", screen.text(&set));
    screen.idle();
    assert!(screen.text(&set).contains("Enter log in"));
    press(&mut screen, &set, b"pright\r");
    screen.unlock(true, &set);
    assert_eq!(
        press(&mut screen, &set, b"new password\rnew password\r"),
        [Wish::Password("new password".to_owned())]
    );
    // An answer that nobody waits for opens nothing.
    assert_eq!(screen.unlock(true, &set), Wish::None);
    assert!(screen.text(&set).contains("Enter log in"));
}

#[test]
fn the_identity_is_for_those_who_know_root_s_password() {
    let (mut screen, set) = (Screen::default(), view(false));
    assert_eq!(
        press(&mut screen, &set, b"iwrong\r"),
        [Wish::Unlock("wrong".to_owned())]
    );
    assert_eq!(screen.unlock(false, &set), Wish::None);
    press(&mut screen, &set, b"iright\r");
    assert_eq!(screen.unlock(true, &set), Wish::Identity);
    screen.show_identity(vec!["  Passphrase".to_owned()]);
    assert!(screen.text(&set).contains("Passphrase"));
    screen.idle();
    assert!(!screen.text(&set).contains("Passphrase"));
    screen.show_identity(vec!["  Passphrase".to_owned()]);
    press(&mut screen, &set, b" ");
    assert!(!screen.text(&set).contains("Passphrase"));
    // Nobody has a password yet: nobody is told.
    assert!(press(&mut Screen::default(), &view(true), b"i").is_empty());
}

#[test]
fn the_network_s_settings_are_asked_and_checked() {
    let mut locked = view(true);
    locked.network = Form::of(
        "mt1",
        "[Network]\nDHCP=no\nAddress=192.0.2.10/24\nGateway=192.0.2.1\nDNS=192.0.2.53\nDNS=192.0.2.54\n",
    );
    let mut screen = Screen::default();
    assert!(press(&mut screen, &locked, b"n").is_empty());
    assert!(screen.text(&locked).contains("> mt1_"));
    press(&mut screen, &locked, b"$(reboot)\r");
    assert!(
        screen.text(&locked).contains("! \"mt1$(reboot)\""),
        "{}",
        screen.text(&locked)
    );
    press(&mut screen, &locked, b"\x15mt2\r");
    assert!(
        screen.text(&locked).contains("> 2  a static"),
        "{}",
        screen.text(&locked)
    );
    press(&mut screen, &locked, b"\r\x15192.0.3.10/24\r");
    // The gateway of before is in another net now.
    press(&mut screen, &locked, b"\r");
    assert!(
        screen.text(&locked).contains("! 192.0.2.1 is not in the net"),
        "{}",
        screen.text(&locked)
    );
    press(&mut screen, &locked, b"\x15192.0.3.1\r\r");
    let text = screen.text(&locked);
    for line in [
        "name     mt2",
        "address  192.0.3.10/24",
        "gateway  192.0.3.1",
        "DNS      192.0.2.53, 192.0.2.54",
    ] {
        assert!(text.contains(line), "{line:?} is not in\n{text}");
    }
    let wishes = press(&mut screen, &locked, b"a");
    let [Wish::Network(settings)] = wishes.as_slice() else {
        panic!("{wishes:?}");
    };
    assert_eq!(settings.hostname.as_deref(), Some("mt2"));
    assert_eq!(settings.address.map(|own| own.prefix), Some(24));

    // DHCP: neither address nor gateway is asked for, and none is left over.
    press(&mut screen, &locked, b"n\r1\r");
    assert!(
        screen.text(&locked).contains("DNS servers"),
        "{}",
        screen.text(&locked)
    );
    press(&mut screen, &locked, b"\x15\r");
    assert!(
        screen.text(&locked).contains("by DHCP"),
        "{}",
        screen.text(&locked)
    );
    let wishes = press(&mut screen, &locked, b"a");
    let [Wish::Network(settings)] = wishes.as_slice() else {
        panic!("{wishes:?}");
    };
    assert_eq!((settings.address, settings.gateway), (None, None));
    assert!(press(&mut screen, &locked, b"n\x1b").is_empty());
    assert!(screen.text(&locked).contains("set the root password"));
}

proptest::proptest! {
    #[test]
    fn no_keys_make_it_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..300)) {
        let (mut screen, view) = (Screen::default(), view(true));
        let _ = press(&mut screen, &view, &bytes);
        let text = screen.text(&view);
        proptest::prop_assert!(text.lines().count() <= ROWS && text.is_ascii());
    }
}
