//! Qwen-VL: a vision tower for images of any size, whose patches are merged by fours into the text of a Qwen
//! decoder, in which a token's position has three coordinates (M-RoPE). What the versions have in common is here;
//! their settings, and names of tensors, are left to a file for each.

mod merger;
mod resize;
mod tower;
mod qwen2_5;
mod qwen2;
mod qwen3;
#[cfg(test)]
mod tower_tests;

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{Device, Tensor};
use model_actors::{Bytes, LoadContext, Picture};
use serde_json::{Value, json};

use super::asked::Asked;
use super::chat::{Chat, part, text_config};
use super::language_model::{Answer, ImagePlace, LanguageModel};
use super::{
    Architecture, CAPABILITY, ImageRows, Network, Prompt, SmallFiles, StepwiseTower, Unfinished,
    WorkerMemory, misfit, prefix,
};
use crate::architecture;
use crate::error::{Error, Result};
use crate::kernels::rotary::Position;
use crate::limits::MAX_IMAGES;
use crate::models::config_file::with_defaults;
use crate::models::decoder::{self, DecoderConfig, DecoderNames};
use crate::models::towers::pick;
use crate::models::transformer::{SafeTensors, Workload};
use crate::preprocessing::Scaling;
use crate::tokens::Tokens;
use crate::weights::WeightFiles;
pub(super) use qwen2::{FAMILY as QWEN2, with_text as qwen2};
pub(super) use qwen2_5::{FAMILY as QWEN2_5, with_text as qwen2_5};
pub(super) use qwen3::{FAMILY as QWEN3, MOE_FAMILY as QWEN3_MOE};
use resize::SmartResize;
use tower::{Tower, TowerConfig};

/// Of all norms of the vision tower.
const EPSILON: f64 = 1e-6;
const TOWERS: [&str; 2] = ["model.visual.", "visual."];

/// `config.json`, with what the other small files say once they are read.
struct Config {
    file: PathBuf,
    tower: TowerConfig,
    text: DecoderConfig,
    image_token: u32,
    rest: Option<(SmartResize, Scaling, Chat)>,
}

/// The text half of a version.
struct TextHalf {
    /// The model type of the decoder that it is.
    kind: &'static str,
    /// Numbers of pairs that each coordinate of a position rotates, where the file has none.
    sections: [usize; 3],
    is_interleaved: bool,
    /// Base of the rotary embedding, where the file has none.
    theta: f64,
    /// Other settings that a file leaves out.
    defaults: fn() -> Value,
    /// Settings of the decoder that are so whatever the file says.
    fixed: &'static [(&'static str, bool)],
    /// Names of the tensors, where they are not the decoder's own.
    names: Option<&'static DecoderNames>,
}

impl Config {
    fn new(file: &Path, config: &Value, tower: TowerConfig, text: &TextHalf) -> Result<Self> {
        let names = text.names;
        let text = architecture::find(decoder::FAMILIES, CAPABILITY, file, &text.settings(config))?;
        Self::with_text(file, config, tower, DecoderConfig { names: names.unwrap_or(text.names), ..text })
    }

    fn with_text(file: &Path, config: &Value, tower: TowerConfig, text: DecoderConfig) -> Result<Self> {
        let invalid = |reason: String| Error::InvalidConfig { file: file.to_owned(), reason };
        if tower.out_hidden_size != text.width() {
            let (out, width) = (tower.out_hidden_size, text.width());
            return Err(invalid(format!("out_hidden_size is {out}; the text's hidden_size is {width}")));
        }
        let image_token = match part(config, "image_token_id") {
            Value::Null => 151_655,
            token => {
                let token = token.as_u64().and_then(|token| u32::try_from(token).ok());
                token.ok_or_else(|| invalid("image_token_id is no token's number".to_owned()))?
            }
        };
        Ok(Self { file: file.to_owned(), tower, text, image_token, rest: None })
    }
}

impl TextHalf {
    /// The settings of the text half as those of the decoder that it is. Older files have them beside those of the
    /// whole.
    fn settings(&self, config: &Value) -> Value {
        let text = match part(config, "text_config") {
            Value::Null => config.clone(),
            _ => text_config(config, self.kind),
        };
        let mut text = with_defaults(&text, (self.defaults)());
        let Some(settings) = text.as_object_mut() else { return text };
        settings.insert("model_type".to_owned(), self.kind.into());
        settings.remove("architectures");
        settings.extend(self.fixed.iter().map(|(name, value)| ((*name).to_owned(), (*value).into())));
        let name = match settings.get("rope_parameters") {
            Some(Value::Object(_)) => "rope_parameters",
            _ => "rope_scaling",
        };
        let has_theta = settings.get("rope_theta").is_some_and(|theta| !theta.is_null());
        let rope = settings.entry(name).or_insert(Value::Null);
        if rope.is_null() {
            *rope = json!({});
        }
        if let Some(rope) = rope.as_object_mut() {
            // The reference does as the version does, whatever the file says.
            rope.remove("mrope_interleaved");
            if self.is_interleaved {
                rope.insert("mrope_interleaved".to_owned(), true.into());
            }
            rope.entry("mrope_section").or_insert_with(|| json!(self.sections));
            if !has_theta {
                rope.entry("rope_theta").or_insert_with(|| self.theta.into());
            }
        }
        text
    }
}

