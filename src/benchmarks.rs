//! Products with quantised weights, for `benches/kernels.rs` and for nobody else.

use candle_core::{Device, Tensor};

use crate::error::{Error, Result};
use crate::kernels::Activation;
use crate::kernels::ggml::GgmlType;
use crate::kernels::packed::{Arithmetic, PackedLinear, QuantizedRows, RowUse};

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
