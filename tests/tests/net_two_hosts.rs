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
    fn new() -> Self {
        let id = std::process::id();
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

fn address(text: &str) -> SocketAddr {
    text.parse().expect("it is an address")
}

/// Registers over the wire, is approved, paired, and replicates; on the ports that users have, which are not loopback.
#[test]
fn net_two_hosts_register_approve_pair_and_replicate() {
    needs!("ip");
    let tried = Command::new("ip").args(["netns", "add", "mt-try"]).output();
    if !tried.as_ref().is_ok_and(|output| output.status.success()) {
        skip::skip(
            test_name!(),
            "network namespaces cannot be made here; they need root",
        );
        return;
    }
    run("ip", &["netns", "del", "mt-try"]);
    let hosts = Hosts::new();
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
