//! Everything that can be said wrongly to the agent: each has its own message, its own exit code, and writes nothing.

use std::path::Path;

use mt_tests::agent::{self, Said};
use mt_tests::data::{Fill, MIB, digest, fill};
use mt_tests::disks::{Canaries, text};
use mt_tests::lab::{Lab, PAIR, scsi_id};
use mt_tests::proxy::{Fault, Proxy};
use mt_tests::scratch::Scratch;

fn check_config(scratch: &Scratch, content: impl AsRef<[u8]>) -> Said {
    let path = scratch.file("agent.toml", content);
    agent::run(scratch.path(), ["config", "check", text(&path)])
}

#[test]
fn a_wrong_configuration_is_told_with_its_line_and_the_nearest_key() {
    let scratch = Scratch::new();
    let rows: &[(&str, &[&str])] = &[
        (
            "[target]\nlisten = \"127.0.0.1:1\"\nlistne = 1\n",
            &["agent.toml:3", "listne", "listen"],
        ),
        ("[tagret]\n", &["agent.toml:1", "tagret", "target"]),
        (
            "[agent]\nstate_dir = 7\n",
            &["agent.toml:2", "state_dir", "string"],
        ),
        ("[lab]\nenabled = \"yes\"\n", &["agent.toml:2", "enabled"]),
        (
            "[target]\nlisten = \"0.0.0.0:9443\"\n[lab]\nenabled = true\nplain = true\n",
            &["agent.toml:5", "without TLS", "loopback"],
        ),
        (
            "[lab]\nenabled = false\nplain = true\n",
            &["agent.toml:3", "laboratory"],
        ),
        (
            "[target]\nlisten = \"[::]:1\"\ncontrol = \"[::]:1\"\n",
            &["agent.toml:3", "control and listen"],
        ),
        ("[target]\nlisten = \"somewhere\"\n", &["agent.toml:2", "listen"]),
        ("[agent\n", &["agent.toml:1"]),
        (
            "[agent]\nsocket = \"a\"\nsocket = \"b\"\n",
            &["agent.toml:3", "socket"],
        ),
        (
            "[lab]\nenabled = true\n[[lab.disks]]\nscsi_id = \"sdb\"\npath = \"/x\"\n",
            &["agent.toml:4", "sdb"],
        ),
        (
            "[lab]\nenabled = true\n[[lab.disks]]\nscsi_id = \"naa.5000c29000000001\"\npath = \"/x\"\n\
             [[lab.disks]]\nscsi_id = \"0x5000C29000000001\"\npath = \"/y\"\n",
            &["same scsi_id", "naa.5000c29000000001"],
        ),
        (
            "[lab]\nenabled = true\n[[lab.disks]]\npath = \"/x\"\n",
            &["scsi_id"],
        ),
    ];
    for (content, words) in rows {
        let said = check_config(&scratch, content);
        assert_eq!(said.code(), Some(3), "{content}\n{said}");
        for word in *words {
            assert!(
                said.stderr.contains(word),
                "\"{word}\" is not in the message for {content:?}\n{said}"
            );
        }
    }
    check_config(&scratch, [0xff, 0xfe, 0x00]).expect_error(3, &["agent.toml"]);
    let missing = scratch.join("missing.toml");
    agent::run(scratch.path(), ["config", "check", text(&missing)]).expect_error(3, &["missing.toml"]);
    agent::run(scratch.path(), ["config", "check", text(scratch.path())]).expect_error(3, &["cannot"]);
    agent::run(scratch.path(), ["target", "--config", text(&missing)]).expect_error(3, &["missing.toml"]);
    check_config(&scratch, "").expect_done();
}

