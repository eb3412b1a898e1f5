//! The local socket from outside: the real server on a real Unix socket, the real command line as its client.

mod support;

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use jiff::Timestamp;
use mt_agent::hub::PairSession;
use mt_agent::model::{Job, JobId, JobKind, JobState, PairName};
use support::{AGENT, Said, Served, id};

/// Begins of an ext4 superblock: magic number 0xEF53 at offset 1080, and enough around it for blkid.
fn ext_like() -> Vec<u8> {
    let folder = tempfile::tempdir().expect("there is room for a folder");
    let path = folder.path().join("fs.img");
    std::fs::File::create(&path)
        .expect("the scene can be set")
        .set_len(4 << 20)
        .expect("files can be made longer");
    let made = std::process::Command::new("mkfs.ext4")
        .arg("-q")
        .arg(&path)
        .status();
    assert!(
        made.is_ok_and(|status| status.success()),
        "mkfs.ext4 (package e2fsprogs) is needed here"
    );
    std::fs::read(&path).expect("the scene can be set")
}

#[test]
fn a_pair_is_made_listed_and_removed() {
    let served = Served::start(&[b""]);
    let first = id(1);
    let said = served.run(&["pair", "add", "db01/scsi0:1", &first]).expect(0);
    assert!(
        said.stdout
            .starts_with("db01/scsi0:1 is now paired with target disk"),
        "{said:?}"
    );
    // Asked for again it is there already, in any notation of the ID; that is success.
    let upper = first.trim_start_matches("naa.").to_uppercase();
    let again = served.json(&["pair", "add", "db01/scsi0:1", &upper]);
    assert_eq!(
        (again["added"].as_bool(), again["schema"].as_u64()),
        (Some(false), Some(1))
    );

    let pairs = served.json(&["pair", "list"]);
    let pair = &pairs["pairs"][0];
    assert_eq!(pairs["pairs"].as_array().unwrap().len(), 1);
    assert_eq!(pair["scsi_id"], first);
    assert_eq!(
        (pair["size"].as_u64(), pair["logical_block_size"].as_u64()),
        (Some(4 << 20), Some(512))
    );
    assert_eq!(
        (pair["phase"].as_str(), pair["adopted"].as_bool()),
        (Some("waiting"), Some(false))
    );
    let listed = served.run(&["pair", "list"]).expect(0).stdout;
    assert!(listed.contains("db01/scsi0:1  waiting"), "{listed}");

    let removed = served.json(&["pair", "remove", "db01/scsi0:1"]);
    assert_eq!(removed["removed"].as_bool(), Some(true));
    let again = served.run(&["pair", "remove", "db01/scsi0:1"]).expect(0);
    assert_eq!(
        again.stdout,
        "there was no pair db01/scsi0:1; nothing was changed\n"
    );
    served.stop();
}

#[test]
fn names_with_odd_characters_survive_the_way() {
    let served = Served::start(&[b""]);
    let odd = "a?b#c%2F;d&e=..\"\\/.";
    served.run(&["pair", "add", odd, &id(1)]).expect(0);
    assert_eq!(served.json(&["pair", "list"])["pairs"][0]["pair"], odd);
    assert_eq!(
        served.json(&["pair", "remove", odd])["removed"].as_bool(),
        Some(true)
    );
}

#[test]
fn what_is_on_a_disk_is_lost_only_by_name() {
    let content = ext_like();
    let served = Served::start(&[&content, b""]);
    let (full, empty) = (id(1), id(2));
    let refused = served.run(&["pair", "add", "db01/0", &full]).expect(5);
    assert!(
        refused.stderr.contains("is not empty: it holds ext4"),
        "{refused:?}"
    );
    assert!(
        refused.stderr.contains(&format!("--overwrite {full}")),
        "{refused:?}"
    );
    let other = served
        .run(&["pair", "add", "db01/0", &full, "--overwrite", &empty])
        .expect(5);
    assert!(
        other
            .stderr
            .contains(&format!("but {empty} is named for overwriting")),
        "{other:?}"
    );
    assert_eq!(
        served.json(&["pair", "list"])["pairs"].as_array().unwrap().len(),
        0,
        "nothing was changed"
    );
    served
        .run(&["pair", "add", "db01/0", &full, "--overwrite", &full])
        .expect(0);
    assert_eq!(
        served.json(&["pair", "list"])["pairs"][0]["overwrite"].as_bool(),
        Some(true)
    );
    let now = std::fs::read(served.disk_path(1)).unwrap();
    assert!(now == content, "pairing must not change a byte of the disk");
}

