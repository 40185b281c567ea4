//! The index of the cached prefixes of a memory: which parts of sequences are there, and which goes first when room
//! runs short. A pure state machine; the values, their bytes in the budget and the locks are left to `cache`.
//!
//! A prefix is a path of parts from the beginning of a sequence, each known by its numbers and the part before it. So a
//! part is found by what it holds, never by a digest that two could share, and prefixes that begin alike share parts. Only
//! the last part of a path may go, as those behind it would be lost with it. Of those, the least worth goes first, by the
//! rule that evicts workers: what has not been used for long, frees much, and is quick to compute again.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::time::Duration;

use crate::id::{Bytes, Time};

/// Number of a part. No other part of the same memory ever has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PartId(u64);

/// Owner of parts: the cache of one loaded model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Owner(pub(crate) u64);

/// A part and what it is worth.
#[derive(Debug)]
struct Part {
    owner: Owner,
    before: Option<PartId>,
    numbers: Box<[u32]>,
    bytes: Bytes,
    /// Time that it took to compute.
    saves: Duration,
    used: Time,
    /// Parts right behind it.
    behind: usize,
    /// Somebody holds it, so that it may not go.
    held: bool,
}

impl Part {
    /// The higher, the sooner it goes.
    fn dispensable(&self, now: Time) -> u64 {
        let saves = self.saves.max(Duration::from_micros(1));
        let score = now.since(self.used).as_secs_f64() * self.bytes.0 as f64 / saves.as_secs_f64();
        // Numbers that are not negative are in the order of their bits.
        score.to_bits()
    }
}

/// Place of a part: its owner, and the part before it.
type Place = (Owner, Option<PartId>);

/// Index of the cached prefixes of one memory.
#[derive(Debug, Default)]
pub(crate) struct Prefixes {
    parts: BTreeMap<PartId, Part>,
    places: BTreeMap<Place, BTreeMap<Box<[u32]>, PartId>>,
    bytes: BTreeMap<Owner, Bytes>,
    /// Bytes of all parts that are held.
    held: Bytes,
    last: u64,
}

impl Prefixes {
    /// Finds the part with these numbers behind another, or at the beginning, and notes that it was used.
    pub(crate) fn find(
        &mut self,
        now: Time,
        owner: Owner,
        before: Option<PartId>,
        numbers: &[u32],
    ) -> Option<PartId> {
        let id = *self.places.get(&(owner, before))?.get(numbers)?;
        self.parts.get_mut(&id)?.used = now;
        Some(id)
    }

    /// Inserts a part that is not there. Nothing if the part before it has gone.
    pub(crate) fn insert(
        &mut self,
        now: Time,
        (owner, before): Place,
        numbers: Box<[u32]>,
        bytes: Bytes,
        saves: Duration,
    ) -> Option<PartId> {
        if let Some(before) = before {
            let before = self.parts.get_mut(&before).filter(|part| part.owner == owner)?;
            before.behind += 1;
            before.used = now;
        }
        Some(self.put(now, (owner, before), numbers, bytes, saves))
    }

    /// Inserts a part that is not there, behind one that is, or at the beginning.
    pub(crate) fn put(
        &mut self,
        now: Time,
        (owner, before): Place,
        numbers: Box<[u32]>,
        bytes: Bytes,
        saves: Duration,
    ) -> PartId {
        self.last += 1;
        let id = PartId(self.last);
        self.places.entry((owner, before)).or_default().insert(numbers.clone(), id);
        let part = Part { owner, before, numbers, bytes, saves, used: now, behind: 0, held: false };
        self.parts.insert(id, part);
        *self.bytes.entry(owner).or_default() += bytes;
        id
    }

    /// Notes that a part may not go.
    pub(crate) fn hold(&mut self, id: PartId) {
        if let Some(part) = self.parts.get_mut(&id).filter(|part| !part.held) {
            part.held = true;
            self.held += part.bytes;
        }
    }

