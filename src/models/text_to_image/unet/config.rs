//! `unet/config.json`: settings that published models use are read, others are refused by name.

use std::path::Path;

use model_actors::Bytes;
use serde::Deserialize;

use super::super::layers::SinusoidalEmbedding;
use super::super::repository::{MAX_LEVELS, MAX_SAMPLE, MAX_WIDTH, Repository, invalid};
use crate::error::{Error, Result};

/// Settings that have only one supported value.
const ONLY: &[(&str, &str)] = &[
    ("act_fn", "\"silu\""),
    ("attention_type", "\"default\""),
    ("center_input_sample", "false"),
    ("class_embed_type", "null"),
    ("class_embeddings_concat", "false"),
    ("conv_in_kernel", "3"),
    ("conv_out_kernel", "3"),
    ("cross_attention_norm", "null"),
    ("downsample_padding", "1"),
    ("dual_cross_attention", "false"),
    ("encoder_hid_dim_type", "null"),
    ("mid_block_only_cross_attention", "false"),
    ("mid_block_scale_factor", "1"),
    ("mid_block_type", "\"UNetMidBlock2DCrossAttn\""),
    ("num_attention_heads", "null"),
    ("num_class_embeds", "null"),
    ("only_cross_attention", "false"),
    ("resnet_out_scale_factor", "1"),
    ("resnet_skip_time_act", "false"),
    ("resnet_time_scale_shift", "\"default\""),
    ("reverse_transformer_layers_per_block", "null"),
    ("time_embedding_act_fn", "null"),
    ("time_embedding_type", "\"positional\""),
    ("timestep_post_act", "null"),
];

/// One number for all levels, or one for each.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum Each {
    All(usize),
    One(Vec<usize>),
}

impl Each {
    fn at(&self, level: usize) -> usize {
        match self {
            Self::All(number) => *number,
            Self::One(numbers) => numbers.get(level).copied().unwrap_or_default(),
        }
    }
}

/// Configuration of the network, with the defaults of diffusers.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub(in super::super) struct UnetConfig {
    sample_size: Option<Each>,
    pub(in super::super) in_channels: usize,
    pub(in super::super) out_channels: usize,
    flip_sin_to_cos: bool,
    freq_shift: f32,
    down_block_types: Vec<String>,
    up_block_types: Vec<String>,
    block_out_channels: Vec<usize>,
    layers_per_block: Each,
    pub(super) norm_num_groups: usize,
    pub(super) norm_eps: f64,
    cross_attention_dim: Each,
    transformer_layers_per_block: Each,
    /// Number of heads, in spite of its name.
    attention_head_dim: Each,
    pub(super) use_linear_projection: bool,
    addition_embed_type: Option<String>,
    addition_time_embed_dim: Option<usize>,
    projection_class_embeddings_input_dim: Option<usize>,
    time_embedding_dim: Option<usize>,
    time_cond_proj_dim: Option<usize>,
}

impl Default for UnetConfig {
    fn default() -> Self {
        let names = |names: [&str; 4]| names.map(str::to_owned).to_vec();
        let attending = "CrossAttnDownBlock2D";
        Self {
            sample_size: None,
            in_channels: 4,
            out_channels: 4,
            flip_sin_to_cos: true,
            freq_shift: 0.0,
            down_block_types: names([attending, attending, attending, "DownBlock2D"]),
            up_block_types: names([
                "UpBlock2D",
                "CrossAttnUpBlock2D",
                "CrossAttnUpBlock2D",
                "CrossAttnUpBlock2D",
            ]),
            block_out_channels: vec![320, 640, 1280, 1280],
            layers_per_block: Each::All(2),
            norm_num_groups: 32,
            norm_eps: 1e-5,
            cross_attention_dim: Each::All(1280),
            transformer_layers_per_block: Each::All(1),
            attention_head_dim: Each::All(8),
            use_linear_projection: false,
            addition_embed_type: None,
            addition_time_embed_dim: None,
            projection_class_embeddings_input_dim: None,
            time_embedding_dim: None,
            time_cond_proj_dim: None,
        }
    }
}

