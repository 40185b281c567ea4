//! What a tokenizer may make of a text. A `tokenizer.json` comes from outside: its normalizer can write a megabyte for
//! each letter, its template the text or a special token a thousand times over, its decoder a book for each token. What
//! each step can do at worst is worked out when the file is read, and what no model has need of is refused. Where that
//! worst would still be too much for a text, the normalizer is tried on it step by step, and no step is taken that could
//! make too much of what the steps before it left. Where a tokenizer panics all the same, that is an error like others.

use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokenizers::{NormalizedString, Normalizer, NormalizerWrapper, PostProcessor as _, Tokenizer};

use super::Specials;

/// The most that a normalizer may make of a byte. Those of published models reach some thousands (ALBERT's), as if each of
/// their steps met the text that it makes most of.
const MAX_NORMALIZED: usize = 16_384;
/// The most that a split may make of a byte, and a decoder of a token's; those of published models reach 4.
const MAX_SPLIT: usize = 16;
/// Most bytes that a text may become, and that tokens may, those of a whole answer together: four times the longest
/// prompt.
pub(crate) const MAX_BYTES: usize = 16 << 20;
/// Most bytes of what is made at once where a text is tried in pieces.
const PIECE: usize = 4 << 20;
/// Most bytes of a token. Those of the fixtures have up to 3,072.
const MAX_TOKEN: usize = 16 << 10;
/// Most special tokens around a text, and most pieces of a template.
const MAX_ADDED: usize = 64;

/// Refuses a file whose added tokens would become too long: its normalizer runs over them while it is read.
///
/// # Errors
/// In words, what is wrong with it.
pub(super) fn check_added(file: &[u8]) -> Result<(), String> {
    #[derive(Deserialize)]
    struct Parts {
        normalizer: Option<NormalizerWrapper>,
        #[serde(default)]
        added_tokens: Vec<Added>,
    }
    #[derive(Deserialize)]
    struct Added {
        content: String,
    }
    let parts: Parts = serde_json::from_slice(file).map_err(|error| error.to_string())?;
    let factors = factors(parts.normalizer.as_ref())?;
    let bytes: usize = parts.added_tokens.iter().map(|token| token.content.len()).sum();
    let most = factors.iter().copied().fold(bytes, usize::saturating_mul);
    if most > MAX_BYTES {
        return Err(format!("its added tokens can become {most} bytes; at most {MAX_BYTES} are allowed"));
    }
    Ok(())
}

/// What a tokenizer makes of a byte at worst.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Growth {
    /// Each step of its normalizer.
    normalizer: Vec<usize>,
    split: usize,
    decoder: usize,
    /// Bytes of its longest token.
    token: usize,
}

impl Growth {
    /// # Errors
    /// In words, what it does that no model needs.
    pub(crate) fn of(tokenizer: &Tokenizer) -> Result<Self, String> {
        if let Some(processor) = tokenizer.get_post_processor() {
            check_templates(&written(processor)?)?;
            let added = processor.added_tokens(false);
            if added > MAX_ADDED {
                return Err(format!("it adds {added} tokens to a text; at most {MAX_ADDED} are allowed"));
            }
        }
        let token = tokenizer.get_vocab(true).keys().map(String::len).max().unwrap_or(0);
        if token > MAX_TOKEN {
            return Err(format!("it has a token of {token} bytes; at most {MAX_TOKEN} are allowed"));
        }
        if let Some(split) = tokenizer.get_pre_tokenizer() {
            check_split(&written(split)?)?;
        }
        let normalizer = factors(tokenizer.get_normalizer())?;
        let split = factor("split", tokenizer.get_pre_tokenizer(), MAX_SPLIT)?;
        let decoder = factor("decoder", tokenizer.get_decoder(), MAX_SPLIT)?;
        Ok(Self { normalizer, split, decoder, token })
    }

    /// The tokens of a text.
    ///
    /// # Errors
    /// In words, if it becomes too long or the tokenizer fails.
    pub(crate) fn encode(
        &self,
        tokenizer: &Tokenizer,
        text: &str,
        specials: Specials,
    ) -> Result<Vec<u32>, String> {
        guarded(|| {
            self.check(tokenizer, text)?;
            let encoding = tokenizer.encode_fast(text, specials == Specials::Added);
            Ok(encoding.map_err(|error| error.to_string())?.get_ids().to_vec())
        })
    }

