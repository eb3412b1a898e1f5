//! A disk is sent, sent again, compared: what arrives, what travels, what is said.

use mt_tests::data::{Fill, MIB, Random, assert_same, change_blocks, digest, fill, read_at, write_at};
use mt_tests::disks::Canaries;
use mt_tests::lab::{Lab, PAIR};
use mt_tests::proxy::Proxy;
use serde_json::Value;

const SIZE: u64 = 64 * MIB;

/// What comparing alone may cost on the wire: 32 bytes a block of 64 KiB, and a few frames a region of 1 MiB.
fn digests_of(size: u64) -> u64 {
    size / (64 * 1024) * 32 + size / MIB * 256 + 4096
}

struct Scene {
    lab: Lab,
    /// SCSI ID of the target disk.
    id: String,
    source: std::path::PathBuf,
    target: std::path::PathBuf,
    canaries: Canaries,
}

/// A pair of `SIZE` bytes, half of it zero, its target running, and two canaries among the disks.
fn scene() -> Scene {
    let mut lab = Lab::new();
    let source = lab.scratch.sparse("source.img", SIZE);
    fill(&source, SIZE, Fill::HalfZero, 1);
    let target = lab.scratch.sparse("target.img", SIZE);
    let id = lab.add_disk(&target);
    let canaries = Canaries::new(&lab.scratch, 2);
    for path in canaries.paths() {
        lab.add_disk(path);
    }
    lab.start();
    lab.pair(PAIR, &id);
    Scene {
        lab,
        id,
        source,
        target,
        canaries,
    }
}

#[track_caller]
fn number(document: &Value, key: &str) -> u64 {
    document[key]
        .as_u64()
        .unwrap_or_else(|| panic!("{key} is no number in {document:#}"))
}

#[test]
fn a_first_send_makes_the_disks_equal_and_a_second_moves_digests_only() {
    let mut scene = scene();
    let result = scene
        .lab
        .send(PAIR, &scene.source, &[])
        .expect_done()
        .event("result");
    assert_same(&scene.source, &scene.target, SIZE);
    assert_eq!(number(&result, "schema"), 1);
    assert_eq!(number(&result, "compared"), SIZE);
    assert_eq!(
        number(&result, "bytes_sent"),
        SIZE / 2,
        "zeros onto zeros do not travel"
    );
    assert_eq!(number(&result, "durable"), SIZE);

    let proxy = Proxy::start(scene.lab.address);
    let again = scene
        .lab
        .start_send(proxy.address(), PAIR, &scene.source, &[])
        .wait()
        .expect_done()
        .event("result");
    assert_eq!(number(&again, "bytes_sent"), 0);
    assert_eq!(number(&again, "bytes_zeroed"), 0);
    let wire = proxy.to_source() + proxy.to_target();
    assert!(
        wire <= digests_of(SIZE),
        "{wire} bytes travelled to find that nothing changed"
    );
    let told = number(&again, "bytes_on_wire");
    assert!(
        told.abs_diff(wire) <= 256,
        "the agent says {told} bytes travelled, {wire} did"
    );

    scene.canaries.assert_untouched();
    scene.lab.stop();
    assert_same(&scene.source, &scene.target, SIZE);
}

#[test]
fn one_percent_of_random_blocks_costs_little_more_than_one_percent() {
    let scene = scene();
    scene.lab.send(PAIR, &scene.source, &[]).expect_done();
    let changed = change_blocks(&scene.source, SIZE, 4096, SIZE / 4096 / 100, 2);
    let proxy = Proxy::start(scene.lab.address);
    let result = scene
        .lab
        .start_send(proxy.address(), PAIR, &scene.source, &[])
        .wait()
        .expect_done()
        .event("result");
    assert_same(&scene.source, &scene.target, SIZE);
    assert_eq!(
        number(&result, "bytes_sent"),
        changed,
        "what changed travels, and nothing beside it"
    );
    let wire = proxy.to_source() + proxy.to_target();
    let allowed = changed * 3 / 2 + digests_of(SIZE);
    println!("changed={changed} wire={wire} allowed={allowed}");
    assert!(
        wire <= allowed,
        "{changed} bytes changed and {wire} travelled; {allowed} are allowed"
    );
    scene.canaries.assert_untouched();
}

/// Stale content under a zero of the source must go: on a target disk that held an old version, and in a block that
/// is zero only in part.
#[test]
fn zeros_overwrite_what_was_there() {
    let scene = scene();
    fill(&scene.target, SIZE, Fill::Random, 3);
    // It holds something now, of no kind that anybody knows.
    scene
        .lab
        .send(PAIR, &scene.source, &[])
        .expect_error(5, &["data of an unknown kind", "nothing was written"]);
    scene.lab.pair_over(PAIR, &scene.id);
    write_at(&scene.source, 5 * MIB + 4096, &[0; 12288]);
    let result = scene
        .lab
        .send(PAIR, &scene.source, &[])
        .expect_done()
        .event("result");
    assert_same(&scene.source, &scene.target, SIZE);
    assert!(
        number(&result, "bytes_zeroed") >= SIZE / 2,
        "zeros travel as ranges: {result:#}"
    );
    assert!(
        number(&result, "bytes_sent") <= SIZE / 2,
        "and not as content: {result:#}"
    );
    scene.canaries.assert_untouched();
}

