// SPDX-License-Identifier: MIT OR Apache-2.0
//! Writes the answers into the new root file system.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

use serde::Serialize;

use crate::answers::{Answers, FileSystem, Role, RootLogin, Script, When};
use crate::command::Program;
use crate::error::{Error, Kind, Result};
use crate::plan::Plan;
use crate::{kickstart, network};

/// The answers in the installed system, as the CentOS family's installer keeps them: what was saved on the medium's own
/// root is lost with the restart.
pub const KEPT_ANSWERS: &str = "root/master-target.ks";

/// Writes everything but the boot loader's files.
///
/// # Errors
/// A file cannot be written, or the answers name what the system does not have.
pub fn configure(root: &Path, answers: &Answers, plan: &Plan) -> Result<()> {
    let name = answers.hostname.as_deref().unwrap_or("master-target");
    write(root, "etc/hostname", &format!("{name}\n"), 0o644)?;
    write(root, "etc/hosts", &hosts(name), 0o644)?;
    write(root, "etc/fstab", &fstab(plan), 0o644)?;
    for partition in &plan.partitions {
        if let Role::Mount(path) = &partition.role {
            make_folder(&root.join(path.trim_start_matches('/')))?;
        }
    }
    make_folder(&root.join("boot/efi"))?;
    make_folder(&root.join(network::FOLDER))?;
    for (name, text) in network::files(&answers.networks) {
        write(root, &format!("{}/{name}", network::FOLDER), &text, 0o644)?;
    }
    // systemd-resolved takes them from the network's files, and those of DHCP too.
    if let Some(text) = network::resolv_conf(&answers.networks)
        && !network::resolved_owns(root)
    {
        write(root, "etc/resolv.conf", &text, 0o644)?;
    }
    time_zone(root, answers)?;
    accounts(root, answers)?;
    services(root, answers)?;
    if let Some(text) = &answers.settings.agent {
        // The target reads it, which is not root.
        write(root, "etc/master-target/agent.toml", text, 0o644)?;
    }
    // An image is nobody's installation: there were no answers to do it again with.
    if plan.disk.is_some() {
        write(root, KEPT_ANSWERS, &kickstart::render(answers), 0o600)?;
    }
    write(
        root,
        "etc/master-target/settings.json",
        &settings(answers)?,
        0o600,
    )
}

fn hosts(name: &str) -> String {
    let short = name.split('.').next().unwrap_or(name);
    let names = if short == name {
        name.to_owned()
    } else {
        format!("{name} {short}")
    };
    format!("127.0.0.1 localhost\n127.0.1.1 {names}\n::1 localhost ip6-localhost ip6-loopback\n")
}

/// A host with many disks, or one that is busy, shows them late; systemd alone gives up after 90 s. Nothing waits for these.
const PATIENCE: &str = "x-systemd.device-timeout=15min";

/// Mounts by place on the system's own disk. UUIDs and labels would be found on a copy of this disk as well.
#[must_use]
pub fn fstab(plan: &Plan) -> String {
    let mut text = "# /dev/mt-system/ holds the partitions of the disk this system was started from: never use UUID= or LABEL=,\n\
                    # which a guest's disk may carry too.\n"
        .to_owned();
    for partition in &plan.partitions {
        let device = format!("/dev/mt-system/part{}", partition.number);
        let (at, kind, usual, pass) = match (&partition.role, partition.fs) {
            (Role::BiosBoot, _) | (_, FileSystem::None) => continue,
            (Role::Swap, _) => ("none", "swap", "sw,nofail", 0),
            (Role::Esp, _) => ("/boot/efi", "vfat", "umask=0077,nofail", 2),
            (Role::Mount(path), _) if path == "/" => ("/", "ext4", "errors=remount-ro", 1),
            (Role::Mount(path), _) => (path.as_str(), "ext4", "nodev,nosuid,nofail", 2),
        };
        let options = match &partition.options {
            Some(options) => options.clone(),
            None if at == "/" => usual.to_owned(),
            None => format!("{usual},{PATIENCE}"),
        };
        text += &format!("{device} {at} {kind} {options} 0 {pass}\n");
    }
    text
}

