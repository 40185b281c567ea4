//! A model in a process serves as one on a thread: requests and answers, streams, marks, limits on time, joins.

use std::time::Duration;

use model_actors::isolation::{Isolation, ProcessOptions};
use model_actors::testing::{FakeCapability, shut_down, wait_for};
use model_actors::{
    CallOptions, EmbedImages, EmbedTexts, Error, ImageEmbedding, ImageSource, ModelSpec, Picture, System,
    TextEmbedding,
};

use crate::model::*;

pub(crate) const TESTS: &[crate::tests::Test] = &[
    ("a_request_is_answered_by_another_process", || block_on(a_request_is_answered_by_another_process())),
    ("the_shipped_messages_cross", || block_on(the_shipped_messages_cross())),
    ("a_stream_crosses_whole_and_in_order", || block_on(a_stream_crosses_whole_and_in_order())),
    ("a_reader_that_takes_nothing_loses_its_stream", || {
        block_on(a_reader_that_takes_nothing_loses_its_stream())
    }),
    ("progress_crosses", || block_on(progress_crosses())),
    ("the_progress_of_a_load_crosses", || block_on(the_progress_of_a_load_crosses())),
    ("cancel_marks_and_deadlines_cross", || block_on(cancel_marks_and_deadlines_cross())),
    ("a_slow_reader_holds_up_nobody", || block_on(a_slow_reader_holds_up_nobody())),
    ("requests_join_a_run", || block_on(requests_join_a_run())),
    ("a_loader_that_children_do_not_know_is_refused", a_loader_that_children_do_not_know_is_refused),
    ("workers_of_a_model_have_a_process_each", || block_on(workers_of_a_model_have_a_process_each())),
];

/// Called before `run_child_if_asked`.
pub(crate) fn a_main_without_the_first_line_is_told_so() {
    let isolation = Isolation::Process(ProcessOptions::default());
    let refused = ModelSpec::<Acts>::isolated("m", ActLoader::default(), &isolation).err().unwrap();
    assert!(matches!(&refused, Error::InvalidConfig { setting, .. } if setting == "isolation"), "{refused}");
    assert!(refused.to_string().contains("run_child_if_asked at the top of main"), "{refused}");
    assert!(ModelSpec::<Acts>::isolated("m", ActLoader::default(), &Isolation::Thread).is_ok());
}

fn a_loader_that_children_do_not_know_is_refused() {
    let isolation = Isolation::Process(ProcessOptions::default());
    let refused =
        ModelSpec::<model_actors::Vision>::isolated("m", Fakes::default(), &isolation).err().unwrap();
    assert!(refused.to_string().contains("do not know the loader \"fakes\" of vision"), "{refused}");
}

async fn a_request_is_answered_by_another_process() {
    let stage = Stage::start().await;
    let model = stage.model("one");
    let said = ask(&model, Act::Reply("hello".into())).await.unwrap();
    assert_eq!(said.words, "hello");
    assert_ne!(said.process, std::process::id());
    assert_eq!(process_of(&model).await, said.process, "it stays");
    let status = stage.system.status();
    let footprint = status.model("acts", "one").unwrap().footprint.unwrap();
    assert_eq!(
        (footprint.shared, footprint.per_worker),
        (model_actors::Bytes::ZERO, model_actors::Bytes::mib(9))
    );
    stage.finish().await;
    assert!(!is_there(said.process), "neither as a process nor as a zombie");
}

