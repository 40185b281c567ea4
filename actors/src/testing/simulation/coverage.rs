//! Counts each kind of input, effect, fault and ending, to show that all of them occur.

use std::collections::BTreeMap;

use crate::scheduler::{Effect, Input};

/// Counts by name.
#[derive(Debug, Clone)]
pub struct Coverage {
    inputs: [u64; INPUTS.len()],
    effects: [u64; EFFECTS.len()],
    faults: [u64; Fault::ALL.len()],
    endings: BTreeMap<&'static str, u64>,
}

impl Default for Coverage {
    fn default() -> Self {
        Self {
            inputs: [0; INPUTS.len()],
            effects: [0; EFFECTS.len()],
            faults: [0; Fault::ALL.len()],
            endings: BTreeMap::new(),
        }
    }
}

impl Coverage {
    /// Inputs that the scheduler was given.
    pub fn inputs(&self) -> Vec<(&'static str, u64)> {
        INPUTS.into_iter().zip(self.inputs).collect()
    }

    /// Effects that it asked for.
    pub fn effects(&self) -> Vec<(&'static str, u64)> {
        EFFECTS.into_iter().zip(self.effects).collect()
    }

    /// Faults that happened in the world.
    pub fn faults(&self) -> Vec<(&'static str, u64)> {
        Fault::ALL.iter().map(|fault| fault.name()).zip(self.faults).collect()
    }

    /// Endings of requests: `ok`, `cancelled`, or an error's reason.
    pub fn endings(&self) -> Vec<(&'static str, u64)> {
        self.endings.iter().map(|(name, count)| (*name, *count)).collect()
    }

    /// Adds another history's counts.
    pub fn add(&mut self, other: &Self) {
        self.inputs.iter_mut().zip(other.inputs).for_each(|(sum, count)| *sum += count);
        self.effects.iter_mut().zip(other.effects).for_each(|(sum, count)| *sum += count);
        self.faults.iter_mut().zip(other.faults).for_each(|(sum, count)| *sum += count);
        for (name, count) in &other.endings {
            *self.endings.entry(name).or_default() += count;
        }
    }

    pub(super) fn input(&mut self, input: &Input) {
        self.inputs[input_index(input)] += 1;
    }

    pub(super) fn effect(&mut self, effect: &Effect) {
        self.effects[effect_index(effect)] += 1;
    }

    pub(super) fn fault(&mut self, fault: Fault) {
        self.faults[fault as usize] += 1;
    }

    /// Accepted requests that ended in whatever way.
    pub(super) fn ended(&self) -> u64 {
        let accepted = self.endings.iter().filter(|(reason, _)| !["overloaded", "refused"].contains(*reason));
        accepted.map(|(_, count)| count).sum()
    }

    pub(super) fn ending(&mut self, reason: &'static str) {
        *self.endings.entry(reason).or_default() += 1;
    }
}

/// A fault of the world, or a command to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    SizeFails,
    LoadFails,
    LoadFailsForGood,
    LoadOutOfMemory,
    LoadStalls,
    LargerThanSized,
    RunPanics,
    RunFails,
    RunOutOfMemory,
    RunHangs,
    RunIsSlow,
    SilentEnd,
    ThreadLingers,
    ActorKilled,
    MaintenanceDies,
    PoolDies,
    DestructorHangs,
    DestructorPanics,
    SlowRelief,
    PingUnanswered,
    PollUnanswered,
    BadInput,
    PoisonInput,
    HangingInput,
    CallerGoes,
    ShortOfTime,
    StrayEviction,
    Pressure,
    Preload,
    Unload,
    Pin,
    Remove,
    Replace,
    Shutdown,
    LostWhileIdle,
    CacheGrows,
}

