//! Points among each other: which one a time means, what may go while something is brought to it, and very many of them. On files,
//! without root.

use std::path::{Path, PathBuf};

use jiff::{Timestamp, ToSpan};
use mt_tests::agent::{Running, Said, wait_until};
use mt_tests::data::{Fill, MIB, change_blocks, digest, fill};
use mt_tests::lab::Lab;

const SIZE: u64 = 16 * MIB;
const MACHINE: &str = "db01";

struct Scene {
    lab: Lab,
    source: PathBuf,
    target: PathBuf,
}

fn scene() -> Scene {
    let mut lab = Lab::new();
    let source = lab.scratch.sparse("source.img", SIZE);
    fill(&source, SIZE, Fill::HalfZero, 1);
    let target = lab.scratch.sparse("target.img", SIZE);
    let id = lab.add_disk(&target);
    lab.keep_points_in(&lab.scratch.join("retention"));
    lab.start();
    lab.verb(&["retention", "init"]).expect_done();
    lab.pair(&format!("{MACHINE}/scsi0:0"), &id);
    Scene { lab, source, target }
}

impl Scene {
    fn send(&self, more: &[&str]) -> Said {
        let disks: [(&str, &Path); 1] = [("scsi0:0", &self.source)];
        self.lab.epoch(MACHINE, &disks, more)
    }

    /// Changes the source and sends it; answers what it is.
    fn next(&self, seed: u64, count: u64, more: &[&str]) -> blake3::Hash {
        change_blocks(&self.source, SIZE, 4096, count, seed);
        self.send(more).expect_done();
        digest(&self.source, SIZE)
    }

    fn target(&self) -> blake3::Hash {
        digest(&self.target, SIZE)
    }

    fn roll(&self, to: &str) -> Said {
        self.lab.verb(&["roll", MACHINE, "--to", to])
    }

    fn begin(&self, args: &[&str]) -> Running {
        let mut command = mt_tests::agent::command(args);
        command.env("MT_AGENT_SOCKET", self.lab.socket());
        Running::start(command, self.lab.scratch.path())
    }

    fn time_of(&self, point: u64) -> Timestamp {
        let points = self.lab.points(MACHINE);
        let found = points.iter().find(|known| known["point"] == point);
        let time = found.expect("it is there")["time"].as_str().expect("a time");
        time.parse().expect("a time")
    }
}

/// A time means the newest point that is not younger, to the millisecond and in any zone: the instant itself, one before, one
/// between two, one before the first, and one that has not come yet.
#[test]
fn a_time_means_the_newest_point_that_is_not_younger() {
    let mut scene = scene();
    let first = scene.next(1, 40, &[]);
    let second = scene.next(2, 40, &[]);
    let third = scene.next(3, 40, &[]);
    let (one, two, three) = (scene.time_of(1), scene.time_of(2), scene.time_of(3));
    let step = 1.millisecond();
    let offset = |time: Timestamp, zone: i64| {
        let shown = time.checked_add(zone.hours()).expect("a time").to_string();
        format!("{}{zone:+03}:00", shown.trim_end_matches('Z'))
    };
    for (to, wanted) in [
        (two.to_string(), second),
        (two.checked_sub(step).expect("a time").to_string(), first),
        (three.checked_sub(step).expect("a time").to_string(), second),
        (three.checked_add(step).expect("a time").to_string(), third),
        (offset(one, 2), first),
        (offset(two, -11), second),
        (offset(three.checked_sub(step).expect("a time"), 14), second),
        // Without a zone it is UTC, as the list shows it.
        (two.to_string().trim_end_matches('Z').replace('T', " "), second),
    ] {
        scene.roll(&to).expect_done();
        assert_eq!(scene.target(), wanted, "{to}");
    }
    let points = scene.lab.points(MACHINE).len();
    let before = scene.target();
    // The first point is of the appliance's clock, the others are of the source's.
    let oldest = one.min(scene.time_of(0));
    for (to, words) in [
        (
            oldest.checked_sub(step).expect("a time").to_string(),
            "no point as old as",
        ),
        ("2099-12-31T23:59:59Z".to_owned(), "in the future"),
        (
            offset(Timestamp::now().checked_add(1.hour()).expect("a time"), -3),
            "in the future",
        ),
        (
            "2026-02-30T00:00:00Z".to_owned(),
            "neither a number, nor a time, nor a name",
        ),
        (
            "2026-03-02T25:00:00Z".to_owned(),
            "neither a number, nor a time, nor a name",
        ),
        (String::new(), "neither a number, nor a time, nor a name"),
    ] {
        scene.roll(&to).expect_error(2, &[words]);
    }
    assert_eq!(scene.target(), before);
    assert_eq!(scene.lab.points(MACHINE).len(), points);
    scene.lab.stop();
}

