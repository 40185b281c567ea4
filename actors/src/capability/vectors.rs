//! Vectors as one contiguous array, and as 8-bit numbers or bits, in the forms that sentence-transformers and vector
//! databases have.

use std::collections::BTreeMap;

/// Rows of numbers of one length, one after another.
///
/// ```
/// use model_actors::Embeddings;
/// let embeddings = Embeddings::new(vec![vec![0.6, -0.8], vec![1.0, 0.0]]);
/// let array = embeddings.to_array().unwrap();
/// assert_eq!((array.len(), array.width(), array.values()), (2, 2, &[0.6, -0.8, 1.0, 0.0][..]));
/// assert_eq!(array.to_ubinary().values(), [0b1000_0000, 0b1000_0000]);
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct VectorArray<T> {
    values: Vec<T>,
    width: usize,
}

impl VectorArray<f32> {
    /// Vectors one after another. `None` if they differ in length.
    pub(super) fn of(vectors: &[Vec<f32>]) -> Option<Self> {
        let width = vectors.first().map_or(0, Vec::len);
        let is_even = vectors.iter().all(|vector| vector.len() == width);
        is_even.then(|| Self { values: vectors.concat(), width })
    }
}

impl<T> VectorArray<T> {
    /// The numbers, row by row.
    pub fn values(&self) -> &[T] {
        &self.values
    }

    /// The numbers, row by row, without a copy.
    pub fn into_values(self) -> Vec<T> {
        self.values
    }

    /// Length of a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.values.len().checked_div(self.width).unwrap_or(0)
    }

    /// True without any.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// The rows, in order.
    pub fn rows(&self) -> impl Iterator<Item = &[T]> {
        self.values.chunks_exact(self.width.max(1))
    }

    fn map_rows<U>(&self, width: usize, map: impl Fn(&[T], &mut Vec<U>)) -> VectorArray<U> {
        let mut values = Vec::with_capacity(self.len() * width);
        self.rows().for_each(|row| map(row, &mut values));
        VectorArray { values, width }
    }
}

impl VectorArray<f32> {
    /// Rows of this width. Numbers beyond the last whole row are left out.
    pub fn new(mut values: Vec<f32>, width: usize) -> Self {
        values.truncate(values.len().checked_div(width).unwrap_or(0) * width);
        Self { values, width }
    }

    /// The relevance of a document's token vectors to a query's, which these are: for each of the query's tokens the largest
    /// dot product with one of the document's, on average ([`Self::max_sim`] over the query's length, as of BGE-M3).
    pub fn late_interaction(&self, document: &Self) -> f32 {
        match self.len() {
            0 => 0.0,
            count => self.max_sim(document) / count as f32,
        }
    }

    /// The same as a sum, which is how ColBERT has it; 0 for a document without vectors.
    ///
    /// ```
    /// use model_actors::VectorArray;
    /// let query = VectorArray::new(vec![1.0, 0.0, 0.0, 1.0], 2);
    /// let document = VectorArray::new(vec![0.6, 0.8, 0.8, 0.6, -1.0, 0.0], 2);
    /// assert_eq!(query.max_sim(&document), 1.6);
    /// assert_eq!(query.late_interaction(&document), 0.8);
    /// ```
    pub fn max_sim(&self, document: &Self) -> f32 {
        let dot = |one: &[f32], other: &[f32]| one.iter().zip(other).map(|(x, y)| x * y).sum::<f32>();
        let best = |query: &[f32]| document.rows().map(|token| dot(query, token)).fold(f32::MIN, f32::max);
        if document.is_empty() { 0.0 } else { self.rows().map(best).sum() }
    }

    /// Each number as one of 256 steps of its dimension's range, from 0; what is outside of the range is its end. As
    /// `quantize_embeddings` of sentence-transformers with the precision `uint8`. `None` for ranges of another width.
    pub fn to_uint8(&self, ranges: &VectorRanges) -> Option<VectorArray<u8>> {
        if ranges.0.len() != self.width {
            return None;
        }
        let step = |(value, (least, most)): (&f32, &(f32, f32))| {
            let step = (most - least) / 255.0;
            let step = if step == 0.0 { 1.0 } else { step };
            // The cast saturates; a number that is none becomes 0.
            ((value - least) / step).floor() as u8
        };
        Some(self.map_rows(self.width, |row, out| out.extend(row.iter().zip(&ranges.0).map(step))))
    }

