//! Protobuf's wire format, one field at a time.
//!
//! A generated decoder turns every two bytes of a hostile message into a structure of hundreds;
//! reading fields one by one lets the caller bound what it keeps. Byte fields share the input.

use tangor_tensor::Bytes;

/// The value of one field.
#[derive(Debug, PartialEq)]
pub(super) enum Value {
    /// `int32`, `int64`, `bool`, enums.
    Varint(u64),
    /// `double`, `fixed64`.
    Fixed64([u8; 8]),
    /// `float`, `fixed32`.
    Fixed32([u8; 4]),
    /// Strings, bytes, messages and packed lists.
    Bytes(Bytes),
}

/// The fields of one message, in the order of the file.
pub(super) struct Fields {
    rest: Bytes,
}

/// What is wrong with a message.
pub(super) type WireError = &'static str;

impl Fields {
    /// Reads `message`.
    pub(super) fn new(message: Bytes) -> Self {
        Self { rest: message }
    }

    /// The next field's number and value; `None` at the end of the message.
    pub(super) fn next(&mut self) -> Result<Option<(u64, Value)>, WireError> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let key = varint(&mut self.rest)?;
        let value = match key & 7 {
            0 => Value::Varint(varint(&mut self.rest)?),
            1 => Value::Fixed64(array(&mut self.rest)?),
            2 => {
                let len = varint(&mut self.rest)?;
                Value::Bytes(take(&mut self.rest, len)?)
            }
            5 => Value::Fixed32(array(&mut self.rest)?),
            _ => return Err("a field of an unknown wire type"),
        };
        Ok(Some((key >> 3, value)))
    }
}

/// The varints of a packed list.
pub(super) fn varints(mut packed: Bytes) -> impl Iterator<Item = Result<u64, WireError>> {
    std::iter::from_fn(move || {
        if packed.is_empty() {
            return None;
        }
        let item = varint(&mut packed);
        if item.is_err() {
            packed.clear();
        }
        Some(item)
    })
}

fn varint(bytes: &mut Bytes) -> Result<u64, WireError> {
    let (mut value, mut shift) = (0u64, 0u32);
    for (used, &byte) in (1usize..=10).zip(bytes.iter()) {
        let bits = u64::from(byte & 0x7f);
        if used == 10 && bits > 1 {
            return Err("a number of more than 64 bits");
        }
        value |= bits.wrapping_shl(shift);
        shift = shift.saturating_add(7);
        if byte < 0x80 {
            let _ = bytes.split_to(used);
            return Ok(value);
        }
    }
    Err("a number without an end")
}

fn take(bytes: &mut Bytes, len: u64) -> Result<Bytes, WireError> {
    match usize::try_from(len) {
        Ok(len) if len <= bytes.len() => Ok(bytes.split_to(len)),
        _ => Err("a field that is longer than its message"),
    }
}

fn array<const N: usize>(bytes: &mut Bytes) -> Result<[u8; N], WireError> {
    let (head, _) = bytes.split_first_chunk::<N>().ok_or("a number that is cut short")?;
    let head = *head;
    let _ = bytes.split_to(N);
    Ok(head)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> Result<Vec<(u64, Value)>, WireError> {
        let mut fields = Fields::new(Bytes::copy_from_slice(bytes));
        let mut all = Vec::new();
        while let Some(field) = fields.next()? {
            all.push(field);
        }
        Ok(all)
    }

    #[test]
    fn reads_every_wire_type() {
        let fields = read(&[
            0x08, 0x96, 0x01, // 1: varint 150
            0x12, 0x02, b'h', b'i', // 2: bytes
            0x1d, 0, 0, 0x80, 0x3f, // 3: fixed32
            0x21, 1, 0, 0, 0, 0, 0, 0, 0, // 4: fixed64
        ]);
        let expected = vec![
            (1, Value::Varint(150)),
            (2, Value::Bytes(Bytes::from_static(b"hi"))),
            (3, Value::Fixed32(1.0f32.to_le_bytes())),
            (4, Value::Fixed64(1u64.to_le_bytes())),
        ];
        assert_eq!(fields.unwrap_or_default(), expected);
    }

    #[test]
    fn refuses_damaged_messages() {
        for bytes in [
            &[0x80][..],                                                      // key without an end
            &[0x08],                                                          // value missing
            &[0x12, 0x03, b'h', b'i'],                                        // cut short
            &[0x12, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1], // 2^64 - 1 bytes
            &[0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2], // 2^65
            &[0x08, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0],
            &[0x0b],             // group
            &[0x0d, 0, 0, 0],    // fixed32 of three bytes
            &[0x09, 0, 0, 0, 0], // fixed64 of four bytes
        ] {
            assert!(read(bytes).is_err(), "{bytes:x?} must be refused");
        }
    }

    #[test]
    fn stops_a_packed_list_at_its_first_damaged_number() {
        let list: Vec<_> = varints(Bytes::from_static(&[1, 0x80])).collect();
        assert_eq!(list, [Ok(1), Err("a number without an end")]);
    }
}
