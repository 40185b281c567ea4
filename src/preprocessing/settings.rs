//! Reads `preprocessor_config.json` and preprocesses pictures as it says.

mod open_clip;

use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use model_actors::{LoadContext, Picture};
use serde::Deserialize;
use serde_json::Value;

use super::{Filter, MAX_SIDE, Middle, centre_crop, check, check_sides, resize, resize_planes};
use crate::architecture::parse;
use crate::error::{Error, Result};
use crate::limits::MAX_IMAGE_ROWS;
use crate::source::{Files, read_json};

/// Image processor of transformers whose defaults hold where the file does not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Processor {
    /// `CLIPImageProcessor`, `ChineseCLIPImageProcessor` and `BitImageProcessor`: the shorter side becomes 224, the middle is kept.
    Clip,
    /// `SiglipImageProcessor`: a square of 224, half the range taken away.
    Siglip,
    /// `ViTImageProcessor`: the same, bilinear.
    Vit,
    /// `Siglip2ImageProcessor`: in proportion to at most 256 whole patches of 16, bilinear.
    Siglip2,
    /// `DINOv3ViTImageProcessor`: a square of 224, bilinear, with numbers that are not rounded to bytes again.
    Dinov3,
}

impl Processor {
    const NAMES: &'static str = "CLIPImageProcessor, ChineseCLIPImageProcessor, BitImageProcessor, \
                                 SiglipImageProcessor, ViTImageProcessor, Siglip2ImageProcessor, \
                                 DINOv3ViTImageProcessor";

    /// The one that a configuration names, if it names one of these.
    pub(crate) fn named(config: &Value) -> Option<Self> {
        let named = ["image_processor_type", "feature_extractor_type"].map(|name| config.get(name));
        named.into_iter().flatten().find_map(Value::as_str).and_then(Self::from_name)
    }

    /// By the name in `image_processor_type` or `feature_extractor_type`, of which there are many for the
    /// same.
    fn from_name(name: &str) -> Option<Self> {
        let name = name.strip_suffix("Fast").or(name.strip_suffix("Pil")).unwrap_or(name);
        let name = name.strip_suffix("ImageProcessor").or(name.strip_suffix("FeatureExtractor"))?;
        match name {
            "CLIP" | "ChineseCLIP" | "Bit" => Some(Self::Clip),
            "Siglip" => Some(Self::Siglip),
            "ViT" => Some(Self::Vit),
            "Siglip2" => Some(Self::Siglip2),
            "DINOv3ViT" => Some(Self::Dinov3),
            _ => None,
        }
    }
}

/// Size that a picture is resized to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Size {
    /// Exactly this, whatever the proportions.
    Exact { width: usize, height: usize },
    /// The shorter side this, in proportion.
    Shortest(usize),
    /// As many whole patches of this side as fit `most`, as near to the proportions as they can be.
    Patches { side: usize, most: usize },
}

impl Size {
    /// Sides after resizing a picture of these sides.
    pub(crate) fn of(self, width: usize, height: usize) -> (usize, usize) {
        let long = |shortest: usize, long: usize, short: usize| {
            // As Python divides: exact product, quotient in 64 bits, cut. The cast saturates.
            ((shortest as u128 * long as u128) as f64 / short.max(1) as f64) as usize
        };
        match self {
            Self::Exact { width, height } => (width, height),
            Self::Shortest(side) if width <= height => (side, long(side, height, width)),
            Self::Shortest(side) => (long(side, width, height), side),
            Self::Patches { side, most } => whole_patches(side, most, width, height),
        }
    }
}

/// The sides of the largest picture in proportion to this one, up to whole patches, that has at most so many. The scale
/// is searched by halves, as in the reference implementation, whose steps decide at some sizes.
fn whole_patches(side: usize, most: usize, width: usize, height: usize) -> (usize, usize) {
    const PRECISION: f64 = 1e-5;
    let patches = |scale: f64, length: usize| (length as f64 * scale / side.max(1) as f64).ceil().max(1.0);
    let (mut least_scale, mut most_scale) = (PRECISION / 10.0, 100.0);
    while most_scale - least_scale >= PRECISION {
        let scale = (least_scale + most_scale) / 2.0;
        match patches(scale, height) * patches(scale, width) <= most as f64 {
            true => least_scale = scale,
            false => most_scale = scale,
        }
    }
    // The casts saturate, and so large a side is refused.
    let pixels = |length: usize| (patches(least_scale, length) as usize).saturating_mul(side);
    (pixels(width), pixels(height))
}

