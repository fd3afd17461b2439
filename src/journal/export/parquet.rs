//! A flat table as an Apache Parquet file: every column optional, one plain page for each column of a row group, nothing
//! compressed. Format: <https://parquet.apache.org/docs/file-format/>, metadata in Thrift's compact protocol.

use crate::journal::flat::{Cell, Kind};

const MAGIC: &[u8; 4] = b"PAR1";
/// Encodings by their numbers in the format.
const PLAIN: i64 = 0;
const RLE: i64 = 3;

/// Writes one file from its first byte to its last. What it gives has to be written in order.
pub struct Parquet {
    columns: Vec<(String, Kind)>,
    groups: Vec<Group>,
    rows: i64,
    /// Bytes given so far.
    at: i64,
}

struct Group {
    rows: i64,
    chunks: Vec<Chunk>,
}

/// Where one column of a row group stands.
struct Chunk {
    offset: i64,
    bytes: i64,
}

impl Kind {
    /// Number of the physical type, and of the converted type where there is one.
    const fn stored(self) -> (i64, Option<i64>) {
        match self {
            Self::Boolean => (0, None),
            Self::Integer => (2, None),
            Self::Time => (2, Some(9)),
            Self::Number => (5, None),
            Self::Text => (6, Some(0)),
        }
    }
}

impl Parquet {
    /// And the first bytes.
    pub fn begin(columns: Vec<(String, Kind)>) -> (Self, Vec<u8>) {
        let at = MAGIC.len() as i64;
        (Self { columns, groups: Vec::new(), rows: 0, at }, MAGIC.to_vec())
    }

    /// The bytes of a row group. Cells of another kind than their column's count as nothing.
    pub fn group(&mut self, rows: &[Vec<Cell>]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut chunks = Vec::with_capacity(self.columns.len());
        for (column, (_, kind)) in self.columns.iter().enumerate() {
            let page = page(*kind, rows.len(), rows.iter().map(|row| row.get(column).unwrap_or(&Cell::Nothing)));
            chunks.push(Chunk { offset: self.at + bytes.len() as i64, bytes: page.len() as i64 });
            bytes.extend(page);
        }
        self.at += bytes.len() as i64;
        self.rows += rows.len() as i64;
        self.groups.push(Group { rows: rows.len() as i64, chunks });
        bytes
    }

    /// The last bytes.
    pub fn end(self) -> Vec<u8> {
        let mut footer = Thrift::default();
        footer.number(1, 1);
        footer.list(2, self.columns.len() + 1, |schema, index| match index.checked_sub(1) {
            None => {
                schema.text(4, "answers");
                schema.number(5, self.columns.len() as i64);
            }
            Some(column) => {
                let (name, kind) = &self.columns[column];
                let (physical, converted) = kind.stored();
                schema.number(1, physical);
                schema.number(3, 1);
                schema.text(4, name);
                if let Some(converted) = converted {
                    schema.number(6, converted);
                }
            }
        });
        footer.long(3, self.rows);
        footer.list(4, self.groups.len(), |group, index| {
            let Group { rows, chunks } = &self.groups[index];
            group.list(1, chunks.len(), |chunk, column| {
                let Chunk { offset, bytes } = chunks[column];
                let (name, kind) = &self.columns[column];
                chunk.long(2, offset);
                chunk.structure(3, |meta| {
                    meta.number(1, kind.stored().0);
                    meta.numbers(2, &[PLAIN, RLE]);
                    meta.texts(3, &[name]);
                    meta.number(4, 0);
                    meta.long(5, *rows);
                    meta.long(6, bytes);
                    meta.long(7, bytes);
                    meta.long(9, offset);
                });
            });
            group.long(2, chunks.iter().map(|chunk| chunk.bytes).sum());
            group.long(3, *rows);
        });
        footer.text(6, concat!("tunegate ", env!("CARGO_PKG_VERSION")));
        let mut bytes = footer.stop();
        bytes.extend((bytes.len() as u32).to_le_bytes());
        bytes.extend(MAGIC);
        bytes
    }
}

/// A header, which rows have a value, and the values.
fn page<'a>(kind: Kind, rows: usize, cells: impl Iterator<Item = &'a Cell>) -> Vec<u8> {
    let (mut values, mut bits) = (Vec::new(), Vec::new());
    let mut present = Vec::with_capacity(rows);
    for cell in cells {
        let there = match (kind, cell) {
            (Kind::Text, Cell::Text(text)) => {
                values.extend((text.len() as u32).to_le_bytes());
                values.extend(text.as_bytes());
                true
            }
            (Kind::Integer, Cell::Integer(value)) | (Kind::Time, Cell::Time(value)) => {
                values.extend(value.to_le_bytes());
                true
            }
            (Kind::Number, Cell::Number(value)) => {
                values.extend(value.to_le_bytes());
                true
            }
            (Kind::Boolean, Cell::Boolean(value)) => {
                bits.push(*value);
                true
            }
            _ => false,
        };
        present.push(there);
    }
    values.extend(bits.chunks(8).map(|bits| bits.iter().rev().fold(0u8, |byte, &bit| byte << 1 | u8::from(bit))));
    let levels = runs(&present);
    let bytes = (4 + levels.len() + values.len()) as i64;
    let mut header = Thrift::default();
    header.number(1, 0);
    header.number(2, bytes);
    header.number(3, bytes);
    header.structure(5, |data| {
        data.number(1, rows as i64);
        data.number(2, PLAIN);
        data.number(3, RLE);
        data.number(4, RLE);
    });
    let mut page = header.stop();
    page.extend((levels.len() as u32).to_le_bytes());
    page.extend(levels);
    page.extend(values);
    page
}

