//! Requests and model folders that vision models refuse, each with what is at fault.

use super::*;

#[test]
fn hostile_configurations_are_refused_with_the_setting_at_fault() {
    let huge = serde_json::json!(1u64 << 40);
    let numbers =
        [serde_json::json!(0), huge, serde_json::json!(-1), serde_json::json!("many"), serde_json::json!(7)];
    let settings: [(&str, &[&str]); 14] = [
        (
            "blip",
            &[
                "vision_config/hidden_size",
                "vision_config/patch_size",
                "vision_config/num_attention_heads",
                "vision_config/image_size",
                "text_config/hidden_size",
                "text_config/num_attention_heads",
                "text_config/vocab_size",
                "text_config/max_position_embeddings",
                "text_config/num_hidden_layers",
            ],
        ),
        (
            "llava",
            &[
                "vision_config/hidden_size",
                "vision_config/num_attention_heads",
                "vision_config/image_size",
                "text_config/hidden_size",
                "text_config/num_key_value_heads",
                "text_config/vocab_size",
            ],
        ),
        ("llava_next", &["image_grid_pinpoints", "vision_config/image_size"]),
        (
            "llava_onevision",
            &[
                "image_grid_pinpoints",
                "vision_aspect_ratio",
                "vision_config/image_size",
                "vision_config/hidden_size",
            ],
        ),
        (
            "pixtral",
            &[
                "vision_config/hidden_size",
                "vision_config/num_attention_heads",
                "vision_config/head_dim",
                "vision_config/patch_size",
                "text_config/hidden_size",
                "text_config/vocab_size",
            ],
        ),
        ("mistral3", &["spatial_merge_size", "vision_config/patch_size", "text_config/num_key_value_heads"]),
        (
            "qwen2_vl",
            &[
                "vision_config/embed_dim",
                "vision_config/hidden_size",
                "vision_config/mlp_ratio",
                "vision_config/num_heads",
                "vision_config/in_chans",
            ],
        ),
        (
            "gemma3",
            &[
                "mm_tokens_per_image",
                "vision_config/image_size",
                "vision_config/hidden_size",
                "text_config/hidden_size",
                "text_config/num_key_value_heads",
            ],
        ),
        (
            "qwen2_5_vl",
            &[
                "hidden_size",
                "num_attention_heads",
                "vision_config/num_heads",
                "vision_config/patch_size",
                "vision_config/spatial_patch_size",
                "vision_config/in_chans",
                "vision_config/window_size",
                "vision_config/out_hidden_size",
                "vision_config/fullatt_block_indexes",
            ],
        ),
        (
            "blip2",
            &[
                "num_query_tokens",
                "vision_config/hidden_size",
                "vision_config/qkv_bias",
                "qformer_config/hidden_size",
                "qformer_config/encoder_hidden_size",
                "qformer_config/cross_attention_frequency",
                "text_config/hidden_size",
                "text_config/word_embed_proj_dim",
                "text_config/max_position_embeddings",
                "text_config/do_layer_norm_before",
            ],
        ),
        (
            "blip2_t5",
            &[
                "text_config/vocab_size",
                "text_config/d_model",
                "text_config/d_kv",
                "text_config/d_ff",
                "text_config/num_layers",
                "text_config/num_decoder_layers",
                "text_config/num_heads",
                "text_config/relative_attention_num_buckets",
            ],
        ),
        (
            "idefics3",
            &[
                "scale_factor",
                "vision_config/image_size",
                "vision_config/hidden_size",
                "text_config/hidden_size",
            ],
        ),
        (
            "qwen3_vl",
            &[
                "vision_config/patch_size",
                "vision_config/spatial_merge_size",
                "vision_config/num_heads",
                "vision_config/num_position_embeddings",
                "vision_config/out_hidden_size",
                "vision_config/temporal_patch_size",
                "vision_config/deepstack_visual_indexes",
                "vision_config/hidden_size",
                "text_config/head_dim",
                "text_config/num_attention_heads",
            ],
        ),
        (
            "moondream",
            &[
                "config/vision/enc_patch_size",
                "config/vision/crop_size",
                "config/vision/enc_dim",
                "config/vision/enc_n_heads",
                "config/vision/proj_out_dim",
                "config/text/dim",
                "config/text/n_heads",
                "config/text/vocab_size",
            ],
        ),
    ];
    let mut refused = 0;
    for (family, names) in settings {
        for name in names {
            for number in &numbers {
                let error = changed(family, "config.json", |config| {
                    let pointer = format!("/{name}");
                    *config.pointer_mut(&pointer).unwrap_or_else(|| panic!("{family} has no {name}")) =
                        number.clone();
                });
                assert!(!error.to_string().is_empty());
                refused += 1;
            }
        }
    }
    println!("{refused} configurations refused");
    let error = changed("llava", "config.json", |config| config["image_token_index"] = 7_000_000.into());
    assert!(error.to_string().contains("vocab_size"), "{error}");
    let error =
        changed("llava", "config.json", |config| config["vision_config"]["model_type"] = "eva".into());
    assert!(matches!(error, Error::UnsupportedSetting { .. }), "{error}");
    // The first row of Pixtral's tower is a patch, and several layers have no projector.
    for (family, setting, value) in [
        ("pixtral", "vision_feature_select_strategy", "default".into()),
        ("pixtral", "vision_feature_layer", serde_json::json!([-1, -2])),
        ("mistral3", "vision_feature_layer", serde_json::json!([-1, -2])),
    ] {
        let error = changed(family, "config.json", |config| config[setting] = value);
        assert!(error.to_string().contains(setting), "{error}");
    }
    for (family, file, setting, value) in [
        ("pixtral", "processor_config.json", "patch_size", serde_json::json!(16)),
        ("pixtral", "processor_config.json", "image_break_token", "[BREAK]".into()),
        ("pixtral", "processor_config.json", "image_token", "[IMG_END]".into()),
        ("mistral3", "processor_config.json", "spatial_merge_size", serde_json::json!(4)),
        ("gemma3", "processor_config.json", "image_seq_length", serde_json::json!(64)),
    ] {
        let named =
            value.as_str().map_or(setting, |value| if setting == "image_token" { "written" } else { value });
        let named = named.to_owned();
        let error = changed(family, file, |config| config[setting] = value);
        assert!(error.to_string().contains(&named), "{family}, {setting}: {error}");
    }
    for family in ["mistral3", "gemma3"] {
        let error = changed(family, "config.json", |config| {
            config["vision_config"]["model_type"] = "clip_vision_model".into();
        });
        assert!(matches!(error, Error::UnsupportedSetting { .. }), "{error}");
    }
    // Tiles are put together of all patches, and of nothing else.
    for (family, strategy) in [("llava_next", "full"), ("llava_onevision", "default")] {
        let error = changed(family, "config.json", |config| {
            config["vision_feature_select_strategy"] = strategy.into();
        });
        assert!(error.to_string().contains("vision_feature_select_strategy"), "{error}");
    }
    let error =
        changed("blip2", "config.json", |config| config["text_config"]["model_type"] = "bloom".into());
    assert!(matches!(error, Error::UnsupportedSetting { .. }), "{error}");
    // Tables of biases of a distance and a head each, which a small file could make larger than any memory.
    for (heads, distance) in [(16_384, 1 << 20), (256, 1 << 17)] {
        let error = changed("blip2_t5", "config.json", |config| {
            let text = &mut config["text_config"];
            text["num_heads"] = heads.into();
            text["relative_attention_max_distance"] = distance.into();
        });
        assert!(error.to_string().contains("biases"), "{error}");
    }
    let error = changed("blip2_t5", "config.json", |config| {
        config["text_config"]["tie_word_embeddings"] = true.into()
    });
    assert!(error.to_string().contains("tie_word_embeddings"), "{error}");
    let error = changed("llava", "chat_template.json", |file| file["chat_template"] = "{% for".into());
    assert!(matches!(error, Error::InvalidConfig { .. }), "{error}");
    let error = changed("blip", "config.json", |config| {
        config["architectures"] = serde_json::json!(["BlipForQuestionAnswering"]);
    });
    assert!(error.to_string().contains("BlipForQuestionAnswering"), "{error}");
}