#[test]
fn a_wrong_command_line_is_a_usage_error() {
    let scratch = Scratch::new();
    let source = scratch.sparse("source.img", MIB);
    let source = text(&source);
    let rows: &[&[&str]] = &[
        &[],
        &["sned"],
        &["source", "send"],
        &["source", "send", "--pair", "no-slash", source],
        &["source", "send", "--pair", "a/b/c", source],
        &["source", "send", "--pair", "/b", source],
        &[
            "source",
            "send",
            "--pair",
            PAIR,
            "--bandwidth-limit",
            "fast",
            source,
        ],
        &["source", "send", "--pair", PAIR, "--bandwidth-limit", "1", source],
        &["source", "send", "--pair", PAIR, "--target", source],
        &["source", "send", "--pair", PAIR, "--target", "", source],
        &[
            "source",
            "send",
            "--pair",
            PAIR,
            "--target",
            "127.0.0.1:99999",
            source,
        ],
        &["verify", "--pair", PAIR, "--target", "127.0.0.1:data", source],
        &["register", "--target", "https://mt01"],
        &["pair", "add", PAIR],
        &["jobs", "show", "first"],
    ];
    for args in rows {
        let said = agent::run(scratch.path(), *args);
        assert_eq!(said.code(), Some(2), "{args:?}\n{said}");
        assert!(!said.stderr.is_empty(), "{args:?} is refused in silence");
        // A program that asked for JSON reads why.
        if !args.is_empty() {
            let said = agent::run(scratch.path(), [*args, &["--json"]].concat());
            assert_eq!(said.code(), Some(2), "{args:?}\n{said}");
            let document = said.json();
            assert_eq!(document["exit_code"], 2, "{args:?}\n{said}");
            assert!(
                !document["error"].as_str().unwrap_or_default().is_empty(),
                "{said}"
            );
        }
    }
}

/// Who has misspelt one key has often misspelt several: all are told, each with its line.
#[test]
fn all_unknown_keys_of_a_configuration_are_told_at_once() {
    let scratch = Scratch::new();
    let config = "[agent]\nstate_dri = \"/x\"\nsokcet = \"/y\"\n\n[trget]\nlisten = \"x\"\ncontrol = \"y\"\n\n\
                  [target]\nlistne = \"127.0.0.1:1\"\n";
    let said = check_config(&scratch, config);
    said.expect_error(
        3,
        &[
            ":2: unknown key \"state_dri\"",
            ":3: unknown key \"sokcet\"",
            ":5: unknown key \"trget\"",
            ":10: unknown key \"listne\"",
            "did you mean \"listen\"?",
        ],
    );
    // A value over several lines ends the search, and never makes up a fault.
    let said = check_config(&scratch, "agnt = [\n1,\n2]\nother = 1\n");
    assert_eq!(said.code(), Some(3), "{said}");
    assert!(said.stderr.contains(":1: unknown key \"agnt\""), "{said}");
}

struct Scene {
    lab: Lab,
    source: std::path::PathBuf,
    target: std::path::PathBuf,
    canaries: Canaries,
}

/// A pair that works, with canaries; the target disk is one of them until something may be sent.
fn scene() -> Scene {
    scene_of(8 * MIB)
}

fn scene_of(size: u64) -> Scene {
    let mut lab = Lab::new();
    let source = lab.scratch.sparse("source.img", size);
    fill(&source, size, Fill::Random, 31);
    let target = lab.scratch.sparse("target.img", size);
    let mut canaries = Canaries::new(&lab.scratch, 2);
    let id = lab.add_disk(&target);
    for path in canaries.paths() {
        lab.add_disk(path);
    }
    canaries.watch(&target, size);
    lab.start();
    lab.pair(PAIR, &id);
    Scene {
        lab,
        source,
        target,
        canaries,
    }
}

impl Scene {
    /// Sends something that must be refused: exit code, words, and nothing written anywhere.
    #[track_caller]
    fn refused(&self, pair: &str, source: &Path, code: i32, words: &[&str]) {
        let said = self.lab.send(pair, source, &["--retry-for", "0"]);
        assert_eq!(said.code(), Some(code), "{said}");
        let error = said.event("error");
        let message = format!("{} {}", error["error"], error["hint"]);
        for word in words {
            assert!(message.contains(word), "\"{word}\" is not in {message}");
        }
        assert_eq!(error["exit_code"], code, "{said}");
        self.canaries.assert_untouched();
    }
}

