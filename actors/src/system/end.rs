//! The end of a system as its supervisor sees it, read from the supervision event. Acting on it is left to the
//! application.

use ractor::SupervisionEvent;

use super::SystemActorState;

/// The end of a system, told by the supervision event of its root actor ([`System::cell`](crate::System::cell)).
///
/// ```
/// use model_actors::SystemEnd;
/// use model_actors::ractor::SupervisionEvent;
///
/// /// A supervisor starts another system unless the end was planned.
/// fn is_restarted(event: &SupervisionEvent) -> bool {
///     matches!(SystemEnd::of(event), Some(SystemEnd::Killed | SystemEnd::Failed))
/// }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SystemEnd {
    /// Planned: it was shut down or stopped in the ordinary way, and what it had accepted was given its time.
    Stopped,
    /// It was killed, or its runtime ended: what it had accepted was cut off. The event is `ActorTerminated`, as that
    /// of a planned end; the actor's state, which comes with it, tells them apart.
    Killed,
    /// It failed beyond its restart budget. The event is `ActorFailed`.
    Failed,
}

impl SystemEnd {
    /// Reads the end from the event of a system's root, as its supervisor gets it, with nothing taken out of it.
    /// `None` for events that are no end.
    pub fn of(event: &SupervisionEvent) -> Option<Self> {
        match event {
            SupervisionEvent::ActorTerminated(_, state, _) => {
                // ractor sends the state along with a kill too, unless the actor was at work.
                let state = state.as_ref().and_then(|state| state.msg.as_ref()?.downcast_ref());
                let drained = state.is_some_and(SystemActorState::has_drained);
                Some(if drained { Self::Stopped } else { Self::Killed })
            }
            SupervisionEvent::ActorFailed(..) => Some(Self::Failed),
            _ => None,
        }
    }
}
