//! Groups: machines that share points are brought to one of them together, or none of them is touched. On files, without root.

use std::path::{Path, PathBuf};

use mt_tests::agent::{Said, wait_until};
use mt_tests::data::{Fill, MIB, change_blocks, digest, fill, write_at};
use mt_tests::lab::Lab;
use mt_tests::stores::{data_of, flip};
use serde_json::Value;

const SIZE: u64 = 8 * MIB;
const GROUP: &str = "shop";

struct Scene {
    lab: Lab,
    /// Per machine: name, source and target of its one disk.
    machines: Vec<(String, PathBuf, PathBuf)>,
}

/// Machines of one disk each; the first two are a group.
fn scene(names: &[&str]) -> Scene {
    let mut lab = Lab::new();
    let mut machines = Vec::new();
    let mut ids = Vec::new();
    for (seed, name) in (0..).zip(names) {
        let source = lab.scratch.sparse(&format!("source-{name}.img"), SIZE);
        fill(&source, SIZE, Fill::HalfZero, seed);
        let target = lab.scratch.sparse(&format!("target-{name}.img"), SIZE);
        ids.push(lab.add_disk(&target));
        machines.push(((*name).to_owned(), source, target));
    }
    lab.keep_points_in(&lab.scratch.join("retention"));
    lab.start();
    lab.verb(&["retention", "init"]).expect_done();
    for ((name, ..), id) in machines.iter().zip(&ids) {
        lab.pair(&format!("{name}/scsi0:0"), id);
    }
    let scene = Scene { lab, machines };
    for name in &names[..2] {
        scene.verb(&["policy", name, "--group", GROUP]).expect_done();
    }
    scene
}

impl Scene {
    fn verb(&self, args: &[&str]) -> Said {
        self.lab.verb(args)
    }

    fn send_of(&self, machine: usize, more: &[&str]) -> Said {
        let (name, source, _) = &self.machines[machine];
        let disks: [(&str, &Path); 1] = [("scsi0:0", source)];
        self.lab.epoch(name, &disks, more)
    }

    /// Changes the source of each of these machines, and sends it as a point of this name; answers what the sources are.
    fn point(&self, machines: &[usize], name: &str, seed: u64) -> Vec<blake3::Hash> {
        for machine in machines {
            let source = &self.machines[*machine].1;
            change_blocks(source, SIZE, 4096, 20, seed + *machine as u64);
            // So that every point needs an image of its own of this block.
            write_at(source, 0, &seed.to_le_bytes().repeat(512));
            self.send_of(*machine, &["--point-name", name]).expect_done();
        }
        self.sources()
    }

    fn sources(&self) -> Vec<blake3::Hash> {
        let machines = self.machines.iter();
        machines.map(|(_, source, _)| digest(source, SIZE)).collect()
    }

    fn targets(&self) -> Vec<blake3::Hash> {
        let machines = self.machines.iter();
        machines.map(|(_, _, target)| digest(target, SIZE)).collect()
    }

    /// The disks trail what was acknowledged.
    fn wait_in_step(&self) {
        wait_until("the newest epochs to be on the disks", || {
            self.targets() == self.sources()
        });
    }

    fn states(&self) -> Vec<String> {
        let document = self.verb(&["groups", "--json"]).expect_done().json();
        let machines = document["machines"].as_array().expect("machines are a list");
        let state = |machine: &Value| machine["failover"].as_str().expect("a word").to_owned();
        machines.iter().map(state).collect()
    }

    fn shared(&self) -> Vec<String> {
        let document = self
            .verb(&["points", "list", GROUP, "--json"])
            .expect_done()
            .json();
        let points = document["points"].as_array().expect("points are a list");
        let name = |point: &Value| point["name"].as_str().expect("a word").to_owned();
        points.iter().map(name).collect()
    }
}

