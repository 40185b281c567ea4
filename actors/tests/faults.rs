//! Fakes and faults for applications' tests: each shipped capability answers without weights, each fault of a load or a
//! run does what it says, and the check at the end finds what is left.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use common::*;
use model_actors::testing::{
    Act, FakeCapability, FakeLoader, Fault, FaultyLoader, Gate, HookedLoader, Leak, Scripted, ScriptedLoader,
    TestSystem, quick_timings, shut_down, wait_for,
};
use model_actors::{
    CallOptions, Capability, DescribeImage, EmbedImages, EmbedTexts, Error, Event, Failure, FinishReason,
    GenerateText, ImageEmbedding, ImageSource, ModelHandle, ModelSpec, PaintImage, Picture, StallLimits,
    System, TextChunk, TextEmbedding, TextToImage, TextToText, Vision, WorkerPhase,
};

async fn start_all() -> System {
    let (system, pool) = quick_timings();
    let builder = System::builder(system)
        .pool::<TextEmbedding>(pool.clone())
        .pool::<TextToText>(pool.clone())
        .pool::<ImageEmbedding>(pool.clone())
        .pool::<Vision>(pool.clone())
        .pool::<TextToImage>(pool);
    builder.start().await.unwrap()
}

fn fake<C: FakeCapability>(system: &System) -> ModelHandle<C> {
    system.client::<C>().unwrap().register(ModelSpec::new("fake", FakeLoader::<C>::default())).unwrap()
}

/// The chunks and the output of a stream.
async fn read<C: Capability>(model: &ModelHandle<C>, request: C::Request) -> (Vec<C::Chunk>, C::Output) {
    let mut stream = model.stream(request, CallOptions::default()).await.unwrap();
    let mut chunks = Vec::new();
    while let Some(chunk) = stream.next().await {
        chunks.push(chunk.unwrap());
    }
    (chunks, stream.output().await.unwrap())
}

fn text_of(chunks: &[TextChunk]) -> String {
    chunks.iter().map(|chunk| chunk.text.as_str()).collect()
}

async fn finish(system: System) {
    let (report, leaks) = shut_down(&system).await;
    assert!(report.is_clean() && leaks.is_empty(), "{leaks:?}");
}

#[tokio::test]
async fn each_shipped_capability_has_a_fake() {
    let system = start_all().await;
    let picture = Picture::new(1, 1, vec![1, 2, 3]);

    let texts = EmbedTexts::new(["a cat", "a dog", "a cat"]);
    let vectors = fake::<TextEmbedding>(&system).call(texts, CallOptions::default()).await.unwrap().vectors;
    assert!(vectors.len() == 3 && vectors[0] == vectors[2] && vectors[0] != vectors[1]);

    let images = EmbedImages::images([ImageSource::Picture(picture.clone())]);
    let vectors = fake::<ImageEmbedding>(&system).call(images, CallOptions::default()).await.unwrap().vectors;
    assert_eq!(vectors.len(), 1);

    let request = GenerateText::from("one two three").with_max_tokens(2);
    let (chunks, completion) = read(&fake::<TextToText>(&system), request).await;
    assert_eq!((text_of(&chunks), completion.finish_reason), ("one two ".to_owned(), FinishReason::Length));
    assert_eq!(completion.usage.completion_tokens, 2);

    let request = DescribeImage::new(ImageSource::Picture(picture)).with_question("What is it?");
    assert_eq!(read(&fake::<Vision>(&system), request).await.1.text, "What is it?");

    let request = PaintImage::from("a red circle").with_steps(3).with_size((4, 2));
    let (steps, painted) = read(&fake::<TextToImage>(&system), request).await;
    assert_eq!((steps.len(), steps[2].step, painted.rgb.len()), (3, 3, 24));
    finish(system).await;
}

async fn chat(
    faults: impl FnOnce(FaultyLoader<FakeLoader<TextToText>>) -> FaultyLoader<FakeLoader<TextToText>>,
) -> (System, ModelHandle<TextToText>) {
    let (system, pool) = quick_timings();
    // A panic's backtrace takes a good part of a second on a busy machine.
    let stall = StallLimits::default().with_run(millis(2_000));
    let pool = pool.with_max_workers(1).with_stall(stall);
    let system = System::builder(system).pool::<TextToText>(pool).start().await.unwrap();
    let loader = faults(FaultyLoader::new(FakeLoader::default()));
    let client = system.client::<TextToText>().unwrap();
    let model = client.register(ModelSpec::new("chat", loader)).unwrap();
    (system, model)
}

