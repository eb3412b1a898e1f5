//! Two hosts, each in a network namespace of its own with nothing between them but a wire: what users have, as far as
//! one kernel can be two machines.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use mt_tests::agent::{self, Running, Said};
use mt_tests::data::{Fill, assert_same, fill};
use mt_tests::disks::{run, text};
use mt_tests::lab::{Lab, PAIR};
use mt_tests::{needs, skip, test_name};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 32 * MIB;

/// Two namespaces and the wire between them; gone when dropped.
struct Hosts {
    appliance: String,
    machine: String,
}

impl Hosts {
    /// Two for the test of this letter.
    fn new(test: char) -> Self {
        let id = format!("{}{test}", std::process::id());
        let hosts = Self {
            appliance: format!("mt-a-{id}"),
            machine: format!("mt-m-{id}"),
        };
        run("ip", &["netns", "add", &hosts.appliance]);
        run("ip", &["netns", "add", &hosts.machine]);
        let (left, right) = (format!("mta{id}"), format!("mtm{id}"));
        run(
            "ip",
            &[
                "link",
                "add",
                &left,
                "netns",
                &hosts.appliance,
                "type",
                "veth",
                "peer",
                "name",
                &right,
                "netns",
                &hosts.machine,
            ],
        );
        for (namespace, link, address) in [
            (&hosts.appliance, &left, "192.0.2.1/24"),
            (&hosts.machine, &right, "192.0.2.2/24"),
        ] {
            run("ip", &["-n", namespace, "addr", "add", address, "dev", link]);
            run("ip", &["-n", namespace, "link", "set", link, "up"]);
            run("ip", &["-n", namespace, "link", "set", "lo", "up"]);
        }
        hosts
    }

    fn command(namespace: &str, command: &Command) -> Command {
        let mut inside = Command::new("ip");
        inside
            .args(["netns", "exec", namespace])
            .arg(command.get_program())
            .args(command.get_args());
        inside
    }

    fn on_machine(&self, lab: &Lab, args: &[&str]) -> Said {
        Running::start(
            Self::command(&self.machine, &agent::command(args)),
            lab.scratch.path(),
        )
        .wait()
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for namespace in [&self.appliance, &self.machine] {
            let _ = Command::new("ip").args(["netns", "del", namespace]).status();
        }
    }
}

fn may_make_namespaces() -> bool {
    let name = format!("mt-try-{}-{:?}", std::process::id(), std::thread::current().id());
    let name: String = name.chars().filter(char::is_ascii_alphanumeric).collect();
    let tried = Command::new("ip").args(["netns", "add", &name]).output();
    let may = tried.as_ref().is_ok_and(|output| output.status.success());
    if may {
        run("ip", &["netns", "del", &name]);
    }
    may
}

fn address(text: &str) -> SocketAddr {
    text.parse().expect("it is an address")
}

/// Registers over the wire, is approved, paired, and replicates; on the ports that users have, which are not loopback.
#[test]
fn net_two_hosts_register_approve_pair_and_replicate() {
    needs!("ip");
    if !may_make_namespaces() {
        skip::skip(
            test_name!(),
            "network namespaces cannot be made here; they need root",
        );
        return;
    }
    let hosts = Hosts::new('r');
    let mut lab = Lab::new();
    lab.listen_on(address("192.0.2.1:9443"), address("192.0.2.1:443"));
    let source = lab.scratch.sparse("source.img", SIZE);
    fill(&source, SIZE, Fill::HalfZero, 5);
    let target = lab.scratch.sparse("target.img", SIZE);
    let id = lab.add_disk(&target);
    let command = Hosts::command(&hosts.appliance, &lab.target_command());
    lab.start_by_socket(command);
    lab.pair(PAIR, &id);
    let passphrase = lab.passphrase_file("passphrase", &lab.passphrase());
    let ca = lab.verb(&["identity", "show", "--json"]).expect_done().json()["ca"]
        .as_str()
        .expect("a CA has a fingerprint")
        .to_owned();
    let state: PathBuf = lab.source_state();
    let send = |hosts: &Hosts, lab: &Lab, source: &Path| {
        let state = lab.source_state();
        let args = [
            "source",
            "send",
            "--target",
            "192.0.2.1:9443",
            "--pair",
            PAIR,
            "--json",
            "--state-dir",
        ];
        hosts.on_machine(lab, &[&args[..], &[text(&state), text(source)]].concat())
    };

    // Without TLS nothing leaves the machine; without a certificate nothing is taken.
    let plain = [
        "source",
        "send",
        "--plain",
        "--target",
        "192.0.2.1:9443",
        "--pair",
        PAIR,
        "--state-dir",
    ];
    let said = hosts.on_machine(&lab, &[&plain[..], &[text(&state), text(&source)]].concat());
    said.expect_error(5, &["without TLS", "192.0.2.1"]);
    send(&hosts, &lab, &source).expect_error(3, &["not registered"]);

    // The control port is the one that nobody has to name.
    let register = [
        "register",
        "--target",
        "192.0.2.1",
        "--name",
        "db01",
        "--ca-fingerprint",
        &ca,
        "--passphrase-file",
    ];
    let more = [text(&passphrase), "--state-dir", text(&state)];
    hosts
        .on_machine(&lab, &[&register[..], &more[..]].concat())
        .expect_done();
    send(&hosts, &lab, &source).expect_error(6, &["approval"]);
    lab.verb(&["machines", "approve", "db01"]).expect_done();
    send(&hosts, &lab, &source).expect_done();
    assert_same(&source, &target, SIZE);
    let verify = [
        "verify",
        "--target",
        "192.0.2.1:9443",
        "--pair",
        PAIR,
        "--state-dir",
    ];
    let said = hosts.on_machine(&lab, &[&verify[..], &[text(&state), text(&source)]].concat());
    said.expect_done();
    lab.stop();
}

