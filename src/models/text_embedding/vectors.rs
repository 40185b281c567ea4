//! The form in which a request gets its vectors: how many of their dimensions. Pooling and normalising the whole vector
//! is left to `pooling`.

use model_actors::EmbedTexts;

use super::LoadedModel;
use crate::error::{Error, Result};
use crate::pooling::normalize;

impl LoadedModel {
    /// The dimensions that a request's vectors are shortened to.
    pub(super) fn dimensions(&self, request: &EmbedTexts) -> Result<Option<usize>> {
        let width = self.head.width();
        let Some(asked) = request.dimensions else { return Ok(self.plan.prompts.truncate_dim) };
        let known = match &self.plan.shorter {
            Some(shorter) if asked != width => shorter.contains(&asked) && asked > 0,
            _ => (1..=width).contains(&asked),
        };
        if known {
            return Ok(Some(asked));
        }
        let can = match &self.plan.shorter {
            Some(shorter) => format!("{shorter:?} or {width}"),
            None => format!("1 to {width}"),
        };
        let reason = format!("{asked} dimensions are asked for; the model's vectors have {can}");
        Err(Error::InvalidInput(reason))
    }

    /// Keeps the first dimensions only. A vector of length 1 is scaled to length 1 again.
    pub(super) fn shorten(&self, vector: &mut Vec<f32>, request: &EmbedTexts) {
        let dimensions = request.dimensions.or(self.plan.prompts.truncate_dim);
        if let Some(dimensions) = dimensions.filter(|dimensions| *dimensions < vector.len()) {
            vector.truncate(dimensions);
            if self.head.normalizes() {
                normalize(vector);
            }
        }
    }
}