fn time_zone(root: &Path, answers: &Answers) -> Result<()> {
    let zone = &answers.time.zone;
    let known = root.join("usr/share/zoneinfo").join(zone);
    if !known.is_file() {
        return Err(Error::new(
            Kind::Config,
            format!("timezone {zone} is not in the system's time zone database"),
        )
        .hint("use a name such as Europe/Berlin or UTC"));
    }
    let link = root.join("etc/localtime");
    remove(&link)?;
    symlink(format!("/usr/share/zoneinfo/{zone}"), &link).map_err(|error| Error::io("link", &link, error))?;
    write(root, "etc/timezone", &format!("{zone}\n"), 0o644)?;
    if !answers.time.servers.is_empty() {
        let text: String = answers
            .time
            .servers
            .iter()
            .map(|server| format!("server {server} iburst\n"))
            .collect();
        write(root, "etc/chrony/sources.d/master-target.sources", &text, 0o644)?;
    }
    Ok(())
}

fn accounts(root: &Path, answers: &Answers) -> Result<()> {
    let path = root.join("etc/shadow");
    let text = fs::read_to_string(&path).map_err(|error| Error::io("read", &path, error))?;
    let hash = match &answers.root {
        RootLogin::Locked => "*",
        RootLogin::Hash(hash) => hash,
    };
    let mut found = false;
    let lines: Vec<String> = text
        .lines()
        .map(|line| match line.splitn(3, ':').collect::<Vec<_>>().as_slice() {
            ["root", _, rest] => {
                found = true;
                format!("root:{hash}:{rest}")
            }
            _ => line.to_owned(),
        })
        .collect();
    if !found {
        return Err(Error::new(
            Kind::Faults,
            "the payload has no account root in /etc/shadow",
        ));
    }
    // Written in place: owner and group stay those of the package.
    fs::write(&path, lines.join("\n") + "\n").map_err(|error| Error::io("write", &path, error))?;
    if !answers.ssh_keys.is_empty() {
        let folder = root.join("root/.ssh");
        make_folder(&folder)?;
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o700))
            .map_err(|error| Error::io("set the mode of", &folder, error))?;
        let text = answers.ssh_keys.join("\n") + "\n";
        write(root, "root/.ssh/authorized_keys", &text, 0o600)?;
    }
    Ok(())
}

fn services(root: &Path, answers: &Answers) -> Result<()> {
    let mut enabled = vec![
        "systemd-networkd.service".to_owned(),
        "mt-bind.service".to_owned(),
        "mt-renew.service".to_owned(),
    ];
    let mut disabled = Vec::new();
    if answers.ssh() {
        // The image masks it, so that nothing listens before somebody wants it to.
        for unit in ["ssh.service", "ssh.socket"] {
            let link = root.join("etc/systemd/system").join(unit);
            if fs::read_link(&link).is_ok_and(|to| to == Path::new("/dev/null")) {
                remove(&link)?;
            }
        }
        enabled.push("ssh.service".to_owned());
    }
    if !answers.time.use_servers {
        disabled.push("chrony.service".to_owned());
    }
    let own = |unit: &String| !matches!(unit.as_str(), "ssh" | "sshd" | "ssh.service" | "sshd.service");
    enabled.extend(answers.services_enabled.iter().filter(|unit| own(unit)).cloned());
    disabled.extend(answers.services_disabled.iter().filter(|unit| own(unit)).cloned());
    for (verb, units) in [("enable", enabled), ("disable", disabled)] {
        for unit in units {
            Program::within(root, "systemctl")
                .args([verb, "--quiet", &unit])
                .run()
                .map_err(|error| {
                    Error::new(Kind::Config, format!("cannot {verb} service {unit}: {error}"))
                        .hint("name a service that the system has")
                })?;
        }
    }
    Ok(())
}

