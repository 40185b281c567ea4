//! The compressed data of one scan into the coefficients of its channels: all of a block at once, or for a progressive
//! file some of its coefficients, or one more bit of them.

use super::header::{Component, Frame, ZIGZAG};
use super::huffman::{Bits, Table, Tables};

/// What a scan holds.
pub(super) struct Scan {
    /// A channel, its code for means and its code for the rest.
    pub(super) components: Vec<(usize, usize, usize)>,
    /// The coefficients, in written order, from and to.
    pub(super) start: usize,
    pub(super) end: usize,
    /// The bit that was sent before, or 0 for none, and the lowest bit that is sent now.
    pub(super) high: u8,
    pub(super) low: u8,
}

impl Scan {
    pub(super) fn is_valid(&self, progressive: bool) -> bool {
        let blocks_fit = (1..=4).contains(&self.components.len());
        if !progressive {
            return blocks_fit && (self.start, self.end, self.high, self.low) == (0, 63, 0, 0);
        }
        let range_fits = match self.start {
            0 => self.end == 0,
            start => start <= self.end && self.end < 64 && self.components.len() == 1,
        };
        blocks_fit && range_fits && self.low <= 13 && (self.high == 0 || self.high == self.low + 1)
    }
}

/// What is kept from block to block.
struct State<'a> {
    bits: Bits<'a>,
    /// The mean of each channel's last block.
    means: Vec<i32>,
    /// Blocks to come that have nothing in this scan.
    empty: u32,
}

/// Reads a scan and gives the number of its bytes.
pub(super) fn run(
    frame: &mut Frame,
    scan: &Scan,
    tables: &Tables,
    restart_interval: usize,
    bytes: &[u8],
) -> Option<usize> {
    let mut state = State { bits: Bits::new(bytes), means: vec![0; frame.components.len()], empty: 0 };
    let (groups_across, groups_down) = match scan.components.as_slice() {
        // Alone, a channel has no more blocks than its samples fill.
        &[(index, ..)] => {
            let component = frame.components.get(index)?;
            (component.width.div_ceil(8), component.height.div_ceil(8))
        }
        _ => (frame.width.div_ceil(8 * frame.most_across), frame.height.div_ceil(8 * frame.most_down)),
    };
    for group in 0..groups_across * groups_down {
        if restart_interval > 0 && group > 0 && group % restart_interval == 0 {
            state.bits.restart()?;
            state.means.fill(0);
            state.empty = 0;
        }
        let (row, column) = (group / groups_across, group % groups_across);
        for &(index, mean, rest) in &scan.components {
            let component = frame.components.get_mut(index)?;
            let (across, down) = match scan.components.len() {
                1 => (1, 1),
                _ => (component.across, component.down),
            };
            for block in 0..across * down {
                let (y, x) = (row * down + block / across, column * across + block % across);
                let block = block_at(component, y, x)?;
                read_block(
                    &mut state,
                    frame.progressive,
                    scan,
                    index,
                    tables.mean(mean),
                    tables.rest(rest),
                    block,
                )?;
            }
        }
        // A file that ends early would otherwise cost as much as a whole one.
        if state.bits.is_over() {
            return None;
        }
    }
    state.bits.end()
}

fn block_at(component: &mut Component, y: usize, x: usize) -> Option<&mut [i16; 64]> {
    let index = y * component.blocks_across + x;
    component.coefficients.as_chunks_mut::<64>().0.get_mut(index)
}

fn read_block(
    state: &mut State<'_>,
    progressive: bool,
    scan: &Scan,
    channel: usize,
    mean: Option<&Table>,
    rest: Option<&Table>,
    block: &mut [i16; 64],
) -> Option<()> {
    match (progressive, scan.start, scan.high) {
        (false, ..) => {
            read_mean(state, channel, mean?, 0, block)?;
            read_whole(&mut state.bits, rest?, block)
        }
        (true, 0, 0) => read_mean(state, channel, mean?, scan.low, block),
        (true, 0, _) => {
            block[0] |= (state.bits.take(1) << scan.low) as i16;
            Some(())
        }
        (true, _, 0) => read_first(state, rest?, scan, block),
        (true, ..) => refine(state, rest?, scan, block),
    }
}

