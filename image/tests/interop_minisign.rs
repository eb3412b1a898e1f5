// SPDX-License-Identifier: MIT OR Apache-2.0
//! Signatures of this program and minisign itself: each takes the other's, and neither takes what was changed.

mod common;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::{mt_image, mt_image_ok, require, run};

fn p(path: &Path) -> &str {
    path.to_str().expect("test paths are UTF-8")
}

/// A folder as `scripts/build` leaves it, and a pair of keys that minisign made.
struct Scene {
    folder: tempfile::TempDir,
    list: PathBuf,
    secret: PathBuf,
    public: PathBuf,
}

fn scene(password: Option<&str>) -> Scene {
    let folder = tempfile::tempdir().expect("the scene can be set");
    let (secret, public) = (
        folder.path().join("release.key"),
        folder.path().join("release.pub"),
    );
    let dist = folder.path().join("dist");
    std::fs::create_dir(&dist).expect("the scene can be set");
    std::fs::write(dist.join("master-target-0.1.0.iso"), [7; 70_000]).expect("the scene can be set");
    std::fs::write(dist.join("with space.ova"), "ova").expect("the scene can be set");
    let sums = Command::new("sha256sum")
        .args(["master-target-0.1.0.iso", "with space.ova"])
        .current_dir(&dist)
        .output()
        .expect("the scene can be set");
    let list = dist.join("SHA256SUMS");
    std::fs::write(&list, &sums.stdout).expect("the scene can be set");
    let mut make = Command::new("minisign");
    make.args(["-G", "-f", "-p", p(&public), "-s", p(&secret)]);
    match password {
        None => {
            make.arg("-W");
        }
        Some(_) => {
            make.stdin(Stdio::piped());
        }
    }
    let mut made = make.stdout(Stdio::null()).spawn().expect("the scene can be set");
    if let (Some(password), Some(mut input)) = (password, made.stdin.take()) {
        write!(input, "{password}\n{password}\n").expect("the scene can be set");
    }
    assert!(made.wait().expect("the scene can be set").success());
    Scene {
        folder,
        list,
        secret,
        public,
    }
}

impl Scene {
    fn minisign_takes(&self) -> bool {
        run(
            "minisign",
            &[
                "-V".as_ref(),
                "-m".as_ref(),
                &self.list,
                "-p".as_ref(),
                &self.public,
            ],
        )
        .status
        .success()
    }

    fn we_take(&self) -> (Option<i32>, String) {
        let said = mt_image(&["sums", "verify", p(&self.list), "--public-key", p(&self.public)]);
        (
            said.status.code(),
            String::from_utf8(said.stdout).expect("the scene can be set"),
        )
    }
}

#[test]
fn minisign_takes_our_signature_and_refuses_a_changed_file() {
    if !require(&["minisign", "sha256sum"]) {
        return;
    }
    let scene = scene(None);
    mt_image_ok(&["sums", "sign", p(&scene.list), "--key", p(&scene.secret)]);
    assert!(scene.minisign_takes());
    let check = |scene: &Scene| {
        let mut check = Command::new("sha256sum");
        check.args(["--check", "--strict", "SHA256SUMS"]);
        check
            .current_dir(scene.list.parent().unwrap())
            .output()
            .unwrap()
            .status
            .success()
    };
    assert!(check(&scene));
    let (code, said) = scene.we_take();
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("signed by the owner of this key"), "{said}");
    // The line of the key does as well as its file.
    let line = std::fs::read_to_string(&scene.public).unwrap();
    let line = line.lines().nth(1).unwrap();
    mt_image_ok(&["sums", "verify", p(&scene.list), "--public-key", line]);

    // One byte of an artefact: the signature is still good, the digest is not.
    let iso = scene.list.with_file_name("master-target-0.1.0.iso");
    let whole = std::fs::read(&iso).unwrap();
    let mut changed = whole.clone();
    changed[4711] ^= 1;
    std::fs::write(&iso, &changed).unwrap();
    assert!(scene.minisign_takes() && !check(&scene));
    let (code, said) = scene.we_take();
    assert_eq!(code, Some(9), "{said}");
    assert!(said.contains("master-target-0.1.0.iso is not the file"), "{said}");
    std::fs::remove_file(&iso).unwrap();
    assert!(scene.we_take().1.starts_with("missing: "));
    std::fs::write(&iso, &whole).unwrap();

    // The list with another digest: neither takes it.
    let list = std::fs::read_to_string(&scene.list).unwrap();
    let first = if list.starts_with('0') { "1" } else { "0" };
    std::fs::write(&scene.list, format!("{first}{}", &list[1..])).unwrap();
    assert!(!scene.minisign_takes());
    let (code, said) = scene.we_take();
    assert_eq!(code, Some(9), "{said}");
    assert!(
        said.contains("is not what the owner of this key signed"),
        "{said}"
    );
    std::fs::write(&scene.list, &list).unwrap();

    // What is said beside the signature is signed too, and any flipped character of the signature is noticed.
    let signature = scene.list.with_file_name("SHA256SUMS.minisig");
    let good = std::fs::read_to_string(&signature).unwrap();
    assert!(good.contains("file:SHA256SUMS"), "{good}");
    std::fs::write(&signature, good.replace("file:SHA256SUMS", "file:ELSEWHERE!")).unwrap();
    assert!(!scene.minisign_takes());
    assert_eq!(scene.we_take().0, Some(9));
    std::fs::write(&signature, "no signature").unwrap();
    assert_eq!(scene.we_take().0, Some(9));
    std::fs::remove_file(&signature).unwrap();
    assert_eq!(scene.we_take().0, Some(2), "no signature is no good signature");
}

