//! The machine comes home: a disk that was sent is started, and asks for a login.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use mt_tests::agent::{PATIENCE, Running};
use mt_tests::data::{assert_same, change_blocks, digest};
use mt_tests::disks::{Canaries, run, text};
use mt_tests::guest::{made_by, tail};
use mt_tests::lab::{Lab, PAIR};
use mt_tests::skip::{can_use, find_program, skip};
use mt_tests::test_name;

/// Longest that the machine may take to its login: it is emulated, and others work here too.
const BOOT: Duration = Duration::from_secs(600);

/// The disk of a bootable Debian, with ext4 and XFS, goes through source and target onto an image of its own. That copy
/// is then shown to a machine as its only disk, on PVSCSI, as ESXi would show it.
#[test]
fn vm_a_copied_disk_boots_to_its_login() {
    if !can_use(test_name!(), &["qemu-system-x86_64", "setpriv"]) {
        return;
    }
    let source = match made_by("make-source-disk") {
        Ok(source) => source,
        Err(why) => return skip(test_name!(), &why),
    };
    let size = std::fs::metadata(&source).expect("the disk was made").len();
    let mut lab = Lab::new();
    let target = lab.scratch.sparse("target.img", size);
    let canaries = Canaries::new(&lab.scratch, 2);
    let id = lab.add_disk(&target);
    for path in canaries.paths() {
        lab.add_disk(path);
    }
    lab.start();
    lab.pair(PAIR, &id);
    let begin = Instant::now();
    // Not `Lab::send`: in a debug build two gigabytes take their time.
    let mut sending = lab.start_send(lab.address, PAIR, &source, &[]);
    while sending.is_running() {
        assert!(begin.elapsed() < 5 * PATIENCE, "the send does not end");
        std::thread::sleep(Duration::from_millis(50));
    }
    let sent = sending.wait().expect_done().event("result");
    println!("sent in {:.1} s: {sent}", begin.elapsed().as_secs_f32());
    lab.stop();
    assert_same(&source, &target, size);
    canaries.assert_untouched();

    let begin = Instant::now();
    let mut machine = Guest::start(&lab, &format!("file={},format=raw", text(&target)));
    let console = machine.login();
    println!("login after {:.1} s", begin.elapsed().as_secs_f32());
    assert!(console.contains("db01 login:"), "the machine has its name");
}

/// The test failover: a machine is started from a point that is served over NBD, and writes to its disk, while another epoch comes
/// in. What it writes is nowhere afterwards: target disk and points are what they were.
#[test]
fn vm_a_point_boots_to_its_login_and_no_disk_changes() {
    if can_use(test_name!(), &["qemu-system-x86_64", "setpriv", "nbdcopy", "cp"]) {
        a_point_boots(test_name!(), &["--writable"], "");
    }
}

/// The same from an export that takes no writes; what the machine writes QEMU keeps to itself.
#[test]
fn long_a_point_boots_from_an_export_that_takes_no_writes() {
    if can_use(test_name!(), &["qemu-system-x86_64", "setpriv", "nbdcopy", "cp"]) {
        a_point_boots(test_name!(), &[], ",snapshot=on");
    }
}

