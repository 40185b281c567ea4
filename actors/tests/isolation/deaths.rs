//! The deaths of such a process, each in the middle of a stream and before any output, and all the other ways in which it is
//! lost: it hangs, does not stop, writes garbage, reads nothing, takes too much.

use std::time::Duration;

use model_actors::isolation::{ProcessEnd, ProcessOptions};
use model_actors::testing::wait_for;
use model_actors::{Bytes, CallOptions, Cause, Error, ModelHandle, ReplyStream};

use crate::model::*;

pub(crate) const TESTS: &[crate::tests::Test] = &[
    ("a_segfault", || block_on(a_death(0))),
    ("an_abort", || block_on(a_death(1))),
    ("a_stack_overflow", || block_on(a_death(2))),
    ("an_exit", || block_on(a_death(3))),
    ("a_kill", || block_on(a_death(4))),
    ("a_panic_is_told_as_on_a_thread", || block_on(a_panic_is_told_as_on_a_thread())),
    ("an_endless_loop_without_progress", || block_on(an_endless_loop_without_progress())),
    ("a_loop_that_ignores_its_mark", || block_on(a_loop_that_ignores_its_mark())),
    ("garbage", || block_on(garbage())),
    ("a_process_that_stops_reading", || block_on(a_process_that_stops_reading())),
    ("too_much_memory", || block_on(too_much_memory())),
    ("those_beside_a_crash_are_run_again", || block_on(those_beside_a_crash_are_run_again())),
    ("a_death_while_loading", || block_on(a_death_while_loading())),
    ("a_death_between_two_requests", || block_on(a_death_between_two_requests())),
];

/// A stream that goes on beside what happens to another model.
struct Bystander {
    model: ModelHandle<Acts>,
    stream: ReplyStream<Acts>,
    process: u32,
}

impl Bystander {
    async fn start(stage: &Stage) -> Self {
        let model = stage.model("bystander");
        let process = process_of(&model).await;
        let request = Ask { chunks: 1, ..Act::UntilCancelled.into() };
        let mut stream = model.stream(request, CallOptions::default()).await.unwrap();
        stream.next().await.unwrap().unwrap();
        Self { model, stream, process }
    }

    /// Nothing has happened to it.
    async fn end_unaffected(self) {
        drop(self.stream);
        assert_eq!(process_of(&self.model).await, self.process);
    }
}

/// The error that ends a stream of which three chunks come first.
async fn end_in_mid_stream(model: &ModelHandle<Acts>, act: Act) -> Error {
    let mut stream = model.stream(Ask { chunks: 3, ..act.into() }, CallOptions::default()).await.unwrap();
    for number in 0..3 {
        assert_eq!(stream.next().await.unwrap().unwrap(), number);
    }
    let error = stream.next().await.unwrap().unwrap_err();
    assert!(stream.next().await.is_none(), "one end");
    error
}

async fn a_death(which: usize) {
    let (fate, word) = Fate::ALL[which];
    let stage = Stage::start().await;
    let (victim, bystander) = (stage.model("victim"), Bystander::start(&stage).await);
    let first = process_of(&victim).await;

    let error = end_in_mid_stream(&victim, Act::Die(fate)).await;
    assert!(
        matches!(&error, Error::WorkerCrashed { cause, .. } if cause.message().contains(word)),
        "{error}"
    );
    let end = error.cause().and_then(Cause::data::<ProcessEnd>).expect("the end is there as data");
    match fate {
        Fate::Exit => assert_eq!(end, ProcessEnd::Exited { status: 3 }),
        _ => assert!(matches!(end, ProcessEnd::Signal { .. }), "{end:?}"),
    }
    let second = process_of(&victim).await;
    assert!(second != first && !is_there(first));

    // Before any output it is run again, alone, and not a third time.
    let error = ask(&victim, Act::Die(fate)).await.unwrap_err();
    assert!(
        matches!(&error, Error::Poison { deaths: 2, cause, .. } if cause.message().contains(word)),
        "{error}"
    );
    let third = process_of(&victim).await;
    assert!(third != second && !is_there(second));

    bystander.end_unaffected().await;
    stage.finish().await;
    assert!(!is_there(third));
}

async fn a_panic_is_told_as_on_a_thread() {
    let stage = Stage::start().await;
    let model = stage.model("one");
    let error = end_in_mid_stream(&model, Act::Panic).await;
    let words = "it panicked: the script says so";
    assert!(matches!(&error, Error::WorkerCrashed { cause, .. } if cause.message() == words), "{error}");
    stage.finish().await;
}

/// True if no thread of the model's workers is stuck, and the bytes of one worker are charged.
async fn is_whole_again(stage: &Stage, name: &str) {
    let mut status = stage.system.watch();
    wait_for(&mut status, "the lost worker's bytes are back", |status| {
        let model = status.model("acts", name);
        model.is_some_and(|model| {
            model.workers.len() == 1 && model.bytes == Bytes::mib(9) && model.is_serving()
        })
    })
    .await;
}

async fn an_endless_loop_without_progress() {
    let stage = Stage::start().await;
    let (model, bystander) = (stage.model("one"), Bystander::start(&stage).await);
    let first = process_of(&model).await;
    let error = end_in_mid_stream(&model, Act::Hang).await;
    assert!(matches!(error, Error::WorkerStuck { .. }), "{error}");
    // Killed, not quarantined.
    assert_ne!(process_of(&model).await, first);
    is_whole_again(&stage, "one").await;
    assert!(!is_there(first));
    bystander.end_unaffected().await;
    stage.finish().await;
}

