//! The text half of a vision model: a decoder that is shown an image, among the tokens of its prompt or
//! beside them. The prompt is read part by part, and the answers of several requests are written together.
//! Embedding an image is left to the families.

use std::ops::Range;

use candle_core::Tensor;

use super::{ImageRows, PROMPT_ROWS, Prompt, misfit};
use crate::error::Result;
use crate::kernels::AttentionMask;
use crate::kernels::rotary::Position;
use crate::models::decoder::Decoder;
use crate::models::transformer::{Cache, Segment};

/// The state of one answer, which a worker keeps.
pub(super) struct Answer {
    cache: Cache,
    prompt: Option<Unread>,
    /// Difference between the position of a token and the number of those before it.
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
pub(super) struct LanguageModel {
    pub(super) decoder: Decoder,
    pub(super) image: ImagePlace,
}

/// The place in which a decoder sees an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ImagePlace {
    /// In the prompt: the image's rows take the place of its placeholders.
    InPrompt,
    /// In the prompt, and the rows up to the image's end see each other. They are read in one step.
    InPrefix,
    /// Beside the prompt, by cross-attention.
    Beside,
}

impl LanguageModel {
    /// An answer to a prompt of which nothing is read. Where the prompt has positions of its own, one for
    /// each row, the answer's first is the number given with them.
    pub(super) fn begin(
        &self,
        prompt: &Prompt,
        image: ImageRows,
        positions: Option<(Vec<Position>, u32)>,
    ) -> Result<Answer> {
        let count = prompt.tokens.len();
        let (cache, rows) = match self.image {
            ImagePlace::Beside => {
                (self.decoder.cache_beside(count, &image.rows)?, self.decoder.embed(&prompt.tokens)?)
            }
            ImagePlace::InPrompt | ImagePlace::InPrefix => {
                (self.decoder.cache(count)?, self.rows_with_image(prompt, &image.rows)?)
            }
        };
        let offset = positions.as_ref().map_or(0, |(_, next)| i64::from(*next) - count as i64);
        let unread = Unread {
            rows,
            image: prompt.image.clone(),
            deep: image.deep,
            positions: positions.map(|(positions, _)| positions),
        };
        Ok(Answer { cache, prompt: Some(unread), offset })
    }

    /// The prompt's rows, with those of the image in its place.
    fn rows_with_image(&self, prompt: &Prompt, image: &Tensor) -> Result<Tensor> {
        let (Some(before), Some(after)) =
            (prompt.tokens.get(..prompt.image.start), prompt.tokens.get(prompt.image.end..))
        else {
            return Err(misfit());
        };
        if image.dim(0)? != prompt.image.len() {
            return Err(misfit());
        }
        let mut parts = Vec::with_capacity(3);
        for (tokens, rows) in [(before, Some(image)), (after, None)] {
            if !tokens.is_empty() {
                parts.push(self.decoder.embed(tokens)?);
            }
            parts.extend(rows.cloned());
        }
        Ok(Tensor::cat(&parts, 0)?)
    }

    /// Reads a part of the prompt. At its end, logits of the first token, `(1, vocabulary)`.
    pub(super) fn read(&self, answer: &mut Answer) -> Result<Option<Tensor>> {
        let unread = answer.prompt.as_ref().ok_or_else(misfit)?;
        let (begin, count) = (answer.cache.length(), unread.rows.dim(0)?);
        let (length, mask) = match self.image {
            ImagePlace::InPrefix if begin == 0 => (unread.image.end, Some(AttentionMask::Full)),
            _ => (PROMPT_ROWS.min(count.saturating_sub(begin)), None),
        };
        let end = begin + length;
        let rows = unread.rows.narrow(0, begin, length)?.contiguous()?;
        let positions = match &unread.positions {
            Some(positions) => Some(positions.get(begin..end).ok_or_else(misfit)?.to_vec()),
            None => None,
        };
        let mut segments = [Segment { cache: &mut answer.cache, length, positions }];
        let hidden = self.decoder.forward_with(&rows, &mut segments, mask, |block, hidden| {
            match unread.deep.get(block) {
                Some(deep) => add_rows(hidden, begin, deep, &unread.image),
                None => Ok(hidden),
            }
        })?;
        if end < count {
            return Ok(None);
        }
        answer.prompt = None;
        let last = hidden.narrow(0, length.saturating_sub(1), 1)?.contiguous()?;
        self.decoder.logits(&last).map(Some)
    }

    /// Reads one token of each answer: logits of the next, `(answers, vocabulary)`.
    pub(super) fn write(&self, answers: &mut [(&mut Answer, u32)]) -> Result<Tensor> {
        let tokens: Vec<u32> = answers.iter().map(|(_, token)| *token).collect();
        let mut segments: Vec<Segment<'_>> = answers
            .iter_mut()
            .map(|(answer, _)| {
                let place = (answer.cache.length() as i64).saturating_add(answer.offset).max(0) as u32;
                Segment { cache: &mut answer.cache, length: 1, positions: Some(vec![[place; 3]]) }
            })
            .collect();
        let hidden = self.decoder.forward(&self.decoder.embed(&tokens)?, &mut segments)?;
        self.decoder.logits(&hidden)
    }
}

/// Adds the rows of `deep`, which belong to the rows `image` of the prompt, to those of them that are in
/// `hidden`, whose first row is row `begin` of the prompt.
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
