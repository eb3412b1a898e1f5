// SPDX-License-Identifier: MIT OR Apache-2.0
//! Exit codes and texts of the command line that need no other program.

mod common;

use common::{mt_image, mt_image_ok, text};

/// Stands for the programs that a build puts into an image.
const PROGRAM: &str = env!("CARGO_BIN_EXE_mt-image");
const DEBIAN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/specs/debian.toml");

#[test]
fn specs_are_checked_with_line_and_nearest_key() {
    assert!(mt_image_ok(&["spec", "check", DEBIAN]).contains("good"));
    let folder = tempfile::tempdir().unwrap();
    let bad = folder.path().join("bad\nname.toml");
    let spoilt = std::fs::read_to_string(DEBIAN)
        .unwrap()
        .replace("memory_mib", "memory_mb");
    std::fs::write(&bad, spoilt).unwrap();
    let refused = mt_image(&["spec", "check", bad.to_str().unwrap()]);
    assert_eq!(refused.status.code(), Some(3));
    let said = text(&refused);
    assert!(
        said.contains("unknown field `memory_mb`") && said.contains("did you mean \"memory_mib\"?"),
        "{said}"
    );
    assert!(
        said.contains("line ") && said.contains("bad\\nname.toml"),
        "{said}"
    );
}

#[test]
fn vmx_files_are_checked_and_set() {
    let folder = tempfile::tempdir().unwrap();
    let vmx = folder.path().join("vm.vmx");
    std::fs::write(&vmx, "config.version = \"8\"\nvirtualHW.version = \"13\"\n").unwrap();
    let vmx = vmx.to_str().unwrap();
    let missing = mt_image(&["vmx", "check", vmx]);
    assert_eq!(missing.status.code(), Some(9));
    assert!(
        text(&missing).contains("is missing, expected \"TRUE\""),
        "{}",
        text(&missing)
    );
    assert!(mt_image_ok(&["vmx", "enable-uuid", vmx]).contains("is set now"));
    assert!(mt_image_ok(&["vmx", "enable-uuid", vmx]).contains("nothing was changed"));
    assert!(mt_image_ok(&["vmx", "check", vmx]).contains("is set"));
    std::fs::write(
        vmx,
        "config.version = \"8\"\nvirtualHW.version = \"13\"\ndisk.EnableUUID = \"TRUE\n",
    )
    .unwrap();
    let unclosed = mt_image(&["vmx", "check", vmx]);
    assert_eq!(unclosed.status.code(), Some(9));
    assert!(
        text(&unclosed).contains("the quotation mark in line 3 is not closed"),
        "{}",
        text(&unclosed)
    );
    assert!(mt_image_ok(&["vmx", "enable-uuid", vmx]).contains("is set now"));
    let lock = format!("{vmx}.lck");
    std::fs::write(&lock, "").unwrap();
    assert!(mt_image_ok(&["vmx", "check", vmx]).contains("is set"));
    let refused = mt_image(&["vmx", "enable-uuid", DEBIAN]);
    assert_eq!(refused.status.code(), Some(5));
}

#[test]
fn help_and_misuse_have_their_exit_codes() {
    assert!(mt_image_ok(&["--help"]).contains("Exit codes"));
    assert_eq!(mt_image(&["vmdk", "melt"]).status.code(), Some(2));
    assert_eq!(mt_image(&[]).status.code(), Some(2));
    assert_eq!(
        mt_image(&["vmdk", "write", "--level", "10", "a", "b"])
            .status
            .code(),
        Some(2)
    );
}

#[test]
fn files_that_are_no_files_are_refused() {
    for verb in [["vmdk", "check"], ["vmdk", "inspect"], ["ova", "verify"]] {
        let refused = mt_image(&[verb[0], verb[1], "/dev/null"]);
        assert_eq!(refused.status.code(), Some(2), "{verb:?}: {}", text(&refused));
        let refused = mt_image(&[verb[0], verb[1], "/"]);
        assert_eq!(refused.status.code(), Some(2), "{verb:?}: {}", text(&refused));
    }
}

