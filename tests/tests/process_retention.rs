//! The retention store as an operator meets it: checked, looked into and rebuilt, with and without an agent; damaged, set back,
//! replaced. On files, without root.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use mt_tests::agent::{Said, wait_until};
use mt_tests::data::{Fill, MIB, digest, fill, write_at};
use mt_tests::disks::{Canaries, run, text};
use mt_tests::lab::Lab;
use mt_tests::needs;
use mt_tests::stores::{BLOCK, data_of, flip};
use serde_json::Value;

const SIZE: u64 = 16 * MIB;
const MACHINE: &str = "db01";

struct Scene {
    lab: Lab,
    source: PathBuf,
    target: PathBuf,
    canaries: Canaries,
    /// What the source was at each point: number and digest.
    points: Vec<(u64, blake3::Hash)>,
}

/// A machine with one disk and as many points as asked for. Each epoch writes blocks 8 to 11 anew, and one block of its own.
fn scene(points: u8) -> Scene {
    let mut lab = Lab::new();
    let source = lab.scratch.sparse("source.img", SIZE);
    fill(&source, SIZE, Fill::HalfZero, 1);
    let target = lab.scratch.sparse("target.img", SIZE);
    fill(&target, SIZE, Fill::HalfZero, 1);
    let id = lab.add_disk(&target);
    let canaries = Canaries::new(&lab.scratch, 1);
    for path in canaries.paths() {
        lab.add_disk(path);
    }
    lab.keep_points_in(&lab.scratch.join("retention"));
    lab.start();
    lab.verb(&["retention", "init"]).expect_done();
    lab.pair_over(&format!("{MACHINE}/scsi0:0"), &id);
    let mut scene = Scene {
        lab,
        source,
        target,
        canaries,
        points: Vec::new(),
    };
    for number in 1..=points {
        scene.epoch(number);
    }
    scene
}

impl Scene {
    fn send(&self) -> Said {
        self.lab.epoch(MACHINE, &[("scsi0:0", &self.source)], &[])
    }

    fn epoch(&mut self, number: u8) {
        write_at(&self.source, 8 * BLOCK, &vec![number; 4 * 4096]);
        write_at(&self.source, (100 + u64::from(number)) * BLOCK, &[number; 4096]);
        let said = self.send().expect_done();
        let point = said.event("result")["point"].as_u64().expect("a number");
        self.points.push((point, digest(&self.source, SIZE)));
    }

    fn store(&self) -> PathBuf {
        self.lab.scratch.join("retention").join("machines").join(MACHINE)
    }

    /// A verb with the configuration, as one uses it where no agent runs.
    fn offline(&self, args: &[&str]) -> Said {
        let config = self.lab.config_path();
        let mut args = args.to_vec();
        args.extend(["--config", text(&config)]);
        mt_tests::agent::run(self.lab.scratch.path(), args)
    }

    fn inspect(&self, more: &[&str]) -> Value {
        let args = [&["retention", "inspect", MACHINE, "--json"], more].concat();
        self.offline(&args).expect_done().json()
    }

    fn data_of(&self, epoch: u64, block: u64) -> (PathBuf, u64) {
        data_of(&self.lab, MACHINE, epoch, block)
    }

    /// The disk trails what was acknowledged.
    fn wait_in_step(&self) {
        wait_until("the newest epoch to be on the disk", || {
            digest(&self.target, SIZE) == digest(&self.source, SIZE)
        });
    }

    #[track_caller]
    fn roll_to(&self, point: u64, wanted: blake3::Hash) {
        self.lab
            .verb(&["roll", MACHINE, "--to", &point.to_string()])
            .expect_done();
        assert_eq!(digest(&self.target, SIZE), wanted, "point {point}");
    }
}

/// All files below a folder with their digests: what only reads leaves them as they were.
fn tree(folder: &Path) -> Vec<(PathBuf, u64, blake3::Hash)> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("a folder") {
            let path = entry.expect("it can be listed").path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let len = path.metadata().expect("it is there").len();
                let hash = digest(&path, len);
                found.push((path, len, hash));
            }
        }
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    found
}

fn damaged(points: &[Value]) -> Vec<u64> {
    points
        .iter()
        .filter(|point| !point["damaged"].is_null())
        .filter_map(|point| point["point"].as_u64())
        .collect()
}

