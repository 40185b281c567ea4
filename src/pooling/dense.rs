//! A dense layer after the pooling of sentence-transformers (`2_Dense/config.json`), as it is read.

use std::path::PathBuf;

use candle_core::Device;
use model_actors::LoadContext;
use serde::Deserialize;

use super::{Head, SENTENCE, Step, unsupported};
use crate::error::{Error, Result};
use crate::kernels::{Activation, Linear};
use crate::source::Files;
use crate::weights::WeightFiles;

/// `2_Dense/config.json`.
#[derive(Debug, Clone, Deserialize)]
struct DenseConfig {
    in_features: usize,
    out_features: usize,
    #[serde(default = "super::yes")]
    bias: bool,
    #[serde(default)]
    activation_function: Option<String>,
    #[serde(default)]
    use_residual: bool,
    #[serde(default)]
    module_input_name: Option<String>,
    module_output_name: Option<String>,
}

/// The activation of a dense layer, by the class in its file.
pub(super) fn activation_of(file: &str, name: &str) -> Result<Activation> {
    // sentence-transformers takes no others, and another in their place.
    let class = name.strip_prefix("torch.").and_then(|class| class.rsplit('.').next());
    let activation = match class {
        Some("Identity") => Some(Activation::Identity),
        class => class.and_then(|class| Activation::from_name(&class.to_lowercase())),
    };
    activation.ok_or_else(|| {
        let supported = "Identity, Tanh, GELU, ReLU, SiLU of torch.nn.modules";
        unsupported(file, "the activation", name.to_owned(), supported)
    })
}

impl Head {
    /// That of a dense layer whose file names none.
    const ACTIVATION: &str = "torch.nn.modules.activation.Tanh";

    /// Reads a layer in a folder and adds it.
    ///
    /// # Errors
    /// Those of its files; [`Error::UnsupportedSetting`] for a layer that is not between vectors of texts.
    pub(super) fn add_dense(&mut self, files: &Files, folder: &str, context: &LoadContext) -> Result<()> {
        let file = format!("{folder}config.json");
        let config: DenseConfig = files.required_json(&file, context)?;
        if config.in_features != self.width {
            let reason = format!("in_features is {}; what comes in has {}", config.in_features, self.width);
            return Err(Error::InvalidConfig { file: PathBuf::from(file), reason });
        }
        let input = config.module_input_name.unwrap_or_else(|| SENTENCE.to_owned());
        let output = config.module_output_name.unwrap_or_else(|| input.clone());
        if input != SENTENCE || output != SENTENCE || config.use_residual {
            let found = format!("from {input} to {output}, with use_residual {},", config.use_residual);
            return Err(unsupported(
                &file,
                "a dense layer",
                found,
                "sentence_embedding without use_residual",
            ));
        }
        let name = config.activation_function.as_deref().unwrap_or(Self::ACTIVATION);
        let activation = activation_of(&file, name)?;
        let weights = WeightFiles::open(files, folder, context)?;
        let device = Device::Cpu;
        let reader = weights.reader("", &device, context);
        let weight = reader.tensor("linear.weight", &[config.out_features, config.in_features])?;
        let bias = match config.bias {
            true => Some(reader.tensor("linear.bias", &[config.out_features])?),
            false => None,
        };
        weights.check_all_read(|_| false)?;
        self.width = config.out_features;
        self.steps.push(Step::Dense(Linear::new(&weight, bias)?, activation));
        Ok(())
    }
}
