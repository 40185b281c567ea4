//! Matrix product: a safe wrapper around the pointer interface of the `gemm` crate, which candle itself
//! computes with. Calling it directly lets a product add to a bias that is already there, read attention
//! heads where they lie, and stay on the caller's threads.
#![allow(unsafe_code, reason = "gemm takes pointers; `multiply` checks every bound before it passes them on")]

use std::ops::Range;

use gemm::Parallelism;

/// Matrix in a slice: element (row, column) is at `row * row_stride + column * column_stride`.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a> {
    pub(super) values: &'a [f32],
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) row_stride: usize,
    pub(super) column_stride: usize,
}

impl<'a> Matrix<'a> {
    /// Matrix of rows that begin `stride` numbers apart, each used up to `columns`.
    pub(super) fn rows(values: &'a [f32], rows: usize, columns: usize, stride: usize) -> Self {
        Self { values, rows, columns, row_stride: stride, column_stride: 1 }
    }

    /// Matrix of some of the rows.
    pub(super) fn some_rows(self, rows: Range<usize>) -> Self {
        let begin = rows.start.saturating_mul(self.row_stride);
        let values = if rows.is_empty() { &[] } else { &self.values[begin..] };
        Self { values, rows: rows.len(), ..self }
    }

    /// The transposed matrix, of the same numbers.
    pub(super) fn transposed(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }

    /// True if every index that the matrix covers is one of its numbers.
    fn fits(self) -> bool {
        let extent = extent(self.rows, self.columns, self.row_stride, self.column_stride);
        extent.is_some_and(|extent| extent <= self.values.len())
    }
}

/// One more than the largest index that a matrix covers; nothing if there is no such index.
fn extent(rows: usize, columns: usize, row_stride: usize, column_stride: usize) -> Option<usize> {
    let (Some(last_row), Some(last_column)) = (rows.checked_sub(1), columns.checked_sub(1)) else {
        return Some(0);
    };
    let (row, column) = (last_row.checked_mul(row_stride)?, last_column.checked_mul(column_stride)?);
    row.checked_add(column)?.checked_add(1)
}

/// Treatment of the numbers that the output holds already.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Output {
    Replace,
    Add,
}

/// Computes `out = scale · left · right`, or adds it to `out`. `out` has rows of `out_stride`, of which the
/// first `right.columns` values are written. Uses `threads` threads of the current rayon pool.
pub(super) fn multiply(
    out: (&mut [f32], usize),
    kind: Output,
    left: Matrix<'_>,
    right: Matrix<'_>,
    scale: f32,
    threads: usize,
) {
    let (out, out_stride) = out;
    let (m, n, k) = (left.rows, right.columns, left.columns);
    assert_eq!(k, right.rows, "the inner sides of a matrix product differ");
    assert!(left.fits(), "the left matrix reaches beyond its slice");
    assert!(right.fits(), "the right matrix reaches beyond its slice");
    let out_fits = extent(m, n, out_stride, 1).is_some_and(|extent| extent <= out.len());
    assert!(out_fits, "the output reaches beyond its slice");
    assert!(out_stride >= n || m <= 1, "the output's rows overlap");
    let parallelism = if threads > 1 { Parallelism::Rayon(threads) } else { Parallelism::None };
    // SAFETY: gemm reads `left` and `right` and reads and writes `out` at exactly the indices that `extent` bounds,
    // and the assertions above hold all of them inside their slices. `out` is borrowed mutably, so it aliases
    // neither input, and its rows do not overlap, so no two threads write one element. All slices are of
    // initialised f32, and slices never exceed `isize::MAX` bytes, so the strides fit an `isize`.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            out_stride as isize,
            kind == Output::Add,
            left.values.as_ptr(),
            left.column_stride as isize,
            left.row_stride as isize,
            right.values.as_ptr(),
            right.column_stride as isize,
            right.row_stride as isize,
            1.0,
            scale,
            false,
            false,
            false,
            parallelism,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_of_strided_and_transposed_matrices_are_right() {
        let left = [1.0, 2.0, 9.0, 3.0, 4.0, 9.0];
        let right = [5.0, 6.0, 7.0, 8.0];
        let left = Matrix::rows(&left, 2, 2, 3);
        let right = Matrix::rows(&right, 2, 2, 2);
        let mut out = [1.0; 4];
        multiply((&mut out, 2), Output::Replace, left, right.transposed(), 2.0, 1);
        assert_eq!(out, [34.0, 46.0, 78.0, 106.0]);
        multiply((&mut out, 2), Output::Add, left, right, 1.0, 1);
        assert_eq!(out, [53.0, 68.0, 121.0, 156.0]);
    }

    #[test]
    #[should_panic(expected = "beyond its slice")]
    fn a_matrix_beyond_its_slice_is_refused() {
        let short = [0.0; 3];
        let matrix = Matrix::rows(&short, 2, 2, 2);
        multiply((&mut [0.0; 4], 2), Output::Replace, matrix, matrix, 1.0, 1);
    }

    #[test]
    fn a_matrix_of_more_numbers_than_can_be_counted_reaches_beyond_any_slice() {
        // Multiplied without a look, each of them is a small number.
        let half = 1 << (usize::BITS / 2);
        for (rows, columns, row_stride, column_stride) in [
            (half + 1, 1, half, 1),
            (1, half + 1, 1, half),
            (2, 2, usize::MAX, 1),
            (3, 1, usize::MAX / 2 + 1, 0),
        ] {
            assert_eq!(extent(rows, columns, row_stride, column_stride), None);
            let matrix = Matrix { values: &[0.0], rows, columns, row_stride, column_stride };
            assert!(!matrix.fits());
        }
        assert_eq!(extent(2, 3, 4, 1), Some(7));
        assert_eq!((extent(0, 3, usize::MAX, 1), extent(3, 0, usize::MAX, usize::MAX)), (Some(0), Some(0)));
    }
}
