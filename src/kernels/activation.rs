//! Activation functions, on values in host memory and on tensors of any device.

use candle_core::Tensor;

use super::elementwise::each;
use super::rows;
use crate::error::Result;

/// Activation function of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Activation {
    Identity,
    GeluErf,
    GeluTanh,
    /// `x · sigmoid(1.702 x)`, as OpenAI's CLIP has it.
    QuickGelu,
    Relu,
    Silu,
    Tanh,
}

impl Activation {
    /// Names that configuration files use, for error messages.
    pub(crate) const NAMES: &'static str =
        "gelu, gelu_new, gelu_pytorch_tanh, gelu_fast, quick_gelu, relu, silu, swish, tanh";

    /// Activation of a configuration file's name.
    pub(crate) fn from_name(name: &str) -> Option<Self> {
        match name {
            "gelu" => Some(Self::GeluErf),
            "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Some(Self::GeluTanh),
            "quick_gelu" => Some(Self::QuickGelu),
            "relu" => Some(Self::Relu),
            "silu" | "swish" => Some(Self::Silu),
            "tanh" => Some(Self::Tanh),
            _ => None,
        }
    }

    /// Applies it to numbers on any device.
    pub(crate) fn forward(self, values: Tensor) -> Result<Tensor> {
        match (self, values.device().is_cpu()) {
            (Self::Identity, _) => Ok(values),
            (_, true) => each(&values, |part| self.on_values(part)),
            (_, false) => Ok(self.on_tensor(values)?),
        }
    }

    /// Applies it in place.
    pub(super) fn on_values(self, values: &mut [f32]) {
        match self {
            Self::Identity => {}
            Self::GeluErf => rows::gelu_erf(values),
            Self::GeluTanh => rows::gelu_tanh(values),
            Self::QuickGelu => rows::quick_gelu(values),
            Self::Relu => rows::relu(values),
            Self::Silu => rows::silu(values),
            Self::Tanh => rows::tanh(values),
        }
    }

    /// Applies it with candle's operations.
    pub(super) fn on_tensor(self, tensor: Tensor) -> candle_core::Result<Tensor> {
        match self {
            Self::Identity => Ok(tensor),
            Self::GeluErf => tensor.gelu_erf(),
            Self::GeluTanh => tensor.gelu(),
            Self::QuickGelu => &tensor * candle_nn::ops::sigmoid(&(&tensor * 1.702)?)?,
            Self::Relu => tensor.relu(),
            Self::Silu => tensor.silu(),
            Self::Tanh => tensor.tanh(),
        }
    }
}
