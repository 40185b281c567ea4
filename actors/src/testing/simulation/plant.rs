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
}

impl Plant {
    /// All of them.
    pub const ALL: [Self; 10] = [
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
