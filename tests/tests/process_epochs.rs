//! Epochs come in, points are kept, the disks are brought to any of them and back: on files, without root.

use std::path::{Path, PathBuf};
use std::time::Duration;

use mt_tests::agent::{Running, wait_until};
use mt_tests::data::{Fill, MIB, Random, change_blocks, digest, fill};
use mt_tests::disks::{Canaries, run, text};
use mt_tests::lab::Lab;
use mt_tests::needs;
use serde_json::Value;

const SIZE: u64 = 24 * MIB;
const MACHINE: &str = "db01";

struct Scene {
    lab: Lab,
    sources: Vec<PathBuf>,
    targets: Vec<PathBuf>,
    canaries: Canaries,
}

/// A machine of `count` disks whose target disks hold an older state, a target that keeps points, and canaries.
fn scene(count: usize) -> Scene {
    let mut lab = Lab::new();
    let (mut sources, mut targets, mut ids) = (Vec::new(), Vec::new(), Vec::new());
    for index in 0..count {
        let seed = u64::try_from(index).expect("few disks");
        let source = lab.scratch.sparse(&format!("source-{index}.img"), SIZE);
        fill(&source, SIZE, Fill::HalfZero, seed);
        let target = lab.scratch.sparse(&format!("target-{index}.img"), SIZE);
        fill(&target, SIZE, Fill::HalfZero, seed);
        change_blocks(&target, SIZE, 4096, 40, 77 + seed);
        ids.push(lab.add_disk(&target));
        sources.push(source);
        targets.push(target);
    }
    let canaries = Canaries::new(&lab.scratch, 2);
    for path in canaries.paths() {
        lab.add_disk(path);
    }
    lab.keep_points_in(&lab.scratch.join("retention"));
    lab.start();
    lab.verb(&["retention", "init"]).expect_done();
    for (index, id) in ids.iter().enumerate() {
        lab.pair_over(&format!("{MACHINE}/scsi0:{index}"), id);
    }
    Scene {
        lab,
        sources,
        targets,
        canaries,
    }
}

impl Scene {
    fn send(&self, more: &[&str]) -> mt_tests::agent::Said {
        let names: Vec<String> = (0..self.sources.len())
            .map(|index| format!("scsi0:{index}"))
            .collect();
        let disks: Vec<(&str, &Path)> = names
            .iter()
            .map(String::as_str)
            .zip(self.sources.iter().map(PathBuf::as_path))
            .collect();
        self.lab.epoch(MACHINE, &disks, more)
    }

    /// Digests of all source disks.
    fn sources(&self) -> Vec<blake3::Hash> {
        self.sources.iter().map(|path| digest(path, SIZE)).collect()
    }

    fn targets(&self) -> Vec<blake3::Hash> {
        self.targets.iter().map(|path| digest(path, SIZE)).collect()
    }

    #[track_caller]
    fn roll(&self, to: &str) {
        self.lab.verb(&["roll", MACHINE, "--to", to]).expect_done();
    }
}

/// The thin whole path: two epochs of one disk in, the points listed, to the first, compared, and back to the latest.
#[test]
fn two_epochs_come_in_and_both_can_be_reached() {
    let mut scene = scene(1);
    let before = scene.targets();
    let result = scene
        .send(&["--point-name", "first", "--tag", "by=test"])
        .expect_done()
        .event("result");
    assert_eq!(result["point"], result["epoch"]);
    let first = scene.sources();
    change_blocks(&scene.sources[0], SIZE, 4096, 30, 5);
    scene.send(&["--consistency", "application"]).expect_done();
    let second = scene.sources();
    assert_ne!(first, second);

    let points = scene.lab.points(MACHINE);
    assert_eq!(points.len(), 3, "{points:#?}");
    assert_eq!(points[0]["name"], "before-failback");
    assert_eq!(
        (&points[1]["name"], &points[1]["tags"][0]),
        (&"first".into(), &"by=test".into())
    );
    assert_eq!(points[2]["consistency"], "application");

    scene.roll("first");
    assert_eq!(scene.targets(), first);
    scene.roll("latest");
    assert_eq!(scene.targets(), second);
    scene.roll("before-failback");
    assert_eq!(scene.targets(), before);
    scene.roll("latest-application");
    assert_eq!(scene.targets(), second);
    scene.canaries.assert_untouched();
    scene.lab.stop();
}

