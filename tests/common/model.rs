//! Tiny random BERT in a folder of its own, intact or damaged on purpose.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};
use tempfile::TempDir;

/// A tensor as a safetensors file holds it: type, shape and bytes.
pub(crate) struct Entry {
    pub(crate) dtype: &'static str,
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: Vec<u8>,
}

impl Entry {
    /// 32-bit numbers.
    pub(crate) fn new(shape: &[usize], values: impl IntoIterator<Item = f32>) -> Self {
        let bytes = values.into_iter().flat_map(f32::to_le_bytes).collect();
        Self { dtype: "F32", shape: shape.to_vec(), bytes }
    }
}

/// The files of a model, before they are written.
pub(crate) struct TinyModel {
    pub(crate) config: Value,
    pub(crate) tensors: BTreeMap<String, Entry>,
}

const WIDTH: usize = 8;
const MIDDLE: usize = 16;
const WORDS: [&str; 8] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "cat", "dog", "sleeps", "runs"];

impl TinyModel {
    /// One layer of two heads, with numbers that look random and are always the same.
    pub(crate) fn new() -> Self {
        let config = json!({
            "architectures": ["BertModel"], "model_type": "bert", "vocab_size": WORDS.len(), "hidden_size": WIDTH,
            "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": MIDDLE,
            "max_position_embeddings": 16, "type_vocab_size": 2, "layer_norm_eps": 1e-12, "hidden_act": "gelu"
        });
        let mut model = Self { config, tensors: BTreeMap::new() };
        model.add("embeddings.word_embeddings.weight", &[WORDS.len(), WIDTH]);
        model.add("embeddings.position_embeddings.weight", &[16, WIDTH]);
        model.add("embeddings.token_type_embeddings.weight", &[2, WIDTH]);
        model.add_norm("embeddings.LayerNorm");
        for part in ["self.query", "self.key", "self.value", "output.dense"] {
            model.add_linear(&format!("encoder.layer.0.attention.{part}"), WIDTH, WIDTH);
        }
        model.add_norm("encoder.layer.0.attention.output.LayerNorm");
        model.add_linear("encoder.layer.0.intermediate.dense", MIDDLE, WIDTH);
        model.add_linear("encoder.layer.0.output.dense", WIDTH, MIDDLE);
        model.add_norm("encoder.layer.0.output.LayerNorm");
        model
    }

    fn add(&mut self, name: &str, shape: &[usize]) {
        let seed = self.tensors.len() as f32;
        let values = (0..shape.iter().product()).map(|index| (index as f32 * 0.7 + seed).sin() * 0.5);
        self.tensors.insert(name.to_owned(), Entry::new(shape, values));
    }

    fn add_linear(&mut self, name: &str, outside: usize, inside: usize) {
        self.add(&format!("{name}.weight"), &[outside, inside]);
        self.add(&format!("{name}.bias"), &[outside]);
    }

    fn add_norm(&mut self, name: &str) {
        self.add(&format!("{name}.weight"), &[WIDTH]);
        self.add(&format!("{name}.bias"), &[WIDTH]);
    }

    /// The weights as one safetensors file.
    pub(crate) fn safetensors(&self) -> Vec<u8> {
        let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
        for (name, entry) in &self.tensors {
            let begin = data.len();
            data.extend_from_slice(&entry.bytes);
            let offsets = [begin, data.len()];
            let value = json!({"dtype": entry.dtype, "shape": entry.shape, "data_offsets": offsets});
            header.insert(name.clone(), value);
        }
        let header = Value::Object(header).to_string();
        [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &data].concat()
    }

    /// All files, by name.
    pub(crate) fn files(&self) -> Vec<(&'static str, Vec<u8>)> {
        let modules = json!([
            {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
            {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
            {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"}
        ]);
        let pooling = json!({"word_embedding_dimension": WIDTH, "pooling_mode_mean_tokens": true});
        vec![
            ("config.json", self.config.to_string().into_bytes()),
            ("modules.json", modules.to_string().into_bytes()),
            ("1_Pooling/config.json", pooling.to_string().into_bytes()),
            ("sentence_bert_config.json", json!({"max_seq_length": 16}).to_string().into_bytes()),
            ("tokenizer.json", tokenizer().to_string().into_bytes()),
            ("model.safetensors", self.safetensors()),
        ]
    }

    /// Writes all files to a folder that is gone when the result is dropped.
    pub(crate) fn write(&self) -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, content) in self.files() {
            write(folder.path(), name, &content);
        }
        folder
    }
}

/// Writes one file of a model.
pub(crate) fn write(folder: &Path, name: &str, content: &[u8]) {
    let path = folder.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, content).unwrap();
}

fn tokenizer() -> Value {
    let vocabulary: serde_json::Map<String, Value> =
        WORDS.iter().enumerate().map(|(index, word)| ((*word).to_owned(), json!(index))).collect();
    let special = |name: &str| json!({"SpecialToken": {"id": name, "type_id": 0}});
    let ids = |name: &str, id: usize| json!({"id": name, "ids": [id], "tokens": [name]});
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "Whitespace"}, "decoder": null,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [special("[CLS]"), {"Sequence": {"id": "A", "type_id": 0}}, special("[SEP]")],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"[CLS]": ids("[CLS]", 2), "[SEP]": ids("[SEP]", 3)}
        },
        "model": {
            "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": vocabulary
        }
    })
}
