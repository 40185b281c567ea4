//! Vectors as 8-bit numbers and bits are those that sentence-transformers makes of them;
//! `tests/references/quantized_vectors.py` writes the reference.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use model_actors::{Embeddings, VectorArray, VectorRanges};
use serde::Deserialize;

#[derive(Deserialize)]
struct Reference {
    calibration: Vec<Vec<f32>>,
    vectors: Vec<Vec<f32>>,
    int8: Vec<Vec<i8>>,
    uint8: Vec<Vec<u8>>,
    binary: Vec<Vec<i8>>,
    ubinary: Vec<Vec<u8>>,
}

fn rows<T: Clone>(array: &VectorArray<T>) -> Vec<Vec<T>> {
    array.rows().map(<[T]>::to_vec).collect()
}

#[test]
fn quantized_vectors_are_those_of_the_reference() {
    let reference: Reference = serde_json::from_str(include_str!("golden/quantized_vectors.json")).unwrap();
    let array = |vectors: &[Vec<f32>]| Embeddings::new(vectors.to_vec()).to_array().unwrap();
    let (vectors, ranges) = (array(&reference.vectors), VectorRanges::of(&array(&reference.calibration)));
    assert_eq!((vectors.len(), vectors.width()), (9, 19));
    assert_eq!(rows(&vectors), reference.vectors);
    assert_eq!(rows(&vectors.to_int8(&ranges).unwrap()), reference.int8);
    assert_eq!(rows(&vectors.to_uint8(&ranges).unwrap()), reference.uint8);
    assert_eq!(rows(&vectors.to_binary()), reference.binary);
    assert_eq!(rows(&vectors.to_ubinary()), reference.ubinary);
    // Other ranges, other numbers.
    let others =
        VectorRanges::new(ranges.ranges().iter().map(|(least, most)| (*least, most * 2.0)).collect());
    assert_ne!(rows(&vectors.to_int8(&others).unwrap()), reference.int8);
}

#[test]
fn no_vectors_make_an_empty_array_and_uneven_ones_none() {
    let none = Embeddings::default().to_array().unwrap();
    assert!(none.is_empty() && none.to_ubinary().is_empty());
    assert!(none.to_int8(&VectorRanges::of(&none)).unwrap().is_empty());
    assert_eq!(Embeddings::new(vec![vec![1.0], vec![1.0, 2.0]]).to_array(), None);
    let array = Embeddings::new(vec![vec![f32::NAN, f32::INFINITY, 2.0]]).to_array().unwrap();
    let ranges = VectorRanges::new(vec![(-1.0, 1.0); 3]);
    assert_eq!(array.to_uint8(&ranges).unwrap().values(), [0, 255, 255]);
    assert_eq!(array.to_int8(&VectorRanges::new(vec![(-1.0, 1.0)])), None);
    assert_eq!(array.clone().into_values().len(), 3);
}
