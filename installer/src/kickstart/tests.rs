// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is read, what is refused at which line, and that answers survive being written.

use std::collections::BTreeSet;
use std::net::IpAddr;

use proptest::prelude::*;

use super::*;
use crate::answers::{
    Card, End, FileSystem, Firewall, Ipv4, Ipv6, Network, Part, Port, Role, RootLogin, When,
};

const HASH: &str =
    "$6$saltsalt$0123456789012345678901234567890123456789012345678901234567890123456789012345678901234567";

/// Answers as an operator would write them; also given to ksvalidator.
pub const EXAMPLE: &str = include_str!("../../tests/fixtures/example.ks");

#[test]
fn a_disk_may_be_named_by_its_path_too() {
    let answers = parse("ignoredisk --only-use=sda\nclearpart --all --drives=/dev/sda\n").unwrap();
    assert_eq!(answers.storage.disk.as_deref(), Some("/dev/sda"));
    assert!(parse("ignoredisk --only-use=sda\nclearpart --all --drives=/dev/sdab\n").is_err());
}

#[test]
fn an_example_is_read_as_meant() {
    let answers = parse(EXAMPLE).unwrap();
    assert_eq!(answers.hostname.as_deref(), Some("mt01.example.com"));
    assert_eq!(answers.root, RootLogin::Hash(HASH.to_owned()));
    assert_eq!(answers.networks.len(), 2);
    assert_eq!(
        answers.networks[0].ipv4,
        Ipv4::Static {
            address: [192, 0, 2, 10].into(),
            prefix: 24,
            gateway: Some([192, 0, 2, 1].into())
        }
    );
    assert_eq!(answers.networks[1].card, Card::Name("eth1".to_owned()));
    assert_eq!(answers.networks[1].ipv6, Ipv6::Off);
    assert!(answers.ssh() && answers.storage.clear);
    assert_eq!(
        answers.storage.disk.as_deref(),
        Some("naa.6000c29a71e02b4c9d118e55037faa01")
    );
    assert_eq!(answers.storage.parts.len(), 6);
    assert_eq!(answers.kernel_arguments, "net.ifnames=0 panic=30");
    assert_eq!(answers.end, End::Reboot);
    let when: Vec<When> = answers.scripts.iter().map(|script| script.when).collect();
    assert_eq!(when, [When::Pre, When::Post, When::PostOutside]);
    assert_eq!(
        answers.settings.retention_disk.as_deref(),
        Some("naa.6000c29a71e02b4c9d118e55037faa02")
    );
    assert_eq!(
        answers.settings.agent.as_deref(),
        Some("[target]\nlisten = \"127.0.0.1:9443\"\n")
    );
}

#[test]
fn nothing_but_comments_are_the_defaults() {
    assert_eq!(parse("\n# nothing\n\n"), Ok(Answers::default()));
}