/// What broke: a session numbers its disks as the source names them, a machine sorts them by name ("scsi0:10" comes before
/// "scsi0:2"), and the one number was taken for the other: what one disk held was written to another of the same machine. Disks
/// are named in three orders, with and without recovery points, and each gets its own content, at every point.
#[test]
fn the_order_in_which_disks_are_named_does_not_matter() {
    const NAMES: [&str; 3] = ["scsi0:2", "scsi0:10", "scsi0:1"];
    for with_points in [false, true] {
        let mut lab = Lab::new();
        if with_points {
            lab.keep_points_in(&lab.scratch.join("retention"));
        }
        let (mut sources, mut targets, mut ids) = (Vec::new(), Vec::new(), Vec::new());
        for (seed, name) in (40..).zip(NAMES) {
            let source = lab.scratch.sparse(&format!("source-{name}"), SIZE);
            fill(&source, SIZE, Fill::HalfZero, seed);
            let target = lab.scratch.sparse(&format!("target-{name}"), SIZE);
            ids.push(lab.add_disk(&target));
            sources.push(source);
            targets.push(target);
        }
        lab.start();
        if with_points {
            lab.verb(&["retention", "init"]).expect_done();
        }
        for (name, id) in NAMES.iter().zip(&ids) {
            lab.pair(&format!("{MACHINE}/{name}"), id);
        }
        let hashes = |paths: &[PathBuf]| -> Vec<blake3::Hash> {
            paths.iter().map(|path| digest(path, SIZE)).collect()
        };
        let mut sent = Vec::new();
        for (seed, order) in (90..).zip([[0, 1, 2], [1, 2, 0], [2, 1, 0]]) {
            for (at, source) in (0..).zip(&sources) {
                change_blocks(source, SIZE, 4096, 20, seed * 10 + at);
            }
            let disks = order.map(|at: usize| (NAMES[at], sources[at].as_path()));
            lab.epoch(MACHINE, &disks, &[]).expect_done();
            sent.push(hashes(&sources));
            if !with_points {
                assert_eq!(hashes(&targets), hashes(&sources), "named as {disks:?}");
            }
        }
        if with_points {
            let points = numbers(&lab.points(MACHINE));
            let points = &points[points.len() - sent.len()..];
            for (point, wanted) in points.iter().zip(&sent).rev() {
                lab.verb(&["roll", MACHINE, "--to", &point.to_string()])
                    .expect_done();
                assert_eq!(&hashes(&targets), wanted, "point {point}");
            }
        }
        lab.stop();
    }
}

/// The newest points of the source, oldest first, as numbers.
fn numbers(points: &[Value]) -> Vec<u64> {
    points
        .iter()
        .filter_map(|point| point["point"].as_u64())
        .collect()
}

