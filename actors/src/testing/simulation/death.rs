//! Deaths of pools: an actor dies with its messages, requests, calls, rooms and handles, its threads run on,
//! and the next pool takes them over. A model that was removed is forgotten here too, once nothing of it is left.

use std::time::Duration;

use super::Plant;
use super::state::{Doing, Told};
use super::world::{Event, World};
use crate::id::{ModelKey, WorkerId};
use crate::maintenance::eviction::PoolIndex;
use crate::maintenance::room::RoomInput;
use crate::scheduler::{Holds, Input, Leaving, Scheduler};

impl World {
    /// A pool dies. Its callers are told, its threads are left to themselves, and after a while there is another.
    pub(super) fn kill_pool(&mut self, pool: usize) {
        if self.pools[pool].down || self.pools[pool].shut_by.is_some() {
            return;
        }
        self.pools[pool].down = true;
        let goes = |event: &Event| match event {
            Event::ToPool { pool: of, .. }
            | Event::Room { pool: of, .. }
            | Event::AskOffers { pool: of }
            | Event::Tick { pool: of }
            | Event::CooldownAlarm { pool: of }
            | Event::CooldownDue { pool: of }
            | Event::CallIsLeft { pool: of, .. } => *of == pool,
            _ => false,
        };
        self.take_events(goes).into_iter().for_each(|event| self.unheard(event));
        self.leave_threads(pool);
        self.tell_callers(pool);
        let (name, interval, seed) = (self.pools[pool].name, self.scenario.interval, self.random.u64(..));
        let state = &mut self.pools[pool];
        state.scheduler = Scheduler::new(name, interval, seed);
        (state.tick_at, state.cooldown_at) = (crate::Time::NEVER, crate::Time::NEVER);
        let ended = RoomInput::PoolEnded { pool: PoolIndex(pool) };
        self.tell_maintenance(pool, Event::ToLoadQueue(ended));
        let backoff = Duration::from_millis(self.random.u64(200..2_000));
        self.after(backoff, Event::PoolReturns { pool });
    }

    /// A message that no pool takes: what it brings goes back.
    pub(super) fn unheard(&mut self, event: Event) {
        if let Event::Room { answer: Ok(lease), .. } = event {
            self.drop_lease(Some(lease));
        }
    }

    /// The handles of all workers are dropped, and with them the rooms and the weights that the pool had.
    fn leave_threads(&mut self, pool: usize) {
        let rooms = std::mem::take(&mut self.pools[pool].rooms);
        for room in rooms.into_values() {
            self.drop_weights(room.weights);
            self.drop_lease(room.lease);
        }
        self.pools[pool].asks.clear();
        for index in 0..self.pools[pool].workers.len() {
            let worker = WorkerId(index as u64 + 1);
            self.let_go(pool, worker, Told::Dead);
            self.worker(pool, worker).orphan = true;
        }
        // Numbers of workers that had no thread yet may be given again.
        let last = self.pools[pool].workers.iter().rposition(|worker| worker.spawned);
        self.pools[pool].workers.truncate(last.map_or(0, |last| last + 1));
        for index in 0..self.pools[pool].models.len() {
            let model = &mut self.pools[pool].models[index];
            let (retained, offered) = (model.retained.take(), model.offered.take());
            model.weights = None;
            model.begin_anew();
            self.drop_weights(offered);
            if retained.is_some_and(|weights| self.weights[weights].holders == 1) {
                let worker = WorkerId(self.pools[pool].workers.len() as u64 + 1);
                self.free_kept(pool, worker, ModelKey(index as u32), retained);
            } else {
                self.drop_weights(retained);
            }
        }
        // Nobody is there whom the ends of its threads would concern.
        self.follow.clear();
    }

    /// The callers of all that the pool and its intake had see that it is gone.
    fn tell_callers(&mut self, pool: usize) {
        self.came_back.clear();
        self.pools[pool].queued.clear();
        self.calls.retain(|_, call| call.pool != pool);
        let now = self.now;
        for index in 0..self.requests.len() {
            let request = &mut self.requests[index];
            if request.pool != pool || request.gone {
                continue;
            }
            request.end_attempt(now);
            (request.gone, request.running_on) = (true, None);
            self.pools[pool].models[request.model].held -= 1;
            self.answer(index, "recv_error");
        }
    }

    /// Another pool begins. It takes over the threads that the last one left, and goes on with the models.
    pub(super) fn pool_returns(&mut self, pool: usize) {
        if self.pools[pool].shut_by.is_some() {
            return;
        }
        let last = WorkerId(self.pools[pool].workers.len() as u64);
        self.pools[pool].down = false;
        self.pools[pool].scheduler.number_after(last);
        for worker in self.pools[pool].live.clone() {
            if !self.planted(Plant::ThreadForgotten) {
                self.inherit(pool, worker);
            }
        }
        for index in 0..self.pools[pool].models.len() {
            let key = ModelKey(index as u32);
            let removed = self.pools[pool].models[index].removed;
            // Nobody names a removed model any more.
            if removed && !self.pools[pool].scheduler.knows(key) {
                self.pools[pool].models[index].forgotten = true;
                continue;
            }
            self.declare(pool, index);
            if removed {
                self.feed(pool, Input::Remove { key });
            }
        }
    }

    fn inherit(&mut self, pool: usize, worker: WorkerId) {
        let (now, state) = (self.now, self.worker_ref(pool, worker));
        debug_assert!(state.doing != Doing::Ended, "a thread that has ended is not in the roster");
        let why = if state.given_up { Leaving::Stuck } else { Leaving::Dead };
        let (holds, footprint) = state.holds.unwrap_or((Holds::Nothing, None));
        let index = state.model;
        let known = (ModelKey(index as u32), self.policy(pool, index));
        self.pools[pool].scheduler.inherit(now, known, worker, (why, holds, footprint));
    }

    /// Has the scheduler forget the removed models of which nothing is left.
    pub(super) fn forget_removed(&mut self, pool: usize) {
        for index in 0..self.pools[pool].models.len() {
            let (key, model) = (ModelKey(index as u32), &self.pools[pool].models[index]);
            if !model.removed || model.forgotten {
                continue;
            }
            let is_free = model.held == 0;
            let state = &mut self.pools[pool];
            let forgets = (is_free && state.scheduler.forget(key))
                || (self.planted(Plant::ForgottenEarly)
                    && self.pools[pool].scheduler.models.remove(&key).is_some());
            if forgets {
                self.pools[pool].models[index].forgotten = true;
                self.check_forgotten(pool, index);
            }
        }
    }
}
