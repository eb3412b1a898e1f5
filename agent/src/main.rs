//! Entry point of `mt-agent`: parse, log, run, and map the outcome to an exit code.

use std::io::Write;
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind, set_hook, take_hook};

use clap::Parser;
use mt_agent::cli::{Cli, output, run};
use mt_agent::error::{CliError, ExitCode};
use mt_agent::logging;

fn main() -> std::process::ExitCode {
    report_faults();
    // Without this a fault would end with Rust's own exit code, which is none of ours.
    let code = catch_unwind(AssertUnwindSafe(work)).unwrap_or(ExitCode::Unexpected);
    code.into()
}

fn work() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return wrong(&error),
    };
    logging::start(cli.verbose);
    let json = cli.wants_json();
    match run(cli) {
        Ok(code) => code,
        Err(error) => {
            if json {
                // That nobody reads it changes nothing: the exit code says it too.
                let _ = output::print(&format!("{}\n", error.to_json()));
            }
            let _ = writeln!(std::io::stderr(), "{error}");
            error.exit_code
        }
    }
}

/// A command line that is wrong, or asks for help or the version. For a program the error is a document too.
fn wrong(error: &clap::Error) -> ExitCode {
    // That nobody reads it changes nothing: the exit code says it too.
    let _ = error.print();
    if !error.use_stderr() {
        return ExitCode::Done;
    }
    if std::env::args_os().any(|argument| argument == "--json") {
        let text = error.render().to_string();
        let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        let message = lines
            .next()
            .unwrap_or_default()
            .trim_start_matches("error: ")
            .to_owned();
        let tip = lines.find_map(|line| line.strip_prefix("tip: "));
        let hint = tip.map_or_else(|| "see --help".to_owned(), str::to_owned);
        let error = CliError::new(ExitCode::Usage, message).with_hint(hint);
        let _ = output::print(&format!("{}\n", error.to_json()));
    }
    ExitCode::Usage
}

/// Says before anything else that a panic is a fault of the program, and not of whoever used it.
fn report_faults() {
    let usual = take_hook();
    set_hook(Box::new(move |panic: &PanicHookInfo<'_>| {
        let _ = writeln!(
            std::io::stderr(),
            "error: mt-agent {} has met a fault of its own\nhint: report it with the lines below",
            env!("CARGO_PKG_VERSION")
        );
        usual(panic);
    }));
}
