//! Resizing, bit for bit as Pillow 13 does it: a separable convolution whose kernel widens as the picture
//! shrinks, along the rows and along the columns, in whole numbers with 22 bits behind the point, rounded to
//! 8 bits after each. Which of the two comes first shows in the result, by a few steps of 255 where one side
//! grows and the other shrinks; the rule was found by comparing with Pillow at some thousand sizes. The crate
//! `fast_image_resize` always starts with the rows, and has coefficients of 16 bits.

use model_actors::Picture;

use super::{MAX_PIXELS, check, check_sides};
use crate::error::{Error, Result};

/// Interpolation filter, by the names of Pillow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Filter {
    Nearest,
    Box,
    Bilinear,
    Hamming,
    Bicubic,
    Lanczos,
}

/// Bits behind the point.
const BITS: u32 = 32 - 8 - 2;

impl Filter {
    /// Pillow's number for it, which is what configurations hold.
    pub(crate) fn from_number(number: u64) -> Option<Self> {
        match number {
            0 => Some(Self::Nearest),
            1 => Some(Self::Lanczos),
            2 => Some(Self::Bilinear),
            3 => Some(Self::Bicubic),
            4 => Some(Self::Box),
            5 => Some(Self::Hamming),
            _ => None,
        }
    }

    /// Support radius, in pixels of the coarser picture.
    fn reach(self) -> f64 {
        match self {
            Self::Nearest | Self::Box => 0.5,
            Self::Bilinear | Self::Hamming => 1.0,
            Self::Bicubic => 2.0,
            Self::Lanczos => 3.0,
        }
    }

    fn weight(self, x: f64) -> f64 {
        match self {
            Self::Nearest | Self::Box => f64::from(x > -0.5 && x <= 0.5),
            Self::Bilinear => (1.0 - x.abs()).max(0.0),
            Self::Hamming => match x.abs() {
                0.0 => 1.0,
                1.0.. => 0.0,
                // The factors are 32 bits in Pillow too.
                x => sinc(x) * (f64::from(0.54f32) + f64::from(0.46f32) * (x * std::f64::consts::PI).cos()),
            },
            Self::Bicubic => bicubic(x.abs()),
            Self::Lanczos if (-3.0..3.0).contains(&x) => sinc(x) * sinc(x / 3.0),
            Self::Lanczos => 0.0,
        }
    }
}

fn bicubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    match x {
        ..1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
        1.0..2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
        _ => 0.0,
    }
}

fn sinc(x: f64) -> f64 {
    if x == 0.0 {
        return 1.0;
    }
    let x = x * std::f64::consts::PI;
    x.sin() / x
}

/// Source pixels and weights of one new pixel, along one side.
struct Taps<W> {
    /// The first old pixel.
    first: usize,
    /// The weights of it and those after it.
    weights: Vec<W>,
}

/// The taps of each new pixel, in fixed point.
fn taps(old: usize, new: usize, filter: Filter) -> Vec<Taps<i32>> {
    let fixed = |weight: f64| (weight * f64::from(1u32 << BITS)).round_half_away() as i32;
    weighed(old, new, filter, fixed)
}

/// The taps of each new pixel, with weights that add up to 1 before `round` makes numbers of another kind of them.
fn weighed<W>(old: usize, new: usize, filter: Filter, round: impl Fn(f64) -> W) -> Vec<Taps<W>> {
    let scale = old as f64 / new as f64;
    let stretch = scale.max(1.0);
    let reach = filter.reach() * stretch;
    let of = |place: usize| {
        let centre = (place as f64 + 0.5) * scale;
        // The casts cut, as those in C do, and saturate at 0.
        let first = (centre - reach + 0.5) as usize;
        let end = ((centre + reach + 0.5) as usize).min(old);
        let weigh = |place: usize| filter.weight((place as f64 - centre + 0.5) * (1.0 / stretch));
        let weights: Vec<f64> = (first..end).map(weigh).collect();
        let sum: f64 = weights.iter().sum();
        let scale = if sum == 0.0 { 1.0 } else { sum };
        Taps { first, weights: weights.into_iter().map(|weight| round(weight / scale)).collect() }
    };
    (0..new).map(of).collect()
}

/// Pillow adds a half, away from 0, and cuts.
trait RoundHalfAway {
    fn round_half_away(self) -> f64;
}

