//! Stable Diffusion 3 and 3.5 (Esser et al., arXiv 2403.03206): two CLIP text encoders and T5 side by side,
//! and a transformer of two streams that is trained by flow matching. The reference is diffusers.

mod transformer;

use candle_core::{DType, Device, IndexOp as _, Tensor};
use model_actors::{Bytes, LoadContext};

use super::autoencoder::{self, Autoencoder, AutoencoderConfig};
use super::clip::{self, EncodedPrompts, Pooling, PromptEncoder, PromptEncoderConfig};
use super::flow_match::{FlowSchedule, SigmaRange};
use super::layers::ScopedReader;
use super::pipeline::{
    Architecture, Conditioning, Defaults, LatentSpace, Pipeline, Read, Scheduler, Settings, Watch,
};
use super::repository::{Component, ComponentWeights, Repository, invalid};
use super::t5::{self, T5, T5Config};
use crate::error::{Error, Result};
use crate::families::Family;
use transformer::{Transformer, TransformerConfig};

/// The family's entry in the list.
pub(super) const FAMILY: Family<Read> =
    Family { model_type: "StableDiffusion3Pipeline", architectures: &[], read: |_, _| Ok(read) };

const FIRST: Component =
    Component { folder: "text_encoder/", file: Component::TRANSFORMERS, is_loaded: clip::is_loaded };
const SECOND: Component =
    Component { folder: "text_encoder_2/", file: Component::TRANSFORMERS, is_loaded: clip::is_loaded };
const THIRD: Component =
    Component { folder: "text_encoder_3/", file: Component::TRANSFORMERS, is_loaded: t5::is_loaded };

/// Tokens of a prompt for T5.
const LENGTH: usize = 256;

/// The configurations.
struct StableDiffusion3 {
    encoders: [PromptEncoderConfig; 2],
    /// A repository may leave it out, to save memory.
    third: Option<T5Config>,
    transformer: TransformerConfig,
    autoencoder: AutoencoderConfig,
    schedule: FlowSchedule,
}

fn read(repository: &Repository<'_>) -> Result<Box<dyn Architecture>> {
    let third = || T5Config::read(repository, THIRD.folder, "tokenizer_3/");
    let model = StableDiffusion3 {
        encoders: [
            PromptEncoderConfig::read(repository, FIRST.folder, "tokenizer/")?,
            PromptEncoderConfig::read(repository, SECOND.folder, "tokenizer_2/")?,
        ],
        third: repository.has("text_encoder_3").then(third).transpose()?,
        transformer: TransformerConfig::read(repository)?,
        autoencoder: AutoencoderConfig::read(repository)?,
        schedule: FlowSchedule::read(repository)?,
    };
    match model.misfit() {
        Some(reason) => Err(invalid(&repository.path, reason)),
        None => Ok(Box::new(model)),
    }
}

impl StableDiffusion3 {
    /// What does not fit together.
    fn misfit(&self) -> Option<String> {
        let [first, second] = &self.encoders;
        let (channels, latent) = (self.transformer.in_channels, self.autoencoder.latent_channels);
        if channels != latent {
            return Some(format!("its transformer takes {channels} channels; its autoencoder has {latent}"));
        }
        let (width, takes) = (first.width() + second.width(), self.transformer.joint_attention_dim);
        let third = self.third.as_ref().map_or(takes, T5Config::width);
        if width > takes || third != takes {
            return Some(format!(
                "its joint_attention_dim is {takes}; the first two text encoders are {width} wide together, the \
                 third {third}"
            ));
        }
        let (has, takes) =
            (first.projection().saturating_add(second.projection()), self.transformer.pooled_projection_dim);
        (has != takes).then(|| {
            format!(
                "its pooled_projection_dim is {takes}, the projection_dim of its text encoders {has} together"
            )
        })
    }
}

impl Architecture for StableDiffusion3 {
    fn defaults(&self) -> Defaults {
        let side = self.transformer.sample_size.saturating_mul(self.autoencoder.scale());
        Defaults { width: side, height: side, steps: 28, guidance: 7.0 }
    }

    fn latent_space(&self) -> LatentSpace {
        let scale = self.autoencoder.scale();
        LatentSpace {
            channels: self.transformer.in_channels,
            scale,
            multiple: scale * self.transformer.patch_size,
        }
    }

    fn components(&self) -> Vec<Component> {
        let third = self.third.as_ref().map(|_| THIRD);
        [FIRST, SECOND]
            .into_iter()
            .chain(third)
            .chain([transformer::COMPONENT, autoencoder::COMPONENT])
            .collect()
    }

