//! Turns an error of the TOML parser into a fault in our words: what was found, what was expected, the nearest known
//! key.

use super::Fault;

/// A known key is named as the nearest one when it is at least this similar (0 to 1). Below it a suggestion confuses.
const SIMILARITY_MIN: f64 = 0.6;

/// The line of an offset, from 1.
pub(super) fn line_of(text: &str, offset: usize) -> usize {
    let before = text.as_bytes().get(..offset).unwrap_or(text.as_bytes());
    1 + before.iter().filter(|byte| **byte == b'\n').count()
}

/// What a parser's error means.
pub(super) fn fault_of(text: &str, error: &toml::de::Error) -> Fault {
    let span = error.span().unwrap_or(0..0);
    let message = error.message();
    let (found, hint) = if let Some((key, known)) = unknown_key(message) {
        unknown(key, &known)
    } else if let Some(found) = message.strip_prefix("invalid type: ") {
        (format!("{} is {found}", key_before(text, span.start)), None)
    } else if let Some(key) = message.strip_prefix("missing field ") {
        let place = text
            .get(span.clone())
            .and_then(|table| table.lines().next())
            .unwrap_or_default();
        (
            format!("{} needs the key {}", place.trim(), key.replace('`', "\"")),
            None,
        )
    } else if message == "duplicate key" {
        let key = text.get(span.clone()).unwrap_or_default();
        (
            format!("{key:?} is given twice"),
            Some("keep one of them".to_owned()),
        )
    } else {
        (one_line(message), None)
    };
    // A file that ends too early is wrong where it ends, which is behind its last line.
    let offset = span.start.min(text.trim_end().len());
    Fault { offset, found, hint }
}

/// Most unknown keys that are told at once.
const UNKNOWN_MAX: usize = 50;

/// The unknown keys behind a first one, each with its line, what was found, and a hint: who misspelt one has often misspelt
/// several. A key is found by leaving those before it away; where that leaves something that is no TOML, no more are told.
pub(super) fn more_unknown(text: &str, first: &Fault) -> Vec<(usize, String, Option<String>)> {
    let mut left = text.to_owned();
    let mut more = Vec::new();
    let mut offset = first.offset;
    if !first.found.starts_with("unknown key ") {
        return more;
    }
    while more.len() < UNKNOWN_MAX {
        leave_away(&mut left, offset);
        let Err(error) = toml::from_str::<super::RawConfig>(&left) else {
            break;
        };
        if unknown_key(error.message()).is_none() {
            break;
        }
        let fault = fault_of(&left, &error);
        if fault.offset == offset {
            break;
        }
        offset = fault.offset;
        more.push((line_of(text, offset), fault.found, fault.hint));
    }
    more
}

/// Blanks the line at an offset, and of a table all lines up to the next one. Lines and offsets stay where they are.
fn leave_away(text: &mut String, offset: usize) {
    let begin = text
        .get(..offset)
        .and_then(|before| before.rfind('\n'))
        .map_or(0, |at| at + 1);
    let rest = text.get(begin..).unwrap_or_default();
    let is_table = rest.trim_start().starts_with('[');
    let mut end = begin;
    for (number, line) in rest.split_inclusive('\n').enumerate() {
        if number > 0 && (!is_table || line.trim_start().starts_with('[')) {
            break;
        }
        end += line.len();
    }
    let blank: String = text
        .get(begin..end)
        .unwrap_or_default()
        .bytes()
        .map(|byte| if byte == b'\n' { '\n' } else { ' ' })
        .collect();
    text.replace_range(begin..end, &blank);
}

fn unknown(key: &str, known: &[&str]) -> (String, Option<String>) {
    let nearest = known
        .iter()
        .map(|candidate| {
            (
                strsim::jaro_winkler(&key.to_ascii_lowercase(), candidate),
                *candidate,
            )
        })
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .filter(|(similarity, _)| *similarity >= SIMILARITY_MIN);
    let hint = match nearest {
        Some((_, nearest)) => format!("did you mean \"{nearest}\"? Known here: {}", known.join(", ")),
        None => format!("known here: {}", known.join(", ")),
    };
    (format!("unknown key {key:?}"), Some(hint))
}

/// The key and the keys that are known in its place, when the message is serde's "unknown field `a`, expected ...".
fn unknown_key(message: &str) -> Option<(&str, Vec<&str>)> {
    let rest = message.strip_prefix("unknown field `")?;
    let (key, rest) = rest.split_once("`, expected ")?;
    Some((key, rest.split('`').skip(1).step_by(2).collect()))
}

/// The key whose value begins at `offset`: what stands before it on its line.
fn key_before(text: &str, offset: usize) -> &str {
    let before = text.get(..offset).unwrap_or(text);
    let line = before.rsplit('\n').next().unwrap_or(before);
    line.split('=').next().map_or("value", str::trim)
}

/// Messages are one line; the parser separates what it expected by line breaks.
fn one_line(message: &str) -> String {
    message
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect::<Vec<_>>()
        .join("; ")
}
