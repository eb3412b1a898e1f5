use super::*;
use crate::model::JobKind;

fn new_pair(name: &str, scsi_id: &str) -> NewPair {
    NewPair {
        name: name.parse().unwrap(),
        scsi_id: scsi_id.parse().unwrap(),
        size: 1 << 40,
        logical_block_size: 512,
        overwrite: false,
    }
}

const FIRST: &str = "naa.6000c29000000000000000000000a001";
const SECOND: &str = "naa.6000c29000000000000000000000a002";

fn now() -> Timestamp {
    "2026-03-02T10:14:07Z".parse().unwrap()
}

fn job() -> Job {
    Job {
        id: JobId(0),
        kind: JobKind::Seeding,
        pair: "db01/0".into(),
        peer: "127.0.0.1:1".into(),
        state: JobState::Running,
        bytes_total: 10,
        bytes_done: 0,
        bytes_durable: 0,
        bytes_written: 0,
        bytes_zeroed: 0,
        bytes_different: 0,
        bytes_on_wire: 0,
        started: now(),
        ended: None,
        error: None,
        hint: None,
        exit_code: None,
    }
}

#[test]
fn everything_is_there_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let state = State::open(folder.path()).unwrap();
    let pair = state.add_pair(&new_pair("db01/scsi0:1", FIRST), now()).unwrap();
    assert_eq!(
        (pair.generation, pair.adopted, pair.protected_size, pair.size),
        (1, false, None, 1 << 40)
    );
    state.set_adopted(pair.id).unwrap();
    state.set_protected_size(pair.id, 1 << 39).unwrap();
    state.begin_seeding(pair.id, [7; 16], 1 << 39, "here").unwrap();
    state.store_mark(pair.id, [7; 16], 1 << 30).unwrap();
    state.store_mark(pair.id, [8; 16], 1 << 31).unwrap();
    let stored = state.insert_job(&job()).unwrap();
    drop(state);

    let state = State::open(folder.path()).unwrap();
    let again = state.pair(&pair.name).unwrap().unwrap();
    assert_eq!(
        again,
        Pair {
            adopted: true,
            protected_size: Some(1 << 39),
            ..pair.clone()
        }
    );
    let mark = state.seeding(pair.id).unwrap().unwrap();
    assert_eq!(
        mark,
        SeedingMark {
            seeding_id: [7; 16],
            durable: 1 << 30,
            size: 1 << 39,
            complete: false,
            instance: "here".into(),
        }
    );
    let job = state.job(stored.id).unwrap().unwrap();
    assert_eq!(job.state, JobState::Interrupted);
    state.complete_seeding(pair.id, [7; 16]).unwrap();
    let mark = state.seeding(pair.id).unwrap().unwrap();
    assert!(mark.complete && mark.durable == mark.size);
    assert!(state.remove_pair(&pair.name).unwrap());
    assert!(!state.remove_pair(&pair.name).unwrap());
    assert_eq!(state.seeding(pair.id).unwrap(), None);
}

#[test]
fn a_disk_has_one_pair_and_a_pair_one_disk() {
    let folder = tempfile::tempdir().unwrap();
    let state = State::open(folder.path()).unwrap();
    let first = state.add_pair(&new_pair("db01/0", FIRST), now()).unwrap();
    assert_eq!(
        state.add_pair(&new_pair("db01/0", FIRST), now()).unwrap(),
        first,
        "asked for twice, made once"
    );
    let taken = state.add_pair(&new_pair("db02/0", FIRST), now()).unwrap_err();
    assert!(matches!(taken, StateError::DiskTaken { .. }), "{taken}");
    let exists = state.add_pair(&new_pair("db01/0", SECOND), now()).unwrap_err();
    assert!(matches!(exists, StateError::PairExists { .. }), "{exists}");
    assert_eq!(state.pairs().unwrap(), [first]);
}

