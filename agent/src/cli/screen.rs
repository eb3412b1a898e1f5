//! The status screen: a document in, text out. Pure.
//!
//! What is wrong comes first, then what is happening, then what there is. Whatever came from elsewhere (names,
//! messages of peers) passes [`clean`] before it reaches a terminal.

use super::jobs::{kind_word, state_word};
use super::output::{percent, seconds_between, span_text, time_text};
use crate::model::{Job, JobState};
use crate::source::report::size_text;
use crate::status::metrics::phase_word;
use crate::status::model::{AlarmDoc, PairDoc, PairPhase, SessionDoc, SeverityDoc, StatusDoc};

/// Narrower than this nothing is made; the terminal wraps then.
const WIDTH_MIN: usize = 60;
/// Wider than this lines get hard to follow.
const WIDTH_MAX: usize = 120;

/// Stands for a space that is no place to break a line, until the line is made.
const GLUE: &str = "\u{a0}";

/// How the screen should look.
#[derive(Debug, Clone, Copy)]
pub struct Look {
    /// Columns.
    pub width: usize,
    /// Whether colours are wanted.
    pub colour: bool,
}

#[derive(Debug, Clone, Copy)]
enum Paint {
    Bold,
    Dim,
    Good,
    Busy,
    Warn,
    Bad,
}

impl Look {
    fn paint(self, paint: Paint, text: &str) -> String {
        if !self.colour {
            return text.to_owned();
        }
        let code = match paint {
            Paint::Bold => "1",
            Paint::Dim => "2",
            Paint::Good => "32",
            Paint::Busy => "36",
            Paint::Warn => "33",
            Paint::Bad => "1;31",
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }
}

/// The whole screen.
pub fn render(status: &StatusDoc, look: Look) -> String {
    let look = Look {
        width: look.width.clamp(WIDTH_MIN, WIDTH_MAX),
        ..look
    };
    let mut lines = Vec::new();
    header(&mut lines, status, look);
    alarms(&mut lines, status, look);
    pairs(&mut lines, status, look);
    jobs(&mut lines, status, look);
    disks(&mut lines, status, look);
    let mut text = lines.join("\n");
    text.push('\n');
    text
}

/// The first lines of a text that has more than fit, and how many are missing.
pub fn clip(text: &str, height: usize) -> Vec<String> {
    let lines: Vec<&str> = text.lines().collect();
    if lines.len() <= height || height < 2 {
        return lines.into_iter().take(height).map(str::to_owned).collect();
    }
    let shown = height - 1;
    let more = format!("... {} more lines; make the terminal taller", lines.len() - shown);
    lines
        .into_iter()
        .take(shown)
        .map(str::to_owned)
        .chain([more])
        .collect()
}

/// A text without what could move the cursor or change the terminal.
pub fn clean(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '?' } else { c })
        .collect()
}

fn header(lines: &mut Vec<String>, status: &StatusDoc, look: Look) {
    let agent = &status.agent;
    let up = span_text(seconds_between(agent.started, status.time));
    let left = format!("Master target {}", clean(&agent.host));
    let right = format!(
        "mt-agent {}, up {up}   {}",
        clean(&agent.version),
        time_text(status.time)
    );
    let taken = left.chars().count() + right.chars().count();
    let (left, right) = (look.paint(Paint::Bold, &left), look.paint(Paint::Dim, &right));
    match look.width.checked_sub(taken).filter(|gap| *gap >= 2) {
        Some(gap) => lines.push(format!("{left}{}{right}", " ".repeat(gap))),
        None => lines.extend([left, right]),
    }
    if status.lab {
        let count = counted(
            status.lab_disks.len(),
            "file or loop device stands",
            "files or loop devices stand",
        );
        let plain = match status.plain {
            true => " The data port speaks WITHOUT TLS and takes whoever connects.",
            false => "",
        };
        let text = format!("LAB RUN: {count} in for SCSI disks.{plain} Not for machines that matter.");
        lines.extend(
            wrap(&text, look.width, 0)
                .iter()
                .map(|line| look.paint(Paint::Warn, line)),
        );
    }
}

fn alarms(lines: &mut Vec<String>, status: &StatusDoc, look: Look) {
    lines.push(String::new());
    if status.alarms.is_empty() {
        lines.push(look.paint(Paint::Good, "No alarms."));
        return;
    }
    lines.push(look.paint(Paint::Bold, &format!("ALARMS  {}", status.alarms.len())));
    for alarm in &status.alarms {
        one_alarm(lines, alarm, status, look);
    }
}