async fn the_shipped_messages_cross() {
    let (system, pool) = timings();
    let builder = System::builder(system).pool::<TextEmbedding>(pool.clone()).pool::<ImageEmbedding>(pool);
    let system = builder.start().await.unwrap();
    let isolation = Isolation::Process(ProcessOptions::default());
    let texts = system.client::<TextEmbedding>().unwrap();
    let texts = texts.register(ModelSpec::isolated("t", Fakes::default(), &isolation).unwrap()).unwrap();
    let request = EmbedTexts::new(["a cat", "ein Bär"]);
    let found = texts.call(request.clone(), CallOptions::default()).await.unwrap();
    assert_eq!(found, TextEmbedding::answer(&request).output);
    let images = system.client::<ImageEmbedding>().unwrap();
    let images = images.register(ModelSpec::isolated("i", Fakes::default(), &isolation).unwrap()).unwrap();
    // More than the buffers of the connection hold.
    let picture = Picture::new(1024, 1024, (0..3 << 20).map(|place: u32| place as u8).collect());
    let request = EmbedImages::images([ImageSource::Picture(picture)]);
    let found = images.call(request.clone(), CallOptions::default()).await.unwrap();
    assert_eq!(found, ImageEmbedding::answer(&request).output);
    // What cannot travel fails alone, with the reason.
    let path = EmbedImages::images([ImageSource::Path("cat.png".into())]);
    let refused = images.call(path, CallOptions::default()).await.unwrap_err();
    assert!(
        matches!(&refused, Error::InvalidInput { cause } if cause.message().contains("pixels")),
        "{refused}"
    );
    images.call(request, CallOptions::default()).await.unwrap();
    let (report, leaks) = shut_down(&system).await;
    assert!(report.is_clean() && leaks.is_empty(), "{leaks:?}");
}

async fn a_stream_crosses_whole_and_in_order() {
    let stage = Stage::start().await;
    let model = stage.model("one");
    let request = Ask { chunks: 2000, act: Act::Reply("end".into()), ballast: vec![7; 1 << 20] };
    let mut stream = model.stream(request, CallOptions::default()).await.unwrap();
    for number in 0..2000 {
        assert_eq!(stream.next().await.unwrap().unwrap(), number);
    }
    assert_eq!(stream.output().await.unwrap().words, "end");
    stage.finish().await;
}

async fn a_reader_that_takes_nothing_loses_its_stream() {
    let stage = Stage::start().await;
    let model = stage.model("one");
    let process = process_of(&model).await;
    let request = Ask { chunks: 100_000, ..Act::Reply("end".into()).into() };
    let mut stream = model.stream(request, CallOptions::default()).await.unwrap();
    // It has the worker to itself, so that another's answer tells of its end.
    assert_eq!(process_of(&model).await, process, "the process is not to blame");
    let mut last = None;
    while let Some(chunk) = stream.next().await {
        last = Some(chunk);
    }
    assert!(matches!(last, Some(Err(Error::SlowReader { .. }))), "{last:?}");
    stage.finish().await;
}

async fn progress_crosses() {
    let stage = Stage::start().await;
    let model = stage.model("one");
    // Longer than the limit without progress.
    let process = process_of(&model).await;
    let said = ask(&model, Act::Tick(Duration::from_secs(5))).await.unwrap();
    assert_eq!(said.process, process);
    stage.finish().await;
}

async fn the_progress_of_a_load_crosses() {
    let stage = Stage::start().await;
    let loader = ActLoader { steps: 50, ..ActLoader::default() };
    let model = stage.model_with("one", loader, ProcessOptions::default());
    let mut status = stage.system.watch();
    let pending = tokio::spawn(async move { ask(&model, Act::Reply("loaded".into())).await });
    wait_for(&mut status, "half of the load is shown", |status| {
        let load = status.model("acts", "one").and_then(|model| model.loading.as_ref());
        load.and_then(|load| load.percent).is_some_and(|percent| (30..100).contains(&percent))
    })
    .await;
    assert_eq!(pending.await.unwrap().unwrap().words, "loaded");
    stage.finish().await;
}