/// Failed over, committed, undone and taken back together, to a point that all of them have; rolled there and back as well.
#[test]
fn a_group_is_failed_over_to_a_point_that_all_of_it_have() {
    let mut scene = scene(&["app01", "db01"]);
    let before = scene.targets();
    let noon = scene.point(&[0, 1], "noon", 10);
    // One machine alone has this one: it is no point of the group.
    scene.point(&[0], "one", 20);
    scene.send_of(1, &[]).expect_done();
    let newest = scene.sources();
    scene.wait_in_step();
    assert_eq!(scene.shared(), ["noon"]);
    let said = scene.verb(&["points", "list", GROUP]).expect_done();
    assert!(
        said.stdout.contains("noon") && said.stdout.contains("app01: 1, db01: 1"),
        "{said}"
    );
    for (to, words) in [
        (
            "one",
            ["group shop has no point \"one\"", "db01 has none of that name"],
        ),
        ("1", ["number of a point of one machine", "group shop has 2"]),
        ("2099-01-01T00:00:00Z", ["in the future", "latest"]),
        ("1999-01-01T00:00:00Z", ["group shop has no point", "2 machines"]),
    ] {
        for verb in ["failover", "roll"] {
            scene.verb(&[verb, GROUP, "--to", to]).expect_error(2, &words);
        }
    }
    assert_eq!(scene.targets(), newest, "none of them was touched");
    scene.verb(&["failover", GROUP, "--to", "latest"]).expect_done();
    assert_eq!(scene.targets(), noon);
    assert_eq!(scene.states(), ["awaiting-commit", "awaiting-commit"]);
    // Said again it is so already; another point is none.
    scene.verb(&["failover", GROUP, "--to", "noon"]).expect_done();
    scene
        .verb(&["failover", GROUP, "--to", "before-failback"])
        .expect_error(5, &["app01", "cancel"]);
    scene
        .verb(&["roll", GROUP, "--to", "noon"])
        .expect_error(5, &["app01", "none of its machines"]);
    scene.verb(&["cancel", GROUP]).expect_done();
    assert_eq!(scene.targets(), newest, "each is back where its replication was");
    scene.verb(&["roll", GROUP, "--to", "noon"]).expect_done();
    assert_eq!(scene.targets(), noon);
    for name in ["app01", "db01"] {
        scene.verb(&["roll", name, "--to", "latest"]).expect_done();
    }
    assert_eq!(scene.targets(), newest);
    let now = scene.lab.points("db01")[1]["time"]
        .as_str()
        .expect("a time")
        .to_owned();
    scene.verb(&["failover", GROUP, "--to", &now]).expect_done();
    assert_eq!(scene.targets(), noon, "by the time of the last of its machines");
    scene.verb(&["commit", GROUP, "--keep-undo", "1h"]).expect_done();
    scene.verb(&["undo", GROUP]).expect_done();
    assert_eq!(scene.states(), ["undone", "undone"]);
    assert_eq!(scene.targets(), before);
    scene.lab.stop();
}

/// A machine joins late: points from before are none of the group any more, and before its first epoch the group has none. When it
/// leaves, they are there again, and nothing is done with it.
#[test]
fn a_machine_that_joins_late_or_leaves_changes_which_points_a_group_has() {
    let mut scene = scene(&["app01", "db01", "web01"]);
    let noon = scene.point(&[0, 1], "noon", 10);
    scene.verb(&["policy", "web01", "--group", GROUP]).expect_done();
    for args in [
        ["failover", GROUP, "--to", "noon"].as_slice(),
        &["points", "list", GROUP],
    ] {
        scene.verb(args).expect_error(
            5,
            &[
                "group shop",
                "web01",
                "no recovery points",
                "none of its machines",
            ],
        );
    }
    scene.point(&[2], "web alone", 20);
    assert_eq!(scene.shared(), [""; 0]);
    scene
        .verb(&["failover", GROUP, "--to", "noon"])
        .expect_error(2, &["3 machines", "web01 has none of that name"]);
    let evening = scene.point(&[0, 1, 2], "evening", 30);
    scene.wait_in_step();
    assert_eq!(scene.shared(), ["evening"]);
    scene.verb(&["failover", GROUP, "--to", "latest"]).expect_done();
    assert_eq!(scene.states(), ["awaiting-commit"; 3]);
    assert_eq!(scene.targets(), evening);
    // Whoever leaves in the middle is its operator's from then on.
    scene.verb(&["policy", "web01", "--group", ""]).expect_done();
    scene.verb(&["cancel", GROUP]).expect_done();
    assert_eq!(scene.states(), ["replicating", "replicating", "awaiting-commit"]);
    scene.verb(&["cancel", "web01"]).expect_done();
    assert_eq!(scene.shared(), ["noon", "evening"]);
    scene.verb(&["failover", GROUP, "--to", "noon"]).expect_done();
    assert_eq!(scene.targets()[..2], noon[..2]);
    assert_eq!(scene.targets()[2], evening[2], "it is no longer one of them");
    assert_eq!(scene.states()[2], "replicating");
    scene.lab.stop();
}

