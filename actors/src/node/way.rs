//! The clients' way to the speaker of their pool, which stays the same when the speaker is started again; and the stand-ins
//! for models that other nodes serve, each with a queue of its own, as a model that is registered here has.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};

use ractor::ActorRef;

use super::messages::SpeakerMessage;
use super::own::wanted;
use crate::capability::{Capability, Portable};
use crate::catalogue::{ModelSpec, Registered};
use crate::client::PoolShared;
use crate::cluster::router::Wanted;
use crate::cluster::{Elsewhere, ElsewhereCall};
use crate::error::{Error, Failure, Result};
use crate::id::{ModelId, RequestId};
use crate::job::Accepted;
use crate::model::{Footprint, LoadContext, Loader, ModelFacts, Weights};
use crate::scheduler::CallId;

/// Facts of a model that other nodes serve, once one of them has told them.
type Facts = Arc<Mutex<Option<ModelFacts>>>;

/// The loader of a stand-in, which is never loaded here.
struct ServedElsewhere(Facts);

impl<C: Capability> Loader<C> for ServedElsewhere {
    fn footprint(&self, _: &LoadContext) -> Result<Footprint, Failure> {
        Err(Failure::permanent("the model is served by other nodes"))
    }

    fn load(&self, _: &LoadContext) -> Result<Arc<dyn Weights<C>>, Failure> {
        Err(Failure::permanent("the model is served by other nodes"))
    }

    fn facts(&self) -> Option<ModelFacts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The stand-in for a model that other nodes serve.
struct StandIn<C: Capability> {
    model: Arc<Registered<C>>,
    facts: Facts,
}

/// The way from the clients of a pool to its speaker.
pub(crate) struct Way<C: Capability> {
    shared: Weak<PoolShared<C>>,
    speaker: RwLock<Option<ActorRef<SpeakerMessage<C>>>>,
    /// Digests of the models that peers serve, by name.
    served: RwLock<BTreeMap<ModelId, BTreeSet<Arc<str>>>>,
    stand_ins: Mutex<HashMap<Wanted, StandIn<C>>>,
}

impl<C: Portable> Way<C> {
    /// Makes the way of a pool, and leads its clients there.
    pub(crate) fn lead(shared: &Arc<PoolShared<C>>) -> Arc<Self> {
        let way = Arc::new(Self {
            shared: Arc::downgrade(shared),
            speaker: RwLock::new(None),
            served: RwLock::default(),
            stand_ins: Mutex::default(),
        });
        // A pool is led once, when its system is built.
        let _ = shared.elsewhere.set(way.clone());
        way
    }

    pub(super) fn tell(&self, message: SpeakerMessage<C>) -> bool {
        let speaker = self.speaker.read().unwrap_or_else(PoisonError::into_inner);
        speaker.as_ref().is_some_and(|speaker| speaker.send_message(message).is_ok())
    }

    /// The pool, unless its system is gone.
    pub(super) fn shared(&self) -> Option<Arc<PoolShared<C>>> {
        self.shared.upgrade()
    }

    /// Leads to this speaker from now on.
    pub(super) fn lead_to(&self, speaker: ActorRef<SpeakerMessage<C>>) {
        *self.speaker.write().unwrap_or_else(PoisonError::into_inner) = Some(speaker);
    }

    /// Sets what peers serve now.
    pub(super) fn set_served(&self, served: BTreeMap<ModelId, BTreeSet<Arc<str>>>) {
        let mut place = self.served.write().unwrap_or_else(PoisonError::into_inner);
        if *place != served {
            *place = served;
        }
    }

    fn digests(&self, id: &ModelId) -> BTreeSet<Arc<str>> {
        self.served.read().unwrap_or_else(PoisonError::into_inner).get(id).cloned().unwrap_or_default()
    }

    fn stand_ins(&self) -> std::sync::MutexGuard<'_, HashMap<Wanted, StandIn<C>>> {
        self.stand_ins.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the facts that a peer has told of a model.
    pub(super) fn know(&self, model: &Registered<C>, facts: ModelFacts) {
        let Some(wanted) = wanted(model) else { return };
        if let Some(stand_in) = self.stand_ins().get(&wanted) {
            *stand_in.facts.lock().unwrap_or_else(PoisonError::into_inner) = Some(facts);
        }
    }
}

impl<C: Portable> Elsewhere<C> for Way<C> {
    fn concerns(&self, model: &Registered<C>) -> bool {
        let Some(digest) = model.digest() else { return false };
        self.digests(model.id()).contains(digest) || self.stands_in(model)
    }

    fn find(&self, id: &ModelId) -> Result<Option<Arc<Registered<C>>>> {
        let digests = self.digests(id);
        let mut found = digests.iter();
        let (Some(digest), None) = (found.next(), found.next()) else {
            if digests.is_empty() {
                return Ok(None);
            }
            let digests = digests.iter().map(|digest| digest.to_string()).collect();
            return Err(Error::DifferentModels { model: id.clone(), capability: C::NAME.into(), digests });
        };
        let wanted = Wanted { model: id.clone(), digest: digest.clone() };
        let Some(shared) = self.shared.upgrade() else { return Ok(None) };
        let mut stand_ins = self.stand_ins();
        if let Some(stand_in) = stand_ins.get(&wanted) {
            return Ok(Some(stand_in.model.clone()));
        }
        let facts = Facts::default();
        let spec = ModelSpec::new(id.clone(), ServedElsewhere(facts.clone())).digest(digest.clone());
        let model = Arc::new(shared.catalogue.prepare(spec)?);
        stand_ins.insert(wanted, StandIn { model: model.clone(), facts });
        Ok(Some(model))
    }

    fn submit(&self, model: Arc<Registered<C>>, accepted: Accepted<C>) -> Result<()> {
        let id = model.id().clone();
        match self.tell(SpeakerMessage::Submit { model, accepted }) {
            true => Ok(()),
            false => Err(Error::SendError { capability: C::NAME.into(), model: id }),
        }
    }

    fn cancel(&self, request: RequestId) {
        // Without a speaker nobody has it.
        self.tell(SpeakerMessage::Cancel(request));
    }

    fn stands_in(&self, model: &Registered<C>) -> bool {
        let Some(wanted) = wanted(model) else { return false };
        self.stand_ins().get(&wanted).is_some_and(|known| Arc::ptr_eq(&known.model.entry, &model.entry))
    }

    fn call(&self, call: ElsewhereCall<C>) -> Result<()> {
        let id = call.model.id().clone();
        match self.tell(SpeakerMessage::Call(call)) {
            true => Ok(()),
            false => Err(Error::SendError { capability: C::NAME.into(), model: id }),
        }
    }

    fn caller_gone(&self, call: CallId) {
        // Without a speaker nobody has it.
        self.tell(SpeakerMessage::CallerGone(call));
    }

    fn close(&self) {
        self.stand_ins().values().for_each(|stand_in| stand_in.model.entry.close());
    }
}
