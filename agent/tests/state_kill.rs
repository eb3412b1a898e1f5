//! The durable state against `kill -9`.
//!
//! Alone in its program: a child that is being started holds a copy of every descriptor until it has become another
//! program, the locks of states that other tests have open among them.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use jiff::Timestamp;
use mt_agent::model::{NewPair, PairName};
use mt_agent::state::State;

/// Set for the child: the folder of the state it writes until it is killed.
const CHILD_FOLDER: &str = "MT_TEST_STATE_FOLDER";
const SEEDING: [u8; 16] = [7; 16];
const SIZE: u64 = 1 << 40;
/// Times the child is killed.
const KILLS: usize = 12;

/// What the child does: it moves a mark on, and says each mark after the state has said that it is stored.
fn store_marks_for_ever(folder: &Path) -> ! {
    let state = State::open(folder).expect("a new state opens");
    let pair = {
        let new = NewPair {
            name: PairName::new("db01", "scsi0:1").expect("the state answers"),
            scsi_id: "naa.6000c29a71e02b4c9d118e55037fab01"
                .parse()
                .expect("it can be parsed"),
            size: SIZE,
            logical_block_size: 512,
            overwrite: false,
        };
        state
            .add_pair(&new, Timestamp::UNIX_EPOCH)
            .expect("the state answers")
    };
    let mut durable = match state.seeding(pair.id).expect("the state answers") {
        Some(mark) => mark.durable,
        None => {
            state
                .begin_seeding(pair.id, SEEDING, SIZE, "here")
                .expect("the state answers");
            0
        }
    };
    loop {
        durable += 4096;
        state
            .store_mark(pair.id, SEEDING, durable)
            .expect("the state answers");
        writeln!(std::io::stdout(), "stored {durable}").expect("the state answers");
    }
}

#[test]
fn a_mark_that_was_stored_survives_kill_9() {
    if let Some(folder) = std::env::var_os(CHILD_FOLDER) {
        store_marks_for_ever(Path::new(&folder));
    }
    let folder = tempfile::tempdir().unwrap();
    let mut newest = 0;
    for round in 0..KILLS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "a_mark_that_was_stored_survives_kill_9", "--nocapture"])
            .env(CHILD_FOLDER, folder.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        // Another number of marks each round, so that the kill meets other moments of the log's life.
        let mut wanted = 3 + 11 * round;
        while wanted > 0 {
            let line = lines.next().expect("the child goes on").unwrap();
            if let Some(mark) = line.strip_prefix("stored ") {
                newest = mark.parse().unwrap();
                wanted -= 1;
            }
        }
        child.kill().unwrap();
        child.wait().unwrap();
        // What it said between our last look and its end counts as well.
        for line in lines.map_while(Result::ok) {
            if let Some(Ok(mark)) = line.strip_prefix("stored ").map(str::parse) {
                newest = newest.max(mark);
            }
        }
        let state = State::open(folder.path()).unwrap();
        let pair = state.pairs().unwrap().remove(0);
        let found = state.seeding(pair.id).unwrap().unwrap();
        // One mark may have been stored that it did not come to tell.
        assert!(
            found.durable == newest || found.durable == newest + 4096,
            "{found:?}, told {newest}"
        );
    }
}
