//! Settings of `config.json` that do not count in a family, and those that make no sense.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::Path;

use serde_json::{Value, json};

use super::tests::{by_kind, find, folder};
use crate::error::Error;
use crate::kernels::Activation;
use crate::source::read_json;

/// As transformers reads them.
#[test]
fn settings_of_other_families_do_not_count() {
    let file = Path::new("config.json");
    let with = |family: &str, change: Value| {
        let mut config: Value = read_json(&folder(family).join("config.json")).unwrap();
        config.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        find(file, &config)
    };
    for family in ["llama", "qwen2", "smollm3", "gemma2"] {
        let error =
            with(family, json!({"rope_parameters": null, "partial_rotary_factor": 0.5})).err().unwrap();
        assert!(error.to_string().contains("partial_rotary_factor"), "{family}: {error}");
    }
    let ropes = |kind: &str| {
        let scaling =
            json!({"type": kind, "short_factor": [1.0, 1.5, 2.0, 2.5], "long_factor": [2.0, 3.0, 4.0, 5.0]});
        with("phi3", json!({"rope_parameters": null, "partial_rotary_factor": 1.0, "head_dim": 8, "rope_scaling": scaling}))
            .map(|decoder| format!("{:?}", decoder.transformer.ropes))
    };
    assert_eq!(ropes("yarn").unwrap(), ropes("longrope").unwrap());
    let activation = |family: &str| {
        let changed = with(family, json!({"hidden_activation": "relu", "hidden_act": "silu"})).unwrap();
        changed.transformer.activation
    };
    assert_eq!((activation("llama"), activation("gemma2")), (Activation::Silu, Activation::Relu));
}

#[test]
fn settings_that_make_no_sense_are_errors() {
    let changes = [
        json!({"num_attention_heads": 0}),
        json!({"num_key_value_heads": 0}),
        json!({"num_key_value_heads": 3}),
        json!({"hidden_size": 0}),
        json!({"hidden_size": 1u64 << 60}),
        json!({"head_dim": 0}),
        json!({"head_dim": u64::MAX}),
        json!({"num_hidden_layers": 1u64 << 40}),
        json!({"vocab_size": 0}),
        json!({"max_position_embeddings": 0}),
        json!({"max_position_embeddings": -1}),
        json!({"rms_norm_eps": "x"}),
        json!({"rope_parameters": {"rope_theta": 0.0}}),
        json!({"rope_parameters": {"rope_theta": 1e4, "rope_type": "dynamic"}}),
        json!({"rope_parameters": {"rope_theta": 1e4, "rope_type": "sideways", "factor": 2.0}}),
        json!({"rope_parameters": {"rope_theta": 1e4, "rope_type": "proportional", "factor": 0.0}}),
        json!({"rope_parameters": {"rope_theta": 1e4, "rope_type": "linear"}}),
        json!({"rope_parameters": {"rope_theta": 1e4, "rope_type": "yarn", "factor": 0.0}}),
        json!({"rope_parameters": {"rope_theta": 1e4, "rope_type": "longrope", "short_factor": [1.0]}}),
        json!({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 1e300}}),
        json!({"rope_parameters": 7}),
        json!({"layer_types": ["full_attention"]}),
        json!({"layer_types": ["linear_attention", "full_attention", "full_attention"]}),
        json!({"sliding_window": 0, "layer_types": ["sliding_attention", "sliding_attention", "sliding_attention", "sliding_attention", "sliding_attention", "sliding_attention", "sliding_attention"]}),
        json!({"hidden_act": "nothing"}),
        json!({"num_experts": 0}),
        json!({"num_experts_per_tok": 9}),
        json!({"num_local_experts": 0}),
        json!({"swiglu_limit": 0.0}),
        json!({"swiglu_alpha": 1.0}),
        json!({"qk_layernorm": true}),
        json!({"rope_parameters": {"rope_type": "proportional", "partial_rotary_factor": 0.5}, "qk_layernorm": false}),
        json!({"query_pre_attn_scalar": 0.0}),
        json!({"attn_logit_softcapping": 0.0}),
        json!({"text_config": null, "model_type": "gemma3", "architectures": []}),
    ];
    let file = Path::new("config.json");
    let mut refused = vec![0; changes.len()];
    for name in by_kind().0 {
        let config: Value = read_json(&folder(&name).join("config.json")).unwrap();
        for (index, change) in changes.iter().enumerate() {
            let mut config = config.clone();
            config.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
            match find(file, &config) {
                Err(Error::InvalidConfig { .. } | Error::UnsupportedSetting { .. }) => refused[index] += 1,
                Err(other) => panic!("{name}, {change}: {other}"),
                // What is another family's setting does not matter.
                Ok(_) => {}
            }
        }
    }
    let accepted: Vec<_> = changes.iter().zip(refused).filter(|(_, count)| *count == 0).collect();
    assert!(accepted.is_empty(), "{accepted:?}");
}

/// transformers masks the layers of these families by the window alone, or has none.
#[test]
fn layer_types_that_differ_from_what_the_family_does_are_refused() {
    let file = Path::new("config.json");
    for (name, other) in [
        ("llama", "sliding_attention"),
        ("gemma", "sliding_attention"),
        ("phi3", "full_attention"),
        ("qwen3_moe", "full_attention"),
        ("mistral", "full_attention"),
        ("ministral3", "full_attention"),
    ] {
        let mut config: Value = read_json(&folder(name).join("config.json")).unwrap();
        let layers = usize::try_from(config["num_hidden_layers"].as_u64().unwrap()).unwrap();
        let own = if other == "full_attention" { "sliding_attention" } else { "full_attention" };
        for (key, value) in [("sliding_window", json!(8)), ("use_sliding_window", json!(true))] {
            config[key] = value;
        }
        config["layer_types"] = json!(vec![own; layers]);
        assert!(find(file, &config).is_ok(), "{name}");
        config["layer_types"][layers - 1] = json!(other);
        let refused = find(file, &config).err();
        assert!(
            matches!(&refused, Some(Error::UnsupportedSetting { what, .. }) if what == "layer_types"),
            "{name}: {refused:?}"
        );
        config["sliding_window"] = Value::Null;
        assert!(find(file, &config).is_ok(), "{name}");
    }
}
