//! Verbs of points and failovers where things are not as usual: a full store, a way back after a commit, requests that repeat
//! or meet. On files, without root.

use std::path::{Path, PathBuf};

use mt_tests::agent::{Running, Said, wait_until};
use mt_tests::data::{Fill, MIB, change_blocks, digest, fill};
use mt_tests::lab::Lab;
use serde_json::Value;

const SIZE: u64 = 8 * MIB;

struct Scene {
    lab: Lab,
    /// Per machine: name, source and target of its one disk.
    machines: Vec<(String, PathBuf, PathBuf)>,
}

/// Machines of one disk each, whose target disks hold an older state, and a target that keeps points.
fn scene(names: &[&str]) -> Scene {
    let mut lab = Lab::new();
    let mut machines = Vec::new();
    let mut ids = Vec::new();
    for (seed, name) in (0..).zip(names) {
        let source = lab.scratch.sparse(&format!("source-{name}.img"), SIZE);
        fill(&source, SIZE, Fill::HalfZero, seed);
        let target = lab.scratch.sparse(&format!("target-{name}.img"), SIZE);
        fill(&target, SIZE, Fill::HalfZero, seed);
        change_blocks(&target, SIZE, 4096, 40, 77 + seed);
        ids.push(lab.add_disk(&target));
        machines.push(((*name).to_owned(), source, target));
    }
    lab.keep_points_in(&lab.scratch.join("retention"));
    lab.start();
    lab.verb(&["retention", "init"]).expect_done();
    for ((name, ..), id) in machines.iter().zip(&ids) {
        lab.pair_over(&format!("{name}/scsi0:0"), id);
    }
    Scene { lab, machines }
}

impl Scene {
    fn send_of(&self, machine: usize, more: &[&str]) -> Said {
        let (name, source, _) = &self.machines[machine];
        let disks: [(&str, &Path); 1] = [("scsi0:0", source)];
        self.lab.epoch(name, &disks, more)
    }

    fn send(&self, more: &[&str]) -> Said {
        self.send_of(0, more)
    }

    /// Changes the source, and sends it.
    fn next(&self, seed: u64, count: u64, more: &[&str]) -> Said {
        change_blocks(&self.machines[0].1, SIZE, 4096, count, seed);
        self.send(more)
    }

    fn source(&self) -> blake3::Hash {
        digest(&self.machines[0].1, SIZE)
    }

    fn target(&self) -> blake3::Hash {
        digest(&self.machines[0].2, SIZE)
    }

    fn verb(&self, args: &[&str]) -> Said {
        self.lab.verb(args)
    }

    fn machine(&self, name: &str) -> Value {
        let document = self.verb(&["groups", "--json"]).expect_done().json();
        let machines = document["machines"].as_array().expect("machines are a list");
        let found = machines.iter().find(|machine| machine["machine"] == name);
        found.expect("it is there").clone()
    }

    fn state(&self) -> String {
        let machine = self.machine(&self.machines[0].0);
        machine["failover"].as_str().expect("a word").to_owned()
    }

    fn alarm(&self, id: &str) -> Option<Value> {
        let status = self.lab.status();
        let alarms = status["alarms"].as_array().expect("alarms are a list");
        // The volume of the tests may have an alarm of its own.
        let found = alarms
            .iter()
            .find(|alarm| alarm["id"] == id && alarm["subject"] == "db01");
        found.cloned()
    }
}

