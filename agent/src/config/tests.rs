use super::*;

const PATH: &str = "agent.toml";

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::from_bytes(Path::new(PATH), text.as_bytes())
}

const ID: &str = "naa.6000c29a71e02b4c9d118e55037faa01";

fn wrong(bytes: &[u8]) -> (String, String) {
    let error = Config::from_bytes(Path::new(PATH), bytes).unwrap_err();
    assert_eq!(error.exit_code(), ExitCode::Config);
    (error.to_string(), error.hint().unwrap_or_default())
}

#[test]
fn the_sample_file_shows_every_default() {
    let sample = include_str!("../../config/agent.toml");
    assert_eq!(
        parse(sample).unwrap(),
        Config::default(),
        "as it is, the sample changes nothing"
    );
    // Every key it mentions is known, and the values it shows as defaults are the defaults.
    let enabled: String = sample
        .lines()
        .map(|line| {
            line.strip_prefix('#')
                .filter(|rest| !rest.starts_with(' '))
                .unwrap_or(line)
        })
        .flat_map(|line| [line, "\n"])
        .collect();
    let config = parse(&enabled).unwrap();
    assert_eq!(config.lab_disks.len(), 2);
    assert_eq!(
        (config.lab_disks[0].block_size, config.lab_disks[1].block_size),
        (None, Some(4096))
    );
    // A broker is asked only where there is a section for it.
    assert_eq!(config.broker, Some(BrokerConfig::default()));
    // Points are kept only where a folder is named for them.
    assert_eq!(config.retention.as_deref(), Some(Path::new("/retention")));
    assert_eq!(
        Config {
            retention: None,
            broker: None,
            lab: false,
            lab_disks: Vec::new(),
            ..config
        },
        Config::default()
    );
}

#[test]
fn what_editors_do_to_a_file_is_accepted() {
    assert_eq!(parse("").unwrap(), Config::default());
    assert_eq!(parse("\u{feff}").unwrap(), Config::default());
    let config =
        parse("\u{feff}[agent]\r\nsocket_group = \"ops\"\r\n[target]\r\nlisten = \"[::1]:1\"\r\n").unwrap();
    assert_eq!(
        (config.socket_group.as_str(), config.listen.to_string().as_str()),
        ("ops", "[::1]:1")
    );
}

#[test]
fn lab_disks_are_used_only_when_the_setting_is_on() {
    let text =
        |enabled| format!("[lab]\nenabled = {enabled}\n[[lab.disks]]\nscsi_id = \"{ID}\"\npath = \"/a\"\n");
    let on = parse(&text(true)).unwrap();
    assert_eq!((on.lab, on.lab_disks.len(), on.lab_disks_unused), (true, 1, 0));
    let off = parse(&text(false)).unwrap();
    assert_eq!(
        (off.lab, off.lab_disks.len(), off.lab_disks_unused),
        (false, 0, 1)
    );
}

