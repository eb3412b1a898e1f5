//! Either side is killed, cut off or lied to in the middle, again and again: the copy is whole in the end, nothing
//! that was durable is lost, and little travels twice.

use std::time::{Duration, Instant};

use mt_tests::agent::{Running, Said, wait_until};
use mt_tests::data::{Fill, MIB, assert_same, fill};
use mt_tests::disks::Canaries;
use mt_tests::lab::{Lab, PAIR};
use mt_tests::proxy::{Fault, Proxy};

const SIZE: u64 = 48 * MIB;

struct Scene {
    lab: Lab,
    source: std::path::PathBuf,
    target: std::path::PathBuf,
    canaries: Canaries,
    proxy: Proxy,
}

fn scene(seed: u64) -> Scene {
    let mut lab = Lab::new();
    let source = lab.scratch.sparse("source.img", SIZE);
    fill(&source, SIZE, Fill::Random, seed);
    let target = lab.scratch.sparse("target.img", SIZE);
    let id = lab.add_disk(&target);
    let canaries = Canaries::new(&lab.scratch, 2);
    for path in canaries.paths() {
        lab.add_disk(path);
    }
    lab.start();
    lab.pair(PAIR, &id);
    let proxy = Proxy::start(lab.address);
    Scene {
        lab,
        source,
        target,
        canaries,
        proxy,
    }
}

/// The newest durable mark that the source has told of.
fn durable(send: &Running) -> u64 {
    send.stdout_so_far()
        .lines()
        .rev()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .find_map(|line| line["durable"].as_u64())
        .unwrap_or(0)
}

/// Waits for a durable mark beyond `seen`, and says whether it came. It need not: regions leave in the order in which
/// they were read, and on a busy machine the lowest one may be behind the place where the stream is held.
fn wait_for_mark(send: &Running, seen: u64) -> bool {
    let until = Instant::now() + Duration::from_secs(5);
    while durable(send) <= seen && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(10));
    }
    durable(send) > seen
}

impl Scene {
    fn start_send(&self, more: &[&str]) -> Running {
        self.lab
            .start_send(self.proxy.address(), PAIR, &self.source, more)
    }

    #[track_caller]
    fn assert_whole(mut self, last: Said) {
        last.expect_done();
        assert_same(&self.source, &self.target, SIZE);
        self.lab.verify(PAIR, &self.source, &[]).expect_done();
        self.canaries.assert_untouched();
        self.lab.stop();
    }
}

/// The source is killed at eight places of the stream. What the target had confirmed is never compared again, and what
/// it had written never travels again.
#[test]
fn a_killed_source_goes_on_from_the_durable_mark() {
    let scene = scene(21);
    let (kills, stride) = (8, SIZE / 9);
    let mut confirmed = 0;
    for kill in 1..=kills {
        scene
            .proxy
            .set_fault(Fault::HoldAt(scene.proxy.to_target() + stride));
        let mut send = scene.start_send(&[]);
        if !scene.proxy.wait_held(|| !send.is_running()) {
            let said = send.wait();
            panic!("the send ended before it was killed for the {kill}th time: {said}");
        }
        // The target flushes about once a second and says so. What the source tells as durable is stored already.
        wait_for_mark(&send, confirmed);
        let seen = durable(&send).max(confirmed);
        let said = send.kill_9();
        scene.proxy.lose_held(Fault::None);
        let start = said
            .json_lines()
            .iter()
            .find_map(|line| line["start"].as_u64())
            .unwrap_or(0);
        assert!(
            start >= confirmed - confirmed % MIB,
            "run {kill} began at {start}, durable was {confirmed}"
        );
        confirmed = seen;
    }
    assert!(confirmed > SIZE / 4, "durable after {kills} kills: {confirmed}");
    let last = scene.start_send(&[]).wait();
    let result = last.event("result");
    assert!(
        result["start"].as_u64().unwrap_or(0) >= confirmed - confirmed % MIB,
        "{result:#}"
    );
    let travelled = scene.proxy.to_target();
    println!("kills={kills} size={SIZE} travelled={travelled} durable_before_last={confirmed}");
    // What was cut in two by a kill travels twice, and nothing else.
    let allowed = SIZE + SIZE / 50 + kills * 2 * MIB;
    assert!(
        travelled <= allowed,
        "{travelled} bytes travelled for a disk of {SIZE}"
    );
    scene.assert_whole(last);
}

