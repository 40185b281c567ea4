//! `AutoencoderTiny` (TAESD): latents to colours and back by few convolutions, which were distilled from those of a large
//! autoencoder and see the same latents. It stands in for that one, or makes previews beside it; for previews its encoder is
//! not loaded. The reference is diffusers.

use std::path::Path;

use candle_core::Tensor;
use model_actors::Bytes;
use serde::Deserialize;

use super::layers::ScopedReader;
use super::pipeline::Watch;
use super::repository::{MAX_COUNT, MAX_LEVELS, MAX_WIDTH, Repository, invalid};
use super::resnet::upsample_nearest;
use crate::error::Result;
use crate::kernels::Convolution;

/// True for the tensors that a model for previews has.
pub(super) fn is_decoder(tensor: &str) -> bool {
    !tensor.starts_with("encoder.")
}

/// Name of the class in configurations.
pub(super) const CLASS: &str = "AutoencoderTiny";

/// Settings that have only one supported value.
const ONLY: &[(&str, &str)] = &[
    ("act_fn", "\"relu\""),
    ("out_channels", "3"),
    ("upsample_fn", "\"nearest\""),
    ("upsampling_scaling_factor", "2"),
];

/// `config.json` of the component, with the defaults of diffusers.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub(super) struct TinyConfig {
    in_channels: usize,
    encoder_block_out_channels: Vec<usize>,
    num_encoder_blocks: Vec<usize>,
    decoder_block_out_channels: Vec<usize>,
    num_decoder_blocks: Vec<usize>,
    pub(super) latent_channels: usize,
    scaling_factor: f64,
    shift_factor: Option<f64>,
}

impl Default for TinyConfig {
    fn default() -> Self {
        Self {
            in_channels: 3,
            encoder_block_out_channels: vec![64; 4],
            num_encoder_blocks: vec![1, 3, 3, 3],
            decoder_block_out_channels: vec![64; 4],
            num_decoder_blocks: vec![3, 3, 3, 1],
            latent_channels: 4,
            scaling_factor: 1.0,
            shift_factor: None,
        }
    }
}

impl TinyConfig {
    /// Reads the configuration of the component in a folder, whose name ends with a slash.
    pub(super) fn read(repository: &Repository<'_>, folder: &str, parts: Parts) -> Result<Self> {
        let (path, config): (_, Self) = repository.config(&format!("{folder}config.json"), &[CLASS], ONLY)?;
        config.check(&path)?;
        match parts {
            Parts::Both => config.check_encoder(&path)?,
            Parts::Decoder => {}
        }
        Ok(config)
    }

    fn check(&self, path: &Path) -> Result<()> {
        let (widths, blocks) = (&self.decoder_block_out_channels, &self.num_decoder_blocks);
        let (levels, width) = (widths.len(), self.width());
        if !(1..=MAX_LEVELS).contains(&levels) || blocks.len() != levels {
            let reason = format!(
                "it has {levels} decoder_block_out_channels; 1 to {MAX_LEVELS} are allowed, as many as num_decoder_blocks"
            );
            return Err(invalid(path, reason));
        }
        if widths.iter().any(|other| *other != width) {
            return Err(invalid(path, "its decoder_block_out_channels are not all the same"));
        }
        for (name, size, most) in [
            ("decoder_block_out_channels", width, MAX_WIDTH),
            ("latent_channels", self.latent_channels, MAX_WIDTH),
        ] {
            if !(1..=most).contains(&size) {
                return Err(invalid(path, format!("{name} has {size}; 1 to {most} are allowed")));
            }
        }
        if let Some(count) = blocks.iter().find(|count| **count > MAX_COUNT) {
            return Err(invalid(path, format!("num_decoder_blocks has {count}; {MAX_COUNT} are allowed")));
        }
        if !self.scaling_factor.is_normal() || !self.shift_factor.unwrap_or(0.0).is_finite() {
            return Err(invalid(path, "scaling_factor or shift_factor cannot be computed with"));
        }
        Ok(())
    }

