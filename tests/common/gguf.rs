//! GGUF files with other tensors and metadata than those of a fixture.

use std::collections::HashMap;
use std::fs::File;
use std::path::Path;

use candle_core::Device;
use candle_core::quantized::QTensor;
use candle_core::quantized::gguf_file::{self, Content, Value};

/// Writes a changed copy of a file.
pub(crate) fn rewritten(
    from: &Path,
    to: &Path,
    change: impl FnOnce(&mut HashMap<String, QTensor>, &mut HashMap<String, Value>),
) {
    let mut reader = File::open(from).unwrap();
    let content = Content::read(&mut reader).unwrap();
    let read = |name: &String| (name.clone(), content.tensor(&mut reader, name, &Device::Cpu).unwrap());
    let mut tensors: HashMap<String, QTensor> = content.tensor_infos.keys().map(read).collect();
    let mut metadata = content.metadata.clone();
    change(&mut tensors, &mut metadata);
    let metadata: Vec<(&str, &Value)> = metadata.iter().map(|(key, value)| (key.as_str(), value)).collect();
    let tensors: Vec<(&str, &QTensor)> =
        tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    gguf_file::write(&mut File::create(to).unwrap(), &metadata, &tensors).unwrap();
}
