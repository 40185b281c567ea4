//! Encoders that several capabilities share: images to rows of patch vectors (CLIP, SigLIP, DINOv2) and texts
//! to rows of token vectors (CLIP, SigLIP, and the encoders among the embedding models). The blocks are those
//! of `transformer`; here is what comes before them, and which settings and tensor names the towers of a
//! family have. The rows of all images or texts of a pass lie one after another without padding. Their use
//! is left to the capabilities: embedding pools them, vision feeds the hidden states of some block to
//! a language model, text to image those of a text.

mod rows;
mod positions;
mod settings;
mod text;
mod vision;
pub(crate) mod clip;
pub(crate) mod dinov2;
pub(crate) mod dinov3;
pub(crate) mod siglip;

pub(crate) use positions::{Positions, Resampling, resample};
pub(crate) use rows::pick;
pub(crate) use settings::{CLIP_BLOCKS, VisionSettings};
pub(crate) use text::{PositionsConfig, TextTower, TextTowerConfig, TextTowerNames, TokenAdapter};
pub(crate) use vision::{Patches, VisionTower};
