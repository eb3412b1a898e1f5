//! The passphrase: made, checked, typed.
//!
//! A generated passphrase is 26 symbols of Crockford's base 32 (0 to 9 and A to Z without I, L, O and U), each of
//! five random bits: 130 bits. It is shown in groups, `7M4QX-0JD2K-9WVTB-H3RFC-8NZE5Y`, and read whatever the case,
//! the spaces and the hyphens; O is 0, I and L are 1.
//!
//! One that a person chooses has 16 to 256 printable ASCII characters (others are different bytes on different
//! keyboards and systems) and must be hard to guess by the estimate of `zxcvbn`, which knows common passwords,
//! names, dates and keyboard walks. It is taken as it is: case and inner spaces count; white space around it does not.
//!
//! Both are typed into the same prompt, so whatever has the form of a generated one is read as such, on both sides.

use std::fmt;

use rand_core::{OsRng, RngCore};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// Symbols of a generated passphrase.
pub const SYMBOLS: usize = 26;
/// Fewest characters that a person may choose.
pub const CHARACTERS_MIN: usize = 16;
/// Most bytes that are looked at.
pub const BYTES_MAX: usize = 256;
/// The guesses that one chosen by a person must withstand, as a power of two: far beyond 30 tries a minute for years.
pub const BITS_MIN: u32 = 50;

const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
const GROUP: usize = 5;
const _: () = assert!(SYMBOLS * 5 >= 128);

/// Why a text cannot be a passphrase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PassphraseError {
    /// Nothing in it.
    #[error("the passphrase is empty")]
    Empty,
    /// More than anyone types.
    #[error("the passphrase is longer than {BYTES_MAX} bytes")]
    TooLong,
    /// A character that is not the same bytes everywhere.
    #[error("the passphrase may only hold printable ASCII characters")]
    Character,
    /// Too short to be chosen.
    #[error("the passphrase has {found} characters, at least {CHARACTERS_MIN} are needed")]
    TooShort {
        /// How many it has.
        found: usize,
    },
    /// Easy to guess.
    #[error("the passphrase can be guessed in about 2^{bits} tries, at least 2^{BITS_MIN} are needed")]
    TooWeak {
        /// The estimate, as a power of two.
        bits: u32,
    },
}

impl PassphraseError {
    /// What to do next.
    pub fn hint(self) -> &'static str {
        match self {
            Self::Empty | Self::TooLong | Self::Character => {
                "type it as the appliance's console shows it; case, spaces and hyphens do not matter"
            }
            Self::TooShort { .. } | Self::TooWeak { .. } => {
                "let the appliance make one, or take several words that do not belong together"
            }
        }
    }
}

/// A passphrase in the one form that both sides compute with. Wiped when dropped, never printed.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct Passphrase(String);

impl fmt::Debug for Passphrase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Passphrase(..)")
    }
}

impl Passphrase {
    /// A new one of 130 random bits.
    pub fn generate() -> Self {
        let mut random = Zeroizing::new([0_u8; SYMBOLS]);
        OsRng.fill_bytes(random.as_mut());
        // 256 is a multiple of 32, so the low five bits of a random byte are as random as it is.
        let symbols = random
            .iter()
            .map(|byte| char::from(ALPHABET[usize::from(byte & 31)]))
            .collect();
        Self(symbols)
    }

