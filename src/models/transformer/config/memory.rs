//! The memory of caches and of passes that follows from a configuration.

use model_actors::Bytes;

use super::{
    FeedForwardConfig, LayerConfig, MixerConfig, NormPlacement, OutputGate, TransformerConfig, Workload,
};
use crate::kernels::SCORES_PER_THREAD;
use crate::kernels::causal::{KvCache, growing_bytes};

impl TransformerConfig {
    /// Bytes of the caches of so many sequences, which have so many tokens together.
    pub(crate) fn cache_bytes(&self, tokens: usize, sequences: usize) -> Bytes {
        let keys_and_values = KvCache::bytes_for(tokens, self.kv_width());
        let layer = |layer: &LayerConfig| match layer.mixer {
            MixerConfig::Attention if layer.key_values_of.is_some() => 0,
            MixerConfig::Attention => keys_and_values,
            MixerConfig::DeltaNet(sizes) => sizes.state_bytes().saturating_mul(sequences as u64),
        };
        Bytes(self.layers.iter().map(layer).fold(0, u64::saturating_add))
    }

    /// Bytes that a pass over so many rows needs besides weights and caches, where the longest sequence has
    /// `longest` rows.
    pub(crate) fn scratch(&self, rows: usize, longest: usize) -> Bytes {
        let growing = self.workload == Workload::GrowingSequences;
        // A packed product is in memory twice, in panels and in rows.
        let intermediate = self.layers.iter().map(|layer| match (layer.feed_forward, growing) {
            (FeedForwardConfig::Dense { intermediate }, false) => 2 * intermediate,
            (FeedForwardConfig::Dense { intermediate }, true)
            | (FeedForwardConfig::Gated { intermediate }, false) => 3 * intermediate,
            (FeedForwardConfig::Gated { intermediate }, true) => 5 * intermediate,
            (FeedForwardConfig::Experts { intermediate, chosen, shared, .. }, _) => {
                (5 * intermediate).saturating_mul(chosen).max(5 * shared.unwrap_or(0))
            }
        });
        // Queries, keys and values; as packed product twice, and rotated once more; and the attention's output.
        let attention = match (growing, self.ropes.is_empty()) {
            (true, _) => match self.attention.output_gate {
                OutputGate::None => self.qkv_width().saturating_mul(3),
                // The gates, and the product that they are taken out of.
                OutputGate::EachHead => self.qkv_width().saturating_mul(7),
            },
            (false, true) => self.qkv_width().saturating_add(self.width),
            (false, false) => self.qkv_width().saturating_mul(2),
        };
        // Queries, keys, values and gates as packed product twice and after the convolution; outputs, normed and gated.
        let nets = self.layers.iter().map(|layer| match layer.mixer {
            MixerConfig::Attention => 0,
            MixerConfig::DeltaNet(sizes) => sizes.projected().saturating_mul(5),
        });
        let attention = attention.max(nets.max().unwrap_or(0));
        // The residual stream before and after the attention, normed, and a sublayer's output. Parallel sublayers
        // have their outputs and their input side by side.
        let stream = if self.norm_placement == NormPlacement::Parallel { 10 } else { 4 };
        // Several streams before and after a block, as they are predicted, and what is added to them; and all inputs.
        let streams = self.streams.map_or(0, |streams| self.width.saturating_mul(5 * streams.count));
        let streams = streams.saturating_add(self.inputs_width().saturating_mul(5));
        let row = intermediate.max().unwrap_or(0).max(attention).saturating_add(self.width * stream);
        let row = row.saturating_add(streams);
        let scores = longest.saturating_mul(longest).min(SCORES_PER_THREAD);
        let numbers = row.saturating_mul(rows).saturating_add(scores);
        // What is there twice for a moment: keys, or the state of a net on an accelerator.
        let states = self.layers.iter().map(|layer| match layer.mixer {
            MixerConfig::Attention => 0,
            MixerConfig::DeltaNet(sizes) => sizes.state_bytes(),
        });
        let keys = if growing { growing_bytes(longest, self.kv_width()) } else { 0 };
        let growth = keys.max(states.max().unwrap_or(0));
        Bytes((numbers as u64).saturating_mul(4)) + Bytes(growth)
    }
}
