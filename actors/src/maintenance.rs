//! The maintenance actor, beside the pools under the system: it sends them timed cooldown messages, has idle
//! workers evicted to make room for loads, watches memory pressure, and has the pools ping their idle
//! workers. Its decisions are in `maintenance/room.rs` (the queue for room) and `maintenance/eviction.rs`
//! (the choice of workers to evict); this file turns messages into their inputs and their effects into sends.
//! Pools, budgets and the system send to it.

pub mod eviction;
pub mod room;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef, DerivedActorRef, SupervisionEvent};
use tokio::sync::watch;

use crate::alarm::Alarm;
use crate::id::{Bytes, Device, ModelKey, Time, WorkerId};
use crate::memory::{Budgets, Lease, Ledger, MemoryProbe, PressureLevel};
use crate::progress::Clock;
use crate::status::{MemoryStatus, SystemStatus, publish};
use crate::telemetry::{Event, Events, EvictionReason, metric};
use eviction::{Offer, PoolIndex, relieve};
use room::{LoadQueue, RoomAsk, RoomEffect, RoomInput};

/// A command to a pool from maintenance or the system.
pub(crate) enum PoolCommand {
    /// The moment for a cooldown has come.
    Cooldown,
    /// Evict this worker, if it is still idle.
    Evict { worker: WorkerId, reason: EvictionReason },
    /// Room was found, or not.
    Room { worker: WorkerId, result: Result<Lease, NoRoom> },
    /// Offer the idle workers for eviction.
    Offer,
    /// Ping the idle workers.
    CheckHealth,
    /// The level of memory pressure on a device.
    Pressure { device: Device, level: PressureLevel },
    /// Maintenance was started again: repeat what was asked of it.
    MaintenanceRestarted(ActorRef<MaintenanceMessage>),
    /// Finish by the deadline and say so.
    Shutdown { deadline: Time, done: tokio::sync::oneshot::Sender<PoolDrained> },
}

crate::impl_message!(PoolCommand);

/// The figures of a load for which there is no room.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NoRoom {
    pub(crate) needed: Bytes,
    pub(crate) free: Bytes,
    pub(crate) limit: Bytes,
}

/// The report of a pool's shutdown.
#[derive(Debug)]
pub(crate) struct PoolDrained {
    pub(crate) abandoned: usize,
}

/// A message to maintenance from pools, budgets, the system or its own timers.
pub(crate) enum MaintenanceMessage {
    /// A pool's next cooldown is due at this moment.
    CooldownAt { pool: PoolIndex, at: Time },
    /// A worker needs room.
    Ask { ask: RoomAsk, model: ModelKey, device: Device, needed: Bytes, until: Time },
    /// It needs it no longer.
    Withdraw { ask: RoomAsk },
    /// A pool's idle workers, and what they hold.
    Offers { pool: PoolIndex, offers: Vec<Offer> },
    /// Bytes came back to a budget.
    Released,
    /// Memory ran out in spite of the budget.
    Relieve { device: Device },
    /// A part of a model that is loaded on demand has no room, whatever caches give back.
    Shortage { device: Device },
    /// A pool was started, again or for the first time.
    PoolUp { pool: PoolIndex, commands: DerivedActorRef<PoolCommand> },
    /// A pool has ended.
    PoolDown { pool: PoolIndex },
    /// A timer rang.
    RoomAlarm,
    /// A timer rang.
    CooldownAlarm,
    /// The interval has passed.
    Interval,
}

crate::impl_message!(MaintenanceMessage);

pub(crate) struct MaintenanceArguments {
    pub(crate) clock: Clock,
    pub(crate) interval: Duration,
    pub(crate) budgets: Budgets,
    pub(crate) memory: MemoryProbe,
    pub(crate) pools: usize,
    pub(crate) status: watch::Sender<SystemStatus>,
    pub(crate) events: Events,
}

pub(crate) struct MaintenanceState {
    arguments: MaintenanceArguments,
    pools: Vec<Option<DerivedActorRef<PoolCommand>>>,
    load_queue: LoadQueue,
    room_alarm: Alarm,
    cooldowns: Vec<Time>,
    cooldown_alarm: Alarm,
    /// Polls for a worker to evict because memory ran out: the offers so far, by device.
    relief: BTreeMap<Device, BTreeMap<PoolIndex, Vec<Offer>>>,
    pressure: BTreeMap<Device, PressureLevel>,
    released: Arc<AtomicBool>,
    /// Set anew once the interval has been handled, so that those which take long do not pile up.
    interval_alarm: Alarm,
}