    fn check_encoder(&self, path: &Path) -> Result<()> {
        let levels = self.decoder_block_out_channels.len();
        let (widths, blocks) = (&self.encoder_block_out_channels, &self.num_encoder_blocks);
        let is_even = widths.iter().all(|width| widths.first() == Some(width));
        let fits = widths.len() == levels && blocks.len() == levels && self.in_channels == 3;
        let most = widths.iter().chain(blocks).copied().max().unwrap_or_default();
        if !fits
            || !is_even
            || self.encoder_width() == 0
            || most > MAX_WIDTH
            || blocks.iter().any(|count| *count > MAX_COUNT)
        {
            let reason =
                "encoder_block_out_channels, num_encoder_blocks or in_channels do not fit the decoder's";
            return Err(invalid(path, reason));
        }
        Ok(())
    }

    fn width(&self) -> usize {
        self.decoder_block_out_channels.first().copied().unwrap_or_default()
    }

    fn encoder_width(&self) -> usize {
        self.encoder_block_out_channels.first().copied().unwrap_or_default()
    }

    /// Pixels along a side for each latent.
    pub(super) fn scale(&self) -> usize {
        1 << (self.decoder_block_out_channels.len() - 1)
    }

    /// Memory that decoding to or encoding so many pixels needs besides the weights: a block's input, and what goes into and comes
    /// out of a convolution.
    pub(super) fn scratch(&self, pixels: usize) -> Bytes {
        let width = self.encoder_width().max(self.width());
        Bytes((pixels.saturating_mul(width) as u64).saturating_mul(3 * 4))
    }

    /// The layers of the encoder, if the file has them.
    fn load_encoder(&self, reader: &ScopedReader<'_>) -> Result<Option<Encoder>> {
        let (layers, width) = (reader.at("encoder.layers"), self.encoder_width());
        if !layers.contains("0.weight") {
            return Ok(None);
        }
        let (mut index, mut levels) = (0, Vec::new());
        for (level, count) in self.num_encoder_blocks.iter().enumerate() {
            let conv_in = match level {
                0 => layers.at(index).convolution(3, width, 1)?,
                _ => layers.at(index).convolution_without_bias(width, 2)?,
            };
            let blocks = (index + 1..=index + count).map(|index| Block::load(&layers.at(index), width));
            levels.push(EncoderLevel { conv_in, blocks: blocks.collect::<Result<_>>()? });
            index += 1 + count;
        }
        let conv_out = layers.at(index).convolution(width, self.latent_channels, 1)?;
        Ok(Some(Encoder { levels, conv_out }))
    }

    /// Loads the decoder, and the encoder if it is wanted and there.
    pub(super) fn load(&self, reader: &ScopedReader<'_>, parts: Parts) -> Result<TinyAutoencoder> {
        let encoder = match parts {
            Parts::Both => self.load_encoder(reader)?,
            Parts::Decoder => None,
        };
        let layers = reader.at("decoder.layers");
        let width = self.width();
        let conv_in = layers.at(0).convolution(self.latent_channels, width, 1)?;
        // The layers are numbered with their activations and upsamplings, which have no weights.
        let mut index = 2;
        let last = self.num_decoder_blocks.len().saturating_sub(1);
        let mut levels = Vec::new();
        for (level, count) in self.num_decoder_blocks.iter().enumerate() {
            let blocks = (index..index + count).map(|index| Block::load(&layers.at(index), width));
            let blocks = blocks.collect::<Result<_>>()?;
            index += count + usize::from(level != last);
            let conv_out = match level == last {
                true => layers.at(index).convolution(width, 3, 1)?,
                false => layers.at(index).convolution_without_bias(width, 1)?,
            };
            index += 1;
            levels.push(Level { blocks, conv_out });
        }
        let shift_factor = self.shift_factor.unwrap_or(0.0);
        Ok(TinyAutoencoder { scaling_factor: self.scaling_factor, shift_factor, encoder, conv_in, levels })
    }
}