#[test]
fn we_take_minisigns_signature_and_no_other_keys() {
    if !require(&["minisign", "sha256sum"]) {
        return;
    }
    let scene = scene(None);
    let signed = run(
        "minisign",
        &[
            "-S".as_ref(),
            "-m".as_ref(),
            &scene.list,
            "-s".as_ref(),
            &scene.secret,
        ],
    );
    assert!(signed.status.success(), "{signed:?}");
    assert_eq!(scene.we_take().0, Some(0));
    let other = self::scene(None);
    let said = mt_image(&["sums", "verify", p(&scene.list), "--public-key", p(&other.public)]);
    assert_eq!(said.status.code(), Some(9));
    // A signature that is there is not replaced by accident.
    let said = mt_image(&["sums", "sign", p(&scene.list), "--key", p(&other.secret)]);
    assert_eq!(said.status.code(), Some(5));
    mt_image_ok(&[
        "sums",
        "sign",
        p(&scene.list),
        "--key",
        p(&scene.secret),
        "--force",
    ]);
    assert!(scene.minisign_takes());
}

#[test]
fn a_key_with_a_password_needs_it() {
    if !require(&["minisign", "sha256sum"]) {
        return;
    }
    let scene = scene(Some("open sesame 17"));
    let password = scene.folder.path().join("password");
    let sign = |more: &[&str]| {
        let args = ["sums", "sign", p(&scene.list), "--key", p(&scene.secret)];
        let said = mt_image(&[&args[..], more].concat());
        (said.status.code(), String::from_utf8(said.stderr).unwrap())
    };
    let (code, said) = sign(&[]);
    assert_eq!(code, Some(2), "{said}");
    assert!(
        said.contains("protected by a password") && said.contains("--password-file"),
        "{said}"
    );
    std::fs::write(&password, "open barley 17\n").unwrap();
    let (code, said) = sign(&["--password-file", p(&password)]);
    assert_eq!(code, Some(3), "{said}");
    assert!(
        said.contains("is not its own") && !said.contains("barley"),
        "{said}"
    );
    assert!(!scene.list.with_file_name("SHA256SUMS.minisig").exists());
    std::fs::write(&password, "open sesame 17\n").unwrap();
    let (code, said) = sign(&["--password-file", p(&password)]);
    assert_eq!(code, Some(0), "{said}");
    assert!(scene.minisign_takes());
}

#[test]
fn what_is_no_key_is_told_as_that() {
    if !require(&["minisign", "sha256sum"]) {
        return;
    }
    let scene = scene(None);
    let bad = scene.folder.path().join("bad");
    let good = std::fs::read_to_string(&scene.secret).unwrap();
    let half = &good[..good.len() / 2];
    let line = good.lines().nth(1).unwrap();
    // A character in the middle of the secret half, so that the two halves do not belong together.
    let flipped = if line.as_bytes()[110] == b'A' { 'B' } else { 'A' };
    let damaged = good.replace(line, &format!("{}{flipped}{}", &line[..110], &line[111..]));
    let public = std::fs::read_to_string(&scene.public).unwrap();
    for (what, content, code, words) in [
        ("nothing", "", 3, "is no secret key"),
        ("noise", "noise\nnoise\n", 3, "is no secret key"),
        ("half", half, 3, "is no secret key"),
        ("the public key", &public, 3, "is no secret key"),
        ("damaged", &damaged, 3, "is damaged"),
        (
            "PEM",
            "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIE\n",
            3,
            "is no secret key",
        ),
    ] {
        std::fs::write(&bad, content).unwrap();
        let said = mt_image(&["sums", "sign", p(&scene.list), "--key", p(&bad)]);
        let text = String::from_utf8(said.stderr).unwrap();
        assert_eq!(said.status.code(), Some(code), "{what}: {text}");
        assert!(text.contains(words) && text.contains("hint: "), "{what}: {text}");
        assert!(
            !scene.list.with_file_name("SHA256SUMS.minisig").exists(),
            "{what}"
        );
    }
    let missing = scene.folder.path().join("missing");
    for args in [
        ["sums", "sign", p(&scene.list), "--key", p(&missing)],
        ["sums", "sign", p(&missing), "--key", p(&scene.secret)],
        ["sums", "sign", p(&scene.list), "--key", p(scene.folder.path())],
        ["sums", "verify", p(&scene.list), "--public-key", p(&missing)],
    ] {
        let said = mt_image(&args);
        assert_eq!(said.status.code(), Some(2), "{args:?}: {said:?}");
    }
}