    /// Notes that a part may go again, and was used until now.
    pub(crate) fn release(&mut self, now: Time, id: PartId) {
        if let Some(part) = self.parts.get_mut(&id).filter(|part| part.held) {
            (part.held, part.used) = (false, now);
            self.held -= part.bytes;
        }
    }

    /// Takes out parts of one owner or of all, but never `kept` nor what is held: those that are worth least, until they have so many bytes or
    /// none is left.
    pub(crate) fn take(
        &mut self,
        now: Time,
        mut missing: Bytes,
        owner: Option<Owner>,
        kept: Option<PartId>,
    ) -> Vec<PartId> {
        let may_go = |id: &PartId, part: &Part| {
            part.behind == 0
                && !part.held
                && Some(*id) != kept
                && owner.is_none_or(|owner| owner == part.owner)
        };
        // Of equals the older one goes first, so that the choice can be foretold.
        let entry = |id: PartId, part: &Part| (part.dispensable(now), Reverse(id));
        let ends = self.parts.iter().filter(|(id, part)| missing > Bytes::ZERO && may_go(id, part));
        let mut ends: BinaryHeap<_> = ends.map(|(id, part)| entry(*id, part)).collect();
        let mut taken = Vec::new();
        while missing > Bytes::ZERO
            && let Some((_, Reverse(id))) = ends.pop()
            && let Some((before, bytes)) = self.remove(id)
        {
            missing -= bytes;
            taken.push(id);
            // The one before it may be the end of its path now.
            let next = before.and_then(|before| Some((before, self.parts.get(&before)?)));
            ends.extend(next.filter(|(id, part)| may_go(id, part)).map(|(id, part)| entry(id, part)));
        }
        taken
    }

    /// Takes out everything of an owner.
    pub(crate) fn remove_all(&mut self, owner: Owner) -> Vec<PartId> {
        let of_owner = self.parts.iter().filter(|(_, part)| part.owner == owner);
        let ids: Vec<PartId> = of_owner.map(|(id, _)| *id).collect();
        for id in &ids {
            let held = self.parts.remove(id).filter(|part| part.held);
            self.held -= held.map_or(Bytes::ZERO, |part| part.bytes);
        }
        self.places.retain(|(of, _), _| *of != owner);
        self.bytes.remove(&owner);
        ids
    }

    /// Removes a part. Gives the one before it, and its bytes.
    fn remove(&mut self, id: PartId) -> Option<(Option<PartId>, Bytes)> {
        let Part { owner, before, numbers, bytes, .. } = self.parts.remove(&id)?;
        if let Some(places) = self.places.get_mut(&(owner, before)) {
            places.remove(&numbers);
            if places.is_empty() {
                self.places.remove(&(owner, before));
            }
        }
        if let Some(part) = before.and_then(|before| self.parts.get_mut(&before)) {
            part.behind -= 1;
        }
        if let Some(held) = self.bytes.get_mut(&owner) {
            *held -= bytes;
        }
        Some((before, bytes))
    }

    /// Bytes of all parts of an owner.
    pub(crate) fn bytes_of(&self, owner: Owner) -> Bytes {
        self.bytes.get(&owner).copied().unwrap_or_default()
    }

