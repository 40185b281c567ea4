//! Models in processes of their own: children of the application's executable, one for each worker. A fault that ends a
//! process (a segfault, an abort, the kernel when memory runs out) ends the child alone, and a worker that hangs is killed.
//! Images are decoded in such processes too where [`ImageSettings::isolation`](crate::ImageSettings::isolation) says so.
//! How that works is left to [`model_actors::isolation`].

pub use model_actors::isolation::{
    Helpers, IsolatedLoader, IsolatedWork, Isolation, KnownLoader, ProcessEnd, ProcessOptions,
};
use model_actors::{ImageEmbedding, Reranking, TextEmbedding, TextToImage, TextToText, Vision};

use crate::image_input::DecodeImage;
use crate::loader::ModelLoader;
use crate::models::image_embedding::ImageEmbeddingModel;
use crate::models::reranking::RerankingModel;
use crate::models::text_embedding::TextEmbeddingModel;
use crate::models::text_to_image::TextToImageModel;
use crate::models::text_to_text::TextGenerationModel;
use crate::models::vision::VisionModel;

/// Runs a model or decodes images, and does not return, if this process is a child that was started for that; otherwise notes that this
/// executable can start children, and returns. To be called at the top of `main`, before a runtime is started, an argument
/// read or a log opened: a child shall not do what the application does.
///
/// ```no_run
/// use candle_actors::isolation::{ProcessOptions, run_child_if_asked};
/// use candle_actors::{Engine, Source, SourceSpec};
///
/// fn main() -> candle_actors::Result<()> {
///     run_child_if_asked();
///     let runtime = tokio::runtime::Runtime::new().expect("threads can be started");
///     runtime.block_on(async {
///         let english = SourceSpec::from(Source::directory("models/english-embedding-small"))
///             .with_isolation(ProcessOptions::default());
///         let engine = Engine::builder().text_embedding("english", english).start().await?;
///         let vector = engine.text_embedding("english")?.embed("The cat sleeps.").await?;
///         println!("{} dimensions", vector.len());
///         engine.shutdown().await;
///         Ok(())
///     })
/// }
/// ```
pub fn run_child_if_asked() {
    run_child_with([]);
}

/// As [`run_child_if_asked`], for an executable that has loaders of its own beside this crate's.
///
/// ```
/// use candle_actors::TextEmbedding;
/// use candle_actors::isolation::{IsolatedLoader, KnownLoader, run_child_with};
///
/// fn first_line_of_main<L: IsolatedLoader<TextEmbedding>>() {
///     run_child_with([KnownLoader::of::<TextEmbedding, L>()]);
/// }
/// ```
pub fn run_child_with(loaders: impl IntoIterator<Item = KnownLoader>) {
    let shipped = [
        KnownLoader::of::<TextEmbedding, ModelLoader<TextEmbeddingModel>>(),
        KnownLoader::of::<Reranking, ModelLoader<RerankingModel>>(),
        KnownLoader::of::<TextToText, ModelLoader<TextGenerationModel>>(),
        KnownLoader::of::<ImageEmbedding, ModelLoader<ImageEmbeddingModel>>(),
        KnownLoader::of::<Vision, ModelLoader<VisionModel>>(),
        KnownLoader::of::<TextToImage, ModelLoader<TextToImageModel>>(),
        KnownLoader::of_work::<DecodeImage>(),
    ];
    model_actors::isolation::run_child_if_asked(shipped.into_iter().chain(loaders));
}
