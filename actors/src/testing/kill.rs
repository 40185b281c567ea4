//! Kills any actor of a named system, as nothing but a fault would.

use ractor::registry::where_is;

/// Kills the actor that stands in ractor's registry under this name, in the middle of its work, and waits until it is
/// dead. [`SystemBuilder::name`](crate::SystemBuilder::name) says under which names the actors of a system stand.
///
/// ```
/// use model_actors::testing::{FakeLoader, kill, quick_timings, shut_down};
/// use model_actors::{CallOptions, EmbedTexts, ModelSpec, System, TextEmbedding};
///
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// let (system, pool) = quick_timings();
/// let builder = System::builder(system).pool::<TextEmbedding>(pool.with_max_workers(1)).name("killed");
/// let system = builder.start().await?;
/// let client = system.client::<TextEmbedding>()?;
/// let english = client.register(ModelSpec::new("english", FakeLoader::default()))?;
/// english.preload().await?;
/// kill("killed/text_embedding/english#1").await;
/// let vectors = english.call(EmbedTexts::from("a cat"), CallOptions::default()).await?.vectors;
/// assert_eq!(vectors.len(), 1, "a replacement answers");
/// let (report, leaks) = shut_down(&system).await;
/// assert!(report.is_clean() && leaks.is_empty(), "{leaks:?}");
/// # Ok::<(), model_actors::Error>(())
/// # }).unwrap();
/// ```
///
/// # Panics
/// If no actor has the name.
pub async fn kill(name: &str) {
    let actor = where_is(name).unwrap_or_else(|| panic!("no actor is registered as {name}"));
    actor.kill_and_wait(None).await.unwrap_or_else(|error| panic!("{name} cannot be killed: {error}"));
}
