//! `mt-agent status`: one screen, once or redrawn every second.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use terminal_size::{Height, Width, terminal_size};

use super::output::{ServiceArgs, print, print_json};
use super::screen::{Look, clip, render};
use super::source::stop_on_signal;
use crate::error::{CliError, ExitCode};
use crate::status::client::{Client, ClientError};
use crate::status::model::StatusDoc;

/// The screen is redrawn this often.
const REDRAW: Duration = Duration::from_secs(1);
/// Into something that is no terminal it is written this often.
const REPEAT: Duration = Duration::from_secs(5);
/// Width where there is no terminal to ask.
const WIDTH_DEFAULT: usize = 100;

/// Arguments of `status`.
#[derive(Debug, Clone, Args)]
pub struct StatusArgs {
    /// Redraw every second, until interrupted
    #[arg(long, conflicts_with = "json")]
    pub watch: bool,
    /// Answer in JSON
    #[arg(long)]
    pub json: bool,
    /// Local socket of the agent [default: $MT_AGENT_SOCKET, else
    /// /run/master-target/agent.sock]
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
}

/// Shows status.
///
/// # Errors
/// When the agent cannot be reached. While watching only at first: an agent that is restarted comes back.
pub async fn run(args: &StatusArgs) -> Result<ExitCode, CliError> {
    let client = ServiceArgs {
        socket: args.socket.clone(),
        json: args.json,
    }
    .client();
    if args.watch {
        return watch(&client).await;
    }
    let answer = client.get("/v1/status").await?;
    if args.json {
        print_json(&answer)?;
    } else {
        let document: StatusDoc = client.decode(answer)?;
        print(&render(&document, look()))?;
    }
    Ok(ExitCode::Done)
}

fn look() -> Look {
    let terminal = std::io::stdout().is_terminal();
    let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let dumb = std::env::var_os("TERM").is_none_or(|value| value == "dumb");
    let width = terminal_size().map_or(WIDTH_DEFAULT, |(Width(width), _)| usize::from(width));
    Look {
        width: if terminal { width } else { WIDTH_DEFAULT },
        colour: terminal && !unwanted && !dumb,
    }
}

async fn fetch(client: &Client) -> Result<StatusDoc, ClientError> {
    client.decode(client.get("/v1/status").await?)
}

async fn watch(client: &Client) -> Result<ExitCode, CliError> {
    let mut stop = stop_on_signal()?;
    let mut document = fetch(client).await?;
    let mut trouble = None;
    let terminal = std::io::stdout().is_terminal();
    let screen = terminal.then(Screen::enter);
    let mut ticks = tokio::time::interval(if terminal { REDRAW } else { REPEAT });
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    ticks.tick().await;
    loop {
        let mut text = render(&document, look());
        if let Some(error) = &trouble {
            text = format!("{error}; trying again. What follows is the last that was heard.\n\n{text}");
        }
        let gone = match &screen {
            Some(screen) => screen.draw(&text),
            None => writeln!(std::io::stdout(), "{text}"),
        };
        if gone.is_err() {
            return Ok(ExitCode::Done);
        }
        tokio::select! {
            _ = ticks.tick() => {}
            _ = stop.wait_for(|stop| *stop) => return Ok(ExitCode::Done),
        }
        match fetch(client).await {
            Ok(newer) => (document, trouble) = (newer, None),
            Err(error) => trouble = Some(error),
        }
    }
}

/// The alternate screen of the terminal, left again however the command ends.
struct Screen;

impl Screen {
    fn enter() -> Self {
        let _ = write!(std::io::stdout(), "\x1b[?1049h\x1b[?25l");
        Self
    }

    /// Draws over what is there line by line: clearing first would flicker.
    fn draw(&self, text: &str) -> std::io::Result<()> {
        let height = terminal_size().map_or(24, |(_, Height(height))| usize::from(height));
        let mut frame = String::from("\x1b[H");
        for line in clip(text, height.saturating_sub(1)) {
            frame.push_str(&line);
            frame.push_str("\x1b[K\r\n");
        }
        frame.push_str("\x1b[J");
        let mut out = std::io::stdout().lock();
        out.write_all(frame.as_bytes())?;
        out.flush()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let _ = write!(std::io::stdout(), "\x1b[?25h\x1b[?1049l");
    }
}
