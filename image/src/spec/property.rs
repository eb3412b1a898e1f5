// SPDX-License-Identifier: MIT OR Apache-2.0
//! Judges what the deploy wizard asks: an OVF property with a default that its own type or bounds forbid makes the wizard
//! refuse to go on, with nothing the operator could do about it there.
//!
//! Qualifiers are those of DSP0243 9.5.1 and VMware's bounds of numbers, separated by commas or spaces: `MinLen(1)`,
//! `MaxLen(63)`, `MinValue(0)`, `MaxValue(9)`, `ValueMap{"a", "b"}`.

use mt_installer::first_boot::settings::misspelt;

use super::is_xml_text;
use super::judge::Judge;
use super::raw::{Property, PropertyKind};

/// Judges all properties.
pub fn all(judge: &mut Judge, properties: &[Property]) {
    for (index, property) in properties.iter().enumerate() {
        one(judge, index, property);
        judge.ensure(
            !properties[..index].iter().any(|other| other.key == property.key),
            format!("properties.{index}.key"),
            || format!("{} is given twice", property.key),
        );
    }
}

fn one(judge: &mut Judge, index: usize, property: &Property) {
    let place = |key: &str| format!("properties.{index}.{key}");
    let clean = property.key.starts_with("guestinfo.")
        && property
            .key
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
    judge.ensure(clean, place("key"), || {
        format!("{:?} is no key that begins with \"guestinfo.\"", property.key)
    });
    // Without the prefix it was told above.
    if let Some(known) = misspelt(&property.key).filter(|_| clean) {
        let text = format!("{} is read by nothing: did you mean {known}?", property.key);
        judge.fault(place("key"), text);
    }
    for (key, text) in [
        ("label", &property.label),
        ("description", &property.description),
        ("value", &property.value),
        ("category", &property.category),
        ("qualifiers", &property.qualifiers),
    ] {
        judge.ensure(is_xml_text(text), place(key), || {
            format!("{}: holds a character that XML cannot carry", property.key)
        });
    }
    judge.ensure(
        !property.password || property.value.is_empty(),
        place("value"),
        || {
            format!(
                "{}: a password with a default would be a secret in the image",
                property.key
            )
        },
    );
    let mut fault = |key: &str, text: String| judge.fault(place(key), format!("{}: {text}", property.key));
    if let Err(text) = fits_kind(&property.value, property.kind) {
        return fault("value", text);
    }
    match read(&property.qualifiers) {
        Ok(qualifiers) => {
            if let Err(text) = fit_each_other(&qualifiers, property.kind) {
                fault("qualifiers", text);
            } else if let Some(broken) = qualifiers.iter().find(|one| !one.allows(&property.value)) {
                let value = &property.value;
                fault("value", format!("the default {value:?} is outside of {broken}"));
            }
        }
        Err(text) => fault("qualifiers", text),
    }
}

/// An empty default is none: the operator has to say, or nothing is said.
fn fits_kind(value: &str, kind: PropertyKind) -> Result<(), String> {
    let fits = match kind {
        PropertyKind::String => true,
        PropertyKind::Boolean => ["", "true", "false"]
            .iter()
            .any(|word| value.eq_ignore_ascii_case(word)),
        PropertyKind::Uint32 => {
            value.is_empty()
                || value.parse::<u32>().is_ok() && value.bytes().all(|byte| byte.is_ascii_digit())
        }
    };
    let allowed = match kind {
        PropertyKind::String => "any text",
        PropertyKind::Boolean => "\"true\" or \"false\"",
        PropertyKind::Uint32 => "a number from 0 to 4294967295",
    };
    if fits {
        Ok(())
    } else {
        Err(format!(
            "the default {value:?} is no {}, expected is {allowed}",
            kind.as_str()
        ))
    }
}

/// A qualifier.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Qualifier {
    MinLen(u64),
    MaxLen(u64),
    MinValue(u64),
    MaxValue(u64),
    ValueMap(Vec<String>),
}

