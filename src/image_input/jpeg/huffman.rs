//! Huffman codes and the bits that they are read from.

/// Bits that are looked up at once; longer codes are rare.
const LOOK: u32 = 9;

/// A code.
#[derive(Clone)]
pub(super) struct Table {
    /// By the next bits: how long the code is that they begin with, and its symbol; length 0 for longer ones.
    short: Vec<(u8, u8)>,
    /// For each length in bits, the first code that is too large for it, aligned to 16 bits, and what to add to a code
    /// to find its symbol.
    long: [(u32, i32); 17],
    symbols: Vec<u8>,
}

impl Table {
    /// From how many codes there are of each length, and the symbols in order of their codes.
    pub(super) fn new(counts: &[u8; 16], symbols: &[u8]) -> Option<Self> {
        let mut short = vec![(0, 0); 1 << LOOK];
        let mut long = [(0, 0); 17];
        let mut code = 0u32;
        let mut next = 0usize;
        for (length, &count) in (1u32..=16).zip(counts) {
            let offset = next as i32 - code as i32;
            for _ in 0..count {
                let symbol = *symbols.get(next)?;
                if length <= LOOK {
                    let begin = (code << (LOOK - length)) as usize;
                    short.get_mut(begin..begin + (1 << (LOOK - length)))?.fill((length as u8, symbol));
                }
                code += 1;
                next += 1;
            }
            if code > 1 << length {
                return None;
            }
            *long.get_mut(length as usize)? = (code << (16 - length), offset);
            code <<= 1;
        }
        Some(Self { short, long, symbols: symbols.to_vec() })
    }
}

/// Four codes for the mean of a block, four for the rest of it.
#[derive(Default)]
pub(super) struct Tables {
    mean: [Option<Table>; 4],
    rest: [Option<Table>; 4],
}

impl Tables {
    /// By the byte in front of a table.
    pub(super) fn set(&mut self, head: u8, table: Table) -> Option<()> {
        let tables = match head >> 4 {
            0 => &mut self.mean,
            1 => &mut self.rest,
            _ => return None,
        };
        *tables.get_mut(usize::from(head & 15))? = Some(table);
        Some(())
    }

    pub(super) fn mean(&self, index: usize) -> Option<&Table> {
        self.mean.get(index)?.as_ref()
    }

    pub(super) fn rest(&self, index: usize) -> Option<&Table> {
        self.rest.get(index)?.as_ref()
    }
}

/// The bits of a scan, up to a marker.
pub(super) struct Bits<'a> {
    bytes: &'a [u8],
    at: usize,
    /// The next bits, the first one topmost.
    buffer: u64,
    count: u32,
    /// Bits that were made up behind the end.
    missing: u32,
}

impl<'a> Bits<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0, buffer: 0, count: 0, missing: 0 }
    }

    /// At least 32 bits; behind the end there are zeros.
    fn fill(&mut self) {
        while self.count <= 56 {
            let byte = match (self.bytes.get(self.at), self.bytes.get(self.at + 1)) {
                (Some(0xFF), Some(0)) => {
                    self.at += 2;
                    0xFF
                }
                (Some(0xFF), _) | (None, _) => {
                    self.missing += 8;
                    0
                }
                (Some(&byte), _) => {
                    self.at += 1;
                    byte
                }
            };
            self.buffer |= u64::from(byte) << (56 - self.count);
            self.count += 8;
        }
    }

    fn drop(&mut self, count: u32) {
        self.buffer <<= count;
        self.count -= count;
    }

    /// So many bits, at most 16, as a number.
    pub(super) fn take(&mut self, count: u8) -> u32 {
        if self.count < 32 {
            self.fill();
        }
        if count == 0 {
            return 0;
        }
        let value = (self.buffer >> (64 - u32::from(count))) as u32;
        self.drop(count.into());
        value
    }

    /// A number of so many bits whose first bit tells its sign.
    pub(super) fn signed(&mut self, count: u8) -> i32 {
        let value = self.take(count) as i32;
        if count > 0 && value < 1 << (count - 1) { value - (1 << count) + 1 } else { value }
    }

    /// The symbol of the next code.
    pub(super) fn symbol(&mut self, table: &Table) -> Option<u8> {
        if self.count < 32 {
            self.fill();
        }
        let &(length, symbol) = table.short.get((self.buffer >> (64 - LOOK)) as usize)?;
        if length > 0 {
            self.drop(length.into());
            return Some(symbol);
        }
        let next = (self.buffer >> 48) as u32;
        for length in LOOK + 1..=16 {
            let &(end, offset) = table.long.get(length as usize)?;
            if next < end {
                self.drop(length);
                let index = (next >> (16 - length)) as i32 + offset;
                return table.symbols.get(usize::try_from(index).ok()?).copied();
            }
        }
        None
    }

    /// Whether more was taken than there is.
    pub(super) fn is_over(&self) -> bool {
        self.missing > self.count
    }

    /// Passes the marker that separates two restarts.
    pub(super) fn restart(&mut self) -> Option<()> {
        if self.is_over() {
            return None;
        }
        (self.buffer, self.count, self.missing) = (0, 0, 0);
        match (self.bytes.get(self.at)?, self.bytes.get(self.at + 1)?) {
            (0xFF, 0xD0..=0xD7) => {
                self.at += 2;
                Some(())
            }
            _ => None,
        }
    }

    /// The bytes of the scan, if no more was taken than they hold.
    pub(super) fn end(&self) -> Option<usize> {
        (!self.is_over()).then_some(self.at)
    }
}
