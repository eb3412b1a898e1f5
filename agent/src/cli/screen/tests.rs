use super::*;
use crate::model::{JobId, JobKind};
use crate::status::model::{AgentDoc, DisksSummary, LabDiskDoc, ProblemDoc, SCHEMA, SeedingDoc, TotalsDoc};

const PLAIN: Look = Look {
    width: 100,
    colour: false,
};

fn pair(name: &str, last: u8, phase: PairPhase) -> PairDoc {
    let (machine, disk) = name.split_once('/').unwrap();
    PairDoc {
        pair: name.to_owned(),
        machine: machine.to_owned(),
        disk: disk.to_owned(),
        scsi_id: format!("naa.6000c29a71e02b4c9d118e55037faa{last:02x}")
            .parse()
            .unwrap(),
        kernel_name: Some("sdb".to_owned()),
        disk_problem: None,
        size: 40 << 30,
        protected_size: Some(40 << 30),
        logical_block_size: 512,
        generation: 1,
        adopted: true,
        overwrite: false,
        created: "2026-03-02T08:00:00Z".parse().unwrap(),
        phase,
        seeding: None,
        session: None,
    }
}

fn session(applied: u64, durable: u64) -> SessionDoc {
    SessionDoc {
        peer: "127.0.0.1:40112".to_owned(),
        job: 12,
        total: 40 << 30,
        applied,
        durable,
        lag: applied.saturating_sub(durable),
        rate: 812 << 20,
        seconds_left: Some(1900),
        since: "2026-03-02T10:00:00Z".parse().unwrap(),
    }
}

fn job(id: i64, state: JobState, error: Option<&str>) -> Job {
    Job {
        id: JobId(id),
        kind: JobKind::Seeding,
        pair: "db01/scsi0:0".to_owned(),
        peer: "127.0.0.1:40112".to_owned(),
        state,
        bytes_total: 40 << 30,
        bytes_done: 40 << 30,
        bytes_durable: 40 << 30,
        bytes_written: 3 << 30,
        bytes_zeroed: 0,
        bytes_different: 0,
        bytes_on_wire: 3 << 30,
        started: "2026-03-02T09:00:00Z".parse().unwrap(),
        ended: Some("2026-03-02T09:10:00Z".parse().unwrap()),
        error: error.map(str::to_owned),
        hint: None,
        exit_code: None,
    }
}

fn calm() -> StatusDoc {
    StatusDoc {
        schema: SCHEMA,
        time: "2026-03-02T10:14:07Z".parse().unwrap(),
        agent: AgentDoc {
            version: "0.1.0".to_owned(),
            pid: 612,
            host: "tgt01".to_owned(),
            started: "2026-03-02T07:02:00Z".parse().unwrap(),
            listen: "127.0.0.1:9443".to_owned(),
            state_dir: "/var/lib/master-target".to_owned(),
        },
        lab: false,
        plain: false,
        lab_disks: Vec::new(),
        alarms: Vec::new(),
        pairs: Vec::new(),
        jobs_running: Vec::new(),
        jobs_ended: Vec::new(),
        disks: DisksSummary {
            known: true,
            count: 1,
            not_usable: 1,
            ..DisksSummary::default()
        },
        totals: TotalsDoc::default(),
    }
}

fn troubled() -> StatusDoc {
    let mut seeding = pair("db01/scsi0:0", 1, PairPhase::Seeding);
    seeding.session = Some(session(20 << 30, 15 << 30));
    let mut verifying = pair("db01/scsi0:1", 2, PairPhase::Verifying);
    verifying.session = Some(session(10 << 30, 0));
    let mut interrupted = pair("web/0", 3, PairPhase::Interrupted);
    interrupted.seeding = Some(SeedingDoc {
        seeding_id: "00".repeat(16),
        durable: 10 << 30,
        size: 40 << 30,
        complete: false,
    });
    let mut missing = pair("web/1", 4, PairPhase::ResyncNeeded);
    missing.kernel_name = None;
    missing.disk_problem = Some(ProblemDoc {
        error: "SCSI ID naa.6000c29a71e02b4c9d118e55037faa04 is not attached".to_owned(),
        hint: Some("attach the disk to this virtual machine, then run \"mt-agent disks list\"".to_owned()),
    });
    StatusDoc {
        lab: true,
        lab_disks: vec![LabDiskDoc {
            scsi_id: missing.scsi_id,
            path: "/dev/loop7".to_owned(),
        }],
        alarms: vec![AlarmDoc {
            id: "pair-needs-resync".to_owned(),
            subject: "web/1".to_owned(),
            severity: SeverityDoc::Critical,
            text: "resync needed: cannot write 1048576 bytes at 0x1a2000 of /dev/sdc".to_owned(),
            hint: "see the kernel log".to_owned(),
            since: "2026-03-02T10:00:00Z".parse().unwrap(),
        }],
        pairs: vec![
            seeding,
            verifying,
            interrupted,
            missing,
            pair("web/2", 5, PairPhase::Seeded),
        ],
        jobs_ended: vec![
            job(11, JobState::Done, None),
            job(10, JobState::Failed, Some("disk failed")),
        ],
        disks: DisksSummary {
            known: true,
            count: 12,
            paired: 4,
            free: 7,
            not_usable: 1,
            warnings: vec!["udev is not answering".to_owned()],
        },
        ..calm()
    }
}

