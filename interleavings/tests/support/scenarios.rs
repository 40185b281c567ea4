//! The scenarios. Each is a function that shuttle runs again and again, each time with its threads' steps in another order:
//! one in which nobody can go on is a deadlock, and fails as a broken assertion does.

use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use model_actors::{
    Capability, Cause, Error, Lane, ModelId, ModelKey, Priority, QueueCapacity, Time, WorkerId,
};
use shuttle::future::block_on;
use shuttle::rand::Rng;
use shuttle::sync::mpsc::{self, Receiver};
use shuttle::thread::{self, JoinHandle};

use super::gate::PoolGate;
use super::reply::{Reply, ReplyStream, Tally};
use super::{ModelHandle, Shared};
use crate::ActorRef;
use crate::catalogue::Registered;
use crate::entry::{ModelEntry, Slot};
use crate::intake::{Arrival, OpenIntake};
use crate::job::{Accepted, Answer, EmitError, Job, JobParts};
use crate::pool::PoolMessage;
use crate::progress::Clock;
use crate::reaper::Reaped;

/// All of them.
pub(crate) const ALL: [(&str, fn()); 6] = [
    ("one_of_many_answers", one_of_many_answers),
    ("chunks_in_order_then_the_end", chunks_in_order_then_the_end),
    ("runs_do_not_mix", runs_do_not_mix),
    ("no_wakeup_of_the_pool_is_lost", no_wakeup_of_the_pool_is_lost),
    ("everybody_is_told_when_the_pool_dies", everybody_is_told_when_the_pool_dies),
    ("no_slot_is_lost", no_slot_is_lost),
];

/// Numbers in, numbers out.
pub(crate) struct Numbers;

impl Capability for Numbers {
    type Request = u32;
    type Chunk = u32;
    type Output = u32;
    const NAME: &'static str = "numbers";
}

type Handle = ModelHandle<Numbers>;
type Mailbox = Receiver<PoolMessage<Numbers>>;

fn model(slots: usize) -> Handle {
    let capacity = QueueCapacity::new(slots, slots);
    let entry = ModelEntry::new("numbers", ModelKey(1), ModelId::from("m"), capacity, &Arc::default(), Clock);
    let model = Arc::new(Registered { entry, capability: PhantomData });
    ModelHandle { shared: Arc::new(Shared { gate: PoolGate::new() }), model }
}

fn are_all_back(handle: &Handle) -> bool {
    let (free, all) = handle.model.entry.slots();
    free == all
}

fn crashed() -> Error {
    let cause = Cause::new("it crashed");
    Error::WorkerCrashed {
        capability: "numbers".into(),
        model: ModelId::from("m"),
        worker: WorkerId(1),
        cause,
    }
}

/// A request that has its slot, and the caller's end of it.
fn job(
    handle: &Handle,
    request: u32,
    chunks: Option<tokio::sync::mpsc::Sender<u32>>,
) -> (Arc<Job<Numbers>>, Reply<Numbers, Handle>) {
    let slot = Slot::try_take(&handle.model.entry, Lane::Interactive, &None).expect("a slot is free");
    let parts = JobParts {
        entry: handle.model.entry.clone(),
        request: Reaped(request),
        lane: Lane::Interactive,
        tenant: None,
        priority: Priority::default(),
        deadline: Time::NEVER,
        timeout: Duration::MAX,
        total_timeout: Duration::MAX,
        began: Time::ZERO,
        clock: Clock,
        span: tracing::Span::none(),
    };
    let (done, answer) = tokio::sync::oneshot::channel();
    let job = Job::new(parts, Answer { done, chunks, slot });
    let reply = Reply::new(handle.clone(), (job.id, Arc::downgrade(&job)), answer);
    (job, reply)
}