/// The difference to the mean of the block before.
fn read_mean(
    state: &mut State<'_>,
    channel: usize,
    table: &Table,
    low: u8,
    block: &mut [i16; 64],
) -> Option<()> {
    let size = state.bits.symbol(table).filter(|size| *size <= 15)?;
    let mean = state.means.get_mut(channel)?;
    *mean = mean.wrapping_add(state.bits.signed(size));
    block[0] = (*mean << low) as i16;
    Some(())
}

fn read_whole(bits: &mut Bits<'_>, table: &Table, block: &mut [i16; 64]) -> Option<()> {
    let mut at = 1;
    while at < 64 {
        let symbol = bits.symbol(table)?;
        let (zeros, size) = (usize::from(symbol >> 4), symbol & 15);
        match (zeros, size) {
            (15, 0) => at += 16,
            (_, 0) => break,
            _ => {
                at += zeros;
                *block.get_mut(*ZIGZAG.get(at)?)? = bits.signed(size) as i16;
                at += 1;
            }
        }
    }
    Some(())
}

/// The upper bits of some coefficients.
fn read_first(state: &mut State<'_>, table: &Table, scan: &Scan, block: &mut [i16; 64]) -> Option<()> {
    if state.empty > 0 {
        state.empty -= 1;
        return Some(());
    }
    let mut at = scan.start;
    while at <= scan.end {
        let symbol = state.bits.symbol(table)?;
        let (zeros, size) = (symbol >> 4, symbol & 15);
        match (zeros, size) {
            (15, 0) => at += 16,
            (_, 0) => {
                state.empty = (1 << zeros) + state.bits.take(zeros) - 1;
                break;
            }
            _ => {
                at += usize::from(zeros);
                if at > scan.end {
                    return None;
                }
                *block.get_mut(*ZIGZAG.get(at)?)? = (state.bits.signed(size) << scan.low) as i16;
                at += 1;
            }
        }
    }
    Some(())
}

/// One more bit of the coefficients that are not zero, and those that become so with it.
fn refine(state: &mut State<'_>, table: &Table, scan: &Scan, block: &mut [i16; 64]) -> Option<()> {
    let step = 1i16 << scan.low;
    let mut at = scan.start;
    if state.empty == 0 {
        while at <= scan.end {
            let symbol = state.bits.symbol(table)?;
            let (mut zeros, size) = (symbol >> 4, symbol & 15);
            let mut new = 0;
            match size {
                0 if zeros < 15 => {
                    state.empty = (1 << zeros) + state.bits.take(zeros);
                    break;
                }
                0 => {}
                1 => new = if state.bits.take(1) == 1 { step } else { -step },
                _ => return None,
            }
            // The coefficients that are there already lie in between and are not counted.
            while at <= scan.end {
                let value = block.get_mut(*ZIGZAG.get(at)?)?;
                at += 1;
                if *value != 0 {
                    correct(&mut state.bits, value, step);
                } else if zeros == 0 {
                    *value = new;
                    break;
                } else {
                    zeros -= 1;
                }
            }
        }
    }
    if state.empty > 0 {
        for place in ZIGZAG.get(at..=scan.end).unwrap_or_default() {
            let value = block.get_mut(*place)?;
            if *value != 0 {
                correct(&mut state.bits, value, step);
            }
        }
        state.empty -= 1;
    }
    Some(())
}

fn correct(bits: &mut Bits<'_>, value: &mut i16, step: i16) {
    if bits.take(1) == 1 && *value & step == 0 {
        *value = value.wrapping_add(if *value > 0 { step } else { -step });
    }
}