    /// The text of tokens, without the special ones.
    ///
    /// # Errors
    /// In words, if it becomes too long or the tokenizer fails.
    pub(super) fn decode(&self, tokenizer: &Tokenizer, ids: &[u32]) -> Result<String, String> {
        guarded(|| {
            if !self.can_decode(tokenizer, ids) {
                let tokens = ids.len();
                return Err(format!("it could make more than {MAX_BYTES} bytes of {tokens} tokens"));
            }
            tokenizer.decode(ids, true).map_err(|error| error.to_string())
        })
    }

    /// # Errors
    /// In words, with the number, if a text becomes too long.
    pub(crate) fn check(&self, tokenizer: &Tokenizer, text: &str) -> Result<(), String> {
        let fits = |normalized: usize| normalized.saturating_mul(self.split) <= MAX_BYTES;
        if fits(self.normalizer.iter().copied().fold(text.len(), usize::saturating_mul)) {
            return Ok(());
        }
        let trial = self.trial(tokenizer);
        tokenizer.get_added_vocabulary().extract_and_normalize(Some(&trial), text);
        match fits(trial.bytes.into_inner()) {
            true => Ok(()),
            false => {
                Err(format!("the tokenizer could make more than {MAX_BYTES} bytes of its {}", text.len()))
            }
        }
    }

    fn trial<'a>(&self, tokenizer: &'a Tokenizer) -> Trial<'a> {
        let steps = tokenizer.get_normalizer().map(steps).unwrap_or_default();
        let steps = steps.into_iter().zip(self.normalizer.iter().copied()).collect();
        Trial { steps, bytes: AtomicUsize::new(0) }
    }

    /// Whether the text of tokens stays short enough to be written.
    fn can_decode(&self, tokenizer: &Tokenizer, ids: &[u32]) -> bool {
        let fits = |bytes: usize| bytes.saturating_mul(self.decoder) <= MAX_BYTES;
        // One more for each: without a decoder, spaces stand between them.
        let length = |id: &u32| 1 + tokenizer.id_to_token(*id).map_or(0, |token| token.len());
        fits(ids.len().saturating_mul(self.token + 1)) || fits(ids.iter().map(length).sum())
    }
}

/// Normalizes the parts of a text as its tokenizer will, up to the step that could make too much of one.
struct Trial<'a> {
    /// With what each makes of a byte at worst.
    steps: Vec<(&'a NormalizerWrapper, usize)>,
    /// Bytes of the parts so far; more than any text may have once it was stopped. What an error says is lost on the way.
    bytes: AtomicUsize,
}

impl Normalizer for Trial<'_> {
    fn normalize(&self, part: &mut NormalizedString) -> tokenizers::Result<()> {
        let before = self.bytes.swap(usize::MAX, Ordering::Relaxed);
        for (step, factor) in &self.steps {
            if before.saturating_add(most_after(step, *factor, part.get())?) > MAX_BYTES {
                return Ok(());
            }
            step.normalize(part)?;
        }
        self.bytes.store(before.saturating_add(part.get().len()), Ordering::Relaxed);
        Ok(())
    }
}

/// Most bytes of a text after a step. One that looks at a letter alone is tried in pieces; what another would find in a
/// piece says nothing of the whole.
fn most_after(step: &NormalizerWrapper, factor: usize, text: &str) -> tokenizers::Result<usize> {
    use NormalizerWrapper::{NFKC, NFKD, Precompiled};
    let most = text.len().max(1).saturating_mul(factor);
    if most <= PIECE || !matches!(step, NFKC(_) | NFKD(_) | Precompiled(_)) {
        return Ok(most);
    }
    let (mut bytes, mut rest) = (0, text);
    while !rest.is_empty() && bytes <= MAX_BYTES {
        let (piece, after) = rest.split_at(boundary(rest, PIECE / factor));
        let mut piece = NormalizedString::from(piece);
        step.normalize(&mut piece)?;
        (bytes, rest) = (bytes + piece.get().len(), after);
    }
    Ok(bytes)
}