impl RoundHalfAway for f64 {
    fn round_half_away(self) -> f64 {
        if self < 0.0 { (self - 0.5).trunc() } else { (self + 0.5).trunc() }
    }
}

fn to_byte(sum: i32) -> u8 {
    (sum >> BITS).clamp(0, 255) as u8
}

/// The picture with other sides. A side that stays is not touched.
///
/// # Errors
/// [`Error::InvalidInput`] for a picture that is none, for sides of 0 or over the limit.
pub(crate) fn resize(picture: &Picture, width: usize, height: usize, filter: Filter) -> Result<Picture> {
    check(picture)?;
    check_resize((picture.width, picture.height), (width, height))?;
    if filter == Filter::Nearest {
        return Ok(nearest(picture, width, height));
    }
    let across = |rgb: Vec<u8>| match picture.width == width {
        true => rgb,
        false => along_rows(&rgb, picture.width, &taps(picture.width, width, filter)),
    };
    let down = |rgb: Vec<u8>, width: usize| match picture.height == height {
        true => rgb,
        false => along_columns(&rgb, width * 3, &taps(picture.height, height, filter)),
    };
    let rgb = match columns_first((picture.width, picture.height), (width, height)) {
        true => across(down(picture.rgb.clone(), picture.width)),
        false => down(across(picture.rgb.clone()), width),
    };
    Ok(Picture::new(width, height, rgb))
}

/// True if the height is resized before the width, both sides as (width, height): where it loses more than
/// twice as many pixels as the width.
fn columns_first(old: (usize, usize), new: (usize, usize)) -> bool {
    let lost = |old: usize, new: usize| old as i64 - new as i64;
    new.1 < old.1 && lost(old.1, new.1) > 2 * lost(old.0, new.0)
}

/// Resizes planes of `old` width and height, one plane after another, without rounding, as PyTorch does it with
/// `antialias`: the rows first. Of bilinear and bicubic filters.
///
/// # Errors
/// [`Error::InvalidInput`] for sides of 0 or over the limit.
pub(super) fn resize_planes(
    planes: Vec<f32>,
    old: (usize, usize),
    new: (usize, usize),
    filter: Filter,
) -> Result<Vec<f32>> {
    check_resize(old, new)?;
    let weight = |weight: f64| weight as f32;
    let planes = match old.0 == new.0 {
        true => planes,
        false => {
            let taps = weighed(old.0, new.0, filter, weight);
            let rows = planes.chunks_exact(old.0.max(1));
            rows.flat_map(|row| taps.iter().map(|Taps { first, weights }| product(weights, &row[*first..])))
                .collect()
        }
    };
    if old.1 == new.1 {
        return Ok(planes);
    }
    let taps = weighed(old.1, new.1, filter, weight);
    let mut out = Vec::with_capacity(planes.len() / old.1.max(1) * new.1);
    for plane in planes.chunks_exact((old.1 * new.0).max(1)) {
        for Taps { first, weights } in &taps {
            let begin = out.len();
            out.resize(begin + new.0, 0.0);
            for (row, weight) in plane[first * new.0..].chunks_exact(new.0).zip(weights) {
                out[begin..].iter_mut().zip(row).for_each(|(sum, value)| *sum += weight * value);
            }
        }
    }
    Ok(out)
}

fn product(weights: &[f32], values: &[f32]) -> f32 {
    weights.iter().zip(values).map(|(weight, value)| weight * value).sum()
}

/// Refuses sides of 0 or over the limit, and what would be too large on the way.
fn check_resize(old: (usize, usize), (width, height): (usize, usize)) -> Result<()> {
    check_sides(width, height)?;
    if width.saturating_mul(old.1) > MAX_PIXELS {
        let (old_width, old_height) = old;
        let reason = format!(
            "the picture has {old_width}x{old_height} pixels, which is too narrow to be made {width}x{height}"
        );
        return Err(Error::InvalidInput(reason));
    }
    Ok(())
}

fn along_rows(rgb: &[u8], width: usize, taps: &[Taps<i32>]) -> Vec<u8> {
    let mut out = Vec::with_capacity(rgb.len() / width * taps.len());
    for row in rgb.chunks_exact(width * 3) {
        for Taps { first, weights } in taps {
            let mut sums = [1 << (BITS - 1); 3];
            let (pixels, _) = row[first * 3..].as_chunks::<3>();
            for (pixel, weight) in pixels.iter().zip(weights) {
                for (sum, value) in sums.iter_mut().zip(pixel) {
                    *sum += i32::from(*value) * weight;
                }
            }
            out.extend(sums.map(to_byte));
        }
    }
    out
}

