// SPDX-License-Identifier: MIT OR Apache-2.0
//! Finds the line of a key in the text of a spec, so that a judgement points to it as the parser does.

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// The text with the places of all its keys.
pub struct Lines<'a> {
    text: &'a str,
    table: Option<Spanned<DeTable<'a>>>,
}

impl<'a> Lines<'a> {
    /// Takes the text of a spec.
    pub fn of(text: &'a str) -> Self {
        Self {
            text,
            table: DeTable::parse(text).ok(),
        }
    }

    /// Line of a place such as `sizes.disk_gib` or `properties.3.key`: of the key, or of the entry of a list. Where it is
    /// not in the text, the line of what it would be in.
    pub fn line(&self, place: &str) -> Option<usize> {
        let mut table = Some(self.table.as_ref()?.get_ref());
        let mut list = None;
        let mut found = None;
        for step in place.split('.') {
            let next = match (table, list) {
                (Some(table), _) => table
                    .iter()
                    .find(|(key, _)| key.get_ref() == step)
                    .map(|(key, value)| (key.span().start, value)),
                (None, Some(list)) => {
                    let list: &[Spanned<DeValue<'_>>] = list;
                    let value = step.parse::<usize>().ok().and_then(|index| list.get(index));
                    value.map(|value| (value.span().start, value))
                }
                (None, None) => None,
            };
            let Some((offset, value)) = next else { break };
            found = Some(offset);
            (table, list) = match value.get_ref() {
                DeValue::Table(inner) => (Some(inner), None),
                DeValue::Array(inner) => (None, Some(&**inner)),
                _ => (None, None),
            };
        }
        found.map(|offset| line_at(self.text, offset))
    }
}

/// Line of an offset, from 1.
pub fn line_at(text: &str, offset: usize) -> usize {
    1 + text.as_bytes()[..offset.min(text.len())]
        .iter()
        .filter(|&&byte| byte == b'\n')
        .count()
}

/// The key of a place, without the numbers of list entries.
pub fn key_of(place: &str) -> String {
    let keys: Vec<&str> = place
        .split('.')
        .filter(|step| !step.bytes().all(|byte| byte.is_ascii_digit()))
        .collect();
    keys.join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str =
        "a = 1\n\n[b]\nc = [\n  1,\n  2,\n]\n\"d\" = 3\n\n[[e]]\nf = 1\n[[e]]\ng.h = 1\nf = 2\n";

    #[test]
    fn every_place_has_its_own_line() {
        let lines = Lines::of(TEXT);
        for (place, line) in [
            ("a", 1),
            ("b", 3),
            ("b.c", 4),
            ("b.c.0", 5),
            ("b.c.1", 6),
            ("b.d", 8),
            ("e.0.f", 11),
            ("e.1.f", 14),
            ("e.1.g.h", 13),
        ] {
            assert_eq!(lines.line(place), Some(line), "{place}");
        }
    }

    #[test]
    fn what_is_not_there_is_looked_for_in_what_would_hold_it() {
        let lines = Lines::of(TEXT);
        assert_eq!(lines.line("e.1.missing"), Some(12));
        assert_eq!(lines.line("b.missing"), Some(3));
        assert_eq!(lines.line("missing"), None);
        assert_eq!(Lines::of("= 1").line("a"), None);
    }

    #[test]
    fn keys_are_shown_without_numbers() {
        assert_eq!(key_of("properties.12.key"), "properties.key");
        assert_eq!(key_of("schema"), "schema");
    }
}
