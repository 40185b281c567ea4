//! Answers that are written together, beside those that are written alone.

use std::path::{Path, PathBuf};

use model_actors::{DescribeImage, ImageSource, Sampling};
use serde::Deserialize;

use super::VisionModel;
use super::request::ActiveRequest;
use crate::image_input::opened;
use crate::loader::StandaloneModel as _;
use crate::models::continuous_batching::{Part, Steps as _};
use crate::models::folders::families_of;
use crate::source::{Source, read_json};

/// Tokens of each answer.
const TOKENS: usize = 32;

/// An image and a question.
#[derive(Deserialize)]
struct Case {
    image: String,
    question: String,
}

#[derive(Deserialize)]
struct Cases {
    cases: Vec<Case>,
}

/// An answer on its way, and the logits of each of its tokens so far.
struct Answer {
    asked: ActiveRequest,
    logits: Vec<Vec<f32>>,
}

impl Answer {
    fn begin(model: &VisionModel, case: &Case) -> Self {
        let image = ImageSource::Path(fixtures().join("vision_images").join(&case.image));
        let request = DescribeImage::new(ImageSource::Picture(opened(&image).unwrap().into_owned()))
            .with_question(case.question.clone())
            .with_sampling(Sampling::default())
            .with_max_tokens(TOKENS);
        Self { asked: model.begin(&request).unwrap().state, logits: Vec::new() }
    }

    fn is_complete(&self) -> bool {
        self.logits.len() == TOKENS
    }
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// One step of all that are not complete; the likeliest token is the next of each that has read its prompt.
/// Says how many of them wrote.
fn step(model: &VisionModel, answers: &mut [Answer]) -> usize {
    let mut going: Vec<&mut Answer> = answers.iter_mut().filter(|answer| !answer.is_complete()).collect();
    let parts =
        going.iter_mut().map(|answer| Part { rows: model.unread(&answer.asked), state: &mut answer.asked });
    let mut parts: Vec<Part<'_, ActiveRequest>> = parts.collect();
    let made = model.step(&mut parts).unwrap();
    let mut wrote = 0;
    for (answer, logits) in going.into_iter().zip(made) {
        let Some(logits) = logits.unwrap() else { continue };
        let best = (0..logits.len()).max_by(|left, right| logits[*left].total_cmp(&logits[*right]));
        model.chosen(&mut answer.asked, best.unwrap() as u32);
        answer.logits.push(logits);
        wrote += 1;
    }
    wrote
}

fn difference(left: &[f32], right: &[f32]) -> f32 {
    assert_eq!(left.len(), right.len());
    left.iter().zip(right).map(|(left, right)| (left - right).abs()).fold(0.0, f32::max)
}

#[test]
fn answers_together_are_what_they_are_alone() {
    for family in families_of("vision") {
        let folder = fixtures().join("vision").join(&family);
        let Cases { cases } = read_json(&folder.join("expected.json")).unwrap();
        let model = VisionModel::load(Source::directory(folder)).unwrap();
        let mut alone: Vec<Answer> = cases.iter().map(|case| Answer::begin(&model, case)).collect();
        for answer in &mut alone {
            while !answer.is_complete() {
                step(&model, std::slice::from_mut(answer));
            }
        }
        // One joins every few steps: its image is looked at and its prompt is read while others write.
        let mut together: Vec<Answer> = Vec::new();
        let mut most = 0;
        for count in 0.. {
            if count % 5 == 0 {
                together.extend(cases.get(together.len()).map(|case| Answer::begin(&model, case)));
            }
            if together.len() == cases.len() && together.iter().all(Answer::is_complete) {
                break;
            }
            most = most.max(step(&model, &mut together));
        }
        let pairs = alone.iter().zip(&together);
        let pairs = pairs.flat_map(|(alone, together)| alone.logits.iter().zip(&together.logits));
        let largest = pairs.map(|(alone, together)| difference(alone, together)).fold(0.0, f32::max);
        println!("{family}: up to {most} wrote together, largest difference from alone {largest:.1e}");
        assert!(most > 1, "{family}: no two wrote together");
        assert!(largest < 1e-5, "{family}: {largest}");
    }
}
