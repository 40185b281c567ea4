//! Faults of the harness itself, planted to see that the checks find them. Each happens once in a history, at
//! one of the moments at which it could.

use std::str::FromStr;

/// A distortion by the harness of what passes between the core and the world.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plant {
    /// An answer does not free its caller's slot.
    SlotNotGivenBack,
    /// A caller is answered twice.
    AnswerSentTwice,
    /// An answer of the pool never reaches its caller.
    AnswerLost,
    /// A worker that has just got work is told to go to make room.
    BusyWorkerEvicted,
    /// A batch meant for an idle worker is queued behind a busy one.
    RequestKeptBehindBusy,
    /// A worker is started right after a failure.
    RestartOutsideBudget,
    /// The order to load never reaches its worker.
    LostLoad,
    /// A lease is charged twice.
    BytesChargedTwice,
    /// The core is told a later deadline than the caller's.
    DeadlineIgnored,
    /// A pinned model's idle worker is told to go to make room.
    PinnedWorkerEvicted,
    /// The core is told a lower priority than the caller's.
    PriorityIgnored,
    /// The core is told that a tenant's request is of none.
    TenantIgnored,
    /// The core is told that all tenants of a model have the same weight.
    WeightsIgnored,
    /// The core is told that a request costs nothing.
    CostIgnored,
    /// The core is told another key than the caller's.
    KeyIgnored,
    /// Cooldown takes a worker that has been used more recently than another.
    RecentlyUsedCooledDown,
    /// A caller is told that its unload went well while a worker is there.
    UnloadReturnedEarly,
    /// A pool is said to have drained when its shutdown begins.
    DrainedEarly,
    /// Idle workers are offered as if they were on another device.
    OfferOfOtherDevice,
    /// A pool that takes over from a dead one is not told of a thread.
    ThreadForgotten,
    /// A thread that is stuck is said to have ended.
    EndInvented,
    /// A gauge that shows progress is read as if it showed none.
    ProgressLost,
    /// With one worker several threads are started.
    ThreadsUnasked,
    /// A removed model is forgotten while something of it is left.
    ForgottenEarly,
    /// The workers that were used last are offered as those that have been idle for longest.
    OfferMisdated,
    /// A load asks for more room than it needs.
    NeedOverstated,
    /// A request whose caller has gone or whose time is up, and whose worker died of it, is said to have been answered.
    CauseAcquitted,
    /// A request that its worker's model had not had yet is said to have run when the worker died.
    UnbegunBlamed,
    /// The load queue is not told that part of the memory is held by caches.
    CachesHidden,
    /// Bytes that are taken back from a cache are not given back to the memory.
    CacheLeaked,
}

impl Plant {
    /// All of them.
    pub const ALL: [Self; 30] = [
        Self::SlotNotGivenBack,
        Self::AnswerSentTwice,
        Self::AnswerLost,
        Self::BusyWorkerEvicted,
        Self::RequestKeptBehindBusy,
        Self::RestartOutsideBudget,
        Self::LostLoad,
        Self::BytesChargedTwice,
        Self::DeadlineIgnored,
        Self::PinnedWorkerEvicted,
        Self::PriorityIgnored,
        Self::TenantIgnored,
        Self::WeightsIgnored,
        Self::CostIgnored,
        Self::KeyIgnored,
        Self::RecentlyUsedCooledDown,
        Self::UnloadReturnedEarly,
        Self::DrainedEarly,
        Self::OfferOfOtherDevice,
        Self::ThreadForgotten,
        Self::EndInvented,
        Self::ProgressLost,
        Self::ThreadsUnasked,
        Self::ForgottenEarly,
        Self::OfferMisdated,
        Self::NeedOverstated,
        Self::CauseAcquitted,
        Self::UnbegunBlamed,
        Self::CachesHidden,
        Self::CacheLeaked,
    ];

