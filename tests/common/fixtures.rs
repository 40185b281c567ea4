//! Tiny random models of `tests/fixtures`: one folder for each family of each capability, and for each
//! capability a request that any of its models answers, through the actors and without.

use std::path::PathBuf;
use std::pin::Pin;

use candle_actors::{
    DescribeImage, EmbedOutputs, EmbedTexts, Engine, EngineBuilder, Error, GenerateText, ImageEmbeddingModel,
    ImageSource, LoadOptions, PaintImage, Picture, RerankDocuments, RerankingModel, Result, Source,
    StandaloneModel, TextEmbeddingModel, TextGenerationModel, TextToImageModel, VisionModel, model_actors,
};

use super::folders::families_of;
use super::root;

type Answer<'a> = Pin<Box<dyn Future<Output = Result<()>> + Send + 'a>>;
/// Asks a model without actors around it.
type Plain = Box<dyn FnMut() + Send>;

/// Capability with its fixtures. The model's id is `model`.
#[derive(Clone, Copy)]
pub(crate) struct Kind {
    /// Its folder in `tests/fixtures`.
    pub(crate) folder: &'static str,
    pub(crate) register: fn(EngineBuilder, Source) -> EngineBuilder,
    pub(crate) ask: fn(&Engine) -> Answer<'_>,
    pub(crate) preload: fn(&Engine) -> Answer<'_>,
    /// Loads two models over the same weights.
    pub(crate) clones: fn(Source, LoadOptions) -> [Plain; 2],
}

const TEXT_EMBEDDING: Kind = Kind {
    folder: "text_embedding",
    register: |builder, source| builder.text_embedding("model", source),
    ask: |engine| Box::pin(async { engine.text_embedding("model")?.embed(TEXT).await.map(drop) }),
    preload: |engine| Box::pin(async { Ok(engine.text_embedding("model")?.model().preload().await?) }),
    clones: |source, options| {
        let model = TextEmbeddingModel::load_with(source, options).unwrap();
        let models = [model.try_clone().unwrap(), model];
        models.map(|model| -> Plain { Box::new(move || drop(model.embed(&[TEXT]).unwrap())) })
    },
};

/// Models that write text, also those that candle-transformers computes.
const TEXT_TO_TEXT: Kind = Kind {
    folder: "text_to_text",
    register: |builder, source| builder.text_to_text("model", source),
    ask: |engine| Box::pin(async { engine.text_to_text("model")?.generate(text_request()).await.map(drop) }),
    preload: |engine| Box::pin(async { Ok(engine.text_to_text("model")?.model().preload().await?) }),
    clones: |source, options| {
        let model = TextGenerationModel::load_with(source, options).unwrap();
        let models = [model.try_clone().unwrap(), model];
        models.map(|model| -> Plain { Box::new(move || drop(model.generate(&[text_request()]).unwrap())) })
    },
};