#[test]
fn every_fault_has_its_line_and_reason() {
    let long = "a".repeat(64);
    let table: Vec<(String, usize, &str)> = [
        ("lang de_DE.UTF-8", 1, "English only"),
        ("\n\nlang", 3, "the language is missing"),
        ("keyboard de", 1, "layout us only"),
        ("langg en_US", 1, "did you mean lang?"),
        ("frobnicate", 1, "no such command"),
        ("lang C\nlang C", 2, "given already at line 1"),
        ("reboot\npoweroff", 2, "line 1 says already how it ends"),
        ("reboot --eject", 1, "--eject is not supported"),
        ("timezone Mars/Olympus", 1, "no such time zone"),
        ("timezone ../etc/passwd", 1, "expected a name"),
        ("timezone UTC --ntpservers=a..b", 1, "a part has 0 characters"),
        (
            "timesource --ntp-disable\ntimesource --ntp-server=a",
            2,
            "switched off",
        ),
        ("rootpw secret", 1, "clear text is not accepted"),
        ("rootpw --iscrypted $1$abc$def", 1, "no hash of a password"),
        ("rootpw --iscrypted '$6$a:b$c'", 1, "no hash of a password"),
        ("sshkey --username=joe \"ssh-rsa AAAA\"", 1, "no account but root"),
        (
            "sshkey --username=root \"command=x ssh-rsa AAAA\"",
            1,
            "no public key",
        ),
        ("network --bootproto=static --ip=192.0.2.1", 1, "needs --netmask"),
        ("network --bootproto=static --netmask=255.0.0.0", 1, "needs --ip"),
        (
            "network --bootproto=static --ip=192.0.2.1 --netmask=255.0.255.0",
            1,
            "netmask 255.0.255.0",
        ),
        (
            "network --bootproto=static --ip=192.0.2.1 --netmask=24",
            1,
            "netmask 24",
        ),
        (
            "network --bootproto=static --ip=300.0.2.1 --netmask=255.0.0.0",
            1,
            "expected an address",
        ),
        (
            "network --bootproto=static --ip=192.0.2.0 --netmask=255.255.255.0",
            1,
            "network's own",
        ),
        (
            "network --bootproto=static --ip=192.0.2.9 --netmask=255.255.255.0 --gateway=192.0.3.1",
            1,
            "gateway 192.0.3.1 is not in the network 192.0.2.0/24",
        ),
        (
            "network --bootproto=static --ip=192.0.2.9 --netmask=255.255.255.0 --gateway=192.0.2.9",
            1,
            "the machine's own address",
        ),
        (
            "network --bootproto=dhcp --ip=192.0.2.9",
            1,
            "--ip needs --bootproto=static",
        ),
        ("network --bootproto=bootp", 1, "known are static and dhcp"),
        ("network --bootprot=dhcp", 1, "did you mean --bootproto?"),
        ("network --ipv6=2001:db8::1", 1, "expected auto, dhcp"),
        (
            "network --ipv6=2001:db8::1/64 --ipv6gateway=2001:db9::1",
            1,
            "not in the network",
        ),
        ("network --vlanid=4095", 1, "1 to 4094"),
        ("network --hostname=a_b", 1, "letters, digits"),
        (
            "network --hostname=a\nnetwork --hostname=b",
            2,
            "another host name",
        ),
        ("network --device=$(reboot)", 1, "expected a card's name"),
        ("network --onboot=no", 1, "switched on at the start"),
        (
            "network --device=a --bootproto=static --ip=192.0.2.9 --netmask=255.255.255.0\n\
             network --device=b --bootproto=static --ip=192.0.2.9 --netmask=255.255.255.0",
            2,
            "192.0.2.9 is given twice",
        ),
        ("firewall --enabled --disabled", 1, "contradict"),
        ("firewall --port=99999:tcp", 1, "expected such as 1234:tcp"),
        ("firewall --disabled --ssh", 1, "and --disabled"),
        ("selinux --enforcing", 1, "only --disabled"),
        ("services", 1, "--enabled or --disabled"),
        ("services --enabled=a;b", 1, "no name of a service"),
        ("services --enabled=a --disabled=a", 1, "enabled and disabled"),
        ("clearpart", 1, "one of --all and --none"),
        ("clearpart --linux", 1, "--linux is not supported"),
        ("ignoredisk --drives=sda", 1, "--drives is not supported"),
        ("ignoredisk --only-use=sda,sdb", 1, "name one"),
        (
            "ignoredisk --only-use=sda\nclearpart --all --drives=sdb",
            2,
            "the lines above name sda",
        ),
        ("bootloader --location=none", 1, "only mbr"),
        (
            "bootloader --append=\"root=/dev/sdb\"",
            1,
            "root is set by the installer",
        ),
        (
            "bootloader --append=\"mt.disk=naa.1\"",
            1,
            "mt.disk is set by the installer",
        ),
        ("bootloader --append=\"a;reboot\"", 1, "allowed are"),
        ("autopart --type=lvm", 1, "only plain"),
        ("autopart\npart / --size=1", 2, "exclude each other"),
        ("part /", 1, "--size and --recommended"),
        ("part / --size=x", 1, "expected a number of MiB"),
        ("part / --fstype=xfs --size=4096", 1, "/ has ext4"),
        ("lang en_US\npart / --size=1", 2, "/ needs 2560 MiB or more"),
        ("part /boot/efi --size=20", 1, "/boot/efi needs 36 MiB or more"),
        ("\u{feff}lang en_US", 1, "byte order mark"),
        ("part pv.01 --size=1", 1, "no RAID, LVM"),
        ("part /usr --size=1", 1, "root file system"),
        ("part /a/../b --size=1", 1, "plain path"),
        ("part /home --size=1", 1, "none of them is /"),
        ("volgroup a pv.01", 1, "no RAID, LVM"),
        ("url --url=http://x", 1, "from the medium"),
        ("user --name=x", 1, "no accounts"),
        ("%packages\nvim\n%end", 1, "those of its image"),
        ("%post\nx\n", 1, "no %end"),
        ("%include /tmp/x", 1, "other files are not read"),
        ("%pre --log=/tmp/x\n%end", 1, "--log is not supported"),
        (
            "%post --interpreter=/usr/bin/python3\n%end",
            1,
            "/bin/sh and /bin/bash",
        ),
        ("%addon com_redhat_kdump\n%end", 1, "only master_target"),
        (
            "%addon master_target\n\nretention_disk = 7\n%end",
            3,
            "expected a SCSI ID",
        ),
        (
            "%addon master_target\nretention_disk = \"sdb\"\n%end",
            2,
            "retention_disk",
        ),
        ("%addon master_target\nx = 1\n%end", 2, "x is not known"),
        ("%addon master_target\n\n\nnot toml\n%end", 4, ""),
        (
            "%addon master_target\n[lab]\nenabled = true\n%end",
            2,
            "laboratories",
        ),
        ("lang \"C", 1, "not closed"),
        ("lang C \\", 1, "does not go on"),
        ("lang \u{1b}[2J", 1, "control character"),
    ]
    .iter()
    .map(|(text, line, says)| ((*text).to_owned(), *line, *says))
    .chain([(format!("network --hostname={long}"), 1, "64 characters")])
    .collect();
    for (text, line, says) in table {
        let faults = parse(&text).expect_err(&text);
        assert_eq!(faults.len(), 1, "{text}: {faults:?}");
        assert_eq!(faults[0].line, line, "{text}: {faults:?}");
        assert!(faults[0].text.contains(says), "{text}: {faults:?}");
    }
}