#[test]
fn a_question_cannot_bring_a_placeholder_of_its_own_and_an_answer_ends_with_the_context() {
    let source = || Source::directory(fixture("llava"));
    let model = VisionModel::load(source()).unwrap();
    let request = request(&cases("llava")[0]).with_question("What is <image>?");
    let joined = LoadOptions::default().with_split_special_tokens(false);
    let joined = VisionModel::load_with(source(), joined).unwrap();
    assert!(matches!(joined.describe(&request), Err(Error::InvalidInput(_))));
    // It is the text of a placeholder otherwise.
    assert!(model.describe(&request).is_ok());
    let request = request.with_question("word ".repeat(150)).with_max_tokens(1_000_000);
    let completion = model.describe(&request).unwrap();
    assert!(completion.usage.prompt_tokens + completion.usage.completion_tokens <= model.context());
}

#[test]
fn no_question_writes_a_special_token_unless_that_is_asked_for() {
    for family in ["llava", "qwen3_vl", "moondream", "blip"] {
        let source = || Source::directory(fixture(family));
        let split = VisionModel::load(source()).unwrap();
        let joined = LoadOptions::default().with_split_special_tokens(false);
        let joined = VisionModel::load_with(source(), joined).unwrap();
        let case = request(&cases(family)[0]);
        let file = std::fs::read(fixture(family).join("tokenizer.json")).unwrap();
        let file: serde_json::Value = serde_json::from_slice(&file).unwrap();
        for token in file["added_tokens"].as_array().unwrap() {
            let (id, name) = (token["id"].as_u64().unwrap() as u32, token["content"].as_str().unwrap());
            let count = |model: &VisionModel, question: String| {
                let examined = model.examine(&case.clone().with_question(question));
                examined.map(|examined| examined.prompt.iter().filter(|token| **token == id).count())
            };
            // What no vocabulary knows is this one.
            let is_unknown = name.to_lowercase().contains("unk");
            let own = count(&split, "What?".to_owned()).unwrap();
            let forged = format!("What? {name} {name}");
            assert!(is_unknown || count(&split, forged.clone()).unwrap() == own, "{family}: {name}");
            // The image's own cannot even be asked about.
            assert!(count(&joined, forged).map_or(true, |count| count > own), "{family}: {name}");
        }
    }
}

