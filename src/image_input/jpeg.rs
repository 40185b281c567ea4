//! JPEG to pixels with libjpeg's arithmetic: its inverse cosine transform, its upsampling of colours and its colour
//! tables, so that a photograph gives the very pixels that the reference processors see. The decoder of the `image`
//! crate rounds differently at each of these, by up to 4 of 255. What is rare (CMYK, arithmetic coding, 12 bits) or
//! damaged is left to that decoder: here it gives nothing.
//!
//! After ITU T.81, and libjpeg's `jidctint.c`, `jdsample.c` and `jdcolor.c` for the rounding.

use image::RgbImage;

mod header;
mod huffman;
mod idct;
mod scan;

use header::{Colours, Frame, Reader, Segment};
use scan::Scan;

/// Most scans of a progressive file; published ones have about ten. Each costs a pass over the whole image.
const MAX_SCANS: usize = 64;

/// The pixels of a whole, ordinary JPEG of one or three channels. It has to have the size that was checked: another
/// reader of the same damaged header may find another one.
pub(crate) fn decode(bytes: &[u8], size: (u32, u32)) -> Option<RgbImage> {
    let mut reader = Reader::new(bytes, size)?;
    let mut scans = 0;
    loop {
        match reader.next()? {
            Segment::Scan(scan) => {
                scans += 1;
                if scans > MAX_SCANS {
                    return None;
                }
                run(&mut reader, &scan)?;
            }
            Segment::End => break,
            Segment::Other => {}
        }
    }
    let colours = reader.colours()?;
    to_pixels(reader.frame.take()?, colours)
}

fn run(reader: &mut Reader<'_>, scan: &Scan) -> Option<()> {
    let rest = reader.rest();
    let frame = reader.frame.as_mut()?;
    for &(index, ..) in &scan.components {
        let component = frame.components.get_mut(index)?;
        // The table that holds when a component's first scan begins.
        if component.quantization.is_none() {
            component.quantization = Some(*reader.quantization.get(component.table)?.as_ref()?);
        }
    }
    let read = scan::run(frame, scan, &reader.huffman, reader.restart_interval, rest)?;
    reader.skip(read);
    Some(())
}

/// One channel's samples, at its own size.
struct Plane {
    /// Bytes from one row to the next.
    stride: usize,
    width: usize,
    height: usize,
    samples: Vec<u8>,
    across: OutputBounds,
    down: OutputBounds,
}

/// How many pixels there are along an axis for each sample.
#[derive(Clone, Copy, PartialEq, Eq)]
enum OutputBounds {
    One,
    Two,
    Many(usize),
}

impl OutputBounds {
    fn of(own: usize, most: usize) -> Option<Self> {
        match most / own {
            _ if !most.is_multiple_of(own) => None,
            1 => Some(Self::One),
            2 => Some(Self::Two),
            times => Some(Self::Many(times)),
        }
    }

    const fn times(self) -> usize {
        match self {
            Self::One => 1,
            Self::Two => 2,
            Self::Many(times) => times,
        }
    }
}

fn to_pixels(frame: Frame, colours: Colours) -> Option<RgbImage> {
    let (width, height) = (frame.width, frame.height);
    let (most_across, most_down) = (frame.most_across, frame.most_down);
    let mut planes = Vec::new();
    for component in frame.components {
        let quantization = component.quantization?;
        let stride = component.blocks_across * 8;
        let mut samples = vec![0; component.coefficients.len()];
        for (index, block) in component.coefficients.as_chunks::<64>().0.iter().enumerate() {
            let (row, column) = (index / component.blocks_across, index % component.blocks_across);
            idct::transform(block, &quantization, samples.get_mut(row * 8 * stride + column * 8..)?, stride)?;
        }
        planes.push(Plane {
            stride,
            width: component.width,
            height: component.height,
            samples,
            across: OutputBounds::of(component.across, most_across)?,
            down: OutputBounds::of(component.down, most_down)?,
        });
    }
    let mut rgb = vec![0; width.checked_mul(height)?.checked_mul(3)?];
    let mut rows = vec![Vec::new(); planes.len()];
    for (y, line) in rgb.chunks_exact_mut(width * 3).enumerate() {
        for (plane, row) in planes.iter().zip(&mut rows) {
            row.clear();
            plane.row(y, row)?;
        }
        paint(line, &rows, colours)?;
    }
    RgbImage::from_raw(width.try_into().ok()?, height.try_into().ok()?, rgb)
}