#[test]
fn all_faults_are_told_at_once() {
    let faults = parse("lang xx\nreboot\nfoo\n%packages\n%end\nkeyboard fr\n").unwrap_err();
    let lines: Vec<usize> = faults.iter().map(|fault| fault.line).collect();
    assert_eq!(lines, [1, 3, 4, 6]);
}

#[test]
fn files_that_are_no_text_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ks.cfg");
    let error = read(&path).unwrap_err();
    assert!(error.to_string().contains("cannot read the answers"), "{error}");
    fs::write(&path, [0xff, 0xfe]).unwrap();
    assert!(read(&path).unwrap_err().to_string().contains("no text"));
    fs::write(&path, vec![b'#'; (1 << 20) + 1]).unwrap();
    assert!(read(&path).unwrap_err().to_string().contains("1 MiB"));
    fs::write(&path, "lang xx\n").unwrap();
    let error = read(&path).unwrap_err();
    assert_eq!(error.kind, Kind::Config);
    assert!(error.to_string().contains("line 1: lang: xx"), "{error}");
}

fn network() -> impl Strategy<Value = Network> {
    let card = prop_oneof![
        Just(Card::Name("eth0".to_owned())),
        Just(Card::Mac("00:50:56:ab:cd:ef".to_owned()))
    ];
    let ipv4 = prop_oneof![
        Just(Ipv4::Off),
        Just(Ipv4::Dhcp),
        (2u8..250, 8u8..=30, any::<bool>()).prop_map(|(last, prefix, has)| {
            let address = [10, 1, 2, last].into();
            let bits = u32::from(std::net::Ipv4Addr::from([10, 1, 2, last]));
            let network = bits & (u32::MAX << (32 - prefix));
            let gateway = std::net::Ipv4Addr::from(network + if bits == network + 1 { 2 } else { 1 });
            Ipv4::Static {
                address,
                prefix,
                gateway: has.then_some(gateway),
            }
        })
    ];
    let ipv6 = prop_oneof![
        Just(Ipv6::Off),
        Just(Ipv6::Auto),
        Just(Ipv6::Dhcp),
        (2u16.., any::<bool>()).prop_map(|(last, has)| Ipv6::Static {
            address: [0x2001, 0xdb8, 0, 0, 0, 0, 0, last].into(),
            prefix: 64,
            gateway: has.then(|| [0xfe80, 0, 0, 0, 0, 0, 0, 1].into()),
        })
    ];
    let servers = proptest::collection::vec(any::<u32>().prop_map(|bits| IpAddr::V4(bits.into())), 0..3);
    (
        card,
        proptest::option::of(1u16..4095),
        ipv4,
        ipv6,
        servers,
        proptest::option::of(576u32..9216),
        any::<bool>(),
    )
        .prop_map(
            |(card, vlan, ipv4, ipv6, name_servers, mtu, default_route)| Network {
                card,
                vlan,
                ipv4,
                ipv6,
                name_servers,
                mtu,
                default_route,
            },
        )
        .prop_filter("an address is the network's own", |network| match network.ipv4 {
            Ipv4::Static {
                address,
                prefix,
                gateway,
            } => super::network::check_ipv4(address, prefix, gateway).is_ok(),
            _ => true,
        })
}

