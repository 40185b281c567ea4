//! GGUF files that candle-transformers computes and this crate's decoder does not. The header is read, checked and completed
//! here, as llama.cpp reads it; tensors are read by this crate's own reader, from which the library takes them as from a file.
//! Their products go through one pool of the process, which a panic breaks for good, so that such a model runs only in a
//! process of its own.

mod reader;
mod glm4;
mod lfm2;

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::{Content, Value, VersionedMagic};
use candle_core::{Device, Shape};
use model_actors::{Bytes, LoadContext};

use super::{Loaded, check, told};
use crate::error::{Error, Result};
use crate::gguf::GgufFile;
use crate::kernels::ggml::GgmlType;
use crate::kernels::packed::Arithmetic;
use crate::language_model::{Begin, Described, Load, ModelShape, PromptReading, TextsPerWorker};
use crate::models::decoder::Metadata;
use crate::models::transformer::layer_count;
use crate::source::Unread;
pub(super) use reader::TensorReader;

/// The architectures, in the order that errors list them. A new one is its file and its line here.
pub(super) const ARCHITECTURES: &[&Architecture] = &[&glm4::ARCHITECTURE, &lfm2::ARCHITECTURE];

/// An architecture of GGUF files.
pub(super) struct Architecture {
    /// `general.architecture`.
    pub(super) name: &'static str,
    prompts: PromptReading,
    texts: TextsPerWorker,
    describe: fn(&Metadata<'_>) -> Result<Model>,
    /// Builds the model.
    begin: fn(Content, &mut TensorReader<'_>, &Device) -> candle_core::Result<Begin>,
}

/// A model as the metadata describe it.
struct Model {
    shape: ModelShape,
    /// The metadata that the library reads.
    metadata: Vec<(&'static str, Value)>,
    /// Names and shapes of the tensors that it has to have.
    tensors: Vec<(String, Vec<usize>)>,
    /// The same of those that it may have.
    optional: Vec<(String, Vec<usize>)>,
}

/// A sequence of tensors with their shapes, which a name is put before.
fn named(path: &str, tensors: &[(&str, &[usize])]) -> Vec<(String, Vec<usize>)> {
    tensors.iter().map(|(name, shape)| (format!("{path}{name}"), shape.to_vec())).collect()
}

/// The model of the library in a file, if the library has its architecture.
///
/// # Errors
/// [`Error::InvalidGguf`], [`Error::MissingTensor`] and [`Error::ShapeMismatch`] for a file that does not have what the
/// architecture needs.
pub(crate) fn describe(file: &GgufFile) -> Result<Option<Described>> {
    let Some(architecture) = architecture(file) else { return Ok(None) };
    let model = model(architecture, file)?;
    let shape = model.shape;
    let described = Described {
        shape,
        prompts: architecture.prompts,
        texts: architecture.texts,
        // The tokenizer's metadata have them.
        end_tokens: Vec::new(),
        other_names: |_| Vec::new(),
        joined: |_| Vec::new(),
        has_no_effect: |_| false,
        load: Load::Gguf,
    };
    check(file.path(), &described)?;
    Ok(Some(described))
}

/// The same error, which lists the architectures here too.
pub(crate) fn with_architectures(error: Error) -> Error {
    match error {
        Error::UnsupportedArchitecture { found, capability, mut supported } => {
            supported.extend(ARCHITECTURES.iter().map(|architecture| architecture.name.into()));
            Error::UnsupportedArchitecture { found, capability, supported }
        }
        error => error,
    }
}

fn architecture(file: &GgufFile) -> Option<&'static Architecture> {
    let found = file.header().text("general.architecture");
    ARCHITECTURES.iter().find(|architecture| Some(architecture.name) == found).copied()
}

/// The model in a file, whose tensors are there and have their shapes.
fn model(architecture: &Architecture, file: &GgufFile) -> Result<Model> {
    let Architecture { name, describe, .. } = *architecture;
    let count = Metadata { file, name, layers: 1 }.required("block_count")?;
    let metadata = Metadata { file, name, layers: layer_count(file.path(), count)? };
    refuse_scaling(&metadata)?;
    refuse_other_forms(&metadata)?;
    let model = describe(&metadata)?;
    let is_there = |(tensor, _): &&(String, Vec<usize>)| file.contains(tensor);
    for (tensor, shape) in model.tensors.iter().chain(model.optional.iter().filter(is_there)) {
        let Some(found) = file.header().tensor(tensor) else {
            return Err(Error::MissingTensor { tensor: tensor.clone() });
        };
        if found.shape != *shape {
            let (expected, found) = (shape.clone(), found.shape.clone());
            return Err(Error::ShapeMismatch { tensor: tensor.clone(), expected, found });
        }
        if kind(found.kind, shape).is_none() {
            let reason = format!(
                "the tensor {tensor} is of a type that candle-transformers, which computes this model, does not \
                 multiply; take a file of the model in another quantisation, such as Q8_0 or Q4_K_M"
            );
            return Err(file.invalid(reason));
        }
    }
    Ok(model)
}

/// Refuses a scaling of rotary positions, of which the library has none in these models.
fn refuse_scaling(metadata: &Metadata<'_>) -> Result<()> {
    let factor = ["rope.scaling.factor", "rope.scale_linear", "rope.scaling.attn_factor"]
        .into_iter()
        .find(|key| metadata.float(key).is_some_and(|factor| factor != 1.0 && factor != 0.0));
    let kind = metadata.text("rope.scaling.type").filter(|kind| *kind != "none");
    let found = factor.map(|key| (key, "a scaling")).or(kind.map(|kind| ("rope.scaling.type", kind)));
    match found {
        Some((key, found)) => Err(metadata.unsupported(key, found, "none")),
        None => Ok(()),
    }
}

/// Refuses forms of these models that the library does not compute: positions in sections (of GLM-4V's text), embedders, and
/// windows.
fn refuse_other_forms(metadata: &Metadata<'_>) -> Result<()> {
    let key = |key: &str| metadata.file.header().value(&format!("{}.{key}", metadata.name));
    if key("rope.dimension_sections").is_some() {
        return Err(metadata.unsupported("rope.dimension_sections", "sections", "none"));
    }
    let causal = metadata.file.header().truth(&format!("{}.attention.causal", metadata.name));
    if causal == Some(false) {
        return Err(metadata.unsupported("attention.causal", "false", "true"));
    }
    for name in ["pooling_type", "attention.sliding_window"] {
        if let Some(found) = metadata.optional(name)?.filter(|found| *found != 0) {
            return Err(metadata.unsupported(name, &found.to_string(), "0"));
        }
    }
    Ok(())
}

/// candle's type of the tensors of this number, where it multiplies them: some only in pairs of blocks.
fn kind(number: u32, shape: &[usize]) -> Option<GgmlDType> {
    let in_pairs = shape.last().is_some_and(|row| row.is_multiple_of(64));
    match GgmlType::from_number(number)? {
        GgmlType::Q4_1 | GgmlType::Q5_0 | GgmlType::Q5_1 if !in_pairs => None,
        kind => kind.candle(),
    }
}

/// Bytes of the weights in memory: blocks as they are, other numbers in 32 bits, and the embeddings a second time.
pub(crate) fn bytes(file: &GgufFile) -> Bytes {
    let numbers =
        |shape: &[usize]| shape.iter().fold(4, |bytes: u64, side| bytes.saturating_mul(*side as u64));
    let all = file.header().tensors().map(|(name, tensor)| {
        let own = match tensor.kind {
            1 | 30 => numbers(&tensor.shape),
            _ => tensor.bytes,
        };
        let embedded = if name == "token_embd.weight" { numbers(&tensor.shape) } else { 0 };
        own.saturating_add(embedded)
    });
    Bytes(all.fold(0, u64::saturating_add))
}

/// Refuses a model that would not have the process to itself, and products that the library does not make.
///
/// # Errors
/// [`Error::InvalidSetting`].
pub(crate) fn check_process(arithmetic: Arithmetic, isolated: bool) -> Result<()> {
    let (setting, reason) = match (arithmetic, isolated) {
        (Arithmetic::Exact, _) => (
            "exact_products",
            "candle-transformers, which computes this model, rounds what it multiplies blocks by",
        ),
        (_, false) => (
            "isolation",
            "candle-transformers computes this GGUF file, and its quantised products share a pool that a panic breaks \
             for the whole process; register the model to run in a process of its own (`SourceSpec::with_isolation`)",
        ),
        (_, true) => return Ok(()),
    };
    Err(Error::InvalidSetting { setting: setting.into(), reason: reason.to_owned() })
}

/// Reads a model's weights.
///
/// # Errors
/// Those of [`describe`] and of reading tensors; [`Error::UnreadTensor`]; [`Error::Compute`].
pub(crate) fn load(
    described: &Described,
    file: &GgufFile,
    unread: Unread,
    device: &Device,
    context: &LoadContext,
) -> Result<Loaded> {
    let Some(architecture) = architecture(file) else {
        return Err(Error::compute("the library does not have the architecture of the file"));
    };
    let Model { metadata, tensors, optional, .. } = model(architecture, file)?;
    let names: Vec<&(String, Vec<usize>)> =
        tensors.iter().chain(optional.iter().filter(|(name, _)| file.contains(name))).collect();
    let mut reader = TensorReader::new(file, context);
    let mut tensor_infos = HashMap::with_capacity(names.len());
    for (tensor, shape) in names {
        let number = file.header().tensor(tensor).map_or(0, |found| found.kind);
        let ggml_dtype = kind(number, shape).unwrap_or(GgmlDType::F32);
        let offset = reader.place(tensor);
        let info = candle_core::quantized::gguf_file::TensorInfo {
            ggml_dtype,
            shape: Shape::from(shape.clone()),
            offset,
        };
        tensor_infos.insert(tensor.clone(), info);
    }
    let key = |(key, value): (&str, Value)| (format!("{}.{key}", architecture.name), value);
    let content = Content {
        magic: VersionedMagic::GgufV3,
        metadata: metadata.into_iter().map(key).collect(),
        tensor_infos,
        tensor_data_offset: 0,
    };
    let built = catch_unwind(AssertUnwindSafe(|| (architecture.begin)(content, &mut reader, device)));
    let built = built.map_err(|panic| file.invalid(format!("the library panicked: {}", told(&*panic))))?;
    // One that the library goes on without is one all the same.
    if let Some(error) = reader.error() {
        return Err(error);
    }
    let begin = built?;
    file.check_all_read(unread, |_| false)?;
    Ok(Loaded { begin, described: described.clone(), device: device.clone(), bytes: bytes(file) })
}