/// What broke: a store that rolls had filled refused to delete, pin, roll, fail over and receive, "0 bytes" being in use, until
/// it was reset. Phases: rolls fill it while no point may go, and are refused as such, with nothing changed; pins and the
/// deletion's reason still work; a restart still says so; with leave to drop points everything goes on.
#[test]
fn a_store_that_rolls_filled_has_a_way_out() {
    let mut scene = scene(&["db01"]);
    let space = (28 * MIB).to_string();
    scene
        .verb(&["policy", "db01", "--space", &space, "--minimum-age", "1h"])
        .expect_done();
    scene.next(1, 300, &["--point-name", "first"]).expect_done();
    let first = scene.source();
    scene.next(2, 300, &["--point-name", "second"]).expect_done();
    let second = scene.source();
    let mut refused = None;
    for round in 0..60 {
        let to = if round % 2 == 0 { "first" } else { "second" };
        let said = scene.verb(&["roll", "db01", "--to", to]);
        if said.code() != Some(0) {
            refused = Some(said);
            break;
        }
        assert_eq!(scene.target(), if round % 2 == 0 { first } else { second });
    }
    let at_refusal = scene.target();
    refused
        .expect("a store of 28 MiB does not hold 60 rolls")
        .expect_error(5, &["retention store is full", "points delete", "policy"]);
    assert_eq!(scene.target(), at_refusal, "the disks stay where they were");
    for _ in 0..20 {
        scene.verb(&["points", "pin", "db01", "first"]).expect_done();
        scene
            .verb(&["points", "pin", "db01", "first", "--release"])
            .expect_done();
    }
    scene
        .verb(&["points", "delete", "db01", "first"])
        .expect_error(5, &["none younger than", "--minimum-age"]);
    // What the last roll had appended came back; small epochs fill that, too.
    let mut held_back = None;
    for seed in 100..160 {
        let said = scene.next(seed, 20, &["--retry-for", "0"]);
        if said.code() != Some(0) {
            held_back = Some(said);
            break;
        }
    }
    held_back
        .expect("60 epochs do not fit")
        .expect_error(6, &["full"]);
    let at_refusal = scene.target();
    wait_until("the alarm", || scene.alarm("retention-full").is_some());
    scene.lab.crash_and_restart();
    wait_until("the alarm after a restart", || {
        scene.alarm("retention-full").is_some()
    });
    let alarm = scene.alarm("retention-full").expect("just seen");
    assert!(!alarm["text"].to_string().contains(" 0 bytes"), "{alarm}");
    assert_eq!(scene.target(), at_refusal);

    scene
        .verb(&["policy", "db01", "--minimum-age", "0s"])
        .expect_done();
    scene.verb(&["roll", "db01", "--to", "second"]).expect_done();
    assert_eq!(scene.target(), second);
    scene.next(3, 300, &[]).expect_done();
    wait_until("the newest epoch to be on the disk", || {
        scene.target() == scene.source()
    });
    let oldest = scene.lab.points("db01")[0]["point"].to_string();
    scene.verb(&["points", "delete", "db01", &oldest]).expect_done();
    scene.verb(&["failover", "db01", "--to", "latest"]).expect_done();
    scene.verb(&["cancel", "db01"]).expect_done();
    wait_until("the end of the alarm", || scene.alarm("retention-full").is_none());
    scene.lab.stop();
}

/// What broke: after a commit every hint led to another refusal, and a machine whose pairs were removed and added again was
/// still committed. Phases: not before the commit; after it, with the disk written at home, "reprotect" drops the points and
/// begins anew, cut or repeated as well; what was written at home is the first point; the source's epoch is compared whole.
#[test]
fn a_committed_machine_is_protected_anew() {
    let mut scene = scene(&["db01"]);
    let anew: &[&str] = &["reprotect", "db01", "--drop-points-of", "db01"];
    scene.next(1, 30, &["--point-name", "first"]).expect_done();
    scene.verb(anew).expect_done();
    assert_eq!(
        scene.lab.points("db01").len(),
        2,
        "replicating already: nothing is dropped"
    );
    scene.verb(&["failover", "db01", "--to", "first"]).expect_done();
    scene.verb(anew).expect_error(5, &["awaiting-commit", "cancel"]);
    let before = scene.machine("db01")["generation"].as_u64().expect("a number");
    scene.verb(&["commit", "db01"]).expect_done();
    scene
        .verb(&["reprotect", "db01", "--drop-points-of", "db02"])
        .expect_error(5, &["db02 is named"]);
    scene
        .verb(&["failover", "db01", "--to", "first"])
        .expect_error(5, &["committed", "reprotect"]);
    scene.verb(&["cancel", "db01"]).expect_error(5, &["reprotect"]);
    scene
        .send(&[])
        .expect_error(6, &["nothing of its source is taken"]);
    scene
        .verb(&["pair", "remove", "db01/scsi0:0"])
        .expect_error(5, &["can be undone until", "reprotect"]);

    // At home the disk is written, under the points.
    change_blocks(&scene.machines[0].2, SIZE, 4096, 25, 9);
    let at_home = scene.target();
    let begin = || {
        let mut command = mt_tests::agent::command(anew);
        command.env("MT_AGENT_SOCKET", scene.lab.socket());
        Running::start(command, scene.lab.scratch.path())
    };
    let at_once: Vec<Running> = (0..3).map(|_| begin()).collect();
    for running in at_once {
        let said = running.wait();
        let met = said.code() == Some(5) && said.stderr.contains("job under way");
        assert!(said.code() == Some(0) || met, "{said}");
    }
    wait_until("replication", || scene.state() == "replicating");
    scene.lab.crash_and_restart();
    assert_eq!(scene.state(), "replicating");
    assert!(scene.machine("db01")["generation"].as_u64().expect("a number") > before);
    assert_eq!(scene.target(), at_home, "nothing was written yet");

    scene.next(3, 10, &["--point-name", "again"]).expect_done();
    wait_until("the epoch to be on the disk", || scene.target() == scene.source());
    let points = scene.lab.points("db01");
    assert_eq!(points.len(), 2, "{points:#?}");
    scene
        .verb(&["roll", "db01", "--to", "before-failback"])
        .expect_done();
    assert_eq!(scene.target(), at_home, "what was written at home is not lost");
    scene.verb(&["roll", "db01", "--to", "again"]).expect_done();
    assert_eq!(scene.target(), scene.source());
    scene.lab.stop();
}