/// The end of a letter, at or before so many bytes.
fn boundary(text: &str, most: usize) -> usize {
    let most = most.min(text.len());
    (0..=most).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(most)
}

/// Runs a tokenizer. It is other people's code on a file from outside: one that panics must not take a worker with it.
///
/// # Errors
/// Those of the work, and one for a panic.
pub(super) fn guarded<T>(work: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    std::panic::catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|_| Err("the tokenizer panicked".to_owned()))
}

fn written(part: &impl Serialize) -> Result<Value, String> {
    serde_json::to_value(part).map_err(|error| error.to_string())
}

/// What a part of a tokenizer makes of a byte at worst.
fn factor(name: &str, part: Option<&impl Serialize>, most: usize) -> Result<usize, String> {
    let factor = part.map(written).transpose()?.map_or(1, |part| of_step(&part));
    match factor <= most {
        true => Ok(factor),
        false => Err(format!("its {name} can make {factor} bytes of one; at most {most} are allowed")),
    }
}

/// What each step of a normalizer makes of a byte at worst.
fn factors(normalizer: Option<&NormalizerWrapper>) -> Result<Vec<usize>, String> {
    factor("normalizer", normalizer, MAX_NORMALIZED)?;
    let steps = normalizer.map(steps).unwrap_or_default();
    steps.into_iter().map(|step| written(step).map(|step| of_step(&step))).collect()
}

/// A normalizer's steps, one after another.
fn steps(normalizer: &NormalizerWrapper) -> Vec<&NormalizerWrapper> {
    match normalizer {
        NormalizerWrapper::Sequence(several) => several.as_ref().iter().flat_map(steps).collect(),
        one => vec![one],
    }
}

/// What a step makes of a byte at worst, steps within it one after another.
fn of_step(step: &Value) -> usize {
    let text = |name: &str| step.get(name).and_then(Value::as_str).unwrap_or_default();
    match text("type") {
        "Sequence" => {
            let steps = ["normalizers", "pretokenizers", "decoders"].into_iter();
            let steps = steps.filter_map(|name| step.get(name)?.as_array()).flatten();
            steps.map(of_step).fold(1, usize::saturating_mul)
        }
        "Replace" => {
            let content = text("content").len();
            match step.pointer("/pattern/String").and_then(Value::as_str) {
                Some(pattern) if !pattern.is_empty() => content.div_ceil(pattern.len()).max(1),
                // It may find nothing at all on both sides of a letter.
                _ => content.saturating_mul(2).saturating_add(1),
            }
        }
        // Before each part of a text, of which each byte may be one.
        "Prepend" => text("prepend").len().saturating_add(1),
        "Metaspace" => text("replacement").len().saturating_add(1),
        // Two bytes for one, and for the space in front; to decode, the sign for what is no text.
        "ByteLevel" => 4,
        "Precompiled" => longest_entry(text("precompiled_charsmap")).max(1),
        // The longest that Unicode's tables have, in UTF-8.
        "NFKC" | "NFKD" => 11,
        "NFC" | "NFD" => 3,
        "Lowercase" => 2,
        // Spaces around Chinese letters, then NFD, then small letters.
        "BertNormalizer" => 12,
        // A space between words; one for a sign, which may be empty and so on both sides of a letter.
        "WordPiece" => 2,
        "BPEDecoder" | "CTC" => 3,
        // The others leave out, cut, or put one sign for another.
        _ => 1,
    }
}

/// Bytes of the longest text of a map of characters as SentencePiece writes it: the size of a trie, the trie, and texts
/// with a zero after each.
fn longest_entry(map: &str) -> usize {
    use base64::Engine as _;
    let Ok(map) = base64::prelude::BASE64_STANDARD.decode(map) else { return usize::MAX };
    let Some((size, rest)) = map.split_first_chunk::<4>() else { return 1 };
    let texts = rest.get(u32::from_le_bytes(*size) as usize..).unwrap_or_default();
    texts.split(|byte| *byte == 0).map(<[u8]>::len).max().unwrap_or(1)
}

