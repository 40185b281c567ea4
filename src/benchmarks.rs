//! Products with weights as decoders have them and parts of pipelines alone, for `benches/kernels.rs` and `benches/models.rs` and
//! for nobody else.

use candle_core::{Device, Tensor};

use crate::error::{Error, Result};
use crate::kernels::Activation;
use crate::kernels::ggml::GgmlType;
use crate::kernels::packed::{Arithmetic, PackedLinear, QuantizedRows, RowUse};
pub use crate::models::text_to_image::{ImageDecoder, PromptT5};

/// A quantised weight, `(out, in)`, in each arithmetic.
pub struct QuantizedProduct {
    eight_bit: PackedLinear,
    exact: PackedLinear,
}

impl QuantizedProduct {
    /// A weight of the type that has this number in GGUF files.
    ///
    /// # Errors
    /// [`Error::Compute`] for another type than those that are supported.
    pub fn new(type_number: u32, bytes: &[u8], out_dim: usize, in_dim: usize) -> Result<Self> {
        let dtype = GgmlType::from_number(type_number).ok_or_else(|| Error::compute("an unknown type"))?;
        let layer = |arithmetic| {
            let rows = vec![QuantizedRows { dtype, bytes: bytes.to_vec(), out_dim }];
            PackedLinear::quantized(rows, in_dim, None, &Device::Cpu, RowUse::MultipliedOnly, arithmetic)
        };
        Ok(Self { eight_bit: layer(Arithmetic::EightBit)?, exact: layer(Arithmetic::Exact)? })
    }

    /// Product by integers.
    ///
    /// # Errors
    /// [`Error::Compute`] for rows of another width.
    pub fn eight_bit(&self, input: &Tensor) -> Result<Tensor> {
        self.eight_bit.forward(input, Activation::Identity)
    }

    /// Product with the dequantised weight.
    ///
    /// # Errors
    /// [`Error::Compute`] for rows of another width.
    pub fn exact(&self, input: &Tensor) -> Result<Tensor> {
        self.exact.forward(input, Activation::Identity)
    }
}

/// A weight of a safetensors file, `(out, in)`, as decoders have it.
pub struct PlainProduct(PackedLinear);

impl PlainProduct {
    /// A weight of these numbers, which is kept in 16 bits if they all have no more.
    ///
    /// # Errors
    /// [`Error::Compute`] for rows of another length.
    pub fn new(weight: Vec<f32>, in_dim: usize) -> Result<Self> {
        PackedLinear::new(weight, in_dim, None, &Device::Cpu).map(Self)
    }

    /// The product.
    ///
    /// # Errors
    /// [`Error::Compute`] for rows of another width.
    pub fn forward(&self, input: &Tensor) -> Result<Tensor> {
        self.0.forward(input, Activation::Identity)
    }
}