#[test]
fn a_source_that_is_no_disk_is_refused() {
    let scene = scene();
    let scratch = &scene.lab.scratch;
    scene.refused(
        PAIR,
        &scratch.join("missing.img"),
        4,
        &["missing.img", "No such file"],
    );
    scene.refused(
        PAIR,
        scratch.path(),
        4,
        &["neither a block device nor a regular file"],
    );
    scene.refused(PAIR, &scratch.sparse("empty.img", 0), 4, &["empty"]);
    scene.refused(
        PAIR,
        &scratch.sparse("odd.img", 8 * MIB - 1),
        5,
        &["8388607", "multiple of 512"],
    );
    scene.refused(PAIR, Path::new("/dev/null"), 4, &["/dev/null"]);
    scene.refused(
        PAIR,
        &scratch.sparse("larger.img", 9 * MIB),
        5,
        &["8388608", "9437184"],
    );
    scene.refused("db02/scsi0:1", &scene.source, 6, &["db02/scsi0:1", "pair add"]);
    scene.lab.send(PAIR, &scene.source, &[]).expect_done();
    mt_tests::data::assert_same(&scene.source, &scene.target, 8 * MIB);
    // The protected disk had a size; another image is not that disk.
    let other = scratch.sparse("other.img", 4 * MIB);
    let said = scene.lab.send(PAIR, &other, &["--retry-for", "0"]);
    assert_eq!(said.code(), Some(5), "{said}");
    assert!(
        said.event("error")["error"].to_string().contains("4194304"),
        "{said}"
    );
    mt_tests::data::assert_same(&scene.source, &scene.target, 8 * MIB);
}

#[test]
fn a_target_that_is_not_there_is_told_at_once() {
    let mut scene = scene();
    scene.lab.take_target().terminate().expect_done();
    let said = scene.lab.send(PAIR, &scene.source, &[]);
    assert_eq!(said.code(), Some(6), "{said}");
    assert!(
        said.event("error")["error"].to_string().contains("refused"),
        "{said}"
    );
    let said = scene.lab.verb(&["status"]);
    assert!(matches!(said.code(), Some(6)), "{said}");
    assert!(said.stderr.contains("hint"), "{said}");
}

/// The image shrinks, or is written to, while it is read: no copy may be called one. It is larger than what a source
/// reads ahead, so that the change comes while there is something left to read.
#[test]
fn a_source_that_changes_while_it_is_read_is_not_called_a_copy() {
    for shrink in [true, false] {
        let scene = scene_of(128 * MIB);
        let proxy = Proxy::start(scene.lab.address);
        proxy.set_fault(Fault::HoldAt(MIB));
        let mut send = scene
            .lab
            .start_send(proxy.address(), PAIR, &scene.source, &["--retry-for", "0"]);
        assert!(proxy.wait_held(|| !send.is_running()), "{}", send.stdout_so_far());
        if shrink {
            std::fs::File::options()
                .write(true)
                .open(&scene.source)
                .and_then(|file| file.set_len(2 * MIB))
                .expect("the image can be cut");
        } else {
            mt_tests::data::write_at(&scene.source, 0, b"changed");
        }
        proxy.release();
        let said = send.wait();
        assert_eq!(said.code(), Some(4), "shrink={shrink}\n{said}");
        let error = said.event("error");
        let message = format!("{} {}", error["error"], error["hint"]);
        assert!(message.contains("source.img"), "{message}");
        assert!(
            !said.stdout.contains("\"result\""),
            "it was called a copy: {said}"
        );
        let jobs = scene.lab.verb(&["jobs", "list", "--json"]).expect_done().json();
        assert_ne!(jobs["jobs"][0]["state"], "done", "{jobs:#}");
    }
}

