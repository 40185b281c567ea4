//! Parts that vision towers for images of any size share: the order of patches, and the steps of a crop that has very
//! many of them in bounded parts. Which patches see each other, and what is made of them, is left to the towers.

mod order;

use std::ops::Range;

use candle_core::Tensor;

use super::{Unfinished, misfit};
use crate::error::Result;
use crate::kernels::rotary::Position;
use crate::kernels::{patchify, scaled_dot_product_attention};
use crate::models::towers::pick;
use crate::models::transformer::{AttentionConfig, Block, Rope};
pub(super) use order::{Places, line_by_line, window_rows};

/// Rows of a part. A crop of no more is opened, goes through a layer, and has kept what is kept of it in one
/// part; of 65,536, a part takes no longer, or about as long, as the whole layer of such a crop.
pub(super) const PART_ROWS: usize = 4096;

/// Maximum number of pixels along a patch's side.
pub(super) const MAX_PATCH: usize = 256;
/// Maximum number of patches along a side of those that are merged, and most pictures in a row that a patch spans.
pub(super) const MAX_MERGED: usize = 16;

/// The next lines of a crop's patches of `side` pixels a side as `embed` makes rows of their pixels and places, and after
/// the last all of them. Lines are opened `together`, as those of merged patches or of windows.
pub(super) fn open_patches(
    parts: &mut Option<Unfinished>,
    crop: &Tensor,
    Places { across, places, .. }: &Places,
    [side, width, together, part_rows]: [usize; 4],
    embed: impl FnOnce(&Tensor, &[(usize, usize)]) -> Result<Tensor>,
) -> Result<Option<Tensor>> {
    let line = (across * together).max(1);
    let most = (part_rows / line).max(1) * line;
    next_rows(parts, [places.len(), width], most, crop, |rows| {
        let places = places.get(rows.clone()).ok_or_else(misfit)?;
        let (first, count) = (rows.start / (*across).max(1), rows.len() / (*across).max(1));
        let pixels = patchify(&crop.narrow(1, first * side, count * side)?.contiguous()?, side)?;
        let pixels = pick(&pixels, places.iter().map(|(line, column)| (line - first) * across + column))?;
        embed(&pixels, places)
    })
}

/// A block over the rows of one crop.
pub(super) struct BlockStep<'a> {
    pub(super) block: &'a Block,
    pub(super) attention: &'a AttentionConfig,
    /// Rotates queries and keys by line and column.
    pub(super) rope: &'a Rope,
    /// Line and column of each row's patch.
    pub(super) places: &'a [(usize, usize)],
    /// The rows of each window, which see each other; without any, all do.
    pub(super) windows: Option<&'a [Range<usize>]>,
    /// Rows that go through linear layers at a time.
    pub(super) part_rows: usize,
}

impl BlockStep<'_> {
    /// The next part, and at the block's end its output. First all rows get their queries, keys and values; then some at a
    /// time see all others and go through the rest of the block. A crop of few rows takes the block in one part.
    pub(super) fn advance(&self, hidden: &Tensor, parts: &mut Option<Unfinished>) -> Result<Option<Tensor>> {
        let (count, width) = hidden.dims2()?;
        let mut state = match parts.take() {
            Some(state) => state,
            None => {
                let empty = || Tensor::zeros((count, width), hidden.dtype(), hidden.device());
                Unfinished {
                    qkv: vec![empty()?, empty()?, empty()?],
                    projected: 0,
                    out: empty()?,
                    finished: 0,
                }
            }
        };
        loop {
            if state.projected < count {
                let rows = state.projected..count.min(state.projected + self.part_rows);
                self.project(hidden, &mut state, rows)?;
            } else {
                // As many products of a query and a key as a small crop has in all.
                let seen = self.windows.into_iter().flatten().map(Range::len).max().unwrap_or(count).max(1);
                let most = (self.part_rows.saturating_mul(self.part_rows) / seen)
                    .clamp((self.part_rows / 16).max(1), self.part_rows);
                let rows = state.finished..count.min(state.finished + most);
                self.finish(hidden, &mut state, rows)?;
            }
            if state.finished >= count {
                return Ok(Some(state.out));
            }
            if count > self.part_rows {
                *parts = Some(state);
                return Ok(None);
            }
        }
    }

    /// Queries, keys and values of some rows.
    fn project(&self, hidden: &Tensor, state: &mut Unfinished, rows: Range<usize>) -> Result<()> {
        let head_size = self.attention.head_size;
        let width = self.attention.heads * head_size;
        let places = self.places.get(rows.clone()).ok_or_else(misfit)?.iter();
        let positions: Vec<Position> =
            places.map(|(line, column)| [*line as u32, *column as u32, 0]).collect();
        let rope_table = self.rope.table_at(&positions);
        let qkv = self.block.qkv(&hidden.narrow(0, rows.start, rows.len())?)?;
        for (index, to) in state.qkv.iter().enumerate() {
            let part = qkv.narrow(1, index * width, width)?.contiguous()?;
            let part = if index < 2 { rope_table.rotate_rows(&part, head_size)? } else { part };
            to.slice_set(&part, 0, rows.start)?;
        }
        state.projected = rows.end;
        Ok(())
    }

    /// The block's output for some rows, once all have their keys and values.
    fn finish(&self, hidden: &Tensor, state: &mut Unfinished, rows: Range<usize>) -> Result<()> {
        let scale = 1.0 / (self.attention.head_size as f64).sqrt();
        let [queries, keys, values] = state.qkv.as_slice() else { return Err(misfit()) };
        let attend = |rows: Range<usize>, seen: Range<usize>| -> Result<Tensor> {
            let queries = queries.narrow(0, rows.start, rows.len())?.unsqueeze(0)?;
            let [keys, values] =
                [keys, values].map(|all| all.narrow(0, seen.start, seen.len())?.unsqueeze(0));
            let heads = self.attention.heads;
            Ok(scaled_dot_product_attention(&queries, &keys?, &values?, heads, scale, None)?.squeeze(0)?)
        };
        let output = match self.windows {
            None => attend(rows.clone(), 0..hidden.dim(0)?)?,
            Some(windows) => {
                let within = windows.iter().filter_map(|window| {
                    let some = rows.start.max(window.start)..rows.end.min(window.end);
                    (!some.is_empty()).then(|| attend(some, window.clone()))
                });
                Tensor::cat(&within.collect::<Result<Vec<_>>>()?, 0)?
            }
        };
        let out = self.block.finish(output, hidden.narrow(0, rows.start, rows.len())?, &[])?;
        state.out.slice_set(&out, 0, rows.start)?;
        state.finished = rows.end;
        Ok(())
    }
}

/// The next rows of something that has `count` rows of `width` numbers, `most` at a time; with the last of
/// them, all.
pub(super) fn next_rows(
    parts: &mut Option<Unfinished>,
    [count, width]: [usize; 2],
    most: usize,
    like: &Tensor,
    make: impl FnOnce(Range<usize>) -> Result<Tensor>,
) -> Result<Option<Tensor>> {
    if count <= most {
        return make(0..count).map(Some);
    }
    let mut state = match parts.take() {
        Some(state) => state,
        None => {
            let out = Tensor::zeros((count, width), like.dtype(), like.device())?;
            Unfinished { qkv: Vec::new(), projected: 0, out, finished: 0 }
        }
    };
    let rows = state.finished..count.min(state.finished + most);
    state.out.slice_set(&make(rows.clone())?, 0, rows.start)?;
    state.finished = rows.end;
    if state.finished < count {
        *parts = Some(state);
        return Ok(None);
    }
    Ok(Some(state.out))
}