    fn scratch(&self, pixels: usize) -> Bytes {
        let space = self.latent_space();
        let rows = (pixels / (space.multiple * space.multiple)).saturating_add(2 * LENGTH);
        let encoders = self.encoders.iter().map(PromptEncoderConfig::scratch);
        let third = self.third.iter().map(|third| third.scratch(LENGTH));
        let rest = [self.transformer.scratch(rows), self.autoencoder.scratch(pixels)];
        encoders.chain(third).chain(rest).fold(Bytes(0), Bytes::max)
    }

    fn load(
        &self,
        weights: &ComponentWeights,
        device: &Device,
        context: &LoadContext,
    ) -> Result<Box<dyn Pipeline>> {
        Ok(Box::new(LoadedStableDiffusion3::load(self, weights, device, context)?))
    }
}

struct LoadedStableDiffusion3 {
    encoders: [PromptEncoder; 2],
    third: Option<T5>,
    transformer: Transformer,
    autoencoder: Autoencoder,
    schedule: FlowSchedule,
    space: LatentSpace,
    /// Most patches along a side.
    grid: usize,
    /// Width of the tokens' vectors.
    width: usize,
}

impl LoadedStableDiffusion3 {
    fn load(
        model: &StableDiffusion3,
        weights: &ComponentWeights,
        device: &Device,
        context: &LoadContext,
    ) -> Result<Self> {
        let reader =
            |component: Component| Ok::<_, Error>(weights.of(component.folder)?.reader("", device, context));
        let third = |third: &T5Config| third.load(&ScopedReader::root(&reader(THIRD)?), LENGTH);
        Ok(Self {
            encoders: [
                model.encoders[0].load(&reader(FIRST)?, Pooling::Projected)?,
                model.encoders[1].load(&reader(SECOND)?, Pooling::Projected)?,
            ],
            third: model.third.as_ref().map(third).transpose()?,
            transformer: model.transformer.load(&ScopedReader::root(&reader(transformer::COMPONENT)?))?,
            autoencoder: model.autoencoder.load(&ScopedReader::root(&reader(autoencoder::COMPONENT)?))?,
            schedule: model.schedule.clone(),
            space: model.latent_space(),
            grid: model.transformer.pos_embed_max_size,
            width: model.transformer.joint_attention_dim,
        })
    }
}

impl Pipeline for LoadedStableDiffusion3 {
    fn scheduler(&self, settings: &Settings) -> Result<Box<dyn Scheduler>> {
        let multiple = self.space.multiple;
        let (columns, rows) = (settings.width / multiple, settings.height / multiple);
        if columns.max(rows) > self.grid {
            let (width, height, most) = (settings.width, settings.height, self.grid.saturating_mul(multiple));
            let reason =
                format!("the size {width}x{height} is asked for; this model paints at most {most} a side");
            return Err(Error::InvalidInput(reason));
        }
        self.schedule.start(settings, SigmaRange::Training, columns * rows)
    }

    fn encode_prompt(&self, settings: &Settings, watch: &Watch<'_>) -> Result<Conditioning> {
        let prompts = settings.prompts();
        let [first, second] = &self.encoders;
        let EncodedPrompts { penultimate_hidden_state: first, pooled: first_pooled, .. } =
            first.encode(&prompts, watch)?;
        let EncodedPrompts { penultimate_hidden_state: second, pooled: second_pooled, .. } =
            second.encode(&prompts, watch)?;
        let clip = Tensor::cat(&[first, second], 2)?;
        let missing = self.width.saturating_sub(clip.dim(2)?);
        let clip = clip.pad_with_zeros(2, 0, missing)?;
        let third = match &self.third {
            Some(third) => third.encode(&prompts, watch)?,
            None => Tensor::zeros((prompts.len(), LENGTH, self.width), DType::F32, clip.device())?,
        };
        Ok(Conditioning {
            prompt_embeddings: Tensor::cat(&[clip, third], 1)?,
            pooled_prompt_embeddings: Some(Tensor::cat(&[first_pooled, second_pooled], 1)?),
            guidance: settings.guidance,
        })
    }

    fn predict(
        &self,
        latents: &Tensor,
        timestep: f64,
        conditioning: &Conditioning,
        watch: &Watch<'_>,
    ) -> Result<Tensor> {
        let (text, pooled) = (&conditioning.prompt_embeddings, conditioning.pooled()?);
        let predict = |row: usize| {
            let pooled = pooled.i(row..row + 1)?;
            self.transformer.forward(&latents.i(0)?, timestep, &text.i(row)?, &pooled, watch)
        };
        let rows: Vec<Tensor> = (0..text.dim(0)?).map(predict).collect::<Result<_>>()?;
        Ok(Tensor::stack(&rows, 0)?)
    }

    fn decode(&self, latents: &Tensor, watch: &Watch<'_>) -> Result<Tensor> {
        self.autoencoder.decode(latents, watch)
    }
}