/// A worker that was given up, its successor and a deadline are all about to answer, and the caller may go.
pub(crate) fn one_of_many_answers() {
    let handle = model(1);
    let (job, reply) = job(&handle, 1, None);
    let accepted = Accepted::new(job.clone());
    let (old, given_up) = (job.begin_attempt(), job.clone());
    let given_up = thread::spawn(move || given_up.answer_from(old, Ok(1)));
    let caller = {
        let handle = handle.clone();
        thread::spawn(move || {
            if shuttle::rand::thread_rng().r#gen() {
                return None;
            }
            let answer = block_on(reply.output());
            assert!(are_all_back(&handle), "whoever is answered finds a slot free");
            Some(answer)
        })
    };
    job.end_attempt();
    let (new, successor) = (job.begin_attempt(), job.clone());
    let successor = thread::spawn(move || successor.answer_from(new, Ok(2)));
    let late = job.clone();
    let deadline = thread::spawn(move || late.expire());
    let answered = [given_up.join().unwrap(), successor.join().unwrap()];
    deadline.join().unwrap();
    // The caller is told at once, or by this if nobody has told it.
    drop((job, accepted));
    let told = caller.join().unwrap();
    match (told, answered) {
        (None, [false, _] | [true, false]) => {}
        (Some(Ok(1)), [true, false]) | (Some(Ok(2)), [false, true]) => {}
        (Some(Err(Error::Timeout { .. })), [false, false]) => {}
        (told, answered) => panic!("{told:?} where the workers answered {answered:?}"),
    }
    assert!(are_all_back(&handle));
}

fn emit(job: &Job<Numbers>, attempt: u32, chunk: u32) -> bool {
    let mut chunk = chunk;
    loop {
        match job.emit_from(attempt, chunk) {
            Ok(()) => return true,
            Err(EmitError::Stopped) => return false,
            Err(EmitError::Full(back)) => chunk = back,
        }
        thread::yield_now();
    }
}

fn stream(handle: &Handle, buffer: usize) -> (Arc<Job<Numbers>>, ReplyStream<Numbers>) {
    let (sender, chunks) = tokio::sync::mpsc::channel(buffer);
    let (job, reply) = job(handle, 1, Some(sender));
    let tally = Tally::begin(handle.clone(), tracing::Span::none());
    (job, ReplyStream::new(reply, chunks, tally, tracing::Span::none()))
}

/// Every chunk, in order, and then the output, however the reader and the worker take turns.
pub(crate) fn chunks_in_order_then_the_end() {
    let handle = model(1);
    let (job, mut stream) = stream(&handle, 2);
    let accepted = Accepted::new(job.clone());
    let attempt = job.begin_attempt();
    let worker = thread::spawn(move || {
        for chunk in 1..=3 {
            assert!(emit(&job, attempt, chunk), "somebody reads");
        }
        assert!(job.answer_from(attempt, Ok(9)));
    });
    let read = block_on(async {
        let mut read = Vec::new();
        while let Some(chunk) = stream.next().await {
            read.push(chunk.unwrap());
        }
        (read, stream.output().await.unwrap())
    });
    assert_eq!(read, (vec![1, 2, 3], 9));
    worker.join().unwrap();
    drop(accepted);
    assert!(are_all_back(&handle));
}

/// A run is given up in the middle of its output: its caller sees that run fail, or the next one whole.
pub(crate) fn runs_do_not_mix() {
    let handle = model(1);
    let (job, mut stream) = stream(&handle, 8);
    let accepted = Accepted::new(job.clone());
    let (old, given_up) = (job.begin_attempt(), job.clone());
    let given_up = thread::spawn(move || {
        let _ = emit(&given_up, old, 10) && emit(&given_up, old, 11) && given_up.answer_from(old, Ok(1));
    });
    let reader = thread::spawn(move || {
        block_on(async {
            let mut read = Vec::new();
            while let Some(Ok(chunk)) = stream.next().await {
                read.push(chunk);
            }
            (read, stream.output().await)
        })
    });
    // As the pool does: first the old run is cut off, then it is seen how far it came.
    job.end_attempt();
    if job.has_sent() {
        job.answer(Err(crashed()));
    } else {
        let new = job.begin_attempt();
        let _ = emit(&job, new, 20) && emit(&job, new, 21) && job.answer_from(new, Ok(2));
    }
    given_up.join().unwrap();
    drop((job, accepted));
    match reader.join().unwrap() {
        (read, Ok(1)) => assert_eq!(read, [10, 11]),
        (read, Ok(2)) => assert_eq!(read, [20, 21]),
        (read, Err(Error::WorkerCrashed { .. })) => assert!([10, 11].starts_with(&read), "{read:?}"),
        (read, end) => panic!("{read:?} and {end:?}"),
    }
    assert!(are_all_back(&handle));
}

/// A pool's actor: takes what has arrived whenever it is told, and answers it. Ends when so many messages have come.
struct PoolActor {
    intake: OpenIntake<Numbers>,
    mailbox: Mailbox,
}

