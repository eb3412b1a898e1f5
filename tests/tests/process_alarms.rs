//! Each alarm of recovery points comes and goes in status, as an event, in the metrics, and in the journal. On files, without root.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use mt_tests::agent::{Running, Said, wait_until};
use mt_tests::data::{Fill, MIB, change_blocks, fill, write_at};
use mt_tests::disks::{run, text};
use mt_tests::lab::Lab;
use mt_tests::stores::{data_of, flip};
use serde_json::Value;

const SIZE: u64 = 8 * MIB;
const MACHINE: &str = "db01";

struct Scene {
    lab: Lab,
    source: PathBuf,
    events: Running,
}

/// A target that keeps points, a machine of one disk, and somebody who follows the events.
fn scene() -> Scene {
    let mut lab = Lab::new();
    let source = lab.scratch.sparse("source.img", SIZE);
    fill(&source, SIZE, Fill::HalfZero, 1);
    let id = lab.add_disk(&lab.scratch.sparse("target.img", SIZE));
    lab.keep_points_in(&lab.scratch.join("retention"));
    lab.start();
    lab.verb(&["retention", "init"]).expect_done();
    lab.pair(&format!("{MACHINE}/scsi0:0"), &id);
    let events = follow(&lab);
    Scene { lab, source, events }
}

fn follow(lab: &Lab) -> Running {
    let mut command = mt_tests::agent::command(["events", "--json"]);
    command.env("MT_AGENT_SOCKET", lab.socket());
    Running::start(command, lab.scratch.path())
}

impl Scene {
    fn send(&self) -> Said {
        self.lab.epoch(MACHINE, &[("scsi0:0", &self.source)], &[])
    }

    fn next(&self, seed: u64, count: u64) {
        change_blocks(&self.source, SIZE, 4096, count, seed);
        write_at(&self.source, 0, &(seed + 1).to_le_bytes().repeat(512));
        self.send().expect_done();
    }

    fn policy(&self, setting: &str, value: &str) {
        self.lab.verb(&["policy", MACHINE, setting, value]).expect_done();
    }

    /// Severity of an alarm of the machine; the volume of the tests may have one of its own.
    fn severity(&self, id: &str) -> Option<String> {
        let status = self.lab.status();
        let alarms = status["alarms"].as_array().expect("alarms are a list");
        let found = alarms
            .iter()
            .find(|alarm| alarm["id"] == id && alarm["subject"] == MACHINE);
        let severity = found.map(|alarm| &alarm["severity"]);
        severity.map(|severity| severity.as_str().expect("a word").to_owned())
    }

    fn metrics(&self) -> String {
        let mut socket = UnixStream::connect(self.lab.socket()).expect("the agent listens");
        let request = "GET /metrics HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n";
        socket.write_all(request.as_bytes()).expect("the agent reads");
        let mut text = String::new();
        socket.read_to_string(&mut text).expect("the agent answers");
        text
    }

    /// How many events of this kind about the alarm have been seen.
    fn seen(&self, event: &str, id: &str) -> usize {
        let said = self.events.stdout_so_far();
        let events = said
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok());
        events
            .filter(|seen| {
                let alarm = &seen["alarm"];
                seen["event"] == event && alarm["id"] == id && alarm["subject"] == MACHINE
            })
            .count()
    }

    /// How many lines of the journal say this of the alarm.
    fn noted(&mut self, what: &str, id: &str) -> usize {
        let journal = self.lab.target().stderr_so_far();
        let (id, subject) = (format!("alarm=\"{id}\""), format!("subject=\"{MACHINE}\""));
        let lines = journal.lines();
        lines
            .filter(|line| line.contains(what) && line.contains(&id) && line.contains(&subject))
            .count()
    }

    /// Everywhere nothing before `raise`, everywhere the alarm behind it, and everywhere its end behind `clear`.
    #[track_caller]
    fn comes_and_goes(
        &mut self,
        id: &str,
        severity: &str,
        raise: impl FnOnce(&mut Self),
        clear: impl FnOnce(&mut Self),
    ) {
        let line = format!("mt_agent_alarm{{id=\"{id}\",subject=\"{MACHINE}\",severity=\"{severity}\"}} 1");
        assert_ne!(self.severity(id).as_deref(), Some(severity));
        assert!(!self.metrics().contains(&line));
        let raised = (self.seen("alarm-raised", id), self.noted("alarm: ", id));
        raise(self);
        wait_until(&format!("{id} in status"), || {
            self.severity(id).as_deref() == Some(severity)
        });
        assert!(
            self.metrics().contains(&line),
            "{line} is not in\n{}",
            self.metrics()
        );
        wait_until(&format!("{id} as an event"), || {
            self.seen("alarm-raised", id) > raised.0
        });
        assert_eq!(
            self.noted("alarm: ", id),
            raised.1 + 1,
            "{id} in the journal, once"
        );

        let cleared = (self.seen("alarm-cleared", id), self.noted("alarm is over: ", id));
        clear(self);
        wait_until(&format!("the end of {id} in status"), || {
            self.severity(id).is_none()
        });
        assert!(
            !self
                .metrics()
                .contains(&format!("id=\"{id}\",subject=\"{MACHINE}\""))
        );
        wait_until(&format!("the end of {id} as an event"), || {
            self.seen("alarm-cleared", id) > cleared.0
        });
        assert_eq!(
            self.noted("alarm is over: ", id),
            cleared.1 + 1,
            "the end of {id} in the journal"
        );
    }
}