#[test]
fn a_larger_target_disk_keeps_what_lies_behind_the_protected_disk() {
    let mut lab = Lab::new();
    let source = lab.scratch.sparse("source.img", 8 * MIB + 512 * 3);
    fill(&source, 8 * MIB + 512 * 3, Fill::Random, 4);
    let target = lab.scratch.sparse("target.img", 16 * MIB);
    fill(&target, 16 * MIB, Fill::Random, 5);
    let behind = read_at(&target, 8 * MIB + 512 * 3, 4 * 1024 * 1024);
    let id = lab.add_disk(&target);
    lab.start();
    lab.pair_over(PAIR, &id);
    lab.send(PAIR, &source, &[]).expect_done();
    assert_same(&source, &target, 8 * MIB + 512 * 3);
    assert!(
        read_at(&target, 8 * MIB + 512 * 3, 4 * 1024 * 1024) == behind,
        "bytes behind the end changed"
    );
}

#[test]
fn a_verification_names_what_differs_and_writes_nothing() {
    let mut scene = scene();
    scene.lab.send(PAIR, &scene.source, &[]).expect_done();
    scene.lab.verify(PAIR, &scene.source, &[]).expect_done();

    // One byte in the middle, one sub-block, the last sector.
    let places = [
        (3 * MIB + 17, 1_usize),
        (11 * MIB + 8192, 4096),
        (SIZE - 512, 512),
    ];
    let mut random = Random::new(6);
    for (offset, len) in places {
        write_at(&scene.target, offset, &random.bytes(len));
    }
    let before = digest(&scene.target, SIZE);
    let said = scene.lab.verify(PAIR, &scene.source, &[]);
    assert_eq!(said.code(), Some(9), "{said}");
    let result = said.event("result");
    let found: Vec<(u64, u64)> = result["differences"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|difference| (number(difference, "offset"), number(difference, "len")))
        .collect();
    let expected = [(3 * MIB, 4096), (11 * MIB + 8192, 4096), (SIZE - 4096, 4096)];
    assert_eq!(found, expected, "differences are told to the block of 4 KiB");
    assert_eq!(number(&result, "bytes_different"), 3 * 4096);
    assert!(digest(&scene.target, SIZE) == before, "a verification wrote");

    // Also where the protected disk is zero.
    write_at(&scene.target, 20 * MIB + 8192, b"stale");
    let result = scene.lab.verify(PAIR, &scene.source, &[]).event("result");
    let found = &result["differences"][2];
    let place = (number(found, "offset"), number(found, "len"));
    assert_eq!(place, (20 * MIB + 8192, 4096), "{result:#}");

    let people = mt_tests::agent::run(
        scene.lab.scratch.path(),
        [
            "verify",
            "--target",
            &scene.lab.address.to_string(),
            "--pair",
            PAIR,
            "--plain",
            "--state-dir",
            mt_tests::disks::text(&scene.lab.source_state()),
            mt_tests::disks::text(&scene.source),
        ],
    );
    assert_eq!(people.code(), Some(9), "{people}");
    assert!(
        people.stdout.contains("0x000000300000"),
        "people are told the offset: {people}"
    );

    // The alarm stands until the copy is equal again, whatever happens to the agent meanwhile.
    let alarms = |lab: &Lab| {
        let of_pair = |alarm: &&Value| alarm["id"] == "pair-differs" && alarm["subject"] == PAIR;
        let status = lab.status();
        status["alarms"]
            .as_array()
            .expect("a list")
            .iter()
            .filter(of_pair)
            .count()
    };
    assert_eq!(alarms(&scene.lab), 1);
    scene.lab.crash_and_restart();
    assert_eq!(alarms(&scene.lab), 1, "{:#}", scene.lab.status());
    scene.lab.send(PAIR, &scene.source, &[]).expect_done();
    assert_eq!(alarms(&scene.lab), 0);
    scene.lab.crash_and_restart();
    assert_eq!(alarms(&scene.lab), 0, "{:#}", scene.lab.status());
    scene.lab.verify(PAIR, &scene.source, &[]).expect_done();
    scene.canaries.assert_untouched();
}

