//! A protected disk sent onto a real PVSCSI disk; what was written is judged from outside the machine.

use mt_tests::data::{Fill, MIB, assert_same, fill};
use mt_tests::disks::Canaries;
use mt_tests::guest::machine::{Controller, Disk};
use mt_tests::guest::{Guest, Machine, can_boot};
use mt_tests::scratch::Scratch;
use mt_tests::test_name;

/// Size of the protected disk and of its target disk, bytes.
const SIZE: u64 = 48 * MIB;
/// The same of the smaller pair.
const SMALL: u64 = 16 * MIB;

fn wwn(number: u64) -> u64 {
    0x5000_c290_0000_0000 + number
}

fn id(number: u64) -> String {
    format!("naa.{:016x}", wwn(number))
}

/// Both ends in the guest: source over loopback, target disk on PVSCSI. Before the machine starts the target disk of
/// the small pair holds a file system, and three canaries hold random bytes. After it has powered off the images are
/// compared on this side, where the agent has no say.
#[test]
fn vm_a_disk_is_sent_onto_a_scsi_disk_and_no_other_is_touched() {
    if !can_boot(test_name!()) {
        return;
    }
    let scratch = Scratch::new();
    let (source, small) = (
        scratch.sparse("source.img", SIZE),
        scratch.sparse("small.img", SMALL),
    );
    fill(&source, SIZE, Fill::HalfZero, 0xd15c);
    fill(&small, SMALL, Fill::Random, 0x5a11);
    let (target, taken) = (
        scratch.sparse("target.img", SIZE),
        scratch.sparse("taken.img", SMALL),
    );
    // Old content where the protected disk is zero: it has to be made zero.
    fill(&target, SIZE / 2, Fill::Random, 0x01d);
    let canaries = Canaries::new(&scratch, 3);
    let disk = |node: &str, number: u64| Disk::new(node, "para.0").wwn(wwn(number));
    let mut machine = Machine::new()
        .with_controller(Controller::Pvscsi, "para")
        .with_disk(&target, &disk("target", 1))
        .with_disk(&taken, &disk("taken", 2))
        .with_virtio_source("source", &source)
        .with_virtio_source("small", &small);
    for (number, path) in (0..).zip(canaries.paths()) {
        let node = format!("canary{number}");
        // One of them has no SCSI ID.
        let shown = match number {
            0 => Disk::new(&node, "para.0"),
            _ => disk(&node, 10 + number),
        };
        machine = machine.with_disk(path, &shown);
    }
    let mut guest = machine.boot(&scratch);
    guest.done(&format!(
        "mkfs.ext4 -q /dev/$(mt-agent disks list | grep {} | cut -d' ' -f1)",
        id(2)
    ));
    guest.start_target();
    what_a_disk_holds_is_lost_only_when_it_is_named(&mut guest);

    guest.done(&format!(
        "mt-agent pair add db01/scsi0:0 {0} --overwrite {0}",
        id(1)
    ));
    let first = guest
        .send("db01/scsi0:0", "/dev/vda", "")
        .expect_done()
        .event("result");
    println!("first: {first}");
    assert_eq!(first["scsi_id"], id(1));
    assert_eq!(first["durable"], SIZE);
    assert_eq!(first["bytes_sent"], SIZE / 2, "half of the disk is zero");
    // Zeros on the target disk's second half are zeros already.
    assert_eq!(first["bytes_zeroed"], SIZE / 4);

    guest.send("db01/scsi0:1", "/dev/vdb", "").expect_done();
    let second = guest
        .send("db01/scsi0:0", "/dev/vda", "")
        .expect_done()
        .event("result");
    println!("second: {second}");
    assert_eq!(second["bytes_sent"], 0);
    assert_eq!(second["bytes_zeroed"], 0);
    let on_wire = second["bytes_on_wire"].as_u64().expect("a number");
    assert!(on_wire < SIZE / 500, "only digests travel: {on_wire} bytes");

    a_difference_is_found_and_mended(&mut guest);
    guest.stop_target();
    guest.power_off();
    assert_same(&source, &target, SIZE);
    assert_same(&small, &taken, SMALL);
    canaries.assert_untouched();
}

fn what_a_disk_holds_is_lost_only_when_it_is_named(guest: &mut Guest) {
    let pair = "mt-agent pair add db01/scsi0:1";
    let (disk, other) = (id(2), id(1));
    let said = guest.run(&format!("{pair} {disk}")).expect_error(
        5,
        &[
            "is not empty: it holds ext4",
            &format!("--overwrite {disk}"),
            &disk,
        ],
    );
    println!("{}", said.stderr);
    guest
        .run(&format!("{pair} {disk} --overwrite {other}"))
        .expect_error(5, &[&disk, &other]);
    guest.send("db01/scsi0:1", "/dev/vdb", "").expect_error(
        6,
        &[
            "pair-unknown",
            "this machine has no such pair",
            "nothing was written",
        ],
    );
    guest.done(&format!("{pair} {disk} --overwrite {disk}"));
    // A protected disk that does not fit is refused before anything is written.
    guest
        .send("db01/scsi0:1", "/dev/vda", "")
        .expect_error(5, &[&SMALL.to_string(), &SIZE.to_string(), "nothing was written"]);
}

/// Somebody writes to the target disk behind the agent's back.
fn a_difference_is_found_and_mended(guest: &mut Guest) {
    let verify = "mt-agent verify --json --pair db01/scsi0:0 /dev/vda";
    guest.run(verify).expect_done();
    guest.done(&format!(
        "disk=$(mt-agent disks list | grep {} | cut -d' ' -f1)
        printf damage | dd of=/dev/$disk bs=1 seek=5242881 conv=notrunc 2>/dev/null; sync",
        id(1)
    ));
    let found = guest.run(verify).expect_error(9, &[]).event("result");
    println!("damaged: {}", found["differences"]);
    assert_eq!(found["differences"][0]["offset"], 5 * MIB);
    assert_eq!(found["differences"].as_array().map(Vec::len), Some(1));
    let mended = guest
        .send("db01/scsi0:0", "/dev/vda", "")
        .expect_done()
        .event("result");
    assert_eq!(mended["bytes_sent"], found["bytes_different"]);
    guest.run(verify).expect_done();
}