/// Conversion of bytes to model inputs: `(byte · factor − mean) / deviation` for each channel.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Scaling {
    /// Model input for each of the 256 byte values, for each channel.
    table: Box<[[f32; 256]; 3]>,
}

impl Scaling {
    pub(crate) fn new(factor: f64, mean: [f32; 3], deviation: [f32; 3]) -> Self {
        let mut table = Box::new([[0.0; 256]; 3]);
        for (values, (mean, deviation)) in table.iter_mut().zip(mean.into_iter().zip(deviation)) {
            for (byte, value) in values.iter_mut().enumerate() {
                *value = ((byte as f64 * factor) as f32 - mean) / deviation;
            }
        }
        Self { table }
    }

    /// The colour nearest below the mean, which a model sees as nothing.
    pub(crate) fn zero(&self) -> [u8; 3] {
        let below = |values: &[f32; 256]| values.iter().rposition(|value| *value <= 0.0).unwrap_or(0) as u8;
        let [red, green, blue] = &*self.table;
        [red, green, blue].map(below)
    }

    /// `height × width × 3` bytes to `3 × height × width` numbers.
    pub(crate) fn values(&self, picture: &Picture) -> Result<Vec<f32>> {
        check(picture)?;
        let mut values = Vec::with_capacity(picture.rgb.len());
        for (channel, table) in self.table.iter().enumerate() {
            let bytes = picture.rgb.iter().skip(channel).step_by(3);
            values.extend(bytes.map(|byte| table[usize::from(*byte)]));
        }
        Ok(values)
    }

    /// `(3, height, width)`.
    pub(crate) fn tensor(&self, picture: &Picture, device: &Device) -> Result<Tensor> {
        Ok(Tensor::from_vec(self.values(picture)?, (3, picture.height, picture.width), device)?)
    }
}

/// The preprocessing that a model's file describes, validated.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Preprocessing {
    pub(crate) resize: Option<(Size, Filter)>,
    /// Width and height of the part in the middle that is kept.
    pub(crate) crop: Option<(usize, usize)>,
    middle: Middle,
    pub(crate) scaling: Scaling,
    rounding: Rounding,
}

/// Numbers that a resized picture consists of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rounding {
    /// Bytes.
    ToBytes,
    /// The model's inputs, which are made before the picture is resized.
    None,
}

