// SPDX-License-Identifier: MIT OR Apache-2.0
//! The text of the first screen.

use crate::medium::{Answers, Facts, Firmware};

/// Text of the first screen, for a console of 80 columns.
pub fn render(version: &str, facts: &Facts) -> String {
    header(version, facts)
        + "Nothing was written to any disk.\n\
           Press i to answer some questions and install on this machine.\n\
           Press Enter to restart.\n"
}

/// What was found of the medium and the machine.
pub fn header(version: &str, facts: &Facts) -> String {
    let mode = if facts.mode.is_empty() {
        "not started from the installation medium"
    } else {
        &facts.mode
    };
    let firmware = match facts.firmware {
        Firmware::Bios => "BIOS",
        Firmware::Uefi => "UEFI",
        Firmware::SecureBoot => "UEFI, Secure Boot on",
    };
    let payload = match &facts.payload {
        Some(digest) => format!("good, SHA-256 {}", digest.get(..16).unwrap_or(digest)),
        None => "not checked".to_owned(),
    };
    let answers = match &facts.answers {
        Answers::None => "none".to_owned(),
        Answers::Found { source, lines } => format!("{lines} lines from {}", printable(source)),
        Answers::Failed(reason) => format!("NOT FOUND: {}", printable(reason)),
    };
    format!(
        "\nMaster target {version} - installer\n\n\
         \x20 mode      {mode}\n\
         \x20 firmware  {firmware}\n\
         \x20 payload   {payload}\n\
         \x20 answers   {answers}\n\n"
    )
}

/// What a boot argument or a volume says goes to a terminal: without control characters.
fn printable(text: &str) -> String {
    text.chars()
        .map(|letter| if letter.is_control() { '?' } else { letter })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(answers: Answers) -> Facts {
        Facts {
            mode: "install".to_owned(),
            firmware: Firmware::Bios,
            payload: Some("0123456789abcdef01".to_owned()),
            answers,
        }
    }

    #[test]
    fn the_screen_says_what_it_is_and_what_it_does_not_do() {
        let text = render("1.2.3", &facts(Answers::None));
        for line in [
            "Master target 1.2.3 - installer",
            "  mode      install",
            "  firmware  BIOS",
            "  payload   good, SHA-256 0123456789abcdef\n",
            "  answers   none",
            "Nothing was written to any disk",
        ] {
            assert!(text.contains(line), "{line:?} is not in {text}");
        }
        assert!(text.lines().all(|line| line.len() < 80));
    }

    #[test]
    fn answers_cannot_steer_the_terminal() {
        let text = render("1", &facts(Answers::Failed("a\x1b[2J\nb".to_owned())));
        assert!(text.contains("NOT FOUND: a?[2J?b"), "{text}");
    }
}
