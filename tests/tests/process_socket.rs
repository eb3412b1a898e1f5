//! The place of the local socket, and whether its numbers are true.

use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;

use mt_tests::agent::{Running, wait_until};
use mt_tests::data::{Fill, MIB, assert_same, fill};
use mt_tests::lab::{Lab, PAIR};

const SIZE: u64 = 16 * MIB;

/// What is no socket of ours is left as it is, whatever it is, and the target does not start without one.
#[test]
fn whatever_lies_where_the_socket_should_is_left_alone() {
    let lab = Lab::new();
    let socket = lab.socket();
    let precious = lab.scratch.file("precious", "precious");
    let refused = |what: &str| {
        let said = Running::start(lab.target_command(), lab.scratch.path()).wait();
        assert!(said.code().is_some_and(|code| code != 0), "{what}: {said}");
        assert!(said.stderr.contains("agent.sock"), "{what}: {said}");
        assert!(said.stderr.contains("hint: "), "{what}: {said}");
    };
    std::fs::write(&socket, "a file").expect("scratch has room");
    refused("a file");
    assert_eq!(std::fs::read_to_string(&socket).expect("it is there"), "a file");
    std::fs::remove_file(&socket).expect("it is there");

    std::fs::create_dir(&socket).expect("it is new");
    refused("a folder");
    std::fs::remove_dir(&socket).expect("it is there, and empty");

    symlink(&precious, &socket).expect("it is new");
    refused("a link to a file");
    assert!(socket.is_symlink());
    assert_eq!(
        std::fs::read_to_string(&precious).expect("it is there"),
        "precious"
    );
    std::fs::remove_file(&socket).expect("it is there");

    symlink(lab.scratch.join("nowhere"), &socket).expect("it is new");
    refused("a link to nothing");
    assert!(!lab.scratch.join("nowhere").exists());
    std::fs::remove_file(&socket).expect("it is there");

    let listener = UnixListener::bind(&socket).expect("it is new");
    refused("a socket on which somebody listens");
    // One that nobody listens on any more is what a killed agent leaves, and is replaced.
    drop(listener);
    let mut lab = lab;
    lab.start();
    lab.crash_and_restart();
    lab.stop();
    assert!(!socket.exists());
}

/// A target is killed in the middle of a transfer. What status says then is what lies on the disk: no byte is called durable that
/// is not equal there, and when everything is sent the numbers are those of the disk.
#[test]
fn the_numbers_of_status_are_true_after_a_crash() {
    let mut lab = Lab::new();
    let source = lab.scratch.sparse("source.img", SIZE);
    fill(&source, SIZE, Fill::Random, 71);
    let target = lab.scratch.sparse("target.img", SIZE);
    let id = lab.add_disk(&target);
    lab.start();
    lab.pair(PAIR, &id);
    let pair_of = |lab: &Lab| lab.verb(&["pair", "list", "--json"]).expect_done().json()["pairs"][0].clone();
    let durable = |lab: &Lab| pair_of(lab)["seeding"]["durable"].as_u64().unwrap_or(0);
    let sending = lab.start_send(
        lab.address,
        PAIR,
        &source,
        &["--bandwidth-limit", "3MiB", "--retry-for", "0"],
    );
    wait_until("a durable mark", || durable(&lab) > 0);
    lab.take_target().kill_9();
    let _ = sending.wait();
    lab.start();
    let mark = durable(&lab);
    assert!(mark > 0 && mark < SIZE, "{:#}", pair_of(&lab));
    let (sent, there) = (
        std::fs::read(&source).expect("it is there"),
        std::fs::read(&target).expect("it is there"),
    );
    let prefix = usize::try_from(mark).expect("it is small");
    assert!(
        sent[..prefix] == there[..prefix],
        "{mark} bytes are called durable"
    );
    let job = lab.verb(&["jobs", "list", "--json"]).expect_done().json()["jobs"][0].clone();
    assert_eq!(job["state"], "interrupted", "{job:#}");

    lab.send(PAIR, &source, &[]).expect_done();
    assert_same(&source, &target, SIZE);
    let pair = pair_of(&lab);
    assert_eq!(durable(&lab), SIZE, "{pair:#}");
    assert_eq!(pair["size"].as_u64(), Some(SIZE), "{pair:#}");
    lab.stop();
}