/// Refuses a split into pieces of no letters, as the tokenizer would find out by a panic.
fn check_split(split: &Value) -> Result<(), String> {
    if split["type"] == "FixedLength" && split["length"].as_u64() == Some(0) {
        return Err("its split cuts a text into pieces of no letters".to_owned());
    }
    split["pretokenizers"].as_array().into_iter().flatten().try_for_each(check_split)
}

/// Refuses templates that the tokenizer could not apply to one text, as it would find out by a panic, or that write it
/// more than once.
fn check_templates(processor: &Value) -> Result<(), String> {
    let mut templates = Vec::new();
    find_templates(processor, &mut templates);
    let [template] = templates.as_slice() else {
        return match templates.len() {
            0 => Ok(()),
            // What the first leaves is pieces, which the next would take for texts.
            several => Err(format!("its post-processor has {several} templates")),
        };
    };
    let pieces = template["single"].as_array().map(Vec::as_slice).unwrap_or_default();
    if pieces.len() > MAX_ADDED {
        return Err(format!("its template has {} pieces; at most {MAX_ADDED} are allowed", pieces.len()));
    }
    let texts = pieces.iter().filter(|piece| piece.get("Sequence").is_some()).count();
    if texts > 1 || pieces.iter().any(|piece| piece["Sequence"]["id"] == "B") {
        return Err(format!("its template for one text has places for {texts}, or for a second one"));
    }
    for name in pieces.iter().filter_map(|piece| piece["SpecialToken"]["id"].as_str()) {
        let count = |list: &str| template["special_tokens"][name][list].as_array().map(Vec::len);
        if count("ids").is_none() || count("ids") != count("tokens") {
            return Err(format!("its template names the special token {name:?}, which it does not explain"));
        }
    }
    Ok(())
}

