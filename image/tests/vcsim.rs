// SPDX-License-Identifier: MIT OR Apache-2.0
//! The OVA as vSphere's side sees it: imported over TLS into a simulated vCenter and a simulated ESXi host, by two
//! clients, and what the inventory then holds. `tests/vcsim/README.md` says what a simulator cannot prove.

#![allow(clippy::unwrap_used, reason = "test code")]

mod common;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use serde_json::Value;

use common::{mt_image_ok, sample_disk, text};

const SPEC: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/specs/debian.toml");
const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/lib/vcsim");
const DISK_MIB: u64 = 24;

fn p(path: &Path) -> &str {
    path.to_str().expect("test paths are UTF-8")
}

/// Builds a program with `scripts/lib/vcsim`, or finds it built. `None`: not here, and the skip is noted.
fn program(test: &str, options: &[&str]) -> Option<PathBuf> {
    let output = Command::new(SCRIPT).args(options).output().unwrap();
    match output.status.code() {
        Some(0) => Some(PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())),
        // 4: a package is not installed; 6: the mirror has no source packages or cannot be reached.
        Some(4 | 6) => {
            let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
            common::skip::skip(test, &said);
            None
        }
        _ => panic!("{SCRIPT}: {}", text(&output)),
    }
}

/// A running simulator. It ends with its standard input, so also when this process is killed.
struct Simulator {
    child: Child,
    lines: std::io::Lines<BufReader<ChildStdout>>,
    url: String,
}

impl Simulator {
    fn start(program: &Path, mode: &str, temporary: &Path) -> Self {
        let mut child = Command::new(program)
            .args(["serve", mode])
            .env("TMPDIR", temporary)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let url = lines.next().expect("the simulator prints its address").unwrap();
        Self { child, lines, url }
    }

    /// Ends it; what was uploaded.
    fn end(mut self) -> Vec<Value> {
        drop(self.child.stdin.take());
        let uploads = self
            .lines
            .by_ref()
            .map(|line| serde_json::from_str(&line.unwrap()).unwrap())
            .collect();
        assert!(self.child.wait().unwrap().success());
        uploads
    }
}

impl Drop for Simulator {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        // After `end` both do nothing; after a failed assertion nothing better can be done.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn build(folder: &Path) -> PathBuf {
    let (disk, ova) = (folder.join("disk.raw"), folder.join("small.ova"));
    sample_disk(&disk, DISK_MIB);
    mt_image_ok(&[
        "ova",
        "build",
        "--spec",
        SPEC,
        "--disk",
        p(&disk),
        "--out",
        p(&ova),
    ]);
    ova
}

/// One member of an OVA, read with tar.
fn member(ova: &Path, ending: &str) -> (String, Vec<u8>) {
    let list = Command::new("tar").args(["-tf", p(ova)]).output().unwrap();
    let names = String::from_utf8(list.stdout).unwrap();
    let name = names.lines().find(|name| name.ends_with(ending)).unwrap();
    let output = Command::new("tar").args(["-xOf", p(ova), name]).output().unwrap();
    assert!(output.status.success());
    (name.to_owned(), output.stdout)
}

/// Size of the VMDK in the OVA, and its digest as the manifest gives it.
fn promised(ova: &Path) -> (u64, String) {
    let (name, vmdk) = member(ova, ".vmdk");
    let manifest = String::from_utf8(member(ova, ".mf").1).unwrap();
    let start = format!("SHA256({name})= ");
    let line = manifest.lines().find(|line| line.starts_with(&start)).unwrap();
    (vmdk.len() as u64, line[start.len()..].to_owned())
}

fn tree(vcsim: &Path, url: &str, name: &str) -> Value {
    let output = Command::new(vcsim).args(["tree", url, name]).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn devices<'a>(tree: &'a Value, kind: &str) -> Vec<&'a Value> {
    let all = tree["devices"].as_array().unwrap();
    all.iter().filter(|device| device["kind"] == kind).collect()
}

