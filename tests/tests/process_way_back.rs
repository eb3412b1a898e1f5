//! Ways back that are not there: said before they are needed, and never begun.

use std::path::{Path, PathBuf};

use mt_tests::agent::{Said, wait_until};
use mt_tests::data::{Fill, MIB, change_blocks, digest, fill};
use mt_tests::lab::Lab;
use serde_json::Value;

const SIZE: u64 = 16 * MIB;

struct Scene {
    lab: Lab,
    source: PathBuf,
    target: PathBuf,
}

fn scene() -> Scene {
    let mut lab = Lab::new();
    let source = lab.scratch.sparse("source", SIZE);
    fill(&source, SIZE, Fill::HalfZero, 1);
    let target = lab.scratch.sparse("target", SIZE);
    fill(&target, SIZE, Fill::HalfZero, 2);
    let id = lab.add_disk(&target);
    lab.keep_points_in(&lab.scratch.join("retention"));
    lab.start();
    lab.verb(&["retention", "init"]).expect_done();
    lab.pair_over("db01/scsi0:0", &id);
    lab.verb(&["policy", "db01", "--minimum-age", "0s"]).expect_done();
    Scene { lab, source, target }
}

impl Scene {
    fn send(&self, seed: u64) -> Said {
        change_blocks(&self.source, SIZE, 4096, 200, seed);
        let disks: [(&str, &Path); 1] = [("scsi0:0", &self.source)];
        self.lab.epoch("db01", &disks, &[])
    }

    fn is_alarmed(&self, id: &str) -> bool {
        let status = self.lab.status();
        let alarms = status["alarms"].as_array().expect("alarms are a list").clone();
        alarms
            .iter()
            .any(|alarm| alarm["id"] == id && alarm["subject"] == "db01")
    }

    fn failover(&self) -> Value {
        let document = self.lab.verb(&["groups", "--json"]).expect_done().json();
        document["machines"][0]["failover"].clone()
    }
}

/// What broke: a store was lost together with an epoch that was complete and not on the disks yet. After "retention reset" the
/// disks, a part of one epoch and a part of another, were failed over and committed as if they were an instant. They are refused
/// now, over a restart too, until an epoch has compared all of them.
#[test]
fn disks_whose_store_went_too_early_are_not_failed_over() {
    let mut scene = scene();
    scene.send(10).expect_done();
    scene.lab.take_target().kill_9();
    let store = scene.lab.scratch.join("retention/machines/db01");
    for entry in std::fs::read_dir(&store).expect("the store is there") {
        let path = entry.expect("it can be listed").path();
        if path.extension().is_some_and(|end| end == "seg") {
            std::fs::remove_file(path).expect("it can be removed");
        }
    }
    scene.lab.start();
    scene
        .lab
        .verb(&["retention", "reset", "db01", "--drop-points-of", "db01"])
        .expect_done();
    for _ in 0..2 {
        scene
            .lab
            .verb(&["failover", "db01", "--to", "latest"])
            .expect_error(5, &["may hold a part of an epoch", "send an epoch first"]);
        wait_until("the alarm", || scene.is_alarmed("disks-in-doubt"));
        scene.lab.crash_and_restart();
    }
    scene.send(11).expect_done();
    scene
        .lab
        .verb(&["failover", "db01", "--to", "latest"])
        .expect_done();
    assert_eq!(digest(&scene.target, SIZE), digest(&scene.source, SIZE));
    wait_until("the end of the alarm", || !scene.is_alarmed("disks-in-doubt"));
    scene.lab.stop();
}

/// A store whose epochs are all on the disks leaves them as they are known to be: nothing is in doubt when it goes.
#[test]
fn a_reset_at_rest_leaves_no_doubt() {
    let mut scene = scene();
    scene.send(20).expect_done();
    wait_until("the disks to follow", || {
        let status = scene
            .lab
            .verb(&["retention", "status", "--json"])
            .expect_done()
            .json();
        let store = &status["machines"][0]["store"];
        store["applied"] == store["committed"]
    });
    scene
        .lab
        .verb(&["retention", "reset", "db01", "--drop-points-of", "db01"])
        .expect_done();
    scene
        .lab
        .verb(&["failover", "db01", "--to", "latest"])
        .expect_done();
    assert_eq!(digest(&scene.target, SIZE), digest(&scene.source, SIZE));
    scene.lab.stop();
}

/// What broke: "commit" promised 72 hours in which a failover can be undone although the point for that had been deleted; "undo"
/// then failed and left a state from which "cancel" wrote to disks that had been handed over. Now the commit says so, the
/// undo begins nothing, and what a failover needs cannot be let go of meanwhile.
#[test]
fn an_undo_that_is_not_possible_is_neither_promised_nor_begun() {
    let mut scene = scene();
    scene.send(30).expect_done();
    scene.send(31).expect_done();
    scene.lab.verb(&["points", "delete", "db01", "0"]).expect_done();
    scene.lab.verb(&["failover", "db01", "--to", "1"]).expect_done();
    scene
        .lab
        .verb(&["points", "pin", "db01", "1", "--release"])
        .expect_error(5, &["a failover of machine db01 needs point 1"]);
    let said = scene.lab.verb(&["commit", "db01"]).expect_done();
    assert!(said.stdout.contains("it cannot be undone"), "{said}");
    let before = digest(&scene.target, SIZE);
    for _ in 0..2 {
        scene
            .lab
            .verb(&["undo", "db01"])
            .expect_error(5, &["no point before-failback", "reprotect"]);
        assert_eq!(scene.failover(), "committed");
    }
    scene
        .lab
        .verb(&["cancel", "db01"])
        .expect_error(5, &["was committed"]);
    scene
        .lab
        .verb(&["roll", "db01", "--to", "latest"])
        .expect_error(5, &["committed", "reprotect"]);
    assert_eq!(digest(&scene.target, SIZE), before);
    scene.lab.stop();
}