/// What broke: a pair was removed while its machine was open, and its disk stayed held until the agent ended.
#[test]
fn a_removed_pair_leaves_no_disk_held() {
    let mut scene = scene(&["db01"]);
    scene.next(1, 30, &[]).expect_done();
    let target = scene.machines[0].2.clone();
    let pid = scene.lab.target().pid();
    let is_held = || {
        let folder = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("it runs");
        folder
            .flatten()
            .any(|entry| std::fs::read_link(entry.path()).is_ok_and(|path| path == target))
    };
    assert!(is_held(), "an open machine holds its disks");
    let exported = scene
        .verb(&["points", "export", "db01", "latest", "--detach", "--json"])
        .expect_done()
        .json();
    scene
        .verb(&["pair", "remove", "db01/scsi0:0"])
        .expect_error(5, &["exported", "unexport"]);
    scene
        .verb(&["points", "unexport", &exported["exports"][0]["id"].to_string()])
        .expect_done();
    scene.verb(&["pair", "remove", "db01/scsi0:0"]).expect_done();
    assert!(!is_held(), "nobody holds it any more");
    scene.lab.pair_over("db01/scsi0:0", &mt_tests::lab::scsi_id(1));
    scene.next(2, 30, &[]).expect_done();
    wait_until("the epoch to be on the disk", || scene.target() == scene.source());
    assert_eq!(
        scene.lab.points("db01").len(),
        3,
        "its points are there as before"
    );

    // A failover that can no longer be undone is forgotten with the last pair.
    scene.verb(&["failover", "db01", "--to", "latest"]).expect_done();
    scene
        .verb(&["pair", "remove", "db01/scsi0:0"])
        .expect_error(5, &["awaiting-commit", "cancel"]);
    scene.verb(&["commit", "db01", "--keep-undo", "0s"]).expect_done();
    scene.verb(&["pair", "remove", "db01/scsi0:0"]).expect_done();
    scene.lab.pair_over("db01/scsi0:0", &mt_tests::lab::scsi_id(1));
    assert_eq!(scene.state(), "replicating");
    scene.next(3, 30, &[]).expect_done();
    assert_eq!(scene.lab.points("db01").len(), 2);
    scene.lab.stop();
}

/// What broke: a second commit with another time answered "already" and changed nothing; a time of no length said nothing of
/// what it means; what was kept for an undo was kept for ever, and operators' pins went with those of a failover.
#[test]
fn the_time_of_an_undo_is_said_can_be_changed_and_ends() {
    let mut scene = scene(&["db01"]);
    scene.next(1, 300, &["--point-name", "kept"]).expect_done();
    scene.verb(&["points", "pin", "db01", "kept"]).expect_done();
    scene.next(2, 300, &[]).expect_done();
    let pinned = |scene: &Scene| -> Vec<String> {
        let points = scene.lab.points("db01");
        let pinned = points.iter().filter(|point| point["pinned"] == true);
        pinned.map(|point| point["name"].to_string()).collect()
    };
    scene.verb(&["failover", "db01", "--to", "latest"]).expect_done();
    assert_eq!(pinned(&scene).len(), 3);
    scene.verb(&["cancel", "db01"]).expect_done();
    assert_eq!(
        pinned(&scene),
        ["\"kept\""],
        "the operator's pin is the operator's"
    );

    scene.verb(&["failover", "db01", "--to", "latest"]).expect_done();
    scene
        .verb(&["commit", "db01", "--keep-undo", "36500000d"])
        .expect_error(5, &["longer than 3650 days"]);
    let said = scene.verb(&["commit", "db01", "--keep-undo", "7d"]).expect_done();
    assert!(said.stdout.contains("can be undone until"), "{said}");
    let until = scene.machine("db01")["undo_until"].clone();
    let said = scene.verb(&["commit", "db01"]).expect_done();
    assert!(said.stdout.contains("already committed"), "{said}");
    assert_eq!(scene.machine("db01")["undo_until"], until);
    scene.verb(&["commit", "db01", "--keep-undo", "1d"]).expect_done();
    assert_ne!(scene.machine("db01")["undo_until"], until);
    assert_eq!(
        scene.lab.points("db01").len(),
        3,
        "all is kept while it can be undone"
    );
    let said = scene.verb(&["commit", "db01", "--keep-undo", "0s"]).expect_done();
    assert!(said.stdout.contains("cannot be undone"), "{said}");
    scene
        .verb(&["undo", "db01"])
        .expect_error(5, &["was kept until", "reprotect"]);
    scene
        .verb(&["commit", "db01", "--keep-undo", "1d"])
        .expect_error(5, &["was kept until"]);
    wait_until("the space to come back", || scene.lab.points("db01").len() == 2);
    assert_eq!(pinned(&scene), ["\"kept\""]);
    scene.lab.stop();
}

