//! The preprocessing of OpenCLIP, `preprocess_cfg` of `open_clip_config.json`, as its transforms for inference make it.

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::{
    CLIP_DEVIATION, CLIP_MEAN, Channels, Filter, Middle, Preprocessing, Processor, Raw, Reader, Rounding,
    Size,
};
use crate::architecture::parse;
use crate::error::Result;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Settings {
    size: Option<Value>,
    mode: Option<String>,
    mean: Option<Channels>,
    std: Option<Channels>,
    interpolation: Option<String>,
    resize_mode: Option<String>,
}

impl Preprocessing {
    /// Reads the settings of a model that takes squares of this side.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`](crate::Error::InvalidConfig),
    /// [`Error::UnsupportedSetting`](crate::Error::UnsupportedSetting).
    pub(crate) fn of_open_clip(file: &Path, config: &Value, side: usize) -> Result<Self> {
        let settings = match config {
            Value::Null => Settings::default(),
            config => parse(file, config)?,
        };
        let reader = Reader { file: file.to_owned(), processor: Processor::Clip };
        let side = reader.side(side)?;
        let named = |value: &Option<String>, usual: &str| value.clone().unwrap_or_else(|| usual.to_owned());
        let mode = named(&settings.mode, "RGB");
        if mode != "RGB" {
            return Err(reader.unsupported("preprocess_cfg.mode", mode, "RGB"));
        }
        let sizes = [Value::from(side), Value::from(vec![side; 2]), Value::from(vec![3, side, side])];
        if let Some(size) = settings.size.filter(|size| !sizes.contains(size)) {
            let supported = "the image_size of vision_cfg";
            return Err(reader.unsupported("preprocess_cfg.size", size.to_string(), supported));
        }
        let filter = match named(&settings.interpolation, "bicubic").as_str() {
            // For inference.
            "bicubic" | "random" => Filter::Bicubic,
            "bilinear" => Filter::Bilinear,
            other => {
                let supported = "bicubic, bilinear";
                return Err(reader.unsupported("preprocess_cfg.interpolation", other.to_owned(), supported));
            }
        };
        let (size, crop) = match named(&settings.resize_mode, "shortest").as_str() {
            "shortest" => (Size::Shortest(side), Some((side, side))),
            "squash" => (Size::Exact { width: side, height: side }, None),
            other => {
                let supported = "shortest, squash";
                return Err(reader.unsupported("preprocess_cfg.resize_mode", other.to_owned(), supported));
            }
        };
        let raw = Raw {
            image_mean: settings.mean.or(Some(Channels::Each(CLIP_MEAN))),
            image_std: settings.std.or(Some(Channels::Each(CLIP_DEVIATION))),
            ..Raw::default()
        };
        Ok(Self {
            resize: Some((size, filter)),
            crop,
            middle: Middle::ToEven,
            scaling: reader.scaling(&raw)?,
            rounding: Rounding::ToBytes,
        })
    }
}