/// A file that is not there, a folder, a part of the path that is a file: the operator's own mistake, told with what to do.
#[test]
fn wrong_paths_are_usage_errors_with_a_hint() {
    let folder = tempfile::tempdir().unwrap();
    let there = folder.path().join("there");
    std::fs::write(&there, "x").unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (missing, below) = (at("missing"), at("there/below"));
    let (out, nowhere) = (at("out"), at("no/folder/out"));
    for bad in [missing.as_str(), below.as_str()] {
        for words in [
            &["vmdk", "check", bad][..],
            &["vmdk", "inspect", bad],
            &["vmdk", "extract", bad, &out],
            &["vmdk", "write", bad, &out],
            &["ova", "verify", bad],
            &["ova", "inspect", bad],
            &["ova", "build", "--spec", DEBIAN, "--disk", bad, "--out", &out],
            &["ova", "build", "--spec", bad, "--disk", bad, "--out", &out],
            &["vmx", "check", bad],
            &["vmx", "enable-uuid", bad],
            &["iso", "verify", bad],
            &["spec", "check", bad],
            &["plan", "--spec", bad],
        ] {
            let refused = mt_image(words);
            let said = text(&refused);
            assert_eq!(refused.status.code(), Some(2), "{words:?}: {said}");
            assert!(
                said.contains(bad) && said.contains("\nhint: "),
                "{words:?}: {said}"
            );
        }
    }
    let there = there.to_str().unwrap();
    let refused = mt_image(&["vmdk", "write", there, &nowhere]);
    assert_eq!(refused.status.code(), Some(2), "{}", text(&refused));
    assert!(
        text(&refused).contains("hint: check the path"),
        "{}",
        text(&refused)
    );
    assert!(!std::path::Path::new(&out).exists());
}

/// A pipe would be waited for, and the new file would take the place of the one it is made from.
#[test]
fn odd_inputs_are_refused_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (pipe, raw, noise, spec) = (at("pipe"), at("raw"), at("noise"), at("spec.toml"));
    std::fs::copy(DEBIAN, &spec).unwrap();
    nix::unistd::mkfifo(pipe.as_str(), nix::sys::stat::Mode::S_IRWXU).unwrap();
    std::fs::write(&raw, vec![7u8; 200_000]).unwrap();
    std::fs::write(
        &noise,
        (0..100_000u32)
            .map(|at| 128 | (at % 127) as u8)
            .collect::<Vec<u8>>(),
    )
    .unwrap();
    for (words, code, says) in [
        (
            &["vmdk", "check", &pipe][..],
            2,
            "neither a file nor a block device",
        ),
        (&["ova", "verify", &pipe], 2, "neither a file nor a block device"),
        (&["iso", "verify", &pipe], 2, "neither a file nor a block device"),
        (
            &["vmdk", "write", &pipe, &raw],
            2,
            "neither a file nor a block device",
        ),
        (
            &["vmdk", "write", "--force", &raw, &raw],
            5,
            "nothing was written",
        ),
        (
            &["vmdk", "extract", "--force", &raw, &raw],
            5,
            "nothing was written",
        ),
        (
            &["vmdk", "write", "--force", &raw, &pipe],
            5,
            "exists and is no regular file",
        ),
        (
            &[
                "ova", "build", "--force", "--spec", DEBIAN, "--disk", &raw, "--out", &raw,
            ],
            5,
            "nothing was written",
        ),
        (
            &[
                "ova", "build", "--force", "--spec", &spec, "--disk", &raw, "--out", &spec,
            ],
            5,
            "is what",
        ),
        (&["spec", "check", &noise], 3, "no text in UTF-8"),
        (&["ova", "verify", &noise], 9, "the file is no tar"),
        (&["plan", "--spec", DEBIAN, "--version", "1<\"&;"], 2, "--version"),
        (
            &["plan", "--spec", DEBIAN, "--vmx", "99"],
            2,
            "hardware.vmx: is 99",
        ),
        (&["build", "--spec", DEBIAN, "--out", &noise], 2, "is no folder"),
        (
            &["build", "--spec", DEBIAN, "--work", &format!("{noise}/x")],
            2,
            "is no folder",
        ),
    ] {
        let output = mt_image(words);
        let said = text(&output);
        assert_eq!(output.status.code(), Some(code), "{words:?}: {said}");
        assert!(
            said.contains(says) && said.contains("hint: "),
            "{words:?}: {said}"
        );
    }
    assert_eq!(std::fs::read(&raw).unwrap(), vec![7u8; 200_000]);
}

