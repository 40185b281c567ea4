//! A scheduler and a world that does at once whatever it asks for, on a clock that the test sets. For tests
//! that need time to the second.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(dead_code, reason = "each test file uses its part")]

use std::time::Duration;

use model_actors::scheduler::{Batching, CallId, Effect, Input, ModelPolicy, Outcome, Scheduler, Ticket};
use model_actors::{
    Device, Event, EvictionReason, Footprint, ModelId, ModelKey, PoolConfig, RequestId, Time, WorkerId,
};

pub(crate) const KEY: ModelKey = ModelKey(0);

/// `at(7, 30)` is 7:30 on the test's clock.
pub(crate) fn at(minutes: u64, seconds: u64) -> Time {
    Time::after_start(Duration::from_secs(minutes * 60 + seconds))
}

pub(crate) struct Core {
    pub(crate) scheduler: Scheduler,
    pub(crate) now: Time,
    /// Everything that the scheduler asked for, and when.
    pub(crate) log: Vec<(Time, Effect)>,
    /// The world leaves starts to the test: no worker is sized, given room or loaded by itself.
    pub(crate) starts_by_hand: bool,
    /// Threads that were told to go do not end by themselves.
    pub(crate) threads_linger: bool,
    /// The last progress that every gauge shows; `None` for progress at each moment.
    pub(crate) last_progress: Option<Time>,
    /// The model's, for another of the same name.
    pub(crate) policy: ModelPolicy,
    next_request: u64,
}

impl Core {
    /// One model with these settings; cooldown every 60 s.
    pub(crate) fn new(config: PoolConfig) -> Self {
        Self::batching(config, Batching::PerRun)
    }

    /// As [`Core::new`], with a model whose requests share runs in this way.
    pub(crate) fn batching(config: PoolConfig, batching: Batching) -> Self {
        config.validate().unwrap();
        let policy = ModelPolicy {
            model: ModelId::from("m"),
            device: Device::host(),
            config: config.into(),
            batching,
            pinned: false,
        };
        let mut core = Self {
            scheduler: Scheduler::new("test", Duration::from_secs(60), 7),
            now: Time::ZERO,
            log: Vec::new(),
            starts_by_hand: false,
            threads_linger: false,
            last_progress: None,
            policy: policy.clone(),
            next_request: 0,
        };
        core.tell(Input::Declare { key: KEY, policy });
        core
    }

    /// Gives an input and has the world do what follows from it.
    pub(crate) fn tell(&mut self, input: Input) -> Vec<Effect> {
        let mut effects = Vec::new();
        self.scheduler.handle(self.now, input, &mut effects);
        self.log.extend(effects.iter().map(|effect| (self.now, effect.clone())));
        let replies: Vec<Input> = effects.iter().filter_map(|effect| self.reply(effect)).collect();
        for reply in replies {
            effects.extend(self.tell(reply));
        }
        effects
    }

    fn reply(&self, effect: &Effect) -> Option<Input> {
        let footprint = Footprint::default();
        match *effect {
            Effect::Stop { worker, .. } | Effect::ReleaseWeights { thread: Some(worker), .. }
                if !self.threads_linger =>
            {
                Some(Input::Ended { worker })
            }
            Effect::ReadProgress { worker } => {
                let last_progress = self.last_progress.unwrap_or(self.now);
                Some(Input::Progress { worker, last_progress, fates: Vec::new() })
            }
            _ if self.starts_by_hand => None,
            Effect::Size { worker } => Some(Input::Sized { worker, footprint }),
            Effect::Reserve { worker, .. } => Some(Input::RoomGranted { worker }),
            Effect::Load { worker, .. } => Some(Input::Started { worker, footprint }),
            _ => None,
        }
    }

    /// Lets time pass; alarms ring at the very moment that they name.
    pub(crate) fn wait_until(&mut self, moment: Time) {
        loop {
            let (tick, cooldown) = (self.scheduler.alarm(), self.scheduler.cooldown_alarm());
            let next = tick.min(cooldown);
            if next > moment {
                break;
            }
            self.now = self.now.max(next);
            self.tell(if tick <= cooldown { Input::Tick } else { Input::Cooldown });
        }
        self.now = moment;
    }

    pub(crate) fn submit(&mut self) -> (RequestId, Vec<Effect>) {
        self.next_request += 1;
        let request = RequestId(self.next_request);
        let ticket = Ticket::new(request, Time::NEVER);
        (request, self.tell(Input::Submit { tickets: vec![(KEY, ticket)] }))
    }

    pub(crate) fn preload(&mut self) -> Vec<Effect> {
        self.tell(Input::Preload { key: KEY, call: CallId(0) })
    }

    pub(crate) fn finish(&mut self, worker: WorkerId, request: RequestId) -> Vec<Effect> {
        self.tell(Input::Finished { worker, outcomes: vec![(request, Outcome::Answered)] })
    }

    /// Every `Run` so far that has this request in it: the workers.
    pub(crate) fn runs_of(&self, request: RequestId) -> Vec<WorkerId> {
        let run = |(_, effect): &(Time, Effect)| match effect {
            Effect::Run { worker, requests } if requests.contains(&request) => Some(*worker),
            _ => None,
        };
        self.log.iter().filter_map(run).collect()
    }

    /// The reason of the error that the request was answered with, if it was.
    pub(crate) fn failure_of(&self, request: RequestId) -> Option<&'static str> {
        self.log.iter().find_map(|(_, effect)| match effect {
            Effect::Fail { request: of, error } if *of == request => Some(error.reason()),
            Effect::Expire { request: of } if *of == request => Some("timeout"),
            _ => None,
        })
    }

    /// The workers that were told to go for this reason, and the moments.
    pub(crate) fn stops(&self, why: EvictionReason) -> Vec<(Time, WorkerId)> {
        let stop = |(when, effect): &(Time, Effect)| match effect {
            Effect::Stop { worker, reason } if *reason == why => Some((*when, *worker)),
            _ => None,
        };
        self.log.iter().filter_map(stop).collect()
    }

    /// The workers whose start was begun, and the moments.
    pub(crate) fn starts(&self) -> Vec<(Time, WorkerId)> {
        let mut starts: Vec<(Time, WorkerId)> = Vec::new();
        for (when, effect) in &self.log {
            if let Effect::Spawn { worker, .. } | Effect::Reserve { worker, .. } = effect
                && starts.iter().all(|(_, started)| started != worker)
            {
                starts.push((*when, *worker));
            }
        }
        starts
    }

    /// The moments at which the breaker opened.
    pub(crate) fn openings(&self) -> Vec<Time> {
        let opened = |effect: &Effect| matches!(effect, Effect::Emit(Event::BreakerOpened { .. }));
        self.log.iter().filter(|(_, effect)| opened(effect)).map(|(when, _)| *when).collect()
    }
}
