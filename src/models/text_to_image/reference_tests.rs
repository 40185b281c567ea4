//! Each part of each family against what diffusers makes of the same tiny pipeline, and whole loops of every
//! scheduler from the same noise.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use model_actors::{LoadContext, PaintImage};
use serde::Deserialize;

use super::denoising::Progress;
use super::model::TextToImageModel;
use super::noise::Noise;
use super::pipeline::Watch;
use super::repository::Repository;
use super::{CAPABILITY, FAMILIES, decode, preview, prompt};
use crate::kernels::random;
use crate::loader::StandaloneModel as _;
use crate::models::folders::families_of;
use crate::source::Source;

#[derive(Deserialize)]
struct Expected {
    prompt: String,
    negative_prompt: String,
    loops: Vec<Loop>,
    texts: Vec<String>,
    ids: HashMap<String, Vec<Vec<u32>>>,
}

#[derive(Deserialize)]
struct Loop {
    name: String,
    scheduler: Option<String>,
    steps: usize,
    size: (usize, usize),
    guidance: f32,
    negative_prompt: Option<String>,
    changes: serde_json::Map<String, serde_json::Value>,
}

fn folder(family: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/text_to_image").join(family)
}

/// Those whose references are in such a file; `flow_tests` compares all others.
fn families() -> impl Iterator<Item = String> {
    families_of("text_to_image").into_iter().filter(|family| folder(family).join("expected.json").exists())
}

struct Fixture {
    folder: PathBuf,
    expected: Expected,
    tensors: HashMap<String, Tensor>,
}

impl Fixture {
    fn open(family: &str) -> Self {
        let folder = folder(family);
        let expected = std::fs::read(folder.join("expected.json")).unwrap();
        let tensors = candle_core::safetensors::load(folder.join("expected.safetensors"), &Device::Cpu);
        let expected = serde_json::from_slice(&expected).unwrap();
        Self { folder, expected, tensors: tensors.unwrap() }
    }

    fn tensor(&self, name: &str) -> &Tensor {
        &self.tensors[name]
    }

    fn noise(&self) -> Vec<f32> {
        self.tensor("noise").flatten_all().unwrap().to_vec1().unwrap()
    }

    /// The model, with other settings of its schedule.
    fn model(&self, changes: &serde_json::Map<String, serde_json::Value>) -> TextToImageModel {
        if changes.is_empty() {
            return TextToImageModel::load(Source::directory(&self.folder)).unwrap();
        }
        let copy = tempfile::tempdir().unwrap();
        for part in ["text_encoder", "tokenizer", "unet", "vae"] {
            copy_folder(&self.folder.join(part), &copy.path().join(part));
        }
        copy_folder(&self.folder.join("scheduler"), &copy.path().join("scheduler"));
        std::fs::copy(self.folder.join("model_index.json"), copy.path().join("model_index.json")).unwrap();
        let path = copy.path().join("scheduler/scheduler_config.json");
        let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        config.as_object_mut().unwrap().extend(changes.clone());
        std::fs::write(path, config.to_string()).unwrap();
        TextToImageModel::load(Source::directory(copy.path())).unwrap()
    }
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
}

fn difference(ours: &Tensor, theirs: &Tensor) -> f32 {
    assert_eq!(ours.dims(), theirs.dims());
    (ours - theirs).unwrap().abs().unwrap().max_all().unwrap().to_scalar().unwrap()
}

fn request(expected: &Expected, run: &Loop) -> PaintImage {
    PaintImage::default()
        .with_prompt(expected.prompt.clone())
        .with_negative_prompt(run.negative_prompt.clone())
        .with_size(run.size)
        .with_steps(run.steps)
        .with_guidance(run.guidance)
        .with_scheduler(run.scheduler.clone())
        .with_preview(false)
}

#[test]
fn each_part_gives_what_the_reference_gives() {
    let watch = Watch(&|| true);
    for family in families() {
        let fixture = Fixture::open(&family);
        let model = fixture.model(&serde_json::Map::new());
        let pipeline = model.shared.pipeline.as_ref();
        let expected = &fixture.expected;
        let request = PaintImage::default()
            .with_prompt(expected.prompt.clone())
            .with_negative_prompt(expected.negative_prompt.clone())
            .with_guidance(3.0)
            .with_size((64, 64));
        let settings = model.shared.plan.settings(&request).unwrap();
        let conditioning = pipeline.encode_prompt(&settings, &watch).unwrap();
        let text = difference(&conditioning.prompt_embeddings, fixture.tensor("hidden"));
        let pooled = fixture.tensors.get("pooled").map_or(0.0, |pooled| {
            let width = pooled.dim(1).unwrap();
            difference(&conditioning.pooled().unwrap().narrow(1, 0, width).unwrap(), pooled)
        });
        let latents = fixture.tensor("latents");
        let predicted = pipeline.predict(latents, 401.0, &conditioning, &watch).unwrap();
        let prediction = difference(&predicted, fixture.tensor("prediction"));
        let colours = difference(&pipeline.decode(latents, &watch).unwrap(), fixture.tensor("colours"));
        if let Some(theirs) = fixture.tensors.get("preview_colours") {
            let ours = pipeline.decode_preview(latents, &watch).unwrap();
            let preview = difference(&ours, theirs);
            println!("{family}: decoder of previews {preview:.1e}");
            assert!(preview < 1e-4 && difference(&ours, fixture.tensor("colours")) > 0.1);
        }
        println!(
            "{family}: text {text:.1e}, pooled {pooled:.1e}, prediction {prediction:.1e}, decoder {colours:.1e}"
        );
        assert!(text.max(pooled).max(prediction).max(colours) < 1e-4);
    }
}

