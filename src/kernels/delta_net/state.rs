//! Sizes of a gated delta net, and its state of one sequence.

use candle_core::{DType, Device, Tensor};

use crate::error::{Error, Result};

/// Sizes of a gated delta net.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DeltaNetSizes {
    /// Number of heads of queries and keys.
    pub(crate) key_heads: usize,
    /// Number of heads of values, a multiple of `key_heads`.
    pub(crate) value_heads: usize,
    /// The heads of values that share a query and a key.
    pub(crate) order: ValueOrder,
    /// Numbers of a head's query, or key.
    pub(crate) key_size: usize,
    /// Numbers of a head's value.
    pub(crate) value_size: usize,
    /// Number of tokens that the convolution sees, at least 2.
    pub(crate) taps: usize,
}

/// Order of the heads of values by the heads of keys that they belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ValueOrder {
    /// All those of the first key, then all those of the second, as in transformers.
    Grouped,
    /// One of each key in turn, as in llama.cpp's files of Qwen3.5.
    Tiled,
}

impl DeltaNetSizes {
    /// Number of a head of values by its key's and its place among those of the key.
    pub(super) fn value_head(self, key_head: usize, place: usize) -> usize {
        match self.order {
            ValueOrder::Grouped => key_head * self.group() + place,
            ValueOrder::Tiled => place * self.key_heads + key_head,
        }
    }

    /// Numbers of a row of queries, or keys.
    pub(crate) fn keys(self) -> usize {
        self.key_heads.saturating_mul(self.key_size)
    }

    /// Numbers of a row of values.
    pub(crate) fn values(self) -> usize {
        self.value_heads.saturating_mul(self.value_size)
    }

    /// Numbers of a row of queries, keys and values, all of which go through the convolution.
    pub(crate) fn channels(self) -> usize {
        self.keys().saturating_mul(2).saturating_add(self.values())
    }

    /// Numbers of a row of queries, keys, values and output gates.
    pub(crate) fn projected(self) -> usize {
        self.channels().saturating_add(self.values())
    }

    /// Number of value heads that share a query and a key.
    pub(crate) fn group(self) -> usize {
        self.value_heads.checked_div(self.key_heads).unwrap_or(0)
    }

    pub(super) fn memory(self) -> usize {
        self.values().saturating_mul(self.key_size)
    }

    /// Bytes of the state of a sequence, however long it is.
    pub(crate) fn state_bytes(self) -> u64 {
        let rows = self.taps.saturating_sub(1).saturating_mul(self.channels());
        (rows as u64).saturating_add(self.memory() as u64).saturating_mul(4)
    }
}

/// State of one layer and one sequence.
#[derive(Debug, Clone, Default)]
pub(crate) struct DeltaNetState {
    /// Number of tokens that it has read.
    tokens: usize,
    pub(super) store: Store,
}

#[derive(Debug, Clone, Default)]
pub(super) enum Store {
    /// Nothing is read yet.
    #[default]
    Empty,
    Host(HostState),
    /// The same on an accelerator.
    Device {
        rows: Tensor,
        memory: Tensor,
    },
}

/// A state in host memory.
#[derive(Debug, Clone)]
pub(super) struct HostState {
    /// Rows that went into the convolution for the last tokens, `(taps - 1, channels)`.
    pub(super) rows: Vec<f32>,
    /// `(value_heads, key_size, value_size)`, those of a key together.
    pub(super) memory: Vec<f32>,
}

impl DeltaNetState {
    /// Bytes that the state takes.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> u64 {
        match &self.store {
            Store::Empty => 0,
            Store::Host(state) => 4 * (state.rows.capacity() + state.memory.capacity()) as u64,
            Store::Device { rows, memory } => 4 * (rows.elem_count() + memory.elem_count()) as u64,
        }
    }

    /// Makes it the state after `past` tokens, which it has to be already unless there are none. Counts `length` more:
    /// after an error, the state is none that a sequence could go on with.
    pub(super) fn begin(&mut self, past: usize, length: usize) -> Result<()> {
        if past == 0 {
            self.store = Store::Empty;
        } else if self.tokens != past {
            return Err(misfit(
                "a state is that of another number of tokens; its sequence has to be read again",
            ));
        }
        self.tokens = past.saturating_add(length);
        Ok(())
    }

    /// The state in host memory, of zeros at first.
    pub(super) fn on_host(&mut self, sizes: DeltaNetSizes) -> Result<&mut HostState> {
        if matches!(self.store, Store::Empty) {
            let rows = vec![0.0; (sizes.taps - 1) * sizes.channels()];
            self.store = Store::Host(HostState { rows, memory: vec![0.0; sizes.memory()] });
        }
        match &mut self.store {
            Store::Host(state) => Ok(state),
            _ => Err(misfit("the state is on another device")),
        }
    }

    /// Kept rows and memory on an accelerator, of zeros at first.
    pub(super) fn on_device(&self, sizes: DeltaNetSizes, device: &Device) -> Result<(Tensor, Tensor)> {
        let memory = (sizes.value_heads, sizes.key_size, sizes.value_size);
        let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, device);
        match &self.store {
            Store::Device { rows, memory } => Ok((rows.clone(), memory.clone())),
            Store::Empty => {
                Ok((zeros(&[sizes.taps - 1, sizes.channels()])?, zeros(&[memory.0, memory.1, memory.2])?))
            }
            Store::Host(_) => Err(misfit("the state is in host memory")),
        }
    }
}

pub(super) fn misfit(reason: &str) -> Error {
    Error::compute(format!("gated delta net: {reason}"))
}