/// Somebody deletes, lists and looks at points while a roll to one of them runs, and the policy wants it gone too: the roll comes to
/// its point all the same, or is refused before it begins.
#[test]
fn a_point_that_is_rolled_to_stays_until_the_roll_is_done() {
    let mut scene = scene();
    scene
        .lab
        .verb(&[
            "policy",
            MACHINE,
            "--minimum-age",
            "0s",
            "--all-for",
            "0s",
            "--hourly-for",
            "0s",
        ])
        .expect_done();
    let mut refused = 0;
    for round in 0..6_u64 {
        let name = format!("round-{round}");
        scene
            .lab
            .verb(&["policy", MACHINE, "--all-for", "1h"])
            .expect_done();
        let wanted = scene.next(10 * round, 700, &["--point-name", &name]);
        scene.next(10 * round + 1, 1500, &[]);
        let rolling = scene.begin(&["roll", MACHINE, "--to", &name]);
        // The policy's turn comes at any time from here on.
        let policy = scene.begin(&["policy", MACHINE, "--all-for", "0s"]);
        let deleting = scene.begin(&["points", "delete", MACHINE, &name]);
        let listing = scene.begin(&["points", "list", MACHINE, "--json"]);
        listing.wait().expect_done();
        policy.wait().expect_done();
        let deleted = deleting.wait();
        let rolled = rolling.wait();
        match rolled.code() {
            Some(0) => assert_eq!(scene.target(), wanted, "{name}"),
            _ => {
                rolled.expect_error(2, &["point"]);
            }
        }
        if deleted.code() != Some(0) {
            deleted.expect_error(5, &["mt-agent"]);
            refused += 1;
        }
        scene.lab.verb(&["retention", "check"]).expect_done();
    }
    println!("{refused} of 6 deletions were refused");
    // What a failover goes to is pinned by it until it is committed or taken back.
    scene
        .lab
        .verb(&["policy", MACHINE, "--all-for", "1h"])
        .expect_done();
    let wanted = scene.next(100, 300, &["--point-name", "wanted"]);
    scene.next(101, 300, &[]);
    scene
        .lab
        .verb(&["failover", MACHINE, "--to", "wanted"])
        .expect_done();
    scene
        .lab
        .verb(&["points", "delete", MACHINE, "wanted"])
        .expect_error(5, &["pinned"]);
    assert_eq!(scene.target(), wanted);
    scene.lab.verb(&["cancel", MACHINE]).expect_done();
    scene
        .lab
        .verb(&["points", "delete", MACHINE, "wanted"])
        .expect_done();
    scene.roll("wanted").expect_error(2, &["\"wanted\" is no point"]);
    scene.lab.stop();
}

/// A source is in the middle of an epoch when the failover begins, and goes on sending: nothing of it is on the disk or in the
/// store, whatever it sends, and taking the failover back leads to where replication was.
#[test]
fn nothing_of_a_source_that_goes_on_sending_arrives_behind_the_fence() {
    let mut scene = scene();
    let first = scene.next(1, 300, &["--point-name", "first"]);
    let second = scene.next(2, 300, &["--point-name", "second"]);
    wait_until("the second epoch to be on the disk", || scene.target() == second);
    change_blocks(&scene.source, SIZE, 4096, 1500, 3);
    let disks: [(&str, &Path); 1] = [("scsi0:0", &scene.source)];
    let command = scene.lab.epoch_command(
        scene.lab.address,
        MACHINE,
        &disks,
        &["--bandwidth-limit", "64KiB", "--retry-for", "10"],
    );
    let sending = Running::start(command, scene.lab.scratch.path());
    wait_until("the epoch", || {
        let status = scene.lab.status();
        let jobs = status["jobs_running"].as_array().expect("jobs are a list");
        jobs.iter().any(|job| job["kind"] == "epoch")
    });
    scene.roll("first").expect_error(5, &["is being received"]);
    let failing_over = scene.begin(&["failover", MACHINE, "--to", "first"]);
    failing_over.wait().expect_done();
    assert_eq!(scene.target(), first);
    // The old session, a source that tries again, and a new one: each in vain.
    scene
        .send(&["--retry-for", "0"])
        .expect_error(6, &["nothing of its source is taken"]);
    let said = sending.wait();
    assert_ne!(said.code(), Some(0), "{said}");
    assert_eq!(scene.target(), first, "nothing of it arrived");
    let names: Vec<String> = scene
        .lab
        .points(MACHINE)
        .iter()
        .map(|point| point["origin"].to_string())
        .collect();
    assert_eq!(
        names.iter().filter(|origin| *origin == "\"source\"").count(),
        2,
        "{names:?}"
    );
    scene.lab.verb(&["cancel", MACHINE]).expect_done();
    assert_eq!(
        scene.target(),
        second,
        "where replication was, and no half of an epoch"
    );
    scene.send(&[]).expect_done();
    wait_until("the third epoch to be on the disk", || {
        scene.target() == digest(&scene.source, SIZE)
    });
    scene.lab.stop();
}