/// Three disks of one machine, ten epochs, the target killed at random thirty times and more while epochs come in and while
/// disks are rolled: whatever was promised is there, every point is what the source was, and nothing else changed.
#[test]
fn killed_at_random_every_promised_point_is_what_the_source_was() {
    let kills_wanted: u64 = std::env::var("MT_KILLS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(30);
    let epochs: u64 = std::env::var("MT_EPOCHS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(10);
    let seed = std::env::var("MT_SEED")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(20_260_302);
    println!("MT_SEED={seed} MT_KILLS={kills_wanted} MT_EPOCHS={epochs}");
    let mut random = Random::new(seed);
    let mut scene = scene(3);
    let mut promised: Vec<(u64, Vec<blake3::Hash>)> = Vec::new();
    let mut kills = 0;
    let per_epoch = kills_wanted.div_ceil(epochs + epochs / 3);
    for epoch in 0..epochs {
        for path in &scene.sources {
            change_blocks(path, SIZE, 4096, 20 + random.below(60), random.number());
        }
        let names = ["scsi0:0", "scsi0:1", "scsi0:2"];
        for _ in 0..per_epoch {
            let disks: Vec<(&str, &Path)> = names
                .iter()
                .copied()
                .zip(scene.sources.iter().map(PathBuf::as_path))
                .collect();
            let command = scene
                .lab
                .epoch_command(scene.lab.address, MACHINE, &disks, &["--retry-for", "0"]);
            let sending = Running::start(command, scene.lab.scratch.path());
            std::thread::sleep(Duration::from_millis(random.below(400)));
            scene.lab.take_target().kill_9();
            kills += 1;
            let said = sending.wait();
            scene.lab.start();
            if said.code() == Some(0) {
                let point = said.event("result")["point"].as_u64().expect("a number");
                promised.push((point, scene.sources()));
            }
        }
        let said = scene
            .send(&["--point-name", &format!("epoch-{epoch}")])
            .expect_done();
        promised.push((
            said.event("result")["point"].as_u64().expect("a number"),
            scene.sources(),
        ));
        if epoch % 3 == 2 {
            let choice = usize::try_from(random.below(promised.len() as u64)).expect("few points");
            let (point, wanted) = promised[choice].clone();
            for _ in 0..per_epoch {
                let begun = scene
                    .lab
                    .verb(&["roll", MACHINE, "--to", &point.to_string(), "--no-wait"]);
                assert_eq!(begun.code(), Some(0), "{begun}");
                std::thread::sleep(Duration::from_millis(random.below(120)));
                scene.lab.take_target().kill_9();
                kills += 1;
                scene.lab.start();
            }
            scene.roll(&point.to_string());
            assert_eq!(scene.targets(), wanted, "point {point} after {kills} kills");
            scene.roll("latest");
            assert_eq!(scene.targets(), scene.sources(), "the latest after {kills} kills");
        }
    }
    let offered = numbers(&scene.lab.points(MACHINE));
    for (point, _) in &promised {
        assert!(
            offered.contains(point),
            "point {point} was promised and is gone: {offered:?}"
        );
    }
    // Every promised point, looked at over NBD; every third, rolled to.
    for (index, (point, wanted)) in promised.iter().enumerate() {
        if index % 3 == 0 {
            scene.roll(&point.to_string());
            assert_eq!(&scene.targets(), wanted, "point {point}");
        }
    }
    scene.roll("latest");
    assert_eq!(scene.targets(), scene.sources());
    assert!(kills >= kills_wanted, "{kills} kills");
    println!("{kills} kills, {} points promised, all reached", promised.len());
    scene.canaries.assert_untouched();
    scene.lab.stop();
}

/// Any point can be looked at while the disks stay as they are; what is written to an overlay is thrown away.
#[test]
fn a_point_is_looked_at_and_written_to_and_no_disk_changes() {
    needs!("nbdcopy", "nbdinfo", "qemu-img", "qemu-io");
    let mut scene = scene(2);
    scene.send(&["--point-name", "first"]).expect_done();
    let first = scene.sources();
    change_blocks(&scene.sources[0], SIZE, 4096, 30, 5);
    scene.send(&[]).expect_done();
    let export = |more: &[&str]| {
        let mut args = vec!["points", "export", MACHINE, "first", "--detach", "--json"];
        args.extend_from_slice(more);
        scene.lab.verb(&args).expect_done().json()["exports"][0].clone()
    };
    let uri = |export: &Value, disk: &str| {
        format!(
            "nbd+unix:///{disk}?socket={}",
            export["socket"].as_str().expect("a path")
        )
    };
    let read_only = export(&[]);
    let listed = run("nbdinfo", &["--list", &uri(&read_only, "")]);
    assert!(
        listed.contains("scsi0:0") && listed.contains("scsi0:1"),
        "{listed}"
    );
    for (index, wanted) in first.iter().enumerate() {
        let copy = scene.lab.scratch.join(&format!("copy-{index}.img"));
        run(
            "nbdcopy",
            &[&uri(&read_only, &format!("scsi0:{index}")), text(&copy)],
        );
        assert_eq!(digest(&copy, SIZE), *wanted, "disk {index} by nbdcopy");
        let converted = scene.lab.scratch.join(&format!("converted-{index}.img"));
        let from = uri(&read_only, &format!("scsi0:{index}"));
        run(
            "qemu-img",
            &["convert", "-f", "raw", "-O", "raw", &from, text(&converted)],
        );
        assert_eq!(digest(&converted, SIZE), *wanted, "disk {index} by qemu-img");
    }
    let writable = export(&["--writable"]);
    let into = uri(&writable, "scsi0:1");
    run(
        "qemu-io",
        &[
            "-f",
            "raw",
            "-c",
            "write -P 0xa5 4k 64k",
            "-c",
            "read -P 0xa5 4k 64k",
            &into,
        ],
    );
    // Replication goes on meanwhile.
    change_blocks(&scene.sources[1], SIZE, 4096, 30, 6);
    let copying = std::process::Command::new("nbdcopy")
        .arg(uri(&read_only, "scsi0:0"))
        .arg(scene.lab.scratch.join("beside.img"))
        .spawn();
    scene.send(&[]).expect_done();
    let copied = copying
        .and_then(|mut copying| copying.wait())
        .expect("nbdcopy can be started");
    assert!(copied.success(), "copied while an epoch came in: {copied}");
    assert_eq!(digest(&scene.lab.scratch.join("beside.img"), SIZE), first[0]);
    run("qemu-io", &["-f", "raw", "-c", "read -P 0xa5 4k 64k", &into]);
    // What is looked at stays, whoever wants it gone; the policy, which no longer wants it, takes its turn afterwards.
    scene
        .lab
        .verb(&["policy", MACHINE, "--minimum-age", "0s"])
        .expect_done();
    scene
        .lab
        .verb(&["points", "delete", MACHINE, "first"])
        .expect_error(5, &["being looked at", "end its export"]);
    for number in [&read_only["id"], &writable["id"]] {
        scene
            .lab
            .verb(&["points", "unexport", &number.to_string()])
            .expect_done();
    }
    scene.lab.verb(&["roll", MACHINE, "--to", "first"]).expect_done();
    assert_eq!(scene.targets(), first, "the overlay went nowhere");
    scene.roll("latest");
    assert_eq!(scene.targets(), scene.sources());
    scene
        .lab
        .verb(&["points", "delete", MACHINE, "first"])
        .expect_done();
    scene.canaries.assert_untouched();
    scene.lab.stop();
}

#[track_caller]
fn failover_state(lab: &Lab) -> String {
    let document = lab.verb(&["groups", "--json"]).expect_done().json();
    document["machines"][0]["failover"]
        .as_str()
        .expect("a word")
        .to_owned()
}

/// Over, back, over again, committed, undone, and back to replication; each verb twice.
#[test]
fn failover_commit_cancel_and_undo_lead_where_they_say() {
    let mut scene = scene(2);
    let before = scene.targets();
    scene.send(&["--point-name", "good"]).expect_done();
    let good = scene.sources();
    change_blocks(&scene.sources[0], SIZE, 4096, 30, 5);
    scene.send(&["--point-name", "bad"]).expect_done();
    let latest = scene.sources();

    scene
        .lab
        .verb(&["commit", MACHINE])
        .expect_error(5, &["replicating", "there is no failover"]);
    scene
        .lab
        .verb(&["undo", MACHINE])
        .expect_error(5, &["no failover that was committed"]);
    scene.lab.verb(&["cancel", MACHINE]).expect_done();
    assert_eq!(failover_state(&scene.lab), "replicating");

    scene
        .lab
        .verb(&["failover", MACHINE, "--to", "good"])
        .expect_done();
    assert_eq!(failover_state(&scene.lab), "awaiting-commit");
    assert_eq!(scene.targets(), good);
    let point = scene.lab.points(MACHINE)[1]["point"].to_string();
    scene
        .lab
        .verb(&["failover", MACHINE, "--to", &point])
        .expect_done();
    scene
        .lab
        .verb(&["failover", MACHINE, "--to", "good"])
        .expect_done();
    // The disks are let go of by now. Whoever names another point must not be told that it is so already: a commit of the
    // wrong point would follow.
    for other in ["0", "before-failback", "latest"] {
        scene
            .lab
            .verb(&["failover", MACHINE, "--to", other])
            .expect_error(5, &["failed over to point", "cancel"]);
    }
    // Its source is fenced: nothing of it arrives.
    scene
        .send(&[])
        .expect_error(6, &["awaiting-commit", "nothing of its source is taken"]);
    scene
        .lab
        .send("db01/scsi0:0", &scene.sources[0], &[])
        .expect_error(6, &["nothing of its source is taken"]);
    assert_eq!(scene.targets(), good);

    scene.lab.verb(&["cancel", MACHINE]).expect_done();
    assert_eq!(failover_state(&scene.lab), "replicating");
    assert_eq!(scene.targets(), latest, "back to where replication was");
    change_blocks(&scene.sources[1], SIZE, 4096, 30, 6);
    scene.send(&[]).expect_done();

    scene
        .lab
        .verb(&["failover", MACHINE, "--to", "latest"])
        .expect_done();
    assert_eq!(scene.targets(), scene.sources());
    scene
        .lab
        .verb(&["commit", MACHINE, "--keep-undo", "1h"])
        .expect_done();
    scene.lab.verb(&["commit", MACHINE]).expect_done();
    scene
        .lab
        .verb(&["cancel", MACHINE])
        .expect_error(5, &["was committed", "undo"]);
    // A restart forgets nothing.
    scene.lab.crash_and_restart();
    assert_eq!(failover_state(&scene.lab), "committed");
    scene.lab.verb(&["undo", MACHINE]).expect_done();
    scene.lab.verb(&["undo", MACHINE]).expect_done();
    assert_eq!(failover_state(&scene.lab), "undone");
    assert_eq!(scene.targets(), before, "as it was before failback");
    scene.lab.verb(&["cancel", MACHINE]).expect_done();
    scene.send(&[]).expect_done();
    wait_until("the new epoch to be on the disks", || {
        scene.targets() == scene.sources()
    });
    scene.canaries.assert_untouched();
    scene.lab.stop();
}

/// Two requests at once: one begins, the other joins it or is told; the disks end at one point.
#[test]
fn verbs_that_come_at_once_do_not_mix() {
    let mut scene = scene(1);
    scene.send(&["--point-name", "first"]).expect_done();
    let first = scene.sources();
    change_blocks(&scene.sources[0], SIZE, 4096, 200, 5);
    scene.send(&[]).expect_done();
    let begin = |verb: &str| {
        let mut command = mt_tests::agent::command([verb, MACHINE, "--to", "first"]);
        command.env("MT_AGENT_SOCKET", scene.lab.socket());
        Running::start(command, scene.lab.scratch.path())
    };
    let at_once: Vec<Running> = (0..4).map(|_| begin("failover")).collect();
    for running in at_once {
        let said = running.wait();
        // Whoever comes while the winner has not stored its state yet is told of the job.
        assert!(
            said.code() == Some(0) || (said.code() == Some(5) && said.stderr.contains("job under way")),
            "{said}"
        );
    }
    wait_until("the failover", || failover_state(&scene.lab) == "awaiting-commit");
    assert_eq!(scene.targets(), first);
    scene
        .lab
        .verb(&["roll", MACHINE, "--to", "latest"])
        .expect_error(5, &["awaiting-commit"]);
    scene.lab.verb(&["cancel", MACHINE]).expect_done();
    assert_eq!(scene.targets(), scene.sources());
    scene.canaries.assert_untouched();
    scene.lab.stop();
}

/// Everything that cannot be meant is refused in words, with an exit code, and changes nothing.
#[test]
fn what_cannot_be_meant_is_refused_and_changes_nothing() {
    let mut scene = scene(2);
    // Before the first epoch there is nothing to go to.
    scene
        .lab
        .verb(&["points", "list", MACHINE])
        .expect_error(5, &["no recovery points"]);
    scene
        .lab
        .verb(&["points", "list", "db99"])
        .expect_error(2, &["no machine db99"]);
    scene.send(&["--point-name", "first"]).expect_done();
    let first = scene.sources();
    change_blocks(&scene.sources[0], SIZE, 4096, 10, 5);
    scene.send(&[]).expect_done();
    let latest = scene.sources();
    let points = scene.lab.points(MACHINE);
    let newest = points.last().expect("points")["point"].to_string();

    let rows: [(&[&str], i32, &[&str]); 11] = [
        (
            &["roll", MACHINE, "--to", "99"],
            2,
            &["has no point 99", "points list"],
        ),
        (
            &["roll", MACHINE, "--to", "2099-01-01T00:00:00Z"],
            2,
            &["in the future"],
        ),
        (
            &["roll", MACHINE, "--to", "1999-01-01T00:00:00Z"],
            2,
            &["no point as old as"],
        ),
        (
            &["roll", MACHINE, "--to", "yesterday"],
            2,
            &["neither a number, nor a time, nor a name"],
        ),
        (&["roll", "db99", "--to", "latest"], 2, &["no machine db99"]),
        (&["failover", MACHINE, "--to", "99"], 2, &["has no point 99"]),
        (&["failover", "db99", "--to", "latest"], 2, &["no machine db99"]),
        (&["points", "export", MACHINE, "99"], 2, &["has no point 99"]),
        (&["points", "delete", MACHINE, "first"], 5, &["none younger than"]),
        (&["points", "delete", MACHINE, &newest], 5, &["is the newest"]),
        (
            &["retention", "reset", MACHINE, "--drop-points-of", "db02"],
            5,
            &["db02 is named"],
        ),
    ];
    for (args, code, words) in rows {
        scene.lab.verb(args).expect_error(code, words);
    }
    // A point that is pinned stays, whatever its age.
    scene
        .lab
        .verb(&["policy", MACHINE, "--minimum-age", "0s"])
        .expect_done();
    scene.lab.verb(&["points", "pin", MACHINE, "first"]).expect_done();
    scene
        .lab
        .verb(&["points", "delete", MACHINE, "first"])
        .expect_error(5, &["pinned"]);
    scene
        .lab
        .verb(&["points", "delete", MACHINE, "latest"])
        .expect_error(5, &["newest"]);
    scene
        .lab
        .verb(&["points", "pin", MACHINE, "first", "--release"])
        .expect_done();

    // Sources that name too few disks, or others, or one disk alone.
    let one: [(&str, &Path); 1] = [("scsi0:0", &scene.sources[0])];
    scene
        .lab
        .epoch(MACHINE, &one, &[])
        .expect_error(6, &["scsi0:0, scsi0:1", "the source names scsi0:0"]);
    let other: [(&str, &Path); 2] = [("scsi0:0", &scene.sources[0]), ("scsi0:7", &scene.sources[1])];
    scene
        .lab
        .epoch(MACHINE, &other, &[])
        .expect_error(6, &["scsi0:7"]);
    scene
        .lab
        .epoch("db99", &one, &[])
        .expect_error(6, &["no machine db99"]);
    scene
        .lab
        .send("db01/scsi0:0", &scene.sources[0], &[])
        .expect_error(5, &["keeps recovery points", "--machine db01"]);
    let twice: [(&str, &Path); 2] = [("scsi0:0", &scene.sources[0]), ("scsi0:0", &scene.sources[1])];
    scene
        .lab
        .epoch(MACHINE, &twice, &[])
        .expect_error(2, &["given twice"]);

    // A pair can be compared while its machine is held.
    scene
        .lab
        .verify("db01/scsi0:0", &scene.sources[0], &[])
        .expect_done();
    assert_eq!(scene.targets(), latest);
    scene.roll("first");
    assert_eq!(scene.targets(), first);
    scene
        .lab
        .verb(&["points", "delete", MACHINE, "before-failback"])
        .expect_done();
    scene
        .lab
        .verb(&["roll", MACHINE, "--to", "before-failback"])
        .expect_error(2, &["before-failback any more"]);
    scene.canaries.assert_untouched();
    scene.lab.stop();
}

/// Without a retention volume epochs go straight to the disks, and nobody is told of points.
#[test]
fn without_a_retention_volume_there_are_no_points_and_the_disks_are_equal() {
    let mut lab = Lab::new();
    let source = lab.scratch.sparse("source.img", SIZE);
    fill(&source, SIZE, Fill::HalfZero, 1);
    let target = lab.scratch.sparse("target.img", SIZE);
    let id = lab.add_disk(&target);
    lab.start();
    lab.pair("db01/scsi0:0", &id);
    let disks: [(&str, &Path); 1] = [("scsi0:0", &source)];
    let result = lab.epoch(MACHINE, &disks, &[]).expect_done().event("result");
    assert!(result["point"].is_null() && result["epoch"] == 1, "{result}");
    assert_eq!(digest(&target, SIZE), digest(&source, SIZE));
    lab.verb(&["points", "list", MACHINE])
        .expect_error(5, &["no recovery points"]);
    lab.verb(&["roll", MACHINE, "--to", "latest"])
        .expect_error(5, &["no recovery points"]);
    lab.verb(&["retention", "init"])
        .expect_error(5, &["no folder is configured"]);
    let said = lab.verb(&["retention", "status"]).expect_done();
    assert!(said.stdout.contains("no retention volume"), "{said}");
    // A plain send is still what it was.
    change_blocks(&source, SIZE, 4096, 10, 5);
    lab.send("db01/scsi0:0", &source, &[]).expect_done();
    assert_eq!(digest(&target, SIZE), digest(&source, SIZE));
    lab.stop();
}

/// The retention volume is gone, another one stands in its place, or it was set back: nothing is written past the points.
#[test]
fn a_retention_volume_that_is_not_the_one_is_refused() {
    let mut scene = scene(1);
    scene.send(&["--point-name", "first"]).expect_done();
    let volume = scene.lab.scratch.join("retention");
    let (gone, kept) = (scene.lab.scratch.join("gone"), scene.lab.scratch.join("kept"));
    run("cp", &["--archive", text(&volume), text(&kept)]);
    change_blocks(&scene.sources[0], SIZE, 4096, 10, 5);
    scene.send(&[]).expect_done();
    wait_until("the epoch to be on the disk", || {
        scene.targets() == scene.sources()
    });
    let latest = scene.targets();
    scene.lab.stop();

    // Not mounted.
    std::fs::rename(&volume, &gone).expect("it can be moved");
    std::fs::create_dir(&volume).expect("it can be made");
    scene.lab.start();
    change_blocks(&scene.sources[0], SIZE, 4096, 10, 6);
    scene.send(&[]).expect_error(6, &["is not there", "mount"]);
    scene
        .lab
        .verb(&["retention", "init"])
        .expect_error(5, &["has the volume"]);
    assert_eq!(
        std::fs::read_dir(&volume).expect("a folder").count(),
        0,
        "nothing is written below a mount point"
    );
    assert_eq!(scene.targets(), latest);
    scene.lab.stop();

    // The appliance's volume was set back to an older state: the source was promised more than it holds.
    std::fs::remove_dir(&volume).expect("it is empty");
    std::fs::rename(&kept, &volume).expect("it can be moved");
    scene.lab.start();
    scene.send(&[]).expect_error(6, &["resync needed", "set back"]);
    assert_eq!(scene.targets(), latest);
    let alarms = scene.lab.status()["alarms"].to_string();
    assert!(alarms.contains("pair-needs-resync"), "{alarms}");
    scene
        .lab
        .verb(&["retention", "reset", MACHINE, "--drop-points-of", MACHINE])
        .expect_done();
    scene.send(&[]).expect_done();
    wait_until("the new epoch to be on the disk", || {
        scene.targets() == scene.sources()
    });
    scene.canaries.assert_untouched();
    scene.lab.stop();
}

/// A volume that is small: the oldest points go, the newest stays, and nothing gets stuck. While nothing is old enough to go,
/// the source is held back, and every point that was promised stays.
#[test]
fn a_full_store_drops_the_oldest_points_or_holds_the_source_back() {
    let mut scene = scene(1);
    let space = (40 * MIB).to_string();
    scene
        .lab
        .verb(&["policy", MACHINE, "--space", &space, "--minimum-age", "0s"])
        .expect_done();
    let mut promised = Vec::new();
    for epoch in 0..14 {
        change_blocks(&scene.sources[0], SIZE, 4096, 700, 100 + epoch);
        let said = scene.send(&[]).expect_done();
        promised.push((
            said.event("result")["point"].as_u64().expect("a number"),
            scene.sources(),
        ));
    }
    let offered = numbers(&scene.lab.points(MACHINE));
    assert!(
        offered.len() < 14 && offered.len() > 1,
        "some went, some stayed: {offered:?}"
    );
    assert_eq!(
        offered.last(),
        promised.last().map(|(point, _)| point),
        "the newest stays"
    );
    // Nothing is old enough: the source waits, and what is there stays.
    scene
        .lab
        .verb(&["policy", MACHINE, "--minimum-age", "1h"])
        .expect_done();
    let mut newest = scene.sources();
    let mut held_back = None;
    for epoch in 0..14 {
        change_blocks(&scene.sources[0], SIZE, 4096, 700, 200 + epoch);
        let said = scene.send(&[]);
        if said.code() != Some(0) {
            held_back = Some(said);
            break;
        }
        newest = scene.sources();
    }
    held_back
        .expect("a store of 40 MiB does not hold 28 epochs")
        .expect_error(6, &["retention-full", "full"]);
    let alarms = scene.lab.status()["alarms"].to_string();
    assert!(alarms.contains("retention-full"), "{alarms}");
    scene.lab.crash_and_restart();
    // With leave to drop points it goes on by itself.
    scene
        .lab
        .verb(&["policy", MACHINE, "--minimum-age", "0s"])
        .expect_done();
    wait_until("the newest epoch to be on the disk", || scene.targets() == newest);
    scene.send(&[]).expect_done();
    wait_until("the last epoch to be on the disk", || {
        scene.targets() == scene.sources()
    });
    scene.canaries.assert_untouched();
    scene.lab.stop();
}
