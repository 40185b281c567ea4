//! Things that the harness does wrong on purpose, to see that the checks find them.

/// Something that the harness does wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClusterPlant {
    /// Gives callers every chunk that comes for a request, whatever its run.
    DeliverGhosts,
    /// Leaves guests running that the router evicts.
    KeepEvicted,
    /// Leaves guests running that have given their result.
    KeepEnded,
    /// Serves a model with other files than it says.
    OtherFiles,
    /// Drops errors instead of answering with them.
    SwallowErrors,
    /// Drops errors of calls instead of answering with them.
    SwallowCallErrors,
    /// Says that it has a slot more than it has.
    OverstateSlots,
    /// Takes the same request a second time when its message comes a second time.
    HostTwice,
    /// Leaves the connections to peers that count as lost.
    NeverHangUp,
    /// Answers calls of peers without doing what they say.
    AnswerCallsUndone,
    /// Takes calls for answered that are of several peers, and sends them to the first alone.
    CallFirstAlone,
    /// Goes on taking guests when it is about to go, as no leave is taken.
    TakeNoLeave,
}

impl ClusterPlant {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::DeliverGhosts,
        Self::KeepEvicted,
        Self::KeepEnded,
        Self::OtherFiles,
        Self::SwallowErrors,
        Self::SwallowCallErrors,
        Self::OverstateSlots,
        Self::HostTwice,
        Self::NeverHangUp,
        Self::AnswerCallsUndone,
        Self::CallFirstAlone,
        Self::TakeNoLeave,
    ];
}
