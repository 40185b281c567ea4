//! The speaker of a shared pool: the actor that peers know, and the shell of the router. It turns letters, callers and guests
//! into the router's inputs, and carries out what the router orders. What takes time, it leaves to tasks: requests and
//! results on their way, guests that run, and streams that wait for their readers.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use ractor::pg::{self, GroupChangeMessage};
use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef, SupervisionEvent};
use tokio::sync::oneshot;

use super::digests::Digests;
use super::guests::Guest;
use super::messages::{MembershipMessage, SpeakerArguments, SpeakerMessage};
use super::own::{Measures, status_of, wanted};
use super::parcels::Parcels;
use super::post::Post;
use super::way::Way;
use crate::alarm::Alarm;
use crate::capability::{Capability, Portable};
use crate::catalogue::Registered;
use crate::client::PoolShared;
use crate::cluster::router::{
    Boot, CallKey, Effect, Input, Message, Offer, Own, RequestKey, Router, Run, Wanted, lane_index,
};
use crate::cluster::{Body, Letter, What};
use crate::error::{Cause, Error};
use crate::id::{Bytes, Time};
use crate::job::Accepted;
use crate::limits::MAX_OFFERS;
use crate::status::{PeerModelStatus, PeerStatus, publish};
use crate::wire::WireError;

mod delivery;
mod asking;
mod calls;
mod hosting;

use calls::{Calling, Hosted};
use delivery::Delivery;

pub(crate) struct Speaker<C: Capability> {
    way: Arc<Way<C>>,
    shared: Arc<PoolShared<C>>,
}

impl<C: Portable> Speaker<C> {
    pub(super) fn new(way: Arc<Way<C>>, shared: Arc<PoolShared<C>>) -> Self {
        Self { way, shared }
    }
}

/// A request of this node that the router has.
struct Outgoing<C: Capability> {
    accepted: Accepted<C>,
    model: Arc<Registered<C>>,
    attempt: u32,
    delivery: Option<Delivery<C>>,
    /// Words of the last peer that refused it.
    refusal: Option<Error>,
}

/// The way to a peer, and the name of its node.
struct Link {
    post: Post,
    node: String,
}

pub(crate) struct SpeakerState<C: Portable> {
    myself: ActorRef<SpeakerMessage<C>>,
    arguments: SpeakerArguments,
    way: Arc<Way<C>>,
    shared: Arc<PoolShared<C>>,
    boot: Boot,
    scope: String,
    router: Router,
    links: HashMap<Boot, Link>,
    /// Names of nodes, of those that are gone too, as long as the router knows them.
    names: HashMap<Boot, String>,
    outgoing: HashMap<RequestKey, Outgoing<C>>,
    guests: HashMap<(Boot, Run), Guest>,
    calling: HashMap<CallKey, Calling<C>>,
    hosted: HashMap<(Boot, CallKey), Hosted>,
    parcels: Parcels,
    measures: Measures,
    digests: Digests,
    sampled: Time,
    alarm: Alarm,
    /// A letter that could not be read was told of.
    told_unreadable: bool,
    /// Those who wait for the last guest to go.
    settling: Vec<oneshot::Sender<()>>,
}

/// Bodies that travel with a message and with the answer to it.
#[derive(Default)]
struct Luggage {
    /// The body that came with it.
    came: Option<Vec<u8>>,
    /// The body that goes out with the answer to it.
    goes: Option<Body>,
}

impl<C: Portable> Actor for Speaker<C> {
    type Msg = SpeakerMessage<C>;
    type State = SpeakerState<C>;
    type Arguments = SpeakerArguments;

    async fn pre_start(
        &self,
        myself: ActorRef<Self::Msg>,
        arguments: SpeakerArguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        let boot = Boot(fastrand::u64(1..));
        let scope = format!("model-actors/{}/{}", arguments.cluster, C::NAME);
        let mut state = SpeakerState {
            myself: myself.clone(),
            way: self.way.clone(),
            shared: self.shared.clone(),
            boot,
            scope,
            router: Router::new(boot.0),
            links: HashMap::new(),
            names: HashMap::new(),
            outgoing: HashMap::new(),
            guests: HashMap::new(),
            calling: HashMap::new(),
            hosted: HashMap::new(),
            parcels: Parcels::default(),
            measures: Measures::default(),
            digests: Digests::default(),
            sampled: Time::ZERO,
            alarm: Alarm::unset(),
            told_unreadable: false,
            settling: Vec::new(),
            arguments,
        };
        pg::monitor_scope(state.scope.clone(), myself.get_cell());
        for group in pg::which_scoped_groups(&state.scope) {
            let members = pg::get_scoped_members(&state.scope, &group);
            state.joined(&group, members);
        }
        let group = format!("{}#{:016x}", state.arguments.node, boot.0);
        pg::join_scoped(state.scope.clone(), group, vec![myself.get_cell()]);
        state.tick();
        Ok(state)
    }

