//! Stable Diffusion 3 and 3.5 (Esser et al., arXiv 2403.03206): two CLIP text encoders and T5, and a
//! multimodal diffusion transformer that is trained by flow matching. The reference is diffusers.

mod transformer;

use candle_core::{DType, Device, IndexOp as _, Tensor};
use model_actors::{Bytes, LoadContext};

use super::clip::{self, EncodedPrompts, Pooling, PromptEncoder, PromptEncoderConfig};
use super::flow_match::{FlowSchedule, SigmaRange};
use super::latent_decoder::{Decoder, DecoderConfig};
use super::layers::ScopedReader;
use super::noise::Noise;
use super::pipeline::{
    Architecture, Conditioning, Defaults, LatentSpace, Pipeline, Read, Scheduler, Settings, Watch,
};
use super::repository::{Component, ComponentWeights, Repository, invalid};
use super::t5::{self, T5, T5Config};
use crate::architecture::Family;
use crate::error::{Error, Result};
use transformer::{Transformer, TransformerConfig};

/// The family's entry in the list.
pub(super) const FAMILY: Family<Read> =
    Family { model_type: "StableDiffusion3Pipeline", architectures: &[], read: |_, _| Ok(read) };

const CLIP_L: Component =
    Component { folder: "text_encoder/", file: Component::TRANSFORMERS, is_loaded: clip::is_loaded };
const CLIP_G: Component =
    Component { folder: "text_encoder_2/", file: Component::TRANSFORMERS, is_loaded: clip::is_loaded };
const T5_ENCODER: Component =
    Component { folder: "text_encoder_3/", file: Component::TRANSFORMERS, is_loaded: t5::is_loaded };

/// Tokens of a prompt for T5.
const T5_LENGTH: usize = 256;

/// Configurations of the components.
struct StableDiffusion3 {
    encoders: [PromptEncoderConfig; 2],
    /// Text encoder that a repository may leave out, to save memory.
    t5: Option<T5Config>,
    transformer: TransformerConfig,
    autoencoder: DecoderConfig,
    schedule: FlowSchedule,
}

fn read(repository: &Repository<'_>) -> Result<Box<dyn Architecture>> {
    let t5 = || T5Config::read(repository, T5_ENCODER.folder, "tokenizer_3/");
    let model = StableDiffusion3 {
        encoders: [
            PromptEncoderConfig::read(repository, CLIP_L.folder, "tokenizer/")?,
            PromptEncoderConfig::read(repository, CLIP_G.folder, "tokenizer_2/")?,
        ],
        t5: repository.has("text_encoder_3").then(t5).transpose()?,
        transformer: TransformerConfig::read(repository)?,
        autoencoder: DecoderConfig::read(repository)?,
        schedule: FlowSchedule::read(repository)?,
    };
    match model.mismatch() {
        Some(reason) => Err(invalid(&repository.path, reason)),
        None => Ok(Box::new(model)),
    }
}

impl StableDiffusion3 {
    /// Describes the first pair of components whose sizes do not fit together.
    fn mismatch(&self) -> Option<String> {
        let [first, second] = &self.encoders;
        let (channels, latent) = (self.transformer.in_channels, self.autoencoder.latent_channels);
        if channels != latent {
            return Some(format!("its transformer takes {channels} channels; its autoencoder has {latent}"));
        }
        let (width, takes) = (first.width() + second.width(), self.transformer.joint_attention_dim);
        let third = self.t5.as_ref().map_or(takes, T5Config::width);
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
        let t5 = self.t5.as_ref().map(|_| T5_ENCODER);
        [CLIP_L, CLIP_G]
            .into_iter()
            .chain(t5)
            .chain([transformer::COMPONENT])
            .chain(self.autoencoder.components())
            .collect()
    }

    fn scratch(&self, pixels: usize) -> Bytes {
        let space = self.latent_space();
        let rows = (pixels / (space.multiple * space.multiple)).saturating_add(2 * T5_LENGTH);
        let encoders = self.encoders.iter().map(PromptEncoderConfig::scratch);
        let t5 = self.t5.iter().map(|t5| t5.scratch(T5_LENGTH));
        let rest = [self.transformer.scratch(rows), self.autoencoder.scratch(pixels)];
        encoders.chain(t5).chain(rest).fold(Bytes(0), Bytes::max)
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
    t5: Option<T5>,
    transformer: Transformer,
    autoencoder: Decoder,
    schedule: FlowSchedule,
    space: LatentSpace,
    /// Maximum number of patches along a side.
    pos_embed_max_size: usize,
    /// Width of the prompt embeddings.
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
        let t5 = |t5: &T5Config| t5.load(&ScopedReader::root(&reader(T5_ENCODER)?), T5_LENGTH);
        Ok(Self {
            encoders: [
                model.encoders[0].load(&reader(CLIP_L)?, Pooling::Projected)?,
                model.encoders[1].load(&reader(CLIP_G)?, Pooling::Projected)?,
            ],
            t5: model.t5.as_ref().map(t5).transpose()?,
            transformer: model.transformer.load(&ScopedReader::root(&reader(transformer::COMPONENT)?))?,
            autoencoder: model.autoencoder.load(weights, device, context)?,
            schedule: model.schedule.clone(),
            space: model.latent_space(),
            pos_embed_max_size: model.transformer.pos_embed_max_size,
            width: model.transformer.joint_attention_dim,
        })
    }
}

impl Pipeline for LoadedStableDiffusion3 {
    fn scheduler(&self, settings: &Settings) -> Result<Box<dyn Scheduler>> {
        let multiple = self.space.multiple;
        let (columns, rows) = (settings.width / multiple, settings.height / multiple);
        if columns.max(rows) > self.pos_embed_max_size {
            let (width, height, most) =
                (settings.width, settings.height, self.pos_embed_max_size.saturating_mul(multiple));
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
        let t5 = match &self.t5 {
            Some(t5) => t5.encode(&prompts, watch)?,
            None => Tensor::zeros((prompts.len(), T5_LENGTH, self.width), DType::F32, clip.device())?,
        };
        Ok(Conditioning {
            prompt_embeddings: Tensor::cat(&[clip, t5], 1)?,
            pooled_prompt_embeddings: Some(Tensor::cat(&[first_pooled, second_pooled], 1)?),
            guidance: settings.guidance,
            beside: None,
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

    fn encode(&self, colours: &Tensor, noise: &mut Noise, watch: &Watch<'_>) -> Result<Tensor> {
        self.autoencoder.encode(colours, noise, watch)
    }

    fn decode(&self, latents: &Tensor, watch: &Watch<'_>) -> Result<Tensor> {
        self.autoencoder.decode(latents, watch)
    }

    fn decode_preview(&self, latents: &Tensor, watch: &Watch<'_>) -> Result<Tensor> {
        self.autoencoder.decode_preview(latents, watch)
    }
}