    /// Its name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::SlotNotGivenBack => "slot-not-given-back",
            Self::AnswerSentTwice => "answer-sent-twice",
            Self::AnswerLost => "answer-lost",
            Self::BusyWorkerEvicted => "busy-worker-evicted",
            Self::RequestKeptBehindBusy => "request-kept-behind-busy",
            Self::RestartOutsideBudget => "restart-outside-budget",
            Self::LostLoad => "lost-load",
            Self::BytesChargedTwice => "bytes-charged-twice",
            Self::DeadlineIgnored => "deadline-ignored",
            Self::PinnedWorkerEvicted => "pinned-worker-evicted",
            Self::PriorityIgnored => "priority-ignored",
            Self::TenantIgnored => "tenant-ignored",
            Self::WeightsIgnored => "weights-ignored",
            Self::CostIgnored => "cost-ignored",
            Self::KeyIgnored => "key-ignored",
            Self::RecentlyUsedCooledDown => "recently-used-cooled-down",
            Self::UnloadReturnedEarly => "unload-returned-early",
            Self::DrainedEarly => "drained-early",
            Self::OfferOfOtherDevice => "offer-of-other-device",
            Self::ThreadForgotten => "thread-forgotten",
            Self::EndInvented => "end-invented",
            Self::ProgressLost => "progress-lost",
            Self::ThreadsUnasked => "threads-unasked",
            Self::ForgottenEarly => "forgotten-early",
            Self::OfferMisdated => "offer-misdated",
            Self::NeedOverstated => "need-overstated",
            Self::CauseAcquitted => "cause-acquitted",
            Self::UnbegunBlamed => "unbegun-blamed",
            Self::CachesHidden => "caches-hidden",
            Self::CacheLeaked => "cache-leaked",
        }
    }

    /// The invariants that may find it first.
    pub const fn found_by(self) -> &'static [&'static str] {
        match self {
            Self::SlotNotGivenBack => &["slots"],
            Self::AnswerSentTwice => &["answered once"],
            Self::AnswerLost => &["no request lost"],
            Self::BusyWorkerEvicted => &["no busy worker evicted"],
            Self::RequestKeptBehindBusy => &["nothing waits behind a busy worker", "no load lost"],
            Self::RestartOutsideBudget => &["restart budget"],
            Self::LostLoad => &["no load lost"],
            Self::BytesChargedTwice => &["bytes", "charged within the limit"],
            Self::DeadlineIgnored => &["deadlines"],
            Self::PinnedWorkerEvicted => &["no pinned worker evicted"],
            Self::PriorityIgnored => &["order of service"],
            Self::TenantIgnored => &["no tenant waits longer than its share", "order of service"],
            Self::WeightsIgnored => &["no tenant waits longer than its share"],
            Self::CostIgnored => {
                &["the limit on cost", "order of service", "no tenant waits longer than its share"]
            }
            Self::KeyIgnored => {
                &["one key a batch", "order of service", "no tenant waits longer than its share"]
            }
            Self::RecentlyUsedCooledDown => &["least recently used"],
            Self::UnloadReturnedEarly => &["unloaded means gone"],
            Self::DrainedEarly => &["drained means no thread", "everybody is answered at shutdown"],
            Self::OfferOfOtherDevice => &["no needless eviction"],
            Self::ThreadForgotten => &["no thread is forgotten"],
            Self::EndInvented => &["no thread is forgotten"],
            Self::ProgressLost => &["stuck means stuck"],
            Self::ThreadsUnasked => &["threads are bounded"],
            Self::ForgottenEarly => &["forgotten means gone"],
            Self::OfferMisdated => &["eviction by worth", "no needless eviction"],
            Self::NeedOverstated => &["no needless eviction", "eviction by worth"],
            Self::CauseAcquitted => &["a request's death is its own"],
            Self::UnbegunBlamed => &["only a run that has begun is blamed", "restart budget"],
            Self::CachesHidden => &["caches go before workers", "no needless eviction"],
            Self::CacheLeaked => &["bytes", "bytes are back"],
        }
    }
}

impl FromStr for Plant {
    type Err = String;
    fn from_str(name: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|plant| plant.name() == name);
        found.ok_or_else(|| {
            let names: Vec<&str> = Self::ALL.into_iter().map(Self::name).collect();
            format!("no plant is called {name}; there are {}", names.join(", "))
        })
    }
}
