//! Entry point of `mt-agent`: parse, log, run, and map the outcome to an exit code.

use std::process::ExitCode;

use clap::Parser;
use mt_agent::cli::{Cli, run};
use mt_agent::logging;

fn main() -> ExitCode {
    let cli = Cli::parse();
    logging::start(cli.verbose);
    let json = cli.wants_json();
    match run(cli) {
        Ok(code) => code.into(),
        Err(error) => {
            if json {
                println!("{}", error.to_json());
            }
            eprintln!("{error}");
            error.exit_code.into()
        }
    }
}
