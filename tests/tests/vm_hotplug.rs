//! Disks that come and go while the target runs: seen within seconds, never taken for another, and a pair whose disk
//! was pulled out under it fails alone.

use std::time::Duration;

use mt_tests::data::{Fill, MIB, assert_same, digest, fill, write_at};
use mt_tests::guest::appliance::{SOON, alarm, pair};
use mt_tests::guest::machine::{Controller, Disk};
use mt_tests::guest::{Guest, Machine, can_boot};
use mt_tests::scratch::Scratch;
use mt_tests::test_name;
use serde_json::Value;

/// Size of all disks here, bytes.
const SIZE: u64 = 16 * MIB;
/// Kind of the alarm of a pair whose disk is not there once.
const MISSING: &str = "pair-disk-missing";
/// Kind of the alarm of a pair whose copy is in doubt.
const RESYNC: &str = "pair-needs-resync";

fn wwn(number: u64) -> u64 {
    0x5000_c290_0000_0000 + number
}

fn id(number: u64) -> String {
    format!("naa.{:016x}", wwn(number))
}

fn disk(node: &str, number: u64) -> Disk {
    Disk::new(node, "para.0").wwn(wwn(number))
}

fn count(status: &Value) -> u64 {
    status["disks"]["count"].as_u64().expect("a number")
}

/// Kernel name of the disk of a pair.
#[track_caller]
fn kernel_name(guest: &mut Guest, name: &str) -> String {
    let status = guest.status();
    pair(&status, name)["kernel_name"]
        .as_str()
        .unwrap_or_else(|| panic!("{name} has its disk: {status:#}"))
        .to_owned()
}

