//! The text half of a vision model: a decoder that is shown images among the tokens of its prompt, or one
//! beside them. The prompt is read part by part, and the answers of several requests are written together.
//! Embedding an image is left to the families.

use std::ops::Range;

use candle_core::Tensor;

use super::{ImageRows, PROMPT_ROWS, Prompt, misfit};
use crate::error::Result;
use crate::kernels::Ahead;
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

impl Answer {
    /// A copy of its own, once the prompt is read.
    pub(super) fn fork(&self) -> Result<Option<Self>> {
        match &self.prompt {
            Some(_) => Ok(None),
            None => Ok(Some(Self { cache: self.cache.fork()?, prompt: None, offset: self.offset })),
        }
    }
}

/// A prompt that is being read.
struct Unread {
    /// `(rows, width)`.
    rows: Tensor,
    /// The images' rows among them.
    places: Vec<Range<usize>>,
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
    /// In the prompt: the images' rows take the places of their placeholders.
    InPrompt,
    /// In the prompt, and the rows up to the image's end see each other. They are read in one step.
    InPrefix,
    /// In the prompt, and the rows of each image see each other. They are read in one step.
    Together,
    /// Beside the prompt, by cross-attention.
    Beside,
}

impl LanguageModel {
    /// An answer to a prompt of which nothing is read. Where the prompt has positions of its own, one for
    /// each row, the answer's first is the number given with them.
    pub(super) fn begin(
        &self,
        prompt: &Prompt,
        images: &[ImageRows],
        positions: Option<(Vec<Position>, u32)>,
    ) -> Result<Answer> {
        let count = prompt.tokens.len();
        let (cache, rows) = match self.image {
            ImagePlace::Beside => {
                let [image] = images else { return Err(misfit()) };
                (self.decoder.cache_beside(count, &image.rows)?, self.decoder.embed(&prompt.tokens)?)
            }
            ImagePlace::InPrompt | ImagePlace::InPrefix | ImagePlace::Together => {
                (self.decoder.cache(count)?, self.rows_with_images(prompt, images)?)
            }
        };
        let blocks = images.first().map_or(0, |image| image.deep.len());
        let deep = |block: usize| {
            let all = images.iter().map(|image| image.deep.get(block).ok_or_else(misfit));
            Ok(Tensor::cat(&all.collect::<Result<Vec<_>>>()?, 0)?)
        };
        let offset = positions.as_ref().map_or(0, |(_, next)| i64::from(*next) - count as i64);
        let unread = Unread {
            rows,
            places: prompt.places.clone(),
            deep: (0..blocks).map(deep).collect::<Result<_>>()?,
            positions: positions.map(|(positions, _)| positions),
        };
        Ok(Answer { cache, prompt: Some(unread), offset })
    }

    /// The prompt's rows, with those of the images in their places.
    pub(super) fn rows_with_images(&self, prompt: &Prompt, images: &[ImageRows]) -> Result<Tensor> {
        if images.is_empty() {
            return self.decoder.embed(&prompt.tokens);
        }
        let rows = Tensor::cat(&images.iter().map(|image| &image.rows).collect::<Vec<_>>(), 0)?;
        let end = prompt.tokens.len();
        // Behind the last image are words alone.
        let places = prompt.places.iter().cloned().chain(std::iter::once(end..end));
        let (mut parts, mut begin, mut seen) = (Vec::new(), 0, 0);
        for place in places {
            let words = prompt.tokens.get(begin..place.start).ok_or_else(misfit)?;
            if !words.is_empty() {
                parts.push(self.decoder.embed(words)?);
            }
            parts.push(rows.narrow(0, seen, place.len())?);
            (begin, seen) = (place.end, seen + place.len());
        }
        if seen != rows.dim(0)? {
            return Err(misfit());
        }
        Ok(Tensor::cat(&parts, 0)?)
    }

    /// Reads a part of the prompt. At its end, logits of the first token, `(1, vocabulary)`.
    pub(super) fn read(&self, answer: &mut Answer) -> Result<Option<Tensor>> {
        let unread = answer.prompt.as_ref().ok_or_else(misfit)?;
        let (begin, count) = (answer.cache.length(), unread.rows.dim(0)?);
        let (length, ahead) = self.image.next_rows(begin, count, &unread.places);
        let end = begin + length;
        let rows = unread.rows.narrow(0, begin, length)?.contiguous()?;
        let positions = match &unread.positions {
            Some(positions) => Some(positions.get(begin..end).ok_or_else(misfit)?.to_vec()),
            None => None,
        };
        let mut segments = [Segment { cache: &mut answer.cache, length, positions, adapter: None }];
        let hidden = self.decoder.forward_with(&rows, &mut segments, ahead, |block, hidden| match unread
            .deep
            .get(block)
        {
            Some(deep) => add_rows(hidden, begin, deep, &unread.places),
            None => Ok(hidden),
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
                Segment {
                    cache: &mut answer.cache,
                    length: 1,
                    positions: Some(vec![[place; 3]]),
                    adapter: None,
                }
            })
            .collect();
        let hidden = self.decoder.forward(&self.decoder.embed(&tokens)?, &mut segments)?;
        self.decoder.logits(&hidden)
    }
}

