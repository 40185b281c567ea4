//! Pre-tokenizers of byte-level BPE in GGUF files, by the names that llama.cpp has for them (`tokenizer.ggml.pre`). Each is
//! a list of patterns, by which a text is split one after another; what matches none stays as it is. Where llama.cpp
//! writes a pattern in another way because of its own engine, the one of the model's `tokenizer.json` stands here.

use serde_json::{Value, json};

use crate::tokens::QWEN2;

/// Treatment of text before byte-level BPE, and what llama.cpp makes depend on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Split {
    patterns: &'static [&'static str],
    /// A word that is a token is taken as it is, whatever the merges say.
    pub(super) whole_words: bool,
    /// The token of the beginning is put before a text where the file does not say so.
    pub(super) begins: bool,
    /// Text is normalized to composed letters, as the models' own tokenizers do.
    pub(super) composes: bool,
}

/// The pre-tokenizers with their names.
const SPLITS: &[(&[&str], Split)] = &[
    (
        &[
            "llama-bpe",
            "llama3",
            "llama-v3",
            "falcon3",
            "falcon-h1",
            "pixtral",
            "midm-2.0",
            "lfm2",
            "jina-v5-nano",
        ],
        Split { whole_words: true, begins: true, ..plain(&[LLAMA3]) },
    ),
    (&["dbrx", "smaug-bpe", "chatglm-bpe", "glm4"], plain(&[LLAMA3])),
    (&["qwen2", "deepseek-r1-qwen"], Split { composes: true, ..plain(&[QWEN2]) }),
    (&["stablelm2", "hunyuan", "solar-open", "grok-2", "megrez", "kormo", "f2llmv2"], plain(&[QWEN2])),
    (&["qwen35"], plain(&[QWEN35])),
    (&["gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"], plain(&[GPT4O])),
    (&["tekken"], Split { whole_words: true, begins: true, ..plain(&[TEKKEN]) }),
    (
        &["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"],
        plain(&[DIGIT, GPT2]),
    ),
    (
        &[
            "gpt-2",
            "phi-2",
            "jina-es",
            "jina-de",
            "jina-v2-es",
            "jina-v2-de",
            "gigachat",
            "a.x-4.0",
            "mellum",
            "modern-bert",
            "exaone4",
            "mpt",
            "olmo",
            "jais",
            "trillion",
            "granite-docling",
        ],
        plain(&[GPT2]),
    ),
    (&["falcon"], plain(&[r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]"])),
    (
        &["deepseek-llm"],
        plain(&[LINE, DEEPSEEK_LETTERS, r"\s?[!-/:-~！-／：-～‘-‟　-。]+", r"\s+$", EAST_ASIAN, r"\p{N}+"]),
    ),
    (&["deepseek-coder"], plain(&[LINE, r"\s?\p{L}+", r"\s?\p{P}+", EAST_ASIAN, DIGIT])),
    (
        &["deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"],
        plain(&[THREE_DIGITS, HAN_AND_KANA, DEEPSEEK3]),
    ),
    (&["poro-chat", "bloom", "gpt3-finnish"], plain(&[BLOOM])),
    (&["viking"], plain(&[BLOOM, DIGIT])),
    (&["bailingmoe", "bailingmoe2", "llada-moe"], plain(&[BAILING])),
    (&["seed-coder"], plain(&[SEED_CODER])),
    (&["ufakzeka"], plain(&[UFAKZEKA])),
    (&["minicpm5"], Split { whole_words: true, ..plain(&[THREE_DIGITS, MINICPM5]) }),
];

const fn plain(patterns: &'static [&'static str]) -> Split {
    Split { patterns, whole_words: false, begins: false, composes: false }
}

const LINE: &str = r"[\r\n]";
const DIGIT: &str = r"\p{N}";
const THREE_DIGITS: &str = r"\p{N}{1,3}";
const EAST_ASIAN: &str = "[一-龥ࠀ-一가-퟿]+";
const HAN_AND_KANA: &str = "[一-龥぀-ゟ゠-ヿ]+";
/// GPT-2's.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
/// Llama 3's.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Qwen3.5's, in which marks belong to letters.
const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// That of GPT-4o and Phi-4-mini, which splits words at capitals.
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Mistral's since Nemo.
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// The letters that DeepSeek's first models take for such.
const DEEPSEEK_LETTERS: &str = r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝ\x{1F5F}-\x{1F7D}ᾀ-ᾴᾶ-ᾼ\x{1FBE}ῂ-ῄῆ-ῌ\x{1FD0}-\x{1FD3}\x{1FD6}-\x{1FDB}ῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\x{2126}ℨ\x{212A}-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+";
/// DeepSeek's since V3.
const DEEPSEEK3: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##;
/// BLOOM's.
const BLOOM: &str = r" ?[^(\s|.,!?…。，、।۔،)]+";
/// Ling's.
const BAILING: &str =
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+";
const SEED_CODER: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+";
const UFAKZEKA: &str = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const MINICPM5: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Names of all of them, for error messages and tests.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    SPLITS.iter().flat_map(|(names, _)| names.iter().copied())
}

impl Split {
    /// The pre-tokenizer of this name.
    pub(super) fn named(name: &str) -> Option<Self> {
        SPLITS.iter().find(|(names, _)| names.contains(&name)).map(|(_, split)| *split)
    }

    /// True where llama.cpp does not treat combining marks as the model's own tokenizer does.
    #[cfg(test)]
    pub(super) fn has_own_marks(self) -> bool {
        self.composes || self.patterns.iter().any(|pattern| [GPT4O, TEKKEN].contains(pattern))
    }

    /// The section `pre_tokenizer` of `tokenizer.json`.
    pub(super) fn written(self) -> Value {
        let split = |pattern: &&str| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
        let bytes =
            json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
        let steps: Vec<Value> = self.patterns.iter().map(split).chain([bytes]).collect();
        json!({"type": "Sequence", "pretokenizers": steps})
    }
}