/// The maintenance actor.
pub(crate) struct Maintenance;

impl Actor for Maintenance {
    type Msg = MaintenanceMessage;
    type State = MaintenanceState;
    type Arguments = MaintenanceArguments;

    async fn pre_start(
        &self,
        myself: ActorRef<Self::Msg>,
        arguments: Self::Arguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        let released = Arc::new(AtomicBool::new(false));
        for budget in arguments.budgets.values() {
            let (maintenance, released) = (myself.clone(), released.clone());
            budget.on_release(Box::new(move || {
                // One message stands for any number of returns, so that they cannot fill the mailbox.
                if !released.swap(true, Ordering::AcqRel) {
                    let _ = maintenance.send_message(MaintenanceMessage::Released);
                }
            }));
        }
        for (device, budget) in arguments.budgets.iter() {
            budget.relief_begins();
            let (maintenance, device) = (myself.clone(), device.clone());
            // One message at a time: the budget says no more until it has been handled.
            budget.on_shortage(Box::new(move || {
                let _ = maintenance.send_message(MaintenanceMessage::Shortage { device: device.clone() });
            }));
        }
        let mut state = MaintenanceState {
            pools: vec![None; arguments.pools],
            load_queue: LoadQueue::new(arguments.pools),
            room_alarm: Alarm::unset(),
            cooldowns: vec![Time::NEVER; arguments.pools],
            cooldown_alarm: Alarm::unset(),
            relief: BTreeMap::new(),
            pressure: BTreeMap::new(),
            released,
            interval_alarm: Alarm::unset(),
            arguments,
        };
        state.set_interval_alarm(&myself);
        Ok(state)
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        message: Self::Msg,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            MaintenanceMessage::CooldownAt { pool, at } => state.cooldown_at(&myself, pool, at),
            MaintenanceMessage::Ask { ask, model, device, needed, until } => {
                state.room(RoomInput::Ask { ask, model, device, needed, until });
            }
            MaintenanceMessage::Withdraw { ask } => state.room(RoomInput::Withdraw { ask }),
            MaintenanceMessage::Offers { pool, offers } => state.offers(pool, offers),
            MaintenanceMessage::Released => state.bytes_released(),
            MaintenanceMessage::Relieve { device } => state.relieve(device),
            MaintenanceMessage::Shortage { device } => state.shortage(device),
            MaintenanceMessage::PoolUp { pool, commands } => state.pool_up(pool, commands),
            MaintenanceMessage::PoolDown { pool } => state.pool_down(pool),
            MaintenanceMessage::RoomAlarm => state.room_alarm(),
            MaintenanceMessage::CooldownAlarm => state.cooldown_alarm(&myself),
            MaintenanceMessage::Interval => state.interval(&myself),
        }
        state.set_room_alarm(&myself);
        Ok(())
    }

    /// Maintenance has no children.
    async fn handle_supervisor_evt(
        &self,
        _myself: ActorRef<Self::Msg>,
        _event: SupervisionEvent,
        _state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        Ok(())
    }
}

impl MaintenanceState {
    fn tell(&self, pool: PoolIndex, command: PoolCommand) {
        if let Some(Some(commands)) = self.pools.get(pool.0) {
            // A pool that has just died is started again by the system and announced anew.
            let _ = commands.send_message(command);
        }
    }

    fn tell_all(&self, command: impl Fn() -> PoolCommand) {
        for index in 0..self.pools.len() {
            self.tell(PoolIndex(index), command());
        }
    }

    fn pool_up(&mut self, pool: PoolIndex, commands: DerivedActorRef<PoolCommand>) {
        if let Some(place) = self.pools.get_mut(pool.0) {
            *place = Some(commands);
        }
        for (device, level) in &self.pressure {
            self.tell(pool, PoolCommand::Pressure { device: device.clone(), level: *level });
        }
    }

    /// Drops what the pool asked for, and waits for its offers no longer.
    fn pool_down(&mut self, pool: PoolIndex) {
        if let Some(place) = self.pools.get_mut(pool.0) {
            *place = None;
        }
        self.room(RoomInput::PoolEnded { pool });
    }