impl Fault {
    pub(super) const ALL: [Self; 36] = [
        Self::SizeFails,
        Self::LoadFails,
        Self::LoadFailsForGood,
        Self::LoadOutOfMemory,
        Self::LoadStalls,
        Self::LargerThanSized,
        Self::RunPanics,
        Self::RunFails,
        Self::RunOutOfMemory,
        Self::RunHangs,
        Self::RunIsSlow,
        Self::SilentEnd,
        Self::ThreadLingers,
        Self::ActorKilled,
        Self::MaintenanceDies,
        Self::PoolDies,
        Self::DestructorHangs,
        Self::DestructorPanics,
        Self::SlowRelief,
        Self::PingUnanswered,
        Self::PollUnanswered,
        Self::BadInput,
        Self::PoisonInput,
        Self::HangingInput,
        Self::CallerGoes,
        Self::ShortOfTime,
        Self::StrayEviction,
        Self::Pressure,
        Self::Preload,
        Self::Unload,
        Self::Pin,
        Self::Remove,
        Self::Replace,
        Self::Shutdown,
        Self::LostWhileIdle,
        Self::CacheGrows,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::SizeFails => "size fails",
            Self::LoadFails => "load fails",
            Self::LoadFailsForGood => "load fails for good",
            Self::LoadOutOfMemory => "load out of memory",
            Self::LoadStalls => "load stalls",
            Self::LargerThanSized => "larger than sized",
            Self::RunPanics => "run panics",
            Self::RunFails => "run fails",
            Self::RunOutOfMemory => "run out of memory",
            Self::RunHangs => "run hangs",
            Self::RunIsSlow => "run is slow",
            Self::SilentEnd => "thread ends without a word",
            Self::ThreadLingers => "thread lingers",
            Self::ActorKilled => "actor killed",
            Self::MaintenanceDies => "maintenance dies",
            Self::PoolDies => "pool dies",
            Self::DestructorHangs => "destructor hangs",
            Self::DestructorPanics => "destructor panics",
            Self::SlowRelief => "slow relief",
            Self::PingUnanswered => "ping unanswered",
            Self::PollUnanswered => "poll unanswered",
            Self::BadInput => "bad input",
            Self::PoisonInput => "poison input",
            Self::HangingInput => "hanging input",
            Self::CallerGoes => "caller goes",
            Self::ShortOfTime => "short of time",
            Self::StrayEviction => "stray eviction",
            Self::Pressure => "pressure",
            Self::Preload => "preload",
            Self::Unload => "unload",
            Self::Pin => "pin",
            Self::Remove => "remove",
            Self::Replace => "replace",
            Self::Shutdown => "shutdown",
            Self::LostWhileIdle => "lost while idle",
            Self::CacheGrows => "cache grows",
        }
    }
}

const INPUTS: [&str; 23] = [
    "Declare",
    "Submit",
    "Cancel",
    "Tick",
    "Cooldown",
    "Evict",
    "Preload",
    "Unload",
    "Pin",
    "RoomGranted",
    "RoomDenied",
    "Sized",
    "Started",
    "StartFailed",
    "Finished",
    "Died",
    "Progress",
    "Ended",
    "HealthCheck",
    "Pressure",
    "Remove",
    "Shutdown",
    "CallerGone",
];

const fn input_index(input: &Input) -> usize {
    match input {
        Input::Declare { .. } => 0,
        Input::Submit { .. } => 1,
        Input::Cancel { .. } => 2,
        Input::Tick => 3,
        Input::Cooldown => 4,
        Input::Evict { .. } => 5,
        Input::Preload { .. } => 6,
        Input::Unload { .. } => 7,
        Input::Pin { .. } => 8,
        Input::RoomGranted { .. } => 9,
        Input::RoomDenied { .. } => 10,
        Input::Sized { .. } => 11,
        Input::Started { .. } => 12,
        Input::StartFailed { .. } => 13,
        Input::Finished { .. } => 14,
        Input::Died { .. } => 15,
        Input::Progress { .. } => 16,
        Input::Ended { .. } => 17,
        Input::HealthCheck => 18,
        Input::Pressure { .. } => 19,
        Input::Remove { .. } => 20,
        Input::Shutdown { .. } => 21,
        Input::CallerGone { .. } => 22,
    }
}

const EFFECTS: [&str; 21] = [
    "Spawn",
    "Size",
    "Reserve",
    "CancelReserve",
    "Load",
    "Run",
    "Fail",
    "Expire",
    "Forget",
    "Ping",
    "Stop",
    "Quarantine",
    "RetainWeights",
    "ReleaseWeights",
    "Relieve",
    "Return",
    "Emit",
    "Drained",
    "ExpireRunning",
    "ReadProgress",
    "EndRunning",
];

const fn effect_index(effect: &Effect) -> usize {
    match effect {
        Effect::Spawn { .. } => 0,
        Effect::Size { .. } => 1,
        Effect::Reserve { .. } => 2,
        Effect::CancelReserve { .. } => 3,
        Effect::Load { .. } => 4,
        Effect::Run { .. } => 5,
        Effect::Fail { .. } => 6,
        Effect::Expire { .. } => 7,
        Effect::Forget { .. } => 8,
        Effect::Ping { .. } => 9,
        Effect::Stop { .. } => 10,
        Effect::Quarantine { .. } => 11,
        Effect::RetainWeights { .. } => 12,
        Effect::ReleaseWeights { .. } => 13,
        Effect::Relieve { .. } => 14,
        Effect::Return { .. } => 15,
        Effect::Emit(_) => 16,
        Effect::Drained { .. } => 17,
        Effect::ExpireRunning { .. } => 18,
        Effect::ReadProgress { .. } => 19,
        Effect::EndRunning { .. } => 20,
    }
}