#[test]
fn an_unsupported_architecture_is_named_with_what_is_supported() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), r#"{"model_type": "kosmos-2"}"#).unwrap();
    let error = VisionModel::load(Source::directory(folder.path())).err().unwrap();
    assert!(matches!(error, Error::UnsupportedArchitecture { .. }), "{error}");
    let message = error.to_string();
    assert!(message.contains("kosmos-2") && message.contains("blip"), "{message}");
}

/// Of transformers' Gemma3Processor, whose own settings go before those of the file.
#[test]
fn a_long_picture_is_not_cut_up_whatever_the_file_says() {
    let case = cases("gemma3").into_iter().find(|case| case.image == "wide.png").unwrap();
    let cutting = load_changed("gemma3", "preprocessor_config.json", |config| {
        config["do_pan_and_scan"] = true.into();
        config["pan_and_scan_min_crop_size"] = 16.into();
        config["pan_and_scan_max_num_crops"] = 4.into();
        config["pan_and_scan_min_ratio_to_activate"] = 1.2.into();
    });
    let plain = VisionModel::load(Source::directory(fixture("gemma3"))).unwrap();
    let [cutting, plain] = [cutting.unwrap(), plain].map(|model| model.examine(&request(&case)).unwrap());
    assert_eq!(cutting, plain);
    assert_eq!(cutting.prompt, case.prompt);
}
