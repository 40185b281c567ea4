//! Pictures painted from an image, and anew where a mask says so, against what diffusers makes of the same tiny pipelines
//! from the same noise.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, IndexOp as _, Tensor};
use model_actors::{ImageSource, PaintImage, Picture};
use serde::Deserialize;

use super::decode::to_colours;
use super::denoising::Progress;
use super::model::TextToImageModel;
use super::noise::Noise;
use super::pipeline::Watch;
use crate::error::Error;
use crate::loader::StandaloneModel as _;
use crate::models::folders::{copied, families_of};
use crate::source::Source;

#[derive(Deserialize)]
struct Asked {
    prompt: String,
    steps: usize,
    guidance: f32,
    size: (usize, usize),
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    scheduler: Option<String>,
    strength: f32,
    image: String,
    mask: bool,
}

fn folder(family: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/text_to_image").join(family)
}

struct Fixture {
    family: String,
    asked: Asked,
    tensors: HashMap<String, Tensor>,
    model: TextToImageModel,
}

impl Fixture {
    fn open(family: &str) -> Self {
        let folder = folder(family);
        let asked = serde_json::from_slice(&std::fs::read(folder.join("first_image.json")).unwrap()).unwrap();
        let tensors =
            candle_core::safetensors::load(folder.join("first_image.safetensors"), &Device::Cpu).unwrap();
        let model = TextToImageModel::load(Source::directory(&folder)).unwrap();
        Self { family: family.to_owned(), asked, tensors, model }
    }

    fn picture(&self, name: &str) -> Picture {
        let pixels = &self.tensors[name];
        let (height, width, _) = pixels.dims3().unwrap();
        Picture::new(width, height, pixels.flatten_all().unwrap().to_vec1().unwrap())
    }

    fn noise(&self) -> Vec<f32> {
        self.tensors["noise"].to_vec1().unwrap()
    }

    fn request(&self, case: &Case) -> PaintImage {
        let mask = case.mask.then(|| ImageSource::Picture(self.picture("mask")));
        // Without one it is the image's, as in the reference's older pipelines.
        let size = matches!(self.family.as_str(), "flux_dev" | "sd35").then_some(self.asked.size);
        PaintImage::from(self.asked.prompt.clone())
            .with_image(ImageSource::Picture(self.picture(&case.image)))
            .with_mask(mask)
            .with_size(size)
            .with_strength(case.strength)
            .with_steps(self.asked.steps)
            .with_guidance(self.asked.guidance)
            .with_scheduler(case.scheduler.clone())
    }

    fn latents(&self, request: &PaintImage, noise: Vec<f32>) -> Tensor {
        let watch = Watch(&|| true);
        let mut denoising = self.model.start(request, Noise::given(noise), &watch).unwrap();
        while let Progress::Step(_) = self.model.advance(&mut denoising, &watch).unwrap() {}
        denoising.latents().clone()
    }
}

fn fixtures() -> impl Iterator<Item = Fixture> {
    let recorded = |family: &String| folder(family).join("first_image.json").exists();
    families_of("text_to_image").into_iter().filter(recorded).map(|family| Fixture::open(&family))
}

fn difference(ours: &Tensor, theirs: &Tensor) -> f32 {
    assert_eq!(ours.dims(), theirs.dims());
    (ours - theirs).unwrap().abs().unwrap().max_all().unwrap().to_scalar().unwrap()
}

#[test]
fn an_image_is_encoded_as_by_the_reference() {
    let mut families = 0;
    for fixture in fixtures() {
        let colours = to_colours(&fixture.picture("image"), &Device::Cpu).unwrap();
        let mut noise = Noise::given(fixture.noise());
        let pipeline = fixture.model.shared.pipeline.as_ref();
        let ours = pipeline.encode(&colours, &mut noise, &Watch(&|| true)).unwrap();
        let difference = difference(&ours, &fixture.tensors["encoded"]);
        println!("{}: {difference:.1e}", fixture.family);
        assert!(difference < 1e-4, "{}: {difference}", fixture.family);
        families += 1;
    }
    assert_eq!(families, 8);
}

#[test]
fn painting_from_an_image_ends_where_the_reference_ends() {
    for fixture in fixtures() {
        for case in &fixture.asked.cases {
            let theirs = &fixture.tensors[&case.name];
            let mut noise = fixture.noise();
            if case.mask && !fixture.model.shared.pipeline.takes_masked_images() {
                // The reference encodes what the mask leaves too, and makes no use of it.
                let count = theirs.elem_count();
                noise.drain(2 * count..3 * count);
            }
            let ours = fixture.latents(&fixture.request(case), noise);
            let scale: f32 = theirs.abs().unwrap().max_all().unwrap().to_scalar().unwrap();
            let difference = difference(&ours, theirs);
            println!("{} {}: {difference:.1e} of {scale:.1}", fixture.family, case.name);
            assert!(difference < 1e-2, "{} {}: {difference}", fixture.family, case.name);
        }
    }
}

