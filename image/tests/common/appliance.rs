// SPDX-License-Identifier: MIT OR Apache-2.0
//! The OVA's disk in a machine like VMware's, with the properties of the deploy wizard on a CD.

#![allow(
    dead_code,
    clippy::unwrap_used,
    reason = "test code; each test binary uses its part"
)]

use std::fs;
use std::path::{Path, PathBuf};

use crate::common::{mt_image_ok, run, text};
use crate::vm::Vm;

/// Name of the appliance.
pub const HOST: &str = "failback1";
/// Password of its root.
pub const PASSWORD: &str = "correct horse";

/// Says that the agent is active and served. A login may come before it is: it starts beside the rest.
pub const SERVED: &str = "n=0; until mt-agent status > /dev/null 2>&1 || [ $n -gt 60 ]; do n=$((n + 1)); sleep 1; done; \
                          systemctl is-active master-target; mt-agent status > /dev/null && echo served";

/// The appliance file, where the machine can run it.
pub fn given_ova(programs: &[&str]) -> Option<PathBuf> {
    let Some(path) = std::env::var_os("MT_OVA") else {
        crate::common::skip_here("MT_OVA names no appliance file; scripts/test builds one");
        return None;
    };
    crate::common::require(programs).then(|| PathBuf::from(path))
}

/// Runs a program that must succeed.
pub fn succeed(program: &str, arguments: &[&Path]) -> String {
    let output = run(program, arguments);
    assert!(output.status.success(), "{program}: {}", text(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The disk out of the OVA, by bsdtar and qemu-img.
pub fn disk_of(ova: &Path, folder: &Path) -> PathBuf {
    let bsdtar: [&Path; 4] = ["-xf".as_ref(), ova, "-C".as_ref(), folder];
    succeed("bsdtar", &bsdtar);
    let vmdk = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.extension().is_some_and(|e| e == "vmdk"))
        .unwrap();
    let check = mt_image_ok(&["vmdk", "check", vmdk.to_str().unwrap()]);
    assert!(check.contains("good"), "{check}");
    let disk = folder.join("disk.qcow2");
    let words = ["convert", "-f", "vmdk", "-O", "qcow2"].map(Path::new);
    succeed("qemu-img", &[&words[..], &[&vmdk, &disk]].concat());
    fs::remove_file(vmdk).unwrap();
    disk
}

/// A CD with what the deploy wizard was told, as vSphere makes it for the ISO transport, and with more files.
pub fn environment(folder: &Path, properties: &[(&str, &str)], more: &[&Path]) -> PathBuf {
    let mut xml = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Environment \
                   xmlns=\"http://schemas.dmtf.org/ovf/environment/1\" \
                   xmlns:oe=\"http://schemas.dmtf.org/ovf/environment/1\">\n  <PropertySection>\n"
        .to_owned();
    for (key, value) in properties {
        xml += &format!("    <Property oe:key=\"{key}\" oe:value=\"{value}\"/>\n");
    }
    xml += "  </PropertySection>\n</Environment>\n";
    let (file, iso) = (folder.join("ovf-env.xml"), folder.join("ovf-env.iso"));
    fs::write(&file, xml).unwrap();
    let words = "-as mkisofs -quiet -r -J -V OVFENV -o".split(' ').map(Path::new);
    let words: Vec<&Path> = words
        .chain([iso.as_path(), file.as_path()])
        .chain(more.iter().copied())
        .collect();
    succeed("xorriso", &words);
    iso
}

/// From the screen on the serial line to a shell.
pub fn log_in(vm: &mut Vm) {
    vm.log_in(HOST, Some(PASSWORD));
}
