//! Descriptions of tensors in a pickle: which there are, their shapes, and which of a file's stores their numbers are in.
//! Everything else that a pickle can hold is refused here by its name. Where the stores lie is left to the two forms of
//! files.

use std::collections::HashSet;

use super::machine::{Id, Value, Values, shown};
use crate::limits::MAX_TENSORS;

/// Maximum number of dimensions of a tensor.
const MAX_RANK: usize = 8;
/// How many times more numbers a tensor may lie spread over than it has.
const MAX_SPREAD: usize = 8;

/// A tensor with the place of its numbers in the file.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct StoredTensor {
    pub(crate) name: String,
    /// Type of its numbers, by the name that safetensors have for it.
    pub(crate) dtype: &'static str,
    pub(crate) shape: Vec<usize>,
    /// Steps from one number to the next along each dimension, where they do not lie row by row.
    pub(crate) strides: Option<Vec<usize>>,
    /// From the start of the file.
    pub(crate) start: u64,
    /// From the first number to the last.
    pub(crate) bytes: u64,
}

/// A tensor as the pickle describes it.
pub(super) struct Described<'a> {
    name: &'a str,
    shape: Vec<usize>,
    strides: Vec<usize>,
    /// Numbers of the store before the first.
    offset: usize,
    pub(super) store: Store<'a>,
}

/// Numbers of one type that lie together in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Store<'a> {
    pub(super) key: &'a str,
    numbers: &'static Numbers,
    count: usize,
}

impl Store<'_> {
    /// Bytes of one of its numbers.
    pub(super) fn size(&self) -> u64 {
        self.numbers.size
    }

    /// Bytes of all of them.
    pub(super) fn bytes(&self) -> Result<u64, String> {
        let bytes = (self.count as u64).checked_mul(self.numbers.size);
        bytes.ok_or_else(|| format!("the numbers {} would fill more than any file", shown(self.key)))
    }
}

/// A type of numbers.
#[derive(Debug, PartialEq, Eq)]
struct Numbers {
    class: &'static str,
    dtype: &'static str,
    size: u64,
}

const NUMBERS: &[Numbers] = &[
    Numbers { class: "torch.FloatStorage", dtype: "F32", size: 4 },
    Numbers { class: "torch.HalfStorage", dtype: "F16", size: 2 },
    Numbers { class: "torch.BFloat16Storage", dtype: "BF16", size: 2 },
    Numbers { class: "torch.DoubleStorage", dtype: "F64", size: 8 },
    Numbers { class: "torch.LongStorage", dtype: "I64", size: 8 },
    Numbers { class: "torch.IntStorage", dtype: "I32", size: 4 },
    Numbers { class: "torch.ShortStorage", dtype: "I16", size: 2 },
    Numbers { class: "torch.CharStorage", dtype: "I8", size: 1 },
    Numbers { class: "torch.ByteStorage", dtype: "U8", size: 1 },
    Numbers { class: "torch.BoolStorage", dtype: "BOOL", size: 1 },
];

/// The tensors of a pickle, which is a table of them.
///
/// # Errors
/// Words that name what is there in place of a tensor.
pub(super) fn described(values: &Values) -> Result<Vec<Described<'_>>, String> {
    let entries = match values.get(values.root)? {
        Value::Dict(entries) => entries,
        _ => return Err(format!("it holds {}, no table of tensors", what(values, values.root)?)),
    };
    if entries.len() > MAX_TENSORS {
        return Err(format!("it has {} tensors; at most {MAX_TENSORS} are allowed", entries.len()));
    }
    // One name that is recalled again and again would be copied each time.
    let mut names = HashSet::new();
    let described = |(name, value): &(Id, Id)| {
        let tensor = tensor(values, *name, *value)?;
        match names.insert(tensor.name) {
            true => Ok(tensor),
            false => Err(format!("it has two tensors {}", shown(tensor.name))),
        }
    };
    entries.iter().map(described).collect()
}