    /// Reads what someone typed or a file holds.
    ///
    /// # Errors
    /// When it cannot be any passphrase. Whether it is the right one only the appliance can tell.
    pub fn parse(text: &str) -> Result<Self, PassphraseError> {
        // Room for spaces, hyphens and line ends around the longest.
        if text.len() > 2 * BYTES_MAX {
            return Err(PassphraseError::TooLong);
        }
        let text = text.trim_matches(|character: char| character.is_ascii_whitespace());
        if text.is_empty() {
            return Err(PassphraseError::Empty);
        }
        if let Some(generated) = as_generated(text) {
            return Ok(Self(generated));
        }
        if text.len() > BYTES_MAX {
            return Err(PassphraseError::TooLong);
        }
        if !text.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ') {
            return Err(PassphraseError::Character);
        }
        Ok(Self(text.to_owned()))
    }

    /// One that a person chose, with the estimate of how many guesses it withstands, as a power of two.
    ///
    /// # Errors
    /// When it breaks the rule in the module's text.
    pub fn chosen(text: &str) -> Result<(Self, u32), PassphraseError> {
        let passphrase = Self::parse(text)?;
        let found = passphrase.0.len();
        if found < CHARACTERS_MIN {
            return Err(PassphraseError::TooShort { found });
        }
        let log10 = zxcvbn::zxcvbn(
            &passphrase.0,
            &["master target", "failback", "vmware", "appliance"],
        )
        .guesses_log10();
        let bits = (0..1024)
            .take_while(|bits| f64::from(*bits) * std::f64::consts::LOG10_2 <= log10)
            .last()
            .unwrap_or(0);
        if bits < BITS_MIN {
            return Err(PassphraseError::TooWeak { bits });
        }
        Ok((passphrase, bits))
    }

    /// The text to show once: a generated one in groups, another as it is.
    pub fn reveal(&self) -> Zeroizing<String> {
        if self.0.len() != SYMBOLS || as_generated(&self.0).is_none() {
            return Zeroizing::new(self.0.clone());
        }
        let mut shown = Zeroizing::new(String::with_capacity(SYMBOLS + SYMBOLS / GROUP));
        for (index, symbol) in self.0.chars().enumerate() {
            // The last group takes what is left, so that none is a single symbol.
            if index > 0 && index % GROUP == 0 && SYMBOLS - index > 1 {
                shown.push('-');
            }
            shown.push(symbol);
        }
        shown
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

/// The canonical form of a text that has the form of a generated passphrase.
fn as_generated(text: &str) -> Option<String> {
    let mut symbols = Zeroizing::new(String::with_capacity(SYMBOLS));
    for character in text.chars() {
        let symbol = match character.to_ascii_uppercase() {
            ' ' | '-' => continue,
            'O' => '0',
            'I' | 'L' => '1',
            symbol => symbol,
        };
        if symbols.len() == SYMBOLS || !symbol.is_ascii() || !ALPHABET.contains(&u8::try_from(symbol).ok()?) {
            return None;
        }
        symbols.push(symbol);
    }
    (symbols.len() == SYMBOLS).then(|| std::mem::take(&mut *symbols))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{prop_assert, prop_assert_eq, proptest};

    #[test]
    fn a_generated_one_is_read_back_however_it_is_typed() {
        for _ in 0..50 {
            let passphrase = Passphrase::generate();
            let shown = passphrase.reveal();
            assert_eq!(
                shown.split('-').map(str::len).collect::<Vec<_>>(),
                [5, 5, 5, 5, 6]
            );
            let lower = shown.to_lowercase();
            let spaced = shown.replace('-', "  ");
            let sloppy = shown.replace('0', "o").replace('1', "l");
            let sloppier = shown.replace('0', "O").replace('1', "I");
            for typed in [
                &*shown,
                &lower,
                &spaced,
                &sloppy,
                &sloppier,
                &format!("\t{lower} \r\n"),
            ] {
                assert_eq!(Passphrase::parse(typed).unwrap(), passphrase, "{typed}");
            }
        }
    }

    #[test]
    fn generated_ones_differ_and_use_the_whole_alphabet() {
        let all: String = (0..100).map(|_| Passphrase::generate().0.clone()).collect();
        assert!(ALPHABET.iter().all(|symbol| all.contains(char::from(*symbol))));
        assert_ne!(Passphrase::generate(), Passphrase::generate());
    }

    #[test]
    fn nothing_of_it_is_printed() {
        let passphrase = Passphrase::parse("correct horse battery staple").unwrap();
        assert_eq!(format!("{passphrase:?}"), "Passphrase(..)");
    }

    #[test]
    fn weak_choices_are_refused_and_strong_ones_rated() {
        for (text, error) in [
            ("", PassphraseError::Empty),
            (" \n", PassphraseError::Empty),
            ("short", PassphraseError::TooShort { found: 5 }),
            (
                "gr\u{fc}n gr\u{fc}n gr\u{fc}n gr\u{fc}n",
                PassphraseError::Character,
            ),
            ("tab\tinside of a passphrase", PassphraseError::Character),
        ] {
            assert_eq!(Passphrase::chosen(text).unwrap_err(), error, "{text}");
        }
        for text in [
            "aaaaaaaaaaaaaaaaaaaaaaaa",
            "passwordpassword",
            "qwertyuiopasdfgh",
            "1234567890123456",
        ] {
            let error = Passphrase::chosen(text).unwrap_err();
            assert!(
                matches!(error, PassphraseError::TooWeak { .. }),
                "{text}: {error}"
            );
        }
        assert_eq!(
            Passphrase::parse(&"x".repeat(1 << 20)).unwrap_err(),
            PassphraseError::TooLong
        );
        let (_, bits) = Passphrase::chosen("plover umbrella 4 quarterly smelting").unwrap();
        assert!(bits >= BITS_MIN, "{bits}");
    }

    #[test]
    fn a_chosen_one_keeps_case_and_inner_spaces() {
        let one = Passphrase::parse("Plover umbrella quarterly").unwrap();
        assert_eq!(Passphrase::parse(" Plover umbrella quarterly\n").unwrap(), one);
        assert_ne!(Passphrase::parse("plover umbrella quarterly").unwrap(), one);
        assert_ne!(Passphrase::parse("Plover  umbrella quarterly").unwrap(), one);
    }

    proptest! {
        #[test]
        fn what_is_read_reads_the_same_again(text in ".{0,300}") {
            if let Ok(passphrase) = Passphrase::parse(&text) {
                prop_assert!(passphrase.as_bytes().len() <= BYTES_MAX);
                prop_assert_eq!(Passphrase::parse(&passphrase.reveal()).unwrap(), passphrase);
            }
        }
    }
}