fn one_alarm(lines: &mut Vec<String>, alarm: &AlarmDoc, status: &StatusDoc, look: Look) {
    let (word, paint) = match alarm.severity {
        SeverityDoc::Critical => ("CRITICAL", Paint::Bad),
        SeverityDoc::Warning => ("warning ", Paint::Warn),
        SeverityDoc::Notice => ("notice  ", Paint::Dim),
    };
    let since = span_text(seconds_between(alarm.since, status.time));
    let text = format!("{}: {} (for {since})", clean(&alarm.subject), clean(&alarm.text));
    let mut wrapped = wrap(&text, look.width, 12).into_iter();
    let first = wrapped.next().unwrap_or_default();
    lines.push(format!("  {}  {}", look.paint(paint, word), first.trim_start()));
    lines.extend(wrapped);
    if !alarm.hint.is_empty() {
        let hint = wrap(&format!("hint: {}", clean(&alarm.hint)), look.width, 12);
        lines.extend(hint.iter().map(|line| look.paint(Paint::Dim, line)));
    }
}

fn pairs(lines: &mut Vec<String>, status: &StatusDoc, look: Look) {
    lines.push(String::new());
    if status.pairs.is_empty() {
        lines.push(look.paint(Paint::Bold, "PAIRS  none"));
        lines.push("  \"mt-agent disks list\" shows the disks, \"mt-agent pair add\" pairs one".to_owned());
        return;
    }
    let mut head = format!("PAIRS  {}", status.pairs.len());
    for phase in [
        PairPhase::ResyncNeeded,
        PairPhase::Interrupted,
        PairPhase::Seeding,
        PairPhase::Verifying,
        PairPhase::Waiting,
        PairPhase::Seeded,
    ] {
        let count = status.pairs.iter().filter(|pair| pair.phase == phase).count();
        if count > 0 {
            head.push_str(&format!("   {count} {}", phase_word(phase)));
        }
    }
    let head = if head.len() > look.width {
        wrap(&head, look.width, 0)
    } else {
        vec![head]
    };
    lines.extend(head.iter().map(|line| look.paint(Paint::Bold, line)));
    let width = status
        .pairs
        .iter()
        .map(|pair| pair.pair.chars().count())
        .max()
        .unwrap_or(0)
        .min(32);
    for pair in &status.pairs {
        one_pair(lines, pair, width, look);
    }
}

fn one_pair(lines: &mut Vec<String>, pair: &PairDoc, width: usize, look: Look) {
    let paint = match pair.phase {
        PairPhase::Seeded => Paint::Good,
        PairPhase::Seeding | PairPhase::Verifying => Paint::Busy,
        PairPhase::Waiting => Paint::Dim,
        PairPhase::Interrupted => Paint::Warn,
        PairPhase::ResyncNeeded => Paint::Bad,
    };
    let name = format!("{:<width$}", clean(&pair.pair));
    let phase = look.paint(paint, &format!("{:<13}", phase_word(pair.phase)));
    let begin = 2 + name.chars().count() + 2 + 13 + 1;
    let disk = format!(
        "{} ({}), {}",
        pair.scsi_id,
        clean(pair.kernel_name.as_deref().unwrap_or("not attached")),
        glued(&size_text(pair.protected_size.unwrap_or(pair.size)))
    );
    let disk_lines = || {
        let lines = wrap(&disk, look.width, 6).into_iter();
        lines.map(|line| look.paint(Paint::Dim, &line))
    };
    match &pair.session {
        Some(session) => {
            let room = look.width.saturating_sub(begin);
            lines.push(format!(
                "  {name}  {phase} {}",
                progress(pair.phase, session, room)
            ));
            lines.extend(disk_lines());
            let marks = match pair.phase {
                PairPhase::Verifying => String::new(),
                _ => format!(
                    "applied {}, durable {}, lag {}, ",
                    glued(&size_text(session.applied)),
                    glued(&size_text(session.durable)),
                    glued(&size_text(session.lag))
                ),
            };
            let marks = format!("{marks}from {}", clean(&session.peer));
            lines.extend(
                wrap(&marks, look.width, 6)
                    .iter()
                    .map(|line| look.paint(Paint::Dim, line)),
            );
        }
        None if begin + disk.chars().count() <= look.width => {
            lines.push(format!(
                "  {name}  {phase} {}",
                look.paint(Paint::Dim, &disk.replace(GLUE, " "))
            ));
        }
        None => {
            lines.push(format!("  {name}  {}", phase.trim_end()));
            lines.extend(disk_lines());
        }
    }
    if let (PairPhase::Interrupted, Some(seeding)) = (pair.phase, &pair.seeding) {
        let text = format!(
            "durable up to {} of {} ({} %); the source goes on from there",
            glued(&size_text(seeding.durable)),
            glued(&size_text(seeding.size)),
            percent(seeding.durable, seeding.size)
        );
        lines.extend(wrap(&text, look.width, 6));
    }
    if let Some(problem) = &pair.disk_problem {
        let text = wrap(&format!("- {}", clean(&problem.error)), look.width, 6);
        lines.extend(text.iter().map(|line| look.paint(Paint::Bad, line)));
        if let Some(hint) = &problem.hint {
            let text = wrap(&format!("hint: {}", clean(hint)), look.width, 8);
            lines.extend(text.iter().map(|line| look.paint(Paint::Dim, line)));
        }
    }
}