#[test]
fn nothing_to_say_is_said_shortly() {
    let expected = "\
Master target tgt01                             mt-agent 0.1.0, up 3 h 12 min   2026-03-02 10:14:07Z

No alarms.

PAIRS  none
  \"mt-agent disks list\" shows the disks, \"mt-agent pair add\" pairs one

DISKS  1   0 paired   0 free   1 not usable
";
    assert_eq!(render(&calm(), PLAIN), expected);
}

#[test]
fn what_is_wrong_comes_first() {
    let expected = "\
Master target tgt01                             mt-agent 0.1.0, up 3 h 12 min   2026-03-02 10:14:07Z
LAB RUN: 1 file or loop device stands in for SCSI disks. Not for machines that matter.

ALARMS  1
  CRITICAL  web/1: resync needed: cannot write 1048576 bytes at 0x1a2000 of /dev/sdc (for 14 min)
            hint: see the kernel log

PAIRS  5   1 resync-needed   1 interrupted   1 seeding   1 verifying   1 seeded
  db01/scsi0:0  seeding       [============-----                 ]  50 %   812 MiB/s  31 min left
      naa.6000c29a71e02b4c9d118e55037faa01 (sdb), 40.0 GiB
      applied 20.0 GiB, durable 15.0 GiB, lag 5.00 GiB, from 127.0.0.1:40112
  db01/scsi0:1  verifying     [========                          ]  25 %   812 MiB/s  31 min left
      naa.6000c29a71e02b4c9d118e55037faa02 (sdb), 40.0 GiB
      from 127.0.0.1:40112
  web/0         interrupted   naa.6000c29a71e02b4c9d118e55037faa03 (sdb), 40.0 GiB
      durable up to 10.0 GiB of 40.0 GiB (25 %); the source goes on from there
  web/1         resync-needed naa.6000c29a71e02b4c9d118e55037faa04 (not attached), 40.0 GiB
      - SCSI ID naa.6000c29a71e02b4c9d118e55037faa04 is not attached
        hint: attach the disk to this virtual machine, then run \"mt-agent disks list\"
  web/2         seeded        naa.6000c29a71e02b4c9d118e55037faa05 (sdb), 40.0 GiB

LAST JOBS
    11  seeding  done        db01/scsi0:0, 3.00 GiB written, 0 B zeroed, took 10 min, 64 min ago
    10  seeding  failed      db01/scsi0:0, 3.00 GiB written, 0 B zeroed, took 10 min, 64 min ago
        disk failed

DISKS  12   4 paired   7 free   1 not usable
  warning: udev is not answering
";
    assert_eq!(render(&troubled(), PLAIN), expected);
}

#[test]
fn every_line_fits_where_it_can() {
    for width in [60, 72, 80, 100, 120] {
        let text = render(&troubled(), Look { width, colour: false });
        for line in text.lines() {
            // An ID is not broken: it is there to be copied.
            let unbroken = line.contains("naa.");
            assert!(line.chars().count() <= width || unbroken, "{width}: {line:?}");
        }
    }
    // A width that no terminal has is no reason to fail.
    for width in [0, 1, usize::MAX] {
        render(&troubled(), Look { width, colour: true });
    }
}

#[test]
fn colours_change_nothing_but_colour() {
    let plain = render(&troubled(), PLAIN);
    let mut painted = render(
        &troubled(),
        Look {
            colour: true,
            ..PLAIN
        },
    );
    assert!(painted.contains("\x1b[1;31mCRITICAL\x1b[0m"));
    for code in ["0", "1", "2", "32", "33", "36", "1;31"] {
        painted = painted.replace(&format!("\x1b[{code}m"), "");
    }
    assert_eq!(painted, plain);
}

#[test]
fn what_others_sent_cannot_move_the_cursor() {
    let evil = "\x1b[2J\x07\r\nx\u{9b}31m";
    let mut status = troubled();
    status.agent.host = evil.to_owned();
    status.alarms[0].text = evil.to_owned();
    status.alarms[0].subject = evil.to_owned();
    status.alarms[0].hint = evil.to_owned();
    status.pairs[0].kernel_name = Some(evil.to_owned());
    status.pairs[0].session.as_mut().unwrap().peer = evil.to_owned();
    status.jobs_ended[1].error = Some(evil.to_owned());
    status.disks.warnings[0] = evil.to_owned();
    let text = render(&status, PLAIN);
    assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "{text:?}");
}

#[test]
fn a_screen_that_is_too_low_says_what_is_missing() {
    let text = "a\nb\nc\nd\n";
    assert_eq!(clip(text, 4), ["a", "b", "c", "d"]);
    assert_eq!(
        clip(text, 3),
        ["a", "b", "... 2 more lines; make the terminal taller"]
    );
    assert_eq!(clip(text, 1), ["a"]);
    assert!(clip(text, 0).is_empty());
}

#[test]
fn numbers_at_the_edge_do_not_break_the_bar() {
    let odd = [
        (0, 0, 0),
        (u64::MAX, u64::MAX, u64::MAX),
        (5, 10, 1),
        (1, 0, u64::MAX),
    ];
    for (applied, durable, total) in odd {
        let session = SessionDoc {
            total,
            seconds_left: None,
            ..session(applied, durable)
        };
        for room in [0, 10, 44, 200] {
            progress(PairPhase::Seeding, &session, room);
        }
    }
}