/// `stride` values a row.
fn along_columns(rgb: &[u8], stride: usize, taps: &[Taps<i32>]) -> Vec<u8> {
    let mut out = Vec::with_capacity(stride * taps.len());
    let mut sums = vec![0; stride];
    for Taps { first, weights } in taps {
        sums.fill(1 << (BITS - 1));
        for (row, weight) in rgb[first * stride..].chunks_exact(stride).zip(weights) {
            for (sum, value) in sums.iter_mut().zip(row) {
                *sum += i32::from(*value) * weight;
            }
        }
        out.extend(sums.iter().map(|sum| to_byte(*sum)));
    }
    out
}

fn nearest(picture: &Picture, width: usize, height: usize) -> Picture {
    let rows = nearest_places(picture.height, height);
    let columns = nearest_places(picture.width, width);
    let mut rgb = Vec::with_capacity(width * height * 3);
    for row in rows {
        let row = &picture.rgb[row * picture.width * 3..];
        columns.iter().for_each(|column| rgb.extend_from_slice(&row[column * 3..column * 3 + 3]));
    }
    Picture::new(width, height, rgb)
}

/// Added up rather than multiplied, as Pillow does it, which decides at some sizes.
fn nearest_places(old: usize, new: usize) -> Vec<usize> {
    let scale = old as f64 / new as f64;
    let mut at = scale * 0.5;
    let mut places = Vec::with_capacity(new);
    for _ in 0..new {
        places.push((at as usize).min(old - 1));
        at += scale;
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILTERS: [Filter; 6] =
        [Filter::Nearest, Filter::Box, Filter::Bilinear, Filter::Hamming, Filter::Bicubic, Filter::Lanczos];

    #[test]
    fn one_colour_stays_that_colour_at_every_size() {
        let picture = Picture::new(7, 5, [9, 200, 255].repeat(35));
        for filter in FILTERS {
            for (width, height) in [(1, 1), (7, 5), (7, 9), (3, 5), (20, 2), (300, 301)] {
                let resized = resize(&picture, width, height, filter).unwrap();
                assert_eq!((resized.width, resized.height), (width, height));
                assert_eq!(resized.rgb, [9, 200, 255].repeat(width * height), "{filter:?} {width}x{height}");
            }
        }
    }

    #[test]
    fn planes_are_resized_as_pictures_are_without_their_rounding() {
        let mut state = 9u32;
        let rgb = (0..3 * 23 * 17).map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        });
        let picture = Picture::new(23, 17, rgb.collect());
        let plane = |channel: usize| picture.rgb.iter().skip(channel).step_by(3).map(|byte| f32::from(*byte));
        let planes: Vec<f32> = (0..3).flat_map(plane).collect();
        for (width, height) in [(23, 17), (9, 17), (23, 40), (11, 5), (50, 60)] {
            let rounded = resize(&picture, width, height, Filter::Bilinear).unwrap();
            let exact = resize_planes(planes.clone(), (23, 17), (width, height), Filter::Bilinear).unwrap();
            assert_eq!(exact.len(), 3 * width * height);
            for (place, value) in exact.iter().enumerate() {
                let (channel, pixel) = (place / (width * height), place % (width * height));
                let byte = f32::from(rounded.rgb[pixel * 3 + channel]);
                assert!((value - byte).abs() <= 1.01, "{width}x{height}: {value} {byte}");
            }
        }
        assert!(resize_planes(planes, (23, 17), (0, 5), Filter::Bilinear).is_err());
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let picture = Picture::new(7, 5, vec![0; 105]);
        assert!(resize(&picture, 0, 5, Filter::Bicubic).is_err());
        assert!(resize(&picture, 5, super::super::MAX_SIDE + 1, Filter::Bicubic).is_err());
        let lying = Picture::new(7, 6, picture.rgb);
        assert!(resize(&lying, 5, 5, Filter::Bicubic).is_err());
        let strip = Picture::new(1, 100_000, vec![0; 300_000]);
        assert!(resize(&strip, 4096, 4096, Filter::Bicubic).is_err());
    }
}
