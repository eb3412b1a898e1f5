// SPDX-License-Identifier: MIT OR Apache-2.0
//! Exit codes and texts of the command line that need no other program.

mod common;

use common::{mt_image, mt_image_ok, text};

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