/// The parts of an autoencoder that are to be loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Parts {
    Both,
    Decoder,
}

/// Loaded autoencoder.
pub(super) struct TinyAutoencoder {
    scaling_factor: f64,
    shift_factor: f64,
    encoder: Option<Encoder>,
    conv_in: Convolution,
    levels: Vec<Level>,
}

struct Encoder {
    levels: Vec<EncoderLevel>,
    conv_out: Convolution,
}

/// The convolution to a resolution, and the blocks of it.
struct EncoderLevel {
    conv_in: Convolution,
    blocks: Vec<Block>,
}

/// Blocks of one resolution, and the convolution after them, which is after the upsampling to the next one.
struct Level {
    blocks: Vec<Block>,
    conv_out: Convolution,
}

/// Three convolutions with a residual connection.
struct Block([Convolution; 3]);

impl Block {
    fn load(reader: &ScopedReader<'_>, width: usize) -> Result<Self> {
        let [first, second, third] =
            [0, 2, 4].map(|index| reader.at(format!("conv.{index}")).convolution(width, width, 1));
        Ok(Self([first?, second?, third?]))
    }

    fn forward(&self, image: &Tensor) -> Result<Tensor> {
        let [first, second, third] = &self.0;
        let hidden = second.forward(&first.forward(image)?.relu()?)?.relu()?;
        Ok((third.forward(&hidden)? + image)?.relu()?)
    }
}

impl TinyAutoencoder {
    /// True if the files have the encoder too.
    pub(super) fn has_encoder(&self) -> bool {
        self.encoder.is_some()
    }

    /// Latents as a scheduler has them for colours `(batch, 3, height, width)` from -1 to 1; nothing without an encoder.
    pub(super) fn encode(&self, colours: &Tensor, watch: &Watch<'_>) -> Result<Option<Tensor>> {
        let Some(encoder) = &self.encoder else { return Ok(None) };
        // From 0 to 1 as it was trained.
        let mut hidden = ((colours + 1.0)? / 2.0)?.permute((0, 2, 3, 1))?.contiguous()?;
        for level in &encoder.levels {
            watch.check()?;
            hidden = level.conv_in.forward(&hidden)?;
            for block in &level.blocks {
                watch.check()?;
                hidden = block.forward(&hidden)?;
            }
        }
        let latents = encoder.conv_out.forward(&hidden)?.permute((0, 3, 1, 2))?.contiguous()?;
        Ok(Some(((latents - self.shift_factor)? * self.scaling_factor)?))
    }

    /// Decodes latents as the scheduler left them, `(batch, channels, height, width)`, to colours `(batch, 3,
    /// height · scale, width · scale)`.
    pub(super) fn decode(&self, latents: &Tensor, watch: &Watch<'_>) -> Result<Tensor> {
        let latents = ((latents / self.scaling_factor)? + self.shift_factor)?;
        let latents = ((latents / 3.0)?.tanh()? * 3.0)?;
        let mut hidden = self.conv_in.forward(&latents.permute((0, 2, 3, 1))?.contiguous()?)?.relu()?;
        let last = self.levels.len().saturating_sub(1);
        for (index, level) in self.levels.iter().enumerate() {
            for block in &level.blocks {
                watch.check()?;
                hidden = block.forward(&hidden)?;
            }
            if index != last {
                let (_, height, width, _) = hidden.dims4()?;
                hidden = upsample_nearest(&hidden, 2 * height, 2 * width)?;
            }
            watch.check()?;
            hidden = level.conv_out.forward(&hidden)?;
        }
        // From 0 to 1 as it was trained.
        Ok(((hidden * 2.0)? - 1.0)?.permute((0, 3, 1, 2))?.contiguous()?)
    }
}
