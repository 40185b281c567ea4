//! The keys of a vision tower's GGUF file as the settings that its family reads from `config.json` and
//! `preprocessor_config.json`, with llama.cpp's defaults for absent ones. A key that nothing reads is refused.

use std::cell::{OnceCell, RefCell};
use std::collections::HashSet;

use serde_json::{Value as Json, json};

use super::Settings;
use crate::error::{Error, Result};
use crate::gguf::{GgufFile, Value};
use crate::models::config_file::{MAX_LAYERS, unsupported};
use crate::models::gguf_text;
use crate::tokens::{TokenizerFiles, Tokens};

/// Beginning of the keys of vision towers.
const OWN: &str = "clip.";
/// Keys that tell nothing that the tensors do not.
const NO_EFFECT: [&str; 4] = [
    "clip.has_vision_encoder",
    "clip.has_llava_projector",
    "clip.has_qwen2vl_merger",
    "clip.vision.projection_dim",
];

/// The keys of a file, and those that were read.
pub(super) struct Keys<'a> {
    pub(super) tower: &'a GgufFile,
    text: &'a GgufFile,
    tokenizer: Option<&'a TokenizerFiles>,
    read: RefCell<HashSet<String>>,
    /// The tokenizer beside the files, once it was asked for, or the words of the text half's own.
    tokens: OnceCell<Tokens>,
    words: OnceCell<Vec<String>>,
}

/// The value of a cell, which is made once.
fn once<T>(cell: &OnceCell<T>, make: impl FnOnce() -> Result<T>) -> Result<&T> {
    match cell.get() {
        Some(value) => Ok(value),
        None => {
            let value = make()?;
            Ok(cell.get_or_init(|| value))
        }
    }
}

impl<'a> Keys<'a> {
    /// The keys of the file `tower`, beside which the text half and its tokenizer are.
    pub(super) fn new(
        text: &'a GgufFile,
        tower: &'a GgufFile,
        tokenizer: Option<&'a TokenizerFiles>,
    ) -> Self {
        let (read, tokens, words) = (RefCell::default(), OnceCell::new(), OnceCell::new());
        Self { tower, text, tokenizer, read, tokens, words }
    }

