//! Crops and pads pictures.

use model_actors::Picture;

use super::{check, check_sides};
use crate::error::Result;

/// Crops or pads the picture to `width` × `height` pixels, starting at `(left, top)`; pixels outside it get `colour`.
///
/// # Errors
/// [`crate::Error::InvalidInput`] for a picture that is none, for sides of 0 or over the limit.
pub(crate) fn window(
    picture: &Picture,
    (left, top): (isize, isize),
    (width, height): (usize, usize),
    colour: [u8; 3],
) -> Result<Picture> {
    check(picture)?;
    check_sides(width, height)?;
    let mut rgb = colour.repeat(width * height);
    let (to_left, from_left, across) = overlap(left, width, picture.width);
    let (to_top, from_top, down) = overlap(top, height, picture.height);
    for line in 0..down {
        let to = ((to_top + line) * width + to_left) * 3;
        let from = ((from_top + line) * picture.width + from_left) * 3;
        rgb[to..to + across * 3].copy_from_slice(&picture.rgb[from..from + across * 3]);
    }
    Ok(Picture::new(width, height, rgb))
}

/// Overlap along one side: first pixel in the window, first pixel in the picture, and length.
fn overlap(start: isize, window: usize, picture: usize) -> (usize, usize, usize) {
    let (to, from) = (start.saturating_neg().max(0) as usize, start.max(0) as usize);
    (to, from, window.saturating_sub(to).min(picture.saturating_sub(from)))
}

/// Rounding of the place of a crop from the middle, where as much cannot go on both sides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Middle {
    /// Less goes before it, as in transformers.
    Down,
    /// An even number goes before it, as in torchvision.
    ToEven,
}

/// Crops the picture around its centre; where it is smaller than that, pads it with black.
///
/// # Errors
/// As [`window`].
pub(crate) fn centre_crop(picture: &Picture, width: usize, height: usize, middle: Middle) -> Result<Picture> {
    let start = |picture: usize, crop: usize| match picture.checked_sub(crop) {
        Some(rest) if middle == Middle::ToEven && rest % 4 == 3 => (rest / 2 + 1) as isize,
        Some(rest) => (rest / 2) as isize,
        None => -((crop - picture).div_ceil(2) as isize),
    };
    check_sides(width, height)?;
    let at = (start(picture.width, width), start(picture.height, height));
    window(picture, at, (width, height), [0; 3])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each pixel holds its own column, row and 7.
    fn numbered(width: usize, height: usize) -> Picture {
        let pixels = (0..height).flat_map(|row| (0..width).map(move |column| [column as u8, row as u8, 7]));
        Picture::new(width, height, pixels.flatten().collect())
    }

    #[test]
    fn a_window_shows_what_lies_under_it() {
        let picture = numbered(4, 3);
        let crop = window(&picture, (1, 2), (2, 1), [0; 3]).unwrap();
        assert_eq!(crop.rgb, [1, 2, 7, 2, 2, 7]);
        let padded = window(&picture, (-1, -1), (6, 5), [9; 3]).unwrap();
        assert_eq!(padded.rgb[..18], [9; 18]);
        assert_eq!(padded.rgb[18..24], [9, 9, 9, 0, 0, 7]);
        let outside = window(&picture, (4, -9), (2, 2), [1, 2, 3]).unwrap();
        assert_eq!(outside.rgb, [1, 2, 3].repeat(4));
        assert!(window(&picture, (0, 0), (0, 1), [0; 3]).is_err());
    }

    #[test]
    fn a_crop_is_from_the_middle_and_a_small_picture_gets_a_border() {
        let crop = centre_crop(&numbered(5, 4), 2, 2, Middle::Down).unwrap();
        assert_eq!(crop.rgb, [1, 1, 7, 2, 1, 7, 1, 2, 7, 2, 2, 7]);
        // A border that cannot be even is wider on the left.
        let crop = centre_crop(&numbered(1, 1), 4, 1, Middle::Down).unwrap();
        assert_eq!(crop.rgb, [0, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0]);
    }

    #[test]
    fn half_a_pixel_is_rounded_as_the_reference_does() {
        let first = |width: usize, middle| centre_crop(&numbered(width, 1), 2, 1, middle).unwrap().rgb[0];
        // round(0.5), round(1.0), round(1.5), round(2.0), round(2.5), round(3.5) in Python.
        let wide = [3, 4, 5, 6, 7, 9];
        assert_eq!(wide.map(|width| first(width, Middle::ToEven)), [0, 1, 2, 2, 2, 4]);
        assert_eq!(wide.map(|width| first(width, Middle::Down)), [0, 1, 1, 2, 2, 3]);
    }
}
