//! Writing protobuf messages, as far as ONNX models need it.

/// A message that grows field by field.
#[derive(Clone, Debug, Default)]
pub(crate) struct Message(Vec<u8>);

impl Message {
    /// Without any field.
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Appends an integer, an enumeration or a truth value.
    pub(crate) fn int(mut self, field: u64, value: i64) -> Self {
        self.varint(field << 3);
        self.varint(value.cast_unsigned());
        self
    }

    /// Appends a `float`.
    pub(crate) fn float(mut self, field: u64, value: f32) -> Self {
        self.varint(field << 3 | 5);
        self.0.extend(value.to_le_bytes());
        self
    }

    /// Appends bytes or a string.
    pub(crate) fn bytes(mut self, field: u64, value: impl AsRef<[u8]>) -> Self {
        let value = value.as_ref();
        self.varint(field << 3 | 2);
        self.varint(value.len() as u64);
        self.0.extend_from_slice(value);
        self
    }

    /// Appends a message.
    pub(crate) fn message(self, field: u64, value: &Self) -> Self {
        self.bytes(field, &value.0)
    }

    /// Appends each of `values` by `append`.
    pub(crate) fn each<T>(
        self,
        values: impl IntoIterator<Item = T>,
        append: impl Fn(Self, T) -> Self,
    ) -> Self {
        values.into_iter().fold(self, append)
    }

    /// The bytes written.
    pub(crate) fn finish(self) -> Vec<u8> {
        self.0
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push((value & 0x7f) as u8 | 0x80);
            value >>= 7;
        }
        self.0.push((value & 0x7f) as u8);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_what_the_format_says() {
        let inner = Message::new().bytes(2, "hi");
        let message = Message::new().int(1, 150).message(3, &inner).float(4, 1.0).int(5, -1);
        let minus_one = [255, 255, 255, 255, 255, 255, 255, 255, 255, 1];
        let want = [0x08, 0x96, 1, 0x1a, 4, 0x12, 2, b'h', b'i', 0x25, 0, 0, 0x80, 0x3f, 0x28];
        assert_eq!(message.finish(), [&want[..], &minus_one].concat());
    }
}
