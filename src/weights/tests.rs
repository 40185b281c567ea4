//! Lists of weight files, and the tensors of all of them.

use model_actors::ModelId;

use super::*;

fn weights_of(header: &str) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &[0; 4]].concat()
}

#[test]
fn a_list_of_too_many_weight_files_is_refused_before_any_is_looked_for() {
    let folder = tempfile::tempdir().unwrap();
    let open = |shards: usize| {
        let map: HashMap<String, String> =
            (0..shards).map(|shard| (format!("t{shard}"), format!("{shard}.safetensors"))).collect();
        let index = serde_json::json!({ "weight_map": map }).to_string();
        std::fs::write(folder.path().join("model.safetensors.index.json"), index).unwrap();
        let context = LoadContext::detached(&ModelId::from("many"));
        WeightFiles::open(&Files::directory(folder.path()), "", &context).err().unwrap()
    };
    assert!(matches!(open(MAX_SHARDS), Error::MissingFile { .. }));
    let error = open(MAX_SHARDS + 1);
    assert!(matches!(&error, Error::InvalidConfig { reason, .. } if reason.contains("4096")), "{error}");
}

#[test]
fn tensors_of_all_weight_files_are_counted_together() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("model.safetensors");
    std::fs::write(&file, weights_of(r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#)).unwrap();
    let (dtype, shape) = ("F32".to_owned(), vec![1]);
    let entry = Entry { file: 0, dtype, shape, strides: None, start: 0, bytes: 4 };
    let of = |tensors: usize| WeightFiles {
        entries: (0..tensors).map(|tensor| (tensor.to_string(), entry.clone())).collect(),
        ..WeightFiles::default()
    };
    assert!(of(MAX_TENSORS - 1).add(file.clone()).is_ok());
    assert!(matches!(of(MAX_TENSORS).add(file), Err(Error::CorruptWeights { .. })));
}

/// A folder with these tensors and this configuration.
fn folder_of(header: &str, data: &[u8], config: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let bytes = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat();
    std::fs::write(folder.path().join("model.safetensors"), bytes).unwrap();
    std::fs::write(folder.path().join("config.json"), config).unwrap();
    folder
}

#[test]
fn matrices_of_16_bits_that_are_packed_are_counted_as_they_are() {
    let header = r#"{"a":{"dtype":"BF16","shape":[3,2],"data_offsets":[0,12]},
        "b":{"dtype":"F16","shape":[2],"data_offsets":[12,16]},"c":{"dtype":"F32","shape":[1,2],"data_offsets":[16,24]}}"#;
    let folder = folder_of(header, &[0; 24], "{}");
    let context = LoadContext::detached(&ModelId::from("half"));
    let weights = WeightFiles::open(&Files::directory(folder.path()), "", &context).unwrap();
    assert_eq!(weights.bytes_in_memory(|_| true, |_| false), Bytes(24 + 8 + 8));
    assert_eq!(weights.bytes_in_memory(|_| true, |_| true), Bytes(12 + 8 + 8), "a norm is not packed");
    assert_eq!(weights.bytes_in_memory(|name| name != "a", |_| true), Bytes(16));
}

#[test]
fn eight_bit_floats_are_read_with_their_scales_and_not_without() {
    let context = LoadContext::detached(&ModelId::from("fp8"));
    let read = |scale: &str, config: &str| -> Result<Vec<f32>> {
        let header = format!(
            r#"{{"a.weight":{{"dtype":"F8_E4M3","shape":[2,3],"data_offsets":[0,6]}},"a.{scale}":{{"dtype":"F32","shape":[1,2],"data_offsets":[6,14]}}}}"#
        );
        let scales = [2.0f32, 10.0].map(f32::to_le_bytes).concat();
        let data = [&[0x38, 0x40, 0x30, 0xb8, 0x00, 0x7e], scales.as_slice()].concat();
        let folder = folder_of(&header, &data, config);
        let weights = WeightFiles::open(&Files::directory(folder.path()), "", &context)?;
        let (device, mut values) = (Device::Cpu, Vec::new());
        weights.reader("", &device, &context).append("a.weight", &[2, 3], &mut values)?;
        Ok(values)
    };
    let blocks = r#"{"quantization_config": {"quant_method": "fp8", "weight_block_size": [2, 2]}}"#;
    let right = [2.0, 4.0, 5.0, -2.0, 0.0, 4480.0];
    assert_eq!(read("weight_scale_inv", blocks).unwrap(), right);
    assert_eq!(read("weight_scale", "{}").unwrap(), right);
    assert!(matches!(read("other", blocks), Err(Error::UnsupportedNumbers { .. })));
    let odd = blocks.replace("[2, 2]", "[1, 1]");
    assert!(matches!(read("weight_scale_inv", &odd), Err(Error::ShapeMismatch { .. })));
    let inner = r#"{"text_config": {"quantization_config": {"quant_method": "awq"}}}"#;
    let error = read("weight_scale", inner).unwrap_err().to_string();
    assert!(error.contains("awq") && error.contains("config.json"), "{error}");
}

#[test]
fn quantised_weights_are_refused_by_their_tensors_and_the_files_beside_them() {
    let context = LoadContext::detached(&ModelId::from("quantised"));
    let open = |tensor: &str, beside: Option<&str>| {
        let header = format!(r#"{{"{tensor}":{{"dtype":"I32","shape":[1],"data_offsets":[0,4]}}}}"#);
        let folder = folder_of(&header, &[0; 4], "{}");
        if let Some(name) = beside {
            std::fs::write(folder.path().join(name), "{}").unwrap();
        }
        WeightFiles::open(&Files::directory(folder.path()), "", &context).map(drop)
    };
    for (tensor, beside, method) in [
        ("a.qweight", None, "gptq or awq"),
        ("a.qweight", Some("quantize_config.json"), "gptq,"),
        ("a.qweight", Some("quant_config.json"), "awq,"),
        ("a.weight_scale_2", Some("hf_quant_config.json"), "modelopt,"),
        ("a.SCB", None, "bitsandbytes"),
        ("a.weight.absmax", None, "bitsandbytes"),
        ("a.weight_packed", None, "compressed-tensors"),
    ] {
        let error = open(tensor, beside).unwrap_err();
        let Error::UnsupportedSetting { found, file, .. } = &error else { panic!("{error}") };
        assert!(found.contains(method) && found.contains(tensor), "{error}");
        assert!(beside.is_none_or(|name| file.ends_with(name)), "{error}");
    }
    // What was left behind beside other weights counts for nothing.
    assert_eq!(open("a.weight", Some("quantize_config.json")), Ok(()));
}

#[test]
fn a_pointer_in_place_of_weights_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n";
    std::fs::write(folder.path().join("model.safetensors"), pointer).unwrap();
    let context = LoadContext::detached(&ModelId::from("pointer"));
    let error = WeightFiles::open(&Files::directory(folder.path()), "", &context).err().unwrap();
    assert!(matches!(&error, Error::Placeholder { .. }), "{error}");
    assert!(error.to_string().contains("Git LFS") && error.to_string().contains("model.safetensors"));
}
