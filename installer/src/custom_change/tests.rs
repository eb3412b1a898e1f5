// SPDX-License-Identifier: MIT OR Apache-2.0
#![allow(clippy::unwrap_used, reason = "test code")]

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;

use super::operator::Ground;
use super::*;

const DATE: &str = "2026-03-02T10:14:07Z";

/// A Debian system, as far as it matters here, with what its operator wrote.
///
/// In memory where that is possible: every change is synced, and hundreds of runs would wait for a real disk.
fn debian() -> tempfile::TempDir {
    let root = tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .unwrap();
    let put = |path: &str, text: &str| {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    put("etc/group", "root:x:0:\nusers:x:100:\nnogroup:x:65534:\n");
    put(
        "etc/passwd",
        "root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534:nobody:/:/bin/false",
    );
    put("etc/mdadm/mdadm.conf", "MAILADDR root@example.org\nAUTO +all\n");
    put("etc/lvm/lvmlocal.conf", "local {\n  system_id = \"mine\"\n}");
    put("etc/default/kdump-tools", "USE_KDUMP=0\nKDUMP_NUM_DUMPS=7\n");
    put("etc/default/grub", "GRUB_TIMEOUT=1\n");
    put("etc/udev/rules.d/50-operator.rules", "# mine\n");
    let wants = root.path().join("etc/systemd/system/multi-user.target.wants");
    fs::create_dir_all(&wants).unwrap();
    std::os::unix::fs::symlink("/lib/systemd/system/ssh.service", wants.join("ssh.service")).unwrap();
    // As a package links it when its unit is enabled.
    std::os::unix::fs::symlink(
        "/lib/systemd/system/multipathd.service",
        root.path().join("etc/systemd/system/multipath-tools.service"),
    )
    .unwrap();
    root
}

fn request(root: &Path) -> Request {
    Request {
        root: root.to_owned(),
        tarball: None,
        date: DATE.to_owned(),
        steps: Ground::Here,
        running: false,
    }
}

fn silent() -> impl FnMut(&str) {
    |_: &str| {}
}

/// Everything below a root but what the step keeps of itself, so that two moments can be compared.
fn picture(root: &Path) -> BTreeMap<String, Node> {
    fn walk(root: &Path, folder: &Path, picture: &mut BTreeMap<String, Node>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(root).unwrap().to_string_lossy().into_owned();
            if name == journal::FOLDER {
                continue;
            }
            let node = Node::read(&path).unwrap();
            if matches!(node, Node::Folder { .. }) {
                walk(root, &path, picture);
            }
            picture.insert(name, node);
        }
    }
    let mut picture = BTreeMap::new();
    walk(root, root, &mut picture);
    // Where the store is; made before anything else and never removed.
    for kept in ["var", "var/lib", "var/lib/master-target"] {
        picture.remove(kept);
    }
    picture
}

fn text(root: &Path, path: &str) -> String {
    fs::read_to_string(root.join(path)).unwrap()
}