    async fn handle(
        &self,
        _: ActorRef<Self::Msg>,
        message: Self::Msg,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            SpeakerMessage::Letter(Ok(letter)) => state.letter(letter),
            SpeakerMessage::Letter(Err(error)) => state.unreadable(&error),
            SpeakerMessage::Submit { model, accepted } => state.submit(model, accepted),
            SpeakerMessage::Cancel(request) => {
                let key = RequestKey(request.0);
                if state.outgoing.remove(&key).is_some() {
                    state.step(Input::Cancelled(key), Luggage::default());
                }
            }
            SpeakerMessage::Sent(run, key, sent) => state.sent(run, key, sent),
            SpeakerMessage::Read(key, read) => state.step(Input::Read(key, read), Luggage::default()),
            SpeakerMessage::Guest(peer, run, says) => state.guest_says(peer, run, says),
            SpeakerMessage::Call(call) => state.call(call),
            SpeakerMessage::CallerGone(id) => state.caller_gone(CallKey(id.0)),
            SpeakerMessage::Hosted(peer, call, body) => {
                drop(state.hosted.remove(&(peer, call)));
                state.step(Input::CallHosted(peer, call), Luggage { came: None, goes: body });
            }
            SpeakerMessage::Tick => {
                state.alarm.rang();
                state.tick();
            }
            SpeakerMessage::Leave => state.step(Input::Leave, Luggage::default()),
            SpeakerMessage::Settle(done) => state.settling.push(done),
        }
        if state.guests.is_empty() {
            // Whoever waited for it may have gone.
            state.settling.drain(..).for_each(|done| {
                let _ = done.send(());
            });
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        _: ActorRef<Self::Msg>,
        event: SupervisionEvent,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        match event {
            SupervisionEvent::ProcessGroupChanged(GroupChangeMessage::Join(scope, group, cells))
                if scope == state.scope =>
            {
                state.joined(&group, cells);
            }
            SupervisionEvent::ProcessGroupChanged(GroupChangeMessage::Leave(scope, group, cells))
                if scope == state.scope =>
            {
                state.left(&group, &cells);
            }
            _ => {}
        }
        Ok(())
    }
}

/// The node and the start that a group is named after.
fn named(group: &str) -> Option<(String, Boot)> {
    let (node, boot) = group.rsplit_once('#')?;
    Some((node.to_owned(), Boot(u64::from_str_radix(boot, 16).ok()?)))
}

impl<C: Portable> SpeakerState<C> {
    fn now(&self) -> Time {
        self.shared.clock.now()
    }

    /// Speakers of this pool on other nodes have become known.
    fn joined(&mut self, group: &str, cells: Vec<ActorCell>) {
        let Some((node, boot)) = named(group) else { return };
        let Some(cell) = cells.into_iter().find(|cell| !cell.get_id().is_local()) else { return };
        if self.links.get(&boot).is_some_and(|link| link.post.cell().get_id() == cell.get_id()) {
            return;
        }
        if let Some(old) =
            self.links.insert(boot, Link { post: Post::new(self.boot, boot, cell), node: node.clone() })
        {
            old.post.close();
            self.step(Input::Unlinked(boot), Luggage::default());
        }
        tracing::info!(capability = C::NAME, node, "a peer is there");
        self.names.insert(boot, node);
        self.step(Input::Linked(boot), Luggage::default());
    }

    fn left(&mut self, group: &str, cells: &[ActorCell]) {
        let Some((node, boot)) = named(group) else { return };
        let is_it = |link: &Link| cells.iter().any(|cell| cell.get_id() == link.post.cell().get_id());
        if self.links.get(&boot).is_some_and(is_it) {
            tracing::warn!(capability = C::NAME, node, "a peer is gone");
            self.unlink(boot);
        }
    }

