//! Biases on the scores of attention that depend on how far apart a query and a key are: ALiBi (Press et al., 2022,
//! arXiv 2108.12409), learned numbers for ranges of distances (Raffel et al., 2020, arXiv 1910.10683), and learned vectors
//! of distances (`distance_vectors`). Their use is left to `self_attention`; which model has which to the families.

use super::distance_vectors::DistanceVectors;
use super::flash::Sequence;

/// Bias on the score of a query and a key.
#[derive(Clone, Copy)]
pub(crate) enum ScoreBias<'a> {
    None,
    /// For each head what a step of distance takes off a score (ALiBi).
    Slopes(&'a [f32]),
    /// A learned number for each head and relative position.
    Relative(&'a RelativeBias),
    /// Products of queries, or of queries and keys, with a learned vector for each relative position.
    Vectors(&'a DistanceVectors),
}

impl ScoreBias<'_> {
    /// True if it can be that of so many heads of this size, of sequences of at most `longest` rows.
    pub(super) fn fits(self, heads: usize, size: usize, longest: usize) -> bool {
        match self {
            Self::Vectors(vectors) => vectors.fits(size, longest),
            _ => [0, heads].contains(&self.heads()),
        }
    }

    /// Number of heads that differ beside their rows: 0 without a bias.
    pub(super) fn heads(self) -> usize {
        match self {
            Self::None | Self::Vectors(_) => 0,
            Self::Slopes(slopes) => slopes.len(),
            Self::Relative(bias) => bias.heads.len(),
        }
    }

    /// Bias of one score, whatever the rows are.
    pub(super) fn of(self, head: usize, query: usize, key: usize) -> f32 {
        match self {
            Self::None | Self::Vectors(_) => 0.0,
            Self::Slopes(slopes) => slopes.get(head).map_or(0.0, |slope| -slope * query.abs_diff(key) as f32),
            Self::Relative(bias) => bias.heads.get(head).map_or(0.0, |head| head.of(query, key)),
        }
    }

    /// Adds the bias to the scores of a query of a sequence with the keys from `first` on.
    pub(super) fn add(
        self,
        sequence: &Sequence<'_>,
        head: usize,
        query: usize,
        first: usize,
        scores: &mut [f32],
    ) {
        match self {
            Self::None => {}
            Self::Vectors(vectors) => vectors.add(sequence, head, query, first, scores),
            _ => self.add_by_place(head, query, first, scores),
        }
    }

    /// The same for a bias by distance alone, whatever the rows are.
    pub(super) fn add_by_place(self, head: usize, query: usize, first: usize, scores: &mut [f32]) {
        match self {
            Self::None | Self::Vectors(_) => {}
            Self::Slopes(slopes) => {
                let Some(slope) = slopes.get(head) else { return };
                for (key, score) in (first..).zip(scores) {
                    *score -= slope * query.abs_diff(key) as f32;
                }
            }
            Self::Relative(bias) => {
                let Some(head) = bias.heads.get(head) else { return };
                for (key, score) in (first..).zip(scores) {
                    *score += head.of(query, key);
                }
            }
        }
    }
}

/// Learned biases by relative position. Positions share a number in buckets, which widen with the distance, and from
/// some distance on all share one.
#[derive(Debug)]
pub(crate) struct RelativeBias {
    heads: Vec<HeadBias>,
}

/// One head's numbers for distances from 0 on.
#[derive(Debug)]
struct HeadBias {
    /// For keys at the query or before it.
    before: Vec<f32>,
    after: Vec<f32>,
}

impl HeadBias {
    fn of(&self, query: usize, key: usize) -> f32 {
        let side = if key > query { &self.after } else { &self.before };
        // Beyond the largest distance with a number of its own all have the last.
        side.get(query.abs_diff(key)).or(side.last()).copied().unwrap_or(0.0)
    }
}

impl RelativeBias {
    /// From a table `(buckets, heads)`, row by row, in which distances from `max_distance` on share the last buckets.
    pub(crate) fn new(table: &[f32], heads: usize, max_distance: usize) -> Self {
        Self::of(table, heads, max_distance, |query, key, buckets| {
            relative_position_bucket(query, key, buckets, max_distance)
        })
    }

    /// The same for rows that see nothing behind them, so that all buckets are for what is before.
    pub(crate) fn causal(table: &[f32], heads: usize, max_distance: usize) -> Self {
        Self::of(table, heads, max_distance, |query, key, buckets| {
            bucket(query.saturating_sub(key), buckets, max_distance)
        })
    }

    fn of(
        table: &[f32],
        heads: usize,
        max_distance: usize,
        bucket: impl Fn(usize, usize, usize) -> usize,
    ) -> Self {
        let buckets = table.len().checked_div(heads).unwrap_or(0);
        let head = |head: usize| {
            let number =
                |query, key| table.get(bucket(query, key, buckets) * heads + head).copied().unwrap_or(0.0);
            HeadBias {
                before: (0..=max_distance).map(|distance| number(distance, 0)).collect(),
                after: (0..=max_distance).map(|distance| number(0, distance)).collect(),
            }
        };
        Self { heads: (0..heads).map(head).collect() }
    }
}

/// Bucket of the distance between two tokens, half of them for keys at the query or before it, and as many again for keys
/// after it.
pub(crate) fn relative_position_bucket(
    query: usize,
    key: usize,
    buckets: usize,
    max_distance: usize,
) -> usize {
    let half = buckets / 2;
    let bucket = bucket(query.abs_diff(key), half, max_distance);
    if key > query { half + bucket } else { bucket }
}

/// Bucket of a distance: one for each small distance, then logarithmically wider ones. In 32 bits, as the reference has
/// it.
fn bucket(distance: usize, buckets: usize, max_distance: usize) -> usize {
    let exact = buckets / 2;
    if distance < exact {
        return distance;
    }
    let part = (distance as f32 / exact as f32).ln() / (max_distance as f32 / exact as f32).ln();
    (exact + (part * (buckets - exact) as f32) as usize).min(buckets.saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_those_of_transformers() {
        // `T5Attention._relative_position_bucket` with 32 buckets and 128 at most.
        let bucket = |distance: i64| {
            let (from, to) = if distance < 0 { (-distance, 0) } else { (0, distance) };
            relative_position_bucket(from as usize, to as usize, 32, 128)
        };
        let distances = [0, 1, -1, 7, -7, 8, -8, 12, -20, 63, -64, 127, -128, 500, -500];
        let expected = [0, 17, 1, 23, 7, 24, 8, 25, 10, 29, 14, 31, 15, 31, 15];
        assert_eq!(distances.map(bucket), expected);
    }

    #[test]
    fn buckets_of_what_is_before_are_those_of_transformers() {
        // The same with `bidirectional=False`.
        let distances = [0, 1, 7, 8, 15, 16, 17, 20, 31, 64, 127, 128, 500];
        let expected = [0, 1, 7, 8, 15, 16, 16, 17, 21, 26, 31, 31, 31];
        assert_eq!(distances.map(|distance| bucket(distance, 32, 128)), expected);
    }

    #[test]
    fn relative_biases_are_those_of_the_bucket_however_far() {
        let table: Vec<f32> = (0..32 * 2).map(|number| number as f32).collect();
        let bias = RelativeBias::new(&table, 2, 128);
        for (query, key) in [(0, 0), (3, 9), (9, 3), (0, 127), (128, 0), (0, 128), (0, 4000), (4000, 0)] {
            for head in 0..2 {
                let bucket = relative_position_bucket(query, key, 32, 128);
                assert_eq!(ScoreBias::Relative(&bias).of(head, query, key), (bucket * 2 + head) as f32);
            }
        }
    }
}
