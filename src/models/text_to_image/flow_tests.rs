//! Stable Diffusion 3.5 and FLUX.1 part by part against what diffusers recorded: text encoders, one
//! prediction, decoder, schedule, and the whole loop from the same noise.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use candle_core::{Device, Tensor};
use model_actors::PaintImage;
use serde::Deserialize;

use super::denoising::Progress;
use super::model::TextToImageModel;
use super::noise::Noise;
use super::pipeline::{Conditioning, Watch};
use crate::error::Error;
use crate::loader::StandaloneModel as _;
use crate::models::folders::families_of;
use crate::source::Source;

/// Of a part against the reference.
const COMPONENT: f32 = 1e-3;
/// Of the whole loop.
const LOOP: f32 = 1e-2;
/// Tokens of a prompt for CLIP.
const CLIP: usize = 77;

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/text_to_image").join(name)
}

/// All that `reference_tests` does not compare.
fn names() -> impl Iterator<Item = String> {
    families_of("text_to_image").into_iter().filter(|name| folder(name).join("case.json").exists())
}

/// `case.json`: what the reference was asked.
#[derive(Deserialize)]
struct Case {
    prompt: String,
    negative_prompt: Option<String>,
    width: usize,
    height: usize,
    steps: usize,
    guidance: f32,
    moment: f64,
}

struct Fixture {
    name: String,
    model: TextToImageModel,
    request: PaintImage,
    moment: f64,
    expected: HashMap<String, Tensor>,
}

impl Fixture {
    fn open(name: &str) -> Self {
        let folder = folder(name);
        let case: Case = serde_json::from_slice(&std::fs::read(folder.join("case.json")).unwrap()).unwrap();
        let expected =
            candle_core::safetensors::load(folder.join("expected.safetensors"), &Device::Cpu).unwrap();
        let request = PaintImage::default()
            .with_prompt(case.prompt)
            .with_negative_prompt(case.negative_prompt)
            .with_size((case.width, case.height))
            .with_steps(case.steps)
            .with_guidance(case.guidance);
        let model = TextToImageModel::load(Source::directory(folder)).unwrap();
        Self { name: name.to_owned(), model, request, moment: case.moment, expected }
    }

    fn condition(&self) -> Conditioning {
        let settings = self.model.shared.plan.settings(&self.request).unwrap();
        self.model.shared.pipeline.encode_prompt(&settings, &Watch(&|| true)).unwrap()
    }

    /// Tells the largest difference from what was recorded, and gives it where it is too large.
    fn compare(&self, part: &str, ours: &Tensor, limit: f32) -> Option<String> {
        let theirs = &self.expected[part];
        assert_eq!(ours.dims(), theirs.dims(), "{} {part}", self.name);
        let difference = (ours - theirs).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap();
        let difference: f32 = difference.to_scalar().unwrap();
        println!("{} {part}: largest difference {difference:.2e}", self.name);
        (difference.is_nan() || difference > limit).then(|| format!("{} {part}: {difference}", self.name))
    }
}

/// The rows that were recorded: the first and the last.
fn recorded_rows(hidden: &Tensor) -> Tensor {
    let count = hidden.dim(1).unwrap();
    let (first, last) = (hidden.narrow(1, 0, 40).unwrap(), hidden.narrow(1, count - 8, 8).unwrap());
    Tensor::cat(&[first, last], 1).unwrap()
}

