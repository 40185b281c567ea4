//! Mixtures of experts by the metadata of a GGUF file. No file tells how the chosen experts' outputs are weighed, which is
//! the architectures' as in llama.cpp; the tensors' names are left to the table of names.

use super::metadata::Metadata;
use crate::error::Result;
use crate::models::config_file::unsupported;
use crate::models::decoder::config::DecoderConfig;
use crate::models::transformer::{Bias, ExpertForm, ExpertWeights, FeedForwardConfig};

impl Metadata<'_> {
    pub(super) fn has_experts(&self) -> Result<bool> {
        Ok(self.optional("expert_count")?.is_some_and(|count| count > 0))
    }

    /// Mixtral: experts as wide as the file's feed-forward networks.
    pub(super) fn mixtral(&self, config: &mut DecoderConfig) -> Result<()> {
        let intermediate = self.required("feed_forward_length")?;
        self.mixture(config, intermediate, ExpertWeights::OfChosen, None)
    }

    /// Qwen2-MoE: one expert more that sees every token.
    pub(super) fn qwen2_moe(&self, config: &mut DecoderConfig) -> Result<()> {
        let own = self.optional(SHARED_WIDTH)?.filter(|width| *width > 0);
        let shared = own.map_or_else(|| self.required("feed_forward_length"), Ok)?;
        self.mixture(config, self.expert_width()?, ExpertWeights::OfAll, Some(shared))
    }

    pub(super) fn qwen3_moe(&self, config: &mut DecoderConfig) -> Result<()> {
        self.mixture(config, self.expert_width()?, ExpertWeights::OfChosen, None)
    }

    /// Qwen3-Next and Qwen3.5: as Qwen2-MoE, with the chosen experts' weights adding up to 1.
    pub(super) fn qwen3_next_moe(&self, config: &mut DecoderConfig) -> Result<()> {
        let shared = self.required(SHARED_WIDTH)?;
        self.mixture(config, self.expert_width()?, ExpertWeights::OfChosen, Some(shared))
    }

    /// The hidden width of an expert: without a key, together they are as wide as the file's feed-forward networks.
    fn expert_width(&self) -> Result<usize> {
        match self.optional("expert_feed_forward_length")?.filter(|width| *width > 0) {
            Some(width) => Ok(width),
            None => {
                let all = self.required("feed_forward_length")?;
                Ok(all.checked_div(self.required("expert_used_count")?).unwrap_or(0))
            }
        }
    }

    /// Experts in every layer.
    fn mixture(
        &self,
        config: &mut DecoderConfig,
        intermediate: usize,
        weights: ExpertWeights,
        shared: Option<usize>,
    ) -> Result<()> {
        // Numbers of other mixtures, which llama.cpp reads in other architectures.
        let norm = usize::from(weights == ExpertWeights::OfChosen);
        self.only("expert_weights_norm", &[norm])?;
        self.only("expert_gating_func", &[0, 1])?;
        self.only("expert_group_count", &[0, 1])?;
        self.only("leading_dense_block_count", &[0])?;
        if shared.is_none() {
            self.only(SHARED_WIDTH, &[0])?;
        }
        let (key, scale) = ("expert_weights_scale", self.float("expert_weights_scale"));
        if let Some(scale) = scale.filter(|scale| *scale != 0.0 && *scale != 1.0) {
            return Err(unsupported(self.path(), self.key(key), &scale.to_string(), "1"));
        }
        let experts = FeedForwardConfig::Experts {
            intermediate,
            count: self.required("expert_count")?,
            chosen: self.required("expert_used_count")?,
            weights,
            router_bias: Bias::No,
            form: ExpertForm::Gated,
            shared,
        };
        config.transformer.layers.iter_mut().for_each(|layer| layer.feed_forward = experts);
        Ok(())
    }

    /// Refuses a file that has another number than these.
    pub(super) fn only(&self, key: &str, supported: &[usize]) -> Result<()> {
        match self.optional(key)?.filter(|number| !supported.contains(number)) {
            Some(number) => {
                let supported: Vec<String> = supported.iter().map(usize::to_string).collect();
                Err(unsupported(self.path(), self.key(key), &number.to_string(), supported.join(", ")))
            }
            None => Ok(()),
        }
    }
}

/// The hidden width of the expert that sees every token.
const SHARED_WIDTH: &str = "expert_shared_feed_forward_length";
