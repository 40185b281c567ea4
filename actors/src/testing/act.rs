//! Requests to scripted models, which say what happens when they run, the two capabilities that take them, and
//! the [`Record`] of what really happened. The models are in `script`.

use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::gate::Latch;
use crate::capability::{BatchKey, Capability, Cost, NoChunk};
use crate::config::QueueCapacity;

/// Counts of what a scripted model did.
///
/// ```
/// use model_actors::testing::ScriptedLoader;
/// let loader = ScriptedLoader::default();
/// assert_eq!(loader.record.requests_run(), 0);
/// ```
#[derive(Debug, Default)]
pub struct Record {
    /// Questions for the footprint.
    pub sizings: AtomicUsize,
    /// Loads begun.
    pub loads: AtomicUsize,
    /// Builds of a worker's model begun.
    pub builds: AtomicUsize,
    /// Steps run.
    pub steps: AtomicUsize,
    /// Runs begun.
    pub runs: AtomicUsize,
    /// Weights in memory now.
    pub weights_alive: AtomicUsize,
    /// Models in memory now.
    pub models_alive: AtomicUsize,
    pub(super) batches: Mutex<Vec<Vec<u64>>>,
}

impl Record {
    /// The batches so far: the replies that their requests asked for, or their position for other acts.
    pub fn batches(&self) -> Vec<Vec<u64>> {
        self.batches.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Requests run so far, reruns included.
    pub fn requests_run(&self) -> usize {
        self.batches.lock().unwrap_or_else(PoisonError::into_inner).iter().map(Vec::len).sum()
    }
}

/// The act of a request when it runs.
///
/// ```
/// use model_actors::testing::{Act, ScriptedRequest};
/// let poison = ScriptedRequest::from(Act::Panic);
/// assert!(matches!(poison.act, Act::Panic));
/// ```
#[derive(Debug, Clone)]
pub enum Act {
    /// Answers with this.
    Reply(u64),
    /// Fails the whole batch.
    Fail,
    /// Fails this request alone, as the caller's fault.
    Refuse,
    /// Panics.
    Panic,
    /// Panics so many times in all, then answers with 0.
    PanicTimes(Arc<AtomicUsize>),
    /// Makes no progress until the latch opens, then answers with 0.
    Hang(Latch),
    /// Makes progress until the latch opens, then answers with 0; stops when it is told to.
    Work(Latch),
    /// Says that it has begun, makes progress until the latch opens, then answers with 0; stops when it is told to.
    BeginThenWork(Latch),
    /// Makes progress for so long, then answers with 0; stops when it is told to.
    WorkFor(Duration),
    /// Streams so many chunks, 0, 1, 2 …, then answers with their number.
    Stream(u64),
    /// Streams so many chunks and panics.
    StreamThenPanic(u64),
    /// Streams so many chunks and panics so many times in all, then answers with their number.
    StreamThenPanicTimes(u64, Arc<AtomicUsize>),
    /// Ends the run of all with [`Failure::stopped`] if nobody waits for it, and answers with 0 otherwise.
    WorkOrStopAll(Latch),
    /// Streams so many chunks, works until the latch opens, then answers with their number.
    StreamThenWork(u64, Latch),
    /// Runs so many steps, looking at its mark before each, and counts them in [`Record::steps`].
    Steps(u64),
    /// Runs out of memory in a batch of more than so many requests.
    NeedsBatchOf(usize),
    /// Runs out of memory so many times in all, then answers with 0.
    StarveTimes(Arc<AtomicUsize>),
    /// Runs out of memory while another model's weights are in memory, then answers with 0.
    StarveBeside(Arc<Record>),
    /// Ends the run well without an answer.
    Forget,
}

/// A request to a scripted model.
///
/// ```
/// use model_actors::testing::{Act, ScriptedRequest};
/// let request = ScriptedRequest::from(Act::Reply(7));
/// assert_eq!(request.cost, 1);
/// ```
#[derive(Debug, Clone)]
pub struct ScriptedRequest {
    /// The act.
    pub act: Act,
    /// Against the batch's budget.
    pub cost: u64,
    /// Its batch key.
    pub key: u64,
}

impl From<Act> for ScriptedRequest {
    fn from(act: Act) -> Self {
        Self { act, cost: 1, key: 0 }
    }
}

/// A one-shot capability of scripted models.
///
/// ```
/// use model_actors::{Capability, Cost, testing::{Act, Scripted}};
/// assert_eq!(Scripted::cost(&Act::Reply(7).into()), Cost(1));
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Scripted;

impl Capability for Scripted {
    type Request = ScriptedRequest;
    type Chunk = NoChunk;
    type Output = u64;
    const NAME: &'static str = "scripted";
    const QUEUE: QueueCapacity = QueueCapacity { interactive: 100, batch: 50 };

    fn cost(request: &ScriptedRequest) -> Cost {
        Cost(request.cost)
    }

    fn batch_key(request: &ScriptedRequest) -> BatchKey {
        BatchKey(request.key)
    }
}

/// A streamed capability of scripted models, and so a second pool.
///
/// ```
/// use model_actors::{Capability, testing::StreamedScript};
/// assert_eq!(StreamedScript::NAME, "streamed_script");
/// ```
#[derive(Debug, Clone, Copy)]
pub struct StreamedScript;

impl Capability for StreamedScript {
    type Request = ScriptedRequest;
    type Chunk = u64;
    type Output = u64;
    const NAME: &'static str = "streamed_script";
    const QUEUE: QueueCapacity = QueueCapacity { interactive: 100, batch: 50 };
}

/// A capability whose chunks a scripted model can make.
///
/// ```
/// use model_actors::testing::{Scripted, ScriptedCapability, StreamedScript};
/// assert_eq!(StreamedScript::chunk(7), Some(7));
/// assert_eq!(Scripted::chunk(7), None);
/// ```
pub trait ScriptedCapability: Capability<Request = ScriptedRequest, Output = u64> {
    /// The chunk of this number, if the capability has chunks.
    fn chunk(number: u64) -> Option<Self::Chunk>;
}

impl ScriptedCapability for Scripted {
    fn chunk(_number: u64) -> Option<NoChunk> {
        None
    }
}

impl ScriptedCapability for StreamedScript {
    fn chunk(number: u64) -> Option<u64> {
        Some(number)
    }
}