/// One byte of the data of one point rots. It is named by a check, refused by a roll, and remembered over a restart; every other
/// point is what the source was.
#[test]
fn a_byte_that_rots_costs_the_point_that_needs_it_and_no_other() {
    let scene = scene(4);
    let Scene { lab, points, .. } = &scene;
    lab.verb(&["retention", "check"]).expect_done();
    let hit = points[1].0;
    let (file, offset) = scene.data_of(hit, 9);
    flip(&file, offset + 77);
    assert_eq!(
        damaged(&lab.points(MACHINE)),
        [0_u64; 0],
        "nothing has looked at it yet"
    );

    let said = lab.verb(&["retention", "check", MACHINE, "--json"]);
    assert_eq!(said.code(), Some(7), "{said}");
    let document = said.json();
    let machine = &document["machines"][0];
    assert_eq!(
        machine["findings"].as_array().map(Vec::len),
        Some(1),
        "{machine:#}"
    );
    assert!(
        machine["findings"][0]["what"].to_string().contains("digest"),
        "{machine:#}"
    );
    assert_eq!(
        machine["damaged"].as_array().map(Vec::len),
        Some(1),
        "{machine:#}"
    );
    assert_eq!(machine["damaged"][0]["point"], hit);
    let said = lab.verb(&["retention", "check"]);
    assert_eq!(said.code(), Some(7), "{said}");
    assert!(said.stdout.contains("all others can"), "{said}");

    assert_eq!(damaged(&lab.points(MACHINE)), [hit]);
    lab.verb(&["roll", MACHINE, "--to", &hit.to_string()])
        .expect_error(7, &["damaged", "digest"]);
    lab.verb(&["points", "export", MACHINE, &hit.to_string(), "--detach"])
        .expect_error(7, &["damaged"]);
    for (point, wanted) in points.iter().filter(|(point, _)| *point != hit) {
        scene.roll_to(*point, *wanted);
    }
    scene.canaries.assert_untouched();
}

/// A killed agent that starts again knows which points are damaged, without having read their data.
#[test]
fn damage_is_remembered_over_a_kill_and_found_by_a_rebuild() {
    let mut scene = scene(3);
    let hit = scene.points[0].0;
    let (file, offset) = scene.data_of(hit, 10);
    flip(&file, offset);
    assert_eq!(scene.lab.verb(&["retention", "check"]).code(), Some(7));
    scene.lab.crash_and_restart();
    assert_eq!(damaged(&scene.lab.points(MACHINE)), [hit]);
    scene.lab.stop();

    // The catalogue is lost, and with it the note; a rebuild reads everything and finds it again.
    std::fs::remove_file(scene.store().join("catalogue.db")).expect("it is there");
    let said = scene.offline(&["retention", "rebuild", MACHINE, "--json"]);
    assert_eq!(said.code(), Some(7), "{said}");
    assert_eq!(said.json()["damaged_segments"], 1);
    scene.lab.start();
    // It was done without the agent, and is in its log.
    let audit = scene.lab.verb(&["audit", "--json"]).expect_done().json();
    let noted = audit["entries"]
        .as_array()
        .expect("entries are a list")
        .iter()
        .any(|entry| {
            let what = entry["what"].as_str().unwrap_or_default();
            what.starts_with("retention rebuild db01") && entry["result"] == "done: 1 damaged segments"
        });
    assert!(noted, "{audit:#}");
    assert_eq!(damaged(&scene.lab.points(MACHINE)), [hit]);
    let (point, wanted) = scene.points[2];
    scene.roll_to(point, wanted);
    scene.lab.stop();
}

/// `check` and `inspect` need no agent and leave every byte as it was; a killed agent's store as well.
#[test]
fn a_store_is_looked_at_without_an_agent_and_not_touched() {
    let mut scene = scene(3);
    scene.lab.take_target().kill_9();
    let before = tree(&scene.lab.scratch.join("retention"));
    let said = scene.offline(&["retention", "check", "--json"]).expect_done();
    let document = said.json();
    assert_eq!(document["machines"][0]["points"], 4, "{document:#}");
    assert_eq!(document["machines"][0]["machine"], MACHINE);
    let view = scene.inspect(&[]);
    assert_eq!(view["superblocks"].as_array().map(Vec::len), Some(2), "{view:#}");
    assert!(view["superblocks"][0]["fault"].is_null());
    let text_view = scene
        .offline(&["retention", "inspect", MACHINE, "--records"])
        .expect_done()
        .stdout;
    for word in ["SUPER.a", "generation 1", "AFTER", "COMMIT", "end"] {
        assert!(text_view.contains(word), "{word} is not in\n{text_view}");
    }
    scene
        .offline(&["retention", "inspect", MACHINE, "--segment", "77"])
        .expect_error(2, &["no segment 77"]);
    scene
        .offline(&["retention", "check", "../db01"])
        .expect_error(2, &["no store", "db01"]);
    scene
        .offline(&["retention", "inspect", "nobody\u{1b}[2J"])
        .expect_error(2, &["no store"]);
    let nowhere = scene.lab.scratch.join("nowhere");
    scene
        .offline(&["retention", "check", "--folder", text(&nowhere)])
        .expect_error(4, &["no retention volume"]);
    assert_eq!(tree(&scene.lab.scratch.join("retention")), before);
    scene.lab.start();
    let (point, wanted) = scene.points[0];
    scene.roll_to(point, wanted);
    scene.lab.stop();
}