async fn say(model: &ModelHandle<TextToText>) -> model_actors::Result<String> {
    Ok(model.call(GenerateText::from("hello"), CallOptions::default()).await?.text)
}

#[tokio::test]
async fn loads_fail_panic_and_run_out_of_memory_in_turn() {
    let loads = [
        Fault::Fail(Failure::failed("the disk is gone")),
        Fault::Panic,
        Fault::Fail(Failure::out_of_memory("no page left")),
    ];
    let (system, model) = chat(|loader| loader.with_load_faults(loads)).await;
    let mut events = system.events();
    assert_eq!(say(&model).await.unwrap(), "hello");
    for words in ["the disk is gone", "this load panics", "no page left"] {
        TestSystem::event(&mut events, words, |event| {
            matches!(event, Event::StartFailed { error, .. } if error.to_string().contains(words))
                .then_some(())
        })
        .await;
    }
    finish(system).await;
}

#[tokio::test]
async fn a_slow_load_makes_progress_and_a_slow_run_pauses_at_each_step() {
    let slow = Fault::Slow(millis(50));
    let (system, model) =
        chat(|loader| loader.with_load_faults([slow.clone()]).with_run_faults([slow])).await;
    let began = std::time::Instant::now();
    assert_eq!(say(&model).await.unwrap(), "hello");
    assert!(began.elapsed() >= millis(150), "a load, a start of a run and a word");
    finish(system).await;
}

#[tokio::test]
async fn runs_fail_panic_and_hang_in_turn() {
    let gate = Gate::default();
    let runs = [Fault::Fail(Failure::failed("a number is not one")), Fault::Panic, Fault::Hang(gate.latch())];
    let (system, model) = chat(|loader| loader.with_run_faults(runs)).await;
    let error = say(&model).await.unwrap_err();
    assert!(error.to_string().contains("a number is not one"), "{error}");
    // The run that panics is repeated, and hangs.
    let error = say(&model).await.unwrap_err();
    assert!(matches!(error, Error::WorkerStuck { .. }), "{error}");
    assert_eq!(say(&model).await.unwrap(), "hello");
    gate.open();
    wait_for(&mut system.watch(), "the stuck thread has ended", |status| {
        let workers = status.pools[0].models.iter().flat_map(|model| &model.workers);
        workers.into_iter().all(|worker| worker.phase != WorkerPhase::Stuck)
    })
    .await;
    finish(system).await;
}

#[tokio::test]
async fn faults_leave_a_hook_inside_in_place() {
    let (system, pool) = quick_timings();
    let system = System::builder(system).pool::<TextToText>(pool).start().await.unwrap();
    let steps = times(0);
    let counter = steps.clone();
    let hook = move || {
        counter.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
    };
    let loader = FaultyLoader::new(HookedLoader::new(FakeLoader::<TextToText>::default(), hook));
    let model = system.client::<TextToText>().unwrap().register(ModelSpec::new("chat", loader)).unwrap();
    say(&model).await.unwrap();
    assert_eq!(count(&steps), 2, "the start of the request, and a word");
    finish(system).await;
}

#[tokio::test]
async fn the_check_at_the_end_finds_a_thread_and_its_bytes() {
    let (config, pool) = quick_timings();
    let builder = System::builder(config.with_shutdown_timeout(millis(50))).pool::<Scripted>(pool);
    let system = builder.start().await.unwrap();
    let gate = Gate::default();
    let client = system.client::<Scripted>().unwrap();
    let model = client.register(ModelSpec::new("model", ScriptedLoader::default())).unwrap();
    let pending = send(&model, Act::Hang(gate.latch()));
    until_true(|| gate.was_reached()).await;
    let (_, leaks) = shut_down(&system).await;
    assert!(matches!(&leaks[..], [Leak::Bytes { .. }, Leak::Threads { .. }]), "{leaks:?}");
    gate.open();
    end(pending).await.unwrap_err();
}
