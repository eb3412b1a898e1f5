//! A retention volume that is full, at fifty different places.

use std::path::Path;

use mt_tests::agent::{Said, wait_until};
use mt_tests::data::{Fill, MIB, change_blocks, digest, fill};
use mt_tests::disks::{Mount, run, text};
use mt_tests::lab::Lab;
use mt_tests::needs;

const SIZE: u64 = 8 * MIB;

/// Sends an epoch. The session before may not have ended yet, which is waited for here, however long it takes.
fn send_when_free(lab: &Lab, disks: &[(&str, &Path)]) -> Said {
    let mut said = None;
    wait_until("the session before to end", || {
        let answer = lab.epoch("db01", disks, &["--retry-for", "0"]);
        let busy = answer.stderr.contains("pair-busy");
        said = Some(answer);
        !busy
    });
    said.expect("it was sent at least once")
}

/// The volume grows by a little, each time by another amount, and is filled again: fifty times the store meets its end at
/// another place. While no point may go, the source is held back and the newest point stays what it was; every fifth
/// time the oldest may go, and replication goes on. Twice the target is killed where it stands.
#[test]
fn loop_a_retention_volume_is_full_at_fifty_places() {
    needs!(loop, "mount");
    let mut lab = Lab::new();
    let source = lab.scratch.sparse("source.img", SIZE);
    fill(&source, SIZE, Fill::HalfZero, 1);
    let target = lab.scratch.sparse("target.img", SIZE);
    let id = lab.add_disk(&target);
    let mut bytes = 32 * MIB;
    let volume = Mount::new(
        lab.scratch.join("retention"),
        &["-t", "tmpfs", "-o", &format!("size={bytes}"), "tmpfs"],
    );
    lab.keep_points_in(volume.path());
    lab.start();
    lab.verb(&["retention", "init"]).expect_done();
    lab.pair("db01/scsi0:0", &id);
    let disks: [(&str, &Path); 1] = [("scsi0:0", &source)];
    let hold = ["policy", "db01", "--minimum-age", "1h"];
    let free = ["policy", "db01", "--minimum-age", "0s"];
    lab.verb(&hold).expect_done();
    let mut newest = digest(&target, SIZE);
    let mut number = None;
    let (mut full, mut seed) = (0, 100);
    for place in 0..50_u64 {
        let mut kept = 0;
        let refused = loop {
            seed += 1;
            change_blocks(&source, SIZE, 4096, 500 + seed % 97, seed);
            let said = send_when_free(&lab, &disks);
            if said.code() != Some(0) {
                break said;
            }
            kept += 1;
            assert!(kept < 60, "place {place}: {bytes} bytes hold everything");
            newest = digest(&source, SIZE);
            number = Some(said.event("result")["point"].clone());
        };
        refused.expect_error(6, &["full"]);
        full += 1;
        if place % 25 == 13 {
            lab.crash_and_restart();
        }
        let points = lab.points("db01");
        let last = points.last().expect("the newest point is never dropped");
        assert_eq!(
            Some(&last["point"]),
            number.as_ref(),
            "place {place}: the newest point stays"
        );
        assert!(last["damaged"].is_null(), "place {place}: {last}");
        // Points can be held and let go of, however full it is.
        let point = last["point"].to_string();
        lab.verb(&["points", "pin", "db01", &point]).expect_done();
        lab.verb(&["points", "pin", "db01", &point, "--release"])
            .expect_done();
        if place % 5 == 4 {
            lab.verb(&free).expect_done();
            lab.epoch("db01", &disks, &[]).expect_done();
            newest = digest(&source, SIZE);
            number = lab.points("db01").last().map(|point| point["point"].clone());
            lab.verb(&hold).expect_done();
        }
        wait_until("the newest epoch to be on the disk", || {
            digest(&target, SIZE) == newest || place % 5 != 4
        });
        bytes += 700_000 + (place * 37 % 11) * 4096 * 9;
        run(
            "mount",
            &["-o", &format!("remount,size={bytes}"), text(volume.path())],
        );
    }
    assert_eq!(full, 50);
    lab.verb(&free).expect_done();
    lab.epoch("db01", &disks, &[]).expect_done();
    wait_until("the last epoch to be on the disk", || {
        digest(&target, SIZE) == digest(&source, SIZE)
    });
    lab.stop();
}
