// SPDX-License-Identifier: MIT OR Apache-2.0
//! `mt-installer start`: what the installation medium shows on each console.

use std::io::Write;
use std::path::Path;

use super::ask;
use crate::error::{Error, Kind, Result};
use crate::medium::Answers;
use crate::terminal::{Input, Key, Terminal, wait_for_enter};
use crate::unattended::{self, Outcome};
use crate::{medium, screen};

/// Nobody at the keys is no reason to end; this only bounds one wait.
const WAIT_MS: u16 = 60_000;

pub fn run() -> Result<()> {
    let mut facts = medium::gather(Path::new("/"));
    let version = env!("CARGO_PKG_VERSION");
    while facts.mode != "unattended" {
        if !first_screen(&screen::render(version, &facts))? {
            return Ok(());
        }
        let mut terminal = Terminal::open()?;
        let asked = ask::ask(&mut terminal);
        terminal.clear()?;
        drop(terminal);
        let answers = match asked {
            Ok(Some(answers)) => answers,
            Ok(None) => continue,
            Err(error) => {
                print(&unattended::failure(&error))?;
                return wait_to_restart();
            }
        };
        unattended::keep(&answers)?;
        facts.answers = Answers::Found {
            source: "the questions on this console".to_owned(),
            lines: crate::kickstart::render(&answers).lines().count(),
        };
        break;
    }
    match unattended::run(&mut facts, &|facts| screen::header(version, facts))? {
        Outcome::Installed(end) => unattended::end_machine(end),
        Outcome::Failed => wait_to_restart(),
    }
}

fn wait_to_restart() -> Result<()> {
    print("Press Enter to restart.\n")?;
    wait_for_enter()
}

/// Shows the first screen; `true` for the installation, `false` for a restart.
fn first_screen(text: &str) -> Result<bool> {
    print(text)?;
    let Ok(mut terminal) = Terminal::open() else {
        return wait_for_enter().map(|()| false);
    };
    loop {
        match terminal.input(WAIT_MS)? {
            Input::Key(Key::Char('i' | 'I')) => return Ok(true),
            Input::Key(Key::Enter) => return Ok(false),
            Input::Key(_) | Input::Nothing => {}
            // A console that went away is no reason to restart the machine: only Enter is.
            Input::Closed => {
                return Err(Error::new(
                    Kind::Unexpected,
                    "the console was closed before Enter was pressed",
                ));
            }
        }
    }
}

fn print(text: &str) -> Result<()> {
    let mut console = std::io::stdout().lock();
    console
        .write_all(text.as_bytes())
        .and_then(|()| console.flush())
        .map_err(|error| Error::new(Kind::Unexpected, format!("cannot write to the console: {error}")))
}