/// The catalogue is lost, cut, of another form, full of nonsense, or another store's: the store opens all the same, and the
/// catalogue is there again afterwards.
#[test]
fn a_catalogue_that_is_no_good_is_made_anew() {
    let mut scene = scene(2);
    scene.lab.stop();
    let file = scene.store().join("catalogue.db");
    let good = std::fs::read(&file).expect("it is there");
    for round in 0..5 {
        match round {
            0 => std::fs::remove_file(&file).expect("it is there"),
            1 => std::fs::write(&file, &good[..good.len() / 2]).expect("there is room"),
            2 => std::fs::write(&file, vec![0x5a; 20_000]).expect("there is room"),
            3 => {
                let mut newer = good.clone();
                newer[63] = 9;
                std::fs::write(&file, newer).expect("there is room");
            }
            _ => std::fs::write(&file, "").expect("there is room"),
        }
        scene.lab.start();
        assert_eq!(scene.lab.points(MACHINE).len(), 3, "round {round}");
        scene.lab.verb(&["retention", "rebuild", MACHINE]).expect_done();
        scene.lab.stop();
        let said = scene.offline(&["retention", "check", "--json"]).expect_done();
        let machine = said.json()["machines"][0].clone();
        assert!(
            machine["catalogue_unread"].is_null(),
            "round {round}: {machine:#}"
        );
    }
    scene.lab.start();
    let (point, wanted) = scene.points[0];
    scene.roll_to(point, wanted);
    scene.lab.stop();
}

/// One superblock lost is put right by itself; both lost are an error that says what to do, and that does it.
#[test]
fn superblocks_that_are_lost_are_made_again() {
    let mut scene = scene(2);
    scene.lab.stop();
    let [a, b] = ["SUPER.a", "SUPER.b"].map(|name| scene.store().join(name));
    flip(&a, 100);
    let said = scene.offline(&["retention", "check"]);
    assert_eq!(said.code(), Some(7), "{said}");
    assert!(
        said.stdout.contains("SUPER.a") && said.stdout.contains("all points"),
        "{said}"
    );
    scene.lab.start();
    assert_eq!(damaged(&scene.lab.points(MACHINE)), [0_u64; 0]);
    scene.lab.verb(&["retention", "check"]).expect_done();
    scene.lab.stop();

    flip(&a, 100);
    flip(&b, 200);
    let said = scene.offline(&["retention", "check"]);
    assert_eq!(said.code(), Some(7), "{said}");
    assert!(said.stdout.contains("neither superblock"), "{said}");
    scene.lab.start();
    scene
        .lab
        .verb(&["points", "list", MACHINE])
        .expect_error(7, &["neither superblock"]);
    scene.lab.verb(&["retention", "rebuild", MACHINE]).expect_done();
    let (point, wanted) = scene.points[0];
    scene.roll_to(point, wanted);
    scene.lab.verb(&["retention", "check"]).expect_done();
    scene.lab.stop();
}

/// A newer agent's store, and a volume whose mark a newer agent wrote, are left as they are.
#[test]
fn a_newer_store_is_left_alone() {
    let mut scene = scene(1);
    scene.lab.stop();
    for name in ["SUPER.a", "SUPER.b"] {
        let file = std::fs::File::options()
            .write(true)
            .open(scene.store().join(name))
            .expect("it is there");
        file.write_all_at(&[7], 8).expect("it can be written");
    }
    scene.lab.start();
    scene
        .lab
        .verb(&["points", "list", MACHINE])
        .expect_error(7, &["format 7", "newer agent"]);
    scene.send().expect_error(6, &["format 7"]);
    scene.lab.stop();
    let mark = scene.lab.scratch.join("retention/master-target-retention.json");
    let text = std::fs::read_to_string(&mark).expect("it is there");
    std::fs::write(&mark, text.replace("\"format\":1", "\"format\":3")).expect("there is room");
    scene.lab.start();
    scene
        .lab
        .verb(&["points", "list", MACHINE])
        .expect_error(7, &["form 3", "newer agent"]);
    scene.lab.stop();
}