fn parts() -> impl Strategy<Value = Vec<Part>> {
    let part = |role: Role, fs| {
        (
            role.least_mib()..100_000,
            any::<bool>(),
            proptest::option::of(0u64..1000),
            any::<bool>(),
        )
            .prop_map(move |(size, grow, more, has_size)| Part {
                role: role.clone(),
                fs,
                size_mib: has_size.then_some(size),
                grow,
                max_mib: more.filter(|_| grow).map(|more| size + more),
                options: has_size.then(|| "nodev,nosuid".to_owned()),
            })
    };
    let mount = |path: &str| Role::Mount(path.to_owned());
    prop_oneof![
        Just(Vec::new()),
        (
            part(mount("/"), FileSystem::Ext4),
            part(mount("/srv/data"), FileSystem::Ext4),
            part(Role::Swap, FileSystem::Swap)
        )
            .prop_map(|(a, b, c)| vec![a, b, c])
    ]
}

fn answers() -> impl Strategy<Value = Answers> {
    let words = proptest::option::of("[a-z]{1,8}(\\.[a-z0-9]{1,8}){0,2}");
    let first = (
        words,
        prop_oneof![Just("UTC".to_owned()), Just("Europe/Berlin".to_owned())],
        any::<bool>(),
        any::<bool>(),
        proptest::option::of(network()),
        proptest::collection::btree_set((1u16.., any::<bool>()), 0..4),
        any::<(bool, bool)>(),
    );
    let second = (
        parts(),
        proptest::option::of("naa\\.6000c29[0-9a-f]{25}"),
        any::<bool>(),
        "([a-z]{1,6}(=[a-z0-9,.]{1,6})?( [a-z]{1,6}){0,2})?",
        proptest::option::of(0u32..100),
        prop_oneof![Just(End::Halt), Just(End::Reboot), Just(End::PowerOff)],
        any::<(bool, bool, bool)>(),
    );
    (first, second).prop_map(
        |(
            (hostname, zone, servers, hash, network, ports, (ssh, key)),
            (parts, disk, clear, arguments, seconds, end, more),
        )| {
            let mut answers = Answers {
                hostname,
                networks: network.into_iter().collect(),
                end,
                menu_seconds: seconds,
                kernel_arguments: if arguments.contains("root") {
                    String::new()
                } else {
                    arguments
                },
                ..Answers::default()
            };
            answers.time.zone = zone;
            if servers {
                answers.time.servers = vec!["ntp.example.com".to_owned(), "192.0.2.1".to_owned()];
            } else {
                answers.time.use_servers = more.0;
            }
            if hash {
                answers.root = RootLogin::Hash(HASH.to_owned());
            }
            if key {
                answers.ssh_keys = vec!["ssh-ed25519 AAAAC3Nza a \"quoted\" \\ name".to_owned()];
            }
            answers.firewall = Firewall {
                enabled: true,
                ssh,
                ports: ports
                    .into_iter()
                    .map(|(number, udp)| Port { number, udp })
                    .collect::<BTreeSet<_>>(),
            };
            answers.storage.parts = parts;
            answers.storage.disk = disk;
            answers.storage.clear = clear;
            if more.1 {
                answers.services_enabled = vec!["chrony".to_owned(), "a@b.service".to_owned()];
            }
            if more.2 {
                answers.settings.agent = Some("[target]\nlisten = \"127.0.0.1:9443\"\n".to_owned());
                answers.settings.retention_disk = Some("naa.6000c29a71e02b4c9d118e55037faa02".to_owned());
            }
            answers
        },
    )
}

proptest! {
    #[test]
    fn answers_survive_being_written_and_read(answers in answers()) {
        let text = render(&answers);
        prop_assert_eq!(parse(&text), Ok(answers), "{}", text);
    }

    #[test]
    fn no_text_makes_the_reader_panic(text in "(%|network |part |[a-z]+ |--[a-z]+=?|\"|'|\\\\|\n|[ -~]|\\PC){0,60}") {
        let _ = parse(&text);
    }

    #[test]
    fn words_survive_quoting(word in "\\PC{0,20}") {
        if !word.chars().any(char::is_control) {
            prop_assert_eq!(words::split(&words::quote(&word)), Ok(vec![word]));
        }
    }
}
