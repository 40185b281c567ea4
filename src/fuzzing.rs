//! Entry points of the fuzz targets in `fuzz/`: everything that reads what others wrote. Each takes any bytes
//! and returns; a panic, too much memory or too much time is a finding. Nothing here is part of the public
//! interface.
#![allow(missing_docs, reason = "for the fuzz targets alone")]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::missing_panics_doc,
    reason = "a target fails by panicking"
)]

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use candle_core::Device;
use ipnet::IpNet;
use model_actors::{Bytes, LoadContext, Message, ModelId};
use reqwest::Url;

use crate::generation::{ChatTemplate, Conversation, SpecialTokens};
use crate::gguf::GgufFile;
use crate::image_input::{self, address, base64};
use crate::limits::ImageLimits;
use crate::source::Files;
use crate::weights::WeightFiles;

mod hub;
mod tokenizer;
mod config;

pub use config::config;
pub use hub::hub;
pub use tokenizer::tokenizer;

/// Small enough that a run spends its time on the formats and not on large pictures.
fn limits() -> ImageLimits {
    ImageLimits::default().with_pixels(1 << 20).with_encoded(Bytes::mib(1)).with_decoder(Bytes::mib(64))
}

fn context() -> LoadContext {
    LoadContext::detached(&ModelId::from("fuzzed"))
}

/// A folder of this process, under the one for temporary files.
fn folder(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("candle-actors-fuzz-{}-{name}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// An encoded image.
pub fn image(bytes: &[u8]) {
    if let Ok(picture) = image_input::decode(bytes, &limits()) {
        assert_eq!(picture.rgb.len(), picture.width * picture.height * 3);
        assert!(picture.width * picture.height <= 1 << 20);
    }
}

/// Base64, also behind `data:`. What is taken and written again is taken again.
pub fn base64(text: &str) {
    use ::base64::Engine as _;
    if let Ok(bytes) = base64::decode(text, &limits()) {
        assert!(bytes.len() as u64 <= limits().encoded.0);
        let again = ::base64::prelude::BASE64_STANDARD.encode(&bytes);
        assert_eq!(base64::decode(&again, &limits()).unwrap(), bytes);
    }
}

/// An address, and a redirect from it, separated by a line break: what passes is http or https, and leads to
/// no number that is not public. What does not pass is not shown.
pub fn address(text: &str) {
    let (text, location) = text.split_once('\n').unwrap_or((text, "/"));
    let Ok(url) = address::parse(text, &[]) else { return };
    check_address(&url);
    if let Ok(url) = address::redirect(&url, location, &[]) {
        check_address(&url);
    }
}

fn check_address(url: &Url) {
    assert!(matches!(url.scheme(), "http" | "https"), "{url}");
    let host = url.host_str().unwrap();
    assert!(!host.is_empty());
    // As the client finds out whether to look a host up.
    let Ok(number) = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>() else { return };
    for network in
        ["127.0.0.0/8", "10.0.0.0/8", "169.254.0.0/16", "192.168.0.0/16", "::1/128", "fe80::/10", "fc00::/7"]
    {
        assert!(!network.parse::<IpNet>().unwrap().contains(&number), "{url}");
    }
    assert!(!number.is_loopback() && !number.is_multicast() && !number.is_unspecified(), "{url}");
}

/// A file of weights: its header, and then every tensor that it has.
pub fn safetensors(bytes: &[u8]) {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    weights(FOLDER.get_or_init(|| folder("weights")), "model.safetensors", bytes);
}

/// A file of PyTorch's own, likewise.
pub fn pickle(bytes: &[u8]) {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    weights(FOLDER.get_or_init(|| folder("pickle")), "pytorch_model.bin", bytes);
}

fn weights(folder: &Path, name: &str, bytes: &[u8]) {
    std::fs::write(folder.join(name), bytes).unwrap();
    let files = Files::directory(folder);
    let Ok(weights) = WeightFiles::open(&files, "", &context()) else { return };
    assert!(
        weights.bytes_on_disk(|_| true).0 as usize
            <= bytes.len().saturating_mul(weights.shapes().len().max(1))
    );
    let context = context();
    let reader = weights.reader("", &Device::Cpu, &context);
    for (name, shape) in weights.shapes().into_iter().take(64) {
        if let Ok(tensor) = reader.tensor(&name, &shape) {
            assert_eq!(tensor.dims(), shape);
        }
    }
}

/// A GGUF file: its header, its tokenizer and every tensor; then the text model that it may be.
pub fn gguf(bytes: &[u8]) {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| folder("gguf"));
    let path = folder.join("model.gguf");
    std::fs::write(&path, bytes).unwrap();
    let Ok(file) = GgufFile::open(&path) else { return };
    drop(file.tokenizer());
    let context = context();
    for (name, tensor) in file.header().tensors().take(64) {
        if let Ok(stored) = file.read(name, &tensor.shape, &context) {
            assert!(stored.bytes.len() <= bytes.len());
        }
        if let Ok(numbers) = file.numbers(name, &tensor.shape, &context) {
            assert_eq!(numbers.len(), tensor.shape.iter().product::<usize>());
        }
    }
    config::load::<crate::models::text_to_text::TextGenerationModel>(folder);
}

/// A chat template, run on a conversation.
pub fn chat_template(text: &str) {
    let tokens = SpecialTokens {
        bos: Some("<s>".to_owned()),
        eos: Some("</s>".to_owned()),
        ..SpecialTokens::default()
    };
    let Ok(template) = ChatTemplate::new(text, tokens, "chat_template.jinja".as_ref()) else { return };
    let conversations = [
        vec![Message::user("Hello.")],
        vec![
            Message::system("Be brief."),
            Message::user("{{ 1 }}"),
            Message::assistant("1"),
            Message::user("\u{1F408}"),
        ],
    ];
    for conversation in conversations {
        if let Ok(prompt) = template.render(Conversation::of(&conversation)) {
            assert!(prompt.len() <= 8 << 20);
        }
    }
}