async fn a_loop_that_ignores_its_mark() {
    let stage = Stage::start().await;
    let options = ProcessOptions::default().with_cancel_limit(Duration::from_millis(300));
    let model = stage.model_with("one", ActLoader::default(), options);
    let first = process_of(&model).await;
    let request = Ask { chunks: 1, ..Act::Deaf.into() };
    let mut stream = model.stream(request, CallOptions::default()).await.unwrap();
    stream.next().await.unwrap().unwrap();
    drop(stream);
    assert_ne!(process_of(&model).await, first);
    is_whole_again(&stage, "one").await;
    assert!(!is_there(first));
    stage.finish().await;
}

async fn garbage() {
    let stage = Stage::start().await;
    let (model, bystander) = (stage.model("one"), Bystander::start(&stage).await);
    // A length over the limit; a frame that is no message; one whose message makes no sense.
    for bytes in [vec![0xff; 64], vec![0, 0, 0, 3, 0xc1, 0xc1, 0xc1], vec![0, 0, 0, 1, 0x07]] {
        let process = process_of(&model).await;
        let error = end_in_mid_stream(&model, Act::Garbage(bytes)).await;
        assert!(
            matches!(&error, Error::WorkerCrashed { cause, .. } if cause.message().contains("broke the protocol")),
            "{error}"
        );
        assert_ne!(process_of(&model).await, process);
        assert!(!is_there(process));
    }
    bystander.end_unaffected().await;
    stage.finish().await;
}

async fn a_process_that_stops_reading() {
    let stage = Stage::start().await;
    let (model, bystander) = (stage.model("one"), Bystander::start(&stage).await);
    let first = process_of(&model).await;
    let error = end_in_mid_stream(&model, Act::StopReading).await;
    assert!(matches!(error, Error::WorkerStuck { .. }), "{error}");
    // Requests that no buffer holds are no reason to wait for it.
    let large = Ask { ballast: vec![0; 8 << 20], ..Act::Reply("large".into()).into() };
    let said = model.call(large, CallOptions::default()).await.unwrap();
    assert_ne!(said.process, first);
    is_whole_again(&stage, "one").await;
    assert!(!is_there(first));
    bystander.end_unaffected().await;
    stage.finish().await;
}

async fn too_much_memory() {
    let stage = Stage::start().await;
    let options = ProcessOptions::default().with_address_space(Bytes::mib(2048));
    let model = stage.model_with("limited", ActLoader::default(), options);
    let free = stage.model("free");
    let much = 3 << 30;
    let error = ask(&model, Act::Allocate(much)).await.unwrap_err();
    assert!(
        matches!(&error, Error::Poison { cause, .. } if cause.message().contains("SIGABRT")),
        "the allocator gives up: {error}"
    );
    assert_eq!(ask(&model, Act::Allocate(1 << 20)).await.unwrap().words, (1 << 20).to_string());
    process_of(&free).await;
    stage.finish().await;
}

async fn those_beside_a_crash_are_run_again() {
    let stage = Stage::start().await;
    let model = stage.model("one");
    process_of(&model).await;
    let send = |act: Act| {
        let model = model.clone();
        tokio::spawn(async move { ask(&model, act).await })
    };
    // They gather behind it, and run together.
    let mut first = model
        .stream(Ask { chunks: 1, ..Act::Tick(Duration::from_millis(500)).into() }, CallOptions::default())
        .await
        .unwrap();
    first.next().await.unwrap().unwrap();
    let before: Vec<_> = (0..3).map(|number: u64| send(Act::Tick(Duration::from_millis(number)))).collect();
    let guilty = send(Act::Die(Fate::Segfault));
    let after: Vec<_> = (0..3).map(|number: u64| send(Act::Reply(number.to_string()))).collect();
    for pending in before.into_iter().chain(after) {
        pending.await.unwrap().unwrap();
    }
    let error = guilty.await.unwrap().unwrap_err();
    assert!(matches!(error, Error::Poison { deaths: 2, .. }), "{error}");
    drop(first);
    stage.finish().await;
}

async fn a_death_while_loading() {
    let stage = Stage::start().await;
    let loader = ActLoader { dies: Some(Fate::Segfault), ..ActLoader::default() };
    let model = stage.model_with("one", loader, ProcessOptions::default());
    let error = ask(&model, Act::Reply(String::new())).await.unwrap_err();
    // The budget of restarts is spent on it.
    assert!(error.cause().is_some_and(|cause| cause.message().contains("SIGSEGV")), "{error}");
    stage.finish().await;
}

async fn a_death_between_two_requests() {
    let stage = Stage::start().await;
    let model = stage.model("one");
    let first = process_of(&model).await;
    let mut status = stage.system.watch();
    let pid = rustix::process::Pid::from_raw(first.cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    // A health check finds it, and nobody is asked for it.
    wait_for(&mut status, "the death was seen", |status| {
        status.model("acts", "one").is_some_and(|model| model.failures > 0)
    })
    .await;
    assert_ne!(process_of(&model).await, first);
    assert!(!is_there(first));
    stage.finish().await;
}
