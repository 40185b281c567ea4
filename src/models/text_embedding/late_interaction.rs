//! Models of late interaction (ColBERT; Khattab and Zaharia, 2020, arXiv 2004.12832): a vector of length 1 for each token, by
//! which a query and a document are compared. What they do to the two sides of a search is here: the marker after the first
//! token, the mask tokens that fill queries up, and the words of documents that get no vector. What their files say of it is
//! left to `config`, the encoder to the families.

mod config;

use std::collections::HashSet;

use candle_core::{Device, Tensor};
use model_actors::{Bytes, LoadContext, VectorArray};

use super::TokenBatch;
use crate::error::{Error, Result};
use crate::kernels::with_values;
use crate::pooling::{TokenLayers, normalize};
use crate::source::Files;
use crate::tokens::{Side, TokenIds, Tokens};
use crate::weights::WeightFiles;
pub(super) use config::LateInteractionConfig;
use config::{Layers, SideConfig, Skipped};

/// Tensor of the layer beside the encoder's, in the files of Stanford's ColBERT.
const LAYER: &str = "linear.weight";
/// The token that fills queries up, where the files name none.
const MASK: &str = "[MASK]";

/// The layers and settings of such a model beside its encoder.
pub(super) struct LateInteraction {
    layers: TokenLayers,
    query: Reading,
    document: Reading,
    /// Fills queries up.
    mask: Option<Expansion>,
    /// Tokens of documents that get no vector.
    skipped: HashSet<u32>,
}

/// How the texts of a side are read.
struct Reading {
    tokens: Tokens,
    marker: Option<u32>,
    longest: usize,
}

/// The tokens that fill a query up.
struct Expansion {
    token: u32,
    is_seen: bool,
}

impl Reading {
    /// The tokens of one side, of a tokenizer that cuts texts to a length given to it.
    fn of(side: &SideConfig, rows: usize, cut: &impl Fn(usize) -> Result<Tokens>) -> Result<Self> {
        let tokens = cut(side.longest - usize::from(!side.marker.is_empty()))?;
        let marker = match side.marker.as_str() {
            "" => None,
            marker => Some(side.row(tokens.id(marker), marker, rows)?),
        };
        Ok(Self { tokens, marker, longest: side.longest })
    }

    /// Tokens with the marker among them.
    fn marked(&self, mut ids: Vec<u32>) -> Vec<u32> {
        if let Some(marker) = self.marker {
            ids.insert(ids.len().min(1), marker);
        }
        ids
    }
}

impl LateInteraction {
    /// Reads what belongs to an encoder of this width and vocabulary, whose weights are in `weights`. `cut` gives a tokenizer that cuts texts
    /// to this many tokens.
    pub(super) fn read(
        config: &LateInteractionConfig,
        (files, weights): (&Files, &WeightFiles),
        (width, vocabulary): (usize, usize),
        cut: impl Fn(usize) -> Result<Tokens>,
        context: &LoadContext,
    ) -> Result<Self> {
        let reading = |side| Reading::of(side, vocabulary, &cut);
        let (query, document) = (reading(&config.query)?, reading(&config.document)?);
        let tokens = &document.tokens;
        let mask = match config.expansion {
            Some(is_seen) => {
                let names = [config.mask.as_deref(), Some(MASK), config.end.as_deref()];
                let token = names.into_iter().flatten().find_map(|name| tokens.id(name));
                Some(Expansion { token: config.query.row(token, MASK, vocabulary)?, is_seen })
            }
            None => None,
        };
        let skipped = match &config.skipped {
            Skipped::Tokens(words) => {
                let unknown = config.unknown.as_ref().and_then(|name| tokens.id(name));
                words.iter().filter_map(|word| tokens.id(word).or(unknown)).collect()
            }
            Skipped::FirstTokens(words) => {
                let first = |word: &&str| tokens.first_token(word).transpose();
                words.iter().filter_map(first).collect::<Result<_>>()?
            }
        };
        let layers = match config.layers {
            Layers::Modules => config.modules.token_layers(files, width, context)?,
            Layers::WithEncoder(out) => {
                let reader = weights.reader("", &Device::Cpu, context);
                let out = out.or_else(|| weights.shape(LAYER).and_then(|shape| shape.first().copied()));
                let out = out.filter(|out| *out > 0).ok_or_else(|| config.query.without_layer())?;
                TokenLayers::of_matrix(&reader.tensor(LAYER, &[out, width])?)?
            }
        };
        Ok(Self { layers, query, document, mask, skipped })
    }

    /// True for a tensor of the encoder's file that is no part of the encoder.
    pub(super) fn is_layer(tensor: &str) -> bool {
        tensor == LAYER
    }

    /// Length of a token's vector.
    pub(super) fn width(&self) -> usize {
        self.layers.width()
    }

    /// Memory that the layers take.
    pub(super) fn bytes(&self) -> Bytes {
        self.layers.bytes()
    }

    fn reading(&self, side: Side) -> &Reading {
        match side {
            Side::Query => &self.query,
            Side::Document => &self.document,
        }
    }

    /// Maximum number of tokens of a text, special ones and the marker included.
    pub(super) fn longest(&self, side: Side) -> usize {
        self.reading(side).longest
    }

    /// The tokens of a text as the encoder gets them.
    pub(super) fn tokens(&self, side: Side, text: &str) -> Result<TokenIds> {
        let reading = self.reading(side);
        let cut = reading.tokens.encode(text)?;
        let mut ids = reading.marked(cut.ids);
        let mut unseen = 0;
        if let (Side::Query, Some(mask)) = (side, &self.mask) {
            let own = ids.len();
            ids.resize(reading.longest.max(own), mask.token);
            unseen = if mask.is_seen { 0 } else { ids.len() - own };
        }
        Ok(TokenIds { ids, is_cut: cut.is_cut, unseen, side, ..TokenIds::default() })
    }

    /// All tokens of a text, whatever the model takes of them, with its marker and without those that fill it up.
    pub(super) fn whole(&self, side: Side, text: &str) -> Result<Vec<u32>> {
        let reading = self.reading(side);
        Ok(reading.marked(reading.tokens.encode_whole(text)?))
    }

    /// The vectors of each text's tokens.
    pub(super) fn token_vectors(&self, hidden: &Tensor, batch: &TokenBatch) -> Result<Vec<VectorArray<f32>>> {
        let width = self.width();
        let rows = self.layers.forward(hidden)?;
        let mut values = with_values(&rows, |values| values.to_vec())?;
        if !values.iter().all(|value| value.is_finite()) {
            return Err(Error::NotFiniteOutput);
        }
        values.chunks_exact_mut(width).for_each(normalize);
        let mut rows = values.chunks_exact(width).zip(&batch.ids);
        let of_text = |(length, side): (&usize, &Side)| {
            let text = rows.by_ref().take(*length);
            let kept = text.filter(|(_, id)| *side == Side::Query || !self.skipped.contains(id));
            VectorArray::new(kept.flat_map(|(row, _)| row.iter().copied()).collect(), width)
        };
        Ok(batch.lengths.iter().zip(&batch.sides).map(of_text).collect())
    }
}
