//! Tensors whose numbers do not lie row by row in their file, as PyTorch stores views.

/// Appends the numbers of a tensor row by row that lie otherwise.
pub(super) fn gather(span: &[f32], shape: &[usize], strides: &[usize], values: &mut Vec<f32>) {
    let mut place = vec![0; shape.len()];
    for _ in 0..shape.iter().product() {
        let at: usize = place.iter().zip(strides).map(|(place, stride)| place * stride).sum();
        values.extend(span.get(at));
        for (place, side) in place.iter_mut().zip(shape).rev() {
            *place += 1;
            if *place < *side {
                break;
            }
            *place = 0;
        }
    }
}