/// The target is killed at eight places and started again. The source is not: it connects again by itself.
///
/// Every other kill comes as soon as the place is reached: what the target had received and not yet written is lost
/// then, its buffers and those of its socket. The others come after it said that what it received is durable.
#[test]
fn a_killed_target_is_met_again_by_the_same_source() {
    let mut scene = scene(22);
    let (kills, stride) = (8, SIZE / 9);
    scene.proxy.set_fault(Fault::HoldAt(stride));
    let mut send = scene.start_send(&["--retry-for", "60"]);
    let (mut at_last_kill, mut marked) = (0, 0);
    for kill in 1..=kills {
        assert!(
            scene.proxy.wait_held(|| !send.is_running()),
            "the send ended before the target was killed for the {kill}th time: {}",
            send.stdout_so_far()
        );
        if kill % 2 == 0 {
            // More than at the last kill: by now the mark may have come already, so it is not compared with itself.
            marked += u64::from(wait_for_mark(&send, at_last_kill));
        }
        at_last_kill = durable(&send);
        scene.lab.take_target().kill_9();
        let next = scene.proxy.to_target() + stride;
        scene.proxy.lose_held(if kill == kills {
            Fault::None
        } else {
            Fault::HoldAt(next)
        });
        scene.lab.start();
    }
    let last = send.wait();
    let result = last.event("result");
    assert!(result["connections"].as_u64().unwrap_or(0) > kills, "{result:#}");
    let travelled = scene.proxy.to_target();
    println!("kills={kills} marked={marked} size={SIZE} travelled={travelled}");
    assert!(
        marked > 0,
        "no kill came after a durable mark, so nothing was shown"
    );
    // What a kill loses without a mark: what was let through to it, and what its socket and buffers held.
    let allowed = SIZE + SIZE / 50 + (kills - marked) * (stride + 10 * MIB);
    assert!(
        travelled <= allowed,
        "{travelled} bytes travelled for a disk of {SIZE}"
    );
    scene.assert_whole(last);
}

/// The connection is cut at twenty places, in the middle of frames as it comes.
#[test]
fn a_cut_connection_is_made_again() {
    let scene = scene(23);
    let cuts = 20;
    scene.proxy.set_fault(Fault::CutAt(SIZE / (cuts + 1)));
    let mut send = scene.start_send(&["--retry-for", "60"]);
    for cut in 2..=cuts {
        let place = SIZE / (cuts + 1) * cut;
        wait_until("the next place to cut at", || {
            assert!(send.is_running(), "{}", send.stdout_so_far());
            scene.proxy.to_target() + 256 * 1024 >= SIZE / (cuts + 1) * (cut - 1)
        });
        scene
            .proxy
            .set_fault(Fault::CutAt(place.max(scene.proxy.to_target() + 4096)));
    }
    let last = send.wait();
    let result = last.event("result");
    println!(
        "cuts={cuts} connections={} size={SIZE} travelled={}",
        result["connections"],
        scene.proxy.to_target()
    );
    assert!(
        result["connections"].as_u64().unwrap_or(0) > cuts / 2,
        "{result:#}"
    );
    scene.assert_whole(last);
}

/// One bit is turned over on the way, at places that hit content, headers and bodies of frames. Nothing wrong is
/// ever written: each run either ends with an error that names the damage or goes on over a new connection.
#[test]
fn a_bit_turned_over_on_the_way_is_noticed() {
    for place in [
        70,
        100,
        64 * 1024,
        3 * MIB + 1,
        7 * MIB + 4711,
        20 * MIB + 13,
        33 * MIB + 12_345,
    ] {
        let mut scene = scene(24);
        scene.proxy.set_fault(Fault::FlipAt(place));
        let said = scene.start_send(&["--retry-for", "5"]).wait();
        if said.code() != Some(0) {
            assert!(matches!(said.code(), Some(6 | 8)), "{said}");
            println!("place={place}: {}", said.event("error")["error"]);
        }
        // Whatever has been written is right: either still zero, or what the source has there.
        let written = std::fs::read(&scene.target).expect("the target disk can be read");
        let source = std::fs::read(&scene.source).expect("the source can be read");
        for (index, (have, want)) in written.chunks(4096).zip(source.chunks(4096)).enumerate() {
            assert!(
                have == want || have.iter().all(|byte| *byte == 0),
                "block {index} was written wrong after a flip at {place}"
            );
        }
        let last = scene.start_send(&[]).wait();
        last.expect_done();
        assert_same(&scene.source, &scene.target, SIZE);
        scene.canaries.assert_untouched();
        scene.lab.stop();
    }
}

/// An orderly end of the source in the middle says what to do, with the code of "partly done", and the next run goes on.
#[test]
fn an_interrupted_send_says_how_to_go_on() {
    let scene = scene(25);
    scene.proxy.set_fault(Fault::HoldAt(SIZE / 2));
    let mut send = scene.start_send(&[]);
    assert!(scene.proxy.wait_held(|| !send.is_running()));
    wait_until("a durable mark", || durable(&send) > 0);
    send.signal(nix::sys::signal::Signal::SIGINT);
    let said = send.wait();
    assert_eq!(said.code(), Some(8), "{said}");
    let error = said.event("error");
    assert!(error["error"].to_string().contains("interrupted"), "{error:#}");
    assert!(error["hint"].to_string().contains("same command"), "{error:#}");
    scene.proxy.release();
    let last = scene.start_send(&[]).wait();
    assert!(last.event("result")["start"].as_u64().unwrap_or(0) > 0, "{last}");
    scene.assert_whole(last);
}