impl std::fmt::Display for Qualifier {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::MinLen(bound) => write!(formatter, "MinLen({bound})"),
            Self::MaxLen(bound) => write!(formatter, "MaxLen({bound})"),
            Self::MinValue(bound) => write!(formatter, "MinValue({bound})"),
            Self::MaxValue(bound) => write!(formatter, "MaxValue({bound})"),
            Self::ValueMap(values) => write!(formatter, "ValueMap{{\"{}\"}}", values.join("\",\"")),
        }
    }
}

impl Qualifier {
    fn name(&self) -> &'static str {
        match self {
            Self::MinLen(_) => "MinLen",
            Self::MaxLen(_) => "MaxLen",
            Self::MinValue(_) => "MinValue",
            Self::MaxValue(_) => "MaxValue",
            Self::ValueMap(_) => "ValueMap",
        }
    }

    fn fits(&self, kind: PropertyKind) -> bool {
        match self {
            Self::MinLen(_) | Self::MaxLen(_) => kind == PropertyKind::String,
            Self::MinValue(_) | Self::MaxValue(_) => kind == PropertyKind::Uint32,
            Self::ValueMap(_) => kind != PropertyKind::Boolean,
        }
    }

    /// Whether a default is within the bound; an empty one is none.
    fn allows(&self, value: &str) -> bool {
        let length = value.chars().count() as u64;
        let number = value.parse::<u64>().unwrap_or(0);
        value.is_empty()
            || match self {
                Self::MinLen(bound) => length >= *bound,
                Self::MaxLen(bound) => length <= *bound,
                Self::MinValue(bound) => number >= *bound,
                Self::MaxValue(bound) => number <= *bound,
                Self::ValueMap(values) => values.iter().any(|known| known == value),
            }
    }
}

/// Reads the qualifiers of a property.
fn read(text: &str) -> Result<Vec<Qualifier>, String> {
    let separators: &[char] = &[',', ' ', '\t', '\n'];
    let mut rest = text.trim_matches(separators);
    let mut found = Vec::new();
    while !rest.is_empty() {
        let (one, behind) = read_one(rest)?;
        if !behind.is_empty() && !behind.starts_with(separators) {
            return Err(format!("{behind:?} follows on {one} without a comma"));
        }
        found.push(one);
        rest = behind.trim_start_matches(separators);
    }
    Ok(found)
}

fn read_one(text: &str) -> Result<(Qualifier, &str), String> {
    let wrong = || {
        format!(
            "{text:?} is no qualifier; known are MinLen(N), MaxLen(N), MinValue(N), MaxValue(N) and ValueMap{{\"a\",\"b\"}}"
        )
    };
    if let Some(rest) = text.strip_prefix("ValueMap{") {
        let (inner, behind) = rest.split_once('}').ok_or_else(wrong)?;
        let values = inner.split(',').map(|value| {
            let value = value.trim().strip_prefix('"')?.strip_suffix('"')?;
            (!value.contains('"')).then(|| value.to_owned())
        });
        let values: Option<Vec<String>> = values.collect();
        return Ok((Qualifier::ValueMap(values.ok_or_else(wrong)?), behind));
    }
    let (name, rest) = text.split_once('(').ok_or_else(wrong)?;
    let (inner, behind) = rest.split_once(')').ok_or_else(wrong)?;
    let bound: u64 = inner.trim().parse().map_err(|_| wrong())?;
    let one = match name {
        "MinLen" => Qualifier::MinLen(bound),
        "MaxLen" => Qualifier::MaxLen(bound),
        "MinValue" => Qualifier::MinValue(bound),
        "MaxValue" => Qualifier::MaxValue(bound),
        _ => return Err(wrong()),
    };
    Ok((one, behind))
}

