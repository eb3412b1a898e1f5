//! What a send or a verification came to, and how it is told while it runs.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use mt_wire::{Mode, Range};
use serde::Serialize;

/// Version of the JSON documents below.
const SCHEMA: u32 = 1;

/// Lines on something that is no terminal come this often.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// Ranges of a verification that are listed for people; JSON lists all.
const RANGES_SHOWN: usize = 20;

/// Numbers of a run, in bytes.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Numbers {
    /// Size of the protected disk.
    pub size: u64,
    /// Where this run began: what lies before was durable already.
    pub start: u64,
    /// Where this run is now: everything before is dealt with, give or take the regions that are under way.
    pub position: u64,
    /// Compared in this run, what was compared again after a lost connection included.
    pub compared: u64,
    /// Content sent because it differed.
    pub bytes_sent: u64,
    /// Made zero because the protected disk is zero there.
    pub bytes_zeroed: u64,
    /// On the wire in both directions, everything included.
    pub bytes_on_wire: u64,
    /// Durable on the target.
    pub durable: u64,
}

/// How a run ended.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Name of the pair.
    pub pair: String,
    /// Address of the target.
    pub target: String,
    /// SCSI ID of the target disk.
    pub scsi_id: String,
    /// Numbers of the run.
    #[serde(flatten)]
    pub numbers: Numbers,
    /// Wall time in seconds.
    pub seconds: f64,
    /// Connections that were needed.
    pub connections: u32,
    /// What a verification found to differ; empty for a send.
    pub differences: Vec<Difference>,
    /// Bytes that differ, whether listed or not.
    pub bytes_different: u64,
    /// The epoch that was sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epoch: Option<u64>,
    /// The recovery point that it ends in; none where the target keeps none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub point: Option<u64>,
}

/// An extent that differs.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Difference {
    /// Offset in bytes.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
}

impl From<Range> for Difference {
    fn from(range: Range) -> Self {
        Self {
            offset: range.offset,
            len: range.len,
        }
    }
}

/// Who reads what is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Audience {
    /// A person, at a terminal or in a log.
    Person,
    /// A program: one JSON object a line on stdout.
    Program,
}

/// Tells how a run goes.
pub struct Teller {
    audience: Audience,
    mode: Mode,
    bar: Option<ProgressBar>,
    started: Instant,
    last_line: Instant,
}

impl Teller {
    /// A teller for a run over `size` bytes.
    pub fn new(audience: Audience, mode: Mode, size: u64) -> Self {
        let terminal = audience == Audience::Person && std::io::stderr().is_terminal();
        let bar = terminal.then(|| {
            let style = ProgressStyle::with_template(
                "{msg:9} {wide_bar} {bytes:>10} of {total_bytes}  {binary_bytes_per_sec:>12}  {eta:>4} left",
            )
            .unwrap_or_else(|_| ProgressStyle::default_bar());
            let bar =
                ProgressBar::with_draw_target(Some(size), ProgressDrawTarget::stderr()).with_style(style);
            bar.set_message(verb(mode));
            bar
        });
        let started = Instant::now();
        Self {
            audience,
            mode,
            bar,
            started,
            last_line: started,
        }
    }

    /// Tells how far the run is. May be called as often as one likes.
    pub fn progress(&mut self, numbers: &Numbers) {
        let position = numbers.position;
        if let Some(bar) = &self.bar {
            bar.set_length(numbers.size);
            bar.set_position(position);
            return;
        }
        let now = Instant::now();
        let interval = if self.audience == Audience::Program {
            Duration::from_secs(1)
        } else {
            LINE_INTERVAL
        };
        if now - self.last_line < interval {
            return;
        }
        self.last_line = now;
        let seconds = self.started.elapsed().as_secs_f64().max(0.001);
        let rate = numbers.compared as f64 / seconds;
        let left = numbers.size.saturating_sub(position);
        let seconds_left = (rate > 0.0).then(|| left as f64 / rate);
        match self.audience {
            Audience::Program => print_json(&ProgressLine {
                schema: SCHEMA,
                event: "progress",
                numbers,
                rate,
                seconds_left,
            }),
            Audience::Person => {
                let eta = seconds_left.map_or_else(String::new, |seconds| format!(", {seconds:.0} s left"));
                print_line(&format!(
                    "{} {} of {} at {}/s{eta}; {} sent, {} durable",
                    verb(self.mode),
                    size_text(position),
                    size_text(numbers.size),
                    size_text(to_u64(rate)),
                    size_text(numbers.bytes_sent),
                    size_text(numbers.durable),
                ));
            }
        }
    }

    /// Tells that something happened that a person wants to know.
    pub fn notice(&self, text: &str) {
        match (&self.bar, self.audience) {
            (Some(bar), _) => bar.println(text),
            (None, Audience::Program) => print_json(&NoticeLine {
                schema: SCHEMA,
                event: "notice",
                text,
            }),
            (None, Audience::Person) => print_line(text),
        }
    }

