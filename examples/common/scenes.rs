//! Held-out scenes of the shapes models, and a parser for descriptions of scenes in the words of
//! `models/shapes/world.py` and `speech.py`.

use std::path::Path;

use candle_actors::ImageSource;
use serde::Deserialize;

/// `models/shapes/held_out/held_out.json`: scenes not in the training data, and requests for stories.
#[derive(Deserialize)]
pub(crate) struct HeldOut {
    /// Number of images among which a text has to find its own.
    pub(crate) group: usize,
    pub(crate) pictures: Vec<Scene>,
    /// Questions about scenes in words, and their answers.
    pub(crate) chats: Vec<(String, String)>,
    /// Captions to paint.
    pub(crate) prompts: Vec<String>,
    /// Requests for a story.
    pub(crate) stories: Vec<String>,
    /// The sentences that such a story may have, with `THING` for each thing.
    story_forms: Vec<String>,
}

#[derive(Deserialize)]
pub(crate) struct Scene {
    file: String,
    pub(crate) caption: String,
    pub(crate) questions: Vec<(String, String)>,
    pub(crate) description: String,
}

impl HeldOut {
    pub(crate) fn read(models: &Path) -> std::io::Result<Self> {
        let path = models.join("shapes/held_out/held_out.json");
        let text = std::fs::read(&path)
            .map_err(|error| std::io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
        Ok(serde_json::from_slice(&text)?)
    }

    /// True if the text has sentences, all of them are among those of stories, and none is repeated.
    pub(crate) fn is_story(&self, text: &str) -> bool {
        let forms: Vec<String> = sentences(text).into_iter().map(form).collect();
        let is_new = |(place, form): (usize, &String)| !forms[..place].contains(form);
        forms.len() >= 4
            && forms.iter().all(|form| self.story_forms.contains(form))
            && forms.iter().enumerate().all(is_new)
    }
}

impl Scene {
    /// Its drawing.
    pub(crate) fn image(&self, models: &Path) -> ImageSource {
        ImageSource::Path(models.join("shapes/held_out").join(&self.file))
    }
}

const SHAPES: [&str; 3] = ["circle", "square", "triangle"];
const COLOURS: [&str; 6] = ["red", "green", "blue", "yellow", "purple", "black"];
const SIZES: [&str; 2] = ["small", "large"];

/// The things of a text, as in `red circle`, in the order of the alphabet.
pub(crate) fn things(text: &str) -> Vec<String> {
    let mut things = named(text);
    things.sort();
    things
}

/// The things of a text from left to right, or from above to below, and how they stand.
pub(crate) fn layout(text: &str) -> Vec<String> {
    let mut things = named(text);
    let says = |words: &str| text.contains(words);
    if says(" right of ") || says(" below ") {
        things.reverse();
    }
    if says(" above ") || says(" below ") {
        things.push("one above the other".to_owned());
    }
    things
}

fn named(text: &str) -> Vec<String> {
    let words: Vec<&str> = words(text).collect();
    let pairs = words.windows(2);
    pairs
        .filter(|pair| COLOURS.contains(&pair[0]) && SHAPES.contains(&pair[1]))
        .map(|pair| pair.join(" "))
        .collect()
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|letter: char| !letter.is_alphanumeric()).filter(|word| !word.is_empty())
}

/// A sentence with `THING` for each thing in it, so that sentences about unlike things are alike: what
/// `without_names` of `models/shapes/held_out.py` does.
fn form(sentence: &str) -> String {
    let mut form: Vec<String> = Vec::new();
    for word in sentence.split(' ') {
        let (name, mark) = word.split_at(word.trim_end_matches(['.', ',']).len());
        if !SHAPES.contains(&name) {
            form.push(word.to_owned());
            continue;
        }
        for kind in [&COLOURS[..], &SIZES[..]] {
            form.pop_if(|before| kind.contains(&before.as_str()));
        }
        form.push(format!("THING{mark}"));
    }
    form.join(" ")
}

/// The sentences of a text, each with its full stop.
fn sentences(text: &str) -> Vec<&str> {
    text.trim().split_inclusive('.').map(str::trim).filter(|sentence| !sentence.is_empty()).collect()
}
