//! The archive that `torch.save` writes: a zip whose entries are stored as they are, the pickle in `data.pkl` and each
//! store of numbers in `data/`. A compressed entry is refused, so that nothing is larger than the file that it is in.

use std::cell::Cell;
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::rc::Rc;

use zip::{CompressionMethod, ZipArchive};

use super::MAX_PICKLE;
use super::machine::{self, Values, shown};
use super::tensors::{self, StoredTensor};

/// An entry's first byte in the file, and the number of its bytes.
type Place = (u64, u64);

/// Reads an archive of so many bytes.
pub(super) fn read(file: File, size: u64) -> Result<Vec<StoredTensor>, String> {
    let mut archive = Archive::open(file, size)?;
    let values = archive.pickle()?;
    let described = tensors::described(&values)?;
    let mut places: HashMap<&str, Place> = HashMap::new();
    let mut stored = Vec::with_capacity(described.len());
    for tensor in &described {
        let store = tensor.store;
        let (start, length) = match places.get(store.key) {
            Some(place) => *place,
            None => {
                let place = archive.required(&format!("data/{}", store.key))?;
                places.insert(store.key, place);
                place
            }
        };
        if store.bytes()? > length {
            let needed = store.bytes()?;
            return Err(format!("the numbers {} need {needed} bytes, and have {length}", shown(store.key)));
        }
        stored.push(tensor.at(start)?);
    }
    Ok(stored)
}

struct Archive {
    zip: ZipArchive<Budgeted>,
    file: File,
    budget: Rc<Cell<u64>>,
    /// The folder of all entries, with a slash at its end.
    folder: String,
    size: u64,
}

impl Archive {
    fn open(file: File, size: u64) -> Result<Self, String> {
        let budget = Rc::new(Cell::new(MAX_PICKLE));
        let second = file.try_clone().map_err(|error| error.to_string())?;
        let zip = ZipArchive::new(Budgeted { file: second, budget: Rc::clone(&budget) });
        let zip = zip.map_err(|error| format!("its archive cannot be read: {error}"))?;
        const PICKLE: &str = "data.pkl";
        let folder = zip.file_names_raw().find_map(|name| {
            let folder = std::str::from_utf8(name).ok()?.strip_suffix(PICKLE)?;
            (folder.is_empty() || folder.ends_with('/')).then(|| folder.to_owned())
        });
        let folder = folder.ok_or("its archive has no data.pkl, as one of PyTorch has")?;
        Ok(Self { zip, file, budget, folder, size })
    }

    /// The place of an entry, if there is one of this name.
    fn find(&mut self, name: &str) -> Result<Option<Place>, String> {
        let name = format!("{}{name}", self.folder);
        let wrong = |reason: &dyn std::fmt::Display| format!("its entry {} {reason}", shown(&name));
        let Some(index) = self.zip.index_for_name_raw(name.as_bytes()) else { return Ok(None) };
        // The list of entries is in memory by now, and this reads no more than the beginning of one.
        self.budget.set(1 << 16);
        let entry =
            self.zip.by_index_raw(index).map_err(|error| wrong(&format!("cannot be read: {error}")))?;
        if entry.compression() != CompressionMethod::Stored || entry.encrypted() {
            return Err(wrong(&"is compressed or encrypted, which PyTorch's are not"));
        }
        let (start, length) = (entry.data_start(), entry.size());
        let start = start.filter(|start| start.checked_add(length).is_some_and(|end| end <= self.size));
        start.map(|start| Some((start, length))).ok_or_else(|| wrong(&"ends beyond the file"))
    }

    fn required(&mut self, name: &str) -> Result<Place, String> {
        self.find(name)?.ok_or_else(|| format!("its archive has no entry {}", shown(name)))
    }

    /// The bytes of an entry.
    fn bytes(&mut self, (start, length): Place) -> Result<Vec<u8>, String> {
        if length > MAX_PICKLE {
            return Err(format!("its pickle has {length} bytes; at most {MAX_PICKLE} are allowed"));
        }
        let mut bytes = Vec::new();
        self.file
            .seek(SeekFrom::Start(start))
            .and_then(|_| self.file.by_ref().take(length).read_to_end(&mut bytes))
            .map_err(|error| error.to_string())?;
        Ok(bytes)
    }

    fn pickle(&mut self) -> Result<Values, String> {
        if let Some(place) = self.find("byteorder")?
            && self.bytes(place)? != b"little"
        {
            return Err("its numbers have their highest byte first".to_owned());
        }
        let place = self.required("data.pkl")?;
        Ok(machine::run(&self.bytes(place)?)?.0)
    }
}

/// A file of which only so many bytes are read: the list of an archive's entries is in memory as a whole.
struct Budgeted {
    file: File,
    budget: Rc<Cell<u64>>,
}

impl Read for Budgeted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(buffer)?;
        match self.budget.get().checked_sub(read as u64) {
            Some(left) => self.budget.set(left),
            None => return Err(io::Error::other("its list of entries is too long")),
        }
        Ok(read)
    }
}

impl Seek for Budgeted {
    fn seek(&mut self, position: SeekFrom) -> io::Result<u64> {
        self.file.seek(position)
    }
}
