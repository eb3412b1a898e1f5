//! Compiles the programs for the kernel, and has libelf and zlib linked into ours.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?);
    println!("cargo:rerun-if-changed=src/bpf");
    println!("cargo:rerun-if-env-changed=CLANG");
    // Put there by the build script of libbpf-sys, beside the library that it has built.
    let headers = env::var("DEP_BPF_INCLUDE").map_err(|_| "libbpf-sys tells no place of headers")?;
    // Little or big endian as the machine that it is for; the bytes of the maps are read by our own program there.
    let target = match env::var("CARGO_CFG_TARGET_ENDIAN").as_deref() {
        Ok("big") => "bpfeb",
        _ => "bpfel",
    };
    // v3 has the atomic OR that bits need; what runs on kernels before 5.12 may not use it.
    compile(
        &out.join("tracker-bits.o"),
        &headers,
        &["-target", target, "-mcpu=v3"],
    )?;
    compile(
        &out.join("tracker-bytes.o"),
        &headers,
        &["-target", target, "-mcpu=v2", "-DMT_BYTES"],
    )?;
    link_statically(&out)
}

fn compile(object: &Path, headers: &str, options: &[&str]) -> Result<(), Failure> {
    let clang = env::var("CLANG").unwrap_or_else(|_| "clang".to_owned());
    let output = Command::new(&clang)
        .args(options)
        .args(["-O2", "-g", "-Wall", "-Werror", "-fno-stack-protector"])
        // The same object wherever it is built.
        .args(["-fdebug-prefix-map=/=.", "-fdebug-compilation-dir=."])
        .args(["-I", headers, "-c", "src/bpf/tracker.bpf.c", "-o"])
        .arg(object)
        .output()
        .map_err(|err| {
            format!("cannot start {clang}: {err}; install clang 12 or newer, or name it in CLANG")
        })?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(format!("{clang} does not compile the tracker's programs:\n{said}").into());
    }
    Ok(())
}

/// Links libelf and zlib statically where the compiler has their archives, so that a protected machine needs no package.
///
/// libbpf-sys asks the linker for `-lelf` and `-lz`. Its own switch for static ones has rustc look for the archives, which
/// does not know the compiler's folders. A folder in front that holds only the archives has the same effect.
fn link_statically(out: &Path) -> Result<(), Failure> {
    let folder = out.join("archives");
    std::fs::create_dir_all(&folder)?;
    let compiler = env::var("CC").unwrap_or_else(|_| "cc".to_owned());
    for name in ["libelf.a", "libz.a"] {
        let output = Command::new(&compiler)
            .arg(format!("-print-file-name={name}"))
            .output()?;
        let found = PathBuf::from(String::from_utf8(output.stdout)?.trim());
        // It prints the bare name when it has none.
        if found.is_absolute() {
            std::fs::copy(&found, folder.join(name))?;
        } else {
            println!(
                "cargo:warning=there is no {name}: the program will need the shared library where it runs"
            );
        }
    }
    println!("cargo:rustc-link-search=native={}", folder.display());
    Ok(())
}