#[test]
fn the_first_run_changes_and_the_second_is_refused_with_its_date() {
    let root = debian();
    let stamp = apply(&request(root.path()), &mut silent()).unwrap();
    assert_eq!(stamp.date, DATE);
    assert_eq!(stamp.digest.len(), 64);
    assert!(
        stamp
            .changed
            .contains(&"/etc/udev/rules.d/69-lvm.rules".to_owned())
    );
    let after = picture(root.path());
    let mut second = request(root.path());
    second.date = "2027-01-01T00:00:00Z".to_owned();
    let refused = apply(&second, &mut silent()).unwrap_err();
    assert_eq!(refused.kind, Kind::Refused);
    assert!(
        refused
            .to_string()
            .contains(&format!("made on {DATE} by version")),
        "{refused}"
    );
    assert_eq!(picture(root.path()), after, "the second run changes nothing");
    assert_eq!(Store::of(root.path()).stamp().unwrap().unwrap(), stamp);
    match status(root.path()).unwrap() {
        Status::Done { differing, .. } => assert!(differing.is_empty(), "{differing:?}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_the_operator_wrote_is_kept() {
    let root = debian();
    apply(&request(root.path()), &mut silent()).unwrap();
    let root = root.path();
    let mdadm = text(root, "etc/mdadm/mdadm.conf");
    assert!(
        mdadm.ends_with("MAILADDR root@example.org\nAUTO +all\n"),
        "{mdadm}"
    );
    let auto = mdadm.lines().find(|line| line.starts_with("AUTO")).unwrap();
    assert_eq!(auto, "AUTO -all", "mdadm takes the first");
    let lvm = text(root, "etc/lvm/lvmlocal.conf");
    assert!(lvm.starts_with("local {\n  system_id = \"mine\"\n}\n"), "{lvm}");
    assert!(lvm.contains("devices/global_filter = [ \"r|.*|\" ]"), "{lvm}");
    let kdump = text(root, "etc/default/kdump-tools");
    assert!(kdump.starts_with("USE_KDUMP=0\nKDUMP_NUM_DUMPS=7\n"), "{kdump}");
    let last = kdump.lines().rfind(|line| line.starts_with("USE_KDUMP")).unwrap();
    assert_eq!(last, "USE_KDUMP=1", "a shell takes the last");
    assert_eq!(text(root, "etc/udev/rules.d/50-operator.rules"), "# mine\n");
    assert!(
        text(root, "etc/group")
            .starts_with("root:x:0:\nusers:x:100:\nnogroup:x:65534:\nmaster-target:x:999:\n")
    );
    assert_eq!(
        text(root, "etc/master-target/firewall.d/ssh.nft"),
        "tcp dport 22 accept\n"
    );
    assert!(
        !root.join("etc/kdump.conf").exists(),
        "for a program that is not there"
    );
    let mode = |path: &str| fs::metadata(root.join(path)).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode("usr/lib/master-target/own-disk"), 0o755);
    let unit = fs::read_link(root.join("etc/systemd/system/multipath-tools.service")).unwrap();
    assert_eq!(unit, Path::new("/dev/null"));
}

#[test]
fn a_run_killed_at_any_moment_is_undone_and_done_by_the_next() {
    let whole = debian();
    apply(&request(whole.path()), &mut silent()).unwrap();
    let wanted = picture(whole.path());
    let mut cuts = 0;
    for cut in 0.. {
        let root = debian();
        let before = picture(root.path());
        let mut seen = 0;
        let mut moment = None;
        let ended = run(&request(root.path()), &mut silent(), &mut |now| {
            seen += 1;
            moment = Some(now);
            seen <= cut
        });
        if ended.is_ok() {
            break;
        }
        cuts += 1;
        let moment = moment.unwrap();
        if moment == Moment::AfterStamp {
            // Done in all but the removal of the journal: refused from here on, and not undone.
            let refused = apply(&request(root.path()), &mut silent()).unwrap_err();
            assert_eq!(refused.kind, Kind::Refused, "{moment:?}: {refused}");
            assert!(!Store::of(root.path()).has_journal());
        } else {
            if cut > 0 && moment != Moment::BeforeNote(0) {
                assert_eq!(status(root.path()).unwrap(), Status::Cut, "{moment:?}");
            }
            // What the next run undoes is exactly what was there.
            undo(root.path(), &Store::of(root.path()), &mut silent()).unwrap();
            assert_eq!(picture(root.path()), before, "{moment:?}");
            apply(&request(root.path()), &mut silent()).unwrap();
        }
        assert_eq!(picture(root.path()), wanted, "{moment:?}");
    }
    assert!(cuts > 100, "{cuts} moments were tried");
}

#[test]
fn a_torn_last_line_of_the_journal_is_nothing_to_undo() {
    let root = debian();
    let mut count = 0;
    let _ = run(&request(root.path()), &mut silent(), &mut |_| {
        count += 1;
        count < 30
    });
    let journal = root.path().join(journal::FOLDER).join("journal");
    let mut bytes = fs::read(&journal).unwrap();
    bytes.extend_from_slice(b"{\"path\":\"etc/gro");
    fs::write(&journal, bytes).unwrap();
    apply(&request(root.path()), &mut silent()).unwrap();
}

#[test]
fn a_failure_undoes_the_whole() {
    let root = debian();
    let before = picture(root.path());
    // A folder in place of a file that is written late.
    let late = root.path().join("usr/lib/sysusers.d");
    let mut said = Vec::new();
    let failed = run(
        &request(root.path()),
        &mut |text| said.push(text.to_owned()),
        &mut |now| {
            if now == Moment::BeforeChange(20) {
                // The disk fails here: nothing can be put into this folder any more.
                fs::create_dir_all(late.join("master-target.conf/x")).unwrap();
            }
            true
        },
    );
    assert!(failed.is_err());
    fs::remove_dir_all(&late).unwrap();
    for parent in ["usr/lib", "usr"] {
        let _ = fs::remove_dir(root.path().join(parent));
    }
    assert_eq!(picture(root.path()), before, "{said:?}");
    assert!(!Store::of(root.path()).has_journal());
    assert_eq!(status(root.path()).unwrap(), Status::NotDone);
}

#[test]
fn what_somebody_else_made_is_named_and_nothing_is_changed() {
    let root = debian();
    fs::write(root.path().join("etc/udev/rules.d/69-lvm.rules"), "mine\n").unwrap();
    fs::write(root.path().join("etc/systemd/system/udisks2.service"), "mine\n").unwrap();
    let before = picture(root.path());
    let refused = apply(&request(root.path()), &mut silent()).unwrap_err();
    assert_eq!(refused.kind, Kind::Refused);
    let said = refused.to_string();
    assert!(
        said.contains("/etc/udev/rules.d/69-lvm.rules (LVM) is a file with another content"),
        "{said}"
    );
    assert!(
        said.contains("/etc/systemd/system/udisks2.service (udisks) is a file"),
        "{said}"
    );
    assert_eq!(picture(root.path()), before);
}

#[test]
fn a_system_without_one_of_its_parts_is_closed_all_the_same() {
    for gone in ["etc/lvm", "etc/mdadm", "etc/default", "etc/systemd", "etc/udev"] {
        let root = debian();
        fs::remove_dir_all(root.path().join(gone)).unwrap();
        let stamp = apply(&request(root.path()), &mut silent()).unwrap();
        for path in [
            "etc/lvm/lvmlocal.conf",
            "etc/mdadm/mdadm.conf",
            "etc/udev/rules.d/10-master-target-foreign.rules",
        ] {
            assert!(root.path().join(path).exists(), "{gone}: {path}");
        }
        let skipped = stamp
            .skipped
            .iter()
            .any(|line| line.contains("/etc/default/kdump-tools"));
        assert_eq!(skipped, gone == "etc/default", "{gone}: {:?}", stamp.skipped);
    }
    let root = tempfile::tempdir().unwrap();
    let refused = apply(&request(root.path()), &mut silent()).unwrap_err();
    assert_eq!(
        refused.kind,
        Kind::Usage,
        "an empty folder is no system: {refused}"
    );
    fs::create_dir(root.path().join("etc")).unwrap();
    let refused = apply(&request(root.path()), &mut silent()).unwrap_err();
    assert!(
        refused
            .to_string()
            .contains("/etc/group (group) is no group file"),
        "{refused}"
    );
}

#[test]
fn a_link_that_leads_out_of_the_root_is_refused() {
    let (root, outside) = (debian(), tempfile::tempdir().unwrap());
    fs::remove_dir_all(root.path().join("etc/udev")).unwrap();
    std::os::unix::fs::symlink(outside.path(), root.path().join("etc/udev")).unwrap();
    let refused = apply(&request(root.path()), &mut silent()).unwrap_err();
    assert!(
        refused.to_string().contains("leads out of the root directory"),
        "{refused}"
    );
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
}

/// A tarball's folder with the programs and these steps.
fn tarball(steps: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let mut sums = String::new();
    for name in ["mt-agent", "mt-installer"] {
        fs::write(folder.path().join(name), name).unwrap();
        let digest = hex(&Sha256::digest(name));
        sums += &format!("{digest}  {name}\n");
    }
    fs::write(folder.path().join("SHA256SUMS"), sums).unwrap();
    fs::create_dir(folder.path().join("custom.d")).unwrap();
    fs::write(folder.path().join("custom.d/README"), "").unwrap();
    for (name, script) in steps {
        put_step(folder.path(), name, script);
    }
    folder
}

fn put_step(tarball: &Path, name: &str, script: &str) {
    let path = tarball.join("custom.d").join(name);
    fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
}

fn with_tarball(root: &Path, tarball: &Path) -> Request {
    Request {
        tarball: Some(tarball.to_owned()),
        ..request(root)
    }
}

/// Whoever runs the program itself, and not the script, has the files checked all the same.
#[test]
fn a_program_that_is_not_as_it_was_made_is_refused() {
    for spoil in [
        |folder: &Path| fs::write(folder.join("mt-agent"), "").unwrap(),
        |folder: &Path| fs::remove_file(folder.join("SHA256SUMS")).unwrap(),
        |folder: &Path| {
            fs::remove_file(folder.join("mt-agent")).unwrap();
            std::os::unix::fs::symlink("/etc/hostname", folder.join("mt-agent")).unwrap();
        },
    ] {
        let root = debian();
        let tarball = tarball(&[]);
        spoil(tarball.path());
        let before = picture(root.path());
        assert!(apply(&with_tarball(root.path(), tarball.path()), &mut silent()).is_err());
        assert_eq!(picture(root.path()), before);
    }
}

/// What strangers talk to would be root, or somebody who logs in.
#[test]
fn an_account_of_our_name_that_is_more_than_that_is_refused() {
    for (file, line) in [
        ("etc/passwd", "master-target:x:0:0::/:/usr/sbin/nologin"),
        ("etc/passwd", "master-target:x:990:0::/:/usr/sbin/nologin"),
        ("etc/passwd", "master-target:x:990:990::/home/x:/bin/bash"),
        ("etc/group", "master-target:x:0:"),
    ] {
        let root = debian();
        let path = root.path().join(file);
        let old = fs::read_to_string(&path).unwrap();
        fs::write(&path, format!("{}\n{line}\n", old.trim_end())).unwrap();
        let refused = apply(&request(root.path()), &mut silent()).unwrap_err();
        assert!(refused.to_string().contains(file), "{line}: {refused}");
    }
    let root = debian();
    let path = root.path().join("etc/passwd");
    let old = fs::read_to_string(&path).unwrap();
    fs::write(
        &path,
        format!("{old}\nmaster-target:x:990:990::/nonexistent:/bin/false\n"),
    )
    .unwrap();
    assert!(apply(&request(root.path()), &mut silent()).is_ok());
}

#[test]
fn nothing_is_written_where_a_link_leads_out_of_the_root() {
    let (root, outside) = (debian(), tempfile::tempdir().unwrap());
    fs::create_dir_all(root.path().join("var")).unwrap();
    std::os::unix::fs::symlink(outside.path(), root.path().join("var/lib")).unwrap();
    assert!(apply(&request(root.path()), &mut silent()).is_err());
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
}

#[test]
fn steps_run_once_in_order_after_the_changes() {
    let root = debian();
    let tarball = tarball(&[
        (
            "20-second",
            "cat \"$MT_ROOT/order\" && echo two >> \"$MT_ROOT/order\"",
        ),
        (
            "10-first",
            "test -e \"$MT_ROOT/etc/sysctl.d/90-master-target.conf\" && echo one > \"$MT_ROOT/order\"; echo said; echo wrong >&2",
        ),
    ]);
    let stamp = apply(&with_tarball(root.path(), tarball.path()), &mut silent()).unwrap();
    assert_eq!(stamp.steps, ["10-first", "20-second"]);
    assert_eq!(text(root.path(), "order"), "one\ntwo\n");
    let log = Store::of(root.path()).step("10-first", "log");
    assert_eq!(fs::read_to_string(log).unwrap(), "said\nwrong\n");
    assert_eq!(text(root.path(), "usr/bin/mt-agent"), "mt-agent");
}

#[test]
fn a_failed_step_undoes_our_changes_and_is_never_run_again() {
    let root = debian();
    let before = picture(root.path());
    let tarball = tarball(&[("10-good", "true"), ("20-bad", "echo no space; exit 3")]);
    let request = with_tarball(root.path(), tarball.path());
    let failed = apply(&request, &mut silent()).unwrap_err();
    let said = failed.to_string();
    assert!(said.contains("step 20-bad failed (exit status: 3)"), "{said}");
    assert!(
        said.contains("not undone, since only their author can: 10-good, 20-bad"),
        "{said}"
    );
    assert_eq!(picture(root.path()), before);
    let refused = apply(&request, &mut silent()).unwrap_err();
    assert_eq!(refused.kind, Kind::Partly);
    assert!(
        refused
            .to_string()
            .contains(&format!("20-bad was begun on {DATE}")),
        "{refused}"
    );
    assert_eq!(picture(root.path()), before);
    // Under a new name it runs; the good one does not run twice.
    fs::remove_file(tarball.path().join("custom.d/20-bad")).unwrap();
    fs::remove_file(tarball.path().join("custom.d/10-good")).unwrap();
    put_step(tarball.path(), "10-good", "exit 9");
    put_step(tarball.path(), "21-mended", "true");
    let stamp = apply(&request, &mut silent()).unwrap();
    assert_eq!(stamp.steps, ["10-good", "21-mended"]);
}

#[test]
fn a_step_that_hangs_is_killed_with_all_it_started() {
    let root = debian();
    let tarball = tarball(&[("10-hangs", "sleep 1000 & echo $! > \"$MT_ROOT/etc/pid\"; wait")]);
    let failed = apply(&with_tarball(root.path(), tarball.path()), &mut silent()).unwrap_err();
    assert!(
        failed
            .to_string()
            .contains("was still running after 1 s and was killed"),
        "{failed}"
    );
    let pid = text(root.path(), "etc/pid");
    let stat = format!("/proc/{}/stat", pid.trim());
    // Killed is not gone: the kernel takes a moment.
    for _ in 0..1000 {
        match fs::read_to_string(&stat) {
            Ok(stat) if !stat.contains(") Z ") => std::thread::sleep(std::time::Duration::from_millis(10)),
            _ => return,
        }
    }
    panic!("what the step started still runs");
}

#[test]
fn a_step_that_cannot_be_run_is_found_before_anything_is_changed() {
    let root = debian();
    let before = picture(root.path());
    for name in ["10 space", ".hidden", "10-plain"] {
        let tarball = tarball(&[]);
        fs::write(tarball.path().join("custom.d").join(name), "x").unwrap();
        let refused = apply(&with_tarball(root.path(), tarball.path()), &mut silent()).unwrap_err();
        assert_eq!(refused.kind, Kind::Config, "{refused}");
        assert!(refused.to_string().contains("nothing was changed"), "{refused}");
        assert_eq!(picture(root.path()), before);
    }
}

#[test]
fn two_runs_at_once_are_refused() {
    let root = debian();
    let mut inner = None;
    run(&request(root.path()), &mut silent(), &mut |moment| {
        if moment == Moment::BeforeStamp {
            inner = Some(apply(&request(root.path()), &mut silent()).unwrap_err());
        }
        true
    })
    .unwrap();
    let inner = inner.unwrap();
    assert_eq!(inner.kind, Kind::Refused);
    assert!(inner.to_string().contains("another run holds"), "{inner}");
}

#[test]
fn what_the_installation_was_told_decides_about_ports_and_disks() {
    let root = debian();
    let settings = root.path().join("etc/master-target/settings.json");
    fs::create_dir_all(settings.parent().unwrap()).unwrap();
    let text = r#"{"schema": 1, "ssh": false, "firewall": {"enabled": true, "ssh": false,
        "ports": [{"number": 8080, "udp": false}, {"number": 161, "udp": true}]},
        "retention_disk": "0x6000c29a71e02b4c9d118e55037faa01"}"#;
    fs::write(&settings, text).unwrap();
    apply(&request(root.path()), &mut silent()).unwrap();
    let ports = self::text(root.path(), "etc/master-target/firewall.d/ports.nft");
    assert_eq!(ports, "tcp dport 8080 accept\nudp dport 161 accept\n");
    let own = self::text(root.path(), "etc/master-target/own-disks");
    assert!(own.ends_with("\nnaa.6000c29a71e02b4c9d118e55037faa01\n"), "{own}");
    // A firewall that was switched off is not started.
    let root = debian();
    fs::create_dir_all(root.path().join("etc/master-target")).unwrap();
    let off = r#"{"firewall": {"enabled": false}, "other": 1}"#;
    fs::write(root.path().join("etc/master-target/settings.json"), off).unwrap();
    apply(&request(root.path()), &mut silent()).unwrap();
    let wanted = root
        .path()
        .join("etc/systemd/system/sysinit.target.wants/master-target-firewall.service");
    assert!(wanted.symlink_metadata().is_err());
    // Damaged settings are not taken for none.
    let root = debian();
    fs::create_dir_all(root.path().join("etc/master-target")).unwrap();
    fs::write(root.path().join("etc/master-target/settings.json"), "{").unwrap();
    let refused = apply(&request(root.path()), &mut silent()).unwrap_err();
    assert_eq!(refused.kind, Kind::Config, "{refused}");
}

