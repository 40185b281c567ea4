//! Pictures on a terminal, two pixels a character.

use candle_actors::Picture;
use console::{Term, style};

/// Characters of a picture's width: three stand side by side on a terminal of 80.
const COLUMNS: usize = 20;

/// True if the terminal can show pictures.
pub(crate) fn can_be_shown() -> bool {
    Term::stdout().is_term() && console::colors_enabled() && console::true_colors_enabled()
}

/// Pictures side by side, `COLUMNS` characters each; nothing where they cannot be shown.
pub(crate) fn lines(pictures: &[Picture]) -> Vec<String> {
    let mut lines = Vec::new();
    for row in (0..COLUMNS).step_by(2).filter(|_| can_be_shown()) {
        let drawn: Vec<String> = pictures.iter().map(|picture| line(picture, row)).collect();
        lines.push(drawn.join("  "));
    }
    lines
}

/// A row of half blocks: the character's own colour is the upper pixel, its background the lower one.
fn line(picture: &Picture, row: usize) -> String {
    let character = |column| {
        let ([r, g, b], [under_r, under_g, under_b]) =
            (cell(picture, column, row), cell(picture, column, row + 1));
        style("▀").true_color(r, g, b).on_true_color(under_r, under_g, under_b).to_string()
    };
    (0..COLUMNS).map(character).collect()
}

/// The mean of the pixels that fall on one of `COLUMNS` x `COLUMNS` cells.
fn cell(picture: &Picture, column: usize, row: usize) -> [u8; 3] {
    let within = |index: usize, length: usize| {
        let first = index * length / COLUMNS;
        first..((index + 1) * length / COLUMNS).max(first + 1).min(length)
    };
    let (mut sums, mut count) = ([0u32; 3], 0);
    for y in within(row, picture.height) {
        for x in within(column, picture.width) {
            let pixel = picture.rgb.iter().skip((y * picture.width + x) * 3);
            sums.iter_mut().zip(pixel).for_each(|(sum, value)| *sum += u32::from(*value));
            count += 1;
        }
    }
    sums.map(|sum| (sum / count.max(1)) as u8)
}