impl Architecture for Config {
    fn complete(&mut self, files: &SmallFiles<'_>, context: &LoadContext) -> Result<()> {
        let (file, config) = super::preprocessor_config(files, json!({}), context)?;
        let resize = SmartResize::read(&file, &config, self.tower.patch_size, self.tower.spatial_merge_size)?;
        let left_out =
            ["size", "min_pixels", "max_pixels", "do_resize", "do_center_crop", "do_pad", "crop_size"];
        let defaults = json!({"do_resize": false, "do_center_crop": false});
        let preprocessing = super::preprocessing_without(files, defaults, &left_out, context)?;
        let chat = Chat::read(files, self.image_token, context)?;
        chat.check(self.text.vocabulary)?;
        if self.text.transformer.layers.len() < self.tower.deepstack_visual_indexes.len() {
            let reason = "deepstack_visual_indexes has more layers than the text model".to_owned();
            return Err(Error::InvalidConfig { file: self.file.clone(), reason });
        }
        self.rest = Some((resize, preprocessing.scaling, chat));
        Ok(())
    }

    fn text(&self) -> &DecoderConfig {
        &self.text
    }

    fn uses(&self, tensor: &str) -> bool {
        TOWERS.iter().any(|prefix| tensor.starts_with(prefix)) || self.text.uses(tensor)
    }

    fn per_worker(&self, room: WorkerMemory) -> Bytes {
        let text = room.of_text(&self.text);
        // The largest image that is let in: by its pixels, and by the tokens that it may take.
        let side = self.tower.patch_size.max(1);
        let pixels = self.rest.as_ref().map_or(usize::MAX, |(resize, ..)| resize.most());
        let all = room.longest.saturating_mul(self.tower.merged());
        let patches = all.min(pixels / (side * side));
        // The pixels of all images of a conversation, and the rows that the text gets of them.
        let all = all.min(pixels.saturating_mul(MAX_IMAGES) / (side * side)) as u64;
        let deep = 1 + self.tower.deepstack_visual_indexes.len() as u64;
        let rows = all / self.tower.merged().max(1) as u64 * deep * self.text.width() as u64;
        let pixels = all.saturating_mul(3 * (side * side) as u64);
        self.tower.scratch(patches) + Bytes(pixels.saturating_add(rows).saturating_mul(4)) + text
    }

    fn load(
        &self,
        tokens: &Tokens,
        weights: &WeightFiles,
        device: &Device,
        context: &LoadContext,
    ) -> Result<Arc<dyn Network>> {
        let (resize, scaling, chat) = self.rest.clone().ok_or_else(misfit)?;
        let tower = prefix(weights, &TOWERS, "patch_embed.proj.weight");
        let reader = weights.reader(tower, device, context);
        Ok(Arc::new(QwenVl {
            tower: Tower::load(&self.tower, &SafeTensors::new(&reader, "", Workload::WholeSequences))?,
            language_model: LanguageModel {
                decoder: self.text.load(weights, device, context)?,
                image: ImagePlace::InPrompt,
            },
            ends: chat.ends(tokens, &self.text.end_tokens),
            resize,
            scaling,
            chat,
            device: device.clone(),
        }))
    }
}

struct QwenVl {
    tower: Tower,
    language_model: LanguageModel,
    ends: Vec<u32>,
    resize: SmartResize,
    scaling: Scaling,
    chat: Chat,
    device: Device,
}

impl QwenVl {
    /// Lines and columns of the rows that the text gets of a picture of these sides.
    fn grid(&self, sides: (usize, usize)) -> Result<(usize, usize)> {
        let (width, height) = self.resize.of(sides)?;
        Ok(self.tower.merged_grid(width, height))
    }
}

impl Network for QwenVl {
    fn ends(&self) -> &[u32] {
        &self.ends
    }

    fn prompt(&self, tokens: &Tokens, asked: &Asked<'_>) -> Result<Prompt> {
        let sides = asked.sides.clone();
        let rows = sides.iter().map(|sides| self.grid(*sides).map(|(down, across)| down * across));
        let (tokens, places) = self.chat.ask(tokens, asked, &rows.collect::<Result<Vec<_>>>()?)?;
        Ok(Prompt { tokens, places, sides })
    }

