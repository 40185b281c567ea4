//! Plan of the soak test, which the seed alone decides: the models of a phase and their faults, each
//! request's model and action, and the shutdown of the phase. Only the speed is the machine's.

use std::ops::Range;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use candle_actors::model_actors::testing::{
    Act, Gate, Latch, ScriptedCapability, ScriptedLoader, ScriptedRequest,
};
use candle_actors::{
    Bytes, CallOptions, Failure, FailureKind, Footprint, Lane, LoadContext, Loader, Priority, Weights,
};

use super::Options;

/// Fault that the harness plants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Plant {
    /// Keeps a model hung beyond the end, and takes a slot for held.
    Leak,
    /// Forgets one answer.
    Lost,
    /// Counts one answer twice.
    Twice,
}

/// The gate of the model that a planted leak keeps hung; opens when the last reading is done.
#[derive(Default)]
pub(crate) struct Kept(Gate);

/// Models, each with a weakness of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Loads and runs.
    Steady,
    /// Its requests panic, and it may be restarted ever again.
    Crashing,
    /// Its requests hang.
    Hanging,
    /// Its requests panic, most of them once, so that the fault is not theirs, and its breaker opens early.
    Fragile,
    /// Its loads fail, panic and run out of memory.
    Balky,
    /// Its first loads hang.
    Stalling,
    /// Takes so much that others have to go.
    Large,
    /// Never fits.
    Giant,
    /// Streams.
    Streamed,
}

impl Kind {
    pub(crate) const ALL: [Self; 9] = [
        Self::Steady,
        Self::Crashing,
        Self::Hanging,
        Self::Fragile,
        Self::Balky,
        Self::Stalling,
        Self::Large,
        Self::Giant,
        Self::Streamed,
    ];

    /// Its share of the requests, in percent.
    fn share(self) -> u32 {
        match self {
            Self::Steady => 40,
            Self::Crashing => 12,
            Self::Hanging => 5,
            Self::Fragile => 5,
            Self::Balky => 7,
            Self::Stalling => 2,
            Self::Large => 7,
            Self::Giant => 1,
            Self::Streamed => 21,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Steady => "soak/steady",
            Self::Crashing => "soak/crashing",
            Self::Hanging => "soak/hanging",
            Self::Fragile => "soak/fragile",
            Self::Balky => "soak/balky",
            Self::Stalling => "soak/stalling",
            Self::Large => "soak/large",
            Self::Giant => "soak/giant",
            Self::Streamed => "soak/streamed",
        }
    }

    /// Memory that it takes; all together, but for the giant, take more than there is.
    pub(crate) fn footprint(self) -> Footprint {
        let shared = match self {
            Self::Large => Bytes::mib(60),
            Self::Giant => Bytes::mib(200),
            _ => Bytes::mib(8),
        };
        Footprint::new(shared, Bytes::mib(1))
    }

    fn act(self, request: usize, random: &mut fastrand::Rng, gate: &Gates) -> Act {
        let reply = Act::Reply(request as u64);
        match (self, random.u32(..100)) {
            (Self::Steady, 0..3) => Act::Refuse,
            (Self::Steady, 3..6) => Act::Fail,
            (Self::Steady, 6..8) => Act::NeedsBatchOf(2),
            (Self::Steady, 8..10) => Act::Steps(20),
            (Self::Crashing, 0..6) => Act::Panic,
            (Self::Crashing, 6..12) => Act::PanicTimes(Arc::new(AtomicUsize::new(1))),
            (Self::Crashing, 12..15) => Act::Fail,
            (Self::Fragile, 0..15) => Act::Panic,
            (Self::Fragile, 15..50) => Act::PanicTimes(Arc::new(AtomicUsize::new(1))),
            (Self::Hanging, 0..15) => Act::Hang(gate.latch()),
            (Self::Hanging, 15..20) => Act::Work(gate.latch()),
            (Self::Streamed, 0..10) => Act::Steps(random.u64(1..30)),
            (Self::Streamed, 10..16) => Act::StreamThenPanic(random.u64(..10)),
            (Self::Streamed, 16..20) => Act::StreamThenWork(random.u64(..10), gate.latch()),
            (Self::Streamed, 20..22) => Act::Panic,
            (Self::Streamed, _) => Act::Stream(random.u64(..40)),
            _ => reply,
        }
    }
}

/// Action of the caller.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Caller {
    /// Waits for a slot and for the answer.
    Calls,
    /// Does not wait for a slot.
    Tries,
    /// Goes away after this long.
    Drops(Duration),
    /// Opens a stream and reads the output alone.
    Opens,
    /// Reads every chunk.
    Reads,
    /// Pauses after the first chunk.
    Pauses(Duration),
    /// Goes away after so many chunks.
    Leaves(u64),
}

/// One request.
pub(crate) struct RequestPlan {
    pub(crate) kind: Kind,
    pub(crate) act: Act,
    pub(crate) options: CallOptions,
    pub(crate) caller: Caller,
}

impl RequestPlan {
    pub(crate) fn request(&self) -> ScriptedRequest {
        ScriptedRequest::from(self.act.clone())
    }
}

