// SPDX-License-Identifier: MIT OR Apache-2.0
//! Makes the corpora anew: `cargo run --package mt-fuzz --example make_corpus`, as root or not, with `mkfs.ext4`,
//! `mkfs.xfs`, `mkswap` and `sfdisk` at hand. Keys in them are fresh each time. What a fuzzer found is not made here and
//! stays: those files begin with `found-`.

#![expect(clippy::unwrap_used, reason = "a seed that cannot be made is to be seen")]

mod disks;
mod files;
mod wire;

use std::fs;
use std::path::{Path, PathBuf};

/// Where the corpora are.
struct Corpus(PathBuf);

impl Corpus {
    fn put(&self, target: &str, name: &str, bytes: impl AsRef<[u8]>) {
        let bytes = bytes.as_ref();
        let target = mt_fuzz::find(target).unwrap_or_else(|| panic!("there is no entry {target}"));
        assert!(
            bytes.len() <= target.len_max,
            "{name} of {}: {} bytes",
            target.name,
            bytes.len()
        );
        let folder = self.0.join(target.name);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(name), bytes).unwrap();
        (target.run)(bytes);
    }
}

fn main() {
    let corpus = Corpus(Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus"));
    for target in mt_fuzz::TARGETS {
        let folder = corpus.0.join(target.name);
        for entry in fs::read_dir(folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            if !path.file_name().unwrap().to_string_lossy().starts_with("found-") {
                fs::remove_file(path).unwrap();
            }
        }
    }
    wire::make(&corpus);
    files::make(&corpus);
    disks::make(&corpus);
    for target in mt_fuzz::TARGETS {
        let count = fs::read_dir(corpus.0.join(target.name)).unwrap().count();
        println!("{}: {count} inputs", target.name);
    }
}