/// What must be in the inventory, whoever imported it.
fn check_tree(tree: &Value, host_name: &str) {
    assert_eq!(tree["guest_id"], "other3xLinux64Guest");
    assert_eq!(tree["hardware"], "vmx-13");
    assert_eq!((&tree["cpus"], &tree["memory_mib"]), (&4.into(), &8192.into()));

    let controllers = devices(tree, "ParaVirtualSCSIController");
    let buses: Vec<i64> = controllers
        .iter()
        .map(|device| device["bus"].as_i64().unwrap())
        .collect();
    assert_eq!(
        buses,
        [0, 1, 2, 3],
        "four PVSCSI controllers, the empty ones among them"
    );
    let scsi = tree["devices"].as_array().unwrap().iter();
    let others = scsi.filter(|device| {
        let kind = device["kind"].as_str().unwrap();
        kind.contains("SCSI") || kind.contains("Lsi") || kind.contains("BusLogic")
    });
    assert_eq!(others.count(), 4, "no SCSI controller of another kind");

    let disks = devices(tree, "VirtualDisk");
    assert_eq!(disks.len(), 1);
    assert_eq!(
        disks[0]["controller"], controllers[0]["key"],
        "the system disk is on the first controller"
    );
    assert_eq!(disks[0]["unit"], 0);
    assert_eq!(disks[0]["bytes"], DISK_MIB << 20);

    let cards = devices(tree, "VirtualVmxnet3");
    assert_eq!(cards.len(), 1);
    assert_eq!(cards[0]["network"], "VM Network");
    assert_eq!(devices(tree, "VirtualCdrom").len(), 1);

    let config = tree["extra_config"].as_object().unwrap();
    assert_eq!(config["guestinfo.hostname"], host_name);
    assert_eq!(config["guestinfo.timezone"], "UTC", "the default of the spec");
    let spec = mt_image::spec::load(Path::new(SPEC)).unwrap();
    for property in &spec.properties {
        assert!(config.contains_key(&property.key), "{} is missing", property.key);
    }
}

fn import(vcsim: &Path, url: &str, name: &str, ova: &Path, values: &[&str]) -> std::process::Output {
    Command::new(vcsim)
        .args(["import", url, name, p(ova)])
        .args(values)
        .output()
        .unwrap()
}

fn own_client_imports(test: &str, mode: &str) {
    let Some(vcsim) = program(test, &[]) else { return };
    let folder = tempfile::tempdir().unwrap();
    let ova = build(folder.path());
    let simulator = Simulator::start(&vcsim, mode, folder.path());
    let done = import(
        &vcsim,
        &simulator.url,
        "mt1",
        &ova,
        &["guestinfo.hostname=mt-one"],
    );
    assert!(done.status.success(), "{}", text(&done));
    check_tree(&tree(&vcsim, &simulator.url, "mt1"), "mt-one");
    // The inventory is a real one: the same name is taken now.
    let again = import(&vcsim, &simulator.url, "mt1", &ova, &[]);
    assert!(!again.status.success());

    let uploads = simulator.end();
    let (size, digest) = promised(&ova);
    assert_eq!(uploads.len(), 1);
    assert_eq!(uploads[0]["type"], "application/x-vnd.vmware-streamVmdk");
    assert_eq!(uploads[0]["bytes"], size);
    assert_eq!(
        uploads[0]["sha256"],
        digest.as_str(),
        "what arrives is what the manifest promises"
    );
}

#[test]
fn vcsim_vcenter_holds_the_device_tree_that_was_meant() {
    own_client_imports("vcsim_vcenter_holds_the_device_tree_that_was_meant", "vpx");
}

#[test]
fn vcsim_esxi_holds_the_device_tree_that_was_meant() {
    own_client_imports("vcsim_esxi_holds_the_device_tree_that_was_meant", "esx");
}

/// The client that people use, with its own reading of the OVF, and then a hot-add to each of the empty controllers.
#[test]
fn vcsim_govc_imports_and_adds_disks_to_the_empty_controllers() {
    let test = "vcsim_govc_imports_and_adds_disks_to_the_empty_controllers";
    let (Some(vcsim), Some(govc)) = (program(test, &[]), program(test, &["--govc"])) else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let ova = build(folder.path());
    for (mode, pool) in [("vpx", "DC0_H0/Resources"), ("esx", "*/Resources")] {
        let simulator = Simulator::start(&vcsim, mode, folder.path());
        let run = |arguments: &[&str]| {
            let output = Command::new(&govc)
                .args(arguments)
                .env("GOVC_URL", &simulator.url)
                .env("GOVC_INSECURE", "1")
                .env("GOVC_PERSIST_SESSION", "false")
                .output()
                .unwrap();
            assert!(
                output.status.success(),
                "{mode}: govc {arguments:?}: {}",
                text(&output)
            );
            String::from_utf8(output.stdout).unwrap()
        };
        let mut options: Value = serde_json::from_str(&run(&["import.spec", p(&ova)])).unwrap();
        assert_eq!(
            options["NetworkMapping"][0]["Name"], "VM Network",
            "govc finds the network"
        );
        options["NetworkMapping"][0]["Network"] = "VM Network".into();
        let properties = options["PropertyMapping"].as_array_mut().unwrap();
        let host_name = properties
            .iter_mut()
            .find(|property| property["Key"] == "guestinfo.hostname");
        host_name.expect("govc finds the property")["Value"] = "mt-two".into();
        let file = folder.path().join("options.json");
        std::fs::write(&file, options.to_string()).unwrap();
        run(&[
            "import.ova",
            &format!("-options={}", p(&file)),
            "-name=mt2",
            &format!("-pool={pool}"),
            p(&ova),
        ]);

        let imported = tree(&vcsim, &simulator.url, "mt2");
        check_tree(&imported, "mt-two");
        run(&["vm.power", "-on", "mt2"]);
        for (index, controller) in devices(&imported, "ParaVirtualSCSIController")
            .iter()
            .enumerate()
            .skip(1)
        {
            let name = format!("pvscsi-{}", controller["key"]);
            let disk = format!("mt2/added{index}");
            run(&[
                "vm.disk.create",
                "-vm=mt2",
                "-controller",
                &name,
                "-name",
                &disk,
                "-size=1G",
            ]);
        }
        let grown = tree(&vcsim, &simulator.url, "mt2");
        let mut under: Vec<i64> = devices(&grown, "VirtualDisk")
            .iter()
            .map(|disk| disk["controller"].as_i64().unwrap())
            .collect();
        under.sort_unstable();
        let keys: Vec<i64> = devices(&grown, "ParaVirtualSCSIController")
            .iter()
            .map(|controller| controller["key"].as_i64().unwrap())
            .collect();
        assert_eq!(under, keys, "one disk on each controller");

        let uploads = simulator.end();
        let (size, digest) = promised(&ova);
        assert_eq!(uploads.len(), 1);
        assert_eq!(uploads[0]["bytes"], size);
        assert_eq!(uploads[0]["sha256"], digest.as_str());
    }
}

