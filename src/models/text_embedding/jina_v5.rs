//! Jina Embeddings v5 text small and nano (Jina AI, 2026): Qwen3 or EuroBERT, of which the last token's vector is taken, with
//! an adapter for each task in a folder of its own, as PEFT writes them. One of them is always on: a named prompt turns on
//! that of its name, and without one it is that of the first task.

use std::path::Path;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use model_actors::{Bytes, LoadContext};
use serde::Deserialize;
use serde_json::{Value, json};

use super::adapters::{Adapters, MAX_TASKS, OfTask, Shared, encode_by_task};
use super::decoding::{AttentionDirection, Embedder};
use super::{Architecture, Encoder, Task, TokenBatch, Watch, eurobert};
use crate::architecture::{Family, parse};
use crate::error::{Error, Result};
use crate::models::config_file::invalid;
use crate::models::decoder::{Decoder, DecoderNames};
use crate::models::peft::PeftAdapter;
use crate::models::transformer::{self, LowRankMatrices as _, SafeTensors, Transformer};
use crate::pooling::Pooling;
use crate::weights::WeightFiles;

/// The family's entry in the list.
pub(super) const FAMILY: Family<Box<dyn Architecture>> = Family {
    model_type: "jina_embeddings_v5",
    architectures: &["JinaEmbeddingsV5Model"],
    read: |file, config| Ok(Box::new(read(file, config)?)),
};

/// Settings beside Qwen3's.
#[derive(Deserialize)]
struct Own {
    /// Names of the folders with adapters; the first is on unless another is asked for.
    task_names: Vec<String>,
}

fn read(file: &Path, config: &Value) -> Result<AdaptedDecoder> {
    let Own { task_names } = parse(file, config)?;
    let is_name = |name: &String| {
        !name.is_empty() && name.chars().all(|letter| letter.is_ascii_alphanumeric() || "-_".contains(letter))
    };
    if !(1..=MAX_TASKS).contains(&task_names.len()) || !task_names.iter().all(is_name) {
        return Err(invalid(file, format!("task_names cannot be {task_names:?}")));
    }
    // Nano says that it is no decoder; the configuration of Qwen3, which may say so too, has a size of heads.
    let is_encoder =
        config.get("is_decoder") == Some(&Value::Bool(false)) && config.get("head_dim").is_none();
    let decoder = match is_encoder {
        true => eurobert::read(file, config)?,
        false => {
            let mut config = config.clone();
            if let Some(settings) = config.as_object_mut() {
                settings.insert("model_type".to_owned(), json!("qwen3"));
            }
            Embedder::read(file, &config, AttentionDirection::Causal)?
        }
    };
    let task = |name: String| Task { folder: Some(format!("adapters/{name}/")), name, instruction: None };
    Ok(AdaptedDecoder { decoder, tasks: task_names.into_iter().map(task).collect() })
}

/// A decoder with adapters that is not loaded.
struct AdaptedDecoder {
    decoder: Embedder,
    tasks: Vec<Task>,
}

impl Architecture for AdaptedDecoder {
    fn width(&self) -> usize {
        self.decoder.width()
    }

    fn vocabulary(&self) -> usize {
        self.decoder.vocabulary()
    }

    fn longest(&self) -> usize {
        self.decoder.longest()
    }

    fn tasks(&self) -> &[Task] {
        &self.tasks
    }

    fn default_task(&self) -> Option<usize> {
        Some(0)
    }

    fn own_pooling(&self) -> Option<Pooling> {
        Some(Pooling::LastToken)
    }

    fn uses(&self, tensor: &str) -> bool {
        self.decoder.uses(tensor)
    }

    fn packs(&self, tensor: &str, eight_bit: bool) -> bool {
        self.decoder.packs(tensor, eight_bit)
    }

    fn has_no_effect(&self, tensor: &str) -> bool {
        self.decoder.has_no_effect(tensor)
    }

    fn scratch(&self, tokens: usize, longest: usize) -> Bytes {
        // What an adapter adds to the widest layer.
        self.decoder.scratch(tokens, longest) + self.decoder.scratch(tokens, 1)
    }

    fn load(&self, _: &WeightFiles, _: &Device, _: &LoadContext) -> Result<Arc<dyn Encoder>> {
        Err(Error::compute("a model that is loaded with its adapters alone"))
    }

    fn load_adapted(
        &self,
        weights: &WeightFiles,
        adapters: &[PeftAdapter],
        device: &Device,
        context: &LoadContext,
    ) -> Result<Arc<dyn Encoder>> {
        let config = &self.decoder.0;
        let reader = weights.reader("", device, context);
        let whole = SafeTensors::new(&reader, "", config.transformer.workload);
        let file = whole.at(config.prefix_in(weights));
        let shared = Shared::new(&file);
        let adapters = InFolders { adapters, names: config.names, device, context };
        let of_task = |task| OfTask { shared: &shared, adapters: &adapters, task };
        let base = config.load_from(&of_task(None), &whole, device)?;
        let tasks = (0..self.tasks.len()).map(|task| {
            transformer::load(&config.transformer, &config.names.blocks, &of_task(Some(task)), device)
        });
        let tasks = tasks.collect::<Result<_>>()?;
        Ok(Arc::new(AdaptedBlocks { base, tasks }))
    }
}

/// Adapters in folders of their own.
struct InFolders<'a> {
    adapters: &'a [PeftAdapter],
    names: &'static DecoderNames,
    device: &'a Device,
    context: &'a LoadContext,
}

impl Adapters for InFolders<'_> {
    fn matrices(
        &self,
        layer: &str,
        out_dim: usize,
        in_dim: usize,
        task: usize,
    ) -> Result<Option<(Tensor, Tensor)>> {
        let adapter = self.adapters.get(task).ok_or_else(|| Error::compute("a task without an adapter"))?;
        let names = self.names;
        let matrices = adapter.matrices(names.prefixes, names.blocks.blocks, self.device, self.context);
        matrices.matrices(layer, out_dim, in_dim)
    }
}

/// A loaded decoder, and its blocks with the adapters of each task.
struct AdaptedBlocks {
    base: Decoder,
    tasks: Vec<Transformer>,
}

impl Encoder for AdaptedBlocks {
    fn encode(&self, batch: &TokenBatch, watch: &Watch<'_>) -> Result<Tensor> {
        encode_by_task(batch, |task, texts| {
            let blocks = self.tasks.get(task.unwrap_or(0));
            let blocks = blocks.ok_or_else(|| Error::compute("a task without an adapter"))?;
            self.base.encode_through(blocks, &self.base.embed(&texts.ids)?, &texts.lengths, watch)
        })
    }
}