#[test]
fn what_is_black_in_a_mask_stays_as_it_was_encoded() {
    let fixture = Fixture::open("sd15");
    let case =
        Case { name: String::new(), scheduler: None, strength: 1.0, image: "image".into(), mask: true };
    let ours = fixture.latents(&fixture.request(&case), fixture.noise());
    let encoded = &fixture.tensors["encoded"];
    // The lower right quarter is black; the upper left one is white.
    let corner = |latents: &Tensor, at: usize| latents.i((0, .., at..at + 2, at..at + 2)).unwrap();
    assert!(difference(&corner(&ours, 6), &corner(encoded, 6)) < 1e-4);
    assert!(difference(&corner(&ours, 0), &corner(encoded, 0)) > 0.1);
}

#[test]
fn a_request_that_makes_no_sense_is_refused_by_name() {
    let fixture = Fixture::open("sd15");
    let image = || ImageSource::Picture(fixture.picture("image"));
    let plan = &fixture.model.shared.plan;
    let refused = |request: PaintImage, words: &str| match fixture.model.paint(&request, |_| ()) {
        Err(error @ Error::InvalidInput(_)) => assert!(error.to_string().contains(words), "{error}"),
        other => panic!("{words}: {:?}", other.map(|picture| (picture.width, picture.height))),
    };
    let from = || PaintImage::from("a cat").with_image(image());
    for strength in [0.0, -0.5, 1.01, f32::NAN, f32::INFINITY] {
        refused(from().with_strength(strength), "the strength");
    }
    refused(PaintImage::from("a cat").with_strength(0.5), "takes an image");
    refused(PaintImage::from("a cat").with_mask(image()), "takes the image");
    refused(from().with_strength(0.1).with_steps(4), "leaves none of 4 steps");
    refused(from().with_image(ImageSource::Bytes(vec![1])), "not decoded");
    refused(from().with_image(ImageSource::Picture(Picture::new(9, 9, vec![0; 8]))), "9x9");
    refused(from().with_image(ImageSource::Picture(Picture::new(7, 64, vec![0; 7 * 64 * 3]))), "0x64");
    let settings = plan.settings(&from().with_size((72, 40))).unwrap();
    let first = settings.image.unwrap();
    assert_eq!((first.picture.width, first.picture.height, settings.width), (72, 40, 72));
    let own = without_encoder("sd_tiny");
    let tiny = TextToImageModel::load(Source::directory(own.path())).unwrap();
    match tiny.paint(&from(), |_| ()) {
        Err(Error::InvalidInput(reason)) => assert!(reason.contains("no encoder"), "{reason}"),
        other => panic!("{:?}", other.map(|picture| picture.width)),
    }
}

/// It would begin with an image of its own, whatever it is asked for.
#[test]
fn a_network_that_takes_masked_images_needs_an_encoder() {
    let own = without_encoder("sd_inpaint");
    let error = TextToImageModel::load(Source::directory(own.path())).err().unwrap();
    assert!(matches!(&error, Error::MissingTensor { tensor } if tensor.contains("encoder")), "{error}");
}

/// A copy of a model whose autoencoder is the decoder alone.
fn without_encoder(family: &str) -> tempfile::TempDir {
    let own = copied(&folder(family));
    let vae = std::fs::read_dir(own.path().join("vae")).unwrap().map(|entry| entry.unwrap().path());
    let weights =
        vae.into_iter().find(|path| path.extension().is_some_and(|it| it == "safetensors")).unwrap();
    let mut tensors = candle_core::safetensors::load(&weights, &Device::Cpu).unwrap();
    tensors.retain(|name, _| !name.starts_with("encoder."));
    candle_core::safetensors::save(&tensors, weights).unwrap();
    own
}

#[test]
fn a_network_that_takes_masked_images_paints_a_text_alone_as_under_a_white_mask() {
    for family in ["sd_inpaint", "sdxl_inpaint"] {
        let fixture = Fixture::open(family);
        let text = PaintImage::from("a cat").with_steps(3).with_seed(5).with_size(fixture.asked.size);
        let (width, height) = fixture.asked.size;
        let white = ImageSource::Picture(Picture::new(width, height, vec![255; width * height * 3]));
        let image = ImageSource::Picture(fixture.picture("image"));
        let paint = |request: &PaintImage| fixture.model.paint(request, |_| ()).unwrap();
        let under = text.clone().with_image(image.clone()).with_mask(white);
        let alone = paint(&text);
        assert_eq!(alone, paint(&under), "{family}");
        let corner = ImageSource::Picture(fixture.picture("mask"));
        assert_ne!(alone, paint(&text.with_image(image).with_mask(corner)), "{family}");
    }
}

#[test]
fn the_same_seed_paints_the_same_from_the_same_image() {
    let fixture = Fixture::open("sd15");
    let image = ImageSource::Picture(fixture.picture("image"));
    let request = PaintImage::from("a cat").with_image(image).with_steps(3).with_seed(5);
    let paint = |request: &PaintImage| fixture.model.paint(request, |_| ()).unwrap();
    let first = paint(&request);
    assert_eq!(first, paint(&request));
    assert_ne!(first, paint(&request.clone().with_seed(6)));
    assert_ne!(first, paint(&request.with_strength(0.4)));
    assert_eq!(fixture.tensors["image"].dtype(), DType::U8);
}
