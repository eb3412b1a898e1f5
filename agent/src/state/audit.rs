//! The audit log in the state: who asked for which change, when, and what came of it.
//!
//! It is only appended to, and the file itself refuses everything else (triggers of the table `audit`). When there are more
//! than [`ENTRIES_MAX`] entries the oldest go, which whoever reads the log is told; the journal has what it keeps.

use jiff::Timestamp;
use rusqlite::{OptionalExtension as _, params};

use super::{State, StateError, from_sql};

/// Entries that are kept; the oldest go first. About 30 MB. The trigger `audit_stays` has the same number.
pub const ENTRIES_MAX: i64 = 100_000;

/// Longest text on who asked, characters.
const WHO_MAX: usize = 200;
/// Longest text on what for, characters.
const WHAT_MAX: usize = 2000;
/// Longest text on what came of it, characters.
const RESULT_MAX: usize = 600;

/// One change that was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// When it was answered.
    pub time: Timestamp,
    /// Who asked: a local user and process, or the address of a peer.
    pub who: String,
    /// What for.
    pub what: String,
    /// What came of it.
    pub result: String,
}

impl Entry {
    /// An entry of these texts, each made safe to show and cut to its longest.
    #[must_use]
    pub fn new(time: Timestamp, who: &str, what: &str, result: &str) -> Self {
        Self {
            time,
            who: shown(who, WHO_MAX),
            what: shown(what, WHAT_MAX),
            result: shown(result, RESULT_MAX),
        }
    }
}

/// A part of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// Entries with their numbers, newest first. Numbers grow by one.
    pub entries: Vec<(u64, Entry)>,
    /// Kept entries that are older than these.
    pub older: u64,
    /// Entries that were kept once, and are not any more.
    pub gone: u64,
}

/// A text that is safe in a log: what could move a cursor or turn the direction of writing is escaped, and no more than `max`
/// characters of it are kept, with a word on how many there were.
#[must_use]
pub fn shown(text: &str, max: usize) -> String {
    let mut out = String::new();
    for character in text.chars().take(max) {
        match character {
            '"' | '\'' | '\\' => out.push(character),
            other => out.extend(other.escape_debug()),
        }
    }
    let count = text.chars().count();
    if count > max {
        out.push_str(&format!("... ({count} characters)"));
    }
    out
}

