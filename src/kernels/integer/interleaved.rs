//! Rows of quantized blocks in panels: block by block, the parts of a panel's rows lie beside each other. The bytes are
//! those of the file in another order, so that no weight takes more memory than there, and a row is found again to the
//! last bit.

use rayon::prelude::*;

use super::lanes::PANEL;

/// Order of a block's bytes: runs of units of so many bytes, and how many of each.
pub(super) type Layout = [(usize, usize)];

/// Rows of a weight in panels.
#[derive(Debug)]
pub(super) struct Panels {
    whole: Vec<u8>,
    /// Panel of the remaining rows, filled up with zeros; empty where the others take all.
    last: Vec<u8>,
    /// Bytes of a row.
    size: usize,
    layout: &'static Layout,
}

/// Bytes of a block.
pub(super) const fn block_bytes(layout: &Layout) -> usize {
    let (mut index, mut bytes) = (0, 0);
    while index < layout.len() {
        bytes += layout[index].0 * layout[index].1;
        index += 1;
    }
    bytes
}

/// Calls `copy` with the place of each unit of a row of a panel in the panel, its place in the row, and its length.
fn units(layout: &Layout, size: usize, row: usize, mut copy: impl FnMut(usize, usize, usize)) {
    let (mut in_panel, mut in_row) = (0, 0);
    while in_row < size {
        for (unit, count) in layout {
            for _ in 0..*count {
                copy(in_panel + row * unit, in_row, *unit);
                in_panel += unit * PANEL;
                in_row += unit;
            }
        }
    }
}

impl Panels {
    /// Interleaves rows of `size` bytes, whole blocks of this layout, where they lie.
    pub(super) fn interleave(mut bytes: Vec<u8>, size: usize, layout: &'static Layout) -> Self {
        let panel = size * PANEL;
        let rest = bytes.len() / panel * panel;
        let mut last = vec![0; if rest < bytes.len() { panel } else { 0 }];
        last[..bytes.len() - rest].copy_from_slice(&bytes[rest..]);
        bytes.truncate(rest);
        bytes.shrink_to_fit();
        let mut rows = vec![0; panel];
        for panel in bytes.chunks_exact_mut(panel).chain(last.chunks_exact_mut(panel)) {
            rows.copy_from_slice(panel);
            for (row, bytes) in rows.chunks_exact(size).enumerate() {
                units(layout, size, row, |to, from, unit| match unit {
                    // Of a length that the compiler knows.
                    4 => panel[to..to + 4].copy_from_slice(&bytes[from..from + 4]),
                    unit => panel[to..to + unit].copy_from_slice(&bytes[from..from + unit]),
                });
            }
        }
        Self { whole: bytes, last, size, layout }
    }

    /// Bytes of all panels.
    pub(super) fn bytes(&self) -> usize {
        self.whole.len() + self.last.len()
    }

    /// The bytes of one row, as the file has them.
    pub(super) fn row(&self, row: usize) -> Vec<u8> {
        let begin = row / PANEL * PANEL * self.size;
        let panel = self.whole.get(begin..begin + PANEL * self.size).unwrap_or(&self.last);
        let mut bytes = vec![0; self.size];
        units(self.layout, self.size, row % PANEL, |from, to, unit| {
            bytes[to..to + unit].copy_from_slice(&panel[from..from + unit]);
        });
        bytes
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let size = (self.size * PANEL).max(1);
        self.whole.chunks_exact(size).chain(self.last.chunks_exact(size))
    }

    pub(super) fn par_iter(&self) -> impl IndexedParallelIterator<Item = &[u8]> {
        let size = (self.size * PANEL).max(1);
        self.whole.par_chunks_exact(size).chain(self.last.par_chunks_exact(size))
    }
}
