//! Who may not register, or does not even try to: passphrases in every disguise, names that would be something else, and crowds
//! of silent connections.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, SocketAddrV4, TcpStream};
use std::os::fd::AsRawFd as _;
use std::path::PathBuf;
use std::time::Duration;

use mt_tests::agent::{PATIENCE, Said, wait_until};
use mt_tests::data::{Fill, MIB, fill};
use mt_tests::lab::{Lab, PAIR};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, socket};

const SIZE: u64 = 4 * MIB;

struct Scene {
    lab: Lab,
    source: PathBuf,
    passphrase: PathBuf,
    words: String,
}

fn scene() -> Scene {
    let mut lab = Lab::secure();
    let source = lab.scratch.sparse("source.img", SIZE);
    fill(&source, SIZE, Fill::Random, 3);
    let target = lab.scratch.sparse("target.img", SIZE);
    let id = lab.add_disk(&target);
    lab.start();
    lab.pair(PAIR, &id);
    let words = lab.passphrase();
    let passphrase = lab.passphrase_file("passphrase", &words);
    Scene {
        lab,
        source,
        passphrase,
        words,
    }
}

impl Scene {
    /// Registers with a passphrase file of this content; the limit on wrong tries is waited for.
    fn register_with(&self, content: &[u8]) -> Said {
        let file = self.lab.scratch.file("tried", content);
        let state = self.lab.source_state();
        let mut said = None;
        wait_until("a try that is not too early", || {
            let now = self
                .lab
                .register_at(self.lab.control(), "db01", &state, &file, &[]);
            let early = now.stdout.contains("too many tries");
            said = Some(now);
            !early
        });
        said.expect("it was tried")
    }

    fn assert_nobody(&self) {
        assert!(self.lab.machines().is_empty());
    }
}

/// A generated passphrase is known however it is typed; what can be none is refused before anything is sent, and what is wrong is
/// refused by the appliance, always in the same words.
#[test]
fn a_passphrase_is_right_in_any_disguise_and_wrong_in_every_other() {
    let scene = scene();
    let no_passphrase: [(&str, Vec<u8>, &str); 9] = [
        ("empty", vec![], "is empty"),
        ("white space", b" \t\r\n\n".to_vec(), "is empty"),
        ("1 MiB", vec![b'a'; 1 << 20], "larger than"),
        ("700 characters", vec![b'a'; 700], "longer than"),
        (
            "composed",
            "p\u{e4}sse und umlaute sind zwei".as_bytes().to_vec(),
            "printable ASCII",
        ),
        (
            "decomposed",
            "pa\u{308}sse und umlaute sind zwei".as_bytes().to_vec(),
            "printable ASCII",
        ),
        (
            "a NUL in it",
            b"abcdefghijklm\0nopqrstuvwxyz".to_vec(),
            "printable ASCII",
        ),
        (
            "a second line",
            format!("{}\nmore", scene.words).into_bytes(),
            "printable ASCII",
        ),
        (
            "not UTF-8",
            b"\xff\xfeabcdefghijklmnop".to_vec(),
            "does not hold text",
        ),
    ];
    for (what, content, words) in no_passphrase {
        let said = scene.register_with(&content);
        assert_eq!(said.code(), Some(2), "{what}: {said}");
        said.expect_error(2, &[words]);
    }
    scene.assert_nobody();

    let last = scene.words.chars().last().expect("it has characters");
    let other = if last == 'A' { 'B' } else { 'A' };
    let wrong = [
        format!("{}{other}", &scene.words[..scene.words.len() - 1]),
        scene.words.chars().rev().collect(),
        scene.words[..scene.words.len() - 1].to_owned(),
    ];
    for text in &wrong {
        scene
            .register_with(text.as_bytes())
            .expect_error(6, &["the passphrase is wrong"]);
    }
    scene.assert_nobody();
    // What was tried is in no log, and neither is the right one.
    let audit = scene.lab.verb(&["audit", "--json"]).expect_done().stdout;
    for text in wrong.iter().chain([&scene.words]) {
        assert!(!audit.contains(text.as_str()));
    }

    let words = &scene.words;
    let right = [
        format!("{words}\n"),
        format!("{words}\r\n"),
        format!("  {words}\t\n\n"),
        words.to_lowercase(),
        words.replace('-', ""),
        words.replace('-', " "),
        words.replace('0', "o").replace('1', "l"),
    ];
    for text in &right {
        scene.register_with(text.as_bytes()).expect_done();
    }
    assert_eq!(
        scene.lab.machines().len(),
        1,
        "one machine, however often it registers"
    );

    // One that was chosen: inside it case and spaces count, around it white space does not.
    let chosen = "Seven Green Tractors 4 Lunch";
    let file = scene.lab.passphrase_file("chosen", chosen);
    for (weak, words) in [
        ("short", "at least 16 are needed"),
        ("passwordpassword", "can be guessed"),
        ("sieben gr\u{fc}ne Traktoren zu Mittag", "printable ASCII"),
    ] {
        let weak = scene.lab.passphrase_file("weak", weak);
        let args = [
            "passphrase",
            "rotate",
            "--passphrase-file",
            weak.to_str().expect("it is text"),
        ];
        scene.lab.verb(&args).expect_error(2, &[words]);
    }
    let args = [
        "passphrase",
        "rotate",
        "--passphrase-file",
        file.to_str().expect("it is text"),
    ];
    scene.lab.verb(&args).expect_done();
    for wrong in [
        chosen.to_lowercase(),
        chosen.replace(' ', "  "),
        scene.words.clone(),
    ] {
        scene
            .register_with(wrong.as_bytes())
            .expect_error(6, &["the passphrase is wrong"]);
    }
    scene
        .register_with(format!(" {chosen}\n").as_bytes())
        .expect_done();
}