/// The life of a pair's disk `x1`: plugged in, paired, pulled out, another disk put under its name, back again, and
/// back twice.
#[test]
fn vm_disks_that_come_and_go_are_seen_and_never_mistaken() {
    if !can_boot(test_name!()) {
        return;
    }
    let scratch = Scratch::new();
    let image = |name: &str| {
        let path = scratch.sparse(&format!("{name}.img"), SIZE);
        (fill(&path, SIZE, Fill::Random, name.len() as u64), path).1
    };
    let source = image("source-of-all");
    let (target, stranger, twin) = (scratch.sparse("x1.img", SIZE), image("stranger"), image("twin"));
    let before = [&stranger, &twin].map(|path| digest(path, SIZE));
    let mut guest = Machine::new()
        .with_controller(Controller::Pvscsi, "para")
        .with_disk(&image("resident"), &disk("resident", 1))
        .with_image("x1", &target)
        .with_image("stranger", &stranger)
        .with_image("twin", &twin)
        .with_virtio_source("source", &source)
        .boot(&scratch);
    guest.start_target();
    let at_first = count(&guest.status());

    // It comes.
    guest.qmp().plug(&disk("x1", 10));
    guest.status_when("the new disk is counted", SOON, |status| {
        count(status) == at_first + 1
    });
    guest.done(&format!("grep -q 'attached: {} (sd' /tmp/target.log", id(10)));
    guest.wait_until(
        "the event of the new disk",
        SOON,
        &format!(
            "grep disks-changed /tmp/events | grep -q 'attached: {} (sd'",
            id(10)
        ),
    );
    guest.pair("db01/x1", &id(10));
    let name = kernel_name(&mut guest, "db01/x1");

    // It goes.
    guest.qmp().unplug("x1");
    let status = guest.status_when("the alarm of the missing disk", SOON, |status| {
        alarm(status, MISSING, "db01/x1").is_some()
    });
    let raised = alarm(&status, MISSING, "db01/x1").expect("waited for");
    assert_eq!(raised["severity"], "critical");
    assert_eq!(raised["text"], format!("target disk {} is not attached", id(10)));
    assert_eq!(pair(&status, "db01/x1")["kernel_name"], Value::Null);
    guest.done(&format!(
        "grep alarm-raised /tmp/events | grep {MISSING} | grep -q db01/x1"
    ));
    let said = guest.send("db01/x1", "/dev/vda", "").expect_error(
        4,
        &[
            &format!("SCSI ID {} is not attached", id(10)),
            "nothing was written",
        ],
    );
    println!("{}", said.stderr);

    // Another disk comes under its name.
    guest.qmp().plug(&disk("stranger", 11));
    guest.status_when("the stranger is counted", SOON, |status| {
        count(status) == at_first + 1
    });
    guest.done(&format!(
        "[ \"$(cat /sys/block/{name}/device/wwid)\" = {} ]",
        id(11)
    ));
    let status = guest.status();
    assert!(alarm(&status, MISSING, "db01/x1").is_some(), "{status:#}");
    assert_eq!(pair(&status, "db01/x1")["kernel_name"], Value::Null);
    guest
        .send("db01/x1", "/dev/vda", "")
        .expect_error(4, &["is not attached", "nothing was written"]);

    // It comes back, under another name: the stranger has its own.
    guest.qmp().plug(&disk("x1", 10));
    let status = guest.status_when("the alarm is over", SOON, |status| {
        alarm(status, MISSING, "db01/x1").is_none()
    });
    assert_ne!(pair(&status, "db01/x1")["kernel_name"], name.as_str());
    guest.done(&format!(
        "grep alarm-cleared /tmp/events | grep {MISSING} | grep -q db01/x1"
    ));

    // It is there twice.
    guest.qmp().plug(&disk("twin", 10));
    let status = guest.status_when("the alarm of the twin", SOON, |status| {
        alarm(status, MISSING, "db01/x1").is_some()
    });
    let text = alarm(&status, MISSING, "db01/x1").expect("waited for")["text"].to_string();
    println!("{text}");
    assert!(
        text.contains(&format!("target disk {} is attached", id(10))),
        "{text}"
    );
    let said = guest.send("db01/x1", "/dev/vda", "").expect_error(
        4,
        &[
            &format!("SCSI ID {} is attached twice", id(10)),
            "nothing was written",
        ],
    );
    println!("{}", said.stderr);
    guest
        .run(&format!("mt-agent pair add db02/x1 {}", id(10)))
        .expect_error(5, &[&id(10), "db01/x1"]);
    guest.qmp().unplug("twin");
    guest.status_when("the twin is gone", SOON, |status| {
        alarm(status, MISSING, "db01/x1").is_none()
    });

    // After all that it is the disk it was.
    guest.send("db01/x1", "/dev/vda", "").expect_done();
    guest.stop_target();
    guest.power_off();
    assert_same(&source, &target, SIZE);
    for (path, before) in [&stranger, &twin].iter().zip(before) {
        assert_eq!(digest(path, SIZE), before, "{} was written to", path.display());
    }
}

