//! The faults of a history: links that carry nothing, connections that end, nodes that leave, die and come back.

use super::checks::Broken;
use super::network::{Index, pair};
use super::node::SimNode;
use super::world::{Event, World};
use crate::cluster::router::Boot;

impl World {
    pub(super) fn fault(&mut self) -> Result<(), Broken> {
        if self.healed {
            return Ok(());
        }
        self.soon(50..3000, Event::Fault);
        let (a, b) = (self.random.usize(..self.nodes.len()), self.random.usize(..self.nodes.len()));
        if a == b {
            return Ok(());
        }
        let time = self.random.u64(50..3000);
        match self.random.u32(..5) {
            0 => {
                self.count("half-open links");
                self.network.blocked.insert((a, b));
                self.after(time, Event::Unblock(a, b));
            }
            1 => {
                self.count("partitions");
                for (from, to) in [(a, b), (b, a)] {
                    self.network.blocked.insert((from, to));
                    self.after(time, Event::Unblock(from, to));
                }
            }
            2 => {
                self.count("disconnections");
                self.disconnect(a, b);
            }
            3 => return self.leave(a),
            _ => self.death(a),
        }
        Ok(())
    }

    pub(super) fn leave(&mut self, index: Index) -> Result<(), Broken> {
        if !self.nodes[index].alive || self.nodes[index].leaving {
            return Ok(());
        }
        self.count("leaves");
        self.soon(50..500, Event::Depart(self.nodes[index].boot));
        self.at(index, SimNode::leave)
    }

    pub(super) fn depart(&mut self, boot: Boot) {
        let Some(index) = self.index_of(boot) else { return };
        match self.nodes[index].jobs.is_empty() {
            true => self.death(index),
            false => self.soon(20..200, Event::Depart(boot)),
        }
    }

    pub(super) fn death(&mut self, index: Index) {
        if !self.nodes[index].alive {
            return;
        }
        self.count("deaths");
        let boot = self.nodes[index].boot;
        self.nodes[index].alive = false;
        self.nodes[index].jobs.clear();
        self.nodes[index].calls.clear();
        self.ledger.close_all(boot);
        for other in (0..self.nodes.len()).filter(|other| *other != index).collect::<Vec<_>>() {
            if self.network.connected.remove(&pair(index, other)) {
                // A machine that loses its power tells nobody; the others notice its silence.
                if self.random.bool() {
                    let (there, pair) = (self.nodes[other].boot, pair(index, other));
                    let connection = self.network.newest.get(&pair).copied().unwrap_or(0);
                    self.soon(0..300, Event::Notice(index, there, boot, connection));
                }
                self.soon(100..1000, Event::Connect(index, other));
            }
        }
        self.soon(50..2500, Event::Rebirth(index));
    }

    pub(super) fn rebirth(&mut self, index: Index) {
        if self.nodes[index].alive {
            return;
        }
        self.count("rebirths");
        let node = self.birth(index);
        self.nodes[index] = node;
        for other in (0..self.nodes.len()).filter(|other| *other != index).collect::<Vec<_>>() {
            self.soon(1..500, Event::Connect(index, other));
        }
    }
}
