//! The form that `torch.save` wrote before version 1.6: five pickles one after another (a mark, a version, the machine, the
//! tensors, the keys of their stores), and then each store's count and numbers in the order of the keys.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

use super::MAX_PICKLE;
use super::machine::{self, Value, Values};
use super::tensors::{self, Store, StoredTensor};

/// By this number PyTorch knows its files: 0x1950a86a20f9469cfc6c, the lowest byte first.
const MARK: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
const VERSION: i64 = 1001;

/// Reads a file of so many bytes.
pub(super) fn read(mut file: File, size: u64) -> Result<Vec<StoredTensor>, String> {
    let mut first = Vec::new();
    file.by_ref().take(MAX_PICKLE).read_to_end(&mut first).map_err(|error| error.to_string())?;
    let mut at = 0;
    let mut next = || -> Result<Values, String> {
        let (values, length) = machine::run(first.get(at..).unwrap_or_default())?;
        at += length;
        Ok(values)
    };
    let mark = next()?;
    if !matches!(mark.get(mark.root)?, Value::Long(bytes) if *bytes == MARK) {
        return Err("it is a pickle, and none that PyTorch writes".to_owned());
    }
    let version = next()?;
    if *version.get(version.root)? != Value::Whole(VERSION) {
        return Err("it is of an unknown version of PyTorch's files".to_owned());
    }
    check_order(&next()?)?;
    let (values, keys) = (next()?, next()?);
    let described = tensors::described(&values)?;
    let mut stores: HashMap<&str, Store<'_>> = HashMap::new();
    for tensor in &described {
        let known = stores.insert(tensor.store.key, tensor.store);
        if known.is_some_and(|known| known != tensor.store) {
            return Err("the same numbers are of two types".to_owned());
        }
    }
    let starts = starts(&mut file, (at as u64, size), &keys, &stores)?;
    let at = |tensor: &tensors::Described<'_>| {
        let start = starts.get(tensor.store.key);
        tensor.at(*start.ok_or("a tensor's numbers are not in the file")?)
    };
    described.iter().map(at).collect()
}

/// Refuses a file of a machine that writes the highest byte first.
fn check_order(machine: &Values) -> Result<(), String> {
    let Value::Dict(entries) = machine.get(machine.root)? else {
        return Err("it does not say on which machine it was written".to_owned());
    };
    for (name, value) in entries {
        if machine.text(*name) == Ok("little_endian") && *machine.get(*value)? != Value::Bool(true) {
            return Err("its numbers have their highest byte first".to_owned());
        }
    }
    Ok(())
}

/// The first byte of each store's numbers. `place` is where the stores begin, and the file's end.
fn starts<'a>(
    file: &mut File,
    place: (u64, u64),
    keys: &'a Values,
    stores: &HashMap<&str, Store<'_>>,
) -> Result<HashMap<&'a str, u64>, String> {
    const COUNT: u64 = 8;
    let Value::List(listed) = keys.get(keys.root)? else {
        return Err("it has no list of what its numbers belong to".to_owned());
    };
    let (mut at, end) = place;
    let mut starts = HashMap::with_capacity(listed.len());
    for key in listed {
        let key = keys.name(*key)?;
        let store = stores.get(key).ok_or("it has numbers of no tensor")?;
        let mut count = [0; COUNT as usize];
        file.seek(SeekFrom::Start(at))
            .and_then(|_| file.read_exact(&mut count))
            .map_err(|error| format!("its numbers end too soon: {error}"))?;
        let bytes = u64::from_le_bytes(count).checked_mul(store.size());
        let start = at + COUNT;
        let next = bytes.and_then(|bytes| start.checked_add(bytes)).filter(|next| *next <= end);
        at = next.ok_or("its numbers end too soon")?;
        if at - start < store.bytes()? {
            return Err("its numbers are fewer than its tensors need".to_owned());
        }
        starts.insert(key, start);
    }
    Ok(starts)
}