    fn crops(&self, picture: &Picture, _: usize) -> Result<Vec<Tensor>> {
        Ok(vec![self.scaling.tensor(&self.resize.picture(picture)?, &self.device)?])
    }

    fn tower(&self) -> &dyn StepwiseTower {
        &self.tower
    }

    fn keep(
        &self,
        layers: usize,
        hidden: &Tensor,
        parts: &mut Option<Unfinished>,
    ) -> Result<Option<Vec<Tensor>>> {
        self.tower.keep(layers, hidden, parts)
    }

    fn image(&self, sides: (usize, usize), _: usize, kept: &[Vec<Tensor>]) -> Result<ImageRows> {
        let (rows, deep) = kept.first().and_then(|kept| kept.split_last()).ok_or_else(misfit)?;
        let rows = match self.tower.line_by_line(self.grid(sides)?) {
            Some(places) => pick(rows, places.into_iter())?,
            None => rows.clone(),
        };
        Ok(ImageRows { rows, deep: deep.to_vec() })
    }

    fn begin(&self, prompt: &Prompt, images: &[ImageRows]) -> Result<Answer> {
        let grids = prompt.sides.iter().map(|sides| self.grid(*sides)).collect::<Result<Vec<_>>>()?;
        let positions = positions(prompt.tokens.len(), &prompt.places, &grids);
        self.language_model.begin(prompt, images, Some(positions))
    }

    fn language_model(&self) -> &LanguageModel {
        &self.language_model
    }
}

/// Positions of a prompt's rows (M-RoPE), and the position after the last. Text tokens advance all three axes; an
/// image's patches share the temporal one, each at its row and column, and what follows it goes on behind its longer
/// side.
fn positions(count: usize, images: &[Range<usize>], grids: &[(usize, usize)]) -> (Vec<Position>, u32) {
    let (mut positions, mut next): (Vec<Position>, u32) = (Vec::with_capacity(count), 0);
    for (image, (down, across)) in images.iter().zip(grids) {
        let words = image.start.saturating_sub(positions.len()) as u32;
        positions.extend((next..next + words).map(|place| [place; 3]));
        next += words;
        for line in 0..*down as u32 {
            positions.extend((0..*across as u32).map(|column| [next, next + line, next + column]));
        }
        next += *down.max(across) as u32;
    }
    let after = count.saturating_sub(positions.len()) as u32;
    positions.extend((next..next + after).map(|place| [place; 3]));
    (positions, next + after)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_of_the_text_beside_the_others_or_in_a_part_are_the_same() {
        let half = TextHalf {
            kind: "qwen2",
            sections: [16, 24, 24],
            is_interleaved: false,
            theta: 1e6,
            defaults: || json!({}),
            fixed: &[],
            names: None,
        };
        let flat = json!({"hidden_size": 48, "rope_scaling": {"type": "mrope"}, "rope_theta": 5.0});
        let nested =
            json!({"text_config": {"hidden_size": 48, "rope_scaling": {"type": "mrope"}, "rope_theta": 5.0}});
        let wanted = json!({
            "model_type": "qwen2", "hidden_size": 48, "rope_theta": 5.0,
            "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}
        });
        assert_eq!(half.settings(&flat), wanted);
        assert_eq!(half.settings(&nested), wanted);
        let bare = half.settings(&json!({"text_config": {"rope_parameters": {}}}));
        assert_eq!(bare["rope_parameters"]["rope_theta"], 1e6);
    }

    #[test]
    fn words_behind_an_image_go_on_behind_its_longer_side() {
        let image = std::iter::once(1..7).collect::<Vec<_>>();
        let (positions, next) = positions(9, &image, &[(3, 2)]);
        assert_eq!(positions[0], [0; 3]);
        assert_eq!(positions[1..7], [[1, 1, 1], [1, 1, 2], [1, 2, 1], [1, 2, 2], [1, 3, 1], [1, 3, 2]]);
        assert_eq!(positions[7..], [[4; 3], [5; 3]]);
        assert_eq!(next, 6);
    }

    #[test]
    fn a_second_image_begins_behind_the_words_after_the_first() {
        let (positions, next) = positions(8, &[0..2, 3..7], &[(1, 2), (2, 2)]);
        assert_eq!(positions[..3], [[0, 0, 0], [0, 0, 1], [2; 3]]);
        assert_eq!(positions[3..7], [[3, 3, 3], [3, 3, 4], [3, 4, 3], [3, 4, 4]]);
        assert_eq!((positions[7], next), ([5; 3], 6));
    }
}