fn a_point_boots(test: &str, export: &[&str], drive: &str) {
    let made = match made_by("make-source-disk") {
        Ok(made) => made,
        Err(why) => return skip(test, &why),
    };
    let size = std::fs::metadata(&made).expect("the disk was made").len();
    let mut lab = Lab::new();
    let source = lab.scratch.join("source.img");
    run(
        "cp",
        &["--sparse=always", "--reflink=auto", text(&made), text(&source)],
    );
    let target = lab.scratch.sparse("target.img", size);
    let canaries = Canaries::new(&lab.scratch, 2);
    let id = lab.add_disk(&target);
    for path in canaries.paths() {
        lab.add_disk(path);
    }
    lab.keep_points_in(&lab.scratch.join("retention"));
    lab.start();
    lab.verb(&["retention", "init"]).expect_done();
    lab.pair("db01/scsi0:0", &id);
    let send = |lab: &Lab, name: &str| {
        let disks: [(&str, &Path); 1] = [("scsi0:0", &source)];
        let command = lab.epoch_command(lab.address, "db01", &disks, &["--point-name", name]);
        let mut sending = Running::start(command, lab.scratch.path());
        let begin = Instant::now();
        while sending.is_running() {
            assert!(begin.elapsed() < 5 * PATIENCE, "the epoch does not end");
            std::thread::sleep(Duration::from_millis(50));
        }
        sending.wait().expect_done();
    };
    let in_step = |wanted: blake3::Hash| {
        let begin = Instant::now();
        while digest(&target, size) != wanted {
            assert!(
                begin.elapsed() < 5 * PATIENCE,
                "the disk does not come to the newest epoch"
            );
        }
    };
    send(&lab, "home");
    let home = digest(&source, size);
    in_step(home);
    let points = lab.points("db01");
    let exported = |more: &[&str]| {
        let args = [&["points", "export", "db01", "home", "--detach", "--json"], more].concat();
        let document = lab.verb(&args).expect_done().json();
        let export = &document["exports"][0];
        let socket = export["socket"].as_str().expect("a path");
        (
            format!("nbd+unix:///scsi0:0?socket={socket}"),
            export["id"].to_string(),
        )
    };
    let (uri, number) = exported(export);
    let begin = Instant::now();
    let mut machine = Guest::start(&lab, &format!("file={uri},format=raw{drive}"));
    // While it starts, its source goes on.
    change_blocks(&source, size, 4096, 500, 7);
    send(&lab, "meanwhile");
    let newest = digest(&source, size);
    let console = machine.login();
    println!("login after {:.1} s", begin.elapsed().as_secs_f32());
    assert!(console.contains("db01 login:"), "the machine has its name");
    drop(machine);

    in_step(newest);
    let (whole, other) = exported(&[]);
    let copy = lab.scratch.join("copy.img");
    let differs = |uri: &str| {
        run("nbdcopy", &[uri, text(&copy)]);
        digest(&copy, size) != home
    };
    assert!(!differs(&whole), "the point is what it was");
    // The machine wrote, and its own disk shows it, or nothing of this was tried.
    assert_eq!(differs(&uri), !export.is_empty());
    for number in [number, other] {
        lab.verb(&["points", "unexport", &number]).expect_done();
    }
    assert_eq!(lab.points("db01")[..points.len()], points);
    assert_eq!(digest(&target, size), newest, "nothing of it reached the disk");
    let roll = |to: &str| {
        lab.verb(&["roll", "db01", "--to", to]).expect_done();
        digest(&target, size)
    };
    assert_eq!(roll("home"), home);
    assert_eq!(roll("latest"), newest);
    lab.verb(&["retention", "check"]).expect_done();
    canaries.assert_untouched();
    lab.stop();
}

/// A machine whose only disk hangs on PVSCSI, as on ESXi. Dropping it ends it.
struct Guest {
    machine: Running,
    console: PathBuf,
}

impl Guest {
    /// Starts a machine from what QEMU finds under these words of `-drive`.
    fn start(lab: &Lab, drive: &str) -> Self {
        let console = lab.scratch.join("console.log");
        let mut command = Command::new(find_program("setpriv").expect("setpriv is there"));
        command
            .args(["--pdeathsig", "KILL", "qemu-system-x86_64"])
            .args(["-accel", "tcg", "-machine", "pc", "-m", "512", "-smp", "2"])
            .args(["-display", "none", "-nodefaults", "-no-reboot"])
            .args(["-serial", &format!("file:{}", text(&console))])
            .args(["-device", "pvscsi,id=scsi0"])
            .args(["-drive", &format!("if=none,id=disk0,{drive}")])
            .args([
                "-device",
                "scsi-hd,drive=disk0,bus=scsi0.0,vendor=VMware,product=Virtual disk,bootindex=0",
            ]);
        Self {
            machine: Running::start(command, lab.scratch.path()),
            console,
        }
    }

    /// Waits for the login; answers the console up to there.
    fn login(&mut self) -> String {
        let begin = Instant::now();
        loop {
            let said = std::fs::read(&self.console).unwrap_or_default();
            let said = String::from_utf8_lossy(&said).into_owned();
            if said.contains("login:") {
                return said;
            }
            assert!(
                self.machine.is_running(),
                "the machine ended: {}\n{}",
                self.machine.stderr_so_far(),
                tail(&self.console)
            );
            assert!(begin.elapsed() < BOOT, "no login:\n{}", tail(&self.console));
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}