/// Names and texts of a hostile file are shown, and do nothing to the terminal: neither in words nor as JSON.
#[test]
fn what_a_hostile_file_says_is_escaped() {
    let folder = tempfile::tempdir().unwrap();
    let ova = folder.path().join("hostile.ova");
    let evil = "\u{1b}]0;owned\u{7}\u{9b}2J\u{202e}";
    let descriptor = format!(
        "<?xml version=\"1.0\"?><Envelope xmlns=\"http://schemas.dmtf.org/ovf/envelope/1\" \
         xmlns:ovf=\"http://schemas.dmtf.org/ovf/envelope/1\"><References><File ovf:id=\"a\" \
         ovf:href=\"x{evil}\"/></References><VirtualSystem ovf:id=\"x\"><Name>name{evil}\nmachine   good</Name>\
         <VirtualHardwareSection ovf:transport=\"t{evil}\"><System></System></VirtualHardwareSection>\
         </VirtualSystem></Envelope>"
    );
    let mut builder = tar::Builder::new(std::fs::File::create(&ova).unwrap());
    for (name, bytes) in [
        (format!("a{evil}.ovf"), descriptor.as_bytes()),
        (
            format!("b{evil}.mf"),
            format!("SHA256({evil})= {evil}\n").as_bytes(),
        ),
    ] {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, bytes).unwrap();
    }
    builder.into_inner().unwrap();
    let ova = ova.to_str().unwrap();
    for words in [
        &["ova", "verify", ova][..],
        &["ova", "inspect", ova],
        &["ova", "verify", "--json", ova],
        &["ova", "inspect", "--json", ova],
    ] {
        let output = mt_image(words);
        let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert!(
            said.contains("owned"),
            "{words:?}: the text is not shown at all: {said}"
        );
        let acts =
            |c: &char| c.is_control() && *c != '\n' || matches!(c, '\u{202e}') && !words.contains(&"--json");
        assert_eq!(said.chars().find(acts), None, "{words:?}: {said:?}");
        assert!(
            !said.contains("\nmachine   good"),
            "a line of the file passes for one of ours: {said}"
        );
    }
}

/// Words of a plan that nothing is missing for.
fn plan<'a>(spec: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let words = ["plan", "--spec", spec, "--agent", PROGRAM, "--installer", PROGRAM];
    [&words[..], more].concat()
}

#[test]
fn reading_commands_speak_json() {
    let folder = tempfile::tempdir().unwrap();
    let bad = folder.path().join("bad.toml");
    let text_of = std::fs::read_to_string(DEBIAN).unwrap();
    std::fs::write(&bad, text_of.replace("vcpus = 4", "vcpus = 0")).unwrap();
    let vmx = folder.path().join("vm.vmx");
    std::fs::write(&vmx, "config.version = \"8\"\nvirtualHW.version = \"13\"\n").unwrap();
    for (words, code, key) in [
        (&["spec", "check", "--json", DEBIAN][..], 0, "packages"),
        (&plan(DEBIAN, &["--json"]), 0, "steps"),
        (&["spec", "check", "--json", bad.to_str().unwrap()], 3, "faults"),
        (&["vmdk", "inspect", "--json", bad.to_str().unwrap()], 9, "faults"),
        (&["ova", "inspect", "--json", bad.to_str().unwrap()], 9, "faults"),
        (
            &["vmx", "check", "--json", vmx.to_str().unwrap()],
            9,
            "enable_uuid",
        ),
    ] {
        let output = mt_image(words);
        assert_eq!(output.status.code(), Some(code), "{words:?}: {}", text(&output));
        let document: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(document["schema"], 1, "{words:?}");
        assert!(!document[key].is_null(), "{words:?}: {document}");
    }
    let output = mt_image(&["spec", "check", "--json", bad.to_str().unwrap()]);
    let document: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let line = 1 + text_of.lines().position(|line| line == "vcpus = 4").unwrap();
    assert_eq!(document["faults"][0]["line"], line, "{document}");
    let output = mt_image(&["spec", "check", "--json", DEBIAN]);
    let document: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(document["faults"], serde_json::json!([]), "{document}");
}