    fn cooldown_at(&mut self, myself: &ActorRef<MaintenanceMessage>, pool: PoolIndex, at: Time) {
        if let Some(due) = self.cooldowns.get_mut(pool.0) {
            *due = at;
            self.set_cooldown_alarm(myself);
        }
    }

    fn set_cooldown_alarm(&mut self, myself: &ActorRef<MaintenanceMessage>) {
        if let Some(next) = self.cooldowns.iter().min().filter(|at| **at < Time::NEVER) {
            let maintenance = myself.clone();
            self.cooldown_alarm.set(self.arguments.clock, *next, move || {
                let _ = maintenance.send_message(MaintenanceMessage::CooldownAlarm);
            });
        }
    }

    fn cooldown_alarm(&mut self, myself: &ActorRef<MaintenanceMessage>) {
        self.cooldown_alarm.rang();
        let now = self.arguments.clock.now();
        for index in 0..self.cooldowns.len() {
            if self.cooldowns[index] <= now {
                self.cooldowns[index] = Time::NEVER;
                self.tell(PoolIndex(index), PoolCommand::Cooldown);
            }
        }
        self.set_cooldown_alarm(myself);
    }

    fn bytes_released(&mut self) {
        // Cleared before the ledgers are read: a return after this sends another message.
        self.released.store(false, Ordering::Release);
        self.room(RoomInput::Released);
    }

    fn room_alarm(&mut self) {
        self.room_alarm.rang();
        self.room(RoomInput::Tick);
    }

    fn set_room_alarm(&mut self, myself: &ActorRef<MaintenanceMessage>) {
        let (maintenance, at) = (myself.clone(), self.load_queue.alarm());
        self.room_alarm.set(self.arguments.clock, at, move || {
            let _ = maintenance.send_message(MaintenanceMessage::RoomAlarm);
        });
    }

    /// Gives the load queue an input and carries out what follows, grants included, until nothing more does.
    fn room(&mut self, input: RoomInput) {
        let mut inputs = vec![input];
        while let Some(input) = inputs.pop() {
            let mut effects = Vec::new();
            let now = self.arguments.clock.now();
            self.load_queue.handle(now, input, &self.ledgers(), &mut effects);
            for effect in effects {
                match effect {
                    RoomEffect::Poll => self.tell_all(|| PoolCommand::Offer),
                    RoomEffect::Reclaim { device, room } => {
                        if let Some(budget) = self.arguments.budgets.get(&device) {
                            budget.reclaim(now, room);
                        }
                    }
                    RoomEffect::Evict { pool, worker } => {
                        self.tell(pool, PoolCommand::Evict { worker, reason: EvictionReason::MakeRoom });
                    }
                    RoomEffect::Grant { ask, device, needed } => {
                        inputs.push(self.grant(ask, &device, needed))
                    }
                    RoomEffect::Deny { ask, device, needed } => self.deny(ask, &device, needed),
                }
            }
        }
        for (device, budget) in self.arguments.budgets.iter() {
            budget.set_waiting(self.load_queue.waiting(device));
        }
    }

    /// Takes the lease of a grant. A pool may have taken the room since the ledger was read.
    fn grant(&self, ask: RoomAsk, device: &Device, needed: Bytes) -> RoomInput {
        match self.arguments.budgets.get(device).and_then(|budget| budget.lease(needed)) {
            Some(lease) => {
                self.tell(ask.pool, PoolCommand::Room { worker: ask.worker, result: Ok(lease) });
                RoomInput::Granted { ask }
            }
            None => RoomInput::GrantFailed { ask },
        }
    }

    fn deny(&self, ask: RoomAsk, device: &Device, needed: Bytes) {
        let ledger = self.arguments.budgets.get(device).map(|budget| budget.read_for_a_load());
        let ledger = ledger.unwrap_or(Ledger::new(Bytes::ZERO));
        let no_room = NoRoom { needed, free: ledger.free(), limit: ledger.limit() };
        self.tell(ask.pool, PoolCommand::Room { worker: ask.worker, result: Err(no_room) });
    }

    fn ledgers(&self) -> BTreeMap<Device, Ledger> {
        let budgets = self.arguments.budgets.iter();
        budgets.map(|(device, budget)| (device.clone(), budget.read_for_a_load())).collect()
    }

