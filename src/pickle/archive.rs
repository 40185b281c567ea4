//! The archive that `torch.save` writes: a zip whose entries are stored as they are, the pickle in `data.pkl` and each
//! store of numbers in `data/`. A compressed entry is refused, so that nothing is larger than the file that it is in.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read as _;

use rawzip::{CompressionMethod, FileReader, RECOMMENDED_BUFFER_SIZE, ZipArchive, ZipArchiveEntryWayfinder};

use super::MAX_PICKLE;
use super::machine::{self, Values, shown};
use super::tensors::{self, StoredTensor};

/// An entry's first byte in the file, and the number of its bytes.
type Place = (u64, u64);

/// Bytes of an entry in the list, beside its name.
const ENTRY_BYTES: u64 = 46;

/// Reads an archive of so many bytes.
pub(super) fn read(file: File, size: u64) -> Result<Vec<StoredTensor>, String> {
    let archive = Archive::open(file, size)?;
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
    zip: ZipArchive<FileReader>,
    entries: HashMap<Vec<u8>, Entry>,
    /// The folder of all entries, with a slash at its end.
    folder: String,
    size: u64,
}

/// An entry, as the list at the end of the file has it.
struct Entry {
    place: ZipArchiveEntryWayfinder,
    is_stored: bool,
}

impl Archive {
    /// Reads the list of entries, one after another: what the file claims of their number is not believed.
    fn open(file: File, size: u64) -> Result<Self, String> {
        let unreadable = |error: rawzip::Error| format!("its archive cannot be read: {error}");
        let mut buffer = vec![0; RECOMMENDED_BUFFER_SIZE];
        let zip = ZipArchive::from_file(file, &mut buffer).map_err(unreadable)?;
        let mut entries = HashMap::new();
        let mut listed = zip.entries(&mut buffer);
        let mut bytes = 0;
        while let Some(entry) = listed.next_entry().map_err(unreadable)? {
            let name = entry.file_path().as_ref().to_vec();
            bytes += ENTRY_BYTES + name.len() as u64;
            if bytes > MAX_PICKLE {
                return Err("its list of entries is too long".to_owned());
            }
            let is_stored =
                entry.compression_method() == CompressionMethod::STORE && !entry.flags().is_encrypted();
            let known = Entry { place: entry.wayfinder(), is_stored };
            if let Some(twice) = entries.insert(name, known).map(|_| entry.file_path()) {
                let name = String::from_utf8_lossy(twice.as_ref());
                return Err(format!("its archive has two entries {}", shown(&name)));
            }
        }
        const PICKLE: &str = "data.pkl";
        let folder = entries.keys().find_map(|name| {
            let folder = std::str::from_utf8(name).ok()?.strip_suffix(PICKLE)?;
            (folder.is_empty() || folder.ends_with('/')).then(|| folder.to_owned())
        });
        let folder = folder.ok_or("its archive has no data.pkl, as one of PyTorch has")?;
        Ok(Self { zip, entries, folder, size })
    }

    /// The place of an entry, if there is one of this name.
    fn find(&self, name: &str) -> Result<Option<Place>, String> {
        let name = format!("{}{name}", self.folder);
        let wrong = |reason: &dyn std::fmt::Display| format!("its entry {} {reason}", shown(&name));
        let Some(entry) = self.entries.get(name.as_bytes()) else { return Ok(None) };
        if !entry.is_stored {
            return Err(wrong(&"is compressed or encrypted, which PyTorch's are not"));
        }
        let entry = self.zip.get_entry(entry.place);
        let entry = entry.map_err(|error| wrong(&format!("cannot be read: {error}")))?;
        let (start, end) = entry.compressed_data_range();
        match end.checked_sub(start).filter(|_| end <= self.size) {
            Some(length) => Ok(Some((start, length))),
            None => Err(wrong(&"ends beyond the file")),
        }
    }

    fn required(&self, name: &str) -> Result<Place, String> {
        self.find(name)?.ok_or_else(|| format!("its archive has no entry {}", shown(name)))
    }

    /// The bytes of an entry.
    fn bytes(&self, (start, length): Place) -> Result<Vec<u8>, String> {
        if length > MAX_PICKLE {
            return Err(format!("its pickle has {length} bytes; at most {MAX_PICKLE} are allowed"));
        }
        let mut bytes = Vec::new();
        let mut entry = rawzip::RangeReader::new(self.zip.get_ref(), start..start.saturating_add(length));
        entry.read_to_end(&mut bytes).map_err(|error| error.to_string())?;
        Ok(bytes)
    }

    fn pickle(&self) -> Result<Values, String> {
        if let Some(place) = self.find("byteorder")?
            && self.bytes(place)? != b"little"
        {
            return Err("its numbers have their highest byte first".to_owned());
        }
        let place = self.required("data.pkl")?;
        Ok(machine::run(&self.bytes(place)?)?.0)
    }
}
