//! Tensors whose numbers do not lie row by row in their file, as PyTorch stores views. The numbers are put into their places
//! as they are read, so that those between a view's are nowhere in memory. That no two numbers of a tensor share a place in
//! the file is left to `pickle`.

/// Puts a tensor's numbers, which come in the order of the file, row by row.
pub(super) struct Scatter<'a> {
    /// Those with several places, the one with the longest steps in the file first.
    dimensions: Vec<Dimension>,
    /// Place in the file of the next number, from the tensor's first.
    next: usize,
    values: &'a mut [f32],
}

struct Dimension {
    side: usize,
    /// Step from one number to the next in the file.
    stride: usize,
    /// The same, row by row.
    step: usize,
}

impl<'a> Scatter<'a> {
    /// For a tensor of this shape, of which `values` has room for all numbers.
    pub(super) fn new(shape: &[usize], strides: &[usize], values: &'a mut [f32]) -> Self {
        let mut step = 1;
        let mut dimensions = Vec::with_capacity(shape.len());
        for (side, stride) in shape.iter().zip(strides).rev() {
            if *side > 1 {
                dimensions.push(Dimension { side: *side, stride: *stride, step });
            }
            step = step.saturating_mul(*side);
        }
        dimensions.sort_by_key(|dimension| std::cmp::Reverse(dimension.stride));
        Self { dimensions, next: 0, values }
    }

    /// Takes the numbers that follow in the file.
    pub(super) fn take(&mut self, numbers: &[f32]) {
        for number in numbers {
            if let Some(value) = self.place().and_then(|place| self.values.get_mut(place)) {
                *value = *number;
            }
            self.next += 1;
        }
    }

    /// Where the next number belongs, if it is one of the tensor's.
    fn place(&self) -> Option<usize> {
        let (mut rest, mut place) = (self.next, 0);
        for Dimension { side, stride, step } in &self.dimensions {
            let index = rest.checked_div(*stride).filter(|index| index < side)?;
            rest -= index * stride;
            place += index * step;
        }
        (rest == 0).then_some(place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tensor of the numbers from 0, which come in pieces of so many.
    fn scattered(shape: &[usize], strides: &[usize], span: u16, piece: usize) -> Vec<f32> {
        let mut values = vec![-1.0; shape.iter().product()];
        let numbers: Vec<f32> = (0..span).map(f32::from).collect();
        let mut scatter = Scatter::new(shape, strides, &mut values);
        numbers.chunks(piece).for_each(|piece| scatter.take(piece));
        values
    }

    #[test]
    fn numbers_are_put_where_they_belong_however_they_come() {
        for piece in [1, 2, 5, 100] {
            assert_eq!(scattered(&[3, 2], &[1, 3], 6, piece), [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
            assert_eq!(scattered(&[2, 2], &[4, 1], 6, piece), [0.0, 1.0, 4.0, 5.0]);
            assert_eq!(scattered(&[2, 1, 2], &[1, 0, 5], 7, piece), [0.0, 5.0, 1.0, 6.0]);
            assert_eq!(scattered(&[3], &[2], 5, piece), [0.0, 2.0, 4.0]);
        }
    }
}
