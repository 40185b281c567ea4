//! Vision models in two GGUF files, as llama.cpp has them: the text half, and the vision tower with what projects its rows
//! into the text (`mmproj`). The second is a model of the family that its projector names: its keys are put into that
//! family's `config.json`, and its tensors have the names of that family's. What they mean follows llama.cpp; what is computed,
//! the resizing of pictures and the words around them follow transformers, as the models were trained with these.

mod keys;

use std::path::Path;

use serde_json::Value;

use super::small_files::InGguf;
use super::{Architecture, gemma3, idefics3, llava, qwen_vl};
use crate::error::{Error, Result};
use crate::gguf::GgufFile;
use crate::kernels::packed::Arithmetic;
use crate::models::config_file::unsupported;
use crate::models::decoder::DecoderConfig;
use crate::models::gguf_text::GgufText;
use crate::source::Unread;
use crate::weights::{Renamed, Way, WeightFiles};
use keys::Keys;

/// The projectors, in the order that errors list them.
const PROJECTORS: &[Projector] = &[
    Projector {
        name: "gemma3",
        family: gemma3::with_text,
        settings: keys::gemma3,
        tower: "vision_tower.",
        blocks: CLIP,
        feed_forward: CLIP_FEED_FORWARD,
        was_swapped: true,
        table: &[
            Renamed::new("mm.input_projection.weight", "multi_modal_projector.mm_input_projection_weight"),
            Renamed {
                way: Way::LessOne,
                ..Renamed::new("mm.soft_emb_norm.", "multi_modal_projector.mm_soft_emb_norm.")
            },
        ],
    },
    Projector {
        name: "idefics3",
        family: idefics3::with_text,
        settings: keys::idefics3,
        tower: "model.vision_model.",
        blocks: CLIP,
        feed_forward: CLIP_FEED_FORWARD,
        was_swapped: true,
        table: &[Renamed::new("mm.model.fc.", "model.connector.modality_projection.proj.")],
    },
    Projector {
        name: "qwen2vl_merger",
        family: qwen_vl::qwen2,
        settings: keys::qwen2_vl,
        tower: "visual.",
        blocks: QWEN,
        feed_forward: [
            Renamed::new("v.blk.{}.ffn_up.", "blocks.{}.mlp.fc1."),
            Renamed::new("v.blk.{}.ffn_down.", "blocks.{}.mlp.fc2."),
        ],
        was_swapped: true,
        table: &[],
    },
    Projector {
        name: "qwen2.5vl_merger",
        family: qwen_vl::qwen2_5,
        settings: keys::qwen2_5_vl,
        tower: "visual.",
        blocks: QWEN,
        feed_forward: [
            Renamed::new("v.blk.{}.ffn_up.", "blocks.{}.mlp.up_proj."),
            Renamed::new("v.blk.{}.ffn_down.", "blocks.{}.mlp.down_proj."),
        ],
        was_swapped: true,
        table: &[Renamed::new("v.blk.{}.ffn_gate.", "visual.blocks.{}.mlp.gate_proj.")],
    },
    Projector {
        name: "pixtral",
        family: llava::pixtral,
        settings: keys::pixtral,
        tower: "vision_tower.",
        blocks: PIXTRAL,
        feed_forward: [
            Renamed::new("v.blk.{}.ffn_up.", "transformer.layers.{}.feed_forward.up_proj."),
            Renamed::new("v.blk.{}.ffn_down.", "transformer.layers.{}.feed_forward.down_proj."),
        ],
        was_swapped: false,
        table: &[
            Renamed::new("mm.1.", "multi_modal_projector.linear_1."),
            Renamed::new("mm.2.", "multi_modal_projector.linear_2."),
            Renamed::new("mm.input_norm.", "multi_modal_projector.norm."),
            Renamed::new("mm.patch_merger.", "multi_modal_projector.patch_merger.merging_layer."),
            Renamed { way: Way::Copied, ..Renamed::new("v.token_embd.img_break", "[IMG_BREAK]") },
        ],
    },
];

