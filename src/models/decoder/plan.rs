//! Which rows of a pass belong to which sequence, where they are in it, and what has to be computed again: once a
//! sequence outgrows the context that a model was taught at first, Phi-3's rotary embedding changes for all of it, so
//! its tokens go through the layers once more together with the new ones.

use candle_core::Tensor;

use super::cache::Cache;
use super::{Decoder, misfit};
use crate::error::{Error, Result};
use crate::kernels::rotary::{Position, Turns};

/// The rows of a pass that belong to one sequence: the next `length` tokens after those in the cache.
pub(crate) struct Segment<'a> {
    pub(crate) cache: &'a mut Cache,
    pub(crate) length: usize,
    /// Where each row is; by default they count on from the cache's length.
    pub(crate) positions: Option<Vec<Position>>,
}

/// A pass, worked out before its first layer.
pub(super) struct Plan {
    /// The rows to compute.
    pub(super) rows: Tensor,
    /// For each segment the tokens that stay in its cache and the rows to compute.
    pub(super) spans: Vec<(usize, usize)>,
    /// The turns of each rotary embedding.
    pub(super) turns: Vec<Turns>,
    /// The rows that were asked for, where more are computed.
    pub(super) wanted: Option<Vec<u32>>,
}

impl Decoder {
    pub(super) fn plan(&self, rows: &Tensor, segments: &[Segment<'_>]) -> Result<Plan> {
        let (count, width) = rows.dims2()?;
        let covered = segments.iter().fold(0usize, |sum, segment| sum.saturating_add(segment.length));
        if covered != count || width != self.width() {
            return Err(misfit("the segments do not cover the rows"));
        }
        for segment in segments {
            self.check(segment)?;
        }
        let again: Vec<bool> = segments.iter().map(|segment| self.outgrows(segment)).collect();
        let spans = segments.iter().zip(&again).map(|(segment, again)| match again {
            true => (0, segment.cache.length() + segment.length),
            false => (segment.cache.length(), segment.length),
        });
        let spans: Vec<(usize, usize)> = spans.collect();
        let places: Vec<_> = spans.iter().zip(segments.iter().map(|segment| &segment.positions)).collect();
        let turns = self.config.ropes.iter().map(|rope| rope.turns(&places)).collect();
        if !again.contains(&true) {
            return Ok(Plan { rows: rows.clone(), spans, turns, wanted: None });
        }
        let (mut pieces, mut wanted) = (Vec::new(), Vec::new());
        let (mut begin, mut at) = (0, 0);
        for (segment, (_, length)) in segments.iter().zip(&spans) {
            if *length > segment.length {
                pieces.extend(segment.cache.inputs().iter().cloned());
            }
            pieces.push(rows.narrow(0, begin, segment.length)?);
            begin += segment.length;
            at += length;
            wanted.extend((at - segment.length..at).map(|row| row as u32));
        }
        Ok(Plan { rows: Tensor::cat(&pieces, 0)?, spans, turns, wanted: Some(wanted) })
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
        if segment.positions.is_some() && self.outgrows(segment) {
            return Err(misfit("positions of one's own, where the rotary embedding changes"));
        }
        Ok(())
    }

    /// Whether these rows make a sequence longer than one of its rotary embeddings lasts.
    fn outgrows(&self, segment: &Segment<'_>) -> bool {
        let past = segment.cache.length();
        let limits = self.config.ropes.iter().filter_map(|rope| rope.limit());
        limits.into_iter().any(|limit| past > 0 && past <= limit && past + segment.length > limit)
    }

    /// After a pass: what each cache has now. The rows of sequences that may still outgrow a rotary embedding are kept.
    pub(super) fn settle(&self, rows: &Tensor, plan: &Plan, segments: &mut [Segment<'_>]) -> Result<()> {
        let limit = self.config.ropes.iter().filter_map(|rope| rope.limit()).max();
        let mut begin = 0;
        for (segment, (past, length)) in segments.iter_mut().zip(&plan.spans) {
            let end = past + length;
            match limit {
                Some(limit) if end <= limit => {
                    let rows = rows.narrow(0, begin, segment.length)?.copy()?;
                    segment.cache.advance(end, Some(rows));
                }
                _ => segment.cache.advance(end, None),
            }
            begin += segment.length;
        }
        Ok(())
    }
}
