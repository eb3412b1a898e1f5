//! Little-endian reading and writing of what lies in the store. A read past the end is an error, never a panic.

/// Bytes that are not what their place promises: what was wrong, in words for a message.
pub(crate) type Malformed = &'static str;

/// Takes fields from the front of bytes.
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(crate) fn bytes(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or("it ends early")?;
        self.rest = rest;
        Ok(taken)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let mut array = [0; N];
        array.copy_from_slice(self.bytes(N)?);
        Ok(array)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, Malformed> {
        Ok(u8::from_le_bytes(self.array()?))
    }

    pub(crate) fn u16(&mut self) -> Result<u16, Malformed> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Malformed> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(crate) fn u64(&mut self) -> Result<u64, Malformed> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    pub(crate) fn i64(&mut self) -> Result<i64, Malformed> {
        Ok(i64::from_le_bytes(self.array()?))
    }

    /// A text with a 16-bit length in front.
    pub(crate) fn text(&mut self) -> Result<String, Malformed> {
        let len = usize::from(self.u16()?);
        let text = std::str::from_utf8(self.bytes(len)?).map_err(|_| "a text is not UTF-8")?;
        Ok(text.to_owned())
    }

    /// A count in front of a list whose items have at least `item_size` bytes: bounded by what is there.
    pub(crate) fn count(&mut self, item_size: usize) -> Result<usize, Malformed> {
        let count = usize::try_from(self.u32()?).map_err(|_| "a count is too large")?;
        if count > self.rest.len() / item_size.max(1) {
            return Err("a count is larger than what follows");
        }
        Ok(count)
    }
}

/// Appends a text with a 16-bit length in front; what does not fit is cut at a character.
pub(crate) fn put_text(out: &mut Vec<u8>, text: &str) {
    let mut len = text.len().min(usize::from(u16::MAX));
    while !text.is_char_boundary(len) {
        len -= 1;
    }
    out.extend_from_slice(&u16::try_from(len).expect("bounded above").to_le_bytes());
    out.extend_from_slice(&text.as_bytes()[..len]);
}

/// Appends the count of a list.
pub(crate) fn put_count(out: &mut Vec<u8>, count: usize) {
    out.extend_from_slice(&u32_of(count).to_le_bytes());
}

/// A length as a `u64`; `usize` has at most 64 bits on every target of this crate.
pub(crate) fn u64_of(len: usize) -> u64 {
    u64::try_from(len).expect("usize has at most 64 bits")
}

/// A length inside a segment as a `u32`.
pub(crate) fn u32_of(len: usize) -> u32 {
    u32::try_from(len).expect("what lies in one segment has fewer than 2^32 bytes")
}

/// A number that came from a length of something in memory.
pub(crate) fn usize_of(number: u64) -> usize {
    usize::try_from(number).expect("usize has 64 bits on every target of this crate")
}