    /// Takes the progress bar away, before an error is printed.
    pub fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    /// Tells how the run ended. That the reader has gone away is no error.
    ///
    /// # Errors
    /// When standard output cannot be written for another reason.
    pub fn finish(&self, report: &Report) -> io::Result<()> {
        self.clear();
        let text = match self.audience {
            Audience::Program => json_line(&ResultLine {
                schema: SCHEMA,
                event: "result",
                mode: verb(self.mode),
                report,
            }),
            Audience::Person => for_person(self.mode, report),
        };
        let mut out = io::stdout().lock();
        match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
            _ => Ok(()),
        }
    }
}

#[derive(Serialize)]
struct ProgressLine<'a> {
    schema: u32,
    event: &'static str,
    #[serde(flatten)]
    numbers: &'a Numbers,
    rate: f64,
    seconds_left: Option<f64>,
}

#[derive(Serialize)]
struct NoticeLine<'a> {
    schema: u32,
    event: &'static str,
    text: &'a str,
}

#[derive(Serialize)]
struct ResultLine<'a> {
    schema: u32,
    event: &'static str,
    mode: &'static str,
    #[serde(flatten)]
    report: &'a Report,
}

/// What a person reads at the end, one line or several.
fn for_person(mode: Mode, report: &Report) -> String {
    let numbers = &report.numbers;
    let what = format!("{} and target disk {}", report.pair, report.scsi_id);
    let wire = format!(
        "{} on the wire, {:.1} s",
        size_text(numbers.bytes_on_wire),
        report.seconds
    );
    if let Some(epoch) = report.epoch {
        let point = match report.point {
            Some(point) => format!("it is recovery point {point}"),
            None => "the target keeps no recovery points".to_owned(),
        };
        return format!(
            "epoch {epoch} of {} is durable, {point}: {} compared, {} sent, {} zeroed, {wire}\n",
            report.pair,
            size_text(numbers.compared),
            size_text(numbers.bytes_sent),
            size_text(numbers.bytes_zeroed),
        );
    }
    if mode == Mode::Seed {
        return format!(
            "{what} are equal and durable: {} compared, {} sent, {} zeroed, {wire}\n",
            size_text(numbers.compared),
            size_text(numbers.bytes_sent),
            size_text(numbers.bytes_zeroed),
        );
    }
    if report.bytes_different == 0 {
        return format!(
            "{what} are equal: {} compared, {wire}\n",
            size_text(numbers.compared)
        );
    }
    let mut lines = vec![format!(
        "{what} differ in {} of {}:",
        size_text(report.bytes_different),
        size_text(numbers.size)
    )];
    let listed = report.differences.iter().take(RANGES_SHOWN);
    lines.extend(
        listed.map(|difference| format!("  offset {:#014x}  {} bytes", difference.offset, difference.len)),
    );
    let more = report.differences.len().saturating_sub(RANGES_SHOWN);
    if more > 0 {
        lines.push(format!("  and {more} more; --json lists them"));
    }
    lines.join("\n") + "\n"
}

fn json_line(value: &impl Serialize) -> String {
    let line = serde_json::to_string(value)
        .unwrap_or_else(|error| format!("{{\"event\":\"error\",\"text\":\"{error}\"}}"));
    line + "\n"
}

/// Prints what only matters while the run goes on. Whoever does not read it does not stop the run.
fn print_json(value: &impl Serialize) {
    let _ = io::stdout().write_all(json_line(value).as_bytes());
}

/// As [`print_json`], for people.
fn print_line(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

fn verb(mode: Mode) -> &'static str {
    match mode {
        Mode::Seed => "seeding",
        Mode::Verify => "verifying",
        Mode::Epoch => "sending an epoch",
    }
}

/// A number of bytes as people write it: three digits and a binary unit.
pub fn size_text(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    match unit {
        0 => format!("{bytes} B"),
        _ if value < 10.0 => format!("{value:.2} {}", UNITS[unit]),
        _ if value < 100.0 => format!("{value:.1} {}", UNITS[unit]),
        _ => format!("{value:.0} {}", UNITS[unit]),
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a rate for people; `as` saturates"
)]
fn to_u64(rate: f64) -> u64 {
    rate as u64
}

#[cfg(test)]
mod tests {
    use super::size_text;

    #[test]
    fn sizes_have_three_digits() {
        let rows = [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.00 KiB"),
            (10 << 20, "10.0 MiB"),
            (2 << 30, "2.00 GiB"),
            (150 << 40, "150 TiB"),
        ];
        for (bytes, text) in rows {
            assert_eq!(size_text(bytes), text);
        }
    }
}