/// What other parts of the appliance read of the answers.
#[derive(Debug, Serialize)]
struct SettingsFile<'a> {
    schema: u32,
    ssh: bool,
    firewall: &'a crate::answers::Firewall,
    retention_disk: Option<&'a str>,
}

fn settings(answers: &Answers) -> Result<String> {
    let settings = SettingsFile {
        schema: 1,
        ssh: answers.ssh(),
        firewall: &answers.firewall,
        retention_disk: answers.settings.retention_disk.as_deref(),
    };
    serde_json::to_string_pretty(&settings)
        .map(|text| text + "\n")
        .map_err(|error| Error::new(Kind::Unexpected, format!("cannot render JSON: {error}")))
}

/// Runs the operator's scripts of one kind.
///
/// # Errors
/// One that must not fail has failed.
pub fn scripts(scripts: &[Script], before: bool, root: &Path, note: &mut dyn FnMut(String)) -> Result<()> {
    for script in scripts
        .iter()
        .filter(|script| (script.when == When::Pre) == before)
    {
        let program = match script.when {
            When::Post => Program::within(root, &script.interpreter),
            When::Pre | When::PostOutside => Program::new("setpriv").arg("--").arg(&script.interpreter),
        };
        let what = format!("the script at line {} of the answers", script.line);
        let run = program
            .arg("-s")
            .env("MT_ROOT", root)
            .input(script.body.clone())
            .run();
        match run {
            Ok(_) => {}
            Err(error) if script.error_ends => {
                return Err(Error::new(Kind::Partly, format!("{what} failed: {error}"))
                    .hint("mend the script, or leave out --erroronfail"));
            }
            Err(error) => note(format!("{what} failed and the installation goes on: {error}")),
        }
    }
    Ok(())
}

/// Unpacks the agent's files and runs their run-once step inside the new system.
///
/// # Errors
/// The tarball is none, or the step failed.
pub fn custom_change(root: &Path, tarball: &Path, time: Option<u64>) -> Result<()> {
    let name = "var/tmp/mt-agent";
    let folder = root.join(name);
    if folder.exists() {
        fs::remove_dir_all(&folder).map_err(|error| Error::io("remove", &folder, error))?;
    }
    make_folder(&folder)?;
    Program::new("tar")
        .args([
            "--extract",
            "--no-same-owner",
            "--strip-components=1",
            "--directory",
        ])
        .arg(&folder)
        .arg("--file")
        .arg(tarball)
        .run()?;
    let script = folder.join("ApplyCustomChanges.sh");
    if !script.is_file() {
        return Err(Error::new(
            Kind::Faults,
            format!("{} holds no ApplyCustomChanges.sh", tarball.display()),
        )
        .hint("give the tarball that mt-image agent-tarball made"));
    }
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755))
        .map_err(|error| Error::io("set the mode of", &script, error))?;
    let mut script =
        Program::within(root, &format!("/{name}/ApplyCustomChanges.sh")).env("MT_INSTALLING", "1");
    if let Some(time) = time {
        script = script.env("SOURCE_DATE_EPOCH", time.to_string());
    }
    script.run()?;
    fs::remove_dir_all(&folder).map_err(|error| Error::io("remove", &folder, error))
}

fn write(root: &Path, name: &str, text: &str, mode: u32) -> Result<()> {
    let path = root.join(name);
    if let Some(folder) = path.parent() {
        make_folder(folder)?;
    }
    // A link would lead out of the new system.
    remove(&path)?;
    fs::write(&path, text).map_err(|error| Error::io("write", &path, error))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(mode))
        .map_err(|error| Error::io("set the mode of", &path, error))
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io("replace", path, error)),
        _ => Ok(()),
    }
}

fn make_folder(path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(|error| Error::io("create", path, error))
}