/// A kind of projector, which tells the family.
struct Projector {
    /// `clip.projector_type`.
    name: &'static str,
    family: fn(&Path, &Value, DecoderConfig) -> Result<Box<dyn Architecture>>,
    /// The settings of `config.json` and of `preprocessor_config.json`.
    settings: fn(&Keys<'_>) -> Result<Settings>,
    /// Beginning of the names of the tower's tensors.
    tower: &'static str,
    /// Names of its tensors, but for two layers of each feed-forward network.
    blocks: &'static [Renamed],
    /// Those of these, the last of which comes after the other.
    feed_forward: [Renamed; 2],
    /// True where older files have these two the other way round.
    was_swapped: bool,
    /// Names of the others.
    table: &'static [Renamed],
}

/// The settings that a family reads of a model's small files.
struct Settings {
    config: Value,
    preprocessing: Value,
}

/// Names of the tensors of CLIP's and SigLIP's towers.
const CLIP: &[Renamed] = &[
    Renamed::new("v.patch_embd.", "embeddings.patch_embedding."),
    Renamed::new("v.position_embd.", "embeddings.position_embedding."),
    Renamed::new("v.class_embd", "embeddings.class_embedding"),
    Renamed::new("v.pre_ln.", "pre_layrnorm."),
    Renamed::new("v.blk.{}.ln1.", "encoder.layers.{}.layer_norm1."),
    Renamed::new("v.blk.{}.attn_q.", "encoder.layers.{}.self_attn.q_proj."),
    Renamed::new("v.blk.{}.attn_k.", "encoder.layers.{}.self_attn.k_proj."),
    Renamed::new("v.blk.{}.attn_v.", "encoder.layers.{}.self_attn.v_proj."),
    Renamed::new("v.blk.{}.attn_out.", "encoder.layers.{}.self_attn.out_proj."),
    Renamed::new("v.blk.{}.ln2.", "encoder.layers.{}.layer_norm2."),
    Renamed::new("v.post_ln.", "post_layernorm."),
];
const CLIP_FEED_FORWARD: [Renamed; 2] = [
    Renamed::new("v.blk.{}.ffn_up.", "encoder.layers.{}.mlp.fc1."),
    Renamed::new("v.blk.{}.ffn_down.", "encoder.layers.{}.mlp.fc2."),
];
/// Names of the tensors of Qwen-VL's towers, and of what merges their rows.
const QWEN: &[Renamed] = &[
    Renamed {
        way: Way::WithNextMoment("v.patch_embd.weight.1"),
        ..Renamed::new("v.patch_embd.weight", "patch_embed.proj.weight")
    },
    Renamed::new("v.blk.{}.ln1.", "blocks.{}.norm1."),
    Renamed {
        way: Way::Joined(&["v.blk.{}.attn_k.", "v.blk.{}.attn_v."]),
        ..Renamed::new("v.blk.{}.attn_q.", "blocks.{}.attn.qkv.")
    },
    Renamed::new("v.blk.{}.attn_qkv.", "blocks.{}.attn.qkv."),
    Renamed::new("v.blk.{}.attn_out.", "blocks.{}.attn.proj."),
    Renamed::new("v.blk.{}.ln2.", "blocks.{}.norm2."),
    // Old files have a table of zeros, which llama.cpp once asked for.
    Renamed { way: Way::Copied, ..Renamed::new("v.position_embd.", "position_embd.") },
    Renamed::new("v.post_ln.", "merger.ln_q."),
    Renamed::new("mm.0.", "merger.mlp.0."),
    Renamed::new("mm.2.", "merger.mlp.2."),
];

/// Names of the tensors of Pixtral's tower.
const PIXTRAL: &[Renamed] = &[
    Renamed::new("v.patch_embd.", "patch_conv."),
    Renamed::new("v.pre_ln.", "ln_pre."),
    Renamed::new("v.blk.{}.ln1.", "transformer.layers.{}.attention_norm."),
    Renamed {
        way: Way::HeadsInTurns,
        ..Renamed::new("v.blk.{}.attn_q.", "transformer.layers.{}.attention.q_proj.")
    },
    Renamed {
        way: Way::HeadsInTurns,
        ..Renamed::new("v.blk.{}.attn_k.", "transformer.layers.{}.attention.k_proj.")
    },
    Renamed::new("v.blk.{}.attn_v.", "transformer.layers.{}.attention.v_proj."),
    Renamed::new("v.blk.{}.attn_out.", "transformer.layers.{}.attention.o_proj."),
    Renamed::new("v.blk.{}.ln2.", "transformer.layers.{}.ffn_norm."),
    Renamed::new("v.blk.{}.ffn_gate.", "transformer.layers.{}.feed_forward.gate_proj."),
];

/// A model in two files, before its weights are read.
pub(super) struct InFiles {
    pub(super) architecture: Box<dyn Architecture>,
    pub(super) weights: WeightFiles,
    /// The settings in the place of small files.
    pub(super) small: InGguf,
}

impl InFiles {
    /// Reads what the headers of the two files say. `text` is what the first says of the tokenizer and the template.
    ///
    /// # Errors
    /// [`Error::UnsupportedArchitecture`] for another projector; [`Error::UnreadSetting`] for a key that nothing reads, unless
    /// that is allowed; those of the text half and of the family.
    pub(super) fn read(
        (file, arithmetic): (GgufFile, Arithmetic),
        tower: GgufFile,
        text: &GgufText,
        unread: Unread,
    ) -> Result<Self> {
        let decoder = DecoderConfig::from_gguf(&file)?;
        let keys = Keys::new(&file, &tower, text.tokenizer.as_ref());
        let projector = projector(&keys)?;
        let Settings { config, preprocessing } = (projector.settings)(&keys)?;
        if unread == Unread::Refused {
            keys.check_all_read()?;
        }
        let ends = decoder.end_tokens.iter().chain(&text.ends).copied().collect();
        let decoder = DecoderConfig { end_tokens: ends, ..decoder };
        let architecture = (projector.family)(tower.path(), &config, decoder)?;
        tower.check_types(|_| true)?;
        let small = InGguf {
            tower: tower.path().to_owned(),
            preprocessing,
            template: text.template.clone(),
            special: text.special.clone(),
        };
        // As llama.cpp tells them, older files have the two layers of a network the other way round; so does one that is as
        // wide as the tower.
        let down = tower.header().tensor("v.blk.0.ffn_down.weight");
        let width = down.and_then(|down| down.shape.last().copied());
        let is_old = projector.was_swapped && width == Some(keys.width()?);
        let [up, down] = projector.feed_forward;
        let feed_forward = match is_old {
            true => [Renamed { from: down.from, ..up }, Renamed { from: up.from, ..down }],
            false => [up, down],
        };
        let tower_names = projector.tower;
        let tables =
            [(tower_names, projector.blocks), (tower_names, &feed_forward[..]), ("", projector.table)];
        let head_size = keys.head_size()?;
        drop(keys);
        let weights = WeightFiles::of_gguf((file, arithmetic), (tower, head_size), &tables, unread);
        Ok(Self { architecture, weights, small })
    }
}

/// The projector of a file.
fn projector(keys: &Keys<'_>) -> Result<&'static Projector> {
    let path = keys.tower.path();
    let architecture = keys.tower.header().text("general.architecture").unwrap_or("(none named)");
    if architecture != "clip" {
        return Err(unsupported(path, "general.architecture", architecture, "clip"));
    }
    let found = keys.text("clip.projector_type").or_else(|| keys.text("clip.vision.projector_type"));
    let found = found.unwrap_or("(none named)");
    PROJECTORS.iter().find(|projector| projector.name == found).ok_or_else(|| {
        Error::UnsupportedArchitecture {
            found: format!("the projector {found}"),
            capability: "vision in GGUF".into(),
            supported: PROJECTORS.iter().map(|projector| projector.name.into()).collect(),
        }
    })
}
