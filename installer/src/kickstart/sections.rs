// SPDX-License-Identifier: MIT OR Apache-2.0
//! Sections: `%pre`, `%post` and `%addon master_target`.

use std::collections::BTreeMap;

use mt_blockdev::scsi::ScsiId;

use super::options;
use crate::answers::{Answers, Script, When};

/// Tables of the agent's configuration that an appliance may have.
const AGENT_TABLES_NOT: &str = "lab";

/// Reads a section that begins at a line. Errors name their own line.
pub fn read(
    name: &str,
    words: &[String],
    body: &str,
    line: usize,
    answers: &mut Answers,
    seen: &mut BTreeMap<&'static str, usize>,
) -> Result<(), (usize, String)> {
    let here = |text: String| (line, text);
    match name {
        "%pre" => script(When::Pre, words, body, line, answers).map_err(here),
        "%post" => script(When::Post, words, body, line, answers).map_err(here),
        "%addon" => {
            let options = options::read(words, &[], &[]).map_err(here)?;
            match options.one_alone("the name").map_err(here)? {
                "master_target" => {}
                other => return Err(here(format!("{other}: only master_target"))),
            }
            if let Some(first) = seen.insert("%addon", line) {
                return Err(here(format!("is given already at line {first}")));
            }
            settings(body, answers).map_err(|(offset, text)| (line + offset, text))
        }
        "%packages" => Err(here(
            "the packages of the appliance are those of its image; leave the section out".to_owned(),
        )),
        _ => Err(here("no such section, or one that is not supported".to_owned())),
    }
}

fn script(
    when: When,
    words: &[String],
    body: &str,
    line: usize,
    answers: &mut Answers,
) -> Result<(), String> {
    let flags: &[&str] = match when {
        When::Pre => &["erroronfail"],
        _ => &["erroronfail", "nochroot"],
    };
    let options = options::read(words, flags, &["interpreter"])?;
    options.nothing_alone()?;
    let interpreter = options.value("interpreter").unwrap_or("/bin/sh");
    if !["/bin/sh", "/bin/bash", "/usr/bin/sh", "/usr/bin/bash"].contains(&interpreter) {
        return Err(format!(
            "--interpreter={interpreter}: known are /bin/sh and /bin/bash"
        ));
    }
    answers.scripts.push(Script {
        when: if options.has("nochroot") {
            When::PostOutside
        } else {
            when
        },
        interpreter: interpreter.to_owned(),
        error_ends: options.has("erroronfail"),
        body: body.to_owned(),
        line,
    });
    Ok(())
}

/// Reads the settings; an error names the line within the section, from 1.
fn settings(body: &str, answers: &mut Answers) -> Result<(), (usize, String)> {
    let line_of = |offset: usize| body.get(..offset).unwrap_or(body).matches('\n').count() + 1;
    let mut table: toml::Table = body.parse().map_err(|error: toml::de::Error| {
        let at = error.span().map_or(1, |span| line_of(span.start));
        (at, error.message().to_owned())
    })?;
    let line_with = |key: &str| {
        let found = body.lines().position(|line| {
            let line = line.trim_start().trim_start_matches('[');
            line.strip_prefix(key)
                .is_some_and(|rest| rest.trim_start().starts_with(['=', ']', '.']))
        });
        found.unwrap_or(0) + 1
    };
    if let Some(value) = table.remove("retention_disk") {
        let at = line_with("retention_disk");
        let text = value.as_str().ok_or((
            at,
            "retention_disk: expected a SCSI ID in quotation marks".to_owned(),
        ))?;
        let id = ScsiId::parse(text).map_err(|error| (at, format!("retention_disk: {error}")))?;
        answers.settings.retention_disk = Some(id.to_string());
    }
    for (key, value) in &table {
        if key == AGENT_TABLES_NOT {
            return Err((
                line_with(key),
                "[lab] is for laboratories without disks, never for an appliance".to_owned(),
            ));
        }
        if !value.is_table() {
            return Err((
                line_with(key),
                format!("{key} is not known; known are retention_disk and the agent's tables"),
            ));
        }
    }
    if !table.is_empty() {
        let text = toml::to_string(&table).map_err(|error| (1, error.to_string()))?;
        answers.settings.agent = Some(text);
    }
    Ok(())
}