/// The appliance is set back to a snapshot of its virtual machine, while its target disks are not: its state, its retention volume,
/// or both are older than what a source was promised.
#[test]
fn an_appliance_that_was_set_back_is_noticed() {
    let mut scene = scene(2);
    scene.lab.stop();
    let (state, retention) = (
        scene.lab.scratch.join("state"),
        scene.lab.scratch.join("retention"),
    );
    let [old_state, old_retention, new_retention] =
        ["old-state", "old-retention", "new-retention"].map(|name| scene.lab.scratch.join(name));
    run("cp", &["--archive", text(&state), text(&old_state)]);
    run("cp", &["--archive", text(&retention), text(&old_retention)]);
    let set_back = |now: &Path, before: &Path| {
        std::fs::remove_dir_all(now).expect("it is there");
        run("cp", &["--archive", text(before), text(now)]);
    };
    scene.lab.start();
    scene.epoch(3);
    // A failover raises the generation, and is taken back.
    scene
        .lab
        .verb(&["failover", MACHINE, "--to", "latest"])
        .expect_done();
    scene.lab.verb(&["cancel", MACHINE]).expect_done();
    scene.epoch(4);
    scene.wait_in_step();
    let newest = digest(&scene.target, SIZE);
    scene.lab.stop();
    run("cp", &["--archive", text(&retention), text(&new_retention)]);
    let generation = |lab: &Lab| {
        let document = lab.verb(&["pair", "list", "--json"]).expect_done().json();
        document["pairs"][0]["generation"].as_u64().expect("a number")
    };

    // The retention volume alone: known without any source.
    set_back(&retention, &old_retention);
    scene.lab.start();
    scene
        .lab
        .verb(&["points", "list", MACHINE])
        .expect_error(7, &["resync needed", "set back"]);
    scene
        .lab
        .verb(&["roll", MACHINE, "--to", "latest"])
        .expect_error(7, &["resync needed", "set back"]);
    scene.send().expect_error(6, &["resync needed", "set back"]);
    assert_eq!(digest(&scene.target, SIZE), newest);
    scene.lab.stop();

    // Both: the source knows better.
    set_back(&state, &old_state);
    scene.lab.start();
    scene.send().expect_error(6, &["resync needed", "set back"]);
    let alarms = scene.lab.status()["alarms"].to_string();
    assert!(alarms.contains("pair-needs-resync"), "{alarms}");
    assert_eq!(digest(&scene.target, SIZE), newest);
    scene.lab.stop();

    // The state alone: the fence that the store remembers stands, and every point is there.
    set_back(&retention, &new_retention);
    scene.lab.start();
    assert_eq!(generation(&scene.lab), 1, "as it was in the old state");
    assert!(scene.lab.points(MACHINE).len() >= 5);
    assert!(generation(&scene.lab) > 1, "as the store knows it");
    let (point, wanted) = scene.points[3];
    scene.roll_to(point, wanted);
    scene.lab.stop();

    // And out of all this again.
    set_back(&retention, &old_retention);
    scene.lab.start();
    scene.send().expect_error(6, &["resync needed"]);
    scene
        .lab
        .verb(&["retention", "reset", MACHINE, "--drop-points-of", MACHINE])
        .expect_done();
    scene.send().expect_done();
    scene.wait_in_step();
    scene.canaries.assert_untouched();
    scene.lab.stop();
}

/// What broke: a store was forgotten first and removed then; an agent that died in between found a whole store that nobody
/// knew of, and took it for its own, with points that no longer fit the disks. Here removing fails, the agent is killed, and the
/// next one must not offer any of the old points.
#[test]
fn a_store_that_was_dropped_by_half_is_never_used_again() {
    needs!("chattr");
    if !nix::unistd::geteuid().is_root() {
        mt_tests::skip::skip(
            mt_tests::test_name!(),
            "only root can keep a folder from being removed",
        );
        return;
    }
    let mut scene = scene(3);
    let old: Vec<u64> = scene.points.iter().map(|(point, _)| *point).collect();
    let store = scene.store();
    let keep = |flag: &str| {
        run("chattr", &[flag, text(&store)]);
    };
    keep("+i");
    let said = scene
        .lab
        .verb(&["retention", "reset", MACHINE, "--drop-points-of", MACHINE]);
    let begun = said.code();
    scene.lab.crash_and_restart();
    let named = scene.lab.verb(&["points", "list", MACHINE, "--json"]);
    keep("-i");
    assert_ne!(begun, Some(0), "{said}");
    assert_ne!(named.code(), Some(0), "the old store is offered again: {named}");
    // The disk goes its own way: an old store over it would be a lie.
    scene.epoch(9);
    let points = scene.lab.points(MACHINE);
    assert_eq!(
        points.len(),
        2,
        "before-failback and the new one, none of {old:?}: {points:?}"
    );
    let (newest, wanted) = scene.points[scene.points.len() - 1];
    scene.roll_to(newest, wanted);
    scene.canaries.assert_untouched();
    scene.lab.stop();
}