/// What a machine calls itself can be no path, no second line, and no command to a terminal.
#[test]
fn a_name_that_would_be_something_else_is_refused() {
    let scene = scene();
    let state = scene.lab.source_state();
    let long = "x".repeat(4096);
    for name in [
        "../../etc",
        "a\nb",
        "\u{1b}[2J",
        "",
        " ",
        "\u{fc}ber",
        "a b",
        &long,
    ] {
        let said = scene
            .lab
            .register_at(scene.lab.control(), name, &state, &scene.passphrase, &[]);
        assert_eq!(said.code(), Some(2), "{name:?}: {said}");
        assert!(!said.stderr.contains('\u{1b}'), "{said}");
    }
    scene.assert_nobody();
    // Names that are odd and allowed are shown as they are, everywhere.
    let odd = "$(reboot);`id`|..&\"'<x>%n";
    scene
        .lab
        .register_at(scene.lab.control(), odd, &state, &scene.passphrase, &[])
        .expect_done();
    assert_eq!(scene.lab.machines()[0]["name"], odd);
    let shown = scene.lab.verb(&["machines", "list"]).expect_done();
    assert!(shown.stdout.contains(odd), "{shown}");
    scene.lab.verb(&["machines", "approve", odd]).expect_done();
    // And a protected machine that one is to speak for is a name of the same kind.
    for name in ["../etc", "a/b", "\u{1b}[2J", ""] {
        let said = scene.lab.verb(&["machines", "approve", odd, "--as", name]);
        assert_eq!(said.code(), Some(2), "{name:?}: {said}");
    }
}

/// A connection from an address of one's own choice on loopback.
fn from(source: [u8; 4], to: SocketAddr) -> Option<TcpStream> {
    let SocketAddr::V4(to) = to else { return None };
    let fd = socket(
        AddressFamily::Inet,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .ok()?;
    let [a, b, c, d] = source;
    bind(fd.as_raw_fd(), &SockaddrIn::new(a, b, c, d, 0)).ok()?;
    connect(
        fd.as_raw_fd(),
        &SockaddrIn::from(SocketAddrV4::new(*to.ip(), to.port())),
    )
    .ok()?;
    Some(TcpStream::from(fd))
}

/// Ten thousand connections that say nothing, or only begin, from many addresses and over and over: the target's memory and
/// descriptors stay bounded, each is closed, and a machine registers and sends meanwhile.
#[test]
fn crowds_of_silent_connections_keep_nobody_out() {
    let mut scene = scene();
    let pid = scene.lab.target().pid();
    let descriptors = || {
        std::fs::read_dir(format!("/proc/{pid}/fd"))
            .expect("it runs")
            .count()
    };
    let memory = || mt_tests::measure::memory_of(pid);
    let (fds_before, memory_before) = (descriptors(), memory());
    let half = [0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3];
    let mut last = Vec::new();
    let mut came = 0_u32;
    for number in 0..10_000_u32 {
        let [_, _, high, low] = (number % 500).to_be_bytes();
        let port = if number % 2 == 0 {
            scene.lab.control()
        } else {
            scene.lab.address
        };
        let Some(mut stream) = from([127, 9, high, low], port) else {
            continue;
        };
        came += 1;
        if number % 3 == 0 {
            let _ = stream.write_all(&half);
        }
        last.push(stream);
        if last.len() > 300 {
            last.remove(0);
        }
    }
    assert!(came > 9_000, "{came} came");
    // Whoever is shown out is closed a moment later; of ten thousand never more than a few hundred at a time.
    let (fds, grown) = (descriptors(), memory().saturating_sub(memory_before));
    assert!(
        fds < fds_before + 1000,
        "descriptors went from {fds_before} to {fds}"
    );
    wait_until("those who were shown out to be closed", || {
        descriptors() < fds_before + 150
    });
    assert!(grown < 64 * MIB, "memory grew by {grown} bytes");
    // They are still there, and an honest machine finds its place.
    scene.lab.admit("db01", &scene.passphrase);
    scene
        .lab
        .send(PAIR, &scene.source, &["--retry-for", "0"])
        .expect_done();
    // By itself each is closed: ten seconds are given.
    for mut stream in last {
        stream
            .set_read_timeout(Some(PATIENCE))
            .expect("a socket takes a timeout");
        match stream.read(&mut [0; 100]) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => panic!("one was kept"),
            _ => {}
        }
    }
}

/// Somebody behind the same address holds all connections that an address may have, and says nothing. Another machine there,
/// behind the same NAT, registers and sends all the same, after a moment.
#[test]
fn silent_connections_of_an_address_make_room_for_others_there() {
    let scene = scene();
    let mut crowd: Vec<TcpStream> = Vec::new();
    for _ in 0..8 {
        crowd.push(TcpStream::connect(scene.lab.control()).expect("the target listens"));
    }
    // As long as they have time for a handshake they are let be.
    std::thread::sleep(Duration::from_millis(1200));
    scene.lab.admit("db01", &scene.passphrase);
    scene
        .lab
        .send(PAIR, &scene.source, &["--retry-for", "0"])
        .expect_done();
    // The others are still connected: they have ten seconds.
    let open = crowd
        .iter()
        .filter(|stream| {
            stream.set_nonblocking(true).expect("a socket takes options");
            let mut stream: &TcpStream = stream;
            matches!(stream.read(&mut [0; 1]), Err(error) if error.kind() == ErrorKind::WouldBlock)
        })
        .count();
    println!("{open} of 8 were still open");
    assert!(open < 8, "one at least made room");
}