/// 80 % and 95 % of the space, an epoch that is late, and a point that is damaged.
#[test]
fn alarms_are_in_status_events_metrics_and_journal() {
    let mut scene = scene();
    // A limit of 64 MiB makes segments of 4 MiB, and two of them are held back.
    let limit = |bytes: u64| (bytes + 8 * MIB).to_string();
    scene.policy("--space", &(64 * MIB).to_string());
    for seed in 0..6 {
        scene.next(seed, 600);
    }
    let document = scene.lab.verb(&["groups", "--json"]).expect_done().json();
    let used = document["machines"][0]["store"]["used"]
        .as_u64()
        .expect("a number");
    let metrics = scene.metrics();
    for line in [
        "mt_agent_retention_used_bytes{machine=\"db01\"}",
        "mt_agent_retention_points{machine=\"db01\"}",
        "mt_agent_retention_lag_bytes{machine=\"db01\"}",
        "mt_agent_retention_lag_seconds{machine=\"db01\"}",
        "mt_agent_retention_volume_free_bytes",
    ] {
        assert!(metrics.contains(line), "{line} is not in\n{metrics}");
    }
    for (percent, severity) in [(86, "warning"), (97, "critical")] {
        scene.comes_and_goes(
            "retention-space",
            severity,
            |scene| scene.policy("--space", &limit(used * 100 / percent)),
            |scene| scene.policy("--space", "0"),
        );
    }
    scene.comes_and_goes(
        "epoch-late",
        "warning",
        |scene| scene.policy("--late-after", "1s"),
        |scene| {
            // Whose source is fenced is not waited for.
            scene
                .lab
                .verb(&["failover", MACHINE, "--to", "latest"])
                .expect_done();
        },
    );
    scene.lab.verb(&["cancel", MACHINE]).expect_done();
    scene.comes_and_goes(
        "epoch-late",
        "warning",
        |scene| {
            assert_eq!(scene.lab.points(MACHINE).len(), 7);
        },
        |scene| {
            scene.policy("--late-after", "1h");
            scene.next(7, 10);
        },
    );
    scene.comes_and_goes(
        "point-damaged",
        "critical",
        |scene| {
            let (file, offset) = data_of(&scene.lab, MACHINE, 3, 0);
            flip(&file, offset);
            assert_eq!(scene.lab.verb(&["retention", "check"]).code(), Some(7));
        },
        |scene| {
            scene.policy("--minimum-age", "0s");
            // Neighbours that were written together share a digest, so that more than one point may need them.
            for point in scene
                .lab
                .points(MACHINE)
                .iter()
                .filter(|point| !point["damaged"].is_null())
            {
                let number = point["point"].to_string();
                scene
                    .lab
                    .verb(&["points", "delete", MACHINE, &number])
                    .expect_done();
            }
        },
    );
    scene.lab.stop();
}

/// A source was promised more than the appliance has, which was set back to an older state.
#[test]
fn the_alarm_of_a_pair_that_needs_a_resync_is_seen_everywhere_and_ends_with_the_reset() {
    let mut scene = scene();
    scene.next(1, 20);
    scene.lab.stop();
    let kept: Vec<(PathBuf, PathBuf)> = ["state", "retention"]
        .iter()
        .map(|name| {
            (
                scene.lab.scratch.join(name),
                scene.lab.scratch.join(&format!("old-{name}")),
            )
        })
        .collect();
    let copy = |from: &Path, to: &Path| run("cp", &["--archive", text(from), text(to)]);
    for (now, old) in &kept {
        copy(now, old);
    }
    scene.lab.start();
    scene.next(2, 20);
    scene.lab.stop();
    for (now, old) in &kept {
        std::fs::remove_dir_all(now).expect("it is there");
        copy(old, now);
    }
    scene.lab.start();
    scene.events = follow(&scene.lab);
    // Whoever follows is there before anything happens.
    wait_until("the follower", || {
        change_policy_back_and_forth(&scene.lab);
        !scene.events.stdout_so_far().is_empty()
    });
    scene.comes_and_goes(
        "pair-needs-resync",
        "critical",
        |scene| {
            scene.send().expect_error(6, &["resync needed", "set back"]);
        },
        |scene| {
            scene
                .lab
                .verb(&["retention", "reset", MACHINE, "--drop-points-of", MACHINE])
                .expect_done();
        },
    );
    scene.send().expect_done();
    scene.lab.stop();
}

/// Something that makes an event: a pair that comes and goes.
fn change_policy_back_and_forth(lab: &Lab) {
    let id = mt_tests::lab::scsi_id(1);
    lab.verb(&["pair", "add", &format!("{MACHINE}/scsi0:0"), &id]);
}
