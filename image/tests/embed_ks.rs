// SPDX-License-Identifier: MIT OR Apache-2.0
//! `mt-image iso embed-ks` on small media, with xorriso as the independent reader.

#![allow(clippy::unwrap_used, reason = "test code")]

mod common;

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use common::{mt_image, mt_image_ok, require, run, text};

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// A medium with the label and the one file by which ours are known, sealed.
fn small_medium(folder: &Path, label: &str) -> PathBuf {
    let iso = unsealed_medium(folder, label);
    mt_image::iso::seal::apply(&iso).unwrap();
    iso
}

fn unsealed_medium(folder: &Path, label: &str) -> PathBuf {
    let tree = folder.join("tree");
    fs::create_dir_all(tree.join("mt")).unwrap();
    fs::write(tree.join("mt/payload.sha256"), "ab\n").unwrap();
    let iso = folder.join("small.iso");
    let arguments = ["-as", "mkisofs", "-quiet", "-r", "-V", label, "-o"].map(Path::new);
    let made = run("xorriso", &[&arguments[..], &[&iso, &tree]].concat());
    assert!(made.status.success(), "{}", text(&made));
    fs::remove_dir_all(tree).unwrap();
    iso
}

fn iso_of(folder: &tempfile::TempDir) -> PathBuf {
    folder.path().join("small.iso")
}

fn embed(iso: &Path, answers: &Path, out: &Path) -> std::process::Output {
    let word = |path: &Path| path.to_str().unwrap().to_owned();
    mt_image(&["iso", "embed-ks", &word(iso), &word(answers), "--out", &word(out)])
}

/// What the installer would refuse on the machine, where nobody is there to mend it, is refused here: with its lines, before
/// anything is written, and without any other program. So is a place that is not there, and a pipe that nobody fills.
#[test]
fn wrong_answers_and_places_are_refused_before_anything_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let (iso, good, wrong, pipe) = (path("any.iso"), path("good.ks"), path("wrong.ks"), path("pipe"));
    fs::write(&iso, "x").unwrap();
    fs::write(&good, "reboot\n").unwrap();
    fs::write(&wrong, "lang en_US\n\nreboott\nrootpw secret\n").unwrap();
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let huge = path("huge.ks");
    fs::File::create(&huge).unwrap().set_len(1 << 40).unwrap();
    let before = names(folder.path());
    let out = path("out.iso");
    for (iso, answers, out, code, says) in [
        (&iso, &wrong, &out, 3, "has 2 errors; nothing was written"),
        (
            &iso,
            &wrong,
            &out,
            3,
            "\n  line 3: reboott: no such command; did you mean reboot?",
        ),
        (
            &iso,
            &wrong,
            &out,
            3,
            "\n  line 4: rootpw: a password in clear text",
        ),
        (&iso, &huge, &out, 3, "at most 1048576 are read"),
        (&iso, &pipe, &out, 3, "it is empty"),
        (&pipe, &good, &out, 2, "neither a file nor a block device"),
        (&iso, &good, &path("no/such/out.iso"), 2, "no/such: No such file"),
        (&iso, &good, &iso.join("out.iso"), 2, "cannot create a file in"),
    ] {
        let output = embed(iso, answers, out);
        let said = text(&output);
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert!(said.contains(says) && said.contains("hint: "), "{says}: {said}");
        assert_eq!(names(folder.path()), before);
    }
}