/// What is missing is told before any work, by `spec check` and `plan` as by `build`: each by its name, and all at once.
#[test]
fn what_a_build_would_miss_is_told_before_it() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (spec, overlay, out, work) = (at("spec.toml"), at("own"), at("out"), at("work"));
    let own = std::fs::read_to_string(DEBIAN)
        .unwrap()
        .replace("\"../overlay\"", "\"own\"");
    std::fs::write(&spec, &own).unwrap();
    let line = 1 + own.lines().position(|line| line.starts_with("overlay")).unwrap();
    let check = |code: i32, says: &str| {
        for words in [
            &["spec", "check", &spec][..],
            &plan(&spec, &["--out", &out, "--work", &work]),
        ] {
            let output = mt_image(words);
            let said = text(&output);
            assert_eq!(output.status.code(), Some(code), "{words:?}: {said}");
            assert!(said.contains(says), "{words:?}: {says}: {said}");
        }
    };
    check(3, "rootfs.overlay of the spec names");
    let said = text(&mt_image(&["spec", "check", &spec]));
    assert!(said.contains(&format!("line {line}: ")), "{said}");
    std::fs::create_dir(&overlay).unwrap();
    check(3, "it holds no file");
    std::fs::write(format!("{overlay}/file"), "x").unwrap();
    check(0, "");
    std::fs::write(at("spec.lock.toml"), "x").unwrap();
    check(3, "lock file");
    std::fs::remove_file(at("spec.lock.toml")).unwrap();

    let (none, text_file, odd) = (at("none"), at("text"), at("odd.raw"));
    std::fs::write(&text_file, "#!/bin/sh\n").unwrap();
    std::fs::write(&odd, vec![1u8; 700]).unwrap();
    let folders = ["--out", &out, "--work", &work];
    for (more, code, says) in [
        (&["--locked"][..], 2, "spec.lock.toml"),
        (&["--lock", &none], 2, "cannot read the lock file"),
        (&["--disk", &none], 2, "none: No such file"),
        (&["--disk", &odd], 2, "odd.raw: 700 bytes are no disk"),
        (&["--agent", &none], 2, "the agent's program"),
        (&["--installer", &text_file], 2, "text is no Linux program"),
        (
            &["--crates", &none],
            2,
            "cannot read the output of cargo metadata",
        ),
        (&["--crates", &text_file], 3, "text: "),
        (&["--out", &text_file], 2, "is no folder"),
    ] {
        // The last of two options of one name counts, where it may be given twice at all.
        let base: Vec<&str> = ["--spec", &spec, "--agent", PROGRAM, "--installer", PROGRAM]
            .into_iter()
            .chain(folders)
            .collect();
        let mut words: Vec<&str> = Vec::new();
        for pair in base.chunks(2) {
            if !more.contains(&pair[0]) {
                words.extend(pair);
            }
        }
        words.extend(more);
        for verb in ["plan", "build"] {
            let output = mt_image(&[&[verb], &words[..]].concat());
            let said = text(&output);
            assert_eq!(output.status.code(), Some(code), "{verb} {more:?}: {said}");
            assert!(
                said.contains(says) && said.contains("\nhint: "),
                "{verb} {more:?}: {said}"
            );
            assert_eq!(
                verb == "plan",
                said.contains("install "),
                "{verb} {more:?}: {said}"
            );
        }
        let output = mt_image(&[&["plan", "--json"], &words[..]].concat());
        let document: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(document["faults"].as_array().unwrap().len(), 1, "{document}");
    }
    // All at once.
    let many = [
        "plan",
        "--spec",
        &spec,
        "--agent",
        &none,
        "--installer",
        &none,
        "--disk",
        &none,
    ];
    let said = text(&mt_image(&many));
    assert!(said.contains("has 3 faults:\n  "), "{said}");
    assert!(!std::path::Path::new(&out).exists() && !std::path::Path::new(&work).exists());
}