/// Levels of one bit as runs of the same: for each its length, doubled, then the level.
fn runs(present: &[bool]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for run in present.chunk_by(|one, other| one == other) {
        varint(&mut bytes, (run.len() as u64) << 1);
        bytes.push(u8::from(run[0]));
    }
    bytes
}

fn varint(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

/// One struct in Thrift's compact protocol; fields come in rising order, less than 16 apart.
#[derive(Default)]
struct Thrift {
    bytes: Vec<u8>,
    last: u8,
}

/// Types by their numbers in the protocol.
const I32: u8 = 5;
const I64: u8 = 6;
const BINARY: u8 = 8;
const LIST: u8 = 9;
const STRUCT: u8 = 12;

impl Thrift {
    fn field(&mut self, id: u8, kind: u8) {
        self.bytes.push((id - self.last) << 4 | kind);
        self.last = id;
    }

    fn zigzag(&mut self, value: i64) {
        varint(&mut self.bytes, (value << 1 ^ value >> 63).cast_unsigned());
    }

    fn number(&mut self, id: u8, value: i64) {
        self.field(id, I32);
        self.zigzag(value);
    }

    fn long(&mut self, id: u8, value: i64) {
        self.field(id, I64);
        self.zigzag(value);
    }

    fn text(&mut self, id: u8, text: &str) {
        self.field(id, BINARY);
        self.bare_text(text);
    }

    fn bare_text(&mut self, text: &str) {
        varint(&mut self.bytes, text.len() as u64);
        self.bytes.extend(text.as_bytes());
    }

    fn list_head(&mut self, id: u8, count: usize, kind: u8) {
        self.field(id, LIST);
        if count < 15 {
            self.bytes.push((count as u8) << 4 | kind);
        } else {
            self.bytes.push(0xf0 | kind);
            varint(&mut self.bytes, count as u64);
        }
    }

    fn numbers(&mut self, id: u8, numbers: &[i64]) {
        self.list_head(id, numbers.len(), I32);
        numbers.iter().for_each(|&number| self.zigzag(number));
    }

    fn texts(&mut self, id: u8, texts: &[&str]) {
        self.list_head(id, texts.len(), BINARY);
        texts.iter().for_each(|text| self.bare_text(text));
    }

    fn list(&mut self, id: u8, count: usize, write: impl Fn(&mut Thrift, usize)) {
        self.list_head(id, count, STRUCT);
        for index in 0..count {
            let mut item = Thrift::default();
            write(&mut item, index);
            self.bytes.extend(item.stop());
        }
    }

    fn structure(&mut self, id: u8, write: impl FnOnce(&mut Thrift)) {
        self.field(id, STRUCT);
        let mut inner = Thrift::default();
        write(&mut inner);
        self.bytes.extend(inner.stop());
    }

    fn stop(mut self) -> Vec<u8> {
        self.bytes.push(0);
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_runs() {
        assert_eq!(runs(&[true, true, true, false, true]), [6, 1, 2, 0, 2, 1]);
        assert_eq!(runs(&[false; 100]), [0xc8, 1, 0]);
        assert_eq!(runs(&[]), [0u8; 0]);
    }

    #[test]
    fn numbers_and_long_lists_are_written_as_the_protocol_has_it() {
        let mut thrift = Thrift::default();
        thrift.number(1, -1);
        thrift.long(3, 300);
        thrift.numbers(4, &[0; 15]);
        let mut expected = vec![0x15, 1, 0x26, 0xd8, 4, 0x19, 0xf5, 15];
        expected.extend([0; 15]);
        expected.push(0);
        assert_eq!(thrift.stop(), expected);
    }

    #[test]
    fn a_file_begins_and_ends_as_one_and_says_where_its_footer_is() {
        let columns = vec![("id".to_owned(), Kind::Text), ("ok".to_owned(), Kind::Boolean)];
        let (mut parquet, mut file) = Parquet::begin(columns);
        let row = |id: &str, ok: Option<bool>| vec![Cell::Text(id.to_owned()), ok.map_or(Cell::Nothing, Cell::Boolean)];
        let first = file.len() as u64;
        file.extend(parquet.group(&[row("a", Some(true)), row("b", None)]));
        assert_eq!(parquet.groups[0].chunks[0].offset as u64, first);
        assert_eq!(parquet.at as usize, file.len());
        file.extend(parquet.end());
        assert!(file.starts_with(MAGIC) && file.ends_with(MAGIC));
        let length = u32::from_le_bytes(file[file.len() - 8..file.len() - 4].try_into().unwrap()) as usize;
        let footer = &file[file.len() - 8 - length..file.len() - 8];
        assert_eq!(footer.first(), Some(&0x15), "a version");
        assert_eq!(footer.last(), Some(&0));
    }
}
