//! A target that may open no disk: it runs as a user of its own, and has each open disk from the broker.

use std::fs::{Permissions, create_dir, set_permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use mt_tests::agent::{self, Running, Said, wait_until};
use mt_tests::data::{Fill, MIB, assert_same, fill};
use mt_tests::disks::{Canaries, Loop, text};
use mt_tests::lab::{Lab, PAIR};
use mt_tests::needs;

const SIZE: u64 = 16 * MIB;
const USER: &str = "nobody";
const GROUP: &str = "nogroup";

struct Scene {
    lab: Lab,
    source: PathBuf,
    /// Where that user can run it from, wherever it was built.
    program: PathBuf,
    device: Loop,
    id: String,
    canaries: Canaries,
    _canary_loops: Vec<Loop>,
    broker: Option<Running>,
}

impl Scene {
    fn new() -> Self {
        let mut lab = Lab::new();
        lab.ask_a_broker_as(USER, GROUP);
        let user = nix::unistd::User::from_name(USER)
            .expect("users can be read")
            .expect("there is nobody");
        let own =
            |path: &Path| chown(path, Some(user.uid.as_raw()), Some(user.gid.as_raw())).expect("root may");
        let scratch = lab.scratch.path().to_owned();
        set_permissions(&scratch, Permissions::from_mode(0o755)).expect("it is ours");
        own(&scratch);
        create_dir(scratch.join("state")).expect("it is new");
        own(&scratch.join("state"));
        // Root's, and empty: "retention init" gives it away.
        let retention = scratch.join("retention");
        create_dir(&retention).expect("it is new");
        lab.keep_points_in(&retention);
        let program = scratch.join("mt-agent");
        std::fs::copy(agent::binary(), &program).expect("there is room");
        let source = lab.scratch.sparse("source.img", SIZE);
        fill(&source, SIZE, Fill::Random, 77);
        let canaries = Canaries::new(&lab.scratch, 2);
        let canary_loops: Vec<Loop> = canaries.paths().map(|path| Loop::attach(path, &[])).collect();
        let device = Loop::attach(&lab.scratch.sparse("target.img", SIZE), &[]);
        let id = lab.add_disk(device.path());
        for canary in &canary_loops {
            lab.add_disk(canary.path());
        }
        let mut scene = Self {
            lab,
            source,
            program,
            device,
            id,
            canaries,
            _canary_loops: canary_loops,
            broker: None,
        };
        // Written with the target's command.
        let target = scene.as_user(&["target"]);
        scene.start_broker();
        scene.lab.start_with(target);
        scene
    }

    fn broker_socket(&self) -> PathBuf {
        self.lab.scratch.join("broker/broker.sock")
    }

    fn start_broker(&mut self) {
        let _ = self.lab.target_command();
        let config = self.lab.config_path();
        let command = agent::command(["broker", "--config", text(&config)]);
        let mut broker = Running::start(command, self.lab.scratch.path());
        let socket = self.broker_socket();
        wait_until("the broker", || {
            assert!(broker.is_running(), "{}", broker.stderr_so_far());
            std::os::unix::net::UnixStream::connect(&socket).is_ok()
        });
        self.broker = Some(broker);
    }

    /// A verb with the configuration, as the target's user, without a capability.
    fn as_user(&self, verb: &[&str]) -> Command {
        let _ = self.lab.target_command();
        let mut command = Command::new("setpriv");
        command
            .args(["--reuid", USER, "--regid", GROUP, "--clear-groups"])
            .args(["--bounding-set", "-all", "--no-new-privs"])
            .arg(&self.program)
            .args(verb)
            .args(["--config", text(&self.lab.config_path())])
            .env("MT_AGENT_SOCKET", self.lab.socket());
        command
    }

    fn say_as_user(&self, verb: &[&str]) -> Said {
        Running::start(self.as_user(verb), self.lab.scratch.path()).wait()
    }

    fn say(&self, verb: &[&str]) -> Said {
        let config = self.lab.config_path();
        self.lab.verb(&[verb, &["--config", text(&config)]].concat())
    }
}

#[test]
fn loop_a_target_without_rights_copies_onto_the_paired_disk_and_no_other() {
    needs!(loop, "setpriv");
    let mut scene = Scene::new();
    // It sees all disks, and may open none.
    let listed = scene.lab.status();
    assert!(listed["disks"]["count"].as_u64() >= Some(3), "{listed:#}");
    let cannot = Command::new("setpriv")
        .args(["--reuid", USER, "--regid", GROUP, "--clear-groups", "head", "-c1"])
        .arg(scene.device.path())
        .output()
        .expect("setpriv is there");
    assert!(
        !cannot.status.success(),
        "that user can read {}",
        scene.device.text()
    );

    // Only root pairs: whoever has taken over the target does not.
    let refused = scene.say_as_user(&["pair", "add", PAIR, &scene.id]);
    refused.expect_error(5, &["may not ask the broker for that", "root"]);
    let early = scene.lab.send(PAIR, &scene.source, &["--retry-for", "0"]);
    assert_ne!(early.code(), Some(0), "{early}");

    scene.say(&["pair", "add", PAIR, &scene.id]).expect_done();
    let again = scene.say(&["pair", "add", PAIR, &scene.id]).expect_done();
    assert!(again.stdout.contains("was paired already"), "{again}");
    let taken = scene.say(&["pair", "add", "db02/scsi0:1", &scene.id]);
    taken.expect_error(5, &["is the disk of pair db01/scsi0:1 already"]);
    // What the broker refused never came to the target, and is in the log as well; the broker itself wrote down who asked.
    let audit = scene.lab.verb(&["audit", "--json"]).expect_done().json();
    let noted = audit["entries"]
        .as_array()
        .expect("entries are a list")
        .iter()
        .any(|entry| {
            let what = entry["what"].as_str().unwrap_or_default();
            what.contains("pair add db02/scsi0:1") && what.contains(&scene.id) && what.contains("refused: ")
        });
    assert!(noted, "{audit:#}");
    let told = scene.broker.as_ref().expect("it runs").stderr_so_far();
    for what in [
        "record pair db01/scsi0:1",
        "record pair db02/scsi0:1",
        "user 0 (process ",
    ] {
        assert!(told.contains(what), "{what}: {told}");
    }
    scene.lab.send(PAIR, &scene.source, &[]).expect_done();
    assert_same(&scene.source, scene.device.path(), SIZE);
    scene.lab.verify(PAIR, &scene.source, &[]).expect_done();
    scene.canaries.assert_untouched();

    // The disk is not empty any more: it is known as the pair's, also to a broker that was killed.
    scene.broker.take().expect("it runs").kill_9();
    scene.start_broker();
    fill(&scene.source, SIZE, Fill::Random, 78);
    scene.lab.send(PAIR, &scene.source, &[]).expect_done();
    assert_same(&scene.source, scene.device.path(), SIZE);

    scene.say(&["pair", "remove", PAIR]).expect_done();
    let gone = scene.lab.send(PAIR, &scene.source, &["--retry-for", "0"]);
    assert_ne!(gone.code(), Some(0), "{gone}");
    let full = scene.say(&["pair", "add", PAIR, &scene.id]);
    full.expect_error(5, &["not empty", "--overwrite"]);
    scene.canaries.assert_untouched();
    scene.lab.stop();
}

/// Points are the target's own matter, on a volume that is its user's; the disks of rolls and failovers are the broker's.
#[test]
fn loop_a_target_without_rights_keeps_points_rolls_and_fails_over() {
    needs!(loop, "setpriv");
    let mut scene = Scene::new();
    scene.say(&["pair", "add", PAIR, &scene.id]).expect_done();
    scene.lab.verb(&["retention", "init"]).expect_done();
    let first = scene.lab.scratch.sparse("first.img", SIZE);
    std::fs::copy(&scene.source, &first).expect("there is room");
    scene
        .lab
        .epoch("db01", &[("scsi0:1", &scene.source)], &["--point-name", "first"])
        .expect_done();
    fill(&scene.source, SIZE, Fill::Random, 79);
    scene
        .lab
        .epoch("db01", &[("scsi0:1", &scene.source)], &[])
        .expect_done();
    // And the disks as they were before the first.
    assert_eq!(scene.lab.points("db01").len(), 3);
    scene.lab.verb(&["roll", "db01", "--to", "first"]).expect_done();
    assert_same(&first, scene.device.path(), SIZE);
    scene
        .lab
        .verb(&["failover", "db01", "--to", "latest"])
        .expect_done();
    assert_same(&scene.source, scene.device.path(), SIZE);
    scene.lab.verb(&["commit", "db01"]).expect_done();
    scene.canaries.assert_untouched();
    scene.lab.stop();
}

/// Without its broker the target says so, and opens nothing; with it again it goes on.
#[test]
fn loop_without_its_broker_a_target_opens_nothing_and_says_why() {
    needs!(loop, "setpriv");
    let mut scene = Scene::new();
    scene.say(&["pair", "add", PAIR, &scene.id]).expect_done();
    scene.broker.take().expect("it runs").kill_9();
    let said = scene.lab.send(PAIR, &scene.source, &["--retry-for", "0"]);
    assert_ne!(said.code(), Some(0), "{said}");
    let error = said.event("error");
    let message = format!("{} {}", error["error"], error["hint"]);
    assert!(
        message.contains("cannot ask the broker") && message.contains("master-target-broker"),
        "{message}"
    );
    scene.start_broker();
    scene.lab.send(PAIR, &scene.source, &[]).expect_done();
    assert_same(&scene.source, scene.device.path(), SIZE);
    scene.canaries.assert_untouched();
    scene.lab.stop();
}

/// A target with pairs of before there was a broker, which knows none of them: nothing is opened, and both sides say what is to be done.
#[test]
fn loop_pairs_of_before_the_broker_are_recorded_once_more() {
    needs!(loop, "setpriv");
    let mut scene = Scene::new();
    scene.say(&["pair", "add", PAIR, &scene.id]).expect_done();
    scene.lab.send(PAIR, &scene.source, &[]).expect_done();
    scene.broker.take().expect("it runs").kill_9();
    std::fs::remove_file(scene.lab.scratch.join("broker-state/pairs.json")).expect("it was written");
    scene.start_broker();
    let said = scene.lab.send(PAIR, &scene.source, &["--retry-for", "0"]);
    let error = said.event("error");
    let message = format!("{} {}", error["error"], error["hint"]);
    assert!(
        message.contains("no pair db01/scsi0:1 is recorded") && message.contains("mt-agent pair add"),
        "{message}"
    );
    // The broker cannot know that the content is the pair's: root says so, and it is compared and not copied anew.
    scene
        .say(&["pair", "add", PAIR, &scene.id])
        .expect_error(5, &["not empty", "--overwrite"]);
    scene
        .say(&["pair", "add", PAIR, &scene.id, "--overwrite", &scene.id])
        .expect_done();
    let said = scene.lab.send(PAIR, &scene.source, &[]).expect_done();
    assert_eq!(said.event("result")["bytes_sent"], 0, "{said}");
    scene.canaries.assert_untouched();
    scene.lab.stop();
}