/// A name may be anything: none of these inputs ends by itself, and the last would fill the memory.
#[test]
fn small_inputs_are_read_from_files_and_within_bounds() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (pipe, huge, iso) = (at("pipe"), at("huge"), at("x.iso"));
    nix::unistd::mkfifo(pipe.as_str(), nix::sys::stat::Mode::S_IRWXU).unwrap();
    std::fs::File::create(&huge).unwrap().set_len(1 << 42).unwrap();
    std::fs::write(&iso, "x").unwrap();
    let out = at("out");
    for (bad, code, says) in [
        (pipe.as_str(), 2, "it is a pipe, expected is a regular file"),
        ("/dev/zero", 2, "it is a device, expected is a regular file"),
        (huge.as_str(), 3, "are read"),
    ] {
        for words in [
            &["spec", "check", bad][..],
            &["plan", "--spec", bad],
            &["ova", "build", "--spec", bad, "--disk", &iso, "--out", &out],
            &["vmx", "check", bad],
            &["vmx", "enable-uuid", bad],
            &plan(DEBIAN, &["--lock", bad]),
            &plan(DEBIAN, &["--crates", bad]),
            &[
                "agent-tarball",
                "--agent",
                bad,
                "--installer",
                PROGRAM,
                "--out",
                &out,
            ],
        ] {
            let output = mt_image(words);
            let said = text(&output);
            assert_eq!(output.status.code(), Some(code), "{words:?}: {said}");
            assert!(
                said.contains(says) && said.contains("hint: "),
                "{words:?}: {said}"
            );
        }
    }
    let device = mt_image(&["iso", "embed-ks", &iso, "/dev/zero", "--out", &out]);
    assert_eq!(device.status.code(), Some(2), "{}", text(&device));
    assert!(!std::path::Path::new(&out).exists());
}

#[test]
fn times_that_no_file_can_have_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().to_str().unwrap();
    for date in [
        "0",
        "18446744073709551615",
        "9223372036854775807",
        "4294967296",
        "-1",
    ] {
        let date = format!("--source-date={date}");
        let words = [
            "agent-tarball",
            "--agent",
            PROGRAM,
            "--installer",
            PROGRAM,
            "--out",
            out,
            &date,
        ];
        let refused = mt_image(&words);
        assert_eq!(refused.status.code(), Some(2), "{date}: {}", text(&refused));
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn a_name_of_too_many_bytes_is_told_before_the_work() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (raw, long) = (at("raw"), at(&"x".repeat(256)));
    std::fs::write(&raw, vec![1u8; 512]).unwrap();
    for words in [
        &["vmdk", "write", &raw, &long][..],
        &["vmdk", "check", &long],
        &["spec", "check", &long],
        &["ova", "build", "--spec", DEBIAN, "--disk", &raw, "--out", &long],
        &["iso", "embed-ks", &raw, &raw, "--out", &long],
    ] {
        let refused = mt_image(words);
        let said = text(&refused);
        assert_eq!(refused.status.code(), Some(2), "{words:?}: {said}");
        assert!(said.contains("hint: choose a shorter name"), "{words:?}: {said}");
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

/// Disk full while a disk is compressed, packed, or taken out again: told as that, and nothing is left.
#[test]
fn without_space_no_file_is_left() {
    if !common::require_root() || !common::require(&["unshare", "sh"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (raw, vmdk, little) = (path("disk.raw"), path("disk.vmdk"), path("little space"));
    common::sample_disk(std::path::Path::new(&raw), 60);
    std::fs::create_dir(&little).unwrap();
    let size = mt_image_ok(&["vmdk", "write", &raw, &vmdk]);
    assert!(size.contains("grains"), "{size}");
    let whole = std::fs::metadata(&vmdk).unwrap().len();
    let target = format!("{little}/out");
    // Within the compression; and with space for the disk, not for the tar beside it.
    for (kib, words) in [
        (256, &["vmdk", "write", &raw, &target][..]),
        (256, &["vmdk", "extract", &vmdk, &target]),
        (
            256,
            &["ova", "build", "--spec", DEBIAN, "--disk", &raw, "--out", &target],
        ),
        (
            whole / 1024 * 3 / 2,
            &["ova", "build", "--spec", DEBIAN, "--disk", &raw, "--out", &target],
        ),
    ] {
        let script = format!(
            "mount -t tmpfs -o size={kib}k tmpfs \"$0\" && \"$@\"; code=$?; echo \"left: $(ls -A \"$0\")\"; exit $code"
        );
        let output = std::process::Command::new("unshare")
            .args([
                "--mount",
                "sh",
                "-c",
                &script,
                &little,
                env!("CARGO_BIN_EXE_mt-image"),
            ])
            .args(words)
            .output()
            .unwrap();
        let said = text(&output);
        assert_eq!(output.status.code(), Some(1), "{words:?}: {said}");
        assert!(said.contains("left: \n"), "{words:?}: {said}");
        assert!(
            said.contains("No space left on device") && said.contains("hint: free space"),
            "{words:?}: {said}"
        );
    }
}
