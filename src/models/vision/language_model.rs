//! The text half of models that put an image into the text of an ordinary decoder: the image's rows take the place of
//! its placeholders, the prompt is read part by part, and the answers of several requests are written together.

use std::ops::Range;

use candle_core::Tensor;

use super::{ImageRows, PROMPT_ROWS, Prompt, misfit};
use crate::error::Result;
use crate::kernels::rotary::Position;
use crate::models::decoder::{Cache, Decoder, Segment};

/// What a worker keeps of one answer.
pub(super) struct Memory {
    cache: Cache,
    prompt: Option<Unread>,
    /// What the position of a token is more or less than the number of those before it.
    offset: i64,
}

/// A prompt that is being read.
struct Unread {
    /// `(rows, width)`.
    rows: Tensor,
    image: Range<usize>,
    deep: Vec<Tensor>,
    positions: Option<Vec<Position>>,
}

/// A decoder that is shown images.
pub(super) struct LanguageModel(pub(super) Decoder);

impl LanguageModel {
    /// An answer to a prompt of which nothing is read. Where it has positions of its own, one for each row, the
    /// answer's first is the number given with them.
    pub(super) fn begin(
        &self,
        prompt: &Prompt,
        image: ImageRows,
        positions: Option<(Vec<Position>, u32)>,
    ) -> Result<Memory> {
        let (Some(before), Some(after)) =
            (prompt.tokens.get(..prompt.image.start), prompt.tokens.get(prompt.image.end..))
        else {
            return Err(misfit());
        };
        if image.rows.dim(0)? != prompt.image.len() {
            return Err(misfit());
        }
        let mut parts = Vec::with_capacity(3);
        for (tokens, rows) in [(before, Some(image.rows)), (after, None)] {
            if !tokens.is_empty() {
                parts.push(self.0.embed(tokens)?);
            }
            parts.extend(rows);
        }
        let count = prompt.tokens.len() as i64;
        let offset = positions.as_ref().map_or(0, |(_, next)| i64::from(*next) - count);
        let unread = Unread {
            rows: Tensor::cat(&parts, 0)?,
            image: prompt.image.clone(),
            deep: image.deep,
            positions: positions.map(|(positions, _)| positions),
        };
        Ok(Memory { cache: self.0.cache(prompt.tokens.len())?, prompt: Some(unread), offset })
    }

    /// Reads a part of the prompt. At its end, logits of the first token, `(1, vocabulary)`.
    pub(super) fn read(&self, memory: &mut Memory) -> Result<Option<Tensor>> {
        let unread = memory.prompt.as_ref().ok_or_else(misfit)?;
        let (begin, count) = (memory.cache.length(), unread.rows.dim(0)?);
        let length = PROMPT_ROWS.min(count.saturating_sub(begin));
        let end = begin + length;
        let rows = unread.rows.narrow(0, begin, length)?.contiguous()?;
        let positions = match &unread.positions {
            Some(positions) => Some(positions.get(begin..end).ok_or_else(misfit)?.to_vec()),
            None => None,
        };
        let mut segments = [Segment { cache: &mut memory.cache, length, positions }];
        let hidden =
            self.0.forward_with(&rows, &mut segments, |layer, hidden| match unread.deep.get(layer) {
                Some(deep) => add_rows(hidden, begin, deep, &unread.image),
                None => Ok(hidden),
            })?;
        if end < count {
            return Ok(None);
        }
        memory.prompt = None;
        let last = hidden.narrow(0, length.saturating_sub(1), 1)?.contiguous()?;
        self.0.logits(&last).map(Some)
    }

    /// Reads one token of each answer: logits of the next, `(answers, vocabulary)`.
    pub(super) fn write(&self, answers: &mut [(&mut Memory, u32)]) -> Result<Tensor> {
        let tokens: Vec<u32> = answers.iter().map(|(_, token)| *token).collect();
        let mut segments: Vec<Segment<'_>> = answers
            .iter_mut()
            .map(|(memory, _)| {
                let place = (memory.cache.length() as i64).saturating_add(memory.offset).max(0) as u32;
                Segment { cache: &mut memory.cache, length: 1, positions: Some(vec![[place; 3]]) }
            })
            .collect();
        let hidden = self.0.forward(&self.0.embed(&tokens)?, &mut segments)?;
        self.0.logits(&hidden)
    }
}

/// Adds the rows of `deep`, which belong to the rows `image` of the prompt, to those of them that are in `hidden`, whose
/// first row is the prompt's row `begin`.
fn add_rows(hidden: Tensor, begin: usize, deep: &Tensor, image: &Range<usize>) -> Result<Tensor> {
    let count = hidden.dim(0)?;
    let (first, last) = (image.start.max(begin), image.end.min(begin + count));
    if first >= last {
        return Ok(hidden);
    }
    let (at, length) = (first - begin, last - first);
    let more = deep.narrow(0, first - image.start, length)?;
    let mut parts = Vec::with_capacity(3);
    if at > 0 {
        parts.push(hidden.narrow(0, 0, at)?);
    }
    parts.push((hidden.narrow(0, at, length)? + more)?);
    if at + length < count {
        parts.push(hidden.narrow(0, at + length, count - at - length)?);
    }
    Ok(Tensor::cat(&parts, 0)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn rows_are_added_where_the_image_is_and_nowhere_else() {
        let hidden = Tensor::zeros((4, 1), candle_core::DType::F32, &Device::Cpu).unwrap();
        let deep = Tensor::new(&[[1f32], [2.0], [3.0]], &Device::Cpu).unwrap();
        let added = |begin, image| {
            let rows = add_rows(hidden.clone(), begin, &deep, &image).unwrap();
            rows.flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        assert_eq!(added(0, 1..4), [0.0, 1.0, 2.0, 3.0]);
        assert_eq!(added(3, 2..5), [2.0, 3.0, 0.0, 0.0]);
        assert_eq!(added(8, 1..4), [0.0; 4]);
    }
}
