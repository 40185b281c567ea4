//! JSON files of a model. Their values are counted before any is kept: two bytes of a file can become hundreds in memory.

use std::cell::Cell;
use std::fmt;
use std::path::Path;

use serde::Deserialize;
use serde::de::{
    self, DeserializeOwned, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor,
};

use super::folder::read;
use super::python_numbers::as_json;
use crate::error::{self, Error};
use crate::limits::{self, MAX_CONFIG_BYTES};

/// A configuration file's bytes.
///
/// # Errors
/// [`Error::UnreadableFile`]; [`Error::InvalidConfig`] for one of more than a file of its name may have.
pub(crate) fn read_config(path: &Path) -> error::Result<Vec<u8>> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    read(path, limits::file_bytes(&name).unwrap_or(MAX_CONFIG_BYTES))
}

/// Maximum number of values in a configuration file; the largest published ones have some ten thousands.
const MAX_VALUES: usize = 1 << 19;

/// A configuration file, read as JSON as Python reads it, with infinite numbers.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> error::Result<T> {
    let file = read_config(path)?;
    let json = as_json(&file);
    let read =
        serde_json::from_slice::<Values<MAX_VALUES>>(&json).and_then(|_| serde_json::from_slice(&json));
    read.map_err(|error| Error::InvalidConfig { file: path.to_owned(), reason: error.to_string() })
}

/// Stands for at most so many values, and at most so many regular expressions among them, each of which can take
/// megabytes. Nothing of them is kept.
#[derive(Debug, Default)]
pub(crate) struct Values<const N: usize, const PATTERNS: usize = { usize::MAX }>;

/// Stands for a list or table of at most so many entries, of which nothing is kept.
#[derive(Debug, Default)]
pub(crate) struct Entries<const N: usize>;

/// Counts the values and patterns that a file may still bring.
struct Budget {
    values: Cell<usize>,
    patterns: Cell<usize>,
}

impl Budget {
    fn spend<E: de::Error>(left: &Cell<usize>, what: &str) -> Result<(), E> {
        let rest = left.get().checked_sub(1).ok_or_else(|| E::custom(format!("it has too many {what}")))?;
        left.set(rest);
        Ok(())
    }

    fn value<E: de::Error>(&self) -> Result<(), E> {
        Self::spend(&self.values, "values")
    }
}

impl<'de, const N: usize, const PATTERNS: usize> Deserialize<'de> for Values<N, PATTERNS> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let budget = Budget { values: Cell::new(N), patterns: Cell::new(PATTERNS) };
        Counted(&budget).deserialize(deserializer)?;
        Ok(Self)
    }
}

/// One value, counted with all that is in it.
#[derive(Clone, Copy)]
struct Counted<'a>(&'a Budget);

impl<'de> DeserializeSeed<'de> for Counted<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        self.0.value()?;
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Counted<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a value")
    }

    fn visit_bool<E: de::Error>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E: de::Error>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E: de::Error>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E: de::Error>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E: de::Error>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E: de::Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while list.next_element_seed(self)?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut table: A) -> Result<(), A::Error> {
        while table.next_key_seed(Key(self.0))?.is_some() {
            table.next_value_seed(self)?;
        }
        Ok(())
    }
}

/// The name of a value.
struct Key<'a>(&'a Budget);

impl<'de> DeserializeSeed<'de> for Key<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Key<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a name")
    }

    fn visit_str<E: de::Error>(self, name: &str) -> Result<(), E> {
        if name == "Regex" { Budget::spend(&self.0.patterns, "regular expressions") } else { Ok(()) }
    }
}

impl<'de, const N: usize> Deserialize<'de> for Entries<N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Container<const N: usize>;
        impl<'de, const N: usize> Visitor<'de> for Container<N> {
            type Value = ();

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a list or a table")
            }

            fn visit_unit<E: de::Error>(self) -> Result<(), E> {
                Ok(())
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
                let left = Cell::new(N);
                while list.next_element::<IgnoredAny>()?.is_some() {
                    Budget::spend(&left, "entries")?;
                }
                Ok(())
            }

            fn visit_map<A: MapAccess<'de>>(self, mut table: A) -> Result<(), A::Error> {
                let left = Cell::new(N);
                while table.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {
                    Budget::spend(&left, "entries")?;
                }
                Ok(())
            }
        }
        deserializer.deserialize_any(Container::<N>)?;
        Ok(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_counts_wherever_it_is() {
        let text = r#"{"a": [1, -2, 2.5, "x", null, true, {"b": []}], "Regex": {"Regex": ""}}"#;
        assert!(serde_json::from_str::<Values<12>>(text).is_ok());
        assert!(serde_json::from_str::<Values<11>>(text).is_err());
        assert!(serde_json::from_str::<Values<12, 2>>(text).is_ok());
        assert!(serde_json::from_str::<Values<12, 1>>(text).is_err());
        for broken in ["{", "[1,]", "{\"a\"}", "", "[1] 2"] {
            assert!(serde_json::from_str::<Values<100>>(broken).is_err(), "{broken}");
        }
    }

    #[test]
    fn entries_count_and_what_is_in_them_does_not() {
        for text in [r#"{"a": [1, 2, 3], "b": 1}"#, "[[1, 2], 3]", "null"] {
            assert!(serde_json::from_str::<Entries<2>>(text).is_ok(), "{text}");
        }
        assert!(serde_json::from_str::<Entries<1>>("[1, 2]").is_err());
        assert!(serde_json::from_str::<Entries<1>>(r#"{"a": 1, "b": 1}"#).is_err());
    }
}
