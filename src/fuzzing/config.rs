//! The JSON files of a model, wrong in every way. Each fixture is a model that loads; a run changes one of
//! its files, as a whole or a few values of it, and loads it as the actors do: small files, footprint,
//! weights. A tokenizer is tried on a text too.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use model_actors::{LoadContext, Loader, Model};
use serde_json::{Value, json};

use super::tokenizer;
use crate::device::{Compute, ComputeDevice};
use crate::hub_settings::HubSettings;
use crate::loader::{CapabilityOf, GenerationSettings, ModelLoader, WorkerModel};
use crate::models;
use crate::source::Source;

/// Loads what is in a folder.
type Load = fn(&Path);

/// A copy of a fixture.
struct Fixture {
    folder: PathBuf,
    load: Load,
    /// Its JSON files by their place in the folder, with what they hold.
    files: Vec<(PathBuf, Value)>,
}

/// The first byte picks a fixture, the second one of its files, the third how it is changed; the rest are the
/// changes.
pub fn config(bytes: &[u8]) {
    static FIXTURES: OnceLock<Vec<Fixture>> = OnceLock::new();
    let fixtures = FIXTURES.get_or_init(all_fixtures);
    let &[fixture, file, how, ref rest @ ..] = bytes else { return };
    let fixture = &fixtures[usize::from(fixture) % fixtures.len()];
    let (file, value) = &fixture.files[usize::from(file) % fixture.files.len()];
    let text = match how.is_multiple_of(4) {
        true => rest.to_vec(),
        false => changed(value.clone(), rest).to_string().into_bytes(),
    };
    let path = fixture.folder.join(file);
    std::fs::write(&path, text).unwrap();
    (fixture.load)(&fixture.folder);
    if file.ends_with("tokenizer.json") {
        tokenizer::try_out(&path);
    }
    std::fs::write(&path, value.to_string()).unwrap();
}

pub(super) fn load<M: WorkerModel + Model<CapabilityOf<M>>>(folder: &Path) {
    let Ok(compute) = Compute::new(ComputeDevice::Cpu, 1) else { return };
    let context: LoadContext = super::context();
    let (source, generation) = (Source::directory(folder), GenerationSettings::default());
    let Ok(loader) = ModelLoader::<M>::new(source, compute, generation, HubSettings::default()) else {
        return;
    };
    // The actors ask for the footprint first, and load no more than fits.
    match Loader::footprint(&loader, &context) {
        Ok(footprint) if footprint.shared.0 < 1 << 30 && footprint.per_worker.0 < 1 << 30 => {}
        _ => return,
    }
    if let Ok(model) = Loader::load(&loader, &context) {
        let _ = model.footprint();
        drop(model.build(&context));
    }
}

fn all_fixtures() -> Vec<Fixture> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let capabilities: [(&str, Load); 7] = [
        ("text_embedding", load::<models::text_embedding::TextEmbeddingModel>),
        ("reranking", load::<models::reranking::RerankingModel>),
        ("text_to_text", load::<models::text_to_text::TextGenerationModel>),
        ("transformers", load::<models::text_to_text::TextGenerationModel>),
        ("image_embedding", load::<models::image_embedding::ImageEmbeddingModel>),
        ("vision", load::<models::vision::VisionModel>),
        ("text_to_image", load::<models::text_to_image::TextToImageModel>),
    ];
    let mut fixtures = Vec::new();
    for (capability, load) in capabilities {
        let Ok(entries) = std::fs::read_dir(root.join(capability)) else { continue };
        let mut folders: Vec<PathBuf> =
            entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
        folders.sort();
        for folder in folders {
            let name = format!("{capability}-{}", folder.file_name().unwrap_or_default().display());
            let own = super::folder(&name);
            let mut files = Vec::new();
            copy(&folder, &own, Path::new(""), &mut files);
            if files.iter().any(|(file, _)| file.ends_with("config.json")) {
                fixtures.push(Fixture { folder: own, load, files });
            }
        }
    }
    fixtures
}

fn copy(from: &Path, to: &Path, inside: &Path, files: &mut Vec<(PathBuf, Value)>) {
    std::fs::create_dir_all(to.join(inside)).unwrap();
    let mut entries: Vec<PathBuf> =
        std::fs::read_dir(from.join(inside)).unwrap().flatten().map(|e| e.path()).collect();
    entries.sort();
    for path in entries {
        let name = inside.join(path.file_name().unwrap_or_default());
        if path.is_dir() {
            copy(from, to, &name, files);
            continue;
        }
        let made =
            ["expected.json", "expected.safetensors", "conversations.json", "conversations.safetensors"];
        if made.iter().any(|made| name.ends_with(made)) {
            continue;
        }
        std::fs::copy(&path, to.join(&name)).unwrap();
        if name.extension().is_some_and(|end| end == "json") {
            files.push((name, serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap()));
        }
    }
}

/// Each three bytes change a value: which, and to what.
fn changed(mut value: Value, changes: &[u8]) -> Value {
    for change in changes.chunks_exact(3).take(6) {
        let mut places = Vec::new();
        list(&value, String::new(), &mut places);
        let place = &places[usize::from(u16::from_le_bytes([change[0], change[1]])) % places.len()];
        if let Some(at) = value.pointer_mut(place) {
            *at = other(at, change[2]);
        }
    }
    value
}

fn list(value: &Value, place: String, places: &mut Vec<String>) {
    match value {
        Value::Object(entries) => {
            // A vocabulary has hundreds of entries, and would hide all else.
            for (name, entry) in entries.iter().take(128) {
                let name = name.replace('~', "~0").replace('/', "~1");
                list(entry, format!("{place}/{name}"), places);
            }
        }
        Value::Array(entries) => {
            for (index, entry) in entries.iter().enumerate().take(16) {
                list(entry, format!("{place}/{index}"), places);
            }
        }
        _ => {}
    }
    places.push(place);
}

fn other(value: &Value, which: u8) -> Value {
    let number = value.as_i64().unwrap_or(8);
    match which {
        0 => Value::Null,
        1 => json!(0),
        2 => json!(1),
        3 => json!(-1),
        4 => json!(u64::MAX),
        5 => json!(i64::MAX),
        6 => json!(u32::MAX),
        7 => json!(1u64 << 32),
        8 => json!(1u64 << 31),
        9 => json!(i64::MIN),
        10 => json!(1e308),
        11 => json!(-1e308),
        12 => json!(1e-320),
        13 => json!(0.5),
        14 => json!(""),
        15 => json!("x"),
        16 => json!([]),
        17 => json!({}),
        18 => json!(true),
        19 => json!(false),
        20 => json!([value]),
        21 => json!({ "a": value }),
        22 => json!(number.wrapping_add(1)),
        23 => json!(number.wrapping_sub(1)),
        24 => json!(number.wrapping_mul(2)),
        25 => json!(number / 2),
        26 => json!(number.wrapping_mul(1 << 20)),
        27 => json!("../../../../etc/passwd"),
        28 => json!("\u{0}"),
        29 => json!("x".repeat(10_000)),
        30 => json!(vec![1; 1000]),
        31 => json!(vec![json!([0, 0]); 9]),
        _ => json!(which - 32),
    }
}
