// SPDX-License-Identifier: MIT OR Apache-2.0
//! A terminal as every console is one: the screen (TERM=linux), a serial line, a test's pseudo terminal.
//!
//! Keys come in as [`Key`], screens go out whole, as plain lines with the three sequences that any VT100 knows. What is
//! asked and shown is decided elsewhere, without a terminal.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::termios::{self, SetArg, Termios};

use crate::error::{Error, Kind, Result};

/// Columns and rows that every console has.
pub const COLUMNS: usize = 80;
/// Rows.
pub const ROWS: usize = 24;

/// A key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key {
    /// A printable ASCII character.
    Char(char),
    /// Enter or Tab.
    Enter,
    /// Backspace or Delete.
    Backspace,
    /// Ctrl-U: everything typed goes.
    Clear,
    /// Escape: one step back.
    Escape,
    /// Arrow up.
    Up,
    /// Arrow down.
    Down,
}

/// Makes keys of bytes; a sequence may come in pieces.
#[derive(Debug, Default)]
pub struct Keys {
    pending: Vec<u8>,
}

impl Keys {
    /// Takes bytes, and gives the keys that are complete.
    pub fn feed(&mut self, bytes: &[u8]) -> Vec<Key> {
        let mut keys = Vec::new();
        for byte in bytes {
            self.pending.push(*byte);
            match self.pending.as_slice() {
                // Escape alone, or the beginning of a sequence.
                [0x1b] | [0x1b, b'[' | b'O'] => {}
                [0x1b, b'[' | b'O', rest @ ..] => {
                    let last = rest[rest.len() - 1];
                    // A sequence ends with a letter or a tilde; none that is known is longer than this.
                    if last.is_ascii_alphabetic() || last == b'~' || rest.len() > 8 {
                        match (rest.len(), last) {
                            (1, b'A') => keys.push(Key::Up),
                            (1, b'B') => keys.push(Key::Down),
                            (2, b'~') if rest[0] == b'3' => keys.push(Key::Backspace),
                            _ => {}
                        }
                        self.pending.clear();
                    }
                }
                [0x1b, other] => {
                    keys.push(Key::Escape);
                    keys.extend(plain(*other));
                    self.pending.clear();
                }
                [one] => {
                    keys.extend(plain(*one));
                    self.pending.clear();
                }
                _ => self.pending.clear(),
            }
        }
        keys
    }

    /// Nothing has followed for a moment: an Escape was one.
    pub fn quiet(&mut self) -> Option<Key> {
        let escape = self.pending.as_slice() == [0x1b];
        self.pending.clear();
        escape.then_some(Key::Escape)
    }
}

fn plain(byte: u8) -> Option<Key> {
    match byte {
        b'\r' | b'\n' | b'\t' => Some(Key::Enter),
        0x7f | 0x08 => Some(Key::Backspace),
        0x15 => Some(Key::Clear),
        0x20..=0x7e => Some(Key::Char(char::from(byte))),
        _ => None,
    }
}

/// What came from the terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input {
    /// A key.
    Key(Key),
    /// Nothing within the time.
    Nothing,
    /// The terminal is gone.
    Closed,
}

/// The terminal on standard input and output, in raw mode until it is dropped.
#[derive(Debug)]
pub struct Terminal {
    before: Option<Termios>,
    keys: Keys,
    ready: std::collections::VecDeque<Key>,
    shown: String,
}

impl Terminal {
    /// Takes the terminal over.
    ///
    /// # Errors
    /// Standard input is no terminal.
    pub fn open() -> Result<Self> {
        let input = io::stdin();
        let before = termios::tcgetattr(input.as_fd()).map_err(|errno| {
            Error::new(Kind::Usage, format!("standard input is no terminal ({errno})"))
                .hint("run it on a console, or give an answers file instead")
        })?;
        let mut raw = before.clone();
        termios::cfmakeraw(&mut raw);
        termios::tcsetattr(input.as_fd(), SetArg::TCSANOW, &raw).map_err(|errno| {
            Error::new(
                Kind::Unexpected,
                format!("cannot take the terminal over: {errno}"),
            )
        })?;
        Ok(Self {
            before: Some(before),
            keys: Keys::default(),
            ready: std::collections::VecDeque::new(),
            shown: String::new(),
        })
    }

    /// Shows a screen, if it is not what is shown already.
    ///
    /// # Errors
    /// The terminal cannot be written.
    pub fn show(&mut self, text: &str) -> Result<()> {
        if self.shown == text {
            return Ok(());
        }
        // Home, every line with what is behind it cleared, and all below: nothing flickers, also at 9600 bit/s.
        let mut out = String::from("\x1b[H");
        for line in text.lines().take(ROWS) {
            out.push_str(line);
            out.push_str("\x1b[K\r\n");
        }
        out.push_str("\x1b[J");
        self.shown = text.to_owned();
        self.write(&out)
    }

    /// Forgets what is shown, so that the next screen is written anew: others write to a console too.
    pub fn forget(&mut self) {
        self.shown.clear();
    }