    fn unlink(&mut self, boot: Boot) {
        if let Some(link) = self.links.remove(&boot) {
            link.post.close();
            self.parcels.forget(boot);
            self.step(Input::Unlinked(boot), Luggage::default());
        }
    }

    fn letter(&mut self, letter: Letter) {
        let Letter { from, to, what } = letter;
        // One for an earlier speaker, or of a peer that is gone, is late.
        if to != self.boot || !self.links.contains_key(&from) {
            return;
        }
        let now = self.now();
        match what {
            What::Piece { transfer, bytes } => {
                if self.parcels.add(from, transfer, &bytes, now)
                    && let Some(link) = self.links.get(&from)
                {
                    link.post.send(What::Got { transfer });
                }
            }
            What::Got { transfer } => {
                if let Some(link) = self.links.get(&from) {
                    link.post.got(transfer);
                }
            }
            What::Message { message, body } => {
                let has_body = body.is_some();
                let came = body.and_then(|body| self.parcels.open(from, body));
                // Without its body it is as good as lost.
                if has_body && came.is_none() {
                    return;
                }
                if let Message::Ask { wanted, .. } = &message {
                    self.measure(&wanted.clone());
                }
                if let (Message::Refused(run, _), Some(bytes)) = (&message, &came) {
                    self.note_refusal(*run, bytes);
                }
                self.step(Input::Heard { from, message }, Luggage { came, goes: None });
            }
        }
    }

    fn unreadable(&mut self, error: &WireError) {
        if !std::mem::replace(&mut self.told_unreadable, true) {
            tracing::warn!(capability = C::NAME, %error, "a letter of another node cannot be read and is refused");
        }
    }

    /// Looks at the models of this node, tells the peers, and gives up what is late.
    fn tick(&mut self) {
        let now = self.now();
        if now.since(self.sampled) >= crate::cluster::router::EXCHANGE || self.sampled == Time::ZERO {
            self.sampled = now;
            let [models, without] = self.shared.catalogue.by_digest();
            self.measures.keep(&models);
            self.find_digests(models.iter().cloned().chain(without).collect());
            let owns: Vec<Own> = {
                let status = self.arguments.status.borrow();
                models.iter().for_each(|model| self.measures.sample(model, &status, now));
                let own = |model: &Arc<Registered<C>>| {
                    self.measures.own(model, &status, self.guests_of(&wanted(model)?), now)
                };
                models.iter().filter_map(own).take(MAX_OFFERS).collect()
            };
            self.step(Input::Models(owns), Luggage::default());
            self.parcels.tidy(now);
            self.names.retain(|boot, _| self.router.knows(*boot));
            self.publish();
        }
        self.step(Input::Tick, Luggage::default());
    }

    /// Has the digests and sizes of these models found, as far as that is due.
    fn find_digests(&mut self, models: Vec<Arc<Registered<C>>>) {
        let status = self.arguments.status.borrow();
        self.digests.find(models, |model| {
            status_of(&status, model).is_some_and(|status| status.key == model.key() && status.is_serving())
        });
    }

    fn guests_of(&self, wanted: &Wanted) -> [u32; 2] {
        let mut count = [0, 0];
        let guests = self.guests.values().filter(|guest| guest.wanted == *wanted);
        guests.for_each(|guest| count[lane_index(guest.lane)] += 1);
        count
    }

    /// Tells the router of one model as it is now.
    fn measure(&mut self, wanted: &Wanted) {
        let Some(model) = self.shared.catalogue.get(&wanted.model) else { return };
        let own = {
            let status = self.arguments.status.borrow();
            self.measures.own(&model, &status, self.guests_of(wanted), self.now())
        };
        if let Some(own) = own {
            self.step(Input::Model(own), Luggage::default());
        }
    }

    /// A peer's model for the status, beside that of its name here.
    fn told(&self, offer: &Offer) -> PeerModelStatus {
        let own = self.shared.catalogue.get(&offer.wanted.model);
        let digest = own.as_deref().and_then(Registered::digest);
        PeerModelStatus {
            model: offer.wanted.model.clone(),
            differs: digest.is_some_and(|digest| *digest != offer.wanted.digest),
            digest: offer.wanted.digest.clone(),
            resident: offer.resident,
            interactive_slots: offer.slots[0],
            requests: offer.requests(),
            cost: offer.queue,
            unit: offer.unit,
            bytes: offer.bytes.map(Bytes),
            free: offer.room.map(|room| Bytes(room.free)),
            failed: offer.failed,
        }
    }

