//! Which rows of a pass belong to which sequence, and where they are in it. Once a sequence outgrows the context that a
//! model was taught at first, Phi-3's rotary embedding changes for all of it, so that its tokens have to go through the
//! layers once more. Whoever owns the sequence does that, in pieces as short as those of its prompt; here it is only
//! told when, and refused to go on without.

use candle_core::Tensor;

use super::cache::Cache;
use super::rope::Rows;
use super::{Decoder, misfit};
use crate::error::{Error, Result};
use crate::kernels::rotary::{Position, RopeTable};

/// The rows of a pass that belong to one sequence: the next `length` tokens after those in the cache.
pub(crate) struct Segment<'a> {
    pub(crate) cache: &'a mut Cache,
    pub(crate) length: usize,
    /// Where each row is; by default they count on from the cache's length.
    pub(crate) positions: Option<Vec<Position>>,
}

impl Decoder {
    /// Whether what is in a sequence's cache is of no use once it has so many tokens: [`Cache::restart`] it then, and
    /// read the sequence again.
    pub(crate) fn outgrows(&self, cache: &Cache, tokens: usize) -> bool {
        let mut limits = self.config.ropes.iter().filter_map(|rope| rope.limit());
        cache.length() > 0 && limits.any(|limit| cache.reach() <= limit && tokens > limit)
    }

    /// The table of each rotary embedding, for the rows of a pass.
    pub(super) fn rope_tables(&self, rows: &Tensor, segments: &[Segment<'_>]) -> Result<Vec<RopeTable>> {
        let (count, width) = rows.dims2()?;
        let covered = segments.iter().fold(0usize, |sum, segment| sum.saturating_add(segment.length));
        if covered != count || width != self.width() {
            return Err(misfit("the segments do not cover the rows"));
        }
        for segment in segments {
            self.check(segment)?;
        }
        let places: Vec<Rows<'_>> = segments
            .iter()
            .map(|segment| Rows {
                past: segment.cache.length(),
                length: segment.length,
                reach: segment.cache.reach(),
                positions: segment.positions.as_deref(),
            })
            .collect();
        Ok(self.config.ropes.iter().map(|rope| rope.table(&places)).collect())
    }

    fn check(&self, segment: &Segment<'_>) -> Result<()> {
        if segment.positions.as_ref().is_some_and(|positions| positions.len() != segment.length) {
            return Err(misfit("a segment has not a position for each row"));
        }
        let end = segment.cache.length().saturating_add(segment.length);
        if end > self.context() {
            let context = self.context();
            return Err(Error::InvalidInput(format!("{end} tokens; the model's context has {context}")));
        }
        if self.outgrows(segment.cache, end) {
            return Err(misfit("a sequence has outgrown its rotary embedding and was not read again"));
        }
        Ok(())
    }
}