#[test]
fn each_part_agrees_with_its_reference() {
    let mut wrong = Vec::new();
    for name in names() {
        let fixture = Fixture::open(&name);
        let pipeline = &fixture.model.shared.pipeline;
        let conditioning = fixture.condition();
        wrong.extend(fixture.compare("pooled", conditioning.pooled().unwrap(), COMPONENT));
        let hidden = &conditioning.prompt_embeddings;
        if name == "sd35" {
            wrong.extend(fixture.compare("clip_hidden", &hidden.narrow(1, 0, CLIP).unwrap(), COMPONENT));
            let third = hidden.narrow(1, CLIP, hidden.dim(1).unwrap() - CLIP).unwrap();
            wrong.extend(fixture.compare("hidden", &recorded_rows(&third), COMPONENT));
        } else {
            wrong.extend(fixture.compare("hidden", &recorded_rows(hidden), COMPONENT));
        }
        let (latents, watch) = (&fixture.expected["latents"], Watch(&|| true));
        let predicted = pipeline.predict(latents, fixture.moment, &conditioning, &watch).unwrap();
        wrong.extend(fixture.compare("predicted", &predicted, COMPONENT));
        wrong.extend(fixture.compare("decoded", &pipeline.decode(latents, &watch).unwrap(), COMPONENT));
    }
    assert!(wrong.is_empty(), "{wrong:?}");
}

#[test]
fn the_loop_from_the_same_noise_agrees_with_its_reference() {
    let mut wrong = Vec::new();
    for name in names() {
        let fixture = Fixture::open(&name);
        let model = &fixture.model;
        let settings = model.shared.plan.settings(&fixture.request).unwrap();
        let scheduler = model.shared.pipeline.scheduler(&settings).unwrap();
        let times: Vec<f32> = scheduler.timesteps().iter().map(|time| *time as f32).collect();
        wrong.extend(fixture.compare("timesteps", &Tensor::new(times, &Device::Cpu).unwrap(), COMPONENT));

        let noise = fixture.expected["noise"].flatten_all().unwrap().to_vec1().unwrap();
        let watch = Watch(&|| true);
        let mut denoising = model.start(&fixture.request, Noise::given(noise), &watch).unwrap();
        for step in 1..=settings.steps {
            match model.advance(&mut denoising, &watch).unwrap() {
                Progress::Step(told) => assert_eq!((told.step, told.of), (step, settings.steps)),
                Progress::Finished(_) => panic!("{name} is finished before step {step}"),
            }
        }
        wrong.extend(fixture.compare("final_latents", denoising.latents(), LOOP));
        let colours = model.shared.pipeline.decode(denoising.latents(), &watch).unwrap();
        let colours = ((colours / 2.0).unwrap() + 0.5).unwrap().clamp(0.0, 1.0).unwrap();
        wrong.extend(fixture.compare("picture", &colours, LOOP));
    }
    assert!(wrong.is_empty(), "{wrong:?}");
}

#[test]
fn a_model_looks_between_its_layers_whether_anybody_waits() {
    for name in names() {
        let fixture = Fixture::open(&name);
        let (looks, latents) = (AtomicUsize::new(0), &fixture.expected["latents"]);
        let conditioning = fixture.condition();
        let pipeline = &fixture.model.shared.pipeline;
        let gone = || looks.fetch_add(1, Ordering::Relaxed) < 1;
        let stopped = pipeline.predict(latents, fixture.moment, &conditioning, &Watch(&gone));
        assert!(matches!(stopped, Err(Error::Stopped)));
        assert_eq!(looks.load(Ordering::Relaxed), 2, "{name} went on");
    }
}

#[test]
fn what_a_model_cannot_paint_is_refused() {
    let [sd35, schnell] = ["sd35", "flux_schnell"].map(Fixture::open);
    let refused = |fixture: &Fixture, change: fn(&mut PaintImage), words: &str| {
        let mut request = fixture.request.clone();
        change(&mut request);
        match fixture.model.paint(&request, |_| {}) {
            Err(Error::InvalidInput(reason)) => assert!(reason.contains(words), "{reason}"),
            other => panic!("{}: {other:?}", fixture.name),
        }
    };
    refused(&sd35, |request| request.size = Some((52, 8)), "at most 48 a side");
    refused(&sd35, |request| request.size = Some((22, 16)), "multiples of 4");
    refused(&sd35, |request| request.scheduler = Some("ddim".into()), "flow_match_euler");
    refused(&schnell, |request| request.negative_prompt = Some("dark".into()), "no negative prompt");
    refused(&schnell, |request| request.scheduler = Some("euler".into()), "flow_match_euler");
}
