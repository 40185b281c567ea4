//! Attention in which the tokens of a text see each other both ways, without padding, in the forms that encoders
//! differ by: positions as turns of queries and keys, as a penalty on distance (ALiBi, Press et al., 2022), and layers
//! that see only their surroundings. A long text's scores are worked out some rows at a time, so that scratch grows
//! with its length, not with the square of it. Which layer has which form is left to the families.

use std::ops::Range;

use candle_core::{D, Device, Tensor};
use rayon::prelude::*;

use super::rotary::Turns;
use super::{Matrix, Output, Padding, multiply, rows, threads, with_values};
use crate::error::{Error, Result};

/// Rows of scores that are in memory at a time: enough for products at full speed.
pub(crate) const SCORE_ROWS: usize = 256;

/// How the tokens of a text see each other.
#[derive(Clone, Copy)]
pub(crate) struct Mutual<'a> {
    pub(crate) heads: usize,
    /// For each head what a step of distance takes off a score; empty for none.
    pub(crate) slopes: &'a [f32],
    /// How far a token sees to either side; without, all of its text.
    pub(crate) window: Option<usize>,
    /// The turns of the pass's rows, for queries and keys.
    pub(crate) turns: Option<&'a Turns>,
}

impl Mutual<'_> {
    /// `mixed` is `(tokens, 3 · width)`, each row a token's query, key and value; the texts lie one after another with
    /// these `lengths`. Gives `(tokens, width)`.
    pub(crate) fn attend(&self, mixed: &Tensor, lengths: &[usize]) -> Result<Tensor> {
        let (tokens, triple) = mixed.dims2()?;
        let width = triple / 3;
        let slopes = self.slopes.is_empty() || self.slopes.len() == self.heads;
        let fits = self.heads > 0 && triple.is_multiple_of(3) && width.is_multiple_of(self.heads) && slopes;
        if lengths.iter().sum::<usize>() != tokens || !fits {
            let reason = "attention: lengths and heads do not fit the tokens";
            return Err(Error::Compute(candle_core::Error::msg(reason)));
        }
        match mixed.device().is_cpu() {
            true => self.on_cpu(mixed, lengths, tokens, width),
            false => self.on_any(mixed, lengths, width),
        }
    }

    fn on_cpu(&self, mixed: &Tensor, lengths: &[usize], tokens: usize, width: usize) -> Result<Tensor> {
        let mut out = vec![0.0; tokens * width];
        with_values(mixed, |mixed| {
            let mut texts = Vec::with_capacity(lengths.len());
            let (mut mixed, mut rest, mut first) = (mixed, out.as_mut_slice(), 0);
            for &length in lengths {
                let (out, others) = rest.split_at_mut(length * width);
                let (rows, others_mixed) = mixed.split_at(length * 3 * width);
                texts.push((Text { rows, first, length, width }, out));
                (mixed, rest, first) = (others_mixed, others, first + length);
            }
            match threads() {
                1 => texts.into_iter().for_each(|(text, out)| self.text(text, out)),
                _ => texts.into_par_iter().for_each(|(text, out)| self.text(text, out)),
            }
        })?;
        Ok(Tensor::from_vec(out, (tokens, width), &Device::Cpu)?)
    }

    /// Attention within one text, head by head and some rows at a time.
    fn text(&self, text: Text<'_>, out: &mut [f32]) {
        let (length, width, size) = (text.length, text.width, text.width / self.heads);
        let turned = self.turns.map(|turns| text.turned(turns, size));
        let values = Columns { values: text.rows, stride: 3 * width, size };
        // Queries and keys lie in the mixed rows, or, turned, in rows of their own.
        let asked = match &turned {
            Some(turned) => Columns { values: turned, stride: 2 * width, size },
            None => values,
        };
        let scale = 1.0 / (size as f32).sqrt();
        let mut scores = vec![0.0; length.min(SCORE_ROWS) * length];
        for head in 0..self.heads {
            for begin in (0..length).step_by(SCORE_ROWS) {
                let rows = begin..length.min(begin + SCORE_ROWS);
                let seen = self.seen(&rows, length);
                let query = asked.part(head * size, &rows);
                let key = asked.part(width + head * size, &seen).transposed();
                let scores = &mut scores[..rows.len() * seen.len()];
                multiply((scores, seen.len()), Output::Replace, query, key, scale, 1);
                self.weigh(scores, head, rows.clone(), &seen, length);
                let weights = Matrix::rows(scores, rows.len(), seen.len(), seen.len());
                let value = values.part(2 * width + head * size, &seen);
                multiply(
                    (&mut out[begin * width + head * size..], width),
                    Output::Replace,
                    weights,
                    value,
                    1.0,
                    1,
                );
            }
        }
    }

    /// The tokens that any of these rows sees.
    fn seen(&self, rows: &Range<usize>, length: usize) -> Range<usize> {
        match self.window {
            Some(window) => rows.start.saturating_sub(window)..rows.end.saturating_add(window).min(length),
            None => 0..length,
        }
    }

    /// From scores to weights: the penalty on distance, and the softmax of what each row sees.
    fn weigh(&self, scores: &mut [f32], head: usize, rows: Range<usize>, seen: &Range<usize>, length: usize) {
        let slope = self.slopes.get(head).copied();
        if slope.is_none() && self.window.is_none() {
            return rows::softmax(scores, length);
        }
        for (row, scores) in rows.zip(scores.chunks_exact_mut(seen.len())) {
            if let Some(slope) = slope {
                for (column, score) in seen.clone().zip(scores.iter_mut()) {
                    *score -= slope * row.abs_diff(column) as f32;
                }
            }
            let own = self.seen(&(row..row + 1), length);
            let (before, rest) = scores.split_at_mut(own.start - seen.start);
            let (own, after) = rest.split_at_mut(own.len());
            before.fill(0.0);
            after.fill(0.0);
            rows::softmax(own, own.len());
        }
    }

    /// The same on any device: padded to the longest text, masked, and the padding dropped again.
    fn on_any(&self, mixed: &Tensor, lengths: &[usize], width: usize) -> Result<Tensor> {
        let (device, heads, size) = (mixed.device(), self.heads, width / self.heads);
        let layout = Padding::of(lengths);
        let (texts, longest) = (lengths.len(), layout.longest);
        let rows = mixed.reshape((mixed.dim(0)?, 3 * heads, size))?;
        let asked = rows.narrow(1, 0, 2 * heads)?;
        let asked = match self.turns {
            Some(turns) => turns.turn_tensor(&asked)?,
            None => asked,
        };
        let rows = Tensor::cat(&[&asked, &rows.narrow(1, 2 * heads, heads)?], 1)?;
        let padded = rows.index_select(&Tensor::new(layout.source, device)?, 0)?;
        let padded =
            padded.reshape((texts, longest, 3, heads, size))?.permute((2, 0, 3, 1, 4))?.contiguous()?;
        let (query, key, value) = (padded.get(0)?, padded.get(1)?, padded.get(2)?);
        let mask = Tensor::from_vec(layout.mask, (texts, 1, 1, longest), device)?;
        let scores = (query.matmul(&key.t()?)? * (1.0 / (size as f64).sqrt()))?.broadcast_add(&mask)?;
        let scores = match self.penalties(longest) {
            Some((penalties, heads)) => {
                scores.broadcast_add(&Tensor::from_vec(penalties, (1, heads, longest, longest), device)?)?
            }
            None => scores,
        };
        let mixed = candle_nn::ops::softmax(&scores, D::Minus1)?.matmul(&value)?;
        let rows = mixed.transpose(1, 2)?.contiguous()?.reshape((texts * longest, width))?;
        Ok(rows.index_select(&Tensor::new(layout.tokens, device)?, 0)?)
    }

    /// What distance takes off the scores, `(heads or 1, longest, longest)`, minus infinity beyond the window.
    fn penalties(&self, longest: usize) -> Option<(Vec<f32>, usize)> {
        let slopes = match (self.slopes, self.window) {
            ([], None) => return None,
            ([], Some(_)) => &[0.0],
            (slopes, _) => slopes,
        };
        let hidden = |distance: usize| self.window.is_some_and(|window| distance > window);
        let penalty = |slope: &f32, row: usize, column: usize| match row.abs_diff(column) {
            // A row whose window holds padding alone would be nothing but minus infinity; its result is dropped.
            distance if hidden(distance) => f32::MIN,
            distance => -slope * distance as f32,
        };
        let mut penalties = Vec::with_capacity(slopes.len() * longest * longest);
        for slope in slopes {
            for row in 0..longest {
                penalties.extend((0..longest).map(|column| penalty(slope, row, column)));
            }
        }
        Some((penalties, slopes.len()))
    }
}