/// A value in words: a class by its name.
fn what(values: &Values, id: Id) -> Result<String, String> {
    Ok(match values.get(id)? {
        Value::Call { callable, .. } => match values.get(*callable)? {
            Value::Class(name) => format!("what {} makes", shown(name)),
            other => other.kind().to_owned(),
        },
        Value::Class(name) => format!("the class {}", shown(name)),
        other => other.kind().to_owned(),
    })
}

fn tensor(values: &Values, name: Id, value: Id) -> Result<Described<'_>, String> {
    let name = values.name(name)?;
    let wrong = |reason: String| format!("the entry {} {reason}", shown(name));
    let refused = |id| match what(values, id) {
        Ok(what) => wrong(format!("is {what}, no tensor")),
        Err(error) => error,
    };
    let Value::Call { callable, arguments } = values.get(value)? else { return Err(refused(value)) };
    match (values.class(*callable), values.tuple(*arguments)?) {
        // A parameter is its tensor and what training needs beside it.
        (Ok("torch._utils._rebuild_parameter"), [tensor, ..]) => match values.get(*tensor)? {
            Value::Call { callable, arguments } if values.class(*callable) == Ok(REBUILD) => {
                dense(values, name, values.tuple(*arguments)?).map_err(wrong)
            }
            _ => Err(refused(*tensor)),
        },
        (Ok(REBUILD), arguments) => dense(values, name, arguments).map_err(wrong),
        _ => Err(refused(value)),
    }
}

/// The function that PyTorch makes tensors with.
const REBUILD: &str = "torch._utils._rebuild_tensor_v2";

/// A tensor from that function's arguments: store, offset, shape, strides, and what training needs.
fn dense<'a>(values: &'a Values, name: &'a str, arguments: &[Id]) -> Result<Described<'a>, String> {
    let [store, offset, shape, strides, ..] = *arguments else {
        return Err("is a tensor that is described with too few words".to_owned());
    };
    let counts = |id| values.tuple(id)?.iter().map(|part| values.count(*part)).collect::<Result<Vec<_>, _>>();
    let (shape, strides) = (counts(shape)?, counts(strides)?);
    if shape.len() > MAX_RANK || strides.len() != shape.len() {
        let (dimensions, steps) = (shape.len(), strides.len());
        return Err(format!("has {dimensions} dimensions and {steps} strides"));
    }
    let Value::Outside(store) = values.get(store)? else {
        return Err("is a tensor without numbers".to_owned());
    };
    Ok(Described { name, shape, strides, offset: values.count(offset)?, store: self::store(values, *store)? })
}

/// The store that a tuple names: `"storage"`, the type of its numbers, its key, a device, and their count.
fn store<'a>(values: &'a Values, id: Id) -> Result<Store<'a>, String> {
    let (class, key, count) = match *values.tuple(id)? {
        [_, class, key, _, count] => (class, key, count),
        // In older files with a part of another store, or none.
        [_, class, key, _, count, part] if values.get(part) == Ok(&Value::None) => (class, key, count),
        _ => return Err("has numbers that are described in another way than PyTorch's".to_owned()),
    };
    let class = values.class(class)?;
    let numbers = NUMBERS.iter().find(|numbers| numbers.class == class);
    let numbers = numbers.ok_or_else(|| format!("has numbers of the type {}", shown(class)))?;
    Ok(Store { key: values.name(key)?, numbers, count: values.count(count)? })
}