/// One machine has a point damaged, lacks one, or is somewhere else: the group has the others, and no verb does a half.
#[test]
fn a_group_goes_no_further_than_its_weakest_machine() {
    let mut scene = scene(&["app01", "db01"]);
    let noon = scene.point(&[0, 1], "noon", 10);
    scene.point(&[0, 1], "evening", 20);
    scene.point(&[0], "night", 30);
    // Sent twice under one name: which of them is meant?
    scene.point(&[0, 1], "twice", 40);
    scene.point(&[1], "twice", 50);
    assert_eq!(scene.shared(), ["noon", "evening"]);
    scene.wait_in_step();
    let newest = scene.sources();
    let (file, offset) = data_of(&scene.lab, "db01", 2, 0);
    flip(&file, offset);
    assert_eq!(scene.verb(&["retention", "check"]).code(), Some(7));
    assert_eq!(scene.shared(), ["noon"]);
    for (to, why) in [
        ("evening", "db01 has it damaged"),
        ("night", "db01 has none of that name"),
        ("twice", "db01 has 2 of that name"),
    ] {
        scene
            .verb(&["failover", GROUP, "--to", to])
            .expect_error(2, &[why]);
    }
    // A point of another machine is none, and a damaged one is refused, for a machine alone as well.
    for verb in ["failover", "roll"] {
        scene
            .verb(&[verb, "db01", "--to", "night"])
            .expect_error(2, &["\"night\" is no point of machine db01"]);
        scene
            .verb(&[verb, "db01", "--to", "evening"])
            .expect_error(7, &["point 2 is damaged", "points list"]);
    }
    assert_eq!(scene.states(), ["replicating", "replicating"]);
    assert_eq!(scene.targets(), newest);

    // One of them alone: a commit, or an undo, of both is refused before the first of them.
    scene.verb(&["failover", "app01", "--to", "noon"]).expect_done();
    scene
        .verb(&["commit", GROUP])
        .expect_error(5, &["db01", "no failover", "none of its machines"]);
    assert_eq!(scene.states(), ["awaiting-commit", "replicating"]);
    scene.verb(&["failover", GROUP, "--to", "noon"]).expect_done();
    assert_eq!(scene.targets(), noon);
    scene.verb(&["commit", "db01"]).expect_done();
    scene
        .verb(&["undo", GROUP])
        .expect_error(5, &["app01", "none of its machines"]);
    scene
        .verb(&["cancel", GROUP])
        .expect_error(5, &["db01", "none of its machines"]);
    scene.verb(&["commit", GROUP, "--keep-undo", "1h"]).expect_done();
    assert_eq!(scene.states(), ["committed", "committed"]);
    scene.lab.stop();
}

/// The second machine fails when the first is there already: the error says how far it came, and both ways lead out of it.
#[test]
fn a_group_that_is_failed_over_by_half_goes_on_or_back() {
    let mut scene = scene(&["app01", "db01"]);
    let noon = scene.point(&[0, 1], "noon", 10);
    scene.point(&[0, 1], "evening", 20);
    scene.wait_in_step();
    let newest = scene.sources();
    let (place, kept) = (scene.machines[1].2.clone(), scene.lab.scratch.join("kept.img"));
    for goes_on in [true, false] {
        std::fs::rename(&place, &kept).expect("it can be moved");
        let other = scene.lab.scratch.sparse("target-db01.img", SIZE);
        scene.verb(&["failover", GROUP, "--to", "noon"]).expect_error(
            8,
            &[
                "failover done with app01",
                "machine db01",
                "another file",
                "goes on",
                "cancel",
            ],
        );
        assert_eq!(scene.states(), ["awaiting-commit", "failover-failed"]);
        assert_eq!(
            digest(&other, SIZE),
            blake3::hash(&vec![0; 8 << 20]),
            "it is not ours"
        );
        std::fs::rename(&kept, &place).expect("it can be moved");
        if goes_on {
            scene.verb(&["failover", GROUP, "--to", "noon"]).expect_done();
            assert_eq!(scene.targets(), noon);
        }
        scene.verb(&["cancel", GROUP]).expect_done();
        assert_eq!(scene.states(), ["replicating", "replicating"]);
        assert_eq!(scene.targets(), newest);
    }
    scene.lab.stop();
}