/// One text's mixed rows, and which of the pass's rows is its first.
struct Text<'a> {
    rows: &'a [f32],
    first: usize,
    length: usize,
    width: usize,
}

impl Text<'_> {
    /// Queries and keys, `(length, 2 · width)`, turned by their places.
    fn turned(&self, turns: &Turns, size: usize) -> Vec<f32> {
        let mut turned = Vec::with_capacity(self.length * 2 * self.width);
        for (place, row) in self.rows.chunks_exact(3 * self.width).enumerate() {
            let begin = turned.len();
            turned.extend_from_slice(&row[..2 * self.width]);
            turns.turn(self.first + place, &mut turned[begin..], size);
        }
        turned
    }
}

/// Rows of `stride` numbers, from which a head's are read where they lie.
#[derive(Clone, Copy)]
struct Columns<'a> {
    values: &'a [f32],
    stride: usize,
    size: usize,
}

impl<'a> Columns<'a> {
    fn part(&self, column: usize, rows: &Range<usize>) -> Matrix<'a> {
        Matrix::rows(&self.values[rows.start * self.stride + column..], rows.len(), self.size, self.stride)
    }
}

#[cfg(test)]
mod tests {
    use super::super::rotary::{Frequencies, Turns};
    use super::*;

    fn difference(left: &Tensor, right: &Tensor) -> f32 {
        let difference = (left - right).unwrap().abs().unwrap().max_all().unwrap();
        difference.to_scalar().unwrap()
    }

