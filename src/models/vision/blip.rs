//! BLIP captioning (Li et al. 2022): a vision transformer, and a text decoder like BERT's that looks at the image in
//! each layer. The question is the beginning of the caption; without one the model begins by itself. Follows
//! `modeling_blip.py` of transformers.

mod text;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{Device, Tensor};
use model_actors::{Bytes, LoadContext, Picture};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    Architecture, ImageRows, Memory as AnyMemory, Network, Prompt, Unfinished, WorkerMemory, misfit,
};
use crate::error::{Error, Result};
use crate::families::{Family, parse};
use crate::kernels::{AttentionMask, LayerNorm};
use crate::models::towers::{
    Bias, Layer, Middle, Patches, Positions, Resampling, Stack, StackShape, VisionSettings, VisionTower,
    linear, norm, with_defaults,
};
use crate::pixels::{Preprocessing, Processor};
use crate::source::Files;
use crate::tokens::{Specials, Tokens};
use crate::weights::{WeightFiles, WeightReader};
pub(super) use text::Memory;
use text::{TextConfig, TextDecoder};

/// This family's line in the list.
pub(super) const FAMILY: Family<Box<dyn Architecture>> = Family {
    model_type: "blip",
    architectures: &["BlipForConditionalGeneration"],
    read: |file, config| Ok(Box::new(Config::read(file, config)?)),
};

fn vision_defaults() -> Value {
    json!({
        "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
        "num_channels": 3, "image_size": 384, "patch_size": 16, "hidden_act": "gelu", "layer_norm_eps": 1e-5
    })
}

/// `config.json`, with `preprocessor_config.json` once that is read.
struct Config {
    file: PathBuf,
    vision: VisionSettings,
    shape: StackShape,
    text: TextConfig,
    preprocessing: Option<Preprocessing>,
}

#[derive(Deserialize)]
struct Parts {
    #[serde(default)]
    text_config: Value,
    #[serde(default)]
    vision_config: Value,
    architectures: Option<Vec<String>>,
}

impl Config {
    fn read(file: &Path, config: &Value) -> Result<Self> {
        let parts: Parts = parse(file, config)?;
        // All of BLIP share one model type; the others answer or match with towers that are not read here.
        if let Some(other) =
            parts.architectures.iter().flatten().find(|name| !name.ends_with("ConditionalGeneration"))
        {
            return Err(Error::UnsupportedSetting {
                file: file.to_owned(),
                what: "the architecture".into(),
                found: other.clone(),
                supported: "BlipForConditionalGeneration".into(),
            });
        }
        let vision = VisionSettings::read(file, vision_defaults(), &parts.vision_config)?;
        let shape = vision.shape(file)?;
        let text = TextConfig::read(file, &parts.text_config, shape.width)?;
        Ok(Self { file: file.to_owned(), shape, vision, text, preprocessing: None })
    }

    fn rows(&self) -> usize {
        self.vision.grid() * self.vision.grid() + 1
    }
}

impl Architecture for Config {
    fn complete(&mut self, files: &Files, context: &LoadContext) -> Result<()> {
        let defaults = json!({
            "size": {"height": 384, "width": 384}, "resample": 3, "do_center_crop": false, "do_pad": false
        });
        let preprocessing = super::preprocessing(files, defaults, Processor::Clip, context)?;
        let side = self.vision.image_size;
        if preprocessing.exact() != Some((side, side)) {
            let reason = format!("image_size is {side}; the preprocessing makes pictures of another size");
            return Err(Error::InvalidConfig { file: self.file.clone(), reason });
        }
        self.preprocessing = Some(preprocessing);
        Ok(())
    }

    fn vocabulary(&self) -> usize {
        self.text.vocab_size
    }

    fn context(&self) -> usize {
        self.text.max_position_embeddings
    }

    fn uses(&self, tensor: &str) -> bool {
        let left_out = ["position_ids", "text_decoder.cls.predictions.decoder."];
        (tensor.starts_with("vision_model.") || tensor.starts_with("text_decoder."))
            && !left_out.iter().any(|part| tensor.contains(part))
    }

    fn apart(&self) -> usize {
        self.rows()
    }

    fn per_worker(&self, room: WorkerMemory) -> Bytes {
        let rows = self.rows();
        let tower = self.shape.scratch(rows, rows);
        tower + self.text.memory(room.held) + self.text.scratch(room.rows, room.longest)
    }

    fn load(
        &self,
        _: &Tokens,
        weights: &WeightFiles,
        device: &Device,
        context: &LoadContext,
    ) -> Result<Arc<dyn Network>> {
        let reader = weights.reader("", device, context);
        let preprocessing = self.preprocessing.clone().ok_or_else(misfit)?;
        let name = "vision_model.post_layernorm";
        Ok(Arc::new(Blip {
            tower: self.load_tower(&reader)?,
            last_norm: norm(&reader, name, self.shape.width, self.shape.epsilon)?,
            text: TextDecoder::load(&self.text, &reader, device)?,
            begin: self.text.bos_token_id,
            ends: [self.text.sep_token_id],
            preprocessing,
            device: device.clone(),
        }))
    }
}

