//! Little-endian reading and writing of fields. A read past the end is an error, never a panic.

/// What can be wrong with bytes that a peer or a file gave us.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Malformed {
    /// The bytes end inside a field.
    #[error("{field}: {wanted} bytes wanted, {left} left")]
    TooShort {
        /// The field.
        field: &'static str,
        /// Its size.
        wanted: usize,
        /// What was left.
        left: usize,
    },
    /// Bytes are left over.
    #[error("{left} bytes more than expected")]
    TooLong {
        /// How many.
        left: usize,
    },
    /// A length or count is beyond its limit.
    #[error("{field} is {found}, the limit is {max}")]
    TooLarge {
        /// The field.
        field: &'static str,
        /// Its value.
        found: usize,
        /// The limit.
        max: usize,
    },
    /// A value that has no meaning.
    #[error("{field} has a value without meaning")]
    Meaningless {
        /// The field.
        field: &'static str,
    },
}

/// Takes fields from the front of bytes.
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(crate) fn bytes(&mut self, count: usize, field: &'static str) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or(Malformed::TooShort {
            field,
            wanted: count,
            left: self.rest.len(),
        })?;
        self.rest = rest;
        Ok(taken)
    }

    pub(crate) fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], Malformed> {
        let mut array = [0; N];
        array.copy_from_slice(self.bytes(N, field)?);
        Ok(array)
    }

    pub(crate) fn u8(&mut self, field: &'static str) -> Result<u8, Malformed> {
        Ok(u8::from_le_bytes(self.array(field)?))
    }

    pub(crate) fn u16(&mut self, field: &'static str) -> Result<u16, Malformed> {
        Ok(u16::from_le_bytes(self.array(field)?))
    }

    pub(crate) fn u32(&mut self, field: &'static str) -> Result<u32, Malformed> {
        Ok(u32::from_le_bytes(self.array(field)?))
    }

    pub(crate) fn i64(&mut self, field: &'static str) -> Result<i64, Malformed> {
        Ok(i64::from_le_bytes(self.array(field)?))
    }

    /// Bytes with a 16-bit length in front, at most `max`.
    pub(crate) fn block(&mut self, max: usize, field: &'static str) -> Result<&'a [u8], Malformed> {
        let len = usize::from(self.u16(field)?);
        if len > max {
            return Err(Malformed::TooLarge {
                field,
                found: len,
                max,
            });
        }
        self.bytes(len, field)
    }

    /// Everything that is left.
    pub(crate) fn rest(self) -> &'a [u8] {
        self.rest
    }

    /// Ends the reading: bytes that are left over mean that the writer knew a field that we do not.
    pub(crate) fn end(self) -> Result<(), Malformed> {
        match self.rest.len() {
            0 => Ok(()),
            left => Err(Malformed::TooLong { left }),
        }
    }
}

/// Appends bytes with their 16-bit length.
///
/// # Panics
/// When they are longer than 64 KiB: callers hold what they bounded themselves.
pub(crate) fn put_block(bytes: &mut Vec<u8>, block: &[u8]) {
    let len = u16::try_from(block.len()).expect("blocks are bounded before they are written");
    bytes.extend_from_slice(&len.to_le_bytes());
    bytes.extend_from_slice(block);
}