#[test]
fn blocks_are_put_in_once_and_keep_the_rest() {
    use changes::{Place, with_block};
    let once = with_block("a\nb", "x\n", Place::Bottom);
    assert!(once.starts_with("a\nb\n# BEGIN master-target"), "{once}");
    assert_eq!(with_block(&once, "x\n", Place::Bottom), once);
    let moved = format!("{once}c\n");
    assert_eq!(with_block(&moved, "y\n", Place::Top).matches("BEGIN").count(), 1);
    assert!(with_block(&moved, "y\n", Place::Top).ends_with("a\nb\nc\n"));
    // A block whose end is missing is not cut out: what follows may be the operator's.
    let torn = format!("{}\nmine\n", changes::BLOCK_BEGIN);
    assert!(with_block(&torn, "x\n", Place::Bottom).starts_with(&torn));
}

#[test]
fn the_image_carries_the_same_blocks() {
    for (path, block, place) in [
        (
            "etc/mdadm/mdadm.conf",
            include_str!("../../system/blocks/mdadm.conf"),
            changes::Place::Top,
        ),
        (
            "etc/lvm/lvmlocal.conf",
            include_str!("../../system/blocks/lvmlocal.conf"),
            changes::Place::Bottom,
        ),
    ] {
        let overlay = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../image/overlay")
            .join(path);
        assert_eq!(
            fs::read_to_string(overlay).unwrap(),
            changes::with_block("", block, place)
        );
    }
}

