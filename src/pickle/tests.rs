//! Files that PyTorch would not write, and those that would harm whoever opens them with Python.

use std::io::{Cursor, Write as _};

use zip::ZipWriter;
use zip::write::SimpleFileOptions;

use super::*;

/// An archive with a pickle and its one store of numbers.
fn archive(pickle: &[u8], numbers: &[u8]) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, bytes) in
        [("archive/data.pkl", pickle), ("archive/byteorder", b"little"), ("archive/data/0", numbers)]
    {
        let stored = SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
        zip.start_file(name, stored).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

/// A pickle of a table with one entry, a tensor of so many numbers with this shape, these strides and this offset.
fn tensor(count: u32, shape: &[u32], strides: &[u32], offset: u32) -> Vec<u8> {
    let mut pickle = b"\x80\x02}X\x01\x00\x00\x00actorch._utils\n_rebuild_tensor_v2\n((".to_vec();
    pickle.extend(b"X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu");
    let number = |pickle: &mut Vec<u8>, number: u32| {
        pickle.extend([0x8a, 5]);
        pickle.extend(number.to_le_bytes());
        pickle.push(0);
    };
    number(&mut pickle, count);
    pickle.extend(b"tQ");
    number(&mut pickle, offset);
    for counts in [shape, strides] {
        pickle.push(b'(');
        counts.iter().for_each(|count| number(&mut pickle, *count));
        pickle.push(b't');
    }
    pickle.extend(b"\x89ccollections\nOrderedDict\n)RtRs.");
    pickle
}

fn read_bytes(bytes: &[u8]) -> Result<Vec<StoredTensor>> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pytorch_model.bin");
    std::fs::write(&path, bytes).unwrap();
    read(&path)
}

fn refused(bytes: &[u8]) -> String {
    match read_bytes(bytes) {
        Err(Error::InvalidPickle { reason, .. }) => reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_tensor_is_found_in_its_archive() {
    let file = archive(&tensor(6, &[2, 2], &[2, 1], 2), &[7; 24]);
    let tensors = read_bytes(&file).unwrap();
    let [found] = tensors.as_slice() else { panic!("{tensors:?}") };
    assert_eq!((found.name.as_str(), found.dtype, found.shape.as_slice()), ("a", "F32", &[2, 2][..]));
    assert_eq!((found.bytes, found.strides.as_ref()), (16, None));
    let start = usize::try_from(found.start).unwrap();
    assert_eq!(file[start - 8..start + 16], [7; 24]);
}

#[test]
fn what_runs_code_in_python_is_named_and_not_run() {
    let calls: [(&[u8], &str); 6] = [
        (b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00ls\x85R.", "what \"os.system\" makes"),
        (b"\x80\x02}X\x01\x00\x00\x00acos\nsystem\nX\x02\x00\x00\x00ls\x85Rs.", "what \"os.system\" makes"),
        (b"\x80\x02}X\x01\x00\x00\x00acbuiltins\neval\n)\x81s.", "what \"builtins.eval\" makes"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93)R.", "what \"os.system\" makes"),
        (b"\x80\x02cmodel\nNet\n)\x81}b.", "\"model.Net\""),
        (b"\x80\x02ios\nsystem\n.", "0x69"),
    ];
    for (pickle, named) in calls {
        let words = refused(&archive(pickle, &[]));
        assert!(words.contains(named), "{words}");
    }
}

#[test]
fn entries_that_are_no_tensors_are_named() {
    for (value, kind) in [(&b"K\x03"[..], "a number"), (b"}", "a table"), (b"X\x00\x00\x00\x00", "a text")] {
        let pickle = [b"\x80\x02}X\x05\x00\x00\x00epoch", value, b"s."].concat();
        let words = refused(&archive(&pickle, &[]));
        assert!(words.contains("\"epoch\"") && words.contains(kind), "{words}");
    }
    assert!(refused(&archive(b"\x80\x02].", &[])).contains("no table of tensors"));
}

#[test]
fn sizes_that_only_the_pickle_claims_are_refused() {
    let cases = [
        tensor(7, &[2, 3], &[3, 1], 0),
        tensor(u32::MAX, &[2, 3], &[3, 1], 0),
        tensor(6, &[7], &[1], 0),
        tensor(6, &[2, 3], &[3, 1], 1),
        tensor(6, &[2, 3], &[3, u32::MAX], 0),
        tensor(6, &[u32::MAX, u32::MAX, u32::MAX], &[1, 1, 1], 0),
        tensor(6, &[u32::MAX], &[0], 0),
        tensor(6, &[1 << 20, 6], &[0, 1], 0),
        tensor(6, &[2; 9], &[0; 9], 0),
        tensor(6, &[2, 3], &[1], 0),
    ];
    for pickle in cases {
        refused(&archive(&pickle, &[7; 24]));
    }
}

#[test]
fn names_that_are_recalled_are_bounded() {
    let whole = tensor(6, &[2, 3], &[3, 1], 0);
    let named = |name: usize, key: usize| {
        let text = |length: usize| {
            let bytes = u32::try_from(length).unwrap().to_le_bytes();
            [b"X", &bytes[..], &vec![b'0'; length]].concat()
        };
        let at = whole.windows(6).rposition(|part| part == b"X\x01\x00\x00\x000").unwrap();
        let pickle = [&whole[..3], &text(name), &whole[9..at], &text(key), &whole[at + 6..]].concat();
        archive(&pickle, &[7; 24])
    };
    assert_eq!(read_bytes(&named(1024, 1)).unwrap().len(), 1);
    assert!(refused(&named(1025, 1)).contains("1025 bytes"));
    assert!(refused(&named(1, 1024)).contains("no entry"));
    assert!(refused(&named(1, 1025)).contains("1025 bytes"));
}

#[test]
fn tensors_are_counted_however_often_one_is_there() {
    let whole = tensor(6, &[2, 3], &[3, 1], 0);
    let again = b"h\x00h\x01".repeat(crate::limits::MAX_TENSORS);
    let (name, made) = (&whole[..9], &whole[9..whole.len() - 2]);
    let pickle = [name, b"q\x00", made, b"q\x01s(", &again, b"u."].concat();
    assert!(refused(&archive(&pickle, &[7; 24])).contains("524289 tensors"));
}

#[test]
fn archives_that_are_wrong_are_refused() {
    let whole = archive(&tensor(6, &[2, 3], &[3, 1], 0), &[7; 24]);
    for length in (4..whole.len()).step_by(7) {
        refused(&whole[..length]);
    }
    // Each entry said to be compressed, in both of its headers: a bomb would be.
    let mut compressed = whole.clone();
    for (mark, method) in [(b"PK\x03\x04", 8), (b"PK\x01\x02", 10)] {
        for at in 0..compressed.len() - 4 {
            if compressed[at..].starts_with(mark) {
                compressed[at + method] = 8;
            }
        }
    }
    assert!(refused(&compressed).contains("compressed"));
    assert!(refused(b"any").contains("neither"));
    assert!(refused(b"\x80\x02}.").contains("none that PyTorch writes"));
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    zip.start_file(
        "weights",
        SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored),
    )
    .unwrap();
    assert!(refused(&zip.finish().unwrap().into_inner()).contains("data.pkl"));
}

