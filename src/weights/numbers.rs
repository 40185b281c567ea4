//! The types of numbers in files of weights, and their conversion to 32-bit floats. The names are those of safetensors; which
//! tensor has which type, and scales of 8-bit numbers, are left to others.

use half::{bf16, f16};

use super::quantised;

/// Number types of tensors that are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Numbers {
    F64,
    F32,
    F16,
    Bf16,
    /// Eight bits, of which 4 are the exponent's, with scales in a tensor of their own.
    F8E4M3,
    /// The same with 5.
    F8E5M2,
    /// Powers of two, as which such scales may be stored.
    F8E8M0,
}

impl Numbers {
    pub(super) fn from_name(name: &str) -> Option<Self> {
        match name {
            "F64" => Some(Self::F64),
            "F32" => Some(Self::F32),
            "F16" => Some(Self::F16),
            "BF16" => Some(Self::Bf16),
            "F8_E4M3" => Some(Self::F8E4M3),
            "F8_E5M2" => Some(Self::F8E5M2),
            "F8_E8M0" => Some(Self::F8E8M0),
            _ => None,
        }
    }

    pub(super) const fn bytes(self) -> usize {
        match self {
            Self::F64 => 8,
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::F8E4M3 | Self::F8E5M2 | Self::F8E8M0 => 1,
        }
    }
}

/// Appends the numbers of a piece of a file, in which none is cut in two.
pub(super) fn append_numbers(piece: &[u8], numbers: Numbers, values: &mut Vec<f32>) {
    match numbers {
        Numbers::F32 => values.extend(piece.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes))),
        Numbers::F64 => {
            values.extend(piece.as_chunks().0.iter().map(|bytes| f64::from_le_bytes(*bytes) as f32))
        }
        Numbers::F16 => {
            values.extend(piece.as_chunks().0.iter().map(|bytes| f16::from_le_bytes(*bytes).to_f32()));
        }
        Numbers::Bf16 => {
            values.extend(piece.as_chunks().0.iter().map(|bytes| bf16::from_le_bytes(*bytes).to_f32()));
        }
        Numbers::F8E4M3 => values.extend(piece.iter().map(|byte| quantised::e4m3(*byte))),
        Numbers::F8E5M2 => values.extend(piece.iter().map(|byte| quantised::e5m2(*byte))),
        Numbers::F8E8M0 => values.extend(piece.iter().map(|byte| quantised::e8m0(*byte))),
    }
}