#[test]
fn a_second_agent_is_told_who_has_the_state() {
    let folder = tempfile::tempdir().unwrap();
    let _state = State::open(folder.path()).unwrap();
    match State::open(folder.path()) {
        Err(StateError::Locked { holder, .. }) => assert_eq!(holder, std::process::id().to_string()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_file_that_is_newer_or_damaged_is_left_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    drop(State::open(folder.path()).unwrap());
    let path = folder.path().join("state.db");
    let connection = Connection::open(&path).unwrap();
    connection.pragma_update(None, "user_version", 99).unwrap();
    drop(connection);
    assert!(matches!(
        State::open(folder.path()),
        Err(StateError::Newer { found: 99, .. })
    ));

    let garbage = vec![0x55; 8192];
    std::fs::write(&path, &garbage).unwrap();
    for extra in ["state.db-wal", "state.db-shm"] {
        let _ = std::fs::remove_file(folder.path().join(extra));
    }
    let error = State::open(folder.path()).unwrap_err();
    assert!(error.hint().unwrap().contains("backup"), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), garbage);
}

/// The form before machines registered, as an agent of then left it: opened, carried over, and nothing of it lost.
#[test]
fn a_state_of_before_registration_is_carried_over() {
    let folder = tempfile::tempdir().unwrap();
    let connection = Connection::open(folder.path().join("state.db")).unwrap();
    connection.execute_batch(include_str!("state-2.sql")).unwrap();
    drop(connection);
    let state = State::open(folder.path()).unwrap();
    let pairs = state.pairs().unwrap();
    assert_eq!(pairs.len(), 1);
    assert_eq!(pairs[0].name.to_string(), "db01/scsi0:1");
    assert!(pairs[0].adopted && pairs[0].generation == 4);
    let mark = state.seeding(pairs[0].id).unwrap().unwrap();
    assert_eq!((mark.durable, mark.complete), (4_194_304, true));
    assert_eq!(state.registered().unwrap().len(), 0);
    state
        .add_audit(&audit::Entry::new(Timestamp::UNIX_EPOCH, "a", "b", "c"))
        .unwrap();
    drop(state);
    // And it is of today's form from then on.
    assert_eq!(
        State::open(folder.path())
            .unwrap()
            .audit(None, 9)
            .unwrap()
            .entries
            .len(),
        1
    );
}

/// The folder of the state was another one once. An agent that began anew beside it would know none of its pairs.
#[test]
fn a_state_one_folder_higher_is_not_passed_over() {
    let old = tempfile::tempdir().unwrap();
    drop(State::open(old.path()).unwrap());
    let folder = old.path().join("agent");
    let error = State::open(&folder).unwrap_err();
    assert!(matches!(error, StateError::Elsewhere { .. }), "{error}");
    assert_eq!(error.exit_code(), ExitCode::Config);
    let hint = error.hint().unwrap();
    for name in ["state.db", "state.db-wal", "state.db-shm"] {
        let (from, to) = (old.path().join(name), folder.join(name));
        assert!(!from.exists() || std::fs::rename(from, to).is_ok());
    }
    assert!(
        hint.contains(&format!(
            "mv {}/state.db* {}/",
            old.path().display(),
            folder.display()
        )),
        "{hint}"
    );
    State::open(&folder).unwrap();
}

#[test]
fn old_jobs_make_room_for_new_ones() {
    let folder = tempfile::tempdir().unwrap();
    let state = State::open(folder.path()).unwrap();
    let first = state.insert_job(&job()).unwrap();
    state
        .with(|connection| connection.execute("UPDATE sqlite_sequence SET seq = 1500", []))
        .unwrap();
    let last = state.insert_job(&job()).unwrap();
    assert_eq!(
        state.jobs().unwrap().iter().map(|job| job.id).collect::<Vec<_>>(),
        [last.id]
    );
    assert_eq!(state.job(first.id).unwrap(), None);
}

/// An agent was killed between the two steps of adding a job, and no agent could open the state any more.
#[test]
fn a_job_without_its_document_does_not_keep_the_state_shut() {
    let folder = tempfile::tempdir().unwrap();
    drop(State::open(folder.path()).unwrap());
    let connection = Connection::open(folder.path().join("state.db")).unwrap();
    connection
        .execute("INSERT INTO job (document) VALUES ('{}')", [])
        .unwrap();
    drop(connection);
    let state = State::open(folder.path()).unwrap();
    assert_eq!(state.jobs().unwrap(), []);
}