/// A bar with its numbers: `=` is durable, `-` is applied and not durable yet.
fn progress(phase: PairPhase, session: &SessionDoc, room: usize) -> String {
    let left = match session.seconds_left {
        Some(seconds) => format!("{} left", span_text(seconds)),
        None => String::new(),
    };
    let numbers = format!(
        "{:>3} %  {:>8}/s  {left}",
        percent(session.applied, session.total),
        size_text(session.rate)
    );
    // The longest numbers fit into 34 columns; what is left is the bar's.
    let cells = room.saturating_sub(36).min(40);
    if cells < 8 {
        let fits = numbers.chars().count() <= room;
        let numbers = if fits {
            numbers.as_str()
        } else {
            numbers.trim_end_matches(left.as_str())
        };
        return numbers.trim_end().to_owned();
    }
    let cells_of = |bytes: u64| {
        let cells = u128::from(bytes.min(session.total)) * cells as u128 / u128::from(session.total.max(1));
        usize::try_from(cells).unwrap_or(0)
    };
    let applied = cells_of(session.applied);
    let durable = if phase == PairPhase::Verifying {
        applied
    } else {
        cells_of(session.durable).min(applied)
    };
    let bar = [
        "=".repeat(durable),
        "-".repeat(applied - durable),
        " ".repeat(cells - applied),
    ]
    .concat();
    format!("[{bar}] {numbers}").trim_end().to_owned()
}

fn jobs(lines: &mut Vec<String>, status: &StatusDoc, look: Look) {
    if status.jobs_ended.is_empty() {
        return;
    }
    lines.push(String::new());
    lines.push(look.paint(Paint::Bold, "LAST JOBS"));
    for job in &status.jobs_ended {
        one_job(lines, job, status, look);
    }
}

fn one_job(lines: &mut Vec<String>, job: &Job, status: &StatusDoc, look: Look) {
    let paint = match job.state {
        JobState::Done => Paint::Good,
        JobState::Running => Paint::Busy,
        JobState::Failed => Paint::Bad,
        JobState::Interrupted | JobState::Differs => Paint::Warn,
    };
    let ended = job.ended.unwrap_or(job.started);
    let span = |from, to| glued(&span_text(seconds_between(from, to)));
    let text = format!(
        "{}, {} written, {} zeroed, took {}, {}{GLUE}ago",
        clean(&job.pair),
        glued(&size_text(job.bytes_written)),
        glued(&size_text(job.bytes_zeroed)),
        span(job.started, ended),
        span(ended, status.time)
    );
    let mut wrapped = wrap(&text, look.width, 29).into_iter();
    lines.push(format!(
        "  {:>4}  {:<8} {} {}",
        job.id.0,
        kind_word(job.kind),
        look.paint(paint, &format!("{:<11}", state_word(job.state))),
        wrapped.next().unwrap_or_default().trim_start()
    ));
    lines.extend(wrapped);
    if let Some(error) = &job.error {
        lines.extend(wrap(&clean(error), look.width, 8));
    }
}

fn disks(lines: &mut Vec<String>, status: &StatusDoc, look: Look) {
    lines.push(String::new());
    let disks = &status.disks;
    if !disks.known {
        lines.push(look.paint(Paint::Bold, "DISKS  not looked at yet"));
        return;
    }
    lines.push(format!(
        "{}   {} paired   {} free   {} not usable",
        look.paint(Paint::Bold, &format!("DISKS  {}", disks.count)),
        disks.paired,
        disks.free,
        disks.not_usable
    ));
    for warning in &disks.warnings {
        let text = wrap(&format!("warning: {}", clean(warning)), look.width, 2);
        lines.extend(text.iter().map(|line| look.paint(Paint::Warn, line)));
    }
}

/// A number with its unit, which [`wrap`] keeps on one line.
fn glued(text: &str) -> String {
    text.replace(' ', GLUE)
}

fn counted(count: usize, one: &str, several: &str) -> String {
    if count == 1 {
        format!("1 {one}")
    } else {
        format!("{count} {several}")
    }
}

/// Breaks a text between words, each line indented. A word longer than a line stays whole: it is an ID to be copied.
pub fn wrap(text: &str, width: usize, indent: usize) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = String::new();
    for word in text.split([' ', '\n']).filter(|word| !word.is_empty()) {
        if !line.is_empty() && indent + line.chars().count() + 1 + word.chars().count() > width {
            lines.push(format!("{}{line}", " ".repeat(indent)));
            line.clear();
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    if !line.is_empty() {
        lines.push(format!("{}{line}", " ".repeat(indent)));
    }
    lines.into_iter().map(|line| line.replace(GLUE, " ")).collect()
}

#[cfg(test)]
mod tests;
