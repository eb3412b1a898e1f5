//! The log: lines on stderr, which the journal keeps.

use std::io::IsTerminal;

use tracing::Level;
use tracing_subscriber::EnvFilter;

/// Starts the log: warnings and rare changes of state, or with `verbose` what we need to find a fault. The environment
/// variable `MT_AGENT_LOG` overrides it with a filter of its own.
pub fn start(verbose: bool) {
    let level = if verbose { Level::DEBUG } else { Level::INFO };
    let filter =
        EnvFilter::try_from_env("MT_AGENT_LOG").unwrap_or_else(|_| EnvFilter::new(level.to_string()));
    let terminal = std::io::stderr().is_terminal();
    // The journal has a clock of its own.
    let journal = std::env::var_os("JOURNAL_STREAM").is_some();
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(terminal && std::env::var_os("NO_COLOR").is_none())
        .with_target(verbose);
    // An error means that a log was started before, which is as good.
    let _ = if journal {
        log.without_time().try_init()
    } else {
        log.try_init()
    };
}