/// A full disk where the output goes, or a reader that has gone away, is nothing that happened to the copy.
#[test]
fn a_result_that_cannot_be_printed_is_told_as_that() {
    let scene = scene();
    let address = scene.lab.address.to_string();
    let state = scene.lab.source_state();
    let rows: [(&[&str], &str); 3] = [
        (&["source", "send"], "the copy is complete and durable"),
        (&["verify"], "the verification is through and the two are equal"),
        (&["source", "send", "--json"], "the copy is complete and durable"),
    ];
    for (verb, how) in rows {
        let command = || {
            let mut command = mt_tests::agent::command(verb);
            command.args(["--target", &address, "--pair", PAIR, "--plain", "--state-dir"]);
            command.arg(&state).arg(&scene.source);
            command
        };
        let full = std::fs::File::options()
            .write(true)
            .open("/dev/full")
            .expect("Linux has it");
        let output = command().stdout(full).output().expect("it can be started");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{verb:?}: {errors}");
        for text in [how, "cannot be printed", "No space left on device", "hint:"] {
            assert!(errors.contains(text), "{verb:?}: {text} is not in {errors}");
        }
        let (reader, writer) = std::io::pipe().expect("a pipe can be made");
        drop(reader);
        let also = writer.try_clone().expect("a descriptor can be doubled");
        let output = command()
            .stdout(writer)
            .stderr(also)
            .output()
            .expect("it can be started");
        assert_eq!(
            output.status.code(),
            Some(0),
            "{verb:?} with a reader that has gone away"
        );
    }
    assert_same(&scene.source, &scene.target, SIZE);
    scene.canaries.assert_untouched();
}

/// The limit is on what is sent. The time is taken between two places of the stream, so that only the sender's pace
/// counts; a slow machine can make it longer and never shorter.
#[test]
fn a_bandwidth_limit_is_kept() {
    let scene = scene();
    let begin = std::time::Instant::now();
    let result = scene
        .lab
        .send(PAIR, &scene.source, &["--bandwidth-limit", "16MiB"])
        .expect_done()
        .event("result");
    let seconds = begin.elapsed().as_secs_f64();
    let sent = number(&result, "bytes_sent");
    assert_eq!(sent, SIZE / 2);
    assert!(seconds >= 1.7, "32 MiB at 16 MiB/s took {seconds:.2} s");
    assert_same(&scene.source, &scene.target, SIZE);
}

#[test]
fn json_tells_progress_and_one_result_and_jobs_are_kept() {
    let mut scene = scene();
    let said = scene
        .lab
        .send(PAIR, &scene.source, &["--bandwidth-limit", "12MiB"])
        .expect_done();
    let lines = said.json_lines();
    assert!(lines.iter().all(|line| line["schema"] == 1), "{said}");
    assert_eq!(
        lines.iter().filter(|line| line["event"] == "result").count(),
        1,
        "{said}"
    );
    assert_eq!(
        lines.last().expect("there is a line")["event"],
        "result",
        "{said}"
    );
    let progress: Vec<u64> = lines
        .iter()
        .filter(|line| line["event"] == "progress")
        .map(|line| number(line, "position"))
        .collect();
    assert!(progress.len() >= 2, "{said}");
    assert!(progress.is_sorted(), "progress goes forward: {progress:?}");

    let jobs = scene.lab.verb(&["jobs", "list", "--json"]).expect_done().json();
    let jobs = jobs["jobs"].as_array().expect("a list of jobs").clone();
    assert_eq!(jobs.len(), 1, "{jobs:#?}");
    assert_eq!(jobs[0]["state"], "done");
    assert_eq!(jobs[0]["pair"], PAIR);
    assert_eq!(number(&jobs[0], "bytes_written"), SIZE / 2);

    // What was done is known after a crash, too.
    scene.lab.crash_and_restart();
    let id = jobs[0]["id"].to_string();
    let job = scene
        .lab
        .verb(&["jobs", "show", &id, "--json"])
        .expect_done()
        .json();
    assert!(job.to_string().contains("done"), "{job:#}");
    let status = scene.lab.status();
    assert_eq!(status["schema"], 1, "{status:#}");
    assert!(status.to_string().contains("db01"), "{status:#}");
    scene.lab.stop();
}

#[test]
fn two_pairs_are_sent_at_once_and_do_not_mix() {
    let mut lab = Lab::new();
    let mut pairs = Vec::new();
    for number in 0..3 {
        let source = lab.scratch.sparse(&format!("source-{number}.img"), 16 * MIB);
        fill(&source, 16 * MIB, Fill::Random, 10 + number);
        let target = lab.scratch.sparse(&format!("target-{number}.img"), 16 * MIB);
        let id = lab.add_disk(&target);
        pairs.push((format!("db0{number}/scsi0:0"), id, source, target));
    }
    lab.start();
    for (pair, id, _, _) in &pairs {
        lab.pair(pair, id);
    }
    let running: Vec<_> = pairs
        .iter()
        .map(|(pair, _, source, _)| lab.start_send(lab.address, pair, source, &[]))
        .collect();
    for send in running {
        send.wait().expect_done();
    }
    for (_, _, source, target) in &pairs {
        assert_same(source, target, 16 * MIB);
    }
}