#[test]
fn a_tensor_is_there_once() {
    let whole = tensor(6, &[2, 3], &[3, 1], 0);
    let (name, made) = (&whole[..9], &whole[9..whole.len() - 2]);
    let pickle = [name, b"q\x00", made, b"q\x01s(h\x00h\x01u."].concat();
    assert!(refused(&archive(&pickle, &[7; 24])).contains("two tensors \"a\""));
}

/// The record at its end says that a file, which is full of holes, has thousands of millions of entries.
#[test]
fn the_number_of_entries_that_an_archive_claims_is_not_believed() {
    const SIZE: u64 = 1 << 40;
    let entries = SIZE / 48;
    let long = |number: u64| number.to_le_bytes();
    let record = [
        &b"PK\x06\x06"[..],
        &long(44),
        &[45, 0, 45, 0],
        &[0; 8],
        &long(entries),
        &long(entries),
        &long(u64::MAX),
        &long(entries),
    ]
    .concat();
    let locator = [&b"PK\x06\x07"[..], &[0; 4], &long(SIZE), &1u32.to_le_bytes()].concat();
    let end = [&b"PK\x05\x06"[..], &[0; 4], &[0xff; 12], &[0; 2]].concat();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pytorch_model.bin");
    std::fs::write(&path, b"PK\x03\x04").unwrap();
    let mut file = std::fs::OpenOptions::new().append(true).open(&path).unwrap();
    file.set_len(SIZE).unwrap();
    file.write_all(&[record, locator, end].concat()).unwrap();
    assert!(matches!(read(&path), Err(Error::InvalidPickle { .. })));
}

#[test]
fn files_of_the_older_form_that_end_early_or_lie_are_refused() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/text_embedding/bert_2019");
    let whole = std::fs::read(root.join("pytorch_model-00002-of-00002.bin")).unwrap();
    let tensors = read_bytes(&whole).unwrap();
    assert!(tensors.iter().any(|tensor| tensor.strides.is_some()));
    for length in (1..whole.len()).step_by(997) {
        refused(&whole[..length]);
    }
    // A count of numbers that the file does not have, behind the last pickle.
    let last = tensors.iter().map(|tensor| tensor.start).min().unwrap();
    let mut lying = whole.clone();
    lying[usize::try_from(last).unwrap() - 1] = 0x7f;
    assert!(refused(&lying).contains("too soon"));
}