#[test]
fn every_scheduler_ends_where_the_reference_ends() {
    for family in families() {
        let fixture = Fixture::open(&family);
        let mut largest: f32 = 0.0;
        for run in &fixture.expected.loops {
            let model = fixture.model(&run.changes);
            let watch = Watch(&|| true);
            let noise = Noise::given(fixture.noise());
            let mut denoising = model.start(&request(&fixture.expected, run), noise, &watch).unwrap();
            while let Progress::Step(_) = model.advance(&mut denoising, &watch).unwrap() {}
            let theirs = fixture.tensor(&format!("{}.latents", run.name));
            let scale: f32 = theirs.abs().unwrap().max_all().unwrap().to_scalar().unwrap();
            let difference = difference(denoising.latents(), theirs);
            println!("{family} {}: {difference:.1e} of {scale:.1}", run.name);
            // Clipping makes SDXL's DDIM sensitive: there the reference in 64 bits is 2e-3 from itself in 32.
            assert!(difference < 1e-2, "{family} {}: {difference}", run.name);
            largest = largest.max(difference);
        }
        println!("{family}: whole loop {largest:.1e}");
    }
}

#[test]
fn prompts_have_the_references_tokens() {
    let context = LoadContext::detached(&"prompts".into());
    for family in families() {
        let fixture = Fixture::open(&family);
        for (part, ids) in &fixture.expected.ids {
            let source = Source::directory(&fixture.folder);
            let files = crate::source::Files::open(&source, &Default::default()).unwrap();
            let repository = Repository::open(&files, FAMILIES, CAPABILITY, &context).unwrap();
            let found = prompt::TokenizerFiles::find(&repository, &format!("{part}/")).unwrap();
            let tokens = found.read(found.max_length()).unwrap();
            for (text, ids) in fixture.expected.texts.iter().zip(ids) {
                assert_eq!(&tokens.encode(text).unwrap(), ids, "{family} {part} {text:?}");
            }
        }
    }
}

#[test]
fn a_preview_is_made_by_the_tiny_autoencoder_where_there_is_one() {
    let model = Fixture::open("sd_turbo").model(&serde_json::Map::new());
    let (pipeline, watch) = (model.shared.pipeline.as_ref(), Watch(&|| true));
    let latents = random(0.0, 1.0, (1, 4, 8, 8)).to_dtype(DType::F32).unwrap();
    let tiny = decode::to_picture(&pipeline.decode_preview(&latents, &watch).unwrap()).unwrap();
    let large = decode::to_picture(&pipeline.decode(&latents, &watch).unwrap()).unwrap();
    let shown = preview::preview(pipeline, &latents, 8, &watch).unwrap();
    assert!(shown == tiny && shown != large);
}

/// Latents that are constant over each part of an image decode like one latent for each part.
#[test]
fn a_preview_shows_what_the_latents_show_on_average() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/text_to_image/sd15");
    let model = TextToImageModel::load(Source::directory(folder)).unwrap();
    let (pipeline, watch) = (model.shared.pipeline.as_ref(), Watch(&|| true));
    let parts = random(0.0, 1.0, (1, 4, 12, 16));
    let large = parts.upsample_nearest2d(36, 48).unwrap().to_dtype(DType::F32).unwrap();
    let shown = preview::preview(pipeline, &large, 8, &watch).unwrap();
    let alone = decode::to_picture(&pipeline.decode(&parts, &watch).unwrap()).unwrap();
    assert_eq!((shown.width, shown.height), (128, 96));
    let most = shown.rgb.iter().zip(&alone.rgb).map(|(a, b)| a.abs_diff(*b)).max();
    assert!(most <= Some(1), "{most:?}");
    // As many latents as are shown are shown as they are.
    assert_eq!(preview::preview(pipeline, &parts, 8, &watch).unwrap(), alone);
}