/// Configuration of one resolution, from the highest down.
#[derive(Debug, Clone, Copy)]
pub(super) struct LevelConfig {
    pub(super) width: usize,
    pub(super) layers: usize,
    pub(super) heads: usize,
    pub(super) transformer_layers: usize,
    pub(super) cross_attention_width: usize,
    /// True if the blocks on the way down have transformers; the next field is for the way up.
    pub(super) down_cross_attention: bool,
    pub(super) up_cross_attention: bool,
}

impl UnetConfig {
    pub(in super::super) fn read(repository: &Repository<'_>) -> Result<Self> {
        let (path, config): (_, Self) =
            repository.config("unet/config.json", &["UNet2DConditionModel"], ONLY)?;
        config.check(&path)?;
        Ok(config)
    }

    fn check(&self, path: &Path) -> Result<()> {
        let levels = self.block_out_channels.len();
        let counts = [self.down_block_types.len(), self.up_block_types.len()];
        if !(1..=MAX_LEVELS).contains(&levels) || counts != [levels, levels] {
            let reason = format!(
                "it has {levels} block_out_channels; 1 to {MAX_LEVELS} are allowed, as many as block types"
            );
            return Err(invalid(path, reason));
        }
        check_types(
            path,
            &self.down_block_types,
            "down_block_types",
            ["CrossAttnDownBlock2D", "DownBlock2D"],
        )?;
        check_types(path, &self.up_block_types, "up_block_types", ["CrossAttnUpBlock2D", "UpBlock2D"])?;
        for level in self.levels() {
            self.check_level(path, level)?;
        }
        if let Some((height, width)) = self.sample_size()
            && (!(1..=MAX_SAMPLE).contains(&height) || !(1..=MAX_SAMPLE).contains(&width))
        {
            let reason =
                format!("the sample_size is {width}x{height}; 1 to {MAX_SAMPLE} latents a side are allowed");
            return Err(invalid(path, reason));
        }
        let added = [self.time_embedding_dim, self.addition_time_embed_dim, self.added_width()];
        let sides = [self.in_channels, self.out_channels];
        if let Some(side) =
            added.into_iter().flatten().chain(sides).find(|side| !(1..=MAX_WIDTH).contains(side))
        {
            return Err(invalid(path, format!("a width is {side}; 1 to {MAX_WIDTH} are allowed")));
        }
        if let Some(width) = self.time_cond_proj_dim.filter(|width| !(4..=MAX_WIDTH).contains(width)) {
            return Err(invalid(
                path,
                format!("time_cond_proj_dim is {width}; 4 to {MAX_WIDTH} are allowed"),
            ));
        }
        match self.addition_embed_type.as_deref() {
            None => Ok(()),
            Some("text_time") if self.added_width().is_some() && self.addition_time_embed_dim.is_some() => {
                Ok(())
            }
            Some("text_time") => {
                let reason =
                    "text_time needs addition_time_embed_dim and projection_class_embeddings_input_dim";
                Err(invalid(path, reason))
            }
            Some(found) => Err(Error::UnsupportedSetting {
                file: path.to_owned(),
                what: "addition_embed_type".into(),
                found: found.to_owned(),
                supported: "text_time".into(),
            }),
        }
    }

    fn check_level(&self, path: &Path, level: LevelConfig) -> Result<()> {
        let LevelConfig { width, layers, heads, transformer_layers, cross_attention_width, .. } = level;
        let numbers = [width, layers, heads, transformer_layers, cross_attention_width];
        if let Some(number) = numbers.into_iter().find(|number| !(1..=MAX_WIDTH).contains(number)) {
            let reason =
                format!("a number of widths, layers or heads is {number}; 1 to {MAX_WIDTH} are allowed");
            return Err(invalid(path, reason));
        }
        let groups = self.norm_num_groups;
        if groups == 0 || !width.is_multiple_of(groups) || !width.is_multiple_of(heads) {
            let reason =
                format!("the width {width} is no multiple of norm_num_groups {groups} and of {heads} heads");
            return Err(invalid(path, reason));
        }
        Ok(())
    }