/// One phase: its requests and its end.
#[derive(Debug, Clone)]
pub(crate) struct PhasePlan {
    options: Options,
    number: u64,
    pub(crate) requests: Range<usize>,
}

impl PhasePlan {
    pub(crate) fn new(options: Options, number: u64, requests: Range<usize>) -> Self {
        Self { options, number, requests }
    }

    /// A generator of its own for each purpose, so that no choice depends on the order of others.
    pub(crate) fn random(&self, purpose: u64) -> fastrand::Rng {
        let seed = self.options.seed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        fastrand::Rng::with_seed(seed ^ (self.number << 48) ^ purpose)
    }

    pub(crate) fn plant(&self) -> Option<Plant> {
        self.options.plant
    }

    /// The system is shut down once this request has been sent; those after it are refused.
    pub(crate) fn shutdown_at(&self) -> usize {
        let all = self.requests.len();
        self.requests.start + all * self.random(1 << 40).usize(88..98) / 100
    }

    /// True if the hung models are released before the shutdown, and not after it.
    pub(crate) fn lets_go_first(&self) -> bool {
        self.number.is_multiple_of(2)
    }

    /// True if pools and maintenance are killed in this phase.
    pub(crate) fn kills(&self) -> bool {
        self.number % 2 == 1
    }

    pub(crate) fn request(&self, index: usize, gates: &Gates, kept: &Latch) -> RequestPlan {
        if self.plant() == Some(Plant::Leak) && index == 7 {
            let act = Act::Hang(kept.clone());
            let (kind, options) = (Kind::Hanging, CallOptions::default());
            return RequestPlan { kind, act, options, caller: Caller::Calls };
        }
        let random = &mut self.random(index as u64);
        let mut pick = random.u32(..100);
        let kind = Kind::ALL.into_iter().find(|kind| {
            let here = pick < kind.share();
            pick = pick.saturating_sub(kind.share());
            here
        });
        let kind = kind.unwrap_or(Kind::Steady);
        let act = kind.act(index, random, gates);
        RequestPlan { kind, act, options: options(random), caller: caller(kind, random) }
    }
}

fn options(random: &mut fastrand::Rng) -> CallOptions {
    let lane = if random.u32(..4) == 0 { Lane::Batch } else { Lane::Interactive };
    let short = random.u32(..100) < 4;
    let timeout = short.then(|| Duration::from_micros(random.u64(..10_000)));
    CallOptions::default().with_lane(lane).with_priority(Priority(random.i8(-2..=2))).with_timeout(timeout)
}

fn caller(kind: Kind, random: &mut fastrand::Rng) -> Caller {
    match (kind, random.u32(..100)) {
        (_, 0..10) => Caller::Tries,
        (_, 10..18) => Caller::Drops(Duration::from_micros(random.u64(..8_000))),
        (_, 18..30) => Caller::Opens,
        (Kind::Streamed, 30..32) => Caller::Pauses(Duration::from_millis(random.u64(100..300))),
        (Kind::Streamed, 32..45) => Caller::Leaves(random.u64(..10)),
        (Kind::Streamed, _) => Caller::Reads,
        _ => Caller::Calls,
    }
}

/// Gate that hung models wait at. It opens from time to time, so that abandoned threads come back to life
/// during the phase, and for good at its end.
#[derive(Default)]
pub(crate) struct Gates(Mutex<(Gate, bool)>);

impl Gates {
    fn lock(&self) -> MutexGuard<'_, (Gate, bool)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn latch(&self) -> Latch {
        self.lock().0.latch()
    }

    /// Releases those who wait now.
    pub(crate) fn turn(&self) {
        let mut gate = self.lock();
        if !gate.1 {
            gate.0 = Gate::default();
        }
    }

    /// Releases everybody, now and later.
    pub(crate) fn open(&self) {
        let mut gate = self.lock();
        gate.0.open();
        gate.1 = true;
    }
}

impl Kept {
    pub(crate) fn latch(&self) -> Latch {
        self.0.latch()
    }
}

/// Loader that fails in every way that a load can.
pub(crate) struct Balky {
    pub(crate) inner: ScriptedLoader,
    pub(crate) random: Mutex<fastrand::Rng>,
}

impl Balky {
    #[allow(clippy::panic, reason = "a panic in a load is one of the faults")]
    fn roll(&self) -> Result<(), Failure> {
        let roll = self.random.lock().unwrap_or_else(PoisonError::into_inner).u32(..100);
        let kind = match roll {
            0..15 => FailureKind::Failed,
            15..20 => FailureKind::OutOfMemory,
            20..22 => FailureKind::Permanent,
            22..30 => panic!("the script says that this load panics"),
            _ => return Ok(()),
        };
        Err(Failure::new(kind, "the script says that this load fails"))
    }
}

impl<C: ScriptedCapability> Loader<C> for Balky {
    fn footprint(&self, context: &LoadContext) -> Result<Footprint, Failure> {
        self.roll()?;
        Loader::<C>::footprint(&self.inner, context)
    }

    fn load(&self, context: &LoadContext) -> Result<Arc<dyn Weights<C>>, Failure> {
        self.roll()?;
        Loader::<C>::load(&self.inner, context)
    }
}