    fn value(&self, key: &str) -> Option<&'a Value> {
        self.read.borrow_mut().insert(key.to_owned());
        self.tower.header().value(key)
    }

    pub(super) fn text(&self, key: &str) -> Option<&'a str> {
        match self.value(key)? {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    fn bad(&self, key: &str, needed: &str) -> Error {
        match self.tower.header().value(key) {
            None => self.tower.invalid(format!("it has no {key}")),
            Some(value) => self.tower.invalid(format!("{key} is {value:?}, which is no {needed}")),
        }
    }

    fn optional(&self, key: &str) -> Result<Option<usize>> {
        if self.value(key).is_none() {
            return Ok(None);
        }
        let number = self.tower.header().number(key).and_then(|number| usize::try_from(number).ok());
        number.map(Some).ok_or_else(|| self.bad(key, "whole number"))
    }

    fn number(&self, key: &str) -> Result<usize> {
        self.optional(key)?.ok_or_else(|| self.bad(key, "whole number"))
    }

    fn float(&self, key: &str) -> Result<f64> {
        self.read.borrow_mut().insert(key.to_owned());
        self.tower.header().float(key).ok_or_else(|| self.bad(key, "number"))
    }

    fn truth(&self, key: &str) -> Result<bool> {
        match self.value(key) {
            None => Ok(false),
            Some(Value::Truth(truth)) => Ok(*truth),
            Some(_) => Err(self.bad(key, "truth")),
        }
    }

    /// A number for each colour.
    fn colours(&self, key: &str) -> Result<Json> {
        let numbers: Option<Vec<f64>> = match self.value(key) {
            Some(Value::List(list)) if list.len() == 3 => list
                .iter()
                .map(|value| match value {
                    Value::Float(number) => Some(*number),
                    Value::Unsigned(number) => Some(*number as f64),
                    _ => None,
                })
                .collect(),
            _ => None,
        };
        numbers.map(Json::from).ok_or_else(|| self.bad(key, "list of three numbers"))
    }

    /// Width of the tower.
    pub(super) fn width(&self) -> Result<usize> {
        self.number("clip.vision.embedding_length")
    }

    /// Numbers of a head of the tower.
    pub(super) fn head_size(&self) -> Result<usize> {
        let heads = self.number("clip.vision.attention.head_count")?;
        Ok(self.width()?.checked_div(heads).unwrap_or(0))
    }

    /// Refuses another epsilon of the norms than the family's.
    fn check_epsilon(&self, needed: f64) -> Result<()> {
        let key = "clip.vision.attention.layer_norm_epsilon";
        let found = self.float(key)?;
        match (found - needed).abs() <= needed * 1e-3 {
            true => Ok(()),
            false => Err(unsupported(self.tower.path(), key, &found.to_string(), needed.to_string())),
        }
    }

    /// The number of the first of these tokens that the tokenizer has.
    fn token(&self, names: &[&str]) -> Result<usize> {
        let found = match self.tokenizer {
            Some(files) => {
                let tokens = once(&self.tokens, || gguf_text::tokens(Some(files), self.text))?;
                names.iter().find_map(|name| tokens.id(name)).map(|id| id as usize)
            }
            None => {
                let tokens = once(&self.words, || Ok(self.text.tokenizer()?.tokens))?;
                names.iter().find_map(|name| tokens.iter().position(|token| token == name))
            }
        };
        found.ok_or_else(|| Error::InvalidTokenizer {
            file: gguf_text::tokenizer_path(self.tokenizer, self.text).to_owned(),
            reason: format!("it has no token {}, which the images of this model need", names.join(" or ")),
        })
    }

    /// Width of the text half.
    fn text_width(&self) -> usize {
        let embeddings = self.text.header().tensor("token_embd.weight");
        embeddings.and_then(|embeddings| embeddings.shape.last().copied()).unwrap_or(0)
    }

    fn activation(&self) -> Result<&'static str> {
        match (self.truth("clip.use_gelu")?, self.truth("clip.use_silu")?) {
            (true, true) => Err(self.tower.invalid("it uses both GELU and SiLU".to_owned())),
            (true, false) => Ok("gelu_pytorch_tanh"),
            (false, true) => Ok("silu"),
            (false, false) => Ok("quick_gelu"),
        }
    }

    /// The settings that the towers of CLIP and SigLIP have.
    fn vision(&self) -> Result<Json> {
        Ok(json!({
            "hidden_size": self.width()?,
            "intermediate_size": self.number("clip.vision.feed_forward_length")?,
            "num_hidden_layers": self.number("clip.vision.block_count")?,
            "num_attention_heads": self.number("clip.vision.attention.head_count")?,
            "layer_norm_eps": self.float("clip.vision.attention.layer_norm_epsilon")?,
            "image_size": self.number("clip.vision.image_size")?,
            "patch_size": self.number("clip.vision.patch_size")?,
            "hidden_act": self.activation()?,
        }))
    }

    /// The settings of preprocessing that all have, and these.
    fn preprocessing(&self, mut own: Json) -> Result<Json> {
        for (name, key) in [("image_mean", "clip.vision.image_mean"), ("image_std", "clip.vision.image_std")]
        {
            own[name] = self.colours(key)?;
        }
        Ok(own)
    }

    /// Refuses the first key that was not read and is not off.
    ///
    /// # Errors
    /// [`Error::UnreadSetting`].
    pub(super) fn check_all_read(&self) -> Result<()> {
        let read = self.read.borrow();
        let is_off = |value: &Value| match value {
            Value::Truth(truth) => !truth,
            Value::Unsigned(number) => *number == 0,
            Value::Text(text) => text.is_empty(),
            Value::List(list) => list.is_empty(),
            _ => false,
        };
        let left = self.tower.header().values().filter(|(key, value)| {
            let is_known = read.contains(*key) || NO_EFFECT.contains(&key.as_str());
            key.starts_with(OWN) && !is_known && !is_off(value)
        });
        match left.min_by_key(|(key, _)| key.as_str()) {
            None => Ok(()),
            Some((key, value)) => Err(Error::UnreadSetting {
                file: self.tower.path().to_owned(),
                setting: key.clone(),
                found: format!("{value:?}").chars().take(60).collect(),
            }),
        }
    }
}

/// Gemma 3: squares of patches along a side become one row.
pub(super) fn gemma3(keys: &Keys<'_>) -> Result<Settings> {
    let merged = keys.optional("clip.vision.projector.scale_factor")?.unwrap_or(4);
    let (image, patch) = (keys.number("clip.vision.image_size")?, keys.number("clip.vision.patch_size")?);
    let grid = image.checked_div(patch).unwrap_or(0);
    // One that is not whole is refused as none.
    let side = if grid.is_multiple_of(merged) { grid / merged.max(1) } else { 0 };
    let config = json!({
        "vision_config": keys.vision()?,
        "mm_tokens_per_image": side.saturating_mul(side),
        "boi_token_index": keys.token(&["<start_of_image>"])?,
        "eoi_token_index": keys.token(&["<end_of_image>"])?,
        // Most files leave out the last, which only stands for the rows of an image.
        "image_token_index": keys.token(&["<image_soft_token>", "<unused0>"])?,
    });
    let preprocessing = keys.preprocessing(json!({"size": {"height": image, "width": image}}))?;
    Ok(Settings { config, preprocessing })
}