impl ImagePlace {
    /// Number of rows that are read next of a prompt of `count` rows, whose images have these places, and whether they see
    /// those after them.
    fn next_rows(self, begin: usize, count: usize, places: &[Range<usize>]) -> (usize, Ahead) {
        let next = places.iter().find(|place| place.end > begin);
        match (self, next, places.last()) {
            (Self::InPrefix, _, Some(last)) if begin == 0 => (last.end, Ahead::Seen),
            (Self::Together, Some(image), _) if begin >= image.start => (image.end - begin, Ahead::Seen),
            (Self::Together, Some(image), _) => (PROMPT_ROWS.min(image.start - begin), Ahead::Hidden),
            _ => (PROMPT_ROWS.min(count.saturating_sub(begin)), Ahead::Hidden),
        }
    }
}

/// Adds the rows of `deep`, which belong to the rows at `places` of the prompt, to those of them that are in
/// `hidden`, whose first row is row `begin` of the prompt.
fn add_rows(hidden: Tensor, begin: usize, deep: &Tensor, places: &[Range<usize>]) -> Result<Tensor> {
    let count = hidden.dim(0)?;
    let (mut parts, mut end, mut next) = (Vec::new(), 0, 0);
    for place in places {
        let (first, last) = (place.start.max(begin), place.end.min(begin + count));
        if first < last {
            let (at, length) = (first - begin, last - first);
            if at > end {
                parts.push(hidden.narrow(0, end, at - end)?);
            }
            let more = deep.narrow(0, next + first - place.start, length)?;
            parts.push((hidden.narrow(0, at, length)? + more)?);
            end = at + length;
        }
        next += place.len();
    }
    if parts.is_empty() {
        return Ok(hidden);
    }
    if end < count {
        parts.push(hidden.narrow(0, end, count - end)?);
    }
    Ok(Tensor::cat(&parts, 0)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn the_rows_of_an_image_are_read_in_one_step_where_they_see_each_other() {
        let places = [200..500, 510..810];
        let read = |place: ImagePlace, begin| place.next_rows(begin, 900, &places);
        let steps = [(0, 128), (128, 72), (200, 300), (500, 10), (510, 300), (810, 90)];
        for (begin, length) in steps {
            let ahead = if length == 300 { Ahead::Seen } else { Ahead::Hidden };
            assert_eq!(read(ImagePlace::Together, begin), (length, ahead), "{begin}");
        }
        assert_eq!(read(ImagePlace::InPrompt, 200), (128, Ahead::Hidden));
        assert_eq!(read(ImagePlace::InPrefix, 0), (810, Ahead::Seen));
        assert_eq!(read(ImagePlace::InPrefix, 810), (90, Ahead::Hidden));
        assert_eq!(ImagePlace::Together.next_rows(0, 50, &[]), (50, Ahead::Hidden));
    }

    #[test]
    fn rows_are_added_where_the_images_are_and_nowhere_else() {
        let hidden = Tensor::zeros((4, 1), candle_core::DType::F32, &Device::Cpu).unwrap();
        let deep = Tensor::new(&[[1f32], [2.0], [3.0]], &Device::Cpu).unwrap();
        let added = |begin, places: &[Range<usize>]| {
            let rows = add_rows(hidden.clone(), begin, &deep, places).unwrap();
            rows.flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        let image = |places: Range<usize>| vec![places];
        assert_eq!(added(0, &image(1..4)), [0.0, 1.0, 2.0, 3.0]);
        assert_eq!(added(3, &image(2..5)), [2.0, 3.0, 0.0, 0.0]);
        assert_eq!(added(8, &image(1..4)), [0.0; 4]);
        assert_eq!(added(0, &[0..1, 2..4]), [1.0, 0.0, 2.0, 3.0]);
        assert_eq!(added(1, &[0..2, 3..4]), [2.0, 0.0, 3.0, 0.0]);
    }
}
