//! Who may read and who may change, with processes of other users. Needs root, which may become anybody.

mod support;

use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use nix::unistd::{Group, Uid};
use support::{AGENT, Said, Served, id};

/// A user and groups that nobody else has; the kernel asks no database for them.
const STRANGER: u32 = 61_234;
const OWN_GROUP: u32 = 61_235;

struct Scene {
    served: Served,
    agent: PathBuf,
    group: Group,
}

/// `None`, said aloud, without root.
fn scene() -> Option<Scene> {
    if !Uid::effective().is_root() {
        eprintln!("skipped: needs root, to run clients as other users");
        return None;
    }
    let group = ["nogroup", "nobody", "daemon"]
        .iter()
        .find_map(|name| Group::from_name(name).expect("the scene can be set"))
        .expect("the scene can be set");
    let served = Served::start_with(&[b""], &group.name);
    // Others have to reach the socket and the program; the folder of the build may be closed to them.
    std::fs::set_permissions(served.folder.path(), std::fs::Permissions::from_mode(0o755))
        .expect("the scene can be set");
    let agent = served.folder.path().join("mt-agent");
    // By another process: a test of this one that forks meanwhile would inherit the open copy, and nobody could run it.
    let copied = Command::new("cp").arg("--").arg(AGENT).arg(&agent).status();
    assert!(copied.expect("cp is there").success());
    std::fs::set_permissions(&agent, std::fs::Permissions::from_mode(0o755)).expect("the scene can be set");
    Some(Scene { served, agent, group })
}

impl Scene {
    fn run_as(&self, gid: u32, args: &[&str]) -> Said {
        let mut command = Command::new(&self.agent);
        // Rust drops supplementary groups when it sets the user as root, so the stranger is in `gid` alone.
        command
            .args(args)
            .uid(STRANGER)
            .gid(gid)
            .env("MT_AGENT_SOCKET", self.served.socket());
        Said::of(command.output().expect("the program runs"))
    }
}

#[test]
fn a_member_of_the_group_reads_and_changes_nothing() {
    let Some(scene) = scene() else { return };
    let gid = scene.group.gid.as_raw();
    scene.run_as(gid, &["status"]).expect(0);
    scene.run_as(gid, &["pair", "list", "--json"]).expect(0);
    let refused = scene.run_as(gid, &["pair", "add", "db01/0", &id(1)]).expect(5);
    assert!(
        refused
            .stderr
            .contains(&format!("user {STRANGER} may not change anything here")),
        "{refused:?}"
    );
    let refused = scene.run_as(gid, &["pair", "remove", "db01/0"]).expect(5);
    assert!(refused.stderr.contains("hint: run it as root"), "{refused:?}");
    assert_eq!(
        scene.served.json(&["pair", "list"])["pairs"]
            .as_array()
            .unwrap()
            .len(),
        0
    );
}

#[test]
fn a_stranger_cannot_even_connect() {
    let Some(scene) = scene() else { return };
    let refused = scene.run_as(OWN_GROUP, &["status"]).expect(5);
    assert!(
        refused.stderr.contains("this user may not connect"),
        "{refused:?}"
    );
}

#[test]
fn a_stranger_gets_nothing_where_the_mode_was_opened() {
    let Some(scene) = scene() else { return };
    std::fs::set_permissions(scene.served.socket(), std::fs::Permissions::from_mode(0o666)).unwrap();
    let refused = scene.run_as(OWN_GROUP, &["status", "--json"]).expect(5);
    assert!(
        refused
            .stderr
            .contains(&format!("user {STRANGER} may not read status here")),
        "{refused:?}"
    );
    let refused = scene.run_as(OWN_GROUP, &["events"]).expect(5);
    assert!(refused.stderr.contains("may not read"), "{refused:?}");
    scene
        .run_as(OWN_GROUP, &["pair", "add", "db01/0", &id(1)])
        .expect(5);
}

#[test]
fn membership_may_come_from_the_process_alone() {
    let Some(scene) = scene() else { return };
    // As a service has it from SupplementaryGroups=: own group elsewhere, the socket's group beside it.
    let gid = scene.group.gid.as_raw().to_string();
    let mut command = Command::new("setpriv");
    command
        .args([
            "--reuid",
            &STRANGER.to_string(),
            "--regid",
            &OWN_GROUP.to_string(),
            "--groups",
            &gid,
        ])
        .arg(&scene.agent)
        .arg("status")
        .env("MT_AGENT_SOCKET", scene.served.socket());
    Said::of(command.output().unwrap()).expect(0);
}

