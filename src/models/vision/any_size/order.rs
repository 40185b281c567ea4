//! The order of an image's patches in a tower: in groups of those that are merged, so that a merged patch is a few
//! rows one after another; and the groups by windows, so that a window is a run of rows.

use std::ops::Range;

/// The patches of a crop.
pub(in super::super) struct Places {
    /// Number of lines and columns of patches.
    pub(in super::super) down: usize,
    pub(in super::super) across: usize,
    /// Line and column of each patch.
    pub(in super::super) places: Vec<(usize, usize)>,
}

impl Places {
    /// Those of a grid of `down` lines and `across` columns of merged patches, each of `merge` patches along a side.
    pub(in super::super) fn new((down, across): (usize, usize), merge: usize, window: Option<usize>) -> Self {
        let mut places = Vec::with_capacity(down * across * merge * merge);
        for (group_line, group_column) in merged_places((down, across), window) {
            for (line, column) in (0..merge).flat_map(|line| (0..merge).map(move |column| (line, column))) {
                places.push((group_line * merge + line, group_column * merge + column));
            }
        }
        Self { down: down * merge, across: across * merge, places }
    }

    /// The number that each patch has where they are counted line by line.
    pub(in super::super) fn numbers(&self) -> Vec<usize> {
        self.places.iter().map(|(line, column)| line * self.across + column).collect()
    }
}

/// Line and column of each merged patch, window by window of `window` a side, or line by line.
fn merged_places(grid: (usize, usize), window: Option<usize>) -> Vec<(usize, usize)> {
    let mut places = Vec::with_capacity(grid.0 * grid.1);
    for (lines, columns) in windows(grid, window) {
        places.extend(lines.flat_map(|line| columns.clone().map(move |column| (line, column))));
    }
    places
}

/// Lines and columns of each window; those at the edges may be smaller.
fn windows(
    (down, across): (usize, usize),
    side: Option<usize>,
) -> impl Iterator<Item = (Range<usize>, Range<usize>)> {
    let (high, wide) = side.map_or((1, across), |side| (side, side));
    let cut = move |all: usize, size: usize| {
        (0..all).step_by(size.max(1)).map(move |first| first..all.min(first + size.max(1)))
    };
    cut(down, high).flat_map(move |lines| cut(across, wide).map(move |columns| (lines.clone(), columns)))
}

/// The rows of each window, of a grid of merged patches of `merged` rows each.
pub(in super::super) fn window_rows(
    grid: (usize, usize),
    side: usize,
    merged: usize,
) -> impl Iterator<Item = Range<usize>> {
    windows(grid, Some(side)).scan(0, move |next, (lines, columns)| {
        let first = *next;
        *next += lines.len() * columns.len() * merged;
        Some(first..*next)
    })
}

/// For each merged patch line by line its number in the order of windows.
pub(in super::super) fn line_by_line(grid: (usize, usize), window: usize) -> Vec<usize> {
    let mut numbers = vec![0; grid.0 * grid.1];
    for (number, (line, column)) in merged_places(grid, Some(window)).into_iter().enumerate() {
        if let Some(place) = numbers.get_mut(line * grid.1 + column) {
            *place = number;
        }
    }
    numbers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merged_patches_are_neighbours() {
        let numbers = |grid, merge| Places::new(grid, merge, None).numbers();
        assert_eq!(numbers((2, 2), 2), [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15]);
        assert_eq!(numbers((2, 2), 1), [0, 1, 2, 3]);
        assert_eq!(numbers((1, 2), 2), [0, 1, 4, 5, 2, 3, 6, 7]);
    }

    #[test]
    fn windows_are_runs_of_rows_and_smaller_at_the_edges() {
        let places = merged_places((3, 5), Some(2));
        assert_eq!(places[..4], [(0, 0), (0, 1), (1, 0), (1, 1)]);
        assert_eq!(places[8..10], [(0, 4), (1, 4)]);
        assert_eq!(places[10..14], [(2, 0), (2, 1), (2, 2), (2, 3)]);
        let rows: Vec<Range<usize>> = window_rows((3, 5), 2, 4).collect();
        assert_eq!(rows, [0..16, 16..32, 32..40, 40..48, 48..56, 56..60]);
        let numbers = line_by_line((3, 5), 2);
        assert_eq!(numbers[..5], [0, 1, 4, 5, 8]);
        assert_eq!(merged_places((2, 2), None), [(0, 0), (0, 1), (1, 0), (1, 1)]);
    }
}