impl State {
    /// Adds an entry.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn add_audit(&self, entry: &Entry) -> Result<(), StateError> {
        self.with(|connection| {
            connection
                .prepare_cached("INSERT INTO audit (time, who, what, result) VALUES (?1, ?2, ?3, ?4)")?
                .execute(params![
                    entry.time.to_string(),
                    entry.who,
                    entry.what,
                    entry.result
                ])?;
            let newest = connection.last_insert_rowid();
            connection
                .prepare_cached("DELETE FROM audit WHERE id <= ?1")?
                .execute([newest - ENTRIES_MAX])
                .map(|_| ())
        })
    }

    /// The newest entries, newest first; with `before` those of lower numbers.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn audit(&self, before: Option<u64>, count: u32) -> Result<Page, StateError> {
        let before = before.and_then(|id| i64::try_from(id).ok()).unwrap_or(i64::MAX);
        self.with(|connection| {
            let mut statement = connection.prepare_cached(
                "SELECT id, time, who, what, result FROM audit WHERE id < ?1 ORDER BY id DESC LIMIT ?2",
            )?;
            let entries: Vec<(i64, Entry)> = statement
                .query_map(params![before, count], |row| {
                    let time: String = row.get(1)?;
                    let entry = Entry {
                        time: time.parse().map_err(|error| super::conversion(1, error))?,
                        who: row.get(2)?,
                        what: row.get(3)?,
                        result: row.get(4)?,
                    };
                    Ok((row.get(0)?, entry))
                })?
                .collect::<Result<_, _>>()?;
            let oldest: Option<i64> = connection
                .query_row("SELECT MIN(id) FROM audit", [], |row| row.get(0))
                .optional()?
                .flatten();
            let gone = oldest.map_or(0, |oldest| oldest - 1);
            let first = entries.last().map_or(before, |(id, _)| *id);
            let older: i64 =
                connection.query_row("SELECT COUNT(*) FROM audit WHERE id < ?1", [first], |row| {
                    row.get(0)
                })?;
            Ok(Page {
                entries: entries
                    .into_iter()
                    .map(|(id, entry)| (from_sql(id), entry))
                    .collect(),
                older: from_sql(older),
                gone: from_sql(gone),
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(number: usize) -> Entry {
        Entry::new(
            Timestamp::UNIX_EPOCH,
            "user 0",
            &format!("act {number}"),
            "done (200)",
        )
    }

    #[test]
    fn pages_go_back_and_say_what_is_older() {
        let folder = tempfile::tempdir().unwrap();
        let state = State::open(folder.path()).unwrap();
        let empty = state.audit(None, 10).unwrap();
        assert_eq!((empty.entries.len(), empty.older, empty.gone), (0, 0, 0));
        (1..=25).for_each(|number| state.add_audit(&entry(number)).unwrap());
        let (mut before, mut seen) = (None, Vec::new());
        loop {
            let page = state.audit(before, 10).unwrap();
            seen.extend(page.entries.iter().map(|(id, _)| *id));
            assert_eq!(usize::try_from(page.older).unwrap(), 25 - seen.len());
            before = seen.last().copied();
            if page.older == 0 {
                break;
            }
        }
        assert_eq!(seen, (1..=25).rev().collect::<Vec<u64>>());
    }

    /// The file refuses to change or lose an entry, whoever asks it to; only what is beyond the limit goes, and that is told.
    #[test]
    fn the_log_is_only_appended_to() {
        let folder = tempfile::tempdir().unwrap();
        let state = State::open(folder.path()).unwrap();
        (1..=3).for_each(|number| state.add_audit(&entry(number)).unwrap());
        let other = rusqlite::Connection::open(folder.path().join("state.db")).unwrap();
        for sql in [
            "UPDATE audit SET result = 'x' WHERE id = 1",
            "DELETE FROM audit WHERE id = 1",
            "DELETE FROM audit",
            "INSERT OR REPLACE INTO audit (id, time, who, what, result) VALUES (1, '', '', '', '')",
            "INSERT OR REPLACE INTO audit (id, time, who, what, result) VALUES (2, '', '', '', '')",
        ] {
            let refused = other.execute(sql, []).unwrap_err().to_string();
            assert!(refused.contains("only appended to"), "{sql}: {refused}");
        }
        assert_eq!(state.audit(None, 10).unwrap().entries.len(), 3);
        // As if a hundred thousand had come since.
        other
            .execute(
                "UPDATE sqlite_sequence SET seq = ?1 WHERE name = 'audit'",
                [ENTRIES_MAX + 1],
            )
            .unwrap();
        state.add_audit(&entry(4)).unwrap();
        let page = state.audit(None, 10).unwrap();
        let kept: Vec<&str> = page
            .entries
            .iter()
            .map(|(_, entry)| entry.what.as_str())
            .collect();
        assert_eq!((kept, page.gone), (vec!["act 4", "act 3"], 2));
    }

    #[test]
    fn texts_are_bounded_and_cannot_draw() {
        let wild = format!("a\n\u{1b}[2J\u{202e}\u{0}\"b\\{}", "x".repeat(1 << 20));
        let entry = Entry::new(Timestamp::UNIX_EPOCH, &wild, &wild, &wild);
        for text in [&entry.who, &entry.what, &entry.result] {
            assert!(text.len() < 2200, "{} bytes", text.len());
            assert!(
                !text.chars().any(|c| c.is_control() || c == '\u{202e}'),
                "{text:?}"
            );
            assert!(text.starts_with(r#"a\n\u{1b}[2J\u{202e}\0"b\xxx"#), "{text}");
            assert!(text.ends_with(" characters)"), "{text}");
        }
        assert_eq!(shown("Z\u{fc}rich 'x'", 20), "Z\u{fc}rich 'x'");
    }
}
