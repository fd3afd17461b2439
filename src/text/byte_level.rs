//! GPT-2's table between bytes and printable characters: every byte has one character, so that a vocabulary of
//! arbitrary bytes can be written as text. Printable Latin-1 stands for itself; the other 68 bytes, in order, are U+0100 and on.

use std::sync::LazyLock;

const fn stands_for_itself(byte: u8) -> bool {
    matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF)
}

/// The byte of each character up to U+0143.
static BYTES: LazyLock<[Option<u8>; 324]> = LazyLock::new(|| {
    let mut table = [None; 324];
    let mut next = 0x100;
    for byte in 0..=255u8 {
        if stands_for_itself(byte) {
            table[usize::from(byte)] = Some(byte);
        } else {
            table[next] = Some(byte);
            next += 1;
        }
    }
    table
});

/// The bytes that a token's name stands for; `None` when it has a character outside the table.
pub(super) fn bytes_of(name: &str) -> Option<Vec<u8>> {
    name.chars().map(|c| BYTES.get(c as usize).copied().flatten()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_exactly_one_character() {
        let mut bytes: Vec<u8> = (0..324).filter_map(|c| BYTES[c]).collect();
        bytes.sort_unstable();
        assert_eq!(bytes, (0..=255).collect::<Vec<u8>>());
        assert_eq!(bytes_of("Ġin"), Some(b" in".to_vec()));
        assert_eq!(bytes_of("Ċ"), Some(b"\n".to_vec()));
        assert_eq!(bytes_of("Ã©"), Some("é".as_bytes().to_vec()));
        assert_eq!(bytes_of("▁in"), None);
    }
}