/// Content of the file. A setting that it leaves out has the processor's default.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Raw {
    image_processor_type: Option<String>,
    feature_extractor_type: Option<String>,
    do_resize: Option<bool>,
    size: Option<Sides>,
    resample: Option<u64>,
    do_center_crop: Option<bool>,
    crop_size: Option<Sides>,
    do_rescale: Option<bool>,
    rescale_factor: Option<f64>,
    do_normalize: Option<bool>,
    image_mean: Option<Channels>,
    image_std: Option<Channels>,
    do_pad: Option<bool>,
    patch_size: Option<usize>,
    max_num_patches: Option<usize>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Sides {
    One(usize),
    Named {
        height: Option<usize>,
        width: Option<usize>,
        shortest_edge: Option<usize>,
        longest_edge: Option<usize>,
    },
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Channels {
    All(f32),
    Each([f32; 3]),
}

const CLIP_MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
const CLIP_DEVIATION: [f32; 3] = [0.268_629_55, 0.261_302_6, 0.275_777_1];
const IMAGENET_MEAN: [f32; 3] = [0.485, 0.456, 0.406];
const IMAGENET_DEVIATION: [f32; 3] = [0.229, 0.224, 0.225];
const FILE: &str = "preprocessor_config.json";
/// File of newer releases of transformers, which has the same under `image_processor`, and then goes before the other.
const NEW_FILE: &str = "processor_config.json";

/// Reads the settings of a model's image processor, and tells the file that they are from.
///
/// # Errors
/// [`Error::MissingFile`]; those of reading a file.
pub(crate) fn processor_config(files: &Files, context: &LoadContext) -> Result<(PathBuf, Value)> {
    if let Some(path) = files.optional(NEW_FILE, context)?
        && let Some(config) = read_json::<Value>(&path)?.get_mut("image_processor")
    {
        return Ok((path, config.take()));
    }
    let path = files.optional(FILE, context)?.ok_or_else(|| files.missing(FILE, context))?;
    let config = read_json(&path)?;
    Ok((path, config))
}

impl Preprocessing {
    /// Reads a model's own file. Where it names no processor, the defaults of `processor` hold.
    pub(crate) fn open(files: &Files, processor: Processor, context: &LoadContext) -> Result<Self> {
        let (path, config) = processor_config(files, context)?;
        Self::read(&path, &config, processor)
    }

    /// Reads the file's content.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`], [`Error::UnsupportedSetting`].
    pub(crate) fn read(file: &Path, config: &Value, processor: Processor) -> Result<Self> {
        let raw: Raw = parse(file, config)?;
        let processor = match raw.image_processor_type.as_deref().or(raw.feature_extractor_type.as_deref()) {
            None => processor,
            Some(name) => Processor::from_name(name).ok_or_else(|| Error::UnsupportedSetting {
                file: file.to_owned(),
                what: "image_processor_type".into(),
                found: name.to_owned(),
                supported: Processor::NAMES.into(),
            })?,
        };
        let reader = Reader { file: file.to_owned(), processor };
        if raw.do_pad == Some(true) {
            return Err(reader.unsupported("do_pad", "true".to_owned(), "false"));
        }
        let rounding = match processor {
            Processor::Dinov3 => Rounding::None,
            _ => Rounding::ToBytes,
        };
        let (resize, crop) = (reader.resize(&raw)?, reader.crop(&raw)?);
        if rounding == Rounding::None {
            if crop.is_some() {
                return Err(reader.unsupported("do_center_crop", "true".to_owned(), "false"));
            }
            if let Some((_, filter)) =
                resize.filter(|(_, filter)| !matches!(filter, Filter::Bilinear | Filter::Bicubic))
            {
                return Err(reader.unsupported(
                    "resample",
                    format!("{filter:?}"),
                    "2 or 3, bilinear or bicubic",
                ));
            }
        }
        Ok(Self { resize, crop, middle: Middle::Down, scaling: reader.scaling(&raw)?, rounding })
    }

    /// Pixels along the side of the whole patches that a picture is resized to, if it is.
    pub(crate) fn patch(&self) -> Option<usize> {
        match self.resize {
            Some((Size::Patches { side, .. }, _)) if self.crop.is_none() => Some(side),
            _ => None,
        }
    }

    /// Width and height of the output, where they do not depend on the input's.
    pub(crate) fn exact(&self) -> Option<(usize, usize)> {
        match (self.crop, self.resize) {
            (Some(sides), _) => Some(sides),
            (None, Some((Size::Exact { width, height }, _))) => Some((width, height)),
            _ => None,
        }
    }

    /// Resizes and crops a picture for the model.
    ///
    /// # Errors
    /// [`Error::InvalidInput`].
    pub(crate) fn picture(&self, picture: &Picture) -> Result<Picture> {
        check(picture)?;
        let resized = match self.resize {
            Some((size, filter)) => {
                let (width, height) = size.of(picture.width, picture.height);
                Some(resize(picture, width, height, filter)?)
            }
            None => None,
        };
        let resized = resized.as_ref().unwrap_or(picture);
        let cropped = match self.crop {
            Some((width, height)) => centre_crop(resized, width, height, self.middle)?,
            None => resized.clone(),
        };
        check_sides(cropped.width, cropped.height)?;
        Ok(cropped)
    }

    /// Resizes, crops and normalises a picture. Gives its width and height, and `3 × height × width` numbers.
    ///
    /// # Errors
    /// As [`Self::picture`].
    pub(crate) fn values(&self, picture: &Picture) -> Result<(usize, usize, Vec<f32>)> {
        if let (Rounding::None, Some((size, filter))) = (self.rounding, self.resize) {
            let (values, old) = (self.scaling.values(picture)?, (picture.width, picture.height));
            let (width, height) = size.of(picture.width, picture.height);
            return Ok((width, height, resize_planes(values, old, (width, height), filter)?));
        }
        let picture = self.picture(picture)?;
        Ok((picture.width, picture.height, self.scaling.values(&picture)?))
    }

    /// Resizes, crops and normalises a picture to a tensor of `(3, height, width)`.
    ///
    /// # Errors
    /// As [`Self::picture`].
    pub(crate) fn tensor(&self, picture: &Picture, device: &Device) -> Result<Tensor> {
        let (width, height, values) = self.values(picture)?;
        Ok(Tensor::from_vec(values, (3, height, width), device)?)
    }
}

struct Reader {
    file: PathBuf,
    processor: Processor,
}

impl Reader {
    fn unsupported(&self, what: &'static str, found: String, supported: &'static str) -> Error {
        Error::UnsupportedSetting {
            file: self.file.clone(),
            what: what.into(),
            found,
            supported: supported.into(),
        }
    }

    fn invalid(&self, reason: String) -> Error {
        Error::InvalidConfig { file: self.file.clone(), reason }
    }

    fn side(&self, side: usize) -> Result<usize> {
        match side {
            1..=MAX_SIDE => Ok(side),
            _ => Err(self.invalid(format!("a side of {side} pixels; 1 to {MAX_SIDE} are allowed"))),
        }
    }

    fn resize(&self, raw: &Raw) -> Result<Option<(Size, Filter)>> {
        if raw.do_resize == Some(false) {
            return Ok(None);
        }
        let filter = match raw.resample {
            None if matches!(self.processor, Processor::Vit | Processor::Siglip2 | Processor::Dinov3) => {
                Filter::Bilinear
            }
            None => Filter::Bicubic,
            Some(number) => Filter::from_number(number).ok_or_else(|| {
                self.unsupported("resample", number.to_string(), "0 to 5, as Pillow counts")
            })?,
        };
        let size = match raw.size {
            _ if self.processor == Processor::Siglip2 => self.patches(raw)?,
            None if self.processor == Processor::Clip => Size::Shortest(224),
            None => Size::Exact { width: 224, height: 224 },
            Some(Sides::One(side)) if self.processor == Processor::Vit => {
                Size::Exact { width: self.side(side)?, height: self.side(side)? }
            }
            Some(Sides::One(side) | Sides::Named { shortest_edge: Some(side), longest_edge: None, .. }) => {
                Size::Shortest(self.side(side)?)
            }
            Some(Sides::Named { height: Some(height), width: Some(width), shortest_edge: None, .. }) => {
                Size::Exact { width: self.side(width)?, height: self.side(height)? }
            }
            Some(Sides::Named { .. }) => {
                let supported = "height and width, shortest_edge alone, one number";
                return Err(self.unsupported("size", "of other sides".to_owned(), supported));
            }
        };
        Ok(Some((size, filter)))
    }

    fn patches(&self, raw: &Raw) -> Result<Size> {
        let (side, most) = (raw.patch_size.unwrap_or(16), raw.max_num_patches.unwrap_or(256));
        match most {
            1..=MAX_IMAGE_ROWS => Ok(Size::Patches { side: self.side(side)?, most }),
            _ => Err(self.invalid(format!("max_num_patches is {most}; 1 to {MAX_IMAGE_ROWS} are allowed"))),
        }
    }

    fn crop(&self, raw: &Raw) -> Result<Option<(usize, usize)>> {
        if !raw.do_center_crop.unwrap_or(self.processor == Processor::Clip) {
            return Ok(None);
        }
        match raw.crop_size {
            None => Ok(Some((224, 224))),
            Some(Sides::One(side)) => Ok(Some((self.side(side)?, self.side(side)?))),
            Some(Sides::Named { height: Some(height), width: Some(width), .. }) => {
                Ok(Some((self.side(width)?, self.side(height)?)))
            }
            Some(_) => Err(self.unsupported(
                "crop_size",
                "of other sides".to_owned(),
                "height and width, one number",
            )),
        }
    }

    fn scaling(&self, raw: &Raw) -> Result<Scaling> {
        let factor = match raw.do_rescale {
            Some(false) => 1.0,
            _ => raw.rescale_factor.unwrap_or(1.0 / 255.0),
        };
        let of = |channels: &Option<Channels>, clip: [f32; 3], imagenet: [f32; 3]| match channels {
            Some(Channels::All(value)) => [*value; 3],
            Some(Channels::Each(values)) => *values,
            None if self.processor == Processor::Clip => clip,
            None if self.processor == Processor::Dinov3 => imagenet,
            None => [0.5; 3],
        };
        let (mean, deviation) = match raw.do_normalize {
            Some(false) => ([0.0; 3], [1.0; 3]),
            _ => (
                of(&raw.image_mean, CLIP_MEAN, IMAGENET_MEAN),
                of(&raw.image_std, CLIP_DEVIATION, IMAGENET_DEVIATION),
            ),
        };
        let scaling = Scaling::new(factor, mean, deviation);
        if scaling.table.iter().flatten().any(|value| !value.is_finite()) {
            let reason =
                "rescale_factor, image_mean and image_std make numbers that are not finite".to_owned();
            return Err(self.invalid(reason));
        }
        Ok(scaling)
    }
}

#[cfg(test)]
mod tests;
