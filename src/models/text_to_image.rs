//! Text to image: from a repository in the layout of diffusers to a model that makes images. The list of
//! families is here. Noise, guidance, the denoising loop and the roles of the actors' model contract are the
//! same for every family; what one computes is left to its file. The modules are listed in reading order, and
//! each imports only those above it.

mod noise;
mod repository;
mod pipeline;
mod layers;
mod prompt;
mod clip;
mod t5;
mod resnet;
mod mid_block;
mod encoder;
mod autoencoder;
mod tiny_autoencoder;
mod latent_decoder;
mod unet;
mod mmdit;
mod schedule;
mod flow_match;
mod stable_diffusion;
mod stable_diffusion_xl;
mod sd3;
mod flux;
mod decode;
mod preview;
mod denoising;
mod plan;
mod model;
mod worker;
#[cfg(feature = "benchmarks")]
mod parts;
#[cfg(test)]
mod first_image_tests;
#[cfg(test)]
mod flow_tests;
#[cfg(test)]
mod reference_tests;
#[cfg(test)]
mod t5_tests;
#[cfg(test)]
mod worker_tests;

use model_actors::PaintImage;

use crate::architecture::Family;
use crate::error::{Error, Result};
pub use model::TextToImageModel;
#[cfg(feature = "benchmarks")]
pub use parts::{ImageDecoder, PromptT5};
use pipeline::Read;

/// The families, by the class of the pipeline in `model_index.json`, in the order that errors list them. A
/// new family is its file and its line here.
const FAMILIES: &[Family<Read>] = &[
    stable_diffusion::FAMILY,
    stable_diffusion::FAMILY_INPAINT,
    stable_diffusion::FAMILY_LCM,
    stable_diffusion_xl::FAMILY,
    stable_diffusion_xl::FAMILY_INPAINT,
    sd3::FAMILY,
    flux::FAMILY,
];

/// Name of the capability in errors.
const CAPABILITY: &str = "text to image";

/// Checks as much of a request as needs no model: whether any family has its scheduler.
///
/// # Errors
/// [`Error::InvalidInput`] for an unknown scheduler, which lists the known ones.
pub(crate) fn check_request(request: &PaintImage) -> Result<()> {
    match request.scheduler.as_deref() {
        Some(name) if !schedule::is_known(name) && !flow_match::is_known(name) => {
            let known = schedule::names().join(", ");
            let reason =
                format!("the scheduler {name:?} is unknown; known are: {known}, {}", flow_match::NAME);
            Err(Error::InvalidInput(reason))
        }
        _ => Ok(()),
    }
}