fn find_templates<'a>(processor: &'a Value, found: &mut Vec<&'a Value>) {
    if processor.get("single").is_some() {
        found.push(processor);
    }
    for step in processor.get("processors").and_then(Value::as_array).into_iter().flatten() {
        find_templates(step, found);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
mod tests {
    use std::path::{Path, PathBuf};

    use serde_json::json;

    use super::*;

    /// A tokenizer with these parts; the others are none.
    fn parts(parts: Value) -> Value {
        let mut written = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
            "normalizer": null, "pre_tokenizer": null, "post_processor": null, "decoder": null,
            "model": {"type": "WordLevel", "vocab": {"[UNK]": 0, "a": 1}, "unk_token": "[UNK]"},
        });
        let Value::Object(parts) = parts else { panic!("{parts}") };
        written.as_object_mut().unwrap().extend(parts);
        written
    }

    fn tokenizer(with: Value) -> Tokenizer {
        Tokenizer::from_bytes(serde_json::to_vec(&parts(with)).unwrap()).unwrap()
    }

    fn of(with: Value) -> Result<Growth, String> {
        Growth::of(&tokenizer(with))
    }

    fn refused(with: Value) -> String {
        of(with).unwrap_err()
    }

    fn replace(pattern: &Value, content: &str) -> Value {
        json!({"type": "Replace", "pattern": pattern, "content": content})
    }

    #[test]
    fn what_multiplies_a_text_is_refused_when_it_is_read() {
        let normalizer = |steps: &[Value]| json!({"normalizer": {"type": "Sequence", "normalizers": steps}});
        let letter = replace(&json!({"String": "a"}), &"a".repeat(200));
        assert_eq!(of(normalizer(std::slice::from_ref(&letter))).unwrap().normalizer, [200]);
        assert!(refused(normalizer(&[letter.clone(), letter])).contains("40000"));
        let everywhere = replace(&json!({"Regex": ""}), &"a".repeat(10_000));
        assert!(refused(normalizer(&[everywhere])).contains("20001"));
        assert!(of(normalizer(&[json!({"type": "Prepend", "prepend": "a".repeat(20_000)})])).is_err());
        // As ALBERT's, before its map of signs.
        let accents = ["NFKD", "StripAccents", "Lowercase"].map(|name| json!({"type": name}));
        assert_eq!(of(normalizer(&accents)).unwrap().normalizer, [11, 1, 2]);
        let bytes =
            json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
        let split = json!({"type": "Sequence", "pretokenizers": vec![bytes; 20]});
        assert!(refused(json!({"pre_tokenizer": split})).contains("split"));
    }

    #[test]
    fn a_split_into_pieces_of_no_letters_is_refused_when_it_is_read() {
        let split = |length: u64| json!({"type": "FixedLength", "length": length});
        let within = |split: Value| json!({"type": "Sequence", "pretokenizers": [split]});
        assert!(of(json!({"pre_tokenizer": within(split(1))})).is_ok());
        assert!(refused(json!({"pre_tokenizer": split(0)})).contains("no letters"));
        assert!(refused(json!({"pre_tokenizer": within(within(split(0)))})).contains("no letters"));
    }

    #[test]
    fn no_step_is_taken_that_could_make_a_text_too_long() {
        // The second finds nothing in any short piece of a text.
        let letters = replace(&json!({"Regex": "[^\n]"}), "a");
        let many = replace(&json!({"String": "a".repeat(3000)}), &"b".repeat(3000 * 2048));
        let tokenizer =
            tokenizer(json!({"normalizer": {"type": "Sequence", "normalizers": [letters, many]}}));
        let growth = Growth::of(&tokenizer).unwrap();
        let text = "x".repeat(100_000);
        let refused = growth.check(&tokenizer, &text).unwrap_err();
        assert!(refused.contains("100000") && refused.contains(&MAX_BYTES.to_string()), "{refused}");
        let mut part = NormalizedString::from(text.as_str());
        growth.trial(&tokenizer).normalize(&mut part).unwrap();
        assert_eq!(part.get(), "a".repeat(100_000), "only the first step was taken");

        // A text comes in parts, and all of them count.
        let trial = growth.trial(&tokenizer);
        trial.bytes.store(MAX_BYTES - 10, Ordering::Relaxed);
        let mut part = NormalizedString::from("xxxxx");
        trial.normalize(&mut part).unwrap();
        assert_eq!(part.get(), "xxxxx");
        assert!(trial.bytes.into_inner() > MAX_BYTES);
        assert_eq!(growth.check(&tokenizer, &"x".repeat(2000)), Ok(()));
    }

    #[test]
    fn a_step_is_measured_by_what_those_before_it_left() {
        let spaces = replace(&json!({"String": " "}), &"b".repeat(1000));
        let steps = json!({"type": "Sequence", "normalizers": [{"type": "NFKC"}, spaces]});
        let added = json!([{"id": 2, "content": "<a>", "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true}]);
        let tokenizer = tokenizer(json!({"normalizer": steps, "added_tokens": added}));
        let growth = Growth::of(&tokenizer).unwrap();
        // What becomes eleven times as long; what stays, also in many parts.
        assert!(growth.check(&tokenizer, &"ﷺ".repeat(1000)).is_err());
        assert_eq!(growth.check(&tokenizer, &"é".repeat(1500)), Ok(()));
        assert_eq!(growth.check(&tokenizer, &"é<a>".repeat(1500)), Ok(()));

        let [nfkc, spaces] = steps_of(&tokenizer);
        let (grows, stays) = ("ﷺ".repeat(130_000), "é".repeat(200_000));
        assert_eq!(most_after(nfkc, 11, &grows).unwrap(), 11 * grows.len());
        assert_eq!(most_after(nfkc, 11, &stays).unwrap(), stays.len());
        assert_eq!(most_after(spaces, 1000, &stays).unwrap(), 1000 * stays.len());
    }

    fn steps_of<const N: usize>(tokenizer: &Tokenizer) -> [&NormalizerWrapper; N] {
        steps(tokenizer.get_normalizer().unwrap()).try_into().unwrap()
    }

    #[test]
    fn added_tokens_are_refused_before_the_normalizer_runs_over_them() {
        let file = |length: usize| {
            let content = "a".repeat(length);
            let added = json!([{"id": 2, "content": content, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": true, "special": false}]);
            let normalizer = replace(&json!({"String": "a"}), &"a".repeat(16_000));
            serde_json::to_vec(&parts(json!({"normalizer": normalizer, "added_tokens": added}))).unwrap()
        };
        assert_eq!(check_added(&file(100)), Ok(()));
        assert!(check_added(&file(1_000_000)).unwrap_err().contains("16000000000"));
    }

    #[test]
    fn a_decoder_that_multiplies_is_refused_and_so_is_a_token_of_any_length() {
        let step = replace(&json!({"String": "a"}), &"a".repeat(1000));
        let decoder = json!({"type": "Sequence", "decoders": vec![step; 5]});
        assert!(refused(json!({"decoder": decoder})).contains("decoder can make 1000000000000000"));
        let spaces = replace(&json!({"String": "▁"}), " ");
        let usual = json!([spaces, {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]);
        let usual = of(json!({"decoder": {"type": "Sequence", "decoders": usual}})).unwrap();
        assert_eq!(usual.decoder, 1);

        let token = |bytes: usize| json!({"type": "WordLevel", "unk_token": "a", "vocab": {"a": 0, "b".repeat(bytes): 1}});
        assert!(refused(json!({"model": token(MAX_TOKEN + 1)})).contains("16385 bytes"));
        let tokenizer = tokenizer(json!({"model": token(MAX_TOKEN)}));
        let growth = Growth::of(&tokenizer).unwrap();
        assert!(growth.can_decode(&tokenizer, &[1; 1000]) && growth.can_decode(&tokenizer, &[0; 100_000]));
        assert!(!growth.can_decode(&tokenizer, &[1; 1024]), "with the spaces between them");
    }

    #[test]
    fn a_template_that_cannot_be_applied_is_refused_when_it_is_read() {
        let text = |id: &str| json!({"Sequence": {"id": id, "type_id": 0}});
        let special = json!({"SpecialToken": {"id": "a", "type_id": 0}});
        let template = |pieces: &[&Value], ids: &[u32], tokens: &[&str]| {
            json!({"type": "TemplateProcessing", "single": pieces, "pair": [text("A"), text("B")],
                "special_tokens": {"a": {"id": "a", "ids": ids, "tokens": tokens}}})
        };
        let refused = |processor: &Value| refused(json!({"post_processor": processor}));
        let (first, second) = (text("A"), text("B"));
        let sound = template(&[&special, &first, &special], &[1], &["a"]);
        assert!(of(json!({"post_processor": sound})).is_ok());

        assert!(refused(&template(&[&first, &first], &[1], &["a"])).contains("for 2"));
        assert!(refused(&template(&[&second], &[1], &["a"])).contains("or for a second"));
        let unknown = json!({"SpecialToken": {"id": "z", "type_id": 0}});
        assert!(refused(&template(&[&first, &unknown], &[1], &["a"])).contains("\"z\""));
        assert!(refused(&template(&[&first, &special], &[1, 1], &["a"])).contains("\"a\""));
        assert!(refused(&template(&[&special; 65], &[], &[])).contains("65 pieces"));
        assert!(refused(&template(&[&special; 3], &[1; 22], &["a"; 22])).contains("66 tokens"));
        let twice = json!({"type": "Sequence", "processors": [sound, sound]});
        assert!(refused(&twice).contains("2 templates"));
        let deeper = json!({"type": "Sequence", "processors": [twice]});
        assert!(refused(&deeper).contains("2 templates"));
    }

    #[test]
    fn every_fixtures_tokenizer_is_far_from_the_limit() {
        fn find(folder: &Path, found: &mut Vec<PathBuf>) {
            for entry in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
                match entry.is_dir() {
                    true => find(&entry, found),
                    false if entry.ends_with("tokenizer.json") => found.push(entry),
                    false => {}
                }
            }
        }
        let (mut files, mut largest) = (Vec::new(), 0);
        find(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures"), &mut files);
        for file in &files {
            check_added(&std::fs::read(file).unwrap()).unwrap_or_else(|error| panic!("{file:?}: {error}"));
            let growth = Growth::of(&Tokenizer::from_file(file).unwrap());
            let growth = growth.unwrap_or_else(|error| panic!("{file:?}: {error}"));
            assert!(growth.split.max(growth.decoder) <= MAX_SPLIT / 4 && growth.token <= MAX_TOKEN / 4);
            largest = largest.max(growth.normalizer.iter().product());
        }
        println!("{} tokenizers; a byte becomes at most {largest}", files.len());
        assert!(files.len() > 20 && largest <= MAX_NORMALIZED / 2, "{} files, {largest}", files.len());
    }
}