/// What is typed and cannot be meant, or means two things, is refused in words.
#[test]
fn points_and_policies_that_cannot_be_meant_are_refused() {
    let mut scene = scene(&["db01"]);
    scene.next(1, 30, &["--point-name", "nightly"]).expect_done();
    let first = scene.source();
    scene.next(2, 30, &["--point-name", "nightly"]).expect_done();
    scene
        .verb(&["roll", "db01", "--to", "nightly"])
        .expect_error(2, &["2 points", "\"nightly\": 1, 2", "number"]);
    scene.verb(&["roll", "db01", "--to", "1"]).expect_done();
    assert_eq!(scene.target(), first);
    scene
        .verb(&["roll", "db01", "--to", "99"])
        .expect_error(2, &["has no point 99", "the newest is"]);
    let escape = scene.verb(&["roll", "db01", "--to", "\u{1b}[2Jx\u{7}"]);
    assert!(!escape.stderr.contains(['\u{1b}', '\u{7}']), "{escape}");
    escape.expect_error(2, &["\\u{1b}[2Jx"]);
    // As "points list" shows a time, with its zone or without.
    let time = scene.lab.points("db01")[2]["time"]
        .as_str()
        .expect("a time")
        .to_owned();
    let without = time.trim_end_matches('Z').replacen('T', " ", 1);
    scene.verb(&["points", "pin", "db01", &without]).expect_done();
    assert_eq!(scene.lab.points("db01")[2]["pinned"], true);
    for (setting, value) in [
        ("--all-for", "99999999d"),
        ("--hourly-for", "4000d"),
        ("--daily-for", "4000d"),
        ("--minimum-age", "213503982334601d"),
        ("--late-after", "4000d"),
    ] {
        scene
            .verb(&["policy", "db01", setting, value])
            .expect_error(5, &["longer than 3650 days"]);
    }
    scene
        .verb(&["policy", "db01", "--space", "1000"])
        .expect_error(5, &["cannot work with 1000 bytes"]);
    scene.lab.stop();

    // The volume is not mounted: as for any disk that is not there.
    let volume = scene.lab.scratch.join("retention");
    std::fs::rename(&volume, scene.lab.scratch.join("gone")).expect("it can be moved");
    std::fs::create_dir(&volume).expect("it can be made");
    scene.lab.start();
    scene
        .verb(&["points", "list", "db01"])
        .expect_error(4, &["is not there", "mount"]);
    scene.lab.stop();
}

/// A roll while a roll runs is refused.
#[test]
fn rolls_that_meet_do_not_mix() {
    let mut scene = scene(&["db01"]);
    scene.next(1, 900, &["--point-name", "first"]).expect_done();
    let first = scene.source();
    scene.next(2, 900, &[]).expect_done();
    let begin = |to: &str| {
        let mut command = mt_tests::agent::command(["roll", "db01", "--to", to]);
        command.env("MT_AGENT_SOCKET", scene.lab.socket());
        Running::start(command, scene.lab.scratch.path())
    };
    let rolls: Vec<Running> = (0..4).map(|_| begin("first")).collect();
    let said: Vec<Said> = rolls.into_iter().map(Running::wait).collect();
    assert!(said.iter().any(|said| said.code() == Some(0)), "{said:?}");
    for said in said.into_iter().filter(|said| said.code() != Some(0)) {
        said.expect_error(5, &["job under way"]);
    }
    assert_eq!(scene.target(), first);
    scene.lab.stop();
}
