//! The segments of a JPEG file: sizes, tables and the beginnings of scans. Every number in them is checked here.

use super::huffman::{Table, Tables};
use super::scan::Scan;

/// Most sampling of a channel along an axis, by the standard.
const MAX_SAMPLING: usize = 4;

/// The order in which a block's coefficients are written.
pub(super) const ZIGZAG: [usize; 64] = [
    0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5, 12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6, 7,
    14, 21, 28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39,
    46, 53, 60, 61, 54, 47, 55, 62, 63,
];

/// What the channels mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Colours {
    Grey,
    YCbCr,
    Rgb,
}

/// A channel.
pub(super) struct Component {
    pub(super) id: u8,
    /// Samples along each axis for as many pixels as the frame's most.
    pub(super) across: usize,
    pub(super) down: usize,
    pub(super) table: usize,
    pub(super) quantization: Option<[u16; 64]>,
    /// Samples that belong to the image.
    pub(super) width: usize,
    pub(super) height: usize,
    /// Blocks that are stored: whole groups of interleaved scans.
    pub(super) blocks_across: usize,
    /// 64 each, in natural order.
    pub(super) coefficients: Vec<i16>,
}

/// What the image is.
pub(super) struct Frame {
    pub(super) progressive: bool,
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) most_across: usize,
    pub(super) most_down: usize,
    pub(super) components: Vec<Component>,
}

pub(super) enum Segment {
    Scan(Scan),
    End,
    Other,
}