/// Idefics3 and SmolVLM.
pub(super) fn idefics3(keys: &Keys<'_>) -> Result<Settings> {
    let tile = keys.number("clip.vision.image_size")?;
    // Of all published models four tiles are side by side; files of before the key was told do not say so.
    let longest = keys.optional("clip.vision.preproc_image_size")?.unwrap_or(tile.saturating_mul(4));
    let config = json!({
        "vision_config": keys.vision()?,
        "scale_factor": keys.number("clip.vision.projector.scale_factor")?,
        "image_token_id": keys.token(&["<image>"])?,
    });
    let preprocessing = keys.preprocessing(json!({
        "size": {"longest_edge": longest}, "max_image_size": {"longest_edge": tile}
    }))?;
    Ok(Settings { config, preprocessing })
}

/// Qwen2-VL. Of the pictures' sizes files say nothing: those of llama.cpp hold.
pub(super) fn qwen2_vl(keys: &Keys<'_>) -> Result<Settings> {
    qwen_vl(keys, |keys, vision| {
        // What the file calls the width of these networks is none, but their tensors tell it.
        let width = keys.width()?;
        let up = ["v.blk.0.ffn_up.bias", "v.blk.0.ffn_down.bias"];
        let wide =
            up.iter().filter_map(|name| keys.tower.header().tensor(name)?.shape.first().copied()).max();
        keys.optional("clip.vision.feed_forward_length")?;
        vision["mlp_ratio"] = json!(wide.and_then(|wide| wide.checked_div(width)).unwrap_or(0));
        (vision["embed_dim"], vision["hidden_size"]) = (json!(width), json!(keys.text_width()));
        Ok(())
    })
}

/// Qwen2.5-VL.
pub(super) fn qwen2_5_vl(keys: &Keys<'_>) -> Result<Settings> {
    qwen_vl(keys, |keys, vision| {
        let pattern = keys.number("clip.vision.n_wa_pattern")?.max(1);
        let depth = keys.number("clip.vision.block_count")?;
        // The tower's own reader refuses more.
        let full = (0..depth.min(MAX_LAYERS)).filter(|block| (block + 1).is_multiple_of(pattern));
        vision["fullatt_block_indexes"] = full.collect();
        vision["hidden_size"] = json!(keys.width()?);
        vision["intermediate_size"] = json!(keys.number("clip.vision.feed_forward_length")?);
        vision["window_size"] = json!(keys.optional("clip.vision.window_size")?.unwrap_or(112));
        vision["out_hidden_size"] = json!(keys.text_width());
        Ok(())
    })
}

fn qwen_vl(keys: &Keys<'_>, own: fn(&Keys<'_>, &mut Json) -> Result<()>) -> Result<Settings> {
    keys.check_epsilon(1e-6)?;
    let merge = keys.optional("clip.vision.spatial_merge_size")?.unwrap_or(2);
    let patch = keys.number("clip.vision.patch_size")?;
    // The tower takes images of any size.
    keys.optional("clip.vision.image_size")?;
    let mut vision = json!({
        "depth": keys.number("clip.vision.block_count")?,
        "num_heads": keys.number("clip.vision.attention.head_count")?,
        "patch_size": patch,
        "spatial_merge_size": merge,
        "temporal_patch_size": 2,
        "hidden_act": keys.activation()?,
    });
    own(keys, &mut vision)?;
    let config = json!({"vision_config": vision, "image_token_id": keys.token(&["<|image_pad|>"])?});
    let area = patch.saturating_mul(merge).saturating_pow(2);
    let pixels = |key: &str, rows: usize| -> Result<usize> {
        Ok(keys.optional(key)?.unwrap_or(area.saturating_mul(rows)))
    };
    let preprocessing = keys.preprocessing(json!({
        "min_pixels": pixels("clip.vision.image_min_pixels", 8)?,
        "max_pixels": pixels("clip.vision.image_max_pixels", 4096)?,
    }))?;
    Ok(Settings { config, preprocessing })
}

/// Pixtral, and Mistral Small 3.1, whose patches are merged. As in transformers, a picture is at most as large as the file
/// says; llama.cpp makes it smaller.
pub(super) fn pixtral(keys: &Keys<'_>) -> Result<Settings> {
    keys.check_epsilon(1e-5)?;
    let (mut vision, longest) = (keys.vision()?, keys.number("clip.vision.image_size")?);
    vision["model_type"] = json!("pixtral");
    if keys.truth("clip.use_gelu")? {
        vision["hidden_act"] = json!("gelu");
    }
    let mut config = json!({
        "vision_config": vision,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
        "multimodal_projector_bias": keys.tower.contains("mm.1.bias"),
        "image_token_index": keys.token(&["[IMG]"])?,
    });
    let merge = keys.optional("clip.vision.spatial_merge_size")?.unwrap_or(1);
    if merge > 1 || keys.tower.contains("mm.patch_merger.weight") {
        config["spatial_merge_size"] = json!(merge);
    }
    let preprocessing = keys.preprocessing(json!({"size": {"longest_edge": longest}}))?;
    Ok(Settings { config, preprocessing })
}
