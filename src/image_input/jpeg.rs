//! Parts of a JPEG that its decoder is given: tables, frame, scans and the Exif data with the orientation, up to the mark of
//! its end. The decoder reads more than that, and forgives more: it goes over all extended XMP data again at each
//! segment, and takes bytes between segments for segments. So the file is walked through strictly here, and what is
//! not needed is left out.

use std::borrow::Cow;
use std::ops::Range;

use crate::error::{Error, Result};

/// Maximum number of scans; an encoder makes about ten. Each goes over all pixels.
const MAX_SCANS: usize = 100;
/// Maximum number of segments; extended metadata of a few megabytes takes a hundred.
const MAX_SEGMENTS: usize = 1000;

const BEGIN: usize = 2;
const FILL: u8 = 0xFF;
const END: u8 = 0xD9;
const SCAN: u8 = 0xDA;

/// The file without what its decoder has no need of. It fills up what is missing with grey and says nothing, so that must
/// not be.
///
/// # Errors
/// [`Error::InvalidImage`] if there is no mark of its end, there are bytes between its segments, a segment is of no known
/// kind, or there are too many segments or scans.
pub(crate) fn needed_parts(bytes: &[u8]) -> Result<Cow<'_, [u8]>> {
    let mut kept = Kept { bytes, parts: Vec::new() };
    kept.add(0..BEGIN);
    let (mut at, mut segments, mut scans, mut frames) = (BEGIN, 0, 0, 0);
    loop {
        if *bytes.get(at).ok_or_else(truncated)? != FILL {
            return Err(invalid(format!("there are bytes between its segments, at {at}")));
        }
        while *bytes.get(at + 1).ok_or_else(truncated)? == FILL {
            at += 1;
        }
        let mark = bytes[at + 1];
        if mark == END {
            kept.add(at..at + 2);
            return Ok(kept.joined());
        }
        if !is_known(mark) {
            return Err(invalid(format!("it has a segment of the unknown kind {mark:02X}")));
        }
        let length = bytes.get(at + 2..at + 4).ok_or_else(truncated)?;
        let end = at + 2 + usize::from(u16::from_be_bytes([length[0], length[1]]));
        let content = bytes.get(at + 4..end).ok_or_else(truncated)?;
        segments += 1;
        scans += usize::from(mark == SCAN);
        frames += usize::from(is_frame(mark));
        if segments > MAX_SEGMENTS || scans > MAX_SCANS || frames > 1 {
            return Err(invalid(format!(
                "it has more than {MAX_SEGMENTS} segments, {MAX_SCANS} scans or one frame"
            )));
        }
        if is_needed(mark, content) {
            kept.add(at..end);
        }
        at = end;
        if mark == SCAN {
            at = end_of_scan(bytes, end).ok_or_else(truncated)?;
            kept.add(end..at);
        }
    }
}

fn is_frame(mark: u8) -> bool {
    matches!(mark, 0xC0..=0xCF) && !matches!(mark, 0xC4 | 0xC8 | 0xCC)
}

/// Whether a segment is of a kind that images have: frame, tables, scan, data of applications, comment.
fn is_known(mark: u8) -> bool {
    matches!(mark, 0xC0..=0xC7 | 0xC9..=0xCF | 0xDA..=0xDD | 0xE0..=0xEF | 0xFE)
}

/// Whether the decoder needs a segment.
fn is_needed(mark: u8, content: &[u8]) -> bool {
    match mark {
        // A frame of a film, which has no tables.
        0xE0 => content.starts_with(b"AVI1\0"),
        0xE1 => content.starts_with(b"Exif\0\0"),
        0xEE => content.starts_with(b"Adobe") && content.len() >= 12,
        0xE2..=0xEF | 0xFE => false,
        _ => true,
    }
}

/// Position of the first mark behind a scan's data, in which `FF 00` is a byte and `FF D0` to `FF D7` are restarts.
fn end_of_scan(bytes: &[u8], mut at: usize) -> Option<usize> {
    loop {
        at += bytes.get(at..)?.iter().position(|byte| *byte == FILL)?;
        let next = bytes.get(at + 1..)?.iter().position(|byte| *byte != FILL)?;
        match bytes.get(at + 1 + next)? {
            0x00 | 0xD0..=0xD7 => at += 2 + next,
            _ => return Some(at),
        }
    }
}

