//! Bodies that come in pieces, until their letter comes. They are bounded in number and bytes, and go when nothing more of
//! them comes.

use std::collections::HashMap;
use std::time::Duration;

use crate::cluster::Body;
use crate::cluster::router::Boot;
use crate::id::Time;
use crate::limits::MAX_LETTER_BYTES;

/// Maximum number of bodies of one peer that are coming.
const MOST: usize = 256;
/// Maximum number of bytes of all.
const MOST_BYTES: usize = 1 << 30;
/// Time after which a body that gets no more pieces is dropped.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Debug)]
struct Parcel {
    bytes: Vec<u8>,
    touched: Time,
}

#[derive(Debug, Default)]
pub(super) struct Parcels {
    parcels: HashMap<(Boot, u64), Parcel>,
    bytes: usize,
}

impl Parcels {
    /// Takes a piece in. False if it is over a limit; its body is dropped then.
    pub(super) fn add(&mut self, from: Boot, transfer: u64, piece: &[u8], now: Time) -> bool {
        let key = (from, transfer);
        let of_peer = || self.parcels.keys().filter(|(peer, _)| *peer == from).count();
        let held = self.parcels.get(&key).map(|parcel| parcel.bytes.len());
        let is_over = self.bytes + piece.len() > MOST_BYTES
            || held.unwrap_or(0) + piece.len() > MAX_LETTER_BYTES
            || (held.is_none() && of_peer() >= MOST);
        if is_over {
            self.remove(key);
            return false;
        }
        let parcel = self.parcels.entry(key).or_insert_with(|| Parcel { bytes: Vec::new(), touched: now });
        parcel.bytes.extend_from_slice(piece);
        parcel.touched = now;
        self.bytes += piece.len();
        true
    }

    /// The bytes of a body whose letter has come. `None` if they are not all there.
    pub(super) fn open(&mut self, from: Boot, body: Body) -> Option<Vec<u8>> {
        match body {
            Body::Here(bytes) => Some(bytes.into_vec()),
            Body::Transfer { transfer, length } => {
                self.remove((from, transfer)).filter(|bytes| bytes.len() as u64 == length)
            }
        }
    }

    fn remove(&mut self, key: (Boot, u64)) -> Option<Vec<u8>> {
        let bytes = self.parcels.remove(&key)?.bytes;
        self.bytes -= bytes.len();
        Some(bytes)
    }

    /// Drops what came from a peer that is gone.
    pub(super) fn forget(&mut self, from: Boot) {
        let gone: Vec<_> = self.parcels.keys().copied().filter(|(peer, _)| *peer == from).collect();
        gone.into_iter().for_each(|key| drop(self.remove(key)));
    }

    /// Drops what nobody goes on with.
    pub(super) fn tidy(&mut self, now: Time) {
        let is_old = |parcel: &Parcel| now.since(parcel.touched) > PATIENCE;
        let old: Vec<_> =
            self.parcels.iter().filter(|(_, parcel)| is_old(parcel)).map(|(key, _)| *key).collect();
        old.into_iter().for_each(|key| drop(self.remove(key)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_come_out_whole_and_a_part_does_not() {
        let mut parcels = Parcels::default();
        assert!(parcels.add(Boot(1), 7, b"ab", Time::ZERO) && parcels.add(Boot(1), 7, b"c", Time::ZERO));
        assert!(parcels.add(Boot(2), 7, b"x", Time::ZERO));
        let whole = Body::Transfer { transfer: 7, length: 3 };
        assert_eq!(parcels.open(Boot(1), whole).as_deref(), Some(&b"abc"[..]));
        assert_eq!(parcels.open(Boot(2), Body::Transfer { transfer: 7, length: 3 }), None);
        assert_eq!(parcels.bytes, 0);
    }

    #[test]
    fn bodies_are_bounded_in_number_and_go_in_time() {
        let mut parcels = Parcels::default();
        let taken =
            (0..MOST as u64 + 5).filter(|transfer| parcels.add(Boot(1), *transfer, b"a", Time::ZERO)).count();
        assert_eq!(taken, MOST);
        assert!(parcels.add(Boot(2), 1, b"a", Time::ZERO), "another peer has places of its own");
        parcels.forget(Boot(2));
        parcels.tidy(Time::ZERO + PATIENCE * 2);
        assert_eq!((parcels.bytes, parcels.parcels.len()), (0, 0));
    }
}