/// The tests above would be worth nothing if the simulator took anything: a device it does not know, an unknown
/// property, or a VMDK that is not the manifest's must show.
#[test]
fn vcsim_notices_what_is_wrong() {
    let Some(vcsim) = program("vcsim_notices_what_is_wrong", &[]) else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let ova = build(folder.path());
    let unpacked = folder.path().join("unpacked");
    std::fs::create_dir(&unpacked).unwrap();
    let (ovf_name, ovf) = member(&ova, ".ovf");
    let (mf_name, manifest) = member(&ova, ".mf");
    let (vmdk_name, vmdk) = member(&ova, ".vmdk");
    let ovf = String::from_utf8(ovf).unwrap();
    let pack = |name: &str, ovf: &str, vmdk: &[u8]| {
        std::fs::write(unpacked.join(&ovf_name), ovf).unwrap();
        std::fs::write(unpacked.join(&mf_name), &manifest).unwrap();
        std::fs::write(unpacked.join(&vmdk_name), vmdk).unwrap();
        let made = folder.path().join(name);
        let tar = Command::new("tar")
            .args(["--format=gnu", "-cf", p(&made), "-C", p(&unpacked)])
            .args([&ovf_name, &mf_name, &vmdk_name])
            .status()
            .unwrap();
        assert!(tar.success());
        made
    };
    // A SATA controller is what a simulator of this age does not know.
    let unknown = pack(
        "unknown.ova",
        &ovf.replacen(
            "<rasd:ResourceType>6</rasd:ResourceType>",
            "<rasd:ResourceType>20</rasd:ResourceType>",
            1,
        ),
        &vmdk,
    );
    let mixed = pack("mixed.ova", &ovf.replacen("VirtualSCSI", "lsilogic", 1), &vmdk);
    let mut damaged = vmdk.clone();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    let damaged = pack("damaged.ova", &ovf, &damaged);

    let simulator = Simulator::start(&vcsim, "vpx", folder.path());
    let refused = import(&vcsim, &simulator.url, "a", &unknown, &[]);
    assert!(
        !refused.status.success() && text(&refused).contains("unsupported resource type: 20"),
        "{}",
        text(&refused)
    );
    let refused = import(&vcsim, &simulator.url, "b", &ova, &["guestinfo.no_such=1"]);
    assert!(
        text(&refused).contains("declares no property guestinfo.no_such"),
        "{}",
        text(&refused)
    );

    assert!(import(&vcsim, &simulator.url, "c", &mixed, &[]).status.success());
    let other = tree(&vcsim, &simulator.url, "c");
    assert_eq!(devices(&other, "ParaVirtualSCSIController").len(), 3);
    assert_eq!(devices(&other, "VirtualLsiLogicController").len(), 1);
    assert!(
        import(&vcsim, &simulator.url, "d", &damaged, &[])
            .status
            .success()
    );
    let uploads = simulator.end();
    let digest = promised(&ova).1;
    assert_eq!(uploads.len(), 2, "what was refused uploaded nothing");
    assert_eq!(uploads[0]["sha256"], digest.as_str());
    assert_ne!(
        uploads[1]["sha256"],
        digest.as_str(),
        "a flipped bit is in the digest"
    );
}