#[test]
fn every_refusal_has_its_code_and_its_words() {
    let served = Served::start(&[b"", b""]);
    served.run(&["pair", "add", "db01/0", &id(1)]).expect(0);
    let rows: &[(&[&str], i32, &str)] = &[
        (
            &["pair", "add", "db02/0", &id(1)],
            5,
            "belongs to pair db01/0 already",
        ),
        (
            &["pair", "add", "db01/0", &id(2)],
            5,
            "pair db01/0 exists already",
        ),
        (&["pair", "add", "db02/0", &id(9)], 4, "is not attached"),
        (&["pair", "add", "db02/0", "sdb"], 2, "not a SCSI ID: \"sdb\""),
        (
            &["pair", "add", "db02", &id(2)],
            2,
            "it has no \"/\" between machine and disk",
        ),
        (&["pair", "add", "db02/0"], 2, "SCSI-ID"),
        (&["jobs", "show", "77"], 2, "there is no job 77"),
        (&["jobs", "show", "x"], 2, "invalid value"),
        (&["status", "--watch", "--json"], 2, "cannot be used with"),
        (
            &["status", "--socket", "/var/tmp/no-such.sock"],
            6,
            "nobody serves /var/tmp/no-such.sock",
        ),
    ];
    for (args, code, words) in rows {
        let said = served.run(args).expect(*code);
        assert!(said.stderr.contains(words), "{args:?}: {said:?}");
        assert!(said.stderr.starts_with("error: "), "{args:?}: {said:?}");
    }
    // A program that asks in JSON is refused in JSON.
    let said = served.run(&["pair", "add", "db02/0", &id(9), "--json"]).expect(4);
    assert_eq!(said.json()["exit_code"].as_u64(), Some(4));
    assert!(
        said.json()["hint"].as_str().unwrap().contains("disks list"),
        "{said:?}"
    );
}

#[test]
fn a_pair_that_is_written_is_not_removed() {
    let served = Served::start(&[b""]);
    served.run(&["pair", "add", "db01/0", &id(1)]).expect(0);
    let pair = served.hub().state().pairs().unwrap().remove(0);
    let hold = served
        .target
        .pairs
        .take(pair.id, "127.0.0.1:4711".parse().unwrap())
        .unwrap();
    let refused = served.run(&["pair", "remove", "db01/0"]).expect(5);
    assert!(
        refused
            .stderr
            .contains("the source at 127.0.0.1:4711 is writing it"),
        "{refused:?}"
    );
    drop(hold);
    served.run(&["pair", "remove", "db01/0"]).expect(0);
    assert!(
        !served.target.pairs.contains(pair.id),
        "the pair is not held for ever"
    );
}

fn seeding(served: &Served, name: &PairName) -> (Job, PairSession) {
    let now = Timestamp::now();
    let job = Job {
        id: JobId(0),
        kind: JobKind::Seeding,
        pair: name.to_string(),
        peer: "127.0.0.1:4711".to_owned(),
        state: JobState::Running,
        bytes_total: 4 << 20,
        bytes_done: 2 << 20,
        bytes_durable: 1 << 20,
        bytes_written: 1 << 20,
        bytes_zeroed: 0,
        bytes_different: 0,
        bytes_on_wire: 1 << 20,
        started: now,
        ended: None,
        error: None,
        hint: None,
        exit_code: None,
    };
    let job = served
        .hub()
        .state()
        .insert_job(&job)
        .expect("the scene can be set");
    let session = PairSession {
        peer: job.peer.clone(),
        job: job.id,
        rate: 1 << 20,
        seconds_left: Some(2),
        since: now,
    };
    (job, session)
}