/// Parts of a file.
struct Kept<'a> {
    bytes: &'a [u8],
    parts: Vec<Range<usize>>,
}

impl<'a> Kept<'a> {
    fn add(&mut self, part: Range<usize>) {
        match self.parts.last_mut() {
            Some(last) if last.end == part.start => last.end = part.end,
            _ => self.parts.push(part),
        }
    }

    fn joined(self) -> Cow<'a, [u8]> {
        match self.parts.as_slice() {
            [all] => Cow::Borrowed(&self.bytes[all.clone()]),
            parts => {
                let parts: Vec<&[u8]> = parts.iter().map(|part| &self.bytes[part.clone()]).collect();
                Cow::Owned(parts.concat())
            }
        }
    }
}

fn truncated() -> Error {
    invalid("the file is truncated".to_owned())
}

fn invalid(reason: String) -> Error {
    Error::InvalidImage { reason }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn segment(mark: u8, content: &[u8]) -> Vec<u8> {
        let length = u16::try_from(content.len() + 2).unwrap().to_be_bytes();
        [&[FILL, mark][..], &length, content].concat()
    }

    fn jpeg(parts: &[&[u8]]) -> Vec<u8> {
        [&[FILL, 0xD8][..], &parts.concat(), &[FILL, END]].concat()
    }

    fn scan() -> Vec<u8> {
        [segment(SCAN, &[1, 1, 0, 0, 63, 0]), vec![1, 2, FILL, 0, 3, FILL, 0xD3, 4]].concat()
    }

    #[test]
    fn a_decoder_is_given_what_it_needs() {
        let (table, exif) = (segment(0xDB, &[0; 65]), segment(0xE1, b"Exif\0\0MM"));
        let adobe = segment(0xEE, b"Adobe\0\x64\0\0\0\0\x01");
        let needed = jpeg(&[&exif, &adobe, &table, &scan(), &table, &scan()]);
        assert!(matches!(needed_parts(&needed).unwrap(), Cow::Borrowed(same) if same == needed));
        let metadata = [
            segment(0xE0, b"JFIF\0\x01\x01\0\0\x01\0\x01\0\0"),
            segment(0xE1, b"http://ns.adobe.com/xmp/extension/\0"),
            segment(0xE2, b"ICC_PROFILE\0"),
            segment(0xEE, b"Adobe"),
            segment(0xFE, b"a comment"),
        ]
        .concat();
        let fill = [FILL; 5];
        let parts: [&[u8]; 9] =
            [&metadata, &exif, &fill, &adobe, &table, &scan(), &metadata, &table, &scan()];
        let mut whole = jpeg(&parts);
        whole.extend(scan());
        assert_eq!(needed_parts(&whole).unwrap(), needed);
    }

    #[test]
    fn a_jpeg_that_a_decoder_would_read_otherwise_is_refused() {
        let table = segment(0xDB, &[0; 65]);
        let refused: [(&str, Vec<u8>); 10] = [
            ("between", jpeg(&[&[0], &table, &scan()])),
            ("between", jpeg(&[&table, &[1, 2, 3, 4], &scan()])),
            ("unknown", jpeg(&[&[FILL, 0, 0xFE, 0, 2], &scan()])),
            ("unknown", jpeg(&[&[FILL, 0xD8, 0, 2], &scan()])),
            ("unknown", jpeg(&[&scan(), &[FILL, 0xD8, 0, 2], &scan()])),
            ("unknown", jpeg(&[&scan(), &[FILL, 0x01], &scan()])),
            ("truncated", jpeg(&[&scan()])[..20].to_vec()),
            ("truncated", jpeg(&[&[FILL, 0xFE, 0, 1]])),
            ("more than", jpeg(&[&[FILL, 0xFE, 0, 2].repeat(MAX_SEGMENTS + 1)])),
            ("more than", jpeg(&[&segment(0xC0, &[8]), &segment(0xC2, &[8])])),
        ];
        for (words, file) in refused {
            let error = needed_parts(&file).unwrap_err().to_string();
            assert!(error.contains(words), "{words}: {error}");
        }
    }

    #[test]
    fn scans_of_a_jpeg_are_counted() {
        assert!(needed_parts(&jpeg(&[&scan().repeat(MAX_SCANS)])).is_ok());
        assert!(needed_parts(&jpeg(&[&scan().repeat(MAX_SCANS + 1)])).is_err());
    }
}
