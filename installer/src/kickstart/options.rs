// SPDX-License-Identifier: MIT OR Apache-2.0
//! Options of a command: `--flag`, `--name=value`, `--name value`, and what stands alone.

use std::collections::BTreeMap;
use std::str::FromStr;

use super::Checked;

/// Options of one line.
#[derive(Debug, Default)]
pub struct Options {
    flags: Vec<String>,
    values: BTreeMap<String, String>,
    /// Words that belong to no option.
    pub alone: Vec<String>,
}

/// Reads options; those that are in none of the lists are refused.
pub fn read(words: &[String], flags: &[&str], values: &[&str]) -> Checked<Options> {
    let mut options = Options::default();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let Some(rest) = word.strip_prefix("--") else {
            options.alone.push(word.clone());
            continue;
        };
        let (name, value) = match rest.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (rest, None),
        };
        if flags.contains(&name) {
            if value.is_some() {
                return Err(format!("--{name} takes no value"));
            }
            options.flags.push(name.to_owned());
        } else if values.contains(&name) {
            let value = match value {
                Some(value) => value,
                None => words
                    .next()
                    .filter(|next| !next.starts_with("--"))
                    .cloned()
                    .ok_or_else(|| format!("--{name} needs a value"))?,
            };
            if value.is_empty() {
                return Err(format!("--{name} has no value"));
            }
            if options.values.insert(name.to_owned(), value).is_some() {
                return Err(format!("--{name} is given twice"));
            }
        } else {
            let known = flags.iter().chain(values);
            let near = known
                .map(|known| (strsim::damerau_levenshtein(known, name), known))
                .min()
                .filter(|(distance, _)| *distance <= 3);
            return Err(match near {
                Some((_, known)) => format!("--{name} is not supported; did you mean --{known}?"),
                None => format!("--{name} is not supported"),
            });
        }
    }
    Ok(options)
}

impl Options {
    /// Whether a flag is there.
    pub fn has(&self, flag: &str) -> bool {
        self.flags.iter().any(|given| given == flag)
    }

    /// Value of an option.
    pub fn value(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(String::as_str)
    }

    /// Value of an option that is a list with commas.
    pub fn list(&self, name: &str) -> Vec<String> {
        let list = self.value(name).unwrap_or_default().split(',');
        list.map(str::trim)
            .filter(|item| !item.is_empty())
            .map(str::to_owned)
            .collect()
    }

    /// Value of an option that is a number or the like.
    pub fn parsed<T: FromStr>(&self, name: &str, what: &str) -> Checked<Option<T>> {
        self.value(name)
            .map(|text| {
                text.parse()
                    .map_err(|_| format!("--{name}={text}: expected {what}"))
            })
            .transpose()
    }

    /// Refuses words that belong to no option.
    pub fn nothing_alone(&self) -> Checked<()> {
        match self.alone.first() {
            None => Ok(()),
            Some(word) => Err(format!("\"{word}\" is not expected here")),
        }
    }

    /// The one word that belongs to no option.
    pub fn one_alone(&self, what: &str) -> Checked<&str> {
        match self.alone.as_slice() {
            [word] => Ok(word),
            [] => Err(format!("{what} is missing")),
            [_, second, ..] => Err(format!("\"{second}\" is not expected here")),
        }
    }
}