/// All capabilities.
pub(crate) const KINDS: [Kind; 7 + cfg!(feature = "transformers") as usize] = [
    TEXT_EMBEDDING,
    Kind {
        folder: "late_interaction",
        ask: |engine| {
            Box::pin(async {
                let model = engine.text_embedding("model")?.outputs(token_vectors());
                model.embeddings([TEXT]).await.map(drop)
            })
        },
        clones: |source, options| {
            let model = TextEmbeddingModel::load_with(source, options).unwrap();
            let models = [model.try_clone().unwrap(), model];
            let request = || EmbedTexts::from(TEXT).with_outputs(token_vectors());
            models.map(|model| -> Plain { Box::new(move || drop(model.embeddings(&request()).unwrap())) })
        },
        ..TEXT_EMBEDDING
    },
    Kind {
        folder: "reranking",
        register: |builder, source| builder.reranking("model", source),
        ask: |engine| Box::pin(async { engine.reranking("model")?.rank(rerank_request()).await.map(drop) }),
        preload: |engine| Box::pin(async { Ok(engine.reranking("model")?.model().preload().await?) }),
        clones: |source, options| {
            let model = RerankingModel::load_with(source, options).unwrap();
            let models = [model.try_clone().unwrap(), model];
            models.map(|model| -> Plain { Box::new(move || drop(model.rank(&rerank_request()).unwrap())) })
        },
    },
    TEXT_TO_TEXT,
    #[cfg(feature = "transformers")]
    Kind { folder: "transformers", ..TEXT_TO_TEXT },
    Kind {
        folder: "image_embedding",
        register: |builder, source| builder.image_embedding("model", source),
        ask: |engine| {
            let images = vec![ImageSource::Picture(picture())];
            Box::pin(async {
                let model = engine.image_embedding("model")?;
                match model.embed_images(images).await {
                    // A text tower alone takes no images.
                    Err(Error::InvalidInput(_)) => model.embed_texts(["a cat"]).await.map(drop),
                    answer => answer.map(drop),
                }
            })
        },
        preload: |engine| Box::pin(async { Ok(engine.image_embedding("model")?.model().preload().await?) }),
        clones: |source, options| {
            let model = ImageEmbeddingModel::load_with(source, options).unwrap();
            let models = [model.try_clone().unwrap(), model];
            models.map(|model| -> Plain {
                Box::new(move || match model.has_image_side() {
                    true => drop(model.embed_images(&[picture()]).unwrap()),
                    false => drop(model.embed_texts(&["a cat"]).unwrap()),
                })
            })
        },
    },
    Kind {
        folder: "vision",
        register: |builder, source| builder.vision("model", source),
        ask: |engine| Box::pin(async { engine.vision("model")?.describe(vision_request()).await.map(drop) }),
        preload: |engine| Box::pin(async { Ok(engine.vision("model")?.model().preload().await?) }),
        clones: |source, options| {
            let model = VisionModel::load_with(source, options).unwrap();
            let models = [model.try_clone().unwrap(), model];
            models
                .map(|model| -> Plain { Box::new(move || drop(model.describe(&vision_request()).unwrap())) })
        },
    },
    Kind {
        folder: "text_to_image",
        register: |builder, source| builder.text_to_image("model", source),
        ask: |engine| {
            Box::pin(async { engine.text_to_image("model")?.paint(paint_request()).await.map(drop) })
        },
        preload: |engine| Box::pin(async { Ok(engine.text_to_image("model")?.model().preload().await?) }),
        clones: |source, options| {
            let model = TextToImageModel::load_with(source, options).unwrap();
            let models = [model.try_clone().unwrap(), model];
            models.map(|model| -> Plain {
                Box::new(move || drop(model.paint(&paint_request(), |_| {}).unwrap()))
            })
        },
    },
];

/// The output of models of late interaction.
fn token_vectors() -> EmbedOutputs {
    EmbedOutputs::default().with_vectors(false).with_token_vectors(true)
}

/// A text of a few tokens.
pub(crate) const TEXT: &str = "The cat sleeps on the sofa.";

pub(crate) fn rerank_request() -> RerankDocuments {
    RerankDocuments::new(TEXT, [TEXT])
}

pub(crate) fn text_request() -> GenerateText {
    GenerateText::from(TEXT).with_max_tokens(16)
}

pub(crate) fn vision_request() -> DescribeImage {
    DescribeImage::new(ImageSource::Picture(picture()))
        .with_question("What is this?")
        .with_sampling(model_actors::Sampling::default())
        .with_max_tokens(16)
}

pub(crate) fn paint_request() -> PaintImage {
    PaintImage::from("a red circle").with_steps(2).with_seed(1)
}

/// A gradient.
pub(crate) fn picture() -> Picture {
    let (width, height) = (45, 34);
    let rgb =
        (0..height).flat_map(|y| (0..width).flat_map(move |x| [x * 5, y * 7, 90])).map(|value| value as u8);
    Picture::new(width, height, rgb.collect())
}

/// A family's model.
pub(crate) struct Fixture {
    pub(crate) kind: Kind,
    pub(crate) path: PathBuf,
}

impl Fixture {
    /// As in `text_to_text/llama`.
    pub(crate) fn name(&self) -> String {
        format!("{}/{}", self.kind.folder, self.path.file_name().unwrap().to_string_lossy())
    }

    pub(crate) fn source(&self) -> Source {
        Source::directory(&self.path)
    }
}

/// Fixtures of all families.
pub(crate) fn fixtures() -> Vec<Fixture> {
    let mut fixtures = Vec::new();
    for kind in KINDS {
        let folder = root().join("tests/fixtures").join(kind.folder);
        let names = families_of(kind.folder).into_iter();
        fixtures.extend(names.map(|name| Fixture { kind, path: folder.join(name) }));
    }
    fixtures.sort_by_key(Fixture::name);
    fixtures
}