    /// Bytes of all parts that nobody holds.
    pub(crate) fn bytes(&self) -> Bytes {
        self.bytes.values().copied().sum::<Bytes>() - self.held
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWNER: Owner = Owner(1);
    const MILLISECOND: Duration = Duration::from_millis(1);

    fn at(seconds: u64) -> Time {
        Time::ZERO + Duration::from_secs(seconds)
    }

    fn add(prefixes: &mut Prefixes, now: u64, before: Option<PartId>, numbers: &[u32]) -> PartId {
        let added = prefixes.insert(at(now), (OWNER, before), numbers.into(), Bytes(10), MILLISECOND);
        added.unwrap()
    }

    #[test]
    fn a_part_is_found_behind_the_one_before_it_alone() {
        let mut prefixes = Prefixes::default();
        let first = add(&mut prefixes, 1, None, &[1, 2]);
        let second = add(&mut prefixes, 1, Some(first), &[3, 4]);
        assert_eq!(prefixes.find(at(2), OWNER, None, &[1, 2]), Some(first));
        assert_eq!(prefixes.find(at(2), OWNER, Some(first), &[3, 4]), Some(second));
        assert_eq!(prefixes.find(at(2), OWNER, None, &[3, 4]), None);
        assert_eq!(prefixes.find(at(2), Owner(2), None, &[1, 2]), None, "it is another model's");
    }

    #[test]
    fn the_end_of_what_was_used_longest_ago_goes_first_and_never_a_beginning() {
        let mut prefixes = Prefixes::default();
        let system = add(&mut prefixes, 1, None, &[1]);
        let old = add(&mut prefixes, 2, Some(system), &[2]);
        let older_end = add(&mut prefixes, 2, Some(old), &[3]);
        let new = add(&mut prefixes, 5, Some(system), &[4]);
        assert_eq!(prefixes.take(at(9), Bytes(1), None, Some(new)), [older_end]);
        assert_eq!(prefixes.take(at(9), Bytes(100), None, Some(new)), [old], "{new:?} is kept");
        assert_eq!((prefixes.bytes(), prefixes.bytes_of(OWNER)), (Bytes(20), Bytes(20)));
        assert_eq!(prefixes.insert(at(9), (OWNER, Some(old)), [7].into(), Bytes(1), MILLISECOND), None);
    }

    #[test]
    fn what_is_dear_to_compute_outlasts_what_is_not() {
        let mut prefixes = Prefixes::default();
        let dear = prefixes.insert(at(1), (OWNER, None), [1].into(), Bytes(10), MILLISECOND * 10).unwrap();
        let cheap = prefixes.insert(at(2), (Owner(2), None), [1].into(), Bytes(10), MILLISECOND).unwrap();
        let end = prefixes.insert(at(2), (OWNER, Some(dear)), [1].into(), Bytes(1), MILLISECOND).unwrap();
        assert_eq!(prefixes.take(at(5), Bytes::ZERO, None, None), []);
        assert_eq!(prefixes.take(at(5), Bytes(100), None, None), [cheap, end, dear]);
    }

    #[test]
    fn what_is_held_may_not_go_and_is_new_once_nobody_holds_it() {
        let mut prefixes = Prefixes::default();
        let held = add(&mut prefixes, 1, None, &[1]);
        let other = add(&mut prefixes, 2, None, &[2]);
        prefixes.hold(held);
        assert_eq!((prefixes.bytes(), prefixes.bytes_of(OWNER)), (Bytes(10), Bytes(20)));
        prefixes.release(at(5), held);
        assert_eq!(prefixes.take(at(9), Bytes(1), None, None), [other], "it was used later");
        prefixes.hold(held);
        assert_eq!(prefixes.take(at(9), Bytes(1), None, None), []);
        assert_eq!(prefixes.remove_all(OWNER), [held]);
        prefixes.release(at(9), held);
        assert_eq!((prefixes.bytes(), prefixes.held), (Bytes::ZERO, Bytes::ZERO));
    }

    #[test]
    fn all_of_an_owner_goes_at_once_and_nothing_else() {
        let mut prefixes = Prefixes::default();
        let first = add(&mut prefixes, 1, None, &[1]);
        add(&mut prefixes, 1, Some(first), &[2]);
        prefixes.insert(at(1), (Owner(2), None), [1].into(), Bytes(7), MILLISECOND);
        assert_eq!(prefixes.remove_all(OWNER).len(), 2);
        assert_eq!((prefixes.bytes(), prefixes.bytes_of(OWNER)), (Bytes(7), Bytes::ZERO));
        assert_eq!(prefixes.find(at(2), OWNER, None, &[1]), None);
    }
}
