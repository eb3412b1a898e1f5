// SPDX-License-Identifier: MIT OR Apache-2.0
//! Random changes of good inputs.

/// A small random generator whose seed is all its state (SplitMix64).
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`; 0 when that is 0.
    pub fn below(&mut self, bound: usize) -> usize {
        let bound = u64::try_from(bound).unwrap_or(u64::MAX).max(1);
        usize::try_from(self.next() % bound).unwrap_or(0)
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[0]
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> Option<&'a T> {
        from.get(self.below(from.len()))
    }
}

/// Numbers at which lengths and counts go wrong.
const INTERESTING: &[u64] = &[
    0,
    1,
    0x7f,
    0x80,
    0xff,
    0x100,
    0x1000,
    0x7fff,
    0x8000,
    0xffff,
    0x1_0000,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_fff0,
    0xffff_ffff,
    0x1_0000_0000,
    0x7fff_ffff_ffff_ffff,
    0x8000_0000_0000_0000,
    0xffff_ffff_ffff_fff0,
    0xffff_ffff_ffff_ffff,
];

/// What texts are made of, beside what the corpus has.
const SIGNS: &[&[u8]] = &[
    b"\0",
    b"\n",
    b"\r\n",
    b"\"",
    b"'",
    b"\\",
    b"=",
    b"<",
    b">",
    b"&amp;",
    b"{",
    b"}",
    b"[",
    b"]",
    b"%",
    b"/",
    b"..",
    b"-1",
    b"\xff",
    b"\xc3\xbc",
    b"\xef\xbb\xbf",
    b"18446744073709551616",
    b"1e999",
    b"nan",
];

/// Words and fields of a corpus, to be put into other inputs.
pub fn dictionary(corpus: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let mut words: Vec<Vec<u8>> = Vec::new();
    for input in corpus {
        let is_word = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.:".contains(byte);
        words.extend(
            input
                .split(|byte| !is_word(byte))
                .filter(|word| (3..40).contains(&word.len()))
                .map(<[u8]>::to_vec),
        );
        words.extend(input.chunks(8).take(32).map(<[u8]>::to_vec));
    }
    words.sort();
    words.dedup();
    words.truncate(2000);
    words
}

/// A good input with up to a dozen changes.
pub fn changed(random: &mut Random, corpus: &[Vec<u8>], words: &[Vec<u8>], len_max: usize) -> Vec<u8> {
    let mut input = match random.below(40) {
        // Now and then something that nobody ever wrote.
        0 => (0..random.below(256)).map(|_| random.byte()).collect(),
        _ => random.pick(corpus).cloned().unwrap_or_default(),
    };
    let most = 1 << random.below(5);
    let count = 1 + random.below(most);
    for _ in 0..count {
        change(random, &mut input, corpus, words);
    }
    input.truncate(len_max);
    input
}

fn change(random: &mut Random, input: &mut Vec<u8>, corpus: &[Vec<u8>], words: &[Vec<u8>]) {
    let at = random.below(input.len());
    match random.below(16) {
        0..=2 => {
            if let Some(byte) = input.get_mut(at) {
                *byte ^= 1 << (random.next() % 8);
            }
        }
        3 => {
            if let Some(byte) = input.get_mut(at) {
                *byte = random.byte();
            }
        }
        4 => {
            if let Some(byte) = input.get_mut(at) {
                *byte = byte.wrapping_add(if random.below(2) == 0 { 1 } else { 255 });
            }
        }
        5 | 6 => {
            // A number of one to eight bytes, of either order.
            let number = random.pick(INTERESTING).copied().unwrap_or(0);
            let width = [1, 2, 4, 8][random.below(4)];
            let mut field = number.to_le_bytes()[..width].to_vec();
            if random.below(2) == 0 {
                field.reverse();
            }
            overwrite(input, at, &field);
        }
        7 => input.truncate(at),
        8 => {
            let len = random.below(64).min(input.len() - at.min(input.len()));
            input.drain(at..at + len);
        }
        9 => {
            // Once more, or often.
            let len = random.below(64).min(input.len() - at.min(input.len()));
            let most = 1 << random.below(7);
            let piece = input[at..at + len].repeat(1 + random.below(most));
            input.splice(at..at, piece);
        }
        10 => {
            if let Some(word) = random.pick(words) {
                input.splice(at..at, word.iter().copied());
            }
        }
        11 => {
            if let Some(word) = random.pick(words) {
                overwrite(input, at, word);
            }
        }
        12 => {
            if let Some(sign) = random.pick(SIGNS) {
                input.splice(at..at, sign.iter().copied());
            }
        }
        13 => {
            // The rest of another one.
            if let Some(other) = random.pick(corpus) {
                let from = random.below(other.len());
                input.truncate(at);
                input.extend_from_slice(&other[from..]);
            }
        }
        14 => {
            // A piece of another one, or of this one, elsewhere.
            if let Some(other) = random.pick(corpus) {
                let from = random.below(other.len());
                let len = random.below(128).min(other.len() - from.min(other.len()));
                overwrite(input, at, &other[from..from + len]);
            }
        }
        _ => {
            let other = random.below(input.len());
            if !input.is_empty() {
                input.swap(at, other);
            }
        }
    }
}

fn overwrite(input: &mut [u8], at: usize, with: &[u8]) {
    for (place, byte) in input.iter_mut().skip(at).zip(with) {
        *place = *byte;
    }
}