/// Two pairs are being written; the disk of one is taken away, first by the kernel, then by the machine. That pair
/// fails in words, and says that it has to be compared again; the other one comes to its end. Attached and sent again,
/// the copy is equal.
#[test]
fn vm_a_disk_that_goes_while_it_is_written_fails_its_pair_alone() {
    if !can_boot(test_name!()) {
        return;
    }
    let scratch = Scratch::new();
    let image = |name: &str, seed: u64| {
        let path = scratch.sparse(&format!("{name}.img"), SIZE);
        fill(&path, SIZE, Fill::Random, seed);
        path
    };
    let (source, other_source) = (image("source", 1), image("other-source", 2));
    let (target, other_target) = (scratch.sparse("x1.img", SIZE), scratch.sparse("x2.img", SIZE));
    let mut guest = Machine::new()
        .with_controller(Controller::Pvscsi, "para")
        .with_disk(&target, &disk("x1", 10))
        .with_disk(&other_target, &disk("x2", 20))
        .with_virtio_source("source", &source)
        .with_virtio_source("other", &other_source)
        .boot(&scratch);
    guest.start_target();
    guest.pair("db01/x1", &id(10));
    guest.pair("db01/x2", &id(20));

    // By the kernel, as an administrator would.
    guest.start_send("other", "db01/x2", "/dev/vdb", "--bandwidth-limit 512KiB");
    begin_and_wait_for_the_middle(&mut guest);
    let name = kernel_name(&mut guest, "db01/x1");
    guest.done(&format!("echo 1 >/sys/block/{name}/device/delete"));
    the_pair_fails_alone(&mut guest);
    guest.done("for host in /sys/class/scsi_host/host*; do echo '- - -' >$host/scan; done");
    sent_again_it_is_equal(&mut guest);

    // By the machine, as on "remove device" in its settings.
    guest.done("dd if=/dev/zero of=/dev/$(mt-agent disks list | grep 5000c2900000000a | cut -d' ' -f1) bs=1M 2>/dev/null; sync");
    begin_and_wait_for_the_middle(&mut guest);
    guest.qmp().unplug("x1");
    the_pair_fails_alone(&mut guest);
    // While it was away somebody wrote to it, below the mark up to which it was durable: an older run that went on from
    // there called the copy complete, and it was not.
    write_at(&target, 4096, b"changed while it was attached to another machine");
    guest.qmp().plug(&disk("x1", 10));
    sent_again_it_is_equal(&mut guest);

    // The other one never noticed.
    let other = guest
        .sent("other", Duration::from_secs(180))
        .expect_done()
        .event("result");
    assert_eq!(other["durable"], SIZE);
    assert_eq!(other["connections"], 1);
    guest.stop_target();
    guest.power_off();
    assert_same(&source, &target, SIZE);
    assert_same(&other_source, &other_target, SIZE);
}

/// Sends slowly to the first pair, until some of it is durable and much of it is not.
#[track_caller]
fn begin_and_wait_for_the_middle(guest: &mut Guest) {
    guest.start_send("send", "db01/x1", "/dev/vda", "--bandwidth-limit 512KiB");
    let status = guest.status_when("the middle of the send", SOON, |status| {
        let session = &pair(status, "db01/x1")["session"];
        session["durable"].as_u64().is_some_and(|durable| durable >= MIB)
    });
    let session = &pair(&status, "db01/x1")["session"];
    assert!(session["durable"].as_u64() < Some(SIZE - 4 * MIB), "{session:#}");
}

#[track_caller]
fn the_pair_fails_alone(guest: &mut Guest) {
    let said = guest.sent("send", SOON);
    println!(
        "exit code {}: {}{}",
        said.code,
        said.stdout.lines().last().unwrap_or(""),
        said.stderr
    );
    // Never the words of the error code that the kernel happened to choose, such as "no space left on device".
    let said = said.expect_error(4, &["it has been taken away; nothing more is written"]);
    assert!(
        said.stdout.contains(&id(10)) || said.stderr.contains(&id(10)),
        "{said}"
    );
    assert!(!said.stderr.contains("panicked"), "{said}");
    let status = guest.status_when("both alarms", SOON, |status| {
        alarm(status, RESYNC, "db01/x1").is_some() && alarm(status, MISSING, "db01/x1").is_some()
    });
    println!(
        "{}",
        alarm(&status, RESYNC, "db01/x1").expect("waited for")["text"]
    );
    assert_eq!(pair(&status, "db01/x1")["phase"], "resync-needed");
    assert!(alarm(&status, RESYNC, "db01/x2").is_none(), "{status:#}");
    assert!(alarm(&status, MISSING, "db01/x2").is_none(), "{status:#}");
    guest
        .send("db01/x1", "/dev/vda", "")
        .expect_error(4, &["is not attached", "nothing was written"]);
}

#[track_caller]
fn sent_again_it_is_equal(guest: &mut Guest) {
    guest.status_when("the disk is back", SOON, |status| {
        alarm(status, MISSING, "db01/x1").is_none()
    });
    let again = guest
        .send("db01/x1", "/dev/vda", "")
        .expect_done()
        .event("result");
    println!("again: {again}");
    let status = guest.status();
    assert!(alarm(&status, RESYNC, "db01/x1").is_none(), "{status:#}");
    assert_eq!(pair(&status, "db01/x1")["phase"], "seeded");
    guest
        .run("mt-agent verify --json --pair db01/x1 /dev/vda")
        .expect_done();
}