    fn turns(lengths: &[usize]) -> Turns {
        let frequencies = Frequencies { steps: vec![1.0, 0.5, 0.1, 0.02], axes: Vec::new(), amplitude: 1.0 };
        let mut turns = Turns::new(4);
        for length in lengths {
            turns.extend(&frequencies, (0..*length as u32).map(|place| [place; 3]));
        }
        turns
    }

    #[test]
    fn both_ways_agree_for_every_form_whatever_the_threads() {
        let lengths = [3, 1, 7, 4, 300];
        let mixed = Tensor::randn(0.0f32, 1.0, (315, 96), &Device::Cpu).unwrap();
        let turns = turns(&lengths);
        let slopes = [0.5, 0.25, 0.125, 0.0625];
        for window in [None, Some(0), Some(2), Some(40), Some(usize::MAX)] {
            for (slopes, turns) in [(&[][..], None), (&slopes[..], None), (&[][..], Some(&turns))] {
                let form = Mutual { heads: 4, slopes, window, turns };
                let slow = form.on_any(&mixed, &lengths, 32).unwrap();
                let check = || assert!(difference(&form.attend(&mixed, &lengths).unwrap(), &slow) < 1e-5);
                check();
                rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap().install(check);
            }
        }
    }

    #[test]
    fn a_window_hides_what_is_farther_away() {
        let mut rows = vec![0.0f32; 5 * 3];
        rows.chunks_exact_mut(3).enumerate().for_each(|(place, row)| row[2] = place as f32);
        let mixed = Tensor::from_vec(rows, (5, 3), &Device::Cpu).unwrap();
        let form = Mutual { heads: 1, slopes: &[], window: Some(1), turns: None };
        let seen: Vec<f32> = form.attend(&mixed, &[5]).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        let means = [0.5, 1.0, 2.0, 3.0, 3.5];
        assert!(seen.iter().zip(means).all(|(seen, mean)| (seen - mean).abs() < 1e-6), "{seen:?}");
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let mixed = Tensor::zeros((4, 12), candle_core::DType::F32, &Device::Cpu).unwrap();
        let form = |heads, slopes| Mutual { heads, slopes, window: None, turns: None };
        assert!(form(2, &[]).attend(&mixed, &[3]).is_err());
        assert!(form(3, &[]).attend(&mixed, &[4]).is_err());
        assert!(form(0, &[]).attend(&mixed, &[4]).is_err());
        assert!(form(2, &[0.5]).attend(&mixed, &[4]).is_err());
    }
}
