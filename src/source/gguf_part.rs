//! Names of the parts that llama.cpp splits a GGUF file into: `model-00001-of-00003.gguf`.

/// A part of a GGUF file by its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GgufPart {
    /// The name up to the number.
    stem: String,
    /// From 1 on.
    pub(crate) number: usize,
    pub(crate) count: usize,
}

impl GgufPart {
    /// The part of this name, which has no folder; nothing for the name of a whole file.
    pub(crate) fn of(name: &str) -> Option<Self> {
        let (rest, ending) = name.split_at_checked(name.len().checked_sub(".gguf".len())?)?;
        let (rest, count) = rest.rsplit_once("-of-").filter(|_| ending.eq_ignore_ascii_case(".gguf"))?;
        let (stem, number) = rest.rsplit_once('-')?;
        let digits = |text: &str| text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
        let (number, count) =
            (Some(number).filter(|text| digits(text))?, Some(count).filter(|text| digits(text))?);
        let (number, count) = (number.parse().ok()?, count.parse().ok()?);
        (1 <= number && number <= count).then(|| Self { stem: stem.to_owned(), number, count })
    }

    /// The name of another part of the same file.
    pub(crate) fn name(&self, number: usize) -> String {
        format!("{}-{number:05}-of-{:05}.gguf", self.stem, self.count)
    }

    /// True for a part of the same file.
    pub(super) fn is_of_same_file(&self, other: &Self) -> bool {
        self.stem == other.stem && self.count == other.count
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn parts_are_known_by_their_names_and_nothing_else_is() {
        let part = GgufPart::of("a-b-00002-of-00010.gguf").unwrap();
        assert_eq!((part.number, part.count), (2, 10));
        assert_eq!(part.name(10), "a-b-00010-of-00010.gguf");
        for whole in [
            "a.gguf",
            "a-2-of-10.gguf",
            "a-00000-of-00002.gguf",
            "a-00003-of-00002.gguf",
            "",
            "é.gguf",
            "a-00001-of-00002.safetensors",
            "a-+0001-of-00002.gguf",
            "00001-of-00002.gguf",
        ] {
            assert_eq!(GgufPart::of(whole), None, "{whole}");
        }
    }
}