#[test]
fn every_mistake_is_told_with_its_line() {
    let long = format!("[agent]\nsocket = \"/{}\"", "s".repeat(SOCKET_PATH_BYTES_MAX));
    let two = |second: &str| {
        let disk = format!("[[lab.disks]]\nscsi_id = \"{ID}\"\npath = \"/a\"\n");
        format!("[lab]\nenabled = true\n{disk}{second}")
    };
    let same_id = two(&format!(
        "[[lab.disks]]\nscsi_id = \"0x{}\"\npath = \"/b\"\n",
        &ID[4..]
    ));
    let same_path = two("[[lab.disks]]\nscsi_id = \"naa.6000c29a71e02b4c9d118e55037faa02\"\npath = \"/a\"\n");
    let bad_block = two("block_size = 520\n");
    let huge_block = two("block_size = 99999999999999999999\n");
    let rows: &[(&str, &str, &str)] = &[
        (
            "[agnt]\n",
            "1: unknown key \"agnt\"",
            "did you mean \"agent\"? Known here: agent, target, retention, broker, lab",
        ),
        (
            "# one\n[agent]\nstate_dri = \"/a\"\n",
            "3: unknown key \"state_dri\"",
            "did you mean \"state_dir\"? Known here: state_dir, socket, socket_group",
        ),
        (
            "[agent]\nSOCKET = \"/a\"",
            "2: unknown key \"SOCKET\"",
            "did you mean \"socket\"? Known here: state_dir, socket, socket_group",
        ),
        (
            "[target]\nzzz = 1",
            "2: unknown key \"zzz\"",
            "known here: listen, control",
        ),
        (
            "[agent]\nstate_dir = 1\n",
            "2: state_dir is integer `1`, expected a string",
            "",
        ),
        (
            "[broker]\nsocket = \"/run/master-target/agent.sock\"",
            "2: socket is the one of [agent]",
            "give each of the two its own",
        ),
        (
            "[broker]\nuser = \"root\"",
            "2: user is root, who may do all that a broker keeps from him",
            "name the user that the target runs as; a target that is root needs no broker",
        ),
        (
            "[agent]\nstate_dir = \"/a\"\n[broker]\nstate_dir = \"/a\"",
            "4: state_dir is the one of [agent], whose user may write to it",
            "give the broker a folder of root's",
        ),
        ("agent = 3", "1: agent is integer `3`, expected a table", ""),
        (
            "[target]\nlisten = 9443",
            "2: listen is integer `9443`, expected a string",
            "",
        ),
        (
            "[lab]\nenabled = \"yes\"",
            "2: enabled is string \"yes\", expected a boolean",
            "",
        ),
        ("[lab]\n", "1: [lab] needs the key \"enabled\"", ""),
        (
            "[lab]\nenabled = true\n[[lab.disks]]\npath = \"/a\"\n",
            "3: [[lab.disks]] needs the key \"scsi_id\"",
            "",
        ),
        (
            "[agent]\nsocket = \"/a\"\nsocket = \"/b\"\n",
            "3: \"socket\" is given twice",
            "keep one of them",
        ),
        (
            "[agent]\n[target]\n[agent]\n",
            "3: \"agent\" is given twice",
            "keep one of them",
        ),
        (
            "[agent]\nsocket = \"/a",
            "2: invalid basic string, expected `\"`",
            "",
        ),
        ("hello world", "1: key with no value, expected `=`", ""),
        ("\n\n[agent", "3: unclosed table, expected `]`", ""),
        (
            "[agent]\nstate_dir = \"state\"",
            "2: state_dir is \"state\", which is not an absolute path",
            "begin it with \"/\": a service has no folder of its own",
        ),
        (
            "[agent]\nsocket = \"\"",
            "2: socket is \"\", which is not an absolute path",
            "begin it with \"/\": a service has no folder of its own",
        ),
        (
            &long,
            "2: socket is 104 bytes long, the kernel allows 103",
            "choose a shorter path, such as one in /run",
        ),
        (
            "[agent]\nsocket_group = \"a b\"",
            "2: socket_group is \"a b\", which cannot be the name of a group",
            "give the name of a group of this system, see \"getent group\"",
        ),
        (
            "[target]\nlisten = \"localhost\"",
            "2: listen is \"localhost\", which is not an IP address with a port",
            "write it like \"0.0.0.0:9443\" or \"[::]:9443\"",
        ),
        (
            "[target]\nlisten = \"0.0.0.0:9443\"\n[lab]\nenabled = true\nplain = true",
            "5: plain is set and [target] listen is 0.0.0.0:9443: without TLS only loopback is allowed",
            "remove plain and register the machines (\"mt-agent register\"), or listen on 127.0.0.1 in a laboratory",
        ),
        (
            "[lab]\nenabled = false\nplain = true",
            "3: plain is set and [lab] is not enabled: only a laboratory may do without TLS",
            "remove plain and register the machines (\"mt-agent register\"), or listen on 127.0.0.1 in a laboratory",
        ),
        (
            "[target]\ncontrol = \"0.0.0.0:9443\"",
            "2: control and listen are both 0.0.0.0:9443",
            "machines register on one port and replicate on another: give each its own",
        ),
        (
            "[lab]\nenabled = true\n[[lab.disks]]\nscsi_id = \"sdb\"\npath = \"/a\"",
            "4: scsi_id of lab disk 1: not a SCSI ID: \"sdb\" holds 's', which is not a hexadecimal digit",
            "write it like \"naa.6000c29a71e02b4c9d118e55037faa01\"",
        ),
        (
            &same_id,
            "7: lab disks 1 and 2 have the same scsi_id naa.6000c29a71e02b4c9d118e55037faa01",
            "give each lab disk its own",
        ),
        (
            &same_path,
            "8: lab disks 1 and 2 have the same path /a",
            "give each lab disk its own",
        ),
        (
            &bad_block,
            "6: block_size is 520 bytes",
            "logical blocks of disks have 512 or 4096 bytes",
        ),
        (
            &huge_block,
            "6: block_size is integer `99999999999999999999` as i128, expected i64",
            "",
        ),
    ];
    for (text, found, hint) in rows {
        assert_eq!(
            wrong(text.as_bytes()),
            (format!("{PATH}:{found}"), (*hint).to_owned()),
            "for {text:?}"
        );
    }
}

#[test]
fn what_is_no_text_is_told_apart() {
    let hint = "give a TOML file in UTF-8, such as the sample agent.toml".to_owned();
    let rows: &[(&[u8], &str)] = &[
        (b"\x7fELF\x02\x01\x01\x00", "it has a zero byte at offset 0x7"),
        (b"[agent]\xff", "it is not UTF-8 at offset 0x7"),
    ];
    for (bytes, found) in rows {
        assert_eq!(
            wrong(bytes),
            (format!("{PATH} is not a configuration: {found}"), hint.clone())
        );
    }
}

#[test]
fn a_file_is_read_to_its_bound_and_no_further() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("agent.toml");
    let refused = |path: &Path| Config::load(path).unwrap_err().to_string();

    // Sparse: were it read as a whole, the test would need its 100 MiB of memory.
    File::create(&path).unwrap().set_len(100 << 20).unwrap();
    assert_eq!(
        refused(&path),
        format!(
            "{} is not a configuration: it is larger than 1048576 bytes",
            path.display()
        )
    );
    assert!(refused(folder.path()).ends_with("it is not a regular file"));
    // A device that never ends is not even begun.
    assert!(refused(Path::new("/dev/zero")).ends_with("it is not a regular file"));
    let missing = Config::load(&folder.path().join("none.toml")).unwrap_err();
    assert!(missing.hint().unwrap().contains("--config"), "{missing}");
}

proptest::proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300)) {
        let _ = Config::from_bytes(Path::new(PATH), &bytes);
    }

    #[test]
    fn no_text_makes_it_panic(text in "(\\[|\\]|agent|lab|disks|=|\"|'|\n|\\.|[a-z]|[0-9]|\u{e4}){0,60}") {
        let _ = parse(&text);
    }
}