impl Config {
    fn load_tower(&self, reader: &WeightReader<'_>) -> Result<VisionTower> {
        let (width, grid) = (self.shape.width, self.vision.grid());
        let class = reader.tensor("vision_model.embeddings.class_embedding", &[1, 1, width])?;
        let positions =
            reader.tensor("vision_model.embeddings.position_embedding", &[1, grid * grid + 1, width])?;
        let (class, positions) = (class.reshape((1, width))?, positions.squeeze(0)?);
        let name = "vision_model.embeddings.patch_embedding";
        let layers = (0..self.shape.layers).map(|index| self.load_layer(reader, index));
        Ok(VisionTower {
            patches: Patches::load(reader, name, width, self.vision.patch_size, Bias::With)?,
            leading: Some((class + positions.narrow(0, 0, 1)?)?),
            positions: Positions::new(
                positions.narrow(0, 1, grid * grid)?.contiguous()?,
                grid,
                Resampling::Never,
            ),
            first_norm: None,
            stack: Stack {
                layers: layers.collect::<Result<_>>()?,
                heads: self.shape.heads,
                mask: AttentionMask::Full,
            },
        })
    }

    fn load_layer(&self, reader: &WeightReader<'_>, index: usize) -> Result<Layer> {
        let part = |part: &str| format!("vision_model.encoder.layers.{index}.{part}");
        let (width, epsilon) = (self.shape.width, self.shape.epsilon);
        Ok(Layer {
            attention_norm: norm(reader, &part("layer_norm1"), width, epsilon)?,
            mixed: linear(reader, &part("self_attn.qkv"), 3 * width, width, Bias::With)?,
            attended: linear(reader, &part("self_attn.projection"), width, width, Bias::With)?,
            middle_norm: norm(reader, &part("layer_norm2"), width, epsilon)?,
            middle: Middle::load(reader, &part("mlp"), &self.shape)?,
        })
    }
}

struct Blip {
    tower: VisionTower,
    last_norm: LayerNorm,
    text: TextDecoder,
    begin: u32,
    ends: [u32; 1],
    preprocessing: Preprocessing,
    device: Device,
}

impl Network for Blip {
    fn ends(&self) -> &[u32] {
        &self.ends
    }

    fn prompt(&self, tokens: &Tokens, sides: (usize, usize), question: &str) -> Result<Prompt> {
        let mut ids = vec![self.begin];
        ids.extend(tokens.encode_prompt(question, Specials::AsWritten)?);
        Ok(Prompt { tokens: ids, image: 0..0, sides })
    }

    fn crops(&self, picture: &Picture) -> Result<Vec<Tensor>> {
        Ok(vec![self.preprocessing.tensor(picture, &self.device)?])
    }

    fn open_crop(&self, crop: &Tensor, _: &mut Option<Unfinished>) -> Result<Option<Tensor>> {
        Ok(Some(self.tower.run(std::slice::from_ref(crop), 0, |_, _| Ok(()))?.hidden))
    }

    fn tower_layers(&self) -> usize {
        self.tower.stack.layers.len()
    }

    fn tower_step(
        &self,
        layer: usize,
        hidden: &Tensor,
        _: &Tensor,
        _: &mut Option<Unfinished>,
    ) -> Result<Option<Tensor>> {
        super::stack_layer(&self.tower.stack, layer, hidden)
    }

    fn keep(
        &self,
        layers: usize,
        hidden: &Tensor,
        _: &mut Option<Unfinished>,
    ) -> Result<Option<Vec<Tensor>>> {
        let at_end = layers == self.tower_layers();
        Ok(Some(if at_end { vec![self.last_norm.of(hidden)?] } else { Vec::new() }))
    }

    fn image(&self, _: &Prompt, kept: &[Vec<Tensor>]) -> Result<ImageRows> {
        let rows = kept.first().and_then(|kept| kept.last()).ok_or_else(misfit)?;
        Ok(ImageRows { rows: rows.clone(), deep: Vec::new() })
    }

    fn begin(&self, prompt: &Prompt, image: ImageRows) -> Result<AnyMemory> {
        Ok(AnyMemory::Blip(self.text.begin(prompt.tokens.clone(), &image.rows)?))
    }

    fn read(&self, memory: &mut AnyMemory) -> Result<Option<Tensor>> {
        let hidden = self.text.read(memory.blip()?)?;
        hidden.map(|hidden| self.text.logits(&hidden)).transpose()
    }

    fn write(&self, answers: &mut [(&mut AnyMemory, u32)]) -> Result<Tensor> {
        let answers = answers.iter_mut().map(|(memory, token)| Ok((memory.blip()?, *token)));
        let hidden = self.text.write(&mut answers.collect::<Result<Vec<_>>>()?)?;
        self.text.logits(&hidden)
    }
}

/// What is left out of a part of `config.json`.
fn read_part<T: serde::de::DeserializeOwned>(file: &Path, defaults: Value, part: &Value) -> Result<T> {
    parse(file, &with_defaults(defaults, &[part]))
}