#[test]
fn own_disk_knows_the_disk_of_the_root_file_system_and_the_listed_ones() {
    let sys = tempfile::tempdir().unwrap();
    let at = |path: &str| sys.path().join(path);
    for disk in ["sda", "sdb", "sdc", "sdd"] {
        fs::create_dir_all(at(&format!("block/{disk}/device"))).unwrap();
    }
    fs::create_dir_all(at("block/sda/sda2")).unwrap();
    fs::create_dir_all(at("dev/block")).unwrap();
    fs::write(at("block/sda/sda2/partition"), "2").unwrap();
    std::os::unix::fs::symlink("../../block/sda/sda2", at("dev/block/8:2")).unwrap();
    fs::create_dir_all(at("block/dm-0/slaves")).unwrap();
    std::os::unix::fs::symlink("../../sda/sda2", at("block/dm-0/slaves/sda2")).unwrap();
    std::os::unix::fs::symlink("../../block/dm-0", at("dev/block/253:0")).unwrap();
    fs::write(at("block/sdb/device/wwid"), "naa.6000c29000000001\n").unwrap();
    fs::write(at("block/sdc/device/wwid"), "naa.6000c290000000010\n").unwrap();
    fs::write(at("own-disks"), "# comment\nnaa.6000c29000000001\n").unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("system/usr/lib/master-target/own-disk");
    for number in ["8:2", "253:0"] {
        let table = format!(
            "20 1 0:2 / / rw - rootfs rootfs rw\n21 20 {number} / / rw - ext4 /dev/x rw\n22 21 8:17 / /srv rw - xfs x rw\n"
        );
        fs::write(at("mountinfo"), table).unwrap();
        for (disk, own) in [
            ("sda", true),
            ("sdb", true),
            ("sdc", false),
            ("sdd", false),
            ("sd", false),
        ] {
            let ended = std::process::Command::new("sh")
                .arg(&script)
                .arg(disk)
                .env("MT_SYS", sys.path())
                .env("MT_MOUNTINFO", at("mountinfo"))
                .env("MT_OWN_DISKS", at("own-disks"))
                .status()
                .unwrap();
            assert_eq!(
                ended.code(),
                Some(if own { 0 } else { 1 }),
                "{disk} with root on {number}"
            );
        }
    }
}