impl PoolActor {
    fn start(handle: &Handle) -> Self {
        let intake = OpenIntake::open(handle.shared.gate.intake());
        let (sender, mailbox) = mpsc::channel();
        handle.shared.gate.up(ActorRef::new(sender));
        Self { intake, mailbox }
    }

    /// Serves so many requests, cancelled ones included, or until it dies after so many messages.
    fn serve(&self, requests: usize, messages: usize) {
        let mut served = 0;
        for _ in 0..messages {
            if served == requests || self.mailbox.recv().is_err() {
                return;
            }
            for arrival in self.intake.take() {
                if let Arrival::Submitted { accepted, .. } = arrival {
                    served += 1;
                    let (job, attempt) = (accepted.job().clone(), accepted.job().begin_attempt());
                    job.answer_from(attempt, Ok(*job.parts.request));
                }
            }
        }
    }
}

fn callers(handle: &Handle, number: u32) -> Vec<JoinHandle<Result<u32, Error>>> {
    let call = |request| {
        let handle = handle.clone();
        thread::spawn(move || {
            let (job, reply) = job(&handle, request, None);
            let accepted = Accepted::new(job);
            handle.shared.gate.submit(handle.model.clone(), accepted)?;
            block_on(reply.output())
        })
    };
    (0..number).map(call).collect()
}

/// However many arrive while the pool takes what has arrived, it is told of each.
pub(crate) fn no_wakeup_of_the_pool_is_lost() {
    let handle = model(3);
    let pool = PoolActor::start(&handle);
    let gone = {
        let handle = handle.clone();
        thread::spawn(move || {
            let (job, reply) = job(&handle, 9, None);
            handle.shared.gate.submit(handle.model.clone(), Accepted::new(job)).unwrap();
            drop(reply);
        })
    };
    let callers = callers(&handle, 2);
    let pool = thread::spawn(move || {
        pool.serve(3, usize::MAX);
        pool
    });
    for (request, caller) in callers.into_iter().enumerate() {
        assert_eq!(caller.join().unwrap().unwrap(), request as u32);
    }
    gone.join().unwrap();
    // A cancellation that came last is still in the intake.
    drop(pool.join().unwrap());
    assert!(are_all_back(&handle));
}

/// A pool dies at any moment and another takes its place, or none: every caller is told once, and no slot is lost.
pub(crate) fn everybody_is_told_when_the_pool_dies() {
    let handle = model(2);
    let pool = PoolActor::start(&handle);
    let callers = callers(&handle, 2);
    let dying = thread::spawn(move || pool.serve(2, 1));
    dying.join().unwrap();
    handle.shared.gate.down();
    for (request, caller) in callers.into_iter().enumerate() {
        match caller.join().unwrap() {
            Ok(answer) => assert_eq!(answer, request as u32),
            Err(Error::SendError { .. } | Error::RecvError { .. } | Error::NoWorkers { .. }) => {}
            Err(error) => panic!("{error:?}"),
        }
    }
    assert!(are_all_back(&handle));
    let next = PoolActor::start(&handle);
    let caller = self::callers(&handle, 1).remove(0);
    next.serve(1, usize::MAX);
    assert_eq!(caller.join().unwrap().unwrap(), 0);
    assert!(are_all_back(&handle));
}

/// Whoever waits for a slot and goes away takes none along.
pub(crate) fn no_slot_is_lost() {
    let handle = model(1);
    let entry = handle.model.entry.clone();
    let first = Slot::try_take(&entry, Lane::Interactive, &None).unwrap();
    let impatient = {
        let entry = entry.clone();
        thread::spawn(move || {
            block_on(async {
                let mut taking = Box::pin(Slot::take(&entry, Lane::Interactive, &None, 1));
                std::future::poll_fn(|context| {
                    let _ = taking.as_mut().poll(context);
                    std::task::Poll::Ready(())
                })
                .await;
                shuttle::thread::yield_now();
            });
        })
    };
    let patient = {
        let entry = entry.clone();
        thread::spawn(move || drop(block_on(Slot::take(&entry, Lane::Interactive, &None, 2)).unwrap()))
    };
    drop(first);
    impatient.join().unwrap();
    patient.join().unwrap();
    assert!(are_all_back(&handle));
}
