//! What the verbs that talk to the service have in common: where it is, how answers are printed, and how times look.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use jiff::Timestamp;
use serde_json::Value;

use crate::error::{CliError, ExitCode};
use crate::status::client::Client;

/// Where the service is, and who reads the answer.
#[derive(Debug, Clone, Args)]
pub struct ServiceArgs {
    /// Local socket of the agent [default: $MT_AGENT_SOCKET, else
    /// /run/master-target/agent.sock]
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Answer in JSON
    #[arg(long)]
    pub json: bool,
}

impl ServiceArgs {
    /// A client of that service.
    pub fn client(&self) -> Client {
        Client::new(self.socket.as_deref())
    }
}

/// Prints an answer. That the reader has gone away (`| head`) is no error.
///
/// # Errors
/// When standard output cannot be written for another reason.
pub fn print(text: &str) -> Result<(), CliError> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(CliError::new(
            ExitCode::Unexpected,
            format!("cannot print the answer: {error}"),
        )),
        _ => Ok(()),
    }
}

/// Prints a document for programs.
///
/// # Errors
/// When standard output cannot be written.
pub fn print_json(document: &Value) -> Result<(), CliError> {
    print(&format!("{document:#}\n"))
}

/// A table: columns as wide as their widest cell, two spaces apart; `right` names the columns that stand right.
pub fn table(rows: &[Vec<String>], right: &[usize]) -> Vec<String> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .max()
    };
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().enumerate().map(|(column, cell)| {
            let width = widths[column];
            if right.contains(&column) {
                format!("{cell:>width$}")
            } else {
                format!("{cell:<width$}")
            }
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

/// A time span as people say it, two units at most.
pub fn span_text(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    match seconds {
        0..=99 => format!("{seconds} s"),
        100..=5999 => format!("{minutes} min"),
        6000..=172_799 => format!("{hours} h {} min", minutes % 60),
        _ => format!("{days} d {} h", hours % 24),
    }
}

/// The seconds from one time to another; 0 when a clock was set back in between.
pub fn seconds_between(from: Timestamp, to: Timestamp) -> u64 {
    u64::try_from(to.as_second().saturating_sub(from.as_second())).unwrap_or(0)
}

/// A time to the second.
pub fn time_text(time: Timestamp) -> String {
    time.strftime("%Y-%m-%d %H:%M:%SZ").to_string()
}

/// How much of a whole, in percent; 100 only when all of it, and 100 of nothing.
pub fn percent(part: u64, whole: u64) -> u64 {
    let percent = u128::from(part) * 100 / u128::from(whole.max(1));
    if whole == 0 {
        100
    } else {
        u64::try_from(percent).unwrap_or(100).min(100)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_short() {
        let rows = [
            (0, "0 s"),
            (99, "99 s"),
            (100, "1 min"),
            (5999, "99 min"),
            (6000, "1 h 40 min"),
            (172_799, "47 h 59 min"),
            (172_800, "2 d 0 h"),
            (u64::MAX, "213503982334601 d 7 h"),
        ];
        for (seconds, text) in rows {
            assert_eq!(span_text(seconds), text);
        }
    }

    #[test]
    fn percents_do_not_lie_at_the_end() {
        assert_eq!(percent(999, 1000), 99);
        assert_eq!(percent(1000, 1000), 100);
        assert_eq!(percent(0, 0), 100);
        assert_eq!(percent(u64::MAX, 1), 100);
    }

    #[test]
    fn tables_line_up() {
        let rows = [["A", "SIZE"], ["long", "1"]].map(|row| row.map(str::to_owned).to_vec());
        assert_eq!(table(&rows, &[1]), ["A     SIZE", "long     1"]);
        assert!(table(&[], &[]).is_empty());
    }
}
