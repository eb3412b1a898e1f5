//! The bytes of a retention store, found by what the agent says of them.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::agent;
use crate::disks::text;
use crate::lab::Lab;

/// Blocks of a store, bytes.
pub const BLOCK: u64 = 4096;

/// Where the data of an epoch's after-image of a block lies: file and offset.
///
/// # Panics
/// When there is none.
#[track_caller]
pub fn data_of(lab: &Lab, machine: &str, epoch: u64, block: u64) -> (PathBuf, u64) {
    let config = lab.config_path();
    let args = [
        "retention",
        "inspect",
        machine,
        "--json",
        "--extents",
        "--config",
        text(&config),
    ];
    let view = agent::run(lab.scratch.path(), args).expect_done().json();
    let list = |value: &serde_json::Value| value.as_array().expect("a list").clone();
    for segment in list(&view["segments"]) {
        for record in list(&segment["records"]) {
            for extent in list(&record["extents"]) {
                let number = |key: &str| extent[key].as_u64().expect("a number");
                let range = number("offset")..number("offset") + number("len");
                let is_it = extent["image"] == "after-image" && number("epoch") == epoch;
                if is_it && range.contains(&(block * BLOCK)) {
                    let store = lab.scratch.join("retention").join("machines").join(machine);
                    let file = store.join(segment["object"].as_str().expect("a name"));
                    // What is packed stands for the whole extent, wherever the block is in it.
                    let packed = number("stored") < number("len");
                    let into = if packed { 0 } else { block * BLOCK - range.start };
                    return (file, number("data") + into);
                }
            }
        }
    }
    panic!("no image of block {block} in epoch {epoch}: {view:#}");
}

/// Turns one bit of a file.
pub fn flip(path: &Path, offset: u64) {
    let file = std::fs::File::options()
        .read(true)
        .write(true)
        .open(path)
        .expect("it is there");
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).expect("it is as long");
    file.write_all_at(&[byte[0] ^ 1], offset)
        .expect("it can be written");
    file.sync_all().expect("it can be flushed");
}