fn fit_each_other(qualifiers: &[Qualifier], kind: PropertyKind) -> Result<(), String> {
    for (index, one) in qualifiers.iter().enumerate() {
        if !one.fits(kind) {
            return Err(format!("{} is not for a {}", one.name(), kind.as_str()));
        }
        if qualifiers[..index].iter().any(|other| other.name() == one.name()) {
            return Err(format!("{} is given twice", one.name()));
        }
    }
    let bounds = |low: &str, high: &str| {
        let bound = |name: &str| {
            let one = qualifiers.iter().find(|one| one.name() == name)?;
            match one {
                Qualifier::MinLen(bound)
                | Qualifier::MaxLen(bound)
                | Qualifier::MinValue(bound)
                | Qualifier::MaxValue(bound) => Some((one, *bound)),
                Qualifier::ValueMap(_) => None,
            }
        };
        match (bound(low), bound(high)) {
            (Some((low, least)), Some((high, most))) if least > most => {
                Err(format!("nothing is within {low} and {high}"))
            }
            _ => Ok(()),
        }
    };
    bounds("MinLen", "MaxLen")?;
    bounds("MinValue", "MaxValue")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Places and texts of the faults of a property.
    fn faults(kind: PropertyKind, value: &str, qualifiers: &str) -> Vec<(String, String)> {
        let property = Property {
            key: "guestinfo.x".into(),
            category: "x".into(),
            label: "x".into(),
            description: String::new(),
            kind,
            value: value.into(),
            password: false,
            qualifiers: qualifiers.into(),
        };
        let mut judge = Judge::default();
        all(&mut judge, &[property]);
        judge.into_faults()
    }

    #[test]
    fn defaults_are_of_the_type_and_within_the_bounds() {
        use PropertyKind::{Boolean, String, Uint32};
        for (kind, value, qualifiers, place) in [
            (Boolean, "maybe", "", "value"),
            (Boolean, "1", "", "value"),
            (Boolean, "true", "MaxLen(4)", "qualifiers"),
            (Uint32, "-1", "", "value"),
            (Uint32, "+1", "", "value"),
            (Uint32, "4294967296", "", "value"),
            (Uint32, "ten", "", "value"),
            (Uint32, "10", "MaxValue(9)", "value"),
            (Uint32, "10", "MinValue(11)", "value"),
            (Uint32, "10", "MaxLen(2)", "qualifiers"),
            (String, "abcd", "MaxLen(3)", "value"),
            (String, "abcd", "MinLen(5)", "value"),
            (String, "c", "ValueMap{\"a\",\"b\"}", "value"),
            (String, "", "MinLen(4) MaxLen(3)", "qualifiers"),
            (String, "", "MaxLen(3),MaxLen(4)", "qualifiers"),
            (String, "", "MaxLen", "qualifiers"),
            (String, "", "MaxLen(", "qualifiers"),
            (String, "", "MaxLen(x)", "qualifiers"),
            (String, "", "MaxLen(-1)", "qualifiers"),
            (String, "", "maxlen(3)", "qualifiers"),
            (String, "", "MaxLen(3)MinLen(1)", "qualifiers"),
            (String, "", "ValueMap{a}", "qualifiers"),
            (String, "", "ValueMap{\"a\"", "qualifiers"),
            (String, "", "MaxSpeed(3)", "qualifiers"),
        ] {
            let found = faults(kind, value, qualifiers);
            assert_eq!(found.len(), 1, "{value} {qualifiers}: {found:?}");
            assert_eq!(found[0].0, format!("properties.0.{place}"), "{found:?}");
            assert!(found[0].1.starts_with("guestinfo.x: "), "{found:?}");
        }
        for (kind, value, qualifiers) in [
            (Boolean, "", ""),
            (Boolean, "True", ""),
            (Uint32, "10", "MinValue(10) MaxValue(10)"),
            (Uint32, "10", "ValueMap{\"9\",\"10\"}"),
            (String, "abc", "MinLen(3),MaxLen(3)"),
            (String, "", "MinLen(1)"),
            (String, "b c", "ValueMap{\"a\", \"b c\"}, MaxLen(3)"),
        ] {
            let found = faults(kind, value, qualifiers);
            assert!(found.is_empty(), "{value} {qualifiers}: {found:?}");
        }
    }

    #[test]
    fn no_text_makes_the_reader_panic() {
        let text = "MinLen(1), ValueMap{\"a\",\"b\"} MaxValue(18446744073709551616)";
        for cut in 0..text.len() {
            let _ = read(&text[..cut]);
            let _ = read(&text[cut..]);
        }
    }
}
