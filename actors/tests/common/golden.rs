//! Golden files, which pin the format of messages.
//!
//! A file of `golden/` is never changed. Where a message has got a field, `WRITE_GOLDEN=1` writes it as a further file
//! beside the old ones, all of which have to be read as the same value for good.

use std::fmt::Debug;
use std::path::PathBuf;

use model_actors::wire;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The files of a message, oldest first.
fn files(name: &str) -> Vec<PathBuf> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let file = |number: usize| folder.join(format!("{name}.{number}.msgpack"));
    let count = (1..).take_while(|number| file(*number).exists()).count();
    (1..=count + 1).map(file).collect()
}

/// Checks a message against its files. Compared by what `Debug` shows, as not every request compares.
pub(crate) fn pinned<T: Serialize + DeserializeOwned + Debug>(name: &str, value: &T) -> Vec<u8> {
    let bytes = wire::encode(value).unwrap();
    assert_eq!(format!("{:?}", wire::decode::<T>(&bytes).unwrap()), format!("{value:?}"), "{name}");
    let mut files = files(name);
    let next = files.pop().unwrap();
    let is_new = files.last().is_none_or(|newest| std::fs::read(newest).unwrap() != bytes);
    if is_new && std::env::var_os("WRITE_GOLDEN").is_some() {
        std::fs::write(&next, &bytes).unwrap();
        files.push(next);
    } else {
        assert!(
            !is_new,
            "{name} is written in another way than its newest golden file; see the top of common/golden.rs"
        );
    }
    for file in files {
        let read: T = wire::decode(&std::fs::read(&file).unwrap()).unwrap();
        assert_eq!(format!("{read:?}"), format!("{value:?}"), "{}", file.display());
    }
    bytes
}