#[test]
fn an_agent_without_root_serves_its_own_user() {
    let Some(scene) = scene() else { return };
    let folder = scene.served.folder.path().join("own");
    std::fs::create_dir(&folder).unwrap();
    chown(&folder, Some(STRANGER), Some(OWN_GROUP)).unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let config = folder.join("agent.toml");
    let text = format!(
        "[agent]\nstate_dir = \"{0}/state\"\nsocket = \"{0}/agent.sock\"\nsocket_group = \"no-such-group\"\n\
         [target]\nlisten = \"{port}\"\n[lab]\nenabled = true\nplain = true\n",
        folder.display()
    );
    std::fs::write(&config, text).unwrap();
    let socket = folder.join("agent.sock");
    let mut agent = Command::new(&scene.agent);
    agent
        .arg("target")
        .arg("--config")
        .arg(&config)
        .uid(STRANGER)
        .gid(OWN_GROUP);
    let mut agent = agent.spawn().unwrap();
    scene.served.wait_for("the agent without root", || {
        std::os::unix::net::UnixStream::connect(&socket).is_ok()
    });
    let mode = std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777;
    let mut status = Command::new(&scene.agent);
    status
        .args(["status", "--json", "--socket"])
        .arg(&socket)
        .uid(STRANGER)
        .gid(OWN_GROUP);
    let status = Said::of(status.output().unwrap());
    let mut remove = Command::new(&scene.agent);
    remove
        .args(["pair", "remove", "a/b", "--socket"])
        .arg(&socket)
        .uid(STRANGER)
        .gid(OWN_GROUP);
    let remove = Said::of(remove.output().unwrap());
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(i32::try_from(agent.id()).unwrap()),
        nix::sys::signal::Signal::SIGTERM,
    )
    .unwrap();
    assert_eq!(agent.wait().unwrap().code(), Some(0));
    assert_eq!(mode, 0o600, "without the group nobody else may connect");
    let alarm = status.expect(0).json()["alarms"][0]["text"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(alarm.contains("there is no group no-such-group"), "{alarm}");
    remove.expect(0);
    assert!(!socket.exists());
}

/// Outside a laboratory the agent's own user may change nothing: on an appliance that is whoever has taken over the agent.
#[test]
fn an_agent_outside_a_laboratory_obeys_root_alone() {
    let Some(scene) = scene() else { return };
    let folder = scene.served.folder.path().join("own");
    std::fs::create_dir(&folder).unwrap();
    chown(&folder, Some(STRANGER), Some(OWN_GROUP)).unwrap();
    let ports: Vec<String> = (0..2)
        .map(|_| {
            let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            free.local_addr().unwrap().to_string()
        })
        .collect();
    let config = folder.join("agent.toml");
    let group = &scene.group.name;
    let text = format!(
        "[agent]\nstate_dir = \"{0}/state\"\nsocket = \"{0}/agent.sock\"\nsocket_group = \"{group}\"\n\
         [target]\nlisten = \"{1}\"\ncontrol = \"{2}\"\n",
        folder.display(),
        ports[0],
        ports[1]
    );
    std::fs::write(&config, text).unwrap();
    let socket = folder.join("agent.sock");
    let as_own = |args: &[&str]| {
        let mut command = Command::new("setpriv");
        let groups = format!("--groups={}", scene.group.gid);
        command.args([
            &format!("--reuid={STRANGER}"),
            &format!("--regid={OWN_GROUP}"),
            &groups,
        ]);
        command
            .arg(&scene.agent)
            .args(args)
            .env("MT_AGENT_SOCKET", &socket);
        command
    };
    let mut agent = as_own(&["target", "--config", config.to_str().unwrap()])
        .spawn()
        .unwrap();
    scene.served.wait_for("the agent without root", || {
        std::os::unix::net::UnixStream::connect(&socket).is_ok()
    });
    let own = |args: &[&str]| Said::of(as_own(args).output().unwrap());
    own(&["status", "--json"]).expect(0);
    let backup = folder.join("backup");
    let backup = backup.to_str().unwrap();
    for verb in [
        &["pair", "add", "db01/0", &id(1)][..],
        &["pair", "remove", "db01/0"],
        &["passphrase", "rotate"],
        &["registration", "open"],
        &["identity", "export", backup],
        &["policy", "db01", "--minimum-age", "0s"],
        &["points", "delete", "db01", "latest"],
        &["retention", "reset", "db01"],
        &["roll", "db01", "--to", "latest"],
        &["failover", "db01", "--to", "latest"],
    ] {
        let said = own(verb);
        let refused = said.stderr.contains("may not change anything here");
        // A verb that reads first may end there: there is no such machine.
        assert!(refused || said.code == Some(2), "{verb:?}: {said:?}");
        assert_ne!(said.code, Some(0), "{verb:?}");
    }
    let shown = own(&["identity", "show"]).expect(0);
    assert!(shown.stdout.contains("waits to be shown to root"), "{shown:?}");
    // Root may.
    let mut root = Command::new(AGENT);
    root.args(["identity", "show"]).env("MT_AGENT_SOCKET", &socket);
    let root = Said::of(root.output().unwrap()).expect(0);
    assert!(root.stdout.contains("PASSPHRASE  "), "{root:?}");
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(i32::try_from(agent.id()).unwrap()),
        nix::sys::signal::Signal::SIGTERM,
    )
    .unwrap();
    assert_eq!(agent.wait().unwrap().code(), Some(0));
}
