//! Classes of tokenizers by what they make of a vocabulary without a `tokenizer.json`. Another class than these reads the same
//! file in another way, so that it is refused by its name; how a class that is built here splits texts is left to others.

/// Classes that read `vocab.txt` as BERT does, or MPNet.
const OF_WORD_PIECES: [&str; 12] = [
    "BertTokenizer",
    "ConvBertTokenizer",
    "DPRContextEncoderTokenizer",
    "DPRQuestionEncoderTokenizer",
    "DPRReaderTokenizer",
    "DistilBertTokenizer",
    "ElectraTokenizer",
    "LayoutLMTokenizer",
    "LxmertTokenizer",
    "MPNetTokenizer",
    "MobileBertTokenizer",
    "SqueezeBertTokenizer",
];

/// Classes that make of a SentencePiece model what they alone do, and the kinds of models that have them unless they name
/// a class.
const OF_OWN_PIECES: [(&str, &[&str]); 35] = [
    ("AlbertTokenizer", &["albert", "yoso"]),
    ("BarthezTokenizer", &["barthez"]),
    ("BartphoTokenizer", &["bartpho"]),
    ("BertGenerationTokenizer", &["bert-generation"]),
    ("BertJapaneseTokenizer", &["bert-japanese"]),
    ("BigBirdTokenizer", &["big_bird"]),
    ("CamembertTokenizer", &["camembert"]),
    ("CodeLlamaTokenizer", &["code_llama"]),
    ("CpmTokenizer", &["cpm"]),
    ("DebertaV2Tokenizer", &["deberta-v2"]),
    ("FNetTokenizer", &["fnet"]),
    ("GPTSw3Tokenizer", &["gpt-sw3"]),
    (
        "GemmaTokenizer",
        &[
            "gemma",
            "gemma2",
            "gemma3",
            "gemma3_text",
            "gemma3n",
            "gemma3n_text",
            "recurrent_gemma",
            "shieldgemma2",
            "t5gemma",
        ],
    ),
    ("LasrTokenizer", &["lasr_ctc", "lasr_encoder"]),
    ("LayoutXLMTokenizer", &["layoutxlm"]),
    ("M2M100Tokenizer", &["m2m_100"]),
    ("MBart50Tokenizer", &["mbart50"]),
    ("MBartTokenizer", &["mbart"]),
    ("MLukeTokenizer", &["mluke"]),
    ("MarianTokenizer", &["marian"]),
    ("NllbTokenizer", &["nllb", "nllb-moe"]),
    ("PLBartTokenizer", &["plbart"]),
    ("PegasusTokenizer", &["pegasus"]),
    ("ReformerTokenizer", &["reformer"]),
    ("RemBertTokenizer", &["rembert"]),
    ("SeamlessM4TTokenizer", &["seamless_m4t", "seamless_m4t_v2"]),
    ("Siglip2Tokenizer", &["siglip2"]),
    ("SiglipTokenizer", &["siglip"]),
    ("Speech2TextTokenizer", &["speech_to_text"]),
    ("SpeechT5Tokenizer", &["speecht5"]),
    ("Tipsv2Tokenizer", &["tipsv2"]),
    ("UdopTokenizer", &["udop"]),
    ("VideoPrismTokenizer", &["videoprism"]),
    ("XGLMTokenizer", &["xglm"]),
    ("XLNetTokenizer", &["xlnet"]),
];

/// True for a class that reads `vocab.txt` as word pieces; one that is not named does.
pub(super) fn has_word_pieces(class: Option<&str>) -> bool {
    class.is_none_or(|class| OF_WORD_PIECES.contains(&plain(class)))
}

/// The class of its own that would read a SentencePiece model, by what is named and the kind of the model.
pub(super) fn own_pieces<'a>(class: Option<&'a str>, kind: &str) -> Option<&'a str> {
    let mut all = OF_OWN_PIECES.iter();
    match class {
        Some(class) => all.any(|(own, _)| *own == plain(class)).then_some(class),
        None => all.find(|(_, kinds)| kinds.contains(&kind)).map(|(own, _)| *own),
    }
}

/// The name of a class without the mark of its fast form.
fn plain(class: &str) -> &str {
    class.strip_suffix("Fast").unwrap_or(class)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_known_by_their_names_and_by_kinds_of_models() {
        assert!(has_word_pieces(None) && has_word_pieces(Some("BertTokenizerFast")));
        for other in ["BertJapaneseTokenizer", "PhobertTokenizer", "BertweetTokenizer", "RobertaTokenizer"] {
            assert!(!has_word_pieces(Some(other)), "{other}");
        }
        assert_eq!(own_pieces(Some("GemmaTokenizerFast"), "llama"), Some("GemmaTokenizerFast"));
        assert_eq!(own_pieces(None, "camembert"), Some("CamembertTokenizer"));
        assert_eq!(own_pieces(Some("LlamaTokenizer"), "gemma"), None);
        assert_eq!(own_pieces(None, "llama"), None);
    }
}
