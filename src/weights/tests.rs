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
