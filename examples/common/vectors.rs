//! Comparison of unit vectors.

/// The image that is nearest to a text; all vectors have length 1.
pub(crate) fn nearest(text: &[f32], images: &[Vec<f32>]) -> Option<usize> {
    let near = |image: &usize| similarity(text, &images[*image]);
    (0..images.len()).max_by(|a, b| near(a).total_cmp(&near(b)))
}

/// Cosine similarity of two unit vectors.
pub(crate) fn similarity(left: &[f32], right: &[f32]) -> f32 {
    left.iter().zip(right).map(|(x, y)| x * y).sum()
}