    fn offers(&mut self, pool: PoolIndex, offers: Vec<Offer>) {
        let pools = self.pools.iter().flatten().count();
        for received in self.relief.values_mut() {
            received.insert(pool, offers.clone());
        }
        let mut goes = Vec::new();
        self.relief.retain(|device, received| {
            let complete = received.len() >= pools;
            if complete {
                let all: Vec<Offer> = received.values().flatten().cloned().collect();
                goes.extend(relieve(device, &all));
            }
            !complete
        });
        for (pool, worker) in goes {
            self.tell(pool, PoolCommand::Evict { worker, reason: EvictionReason::Pressure });
        }
        self.room(RoomInput::Offers { pool, offers });
    }

    /// Has caches give back all that they hold. False if they held nothing.
    fn empty_caches(&self, device: &Device) -> bool {
        let now = self.arguments.clock.now();
        self.arguments.budgets.get(device).is_some_and(|budget| budget.reclaim(now, Bytes(u64::MAX)))
    }

    /// Frees memory for somebody who has run out of it: what caches hold, and a worker, as nobody tries more than once again.
    fn relieve(&mut self, device: Device) {
        self.empty_caches(&device);
        self.relief.insert(device, BTreeMap::new());
        self.tell_all(|| PoolCommand::Offer);
    }

    fn shortage(&mut self, device: Device) {
        if let Some(budget) = self.arguments.budgets.get(&device) {
            budget.relief_begins();
        }
        self.relieve(device);
    }

    fn set_interval_alarm(&mut self, myself: &ActorRef<MaintenanceMessage>) {
        let (maintenance, clock) = (myself.clone(), self.arguments.clock);
        self.interval_alarm.set(clock, clock.now() + self.arguments.interval, move || {
            let _ = maintenance.send_message(MaintenanceMessage::Interval);
        });
    }

    fn interval(&mut self, myself: &ActorRef<MaintenanceMessage>) {
        self.interval_alarm.rang();
        // A poll that a dead pool left open is for a shortage that is over.
        self.relief.clear();
        self.check_pressure();
        self.tell_all(|| PoolCommand::CheckHealth);
        let status = self.arguments.status.borrow().clone();
        for pool in &status.pools {
            let bytes: Bytes = pool.all_models().map(|model| model.bytes).sum();
            tracing::info!(capability = pool.capability, %bytes, "memory of a pool");
        }
        for budget in self.arguments.budgets.values() {
            let ledger = budget.read();
            let device = budget.device();
            tracing::info!(%device, charged = %ledger.charged(), limit = %ledger.limit(), "memory of all pools");
        }
        self.set_interval_alarm(myself);
    }

    /// Measures memory pressure. The host's memory is also used by others; a budget that is used up is no
    /// shortage, since a load makes its own room.
    fn check_pressure(&mut self) {
        let machine = match self.arguments.memory.measure() {
            Ok(memory) => PressureLevel::of(memory.used, memory.limit),
            Err(cause) => {
                tracing::error!(%cause, "memory could not be measured; its level stays as it was");
                self.pressure.get(&Device::host()).copied().unwrap_or_default()
            }
        };
        let mut levels = Vec::new();
        for budget in self.arguments.budgets.values() {
            let (device, ledger) = (budget.device(), budget.read());
            let level = if *device == Device::host() { machine } else { PressureLevel::Normal };
            levels.push(MemoryStatus {
                device: device.clone(),
                limit: ledger.limit(),
                charged: ledger.charged(),
                cached: ledger.cached(),
                pressure: level,
            });
            metrics::gauge!(metric::BYTES, "device" => device.to_string()).set(ledger.charged().0 as f64);
            metrics::gauge!(metric::CACHED_BYTES, "device" => device.to_string())
                .set(ledger.cached().0 as f64);
        }
        publish(&self.arguments.status, |status| status.memory = levels.clone());
        for MemoryStatus { device, pressure: level, .. } in levels {
            let before = self.pressure.insert(device.clone(), level);
            // The first time too: the pools may have been told something else by a maintenance that failed.
            if before != Some(level) {
                self.tell_all(|| PoolCommand::Pressure { device: device.clone(), level });
            }
            if level != before.unwrap_or_default() {
                let device = device.clone();
                self.arguments.events.report(Event::Pressure { device, level });
            }
            // A worker goes once caches hold nothing.
            if level == PressureLevel::Critical && !self.empty_caches(&device) {
                self.relieve(device);
            }
        }
    }
}