impl Described<'_> {
    /// The tensor, if its store begins at `start` of the file.
    pub(super) fn at(&self, start: u64) -> Result<StoredTensor, String> {
        let wrong = |reason: &str| format!("the entry {} {reason}", shown(self.name));
        let outside = || wrong("lies outside of the numbers that are there");
        let elements = self.shape.iter().try_fold(1usize, |product, side| product.checked_mul(*side));
        let elements = elements.ok_or_else(|| wrong("has an impossible size"))?;
        let span = span(&self.shape, &self.strides).ok_or_else(outside)?;
        if self.offset.checked_add(span).is_none_or(|end| end > self.store.count) {
            return Err(outside());
        }
        let by_rows = is_by_rows(&self.shape, &self.strides);
        // Numbers that several places share would make a large tensor of a small file.
        if !by_rows && (!is_nested(&self.shape, &self.strides) || span / MAX_SPREAD > elements) {
            return Err(wrong("is a view whose numbers overlap or lie far apart"));
        }
        let size = self.store.numbers.size;
        let begin = (self.offset as u64).checked_mul(size).and_then(|begin| start.checked_add(begin));
        Ok(StoredTensor {
            name: self.name.to_owned(),
            dtype: self.store.numbers.dtype,
            shape: self.shape.clone(),
            strides: (!by_rows).then(|| self.strides.clone()),
            start: begin.ok_or_else(outside)?,
            bytes: (span as u64).checked_mul(size).ok_or_else(outside)?,
        })
    }
}

/// Numbers from a tensor's first to its last.
fn span(shape: &[usize], strides: &[usize]) -> Option<usize> {
    if shape.contains(&0) {
        return Some(0);
    }
    shape.iter().zip(strides).try_fold(1usize, |span, (side, stride)| {
        side.checked_sub(1)?.checked_mul(*stride).and_then(|steps| span.checked_add(steps))
    })
}

/// True if no two numbers share a place: each step goes beyond all that shorter steps reach.
fn is_nested(shape: &[usize], strides: &[usize]) -> bool {
    let mut steps: Vec<(usize, usize)> = strides.iter().copied().zip(shape.iter().copied()).collect();
    steps.retain(|(_, side)| *side > 1);
    steps.sort_unstable();
    let mut reach = 0usize;
    steps.into_iter().all(|(stride, side)| {
        let goes_beyond = stride > reach;
        reach = reach.saturating_add(stride.saturating_mul(side - 1));
        goes_beyond
    })
}

/// True if the numbers lie row by row without gaps.
fn is_by_rows(shape: &[usize], strides: &[usize]) -> bool {
    let mut step = 1usize;
    shape.contains(&0)
        || shape.iter().zip(strides).rev().all(|(side, stride)| {
            let follows = *side == 1 || *stride == step;
            step = step.saturating_mul(*side);
            follows
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn described(shape: &[usize], strides: &[usize], offset: usize, count: usize) -> Described<'static> {
        let store = Store { key: "0", numbers: &NUMBERS[0], count };
        Described { name: "a", shape: shape.to_vec(), strides: strides.to_vec(), offset, store }
    }

    #[test]
    fn a_tensor_lies_within_its_store() {
        let stored = |shape: &[usize], strides: &[usize], offset, count| {
            described(shape, strides, offset, count).at(100)
        };
        let tensor = stored(&[2, 3], &[3, 1], 4, 10).unwrap();
        assert_eq!((tensor.start, tensor.bytes, tensor.strides), (116, 24, None));
        let turned = stored(&[3, 2], &[1, 3], 0, 6).unwrap();
        assert_eq!((turned.bytes, turned.strides), (24, Some(vec![1, 3])));
        assert_eq!(stored(&[0, 7], &[7, 1], 0, 0).unwrap().bytes, 0);
        assert_eq!(stored(&[], &[], 0, 1).unwrap().bytes, 4);
        for (shape, strides, offset, count) in [
            (&[2, 3][..], &[3, 1][..], 5, 10),
            (&[2, 3], &[3, 1], usize::MAX, 10),
            (&[2, 3], &[usize::MAX, 1], 0, 10),
            (&[usize::MAX, 3], &[3, 1], 0, 10),
            (&[1000, 1000], &[0, 0], 0, 10),
            (&[1000], &[0], 0, 10),
            (&[2, 2], &[1000, 1], 0, 2000),
            // As many numbers as places, of which some are shared.
            (&[3, 3], &[2, 2], 0, 9),
        ] {
            assert!(stored(shape, strides, offset, count).is_err(), "{shape:?} {strides:?} {offset} {count}");
        }
    }
}
