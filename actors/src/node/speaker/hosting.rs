//! The speaker's part for requests of peers: begins them, and sends what they say.

use super::{Luggage, SpeakerMessage, SpeakerState, missing};
use crate::capability::Portable;
use crate::client::Client;
use crate::cluster::Ask;
use crate::cluster::router::{Boot, Input, Refusal, Run};
use crate::error::Cause;
use crate::node::guests::{Lodging, Says};
use crate::wire;

impl<C: Portable> SpeakerState<C> {
    pub(super) fn guest_says(&mut self, peer: Boot, run: Run, says: Says) {
        let (input, goes, is_over) = match says {
            Says::Began => (Input::GuestBegan(peer, run), None, false),
            Says::Chunk(body) => (Input::GuestChunk(peer, run), Some(body), false),
            Says::Result(body) => (Input::GuestResult(peer, run), Some(body), true),
            Says::Refused(refusal, body) => (Input::GuestRefused(peer, run, refusal), body, true),
            Says::Nothing => (Input::GuestEnded(peer, run), None, true),
        };
        // One that was dropped has nothing to say any more.
        if !self.guests.contains_key(&(peer, run)) {
            return;
        }
        if is_over {
            self.guests.remove(&(peer, run));
        }
        self.step(input, Luggage { came: None, goes });
        if is_over {
            self.step(Input::GuestEnded(peer, run), Luggage::default());
        }
    }

    pub(super) fn host(&mut self, from: Boot, run: Run, luggage: &mut Luggage) {
        let ask = luggage.came.take().ok_or_else(missing);
        let ask =
            ask.and_then(|bytes| wire::read::<Ask<C::Request>>(&bytes).map_err(|error| Cause::of(&error)));
        let found = self.router.guest(from, run).and_then(|(wanted, lane)| {
            let model = Client::new(self.shared.clone()).handle(wanted.model.clone()).ok()?;
            Some((model, wanted, lane))
        });
        let (Ok(ask), Some((model, wanted, lane)), Some(link)) = (ask, found, self.links.get(&from)) else {
            self.step(Input::GuestRefused(from, run, Refusal::Unable), Luggage::default());
            return;
        };
        let (post, myself) = (link.post.clone(), self.myself.clone());
        let say = move |says| drop(myself.send_message(SpeakerMessage::Guest(from, run, says)));
        let guest = Lodging { model, lane, wanted, post }.take(ask, say);
        self.guests.insert((from, run), guest);
    }
}
