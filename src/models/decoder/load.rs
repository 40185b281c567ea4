//! The loader of a decoder: embeddings, blocks and head from the tensors of a file.

use candle_core::Device;
use model_actors::LoadContext;

use super::config::{DecoderConfig, Embeddings, Head};
use super::model::{BlockInputTable, Decoder, LearnedPositions, Logits};
use super::names::DecoderNames;
use crate::error::{Error, Result};
use crate::kernels::packed::RowUse;
use crate::models::peft::PeftAdapter;
use crate::models::transformer::{self, Adapter, Bias, Linears, SafeTensors, Tensors};
use crate::weights::{TwoFiles, WeightFiles};

impl DecoderConfig {
    /// Reads the weights from safetensors, or from the GGUF file that is in their place.
    pub(crate) fn load(
        &self,
        weights: &WeightFiles,
        device: &Device,
        context: &LoadContext,
    ) -> Result<Decoder> {
        if let Some((file, arithmetic)) = weights.gguf().map(TwoFiles::text) {
            return self.load_gguf(file, device, arithmetic, context);
        }
        let reader = weights.reader("", device, context);
        let all = SafeTensors::new(&reader, "", self.transformer.workload);
        self.load_from(&all.at(self.prefix_in(weights)), &all, device)
    }

    /// Reads an adapter of the decoder's blocks.
    pub(crate) fn load_adapter(
        &self,
        adapter: &PeftAdapter,
        device: &Device,
        context: &LoadContext,
    ) -> Result<Adapter> {
        let names = self.modules.unwrap_or(self.names);
        let matrices = adapter.matrices(names.prefixes, names.blocks.blocks, device, context);
        let loaded = transformer::load_adapter(&self.transformer, &names.blocks, &matrices, device)?;
        adapter.check_all_read(|weight| self.has_no_effect(weight))?;
        Ok(loaded)
    }

    /// The beginning of the names of all tensors but the heads' in a file.
    pub(crate) fn prefix_in(&self, weights: &WeightFiles) -> &'static str {
        let names = self.names;
        let has_embeddings = |prefix: &&&str| {
            let name = format!("{prefix}{}", names.token_embeddings);
            weights.contains(&format!("{name}.weight")) || weights.contains(&name)
        };
        let prefix = names.prefixes.iter().find(has_embeddings).or(names.prefixes.first());
        prefix.copied().unwrap_or_default()
    }

    /// Reads the weights from `tensors`, and the matrix of the logits from `heads`.
    pub(crate) fn load_from(
        &self,
        tensors: &dyn Tensors,
        heads: &dyn Tensors,
        device: &Device,
    ) -> Result<Decoder> {
        load(self, self.names, tensors, heads, device)
    }
}

/// Reads a decoder from `tensors`, and the matrix of its logits from `heads`: in safetensors that has no
/// prefix.
pub(super) fn load(
    config: &DecoderConfig,
    names: &DecoderNames,
    tensors: &dyn Tensors,
    heads: &dyn Tensors,
    device: &Device,
) -> Result<Decoder> {
    let transformer = &config.transformer;
    let (width, epsilon) = (transformer.width, transformer.epsilon);
    let table = |name: &str, count| {
        tensors.packed(&Linears::new(&[(name, count)], width, Bias::No), RowUse::LookedUp)
    };
    let block_inputs = match transformer.streams {
        Some(streams) => {
            let parts = [(names.block_inputs, streams.table)];
            let table = Linears::new(&parts, transformer.inputs_width(), Bias::No);
            Some(BlockInputTable {
                table: tensors.packed(&table, RowUse::LookedUp)?,
                tokens: streams.table,
                scale: (streams.input_size as f32).sqrt(),
            })
        }
        None => None,
    };
    let linear = |tensors: &dyn Tensors, name: &str, out_dim, bias| {
        tensors.packed(&Linears::new(&[(name, out_dim)], width, bias), RowUse::MultipliedOnly)
    };
    let mut token_embeddings = table(names.token_embeddings, config.vocabulary)?;
    let positions = match config.embeddings {
        Embeddings::WithPositions => Some(LearnedPositions {
            table: table(names.positions, config.context)?,
            first: 0,
            norm: Some(tensors.norm(names.embedding_norm, width, transformer.norm, epsilon)?),
        }),
        Embeddings::PlusPositions { unused } => Some(LearnedPositions {
            table: table(names.positions, config.context.saturating_add(unused))?,
            first: unused,
            norm: None,
        }),
        Embeddings::Plain | Embeddings::Scaled(_) => None,
    };
    let blocks = transformer::load(transformer, &names.blocks, tensors, device)?;
    let norm = tensors.norm(names.norm, width, transformer.norm, epsilon)?;
    let own = names.heads.iter().find(|name| heads.contains(&format!("{name}.weight")));
    let (logits, norm) = match (config.head, own) {
        (Head::None, _) => (Logits::None, Some(norm)),
        (Head::Own(bias), Some(name)) => {
            (Logits::Own(linear(heads, name, config.vocabulary, bias)?), Some(norm))
        }
        (Head::Own(_), None) | (Head::Transformed { is_tied: false, .. }, None) => {
            let tensor = format!("{}.weight", names.heads.first().copied().unwrap_or_default());
            return Err(Error::MissingTensor { tensor });
        }
        (Head::Tied, Some(name)) => {
            (Logits::Own(linear(heads, name, config.vocabulary, Bias::No)?), Some(norm))
        }
        (Head::Tied, None) => (Logits::Tied, Some(norm)),
        (Head::Transformed { activation, is_tied }, own) => {
            // Matrix and bias are tied one by one.
            let mut own_bias = names.heads.iter().map(|name| format!("{name}.bias"));
            let bias = match own_bias.find(|name| heads.contains(name) || !is_tied) {
                Some(name) => heads.vector(&name, config.vocabulary)?,
                None => tensors.vector(names.logit_bias, config.vocabulary)?,
            };
            let matrix = match own {
                Some(name) => Some(linear(heads, name, config.vocabulary, Bias::No)?.with_bias(bias)),
                None => {
                    token_embeddings = token_embeddings.with_bias(bias);
                    None
                }
            };
            let transform = linear(tensors, names.transform, width, Bias::Yes)?;
            (Logits::Transformed { transform, activation, norm, matrix }, None)
        }
    };
    Ok(Decoder {
        token_embeddings,
        block_inputs,
        positions,
        transformer: blocks,
        norm,
        logits,
        config: config.clone(),
    })
}
