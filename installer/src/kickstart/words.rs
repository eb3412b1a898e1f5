// SPDX-License-Identifier: MIT OR Apache-2.0
//! Splits a line into words as a shell does, without ever expanding anything.

use super::Checked;

/// Words of a line; `#` at the beginning of a word begins a comment.
pub fn split(line: &str) -> Checked<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut letters = line.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '#' if word.is_none() => break,
            ' ' | '\t' => words.extend(word.take()),
            '\'' => {
                let word = word.get_or_insert_default();
                loop {
                    match letters.next() {
                        Some('\'') => break,
                        Some(inner) => word.push(inner),
                        None => return Err("a quotation mark ' is not closed".to_owned()),
                    }
                }
            }
            '"' => {
                let word = word.get_or_insert_default();
                loop {
                    match letters.next() {
                        Some('"') => break,
                        Some('\\') => match letters.next() {
                            Some(inner @ ('"' | '\\')) => word.push(inner),
                            Some(inner) => word.extend(['\\', inner]),
                            None => return Err("a quotation mark \" is not closed".to_owned()),
                        },
                        Some(inner) => word.push(inner),
                        None => return Err("a quotation mark \" is not closed".to_owned()),
                    }
                }
            }
            '\\' => match letters.next() {
                Some(inner) => word.get_or_insert_default().push(inner),
                None => return Err("a line does not go on behind \\; put it all on one line".to_owned()),
            },
            letter if letter.is_control() => {
                return Err(format!("control character {:#04x}", u32::from(letter)));
            }
            letter => word.get_or_insert_default().push(letter),
        }
    }
    words.extend(word);
    Ok(words)
}

/// A word in the form that [`split`] reads as it is.
pub fn quote(word: &str) -> String {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "-_=.,:/@+%^~!*".contains(letter);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("\"{}\"", word.replace('\\', "\\\\").replace('"', "\\\""))
    }
}