#[test]
fn disks_that_cannot_be_targets_are_refused_when_a_pair_is_added() {
    let mut lab = Lab::new();
    let good = lab.scratch.sparse("good.img", 4 * MIB);
    let good_id = lab.add_disk(&good);
    let canaries = Canaries::new(&lab.scratch, 2);
    for path in canaries.paths() {
        lab.add_disk(path);
    }
    let full = lab.scratch.sparse("full.img", 4 * MIB);
    // A partition table: what a disk of somebody looks like.
    mt_tests::data::write_at(&full, 510, &[0x55, 0xaa]);
    mt_tests::data::write_at(
        &full,
        446,
        &[0x80, 0, 2, 0, 0x83, 0, 16, 0, 1, 0, 0, 0, 0, 16, 0, 0],
    );
    let full_id = lab.add_disk(&full);
    let before = digest(&full, 4 * MIB);
    lab.start();

    lab.verb(&["pair", "add", PAIR, &scsi_id(99)])
        .expect_error(4, &[&scsi_id(99), "not attached", "hint:"]);
    lab.verb(&["pair", "add", PAIR, "not-an-id"])
        .expect_error(2, &["not-an-id"]);
    lab.verb(&["pair", "add", PAIR, &full_id])
        .expect_error(5, &[&full_id, "--overwrite"]);
    lab.verb(&["pair", "add", PAIR, &full_id, "--overwrite", &good_id])
        .expect_error(5, &[&good_id]);
    lab.verb(&["pair", "list"]).expect_done();
    assert!(
        !lab.verb(&["pair", "list", "--json"])
            .expect_done()
            .stdout
            .contains(PAIR)
    );

    lab.pair(PAIR, &good_id);
    lab.verb(&["pair", "add", PAIR, &good_id]).expect_done();
    let said = lab.verb(&["pair", "add", "db02/scsi0:0", &good_id]);
    assert_eq!(said.code(), Some(5), "a disk in two pairs: {said}");
    assert!(said.stderr.contains(PAIR), "{said}");
    lab.verb(&["pair", "remove", PAIR]).expect_done();
    let said = lab.verb(&["pair", "remove", "db09/x"]);
    assert_ne!(said.code(), Some(1), "{said}");
    assert!(digest(&full, 4 * MIB) == before, "a refused disk was written to");
    canaries.assert_untouched();
}

/// A disk that vanished, or became another, between pairing and sending.
#[test]
fn a_disk_that_is_not_the_paired_one_any_more_is_refused_when_sending() {
    let mut scene = scene();
    scene.lab.stop();
    std::fs::rename(&scene.target, scene.lab.scratch.join("away.img")).expect("files can be renamed");
    scene.lab.start();
    let said = scene.lab.send(PAIR, &scene.source, &["--retry-for", "0"]);
    assert!(matches!(said.code(), Some(4 | 5)), "{said}");
    scene.lab.stop();
    // Back, and larger than it was when it was paired.
    let larger = scene.lab.scratch.sparse("target.img", 16 * MIB);
    scene.lab.start();
    let said = scene.lab.send(PAIR, &scene.source, &["--retry-for", "0"]);
    assert_eq!(said.code(), Some(4), "{said}");
    assert!(
        said.event("error")["error"].to_string().contains("16777216"),
        "{said}"
    );
    assert_eq!(mt_tests::data::read_at(&larger, 0, 4096), vec![0; 4096]);
}

#[test]
fn only_one_source_writes_a_pair() {
    let scene = scene();
    let proxy = Proxy::start(scene.lab.address);
    proxy.set_fault(Fault::HoldAt(2 * MIB));
    let mut first = scene.lab.start_send(proxy.address(), PAIR, &scene.source, &[]);
    assert!(proxy.wait_held(|| !first.is_running()));
    let said = scene.lab.send(PAIR, &scene.source, &["--retry-for", "0"]);
    assert_eq!(said.code(), Some(6), "{said}");
    let error = said.event("error")["error"].to_string();
    assert!(error.contains("in use") && error.contains("127.0.0.1"), "{error}");
    proxy.release();
    first.wait().expect_done();
    mt_tests::data::assert_same(&scene.source, &scene.target, 8 * MIB);
}

#[test]
fn a_second_target_on_the_same_state_or_port_says_so() {
    let scene = scene();
    let said = agent::Running::start(scene.lab.target_command(), scene.lab.scratch.path()).wait();
    said.expect_error(5, &["in use by another agent", "hint: stop the other agent"]);
    // The same port with a state of its own: whoever starts it again for ever gains nothing.
    let other = scene.lab.scratch.join("other");
    let config = scene.lab.config_text();
    let config = config.replace(text(&scene.lab.scratch.join("state")), text(&other));
    let config = config.replace(text(&scene.lab.socket()), text(&other.join("agent.sock")));
    let path = scene.lab.scratch.file("other.toml", config);
    let said = agent::run(scene.lab.scratch.path(), ["target", "--config", text(&path)]);
    said.expect_error(3, &["cannot listen on", "another program uses the port"]);
    scene.lab.send(PAIR, &scene.source, &[]).expect_done();
}