fn paint(line: &mut [u8], rows: &[Vec<u8>], colours: Colours) -> Option<()> {
    let pixels = line.as_chunks_mut::<3>().0.iter_mut();
    match (rows, colours) {
        ([grey], Colours::Grey) => pixels.zip(grey).for_each(|(pixel, grey)| *pixel = [*grey; 3]),
        ([red, green, blue], Colours::Rgb) => {
            pixels.zip(red).zip(green).zip(blue).for_each(|(((pixel, r), g), b)| *pixel = [*r, *g, *b]);
        }
        ([luma, blue, red], Colours::YCbCr) => {
            pixels
                .zip(luma)
                .zip(blue)
                .zip(red)
                .for_each(|(((pixel, y), cb), cr)| *pixel = to_rgb(*y, *cb, *cr));
        }
        _ => return None,
    }
    Some(())
}

/// In 16 fractional bits, each product rounded as libjpeg's tables have it.
fn to_rgb(luma: u8, blue: u8, red: u8) -> [u8; 3] {
    const HALF: i32 = 1 << 15;
    let (luma, blue, red) = (i32::from(luma), i32::from(blue) - 128, i32::from(red) - 128);
    let r = luma + ((91_881 * red + HALF) >> 16);
    let g = luma + ((-22_554 * blue - 46_802 * red + HALF) >> 16);
    let b = luma + ((116_130 * blue + HALF) >> 16);
    [r, g, b].map(|value| value.clamp(0, 255) as u8)
}

impl Plane {
    fn samples(&self, y: usize) -> Option<&[u8]> {
        self.samples.get(y * self.stride..)?.get(..self.width)
    }

    /// A row of the image: at least as many samples as the image is wide.
    fn row(&self, y: usize, out: &mut Vec<u8>) -> Option<()> {
        // libjpeg's triangle filter, which it takes only for planes wider than two.
        let smooth = self.width > 2;
        let own = y / self.down.times();
        let near = self.samples(own)?;
        let other = || {
            self.samples(if y.is_multiple_of(2) {
                own.saturating_sub(1)
            } else {
                (own + 1).min(self.height - 1)
            })
        };
        match (self.across, self.down) {
            (OutputBounds::One, OutputBounds::One) => out.extend_from_slice(near),
            (OutputBounds::Two, OutputBounds::One) if smooth => widen(near, out),
            (OutputBounds::Two, OutputBounds::Two) if smooth => widen_between(near, other()?, out),
            (OutputBounds::One, OutputBounds::Two) => {
                let bias = if y.is_multiple_of(2) { 1 } else { 2 };
                let mix =
                    |(near, far): (&u8, &u8)| ((u16::from(*near) * 3 + u16::from(*far) + bias) >> 2) as u8;
                out.extend(near.iter().zip(other()?).map(mix));
            }
            (across, _) => {
                out.extend(near.iter().flat_map(|sample| std::iter::repeat_n(*sample, across.times())));
            }
        }
        Some(())
    }
}

/// Twice as many samples, each three parts of the nearer and one of the farther neighbour.
fn widen(row: &[u8], out: &mut Vec<u8>) {
    for (x, &sample) in row.iter().enumerate() {
        let mix = |far: Option<&u8>, bias: u16| match far {
            Some(far) => ((u16::from(sample) * 3 + u16::from(*far) + bias) >> 2) as u8,
            None => sample,
        };
        let before = x.checked_sub(1).and_then(|x| row.get(x));
        out.extend([mix(before, 1), mix(row.get(x + 1), 2)]);
    }
}

/// The same along both axes: in between two rows first, without rounding.
fn widen_between(near: &[u8], far: &[u8], out: &mut Vec<u8>) {
    let sum = |x: usize| Some(u16::from(*near.get(x)?) * 3 + u16::from(*far.get(x)?));
    let mut before = None;
    let mut this = sum(0);
    let mut x = 0;
    while let Some(middle) = this {
        let after = sum(x + 1);
        let mix = |other: Option<u16>, bias: u16| ((middle * 3 + other.unwrap_or(middle) + bias) >> 4) as u8;
        out.extend([mix(before, 8), mix(after, 7)]);
        (before, this) = (this, after);
        x += 1;
    }
}
