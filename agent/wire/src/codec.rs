//! Little-endian reading and writing of bodies. A read past the end is an error, never a panic.

use crate::frame::WireError;

/// Takes fields from the front of a body.
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(body: &'a [u8]) -> Self {
        Self { rest: body }
    }

    pub(crate) fn bytes(&mut self, count: usize, field: &'static str) -> Result<&'a [u8], WireError> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or(WireError::BodyTooShort {
            field,
            wanted: count,
            left: self.rest.len(),
        })?;
        self.rest = rest;
        Ok(taken)
    }

    pub(crate) fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], WireError> {
        let mut array = [0; N];
        array.copy_from_slice(self.bytes(N, field)?);
        Ok(array)
    }

    pub(crate) fn u8(&mut self, field: &'static str) -> Result<u8, WireError> {
        Ok(u8::from_le_bytes(self.array(field)?))
    }

    pub(crate) fn u16(&mut self, field: &'static str) -> Result<u16, WireError> {
        Ok(u16::from_le_bytes(self.array(field)?))
    }

    pub(crate) fn u32(&mut self, field: &'static str) -> Result<u32, WireError> {
        Ok(u32::from_le_bytes(self.array(field)?))
    }

    pub(crate) fn u64(&mut self, field: &'static str) -> Result<u64, WireError> {
        Ok(u64::from_le_bytes(self.array(field)?))
    }

    /// A text with a 16-bit length in front, at most `max` bytes.
    pub(crate) fn text(&mut self, max: usize, field: &'static str) -> Result<String, WireError> {
        let len = usize::from(self.u16(field)?);
        if len > max {
            return Err(WireError::TooLarge {
                field,
                found: len as u64,
                max: max as u64,
            });
        }
        let bytes = self.bytes(len, field)?;
        let text = std::str::from_utf8(bytes).map_err(|_| WireError::NotText { field })?;
        Ok(text.to_owned())
    }

    /// Ends the body: bytes that are left over mean that the sender knew a field that we do not.
    pub(crate) fn end(self) -> Result<(), WireError> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(WireError::BodyTooLong {
                left: self.rest.len(),
            })
        }
    }
}

/// Appends a text with its 16-bit length. Longer texts are cut at a character border, since a refusal must not fail
/// because its words are many.
pub(crate) fn put_text(body: &mut Vec<u8>, text: &str, max: usize) {
    let mut end = text.len().min(max).min(usize::from(u16::MAX));
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let len = u16::try_from(end).expect("bounded by u16::MAX above");
    body.extend_from_slice(&len.to_le_bytes());
    body.extend_from_slice(&text.as_bytes()[..end]);
}
