//! The machine comes home: a disk that was sent is started, and asks for a login.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use mt_tests::agent::{PATIENCE, Running};
use mt_tests::data::assert_same;
use mt_tests::disks::{Canaries, text};
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

    let console = boots_to_login(&lab, &target);
    assert!(console.contains("db01 login:"), "the machine has its name");
}

/// Starts the image as a machine; answers its console up to the login.
fn boots_to_login(lab: &Lab, image: &Path) -> String {
    let console = lab.scratch.join("console.log");
    let mut command = Command::new(find_program("setpriv").expect("setpriv is there"));
    command
        .args(["--pdeathsig", "KILL", "qemu-system-x86_64"])
        .args(["-accel", "tcg", "-machine", "pc", "-m", "512", "-smp", "2"])
        .args(["-display", "none", "-nodefaults", "-no-reboot"])
        .args(["-serial", &format!("file:{}", text(&console))])
        .args(["-device", "pvscsi,id=scsi0"])
        .args([
            "-drive",
            &format!("file={},if=none,id=disk0,format=raw", text(image)),
        ])
        .args([
            "-device",
            "scsi-hd,drive=disk0,bus=scsi0.0,vendor=VMware,product=Virtual disk,bootindex=0",
        ]);
    let mut machine = Running::start(command, lab.scratch.path());
    let begin = Instant::now();
    loop {
        let said = String::from_utf8_lossy(&std::fs::read(&console).unwrap_or_default()).into_owned();
        if said.contains("login:") {
            println!("login after {:.1} s", begin.elapsed().as_secs_f32());
            return said;
        }
        assert!(
            machine.is_running(),
            "the machine ended: {}\n{}",
            machine.stderr_so_far(),
            tail(&console)
        );
        assert!(begin.elapsed() < BOOT, "no login:\n{}", tail(&console));
        std::thread::sleep(Duration::from_millis(200));
    }
}
