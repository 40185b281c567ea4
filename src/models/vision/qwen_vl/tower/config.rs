//! A tower of Qwen-VL as data: what the versions have in common, with its checks and the memory that an image takes.

use std::path::Path;

use model_actors::Bytes;
use serde::Deserialize;

use super::EPSILON;
use crate::error::Result;
use crate::kernels::Activation;
use crate::limits::MAX_MODEL_SIDE;
use crate::models::config_file::{invalid, unsupported};
use crate::models::transformer::{Bias, Names, NormPlacement, Rope, Sizes, TransformerConfig, check_side};
use crate::models::vision::any_size::{MAX_MERGED, MAX_PATCH, PART_ROWS};

/// Most learned positions along a side.
const MAX_GRID: usize = 4096;

/// The tower that is not loaded.
#[derive(Debug, Clone)]
pub(in super::super) struct TowerConfig {
    pub(in super::super) transformer: TransformerConfig,
    pub(in super::super) names: &'static TowerNames,
    /// Presence of a bias in the layer that makes vectors of patches.
    pub(in super::super) patch_bias: Bias,
    /// Number of pixels along a patch's side.
    pub(in super::super) patch_size: usize,
    /// Number of patches along a side of those that are merged.
    pub(in super::super) spatial_merge_size: usize,
    pub(in super::super) temporal_patch_size: usize,
    /// Width of the text.
    pub(in super::super) out_hidden_size: usize,
    /// Number of learned positions, a square; `None` where rotation alone tells the places.
    pub(in super::super) learned_positions: Option<usize>,
    pub(in super::super) windows: Option<Windows>,
    /// The blocks whose output is added to the text's first layers.
    pub(in super::super) deepstack_visual_indexes: Vec<usize>,
}

/// Refuses other than three colours, and a size of patches that is another where the file has it again.
pub(in super::super) fn check_patches(
    file: &Path,
    [in_channels, in_chans]: [usize; 2],
    [patch, again]: [usize; 2],
) -> Result<()> {
    let all =
        [("in_channels", in_channels, 3), ("in_chans", in_chans, 3), ("spatial_patch_size", again, patch)];
    match all.into_iter().find(|(_, found, only)| found != only) {
        Some((name, found, only)) => Err(unsupported(file, name, &found.to_string(), only.to_string())),
        None => Ok(()),
    }
}

/// Attention within windows.
#[derive(Debug, Clone)]
pub(in super::super) struct Windows {
    /// Number of merged patches along a side.
    pub(in super::super) side: usize,
    /// The blocks in which a patch sees the whole image all the same.
    pub(in super::super) full: Vec<usize>,
}

/// Names of a tower's tensors.
#[derive(Debug)]
pub(in super::super) struct TowerNames {
    pub(in super::super) blocks: Names,
    /// Of a merger: its norm, and its two layers.
    pub(in super::super) merger: [&'static str; 3],
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "lowercase")]
enum RopeType {
    Default,
    Axial,
}

/// The rotary embedding of a tower.
#[derive(Debug, Clone, Default, Deserialize)]
#[expect(dead_code, reason = "the type is only checked")]
pub(in super::super) struct RopeSettings {
    rope_theta: Option<f64>,
    /// Nothing but the names that the one form has had.
    rope_type: Option<RopeType>,
}

/// The blocks of a tower: those of a vision transformer, with heads that are rotated by line and column.
pub(in super::super) fn blocks(
    file: &Path,
    sizes: Sizes,
    activation: Activation,
    rope: Option<&RopeSettings>,
) -> Result<TransformerConfig> {
    let blocks = TransformerConfig::encoder(file, sizes, NormPlacement::Pre, activation, EPSILON)?;
    let base = rope.and_then(|rope| rope.rope_theta).unwrap_or(10_000.0);
    if !base.is_finite() || base <= 1.0 {
        return Err(invalid(file, "rope_theta is not a number above 1"));
    }
    let head_size = blocks.attention.head_size;
    if !head_size.is_multiple_of(4) {
        return Err(invalid(file, "the size of a head is no multiple of 4"));
    }
    Ok(blocks.with_rope(Rope::by_line_and_column(head_size, base)))
}

