//! A random model of the shape of Llama 3.2 1B in 16 bits, with a vocabulary of its size, and adapters of it in PEFT's files.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use serde_json::{Value, json};

/// Rows of the vocabulary.
pub(super) const ROWS: usize = 131_072;
/// Rank of an adapter.
pub(super) const RANK: usize = 16;
/// Random numbers that all matrices are cut from.
const POOL: usize = 1 << 24;

/// The sizes of a model.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    pub(super) width: usize,
    pub(super) middle: usize,
    pub(super) layers: usize,
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
}

impl Shape {
    /// Llama 3.2 1B, but for the number of layers.
    pub(super) fn one_billion(layers: usize) -> Self {
        Self { width: 2048, middle: 8192, layers, heads: 32, kv_heads: 8 }
    }

    /// So small that next to nothing but the vocabulary takes time.
    pub(super) fn thin() -> Self {
        Self { width: 64, middle: 64, layers: 1, heads: 2, kv_heads: 2 }
    }

    /// The linear layers of a block: name, and numbers out and in.
    fn linears(self) -> [(&'static str, usize, usize); 7] {
        let Self { width, middle, heads, kv_heads, .. } = self;
        let kv = width / heads * kv_heads;
        [
            ("self_attn.q_proj", width, width),
            ("self_attn.k_proj", kv, width),
            ("self_attn.v_proj", kv, width),
            ("self_attn.o_proj", width, width),
            ("mlp.gate_proj", middle, width),
            ("mlp.up_proj", middle, width),
            ("mlp.down_proj", width, middle),
        ]
    }

    /// Writes a model. It never ends a text by itself. Returns the number of its parameters.
    pub(super) fn write(self, folder: &Path) -> usize {
        let Self { width, layers, heads, kv_heads, middle } = self;
        write_json(folder, "tokenizer.json", &tokenizer());
        write_json(
            folder,
            "config.json",
            &json!({
                "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": ROWS, "hidden_size": width,
                "intermediate_size": middle, "num_hidden_layers": layers, "num_attention_heads": heads,
                "num_key_value_heads": kv_heads, "head_dim": width / heads, "hidden_act": "silu", "rms_norm_eps": 1e-5,
                "max_position_embeddings": 2048, "rope_theta": 500000.0, "tie_word_embeddings": true,
            }),
        );
        let mut random = Random::new(0.02, DType::BF16);
        let ones = || Tensor::ones(width, DType::BF16, &Device::Cpu).unwrap();
        let mut tensors = HashMap::from([
            ("model.embed_tokens.weight".to_owned(), random.matrix(ROWS, width)),
            ("model.norm.weight".to_owned(), ones()),
        ]);
        for layer in 0..layers {
            let name = |part: &str| format!("model.layers.{layer}.{part}.weight");
            for (part, out, inside) in self.linears() {
                tensors.insert(name(part), random.matrix(out, inside));
            }
            for part in ["input_layernorm", "post_attention_layernorm"] {
                tensors.insert(name(part), ones());
            }
        }
        candle_core::safetensors::save(&tensors, folder.join("model.safetensors")).unwrap();
        tensors.values().map(Tensor::elem_count).sum()
    }

    /// Writes an adapter of all linear layers. Returns the number of its parameters.
    pub(super) fn write_adapter(self, folder: &Path) -> usize {
        let targets: Vec<&str> =
            self.linears().iter().filter_map(|(name, ..)| name.rsplit('.').next()).collect();
        write_json(
            folder,
            "adapter_config.json",
            &json!({
                "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": RANK, "lora_dropout": 0.0,
                "bias": "none", "target_modules": targets, "inference_mode": true,
            }),
        );
        let mut random = Random::new(0.02, DType::F32);
        let mut tensors = HashMap::new();
        for layer in 0..self.layers {
            for (part, out, inside) in self.linears() {
                let name = |side| format!("base_model.model.model.layers.{layer}.{part}.lora_{side}.weight");
                tensors.insert(name("A"), random.matrix(RANK, inside));
                tensors.insert(name("B"), random.matrix(out, RANK));
            }
        }
        candle_core::safetensors::save(&tensors, folder.join("adapter_model.safetensors")).unwrap();
        tensors.values().map(Tensor::elem_count).sum()
    }
}

/// Matrices of numbers from one pool, each from a place of its own.
struct Random {
    pool: Tensor,
    next: usize,
}

impl Random {
    fn new(size: f32, kind: DType) -> Self {
        let pool = Tensor::randn(0.0f32, size, POOL, &Device::Cpu).unwrap().to_dtype(kind).unwrap();
        Self { pool, next: 0 }
    }

    fn matrix(&mut self, rows: usize, columns: usize) -> Tensor {
        let (mut missing, mut parts) = (rows * columns, Vec::new());
        while missing > 0 {
            let count = missing.min(POOL - self.next);
            parts.push(self.pool.narrow(0, self.next, count).unwrap());
            missing -= count;
            // An odd step, so that no two rows are alike.
            self.next =
                if self.next + count < POOL { self.next + count } else { (self.next + 4099) % 65_537 };
        }
        Tensor::cat(&parts, 0).unwrap().reshape((rows, columns)).unwrap()
    }
}

fn write_json(folder: &Path, name: &str, value: &Value) {
    std::fs::write(folder.join(name), value.to_string()).unwrap();
}

/// All bytes, the punctuation of JSON, numbers, and words of two to ten letters with a space before them or none.
fn tokenizer() -> Value {
    let mut random = fastrand::Rng::with_seed(3);
    let letters = byte_letters();
    let mut words: Vec<String> = letters.iter().map(char::to_string).collect();
    let marks = ["\":", "\",", "\"},", "{\"", "[{", "}]", "\u{120}\"", "\":\u{120}\"", "\",\u{120}\""];
    words.extend(marks.map(str::to_owned));
    words.extend((10..1000).map(|number: usize| number.to_string()));
    let mut seen: HashSet<String> = words.iter().cloned().collect();
    while words.len() < ROWS {
        let space = if random.bool() { "\u{120}" } else { "" };
        let length = random.usize(2..10);
        let word = format!("{space}{}", (0..length).map(|_| random.lowercase()).collect::<String>());
        if seen.insert(word.clone()) {
            words.push(word);
        }
    }
    let vocabulary: HashMap<String, usize> = words.into_iter().zip(0..).collect();
    json!({
        "version": "1.0", "added_tokens": [], "normalizer": null, "post_processor": null,
        "pre_tokenizer": { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true },
        "decoder": { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true },
        "model": { "type": "BPE", "vocab": vocabulary, "merges": [] },
    })
}

/// The letters that byte-level tokenizers write bytes by.
fn byte_letters() -> Vec<char> {
    let is_own = |byte: &u32| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    let own = (0..256u32).filter(is_own);
    let others = (0..256u32).filter(|byte| !is_own(byte)).zip(256..).map(|(_, letter)| letter);
    own.chain(others).filter_map(char::from_u32).collect()
}