    /// Clears the screen, for whoever writes to it next.
    ///
    /// # Errors
    /// The terminal cannot be written.
    pub fn clear(&mut self) -> Result<()> {
        self.shown.clear();
        self.write("\x1b[H\x1b[J")
    }

    fn write(&self, text: &str) -> Result<()> {
        let mut output = io::stdout().lock();
        output
            .write_all(text.as_bytes())
            .and_then(|()| output.flush())
            .map_err(|error| Error::new(Kind::Unexpected, format!("cannot write to the console: {error}")))
    }

    /// Waits for a key, for so many milliseconds.
    ///
    /// # Errors
    /// The terminal cannot be read.
    pub fn input(&mut self, wait_ms: u16) -> Result<Input> {
        /// Longer than a sequence takes on the slowest line, shorter than anybody waits.
        const ESCAPE_MS: u16 = 100;
        let fault =
            |text: String| Error::new(Kind::Unexpected, format!("cannot read from the console: {text}"));
        let mut wait = wait_ms;
        loop {
            if let Some(key) = self.ready.pop_front() {
                return Ok(Input::Key(key));
            }
            let pending = !self.keys.pending.is_empty();
            let input = io::stdin();
            let mut polled = [PollFd::new(input.as_fd(), PollFlags::POLLIN)];
            let patience = PollTimeout::from(if pending { ESCAPE_MS } else { wait });
            match poll(&mut polled, patience) {
                Err(nix::errno::Errno::EINTR) => continue,
                Err(errno) => return Err(fault(errno.to_string())),
                Ok(0) if pending => {
                    if let Some(key) = self.keys.quiet() {
                        return Ok(Input::Key(key));
                    }
                    wait = wait.saturating_sub(ESCAPE_MS);
                    continue;
                }
                Ok(0) => return Ok(Input::Nothing),
                Ok(_) => {}
            }
            let mut buffer = [0_u8; 256];
            // Unbuffered: what a reader keeps would not be polled for.
            match nix::unistd::read(input.as_fd(), &mut buffer) {
                Ok(0) | Err(nix::errno::Errno::EIO) => return Ok(Input::Closed),
                Ok(count) => self.ready.extend(self.keys.feed(&buffer[..count])),
                Err(nix::errno::Errno::EINTR) => {}
                Err(errno) => return Err(fault(errno.to_string())),
            }
        }
    }

    /// Gives the terminal back as it was, to run something else on it.
    pub fn release(&mut self) {
        if let Some(before) = &self.before {
            // A terminal that is gone needs nothing back.
            let _ = termios::tcsetattr(io::stdin().as_fd(), SetArg::TCSANOW, before);
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.release();
    }
}

/// A line cut to the width of a console.
#[must_use]
pub fn cut(line: &str) -> String {
    line.chars().take(COLUMNS - 1).collect()
}

/// Waits for Enter without a terminal's help, for consoles that are none.
///
/// # Errors
/// Standard input ended or cannot be read.
pub fn wait_for_enter() -> Result<()> {
    match io::stdin().read(&mut [0_u8; 1]) {
        Ok(1) => Ok(()),
        Ok(_) => Err(Error::new(
            Kind::Unexpected,
            "the console was closed before Enter was pressed",
        )),
        Err(error) => Err(Error::new(
            Kind::Unexpected,
            format!("cannot read from the console: {error}"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_become_keys() {
        let all = |bytes: &[u8]| Keys::default().feed(bytes);
        assert_eq!(
            all(b"a~ \r\n\t"),
            [
                Key::Char('a'),
                Key::Char('~'),
                Key::Char(' '),
                Key::Enter,
                Key::Enter,
                Key::Enter
            ]
        );
        assert_eq!(all(b"\x7f\x08\x15"), [Key::Backspace, Key::Backspace, Key::Clear]);
        assert_eq!(
            all(b"\x1b[A\x1b[B\x1bOA\x1b[3~"),
            [Key::Up, Key::Down, Key::Up, Key::Backspace]
        );
        // Function keys and the like are nothing, and take nothing with them.
        assert_eq!(
            all(b"\x1b[15~x\x1b[1;5Cy\x00\xff"),
            [Key::Char('x'), Key::Char('y')]
        );
        assert_eq!(all(b"\x1bx"), [Key::Escape, Key::Char('x')]);
    }

    #[test]
    fn a_sequence_may_come_in_pieces_and_escape_is_a_key_when_nothing_follows() {
        let mut keys = Keys::default();
        assert!(keys.feed(b"\x1b").is_empty());
        assert!(keys.feed(b"[").is_empty());
        assert_eq!(keys.feed(b"A"), [Key::Up]);
        assert!(keys.feed(b"\x1b").is_empty());
        assert_eq!(keys.quiet(), Some(Key::Escape));
        assert_eq!(keys.quiet(), None);
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            let mut keys = Keys::default();
            keys.feed(&bytes);
            proptest::prop_assert!(keys.pending.len() < 12);
        }
    }
}