impl TowerConfig {
    /// The configuration, if it can be computed with. Families call it last.
    pub(in super::super) fn checked(self, file: &Path) -> Result<Self> {
        let (patch, merge, time) = (self.patch_size, self.spatial_merge_size, self.temporal_patch_size);
        let sound = (1..=MAX_PATCH).contains(&patch)
            && [merge, time].iter().all(|count| (1..=MAX_MERGED).contains(count));
        if !sound {
            let reason = format!(
                "patch_size {patch}, spatial_merge_size {merge} or temporal_patch_size {time} are out of range"
            );
            return Err(invalid(file, reason));
        }
        check_side(file, "out_hidden_size", self.out_hidden_size)?;
        if let Some(count) = self.learned_positions {
            let side = count.isqrt();
            if !(1..=MAX_GRID).contains(&side) || side * side != count {
                return Err(invalid(file, format!("num_position_embeddings {count} is no square")));
            }
        }
        if self.windows.as_ref().is_some_and(|windows| !(1..=MAX_GRID).contains(&windows.side)) {
            return Err(invalid(file, "window_size is less than a merged patch, or more than an image"));
        }
        let deep = &self.deepstack_visual_indexes;
        if !deep.is_sorted_by(|left, right| left < right)
            || deep.last().is_some_and(|last| *last >= self.transformer.layers.len())
        {
            return Err(invalid(file, "deepstack_visual_indexes are not layers of the tower in order"));
        }
        Ok(self)
    }

    /// Length of a patch's vector.
    pub(super) fn width(&self) -> usize {
        self.transformer.width
    }

    /// Width of a patch's vector, number of patches that are merged, and width of the text.
    pub(super) fn merger_sizes(&self) -> [usize; 3] {
        [self.width(), self.merged(), self.out_hidden_size]
    }

    /// Number of patches of a merged one.
    pub(in super::super) fn merged(&self) -> usize {
        self.spatial_merge_size * self.spatial_merge_size
    }

    /// Side in merged patches of the windows within which a block attends; `None` where it sees the whole image.
    pub(super) fn window_of(&self, block: usize) -> Option<usize> {
        let windows = self.windows.as_ref().filter(|windows| !windows.full.contains(&block));
        windows.map(|windows| windows.side)
    }

    /// Number of lines of patches that are opened together.
    pub(super) fn lines_together(&self) -> usize {
        self.spatial_merge_size * self.windows.as_ref().map_or(1, |windows| windows.side)
    }

    /// Bytes that an image of so many patches needs besides the weights: its pixels and what goes to the
    /// text; a block's input, its queries, keys and values, and its output; and the widest moment of a part,
    /// which is one of a block, or the cutting of patches, or a merger.
    pub(in super::super) fn scratch(&self, patches: usize) -> Bytes {
        let [pixels, width, out, merged] =
            [3 * self.patch_size * self.patch_size, self.width(), self.out_hidden_size, self.merged()]
                .map(|numbers| numbers as u64);
        // Those of a tower with windows are put into the order of lines.
        let copies = self.deepstack_visual_indexes.len() as u64 + 1 + u64::from(self.windows.is_some());
        let kept = copies.saturating_mul(out.div_ceil(merged.max(1)));
        let row = pixels.saturating_add(kept).saturating_add(5 * width);
        let bytes = |row: u64, rows: usize| Bytes(row.saturating_mul(rows as u64).saturating_mul(4));
        // Lines of merged patches are opened whole, however long they are.
        let line = (MAX_MODEL_SIDE / self.patch_size.max(1)).saturating_mul(self.lines_together());
        let opening = bytes(3 * (pixels + width), patches.min(PART_ROWS.max(line)));
        let rows = patches.min(PART_ROWS);
        let merger = bytes((3 * width).saturating_add(out.div_ceil(merged.max(1))), rows);
        bytes(row, patches) + self.transformer.scratch(rows, patches).max(opening).max(merger)
    }
}
