//! Entry point of `mt-agent`: parse, log, run, and map the outcome to an exit code.

use std::io::Write;
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind, set_hook, take_hook};

use clap::Parser;
use mt_agent::cli::{Cli, output, run};
use mt_agent::error::ExitCode;
use mt_agent::logging;

fn main() -> std::process::ExitCode {
    report_faults();
    // Without this a fault would end with Rust's own exit code, which is none of ours.
    let code = catch_unwind(AssertUnwindSafe(work)).unwrap_or(ExitCode::Unexpected);
    code.into()
}

fn work() -> ExitCode {
    let cli = Cli::parse();
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