#[test]
fn the_same_answers_give_the_same_bytes_under_any_name() {
    if !require(&["xorriso"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let iso = small_medium(folder.path(), "MASTER_TARGET");
    let answers = folder.path().join("my\nanswers.ks");
    fs::write(&answers, "lang en_US\nreboot\n").unwrap();
    let (one, two) = (folder.path().join("one.iso"), folder.path().join("- t\nwo.iso"));
    assert!(embed(&iso, &answers, &one).status.success());
    // A second later, since media are dated by the second.
    let later = std::time::SystemTime::now() + std::time::Duration::from_secs(3);
    fs::File::options()
        .write(true)
        .open(&answers)
        .unwrap()
        .set_modified(later)
        .unwrap();
    std::thread::sleep(std::time::Duration::from_millis(1100));
    let made = embed(&iso, &answers, &two);
    assert!(made.status.success(), "{}", text(&made));
    assert!(
        fs::read(&one).unwrap() == fs::read(&two).unwrap(),
        "two runs differ"
    );
    // The seal is renewed: the one of the medium before it would not fit any more.
    for path in [&one, &two] {
        mt_image_ok(&["iso", "verify", path.to_str().unwrap()]);
    }
    let elsewhere = tempfile::tempdir().unwrap();
    let iso = unsealed_medium(elsewhere.path(), "MASTER_TARGET");
    let unsealed = mt_image(&["iso", "verify", iso.to_str().unwrap()]);
    assert_eq!(unsealed.status.code(), Some(9), "{}", text(&unsealed));
    let refused = embed(&iso, &answers, &elsewhere.path().join("made.iso"));
    assert_eq!(refused.status.code(), Some(9), "{}", text(&refused));
    let back = folder.path().join("back.ks");
    let arguments = ["-osirrox", "on", "-indev"].map(Path::new);
    let rest = [Path::new("-extract"), Path::new("/mt/inst.ks"), &back];
    let read = run("xorriso", &[&arguments[..], &[&two], &rest[..]].concat());
    assert!(read.status.success(), "{}", text(&read));
    assert_eq!(fs::read_to_string(&back).unwrap(), "lang en_US\nreboot\n");
    fs::remove_file(&two).unwrap();
    let hash = format!("rootpw --iscrypted $6$salt${}\n", "a".repeat(86));
    fs::write(&answers, hash).unwrap();
    let made = embed(&iso_of(&folder), &answers, &two);
    assert!(
        text(&made).contains("only its owner may read it"),
        "{}",
        text(&made)
    );
    let mode = std::os::unix::fs::PermissionsExt::mode(&two.metadata().unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(names(folder.path()).len(), 5, "{:?}", names(folder.path()));
}

#[test]
fn other_files_are_refused_and_nothing_is_left() {
    if !require(&["xorriso"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let iso = small_medium(folder.path(), "MASTER_TARGET");
    let other_folder = tempfile::tempdir().unwrap();
    let other = small_medium(other_folder.path(), "OTHER");
    let (answers, empty, zeros, cut, out) = (
        folder.path().join("a.ks"),
        folder.path().join("empty"),
        folder.path().join("zeros"),
        folder.path().join("cut"),
        folder.path().join("out.iso"),
    );
    fs::write(&answers, "reboot\n").unwrap();
    fs::write(&empty, "").unwrap();
    fs::write(&zeros, vec![0u8; 1 << 20]).unwrap();
    let whole = fs::read(&iso).unwrap();
    fs::write(&cut, &whole[..whole.len() / 2]).unwrap();
    let before = names(folder.path());
    let cases = [
        (&answers, &answers, 3, "it has 7 bytes"),
        (&zeros, &answers, 3, "it has no ISO 9660 file system"),
        (&cut, &answers, 3, "bytes"),
        (
            &other,
            &answers,
            3,
            "its label is \"OTHER\", expected is \"MASTER_TARGET\"",
        ),
        (&iso, &empty, 3, "is no kickstart file: it is empty"),
        (&iso, &zeros, 3, "is no kickstart file"),
        (&folder.path().join("none"), &answers, 2, "none: No such file"),
    ];
    for (iso, answers, code, said) in cases {
        let output = embed(iso, answers, &out);
        assert_eq!(output.status.code(), Some(code), "{}", text(&output));
        assert!(text(&output).contains(said), "{said}: {}", text(&output));
    }
    assert_eq!(names(folder.path()), before);
    mt_image_ok(&[
        "iso",
        "embed-ks",
        iso.to_str().unwrap(),
        answers.to_str().unwrap(),
        "--out",
        out.to_str().unwrap(),
    ]);
    let first = fs::read(&out).unwrap();
    assert_eq!(embed(&iso, &answers, &out).status.code(), Some(5));
    assert!(fs::read(&out).unwrap() == first, "an existing file was changed");
    for input in [&iso, &answers] {
        let before = fs::read(input).unwrap();
        let words = [&iso, &answers, input].map(|path| path.to_str().unwrap());
        let output = mt_image(&[
            "iso", "embed-ks", words[0], words[1], "--out", words[2], "--force",
        ]);
        assert_eq!(output.status.code(), Some(5), "{}", text(&output));
        assert!(fs::read(input).unwrap() == before, "an input was replaced");
    }
    // One bit, where no other check looks.
    let file = fs::File::options().read(true).write(true).open(&iso).unwrap();
    let at = file.metadata().unwrap().len() - 2000;
    let mut byte = [0u8; 1];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
    let made = folder.path().join("damaged.iso");
    let output = embed(&iso, &answers, &made);
    assert_eq!(output.status.code(), Some(9), "{}", text(&output));
    assert!(
        text(&output).contains("it was damaged or changed"),
        "{}",
        text(&output)
    );
    assert!(!made.exists());
}

#[test]
fn every_flipped_byte_of_what_identifies_a_medium_is_noticed() {
    if !require(&["xorriso"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let iso = small_medium(folder.path(), "MASTER_TARGET");
    let answers = folder.path().join("a.ks");
    fs::write(&answers, "reboot\n").unwrap();
    let file = fs::File::options().read(true).write(true).open(&iso).unwrap();
    // Identifier and label; of the size, the byte that makes it larger than the file; the date's digits.
    let places = (1..6).chain(40..53).chain([83]).chain(830..846);
    for place in places {
        let at = 16 * 2048 + place;
        let mut byte = [0u8; 1];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 0x80], at).unwrap();
        let output = embed(&iso, &answers, &folder.path().join("out.iso"));
        assert_eq!(output.status.code(), Some(3), "byte {place}: {}", text(&output));
        file.write_all_at(&byte, at).unwrap();
    }
}