    pub(super) fn levels(&self) -> Vec<LevelConfig> {
        let cross_attention = |types: &[String], index: usize| {
            types.get(index).is_some_and(|name| name.starts_with("CrossAttn"))
        };
        let count = self.block_out_channels.len();
        let level = |(index, width): (usize, &usize)| LevelConfig {
            width: *width,
            layers: self.layers_per_block.at(index),
            heads: self.attention_head_dim.at(index),
            transformer_layers: self.transformer_layers_per_block.at(index),
            cross_attention_width: self.cross_attention_dim.at(index),
            down_cross_attention: cross_attention(&self.down_block_types, index),
            up_cross_attention: cross_attention(&self.up_block_types, count - 1 - index),
        };
        self.block_out_channels.iter().enumerate().map(level).collect()
    }

    /// Height and width of the latents that the model was trained on.
    pub(in super::super) fn sample_size(&self) -> Option<(usize, usize)> {
        self.sample_size.as_ref().map(|size| (size.at(0), size.at(1)))
    }

    /// Width of the prompt embeddings.
    pub(in super::super) fn cross_attention_width(&self) -> usize {
        self.cross_attention_dim.at(0)
    }

    /// Width of the timestep embedding.
    pub(super) fn time_width(&self) -> usize {
        self.time_embedding_dim
            .unwrap_or_else(|| self.block_out_channels.first().map_or(0, |width| 4 * width))
    }

    /// Width of the added conditions, and of the sinusoidal embedding of each number among them; none without
    /// them.
    pub(in super::super) fn added(&self) -> Option<(usize, usize)> {
        self.added_width().zip(self.addition_time_embed_dim)
    }

    pub(super) fn added_width(&self) -> Option<usize> {
        self.addition_embed_type.as_ref().and(self.projection_class_embeddings_input_dim)
    }

    /// Width of the sinusoidal embedding of the guidance, in a model that takes its scale as an input.
    pub(in super::super) fn guidance_width(&self) -> Option<usize> {
        self.time_cond_proj_dim
    }

    /// Sinusoidal embedding of timesteps, of this width.
    pub(in super::super) fn sinusoid(&self, width: usize) -> SinusoidalEmbedding {
        SinusoidalEmbedding { width, flip_sin_to_cos: self.flip_sin_to_cos, freq_shift: self.freq_shift }
    }

    /// Memory that a pass over so many latents, of two rows, needs besides the weights: the skip connections,
    /// and the largest moment of a level.
    pub(in super::super) fn scratch(&self, latents: usize) -> Bytes {
        let level = |(index, level): (usize, LevelConfig)| {
            let pixels = ((latents >> (2 * index)).max(1) as u64).saturating_mul(level.width as u64);
            let skips = pixels.saturating_mul(level.layers as u64 + 1);
            // GeGLU is four times as wide, in two halves, beside its input and output.
            (skips, pixels.saturating_mul(12))
        };
        let levels = self.levels().into_iter().enumerate().map(level);
        let (skips, widest) = levels.fold((0u64, 0u64), |(skips, widest), (more, wide)| {
            (skips.saturating_add(more), widest.max(wide))
        });
        Bytes(skips.saturating_add(widest).saturating_mul(2 * 4))
    }
}

fn check_types(path: &Path, found: &[String], what: &'static str, known: [&'static str; 2]) -> Result<()> {
    match found.iter().find(|name| !known.contains(&name.as_str())) {
        Some(name) => Err(invalid(path, format!("{what} has {name}; supported are: {}", known.join(", ")))),
        None => Ok(()),
    }
}