/// An appliance of before registration, with its configuration and its state as they are: the new agent takes both, keeps to the
/// loopback that the configuration names, and tells the source what is missing. Nothing of the pair is lost.
#[test]
fn net_a_configuration_and_a_state_of_before_registration_go_on() {
    needs!("ip");
    if !may_make_namespaces() {
        skip::skip(
            test_name!(),
            "network namespaces cannot be made here; they need root",
        );
        return;
    }
    let hosts = Hosts::new('u');
    let lab = Lab::secure();
    let size = 4 * MIB;
    let source = lab.scratch.sparse("source.img", size);
    fill(&source, size, Fill::Random, 6);
    let target = lab.scratch.sparse("target.img", size);
    // What the older agent had brought over.
    std::fs::copy(&source, &target).expect("there is room");
    let id = mt_tests::lab::scsi_id(1);
    let state = lab.scratch.join("state");
    std::fs::create_dir(&state).expect("it is new");
    let database = rusqlite::Connection::open(state.join("state.db")).expect("it is new");
    let of_before = include_str!("../../agent/src/state/state-2.sql");
    database
        .execute_batch(&of_before.replace("naa.6000c290000000000000000000000001", &id))
        .expect("it is SQL");
    drop(database);
    // As the sample of then has it, with its defaults written out, and nothing that came later.
    let config = format!(
        "[agent]\nstate_dir = \"{}\"\nsocket = \"{}\"\nsocket_group = \"root\"\n\n[target]\nlisten = \"127.0.0.1:9443\"\n\n\
         [lab]\nenabled = true\n\n[[lab.disks]]\nscsi_id = \"{id}\"\npath = \"{}\"\n",
        text(&state),
        text(&lab.socket()),
        text(&target)
    );
    let path = lab.scratch.file("old.toml", config);
    let checked = agent::run(lab.scratch.path(), ["config", "check", text(&path)]).expect_done();
    assert!(checked.stdout.contains("control port 0.0.0.0:443"), "{checked}");

    let on_appliance = |args: &[&str]| {
        let mut command = Hosts::command(&hosts.appliance, &agent::command(args));
        command.env("MT_AGENT_SOCKET", lab.socket());
        Running::start(command, lab.scratch.path())
    };
    let mut running = on_appliance(&["target", "--config", text(&path)]);
    mt_tests::agent::wait_until("the target", || {
        assert!(running.is_running(), "{}", running.stderr_so_far());
        std::os::unix::net::UnixStream::connect(lab.socket()).is_ok()
    });
    let pairs = lab.verb(&["pair", "list", "--json"]).expect_done().json();
    assert_eq!(pairs["pairs"][0]["pair"], PAIR, "{pairs:#}");
    assert_eq!(pairs["pairs"][0]["scsi_id"], id, "{pairs:#}");

    let member = lab.source_state();
    let send = || {
        let args = [
            "source",
            "send",
            "--target",
            "127.0.0.1:9443",
            "--pair",
            PAIR,
            "--json",
            "--state-dir",
        ];
        on_appliance(&[&args[..], &[text(&member), text(&source)]].concat()).wait()
    };
    send().expect_error(3, &["not registered", "mt-agent register"]);
    let passphrase = lab.passphrase_file("passphrase", &lab.passphrase());
    let register = [
        "register",
        "--target",
        "127.0.0.1",
        "--name",
        "db01",
        "--passphrase-file",
    ];
    on_appliance(&[&register[..], &[text(&passphrase), "--state-dir", text(&member)]].concat())
        .wait()
        .expect_done();
    lab.verb(&["machines", "approve", "db01"]).expect_done();
    // The disk is known as the pair's, so that nobody has to say that it may be overwritten.
    fill(&source, MIB, Fill::Random, 7);
    send().expect_done();
    assert_same(&source, &target, size);
    running.terminate().expect_done();
}
