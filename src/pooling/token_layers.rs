//! The dense layers over each token's vector in models of late interaction (PyLate), which pool nothing.

use std::path::PathBuf;

use candle_core::{Device, Tensor};
use model_actors::{Bytes, LoadContext};
use serde::Deserialize;
use serde_json::Value;

use super::{Modules, activation_of, unsupported};
use crate::architecture::{parse, refuse_unlisted};
use crate::error::{Error, Result};
use crate::kernels::{Activation, Linear, add};
use crate::source::{Files, Unread, read_json};
use crate::weights::WeightFiles;

/// `config.json` of such a layer.
#[derive(Debug, Deserialize)]
struct Config {
    in_features: usize,
    out_features: usize,
    #[serde(default = "super::yes")]
    bias: bool,
    activation_function: String,
    #[serde(default)]
    use_residual: bool,
}

const READ: [&str; 5] = ["in_features", "out_features", "bias", "activation_function", "use_residual"];
/// Names of what goes in and comes out, of which PyLate knows one.
const NO_EFFECT: [(&str, &str); 2] =
    [("module_input_name", "\"token_embeddings\""), ("module_output_name", "\"token_embeddings\"")];

/// A layer, and what is added to its result.
struct Layer {
    linear: Linear,
    activation: Activation,
    residual: Residual,
}

enum Residual {
    None,
    /// The input.
    Input,
    /// The input through a layer.
    Projected(Linear),
}

/// The layers, in order.
pub(crate) struct TokenLayers {
    layers: Vec<Layer>,
    width: usize,
    bytes: Bytes,
}

impl TokenLayers {
    /// One layer without a bias, from its matrix, `(out, in)`.
    pub(crate) fn of_matrix(matrix: &Tensor) -> Result<Self> {
        let layer = Layer {
            linear: Linear::new(matrix, None)?,
            activation: Activation::Identity,
            residual: Residual::None,
        };
        Ok(Self { layers: vec![layer], width: matrix.dim(0)?, bytes: bytes_of(matrix) })
    }

    /// Length of the vectors that come out.
    pub(crate) fn width(&self) -> usize {
        self.width
    }

    /// Memory that the layers take.
    pub(crate) fn bytes(&self) -> Bytes {
        self.bytes
    }

    /// The vectors of tokens, `(tokens, width)`, on the processor.
    pub(crate) fn forward(&self, hidden: &Tensor) -> Result<Tensor> {
        let mut rows = hidden.to_device(&Device::Cpu)?.contiguous()?;
        for layer in &self.layers {
            let out = layer.linear.forward(&rows, layer.activation)?;
            rows = match &layer.residual {
                Residual::None => out,
                Residual::Input => add(&out, &rows)?,
                Residual::Projected(other) => add(&out, &other.forward(&rows, Activation::Identity)?)?,
            };
        }
        Ok(rows)
    }
}

impl Modules {
    /// True if there is no `modules.json`.
    pub(crate) fn are_bare(&self) -> bool {
        self.is_bare
    }

    /// True if a module is PyLate's own.
    pub(crate) fn have_token_layers(&self) -> bool {
        self.rest.iter().any(|module| module.kind.starts_with("pylate."))
    }

    /// Reads the layers after an encoder of this width.
    ///
    /// # Errors
    /// [`Error::UnsupportedSetting`] for modules of other kinds; those of reading the files.
    pub(crate) fn token_layers(
        &self,
        files: &Files,
        width: usize,
        context: &LoadContext,
    ) -> Result<TokenLayers> {
        let mut layers = TokenLayers { layers: Vec::new(), width, bytes: Bytes(0) };
        for module in &self.rest {
            match module.class() {
                "Dense" => layers.add(files, &module.folder(), context)?,
                _ => {
                    let supported = "Dense, in a model of late interaction";
                    return Err(unsupported(super::MODULES, "the module", module.kind.clone(), supported));
                }
            }
        }
        Ok(layers)
    }
}

impl TokenLayers {
    fn add(&mut self, files: &Files, folder: &str, context: &LoadContext) -> Result<()> {
        let file = format!("{folder}config.json");
        let path = files.required(&file, context)?;
        let json: Value = read_json(&path)?;
        if files.unread == Unread::Refused {
            refuse_unlisted(&path, &json, &READ, &NO_EFFECT)?;
        }
        let config: Config = parse(&path, &json)?;
        let (inside, outside) = (config.in_features, config.out_features);
        if inside != self.width || outside == 0 {
            let reason =
                format!("in_features is {inside}, out_features {outside}; what comes in has {}", self.width);
            return Err(Error::InvalidConfig { file: PathBuf::from(file), reason });
        }
        let activation = activation_of(&file, &config.activation_function)?;
        let weights = WeightFiles::open(files, folder, context)?;
        let device = Device::Cpu;
        let reader = weights.reader("", &device, context);
        let mut matrix = |name: &str| -> Result<Tensor> {
            let matrix = reader.tensor(name, &[outside, inside])?;
            self.bytes += bytes_of(&matrix);
            Ok(matrix)
        };
        let weight = matrix("linear.weight")?;
        let residual = match (config.use_residual, inside == outside) {
            (false, _) => Residual::None,
            (true, true) => Residual::Input,
            (true, false) => Residual::Projected(Linear::new(&matrix("residual.weight")?, None)?),
        };
        let bias = match config.bias {
            true => Some(reader.tensor("linear.bias", &[outside])?),
            false => None,
        };
        weights.check_all_read(|_| false)?;
        self.width = outside;
        self.layers.push(Layer { linear: Linear::new(&weight, bias)?, activation, residual });
        Ok(())
    }
}

fn bytes_of(matrix: &Tensor) -> Bytes {
    Bytes((matrix.elem_count() as u64).saturating_mul(4))
}