#[test]
fn status_follows_the_hub() {
    let served = Served::start(&[b"", b""]);
    served.run(&["pair", "add", "db01/0", &id(1)]).expect(0);
    served.run(&["pair", "add", "db01/1", &id(2)]).expect(0);
    let name: PairName = "db01/0".parse().unwrap();
    let (mut job, session) = seeding(&served, &name);
    let now = Timestamp::now();
    served
        .hub()
        .session_started(&name, session.clone(), job.clone(), now);
    served.hub().session_progress(&name, session, job.clone(), now);
    served.raise("db01/1", "resync needed: disk failed");

    let status = served.json(&["status"]);
    assert_eq!(
        (status["lab"].as_bool(), status["schema"].as_u64()),
        (Some(true), Some(1))
    );
    assert_eq!(status["lab_disks"].as_array().unwrap().len(), 2);
    assert_eq!(status["alarms"][0]["text"], "resync needed: disk failed");
    let (busy, doubtful) = (&status["pairs"][0], &status["pairs"][1]);
    assert_eq!(
        (busy["phase"].as_str(), doubtful["phase"].as_str()),
        (Some("seeding"), Some("resync-needed"))
    );
    let marks =
        ["total", "applied", "durable", "lag"].map(|key| busy["session"][key].as_u64().unwrap() >> 20);
    assert_eq!(marks, [4, 2, 1, 1]);
    assert_eq!(status["jobs_running"][0]["id"].as_i64(), Some(job.id.0));
    // The screen, through a pipe, without colours.
    let screen = served.run(&["status"]).expect(0).stdout;
    assert!(
        screen.contains("CRITICAL  db01/1: resync needed: disk failed"),
        "{screen}"
    );
    assert!(screen.contains("LAB RUN"), "{screen}");
    assert!(screen.contains("50 %") && !screen.contains('\x1b'), "{screen}");

    let metrics = served.raw(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
    let scsi_id = id(1);
    for line in [
        "mt_agent_build_info{version=\"0.1.0\"} 1".to_owned(),
        "mt_agent_lab 1".to_owned(),
        "mt_agent_alarms{severity=\"critical\"} 1".to_owned(),
        "mt_agent_jobs_running 1".to_owned(),
        format!("mt_agent_pair_applied_bytes{{pair=\"db01/0\",scsi_id=\"{scsi_id}\"}} 2097152"),
        format!("mt_agent_pair_lag_bytes{{pair=\"db01/0\",scsi_id=\"{scsi_id}\"}} 1048576"),
        "mt_agent_pair_phase{pair=\"db01/1\",phase=\"resync-needed\"} 1".to_owned(),
        "mt_agent_written_bytes_total 0".to_owned(),
        "# EOF".to_owned(),
    ] {
        assert!(
            metrics.lines().any(|found| found == line),
            "{line} is not in\n{metrics}"
        );
    }

    (job.state, job.ended, job.error) = (JobState::Failed, Some(now), Some("disk failed".to_owned()));
    served.hub().state().update_job(&job).unwrap();
    served.hub().session_ended(&name, job.clone(), now);
    let shown = served.json(&["jobs", "show", &job.id.0.to_string()]);
    assert_eq!(shown["job"]["error"], "disk failed");
    assert_eq!(served.json(&["jobs", "list"])["jobs"][0]["state"], "failed");
    assert!(served.run(&["jobs", "list"]).expect(0).stdout.contains("failed"));
    let status = served.json(&["status"]);
    assert!(status["jobs_running"].as_array().unwrap().is_empty());
    assert_eq!(status["jobs_ended"][0]["state"], "failed");
    assert!(status["pairs"][0]["session"].is_null());
}

#[test]
fn a_running_job_is_shown_as_it_is_and_not_as_it_was_stored() {
    let served = Served::start(&[b""]);
    served.run(&["pair", "add", "db01/0", &id(1)]).expect(0);
    let name: PairName = "db01/0".parse().unwrap();
    let (job, session) = seeding(&served, &name);
    let now = Timestamp::now();
    served
        .hub()
        .session_started(&name, session.clone(), job.clone(), now);
    let newer = Job {
        bytes_done: 3 << 20,
        ..job.clone()
    };
    served.hub().session_progress(&name, session, newer, now);
    for document in [
        served.json(&["jobs", "list"])["jobs"][0].clone(),
        served.json(&["jobs", "show", &job.id.0.to_string()])["job"].clone(),
    ] {
        assert_eq!(document["bytes_done"].as_u64(), Some(3 << 20));
    }
}

#[test]
fn events_arrive_as_they_happen() {
    let served = Served::start(&[b""]);
    let mut command = served.command(&["events", "--json"]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    // Whether the reader has subscribed cannot be seen from here, so the alarm is raised until it was heard.
    let hub = served.hub().clone();
    let heard = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let until = heard.clone();
    let raiser = std::thread::spawn(move || {
        while !until.load(std::sync::atomic::Ordering::Relaxed) {
            hub.clear("disk", "db01/0", Timestamp::now());
            hub.raise(mt_agent::hub::Alarm {
                id: "disk".to_owned(),
                subject: "db01/0".to_owned(),
                severity: mt_agent::hub::Severity::Warning,
                text: "it hums".to_owned(),
                hint: String::new(),
                since: Timestamp::now(),
            });
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    });
    let mut next = |kind| loop {
        let line = lines.next().expect("the reader goes on").unwrap();
        let event: serde_json::Value = serde_json::from_str(&line).unwrap();
        if event["event"] == kind {
            return event;
        }
    };
    let raised = next("alarm-raised");
    heard.store(true, std::sync::atomic::Ordering::Relaxed);
    raiser.join().unwrap();
    assert_eq!(
        (raised["alarm"]["text"].as_str(), raised["schema"].as_u64()),
        (Some("it hums"), Some(1))
    );
    served.run(&["pair", "add", "db01/0", &id(1)]).expect(0);
    assert_eq!(next("pair-added")["pair"], "db01/0");
    served.stop();
    // The agent is gone, and the reader says so.
    assert_eq!(child.wait().unwrap().code(), Some(6));
}

#[test]
fn nobody_to_print_for_is_no_fault() {
    let served = Served::start(&[b""]);
    for (args, code) in [
        (&["status"][..], 0),
        (&["status", "--json"], 0),
        (&["pair", "list"], 0),
        (&["disks", "list"], 0),
        (&["status", "--json", "--socket", "/var/tmp/no-such.sock"], 6),
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let said = Said::of(
            served
                .command(args)
                .stdout(writer)
                .stderr(Stdio::piped())
                .output()
                .unwrap(),
        );
        assert_eq!(said.code, Some(code), "{args:?}: {said:?}");
        assert!(!said.stderr.contains("fault"), "{args:?}: {said:?}");
    }
    // One that never ends by itself ends when its reader is gone.
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut child = served.command(&["events"]).stdout(writer).spawn().unwrap();
    let mut count = 0;
    let status = loop {
        match child.try_wait().unwrap() {
            Some(status) => break status,
            None => {
                count += 1;
                assert!(count < 2000, "events goes on for nobody");
                served.raise("db01/0", &format!("alarm {count}"));
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
        }
    };
    assert_eq!(status.code(), Some(0));
}

#[test]
fn the_description_is_the_one_that_is_kept() {
    let kept = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/openapi.json");
    let made = Said::of(std::process::Command::new(AGENT).arg("openapi").output().unwrap())
        .expect(0)
        .stdout;
    let stored = std::fs::read_to_string(kept).unwrap_or_default();
    assert!(
        made == stored,
        "the OpenAPI document is not {kept}; if the change is meant, raise SCHEMA where a field changed its meaning \
         or went away, and regenerate it by: cargo run -p mt-agent -- openapi > agent/tests/fixtures/openapi.json"
    );
    let served = Served::start(&[]);
    let answer = served.raw(b"GET /v1/openapi.json HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(answer.ends_with(&stored), "the socket serves the same");
    let document: serde_json::Value = serde_json::from_str(&stored).unwrap();
    for path in [
        "/v1/status",
        "/v1/disks",
        "/v1/pairs",
        "/v1/pairs/{machine}/{disk}",
        "/v1/jobs",
        "/v1/jobs/{id}",
    ] {
        assert!(document["paths"][path].is_object(), "{path}");
    }
}

#[test]
fn disks_are_served_as_the_command_lists_them() {
    let served = Served::start(&[b""]);
    let answer = served.raw(b"GET /v1/disks HTTP/1.1\r\nHost: x\r\n\r\n");
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    let document: serde_json::Value = serde_json::from_str(body).unwrap();
    let disks = document["disks"].as_array().unwrap();
    assert!(
        disks.iter().any(|disk| disk["identity"]["scsi_id"] == id(1)),
        "{document}"
    );
}

#[test]
fn a_second_agent_does_not_push_out_the_first() {
    let served = Served::start(&[]);
    let config = served.folder.path().join("second.toml");
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let folder = served.folder.path().display();
    let text = format!(
        "[agent]\nstate_dir = \"{folder}/second\"\nsocket = \"{}\"\n[target]\nlisten = \"{port}\"\n",
        served.socket().display()
    );
    std::fs::write(&config, text).unwrap();
    let said = served
        .run(&["target", "--config", config.to_str().unwrap()])
        .expect(1);
    assert!(said.stderr.contains("another agent does"), "{said:?}");
    served.run(&["status"]).expect(0);
}