/// Where in the file we are, and the tables that hold there.
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    size: (usize, usize),
    pub(super) frame: Option<Frame>,
    pub(super) quantization: [Option<[u16; 64]>; 4],
    pub(super) huffman: Tables,
    pub(super) restart_interval: usize,
    is_jfif: bool,
    adobe_transform: Option<u8>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8], (width, height): (u32, u32)) -> Option<Self> {
        Some(Self {
            bytes: bytes.strip_prefix(&[0xFF, 0xD8])?,
            size: (width as usize, height as usize),
            frame: None,
            quantization: [None; 4],
            huffman: Tables::default(),
            restart_interval: 0,
            is_jfif: false,
            adobe_transform: None,
        })
    }

    pub(super) fn rest(&self) -> &'a [u8] {
        self.bytes
    }

    pub(super) fn skip(&mut self, bytes: usize) {
        self.bytes = self.bytes.get(bytes..).unwrap_or_default();
    }

    /// The next segment, read into the tables. Bytes between segments are passed over.
    pub(super) fn next(&mut self) -> Option<Segment> {
        let marker = loop {
            self.skip(self.bytes.iter().position(|byte| *byte == 0xFF)?);
            let at = self.bytes.iter().position(|byte| *byte != 0xFF)?;
            let marker = *self.bytes.get(at)?;
            self.skip(at + 1);
            if marker != 0 {
                break marker;
            }
        };
        match marker {
            0xD9 => return Some(Segment::End),
            0x01 | 0xD0..=0xD8 => return Some(Segment::Other),
            _ => {}
        }
        let length = usize::from(u16::from_be_bytes([*self.bytes.first()?, *self.bytes.get(1)?]));
        let content = self.bytes.get(2..length)?;
        self.skip(length);
        match marker {
            0xC0..=0xC2 => self.read_frame(content, marker == 0xC2)?,
            0xC4 => self.read_huffman(content)?,
            // Lossless, hierarchical and arithmetic coding; a height that comes later.
            0xC3 | 0xC5..=0xCF | 0xDC => return None,
            0xDA => return Some(Segment::Scan(self.read_scan(content)?)),
            0xDB => self.read_quantization(content)?,
            0xDD => self.restart_interval = usize::from(u16::from_be_bytes(content.try_into().ok()?)),
            0xE0 if content.starts_with(b"JFIF\0") => self.is_jfif = true,
            0xEE if content.starts_with(b"Adobe") => self.adobe_transform = content.get(11).copied(),
            _ => {}
        }
        Some(Segment::Other)
    }

    /// As libjpeg guesses it.
    pub(super) fn colours(&self) -> Option<Colours> {
        let ids: Vec<u8> = self.frame.as_ref()?.components.iter().map(|component| component.id).collect();
        match (ids.as_slice(), self.adobe_transform) {
            ([_], _) => Some(Colours::Grey),
            ([_, _, _], _) if self.is_jfif => Some(Colours::YCbCr),
            ([_, _, _], Some(0)) => Some(Colours::Rgb),
            (b"RGB", None) => Some(Colours::Rgb),
            ([_, _, _], _) => Some(Colours::YCbCr),
            _ => None,
        }
    }

    fn read_quantization(&mut self, mut content: &[u8]) -> Option<()> {
        while let Some((&head, rest)) = content.split_first() {
            let wide = match head >> 4 {
                0 => false,
                1 => true,
                _ => return None,
            };
            let (numbers, rest) = rest.split_at_checked(if wide { 128 } else { 64 })?;
            let mut table = [0; 64];
            for (index, place) in ZIGZAG.into_iter().enumerate() {
                let number = match wide {
                    true => u16::from_be_bytes([*numbers.get(index * 2)?, *numbers.get(index * 2 + 1)?]),
                    false => u16::from(*numbers.get(index)?),
                };
                *table.get_mut(place)? = number;
            }
            *self.quantization.get_mut(usize::from(head & 15))? = Some(table);
            content = rest;
        }
        Some(())
    }

    fn read_huffman(&mut self, mut content: &[u8]) -> Option<()> {
        while let Some((&head, rest)) = content.split_first() {
            let (counts, rest) = rest.split_first_chunk::<16>()?;
            let total = counts.iter().map(|count| usize::from(*count)).sum();
            let (symbols, rest) = rest.split_at_checked(total)?;
            self.huffman.set(head, Table::new(counts, symbols)?)?;
            content = rest;
        }
        Some(())
    }

    fn read_frame(&mut self, content: &[u8], progressive: bool) -> Option<()> {
        let (&[bits, h1, h0, w1, w0, count], rest) = content.split_first_chunk::<6>()?;
        let height = usize::from(u16::from_be_bytes([h1, h0]));
        let width = usize::from(u16::from_be_bytes([w1, w0]));
        if bits != 8 || self.frame.is_some() || (width, height) != self.size || !matches!(count, 1 | 3) {
            return None;
        }
        let entries = rest.as_chunks::<3>().0.get(..usize::from(count))?;
        let sampling = |packed: u8| (usize::from(packed >> 4), usize::from(packed & 15));
        let allowed = 1..=MAX_SAMPLING;
        if !entries.iter().all(|&[_, packed, _]| {
            let (across, down) = sampling(packed);
            allowed.contains(&across) && allowed.contains(&down)
        }) {
            return None;
        }
        let most_across = entries.iter().map(|&[_, packed, _]| sampling(packed).0).max()?;
        let most_down = entries.iter().map(|&[_, packed, _]| sampling(packed).1).max()?;
        let groups_across = width.div_ceil(8 * most_across);
        let groups_down = height.div_ceil(8 * most_down);
        let components = entries.iter().map(|&[id, packed, table]| {
            let (across, down) = sampling(packed);
            let blocks_across = groups_across * across;
            Component {
                id,
                across,
                down,
                table: usize::from(table),
                quantization: None,
                width: (width * across).div_ceil(most_across),
                height: (height * down).div_ceil(most_down),
                blocks_across,
                coefficients: vec![0; blocks_across * groups_down * down * 64],
            }
        });
        let components = components.collect();
        self.frame = Some(Frame { progressive, width, height, most_across, most_down, components });
        Some(())
    }

    fn read_scan(&self, content: &[u8]) -> Option<Scan> {
        let frame = self.frame.as_ref()?;
        let (&count, rest) = content.split_first()?;
        let (entries, rest) = rest.split_at_checked(usize::from(count) * 2)?;
        let &[start, end, approximation] = rest.first_chunk::<3>()?;
        let mut components: Vec<(usize, usize, usize)> = Vec::new();
        for &[id, tables] in entries.as_chunks::<2>().0 {
            let index = frame.components.iter().position(|component| component.id == id)?;
            if components.iter().any(|&(other, ..)| other == index) {
                return None;
            }
            components.push((index, usize::from(tables >> 4), usize::from(tables & 15)));
        }
        let scan = Scan {
            components,
            start: usize::from(start),
            end: usize::from(end),
            high: approximation >> 4,
            low: approximation & 15,
        };
        scan.is_valid(frame.progressive).then_some(scan)
    }
}