async fn cancel_marks_and_deadlines_cross() {
    let stage = Stage::start().await;
    let model = stage.model("one");
    let process = process_of(&model).await;
    let stream = model.stream(Ask { chunks: 1, ..Act::UntilCancelled.into() }, CallOptions::default()).await;
    let mut stream = stream.unwrap();
    stream.next().await.unwrap().unwrap();
    drop(stream);
    assert_eq!(process_of(&model).await, process, "the run ended by its mark");
    let soon = CallOptions::default().with_timeout(Duration::from_millis(200));
    // The model sees its mark at the deadline, and may answer before the pool does.
    if let Err(late) = model.call(Act::UntilCancelled.into(), soon).await {
        assert!(matches!(late, Error::Timeout { .. }), "{late}");
    }
    assert_eq!(process_of(&model).await, process, "the run ended by its deadline");
    stage.finish().await;
}

async fn requests_join_a_run() {
    let stage = Stage::start().await;
    let loader = ActLoader { joins: true, ..ActLoader::default() };
    let model = stage.model_with("one", loader, ProcessOptions::default());
    let first = Ask { chunks: 1, ..Act::UntilCancelled.into() };
    let mut first = model.stream(first, CallOptions::default()).await.unwrap();
    first.next().await.unwrap().unwrap();
    // More than there are seats, so that seats have to come free in the run.
    for round in 0..100 {
        let joined = Ask { chunks: 3, ..Act::Reply(round.to_string()).into() };
        let mut joined = model.stream(joined, CallOptions::default()).await.unwrap();
        for number in 0..3 {
            assert_eq!(joined.next().await.unwrap().unwrap(), number);
        }
        assert_eq!(joined.output().await.unwrap().words, round.to_string());
    }
    let together: Vec<_> = (0..40)
        .map(|number: u64| {
            let model = model.clone();
            tokio::spawn(async move { ask(&model, Act::Reply(number.to_string())).await.unwrap().words })
        })
        .collect();
    for (number, pending) in together.into_iter().enumerate() {
        assert_eq!(pending.await.unwrap(), number.to_string());
    }
    let mut status = stage.system.watch();
    wait_for(&mut status, "the first alone still runs", |status| {
        status.model("acts", "one").is_some_and(|model| model.in_flight == 1)
    })
    .await;
    drop(first);
    // Runs that end while others come.
    for number in 0..200 {
        assert_eq!(ask(&model, Act::Reply(number.to_string())).await.unwrap().words, number.to_string());
    }
    stage.finish().await;
}

async fn a_slow_reader_holds_up_nobody() {
    let (system, pool) = timings();
    let stage = Stage::with((system, pool.with_stream_buffer(4))).await;
    let loader = ActLoader { joins: true, ..ActLoader::default() };
    let model = stage.model_with("one", loader, ProcessOptions::default());
    // More than the reader's buffer holds, and not more than may be under way: the child is done with it.
    let request = Ask { chunks: 30, ..Act::Reply("slow".into()).into() };
    let mut slow = model.stream(request, CallOptions::default()).await.unwrap();
    assert_eq!(slow.next().await.unwrap().unwrap(), 0);
    for number in 0..20 {
        assert_eq!(ask(&model, Act::Reply(number.to_string())).await.unwrap().words, number.to_string());
    }
    for number in 1..30 {
        assert_eq!(slow.next().await.unwrap().unwrap(), number);
    }
    assert_eq!(slow.output().await.unwrap().words, "slow");
    stage.finish().await;
}

async fn workers_of_a_model_have_a_process_each() {
    let (system, pool) = timings();
    let stage = Stage::with((system, pool.with_max_workers(2))).await;
    let model = stage.model("one");
    let first = process_of(&model).await;
    let mut busy =
        model.stream(Ask { chunks: 1, ..Act::UntilCancelled.into() }, CallOptions::default()).await.unwrap();
    busy.next().await.unwrap().unwrap();
    let second = process_of(&model).await;
    drop(busy);
    assert_ne!(first, second);
    let status = stage.system.status();
    let model = status.model("acts", "one").unwrap();
    assert_eq!(model.bytes, model_actors::Bytes::mib(18), "each has its weights to itself");
    stage.finish().await;
}