    /// The same from -128, as with the precision `int8`.
    pub fn to_int8(&self, ranges: &VectorRanges) -> Option<VectorArray<i8>> {
        let steps = self.to_uint8(ranges)?;
        Some(VectorArray { values: steps.values.into_iter().map(signed).collect(), width: self.width })
    }

    /// A bit for each number, set for those above 0, eight in a byte with the first as the highest, filled up with zeros: as
    /// with the precision `ubinary`. Two vectors are compared by the number of bits in which they differ.
    pub fn to_ubinary(&self) -> VectorArray<u8> {
        let byte = |numbers: &[f32]| {
            let bits = numbers.iter().enumerate();
            bits.fold(0, |byte, (place, number)| byte | u8::from(*number > 0.0) << (7 - place))
        };
        self.map_rows(self.width.div_ceil(8), |row, out| out.extend(row.chunks(8).map(byte)))
    }

    /// The same bytes less 128, as with the precision `binary`.
    pub fn to_binary(&self) -> VectorArray<i8> {
        let bits = self.to_ubinary();
        VectorArray { values: bits.values.into_iter().map(signed).collect(), width: bits.width }
    }
}

fn signed(step: u8) -> i8 {
    step.wrapping_sub(128).cast_signed()
}

/// The least and the largest number of each dimension, by which vectors become 8-bit numbers. Those that are compared with
/// each other need the same ranges: take them once of some thousand vectors, and keep them.
///
/// ```
/// use model_actors::{Embeddings, VectorRanges};
/// let many = Embeddings::new(vec![vec![0.0, 0.5], vec![255.0, 0.5]]).to_array().unwrap();
/// let ranges = VectorRanges::of(&many);
/// assert_eq!(many.to_int8(&ranges).unwrap().values(), [-128, -128, 127, -128]);
/// ```
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct VectorRanges(Vec<(f32, f32)>);

impl VectorRanges {
    /// Ranges that are known: the least and the largest number of each dimension.
    pub fn new(ranges: Vec<(f32, f32)>) -> Self {
        Self(ranges)
    }

    /// The ranges of these vectors.
    pub fn of(vectors: &VectorArray<f32>) -> Self {
        let mut ranges = vec![(f32::INFINITY, f32::NEG_INFINITY); vectors.width];
        for row in vectors.rows() {
            for ((least, most), value) in ranges.iter_mut().zip(row) {
                (*least, *most) = (least.min(*value), most.max(*value));
            }
        }
        Self(ranges)
    }

    /// The least and the largest number of each dimension.
    pub fn ranges(&self) -> &[(f32, f32)] {
        &self.0
    }
}

/// A vector of few numbers that are not 0: a weight for each token of a text that says something.
///
/// ```
/// use model_actors::SparseVector;
/// let (query, document) = (SparseVector::new([(7, 0.5), (9, 0.25)]), SparseVector::new([(9, 2.0), (3, 1.0)]));
/// assert_eq!(query.dot(&document), 0.5);
/// assert_eq!((document.tokens(), document.weights()), (&[3, 9][..], &[1.0, 2.0][..]));
/// ```
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct SparseVector {
    tokens: Vec<u32>,
    weights: Vec<f32>,
}

impl SparseVector {
    /// The vector of these tokens, each with its largest weight.
    pub fn new(weights: impl IntoIterator<Item = (u32, f32)>) -> Self {
        let mut largest = BTreeMap::new();
        for (token, weight) in weights {
            let known = largest.entry(token).or_insert(weight);
            *known = weight.max(*known);
        }
        Self { tokens: largest.keys().copied().collect(), weights: largest.into_values().collect() }
    }

    /// Numbers of the tokens in the vocabulary, ascending.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// The weight of each.
    pub fn weights(&self) -> &[f32] {
        &self.weights
    }

    /// The lexical relevance of one text to another: the sum of the products of weights of tokens that both have.
    pub fn dot(&self, other: &Self) -> f32 {
        let of_other =
            |token: &u32| other.tokens.binary_search(token).ok().and_then(|at| other.weights.get(at));
        let products = self.tokens.iter().zip(&self.weights);
        products.filter_map(|(token, weight)| Some(weight * of_other(token)?)).sum()
    }
}