    /// Lets clients and the status know what peers serve.
    fn publish(&mut self) {
        let mut served: BTreeMap<_, BTreeSet<Arc<str>>> = BTreeMap::new();
        let mut peers = Vec::new();
        for (boot, offers) in self.router.peers() {
            for offer in offers {
                served.entry(offer.wanted.model.clone()).or_default().insert(offer.wanted.digest.clone());
            }
            if let Some(link) = self.links.get(&boot) {
                peers.push(PeerStatus {
                    node: link.node.clone(),
                    capability: C::NAME,
                    models: offers.iter().map(|offer| self.told(offer)).collect(),
                });
            }
        }
        self.way.set_served(served);
        peers.sort_by(|a, b| a.node.cmp(&b.node));
        let is_mine = |peer: &PeerStatus| peer.capability == C::NAME;
        let is_news = {
            let status = self.arguments.status.borrow();
            !status.peers.iter().filter(|peer| is_mine(peer)).eq(&peers)
        };
        if is_news {
            publish(&self.arguments.status, |status| {
                status.peers.retain(|peer| !is_mine(peer));
                status.peers.append(&mut peers);
            });
        }
    }

    fn step(&mut self, input: Input, mut luggage: Luggage) {
        let hears_load =
            matches!(&input, Input::Heard { message: Message::Load(_), .. } | Input::Unlinked(_));
        for effect in self.router.step(input, self.now()) {
            self.obey(effect, &mut luggage);
        }
        if hears_load {
            self.publish();
        }
        let (clock, myself) = (self.shared.clock, self.myself.clone());
        self.alarm
            .set(clock, self.router.next_tick(), move || drop(myself.send_message(SpeakerMessage::Tick)));
    }

    fn obey(&mut self, effect: Effect, luggage: &mut Luggage) {
        match effect {
            Effect::Tell(to, message) => {
                let carries = matches!(
                    message,
                    Message::Chunk(..) | Message::End(..) | Message::Refused(..) | Message::Called(..)
                );
                let body = if carries { luggage.goes.take() } else { None };
                if let Some(link) = self.links.get(&to) {
                    link.post.tell(message, body);
                }
            }
            Effect::Ask { to, run, request, after } => self.ask(to, run, request, after),
            Effect::RunHere(key) => self.run_here(key),
            Effect::Deliver(key) => self.deliver(key, luggage),
            Effect::Finish(key) => self.finish(key, luggage),
            Effect::Fail(key, failed) => self.fail(key, failed),
            Effect::Host(from, run) => self.host(from, run, luggage),
            Effect::Evict(from, run) => drop(self.guests.remove(&(from, run))),
            Effect::Grow(from, run, more) => {
                if let Some(guest) = self.guests.get(&(from, run)) {
                    guest.grow(more);
                }
            }
            Effect::HostCall { from, call, wanted, kind, within } => {
                self.host_call((from, call), &wanted, kind, within);
            }
            Effect::DropCall(from, call) => drop(self.hosted.remove(&(from, call))),
            Effect::NoteCall(call) => self.note_call(call, luggage),
            Effect::EndCall(call, failed) => self.end_call(call, failed),
            Effect::Hangup(peer) => self.hang_up(peer),
        }
    }

    /// The name of a peer, or its start where none is known.
    fn name_of(&self, peer: Boot) -> String {
        self.names.get(&peer).cloned().unwrap_or_else(|| format!("{:x}", peer.0))
    }

    fn hang_up(&mut self, peer: Boot) {
        let Some(link) = self.links.remove(&peer) else { return };
        tracing::warn!(capability = C::NAME, node = link.node, "a peer is silent and counts as lost");
        link.post.close();
        self.parcels.forget(peer);
        if let ractor::ActorId::Remote { node_id, .. } = link.post.cell().get_id() {
            let _ = self.arguments.membership.send_message(MembershipMessage::Hangup(node_id));
        }
    }
}

fn missing() -> Cause {
    Cause::new("a message of another node came without its body")
}
