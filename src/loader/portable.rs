//! A loader as data, for a process of its own: everything that it was made of, the hub's token included, which is why it
//! goes there over the connection and is shown nowhere. Starting the process is left to `model_actors::isolation`.

use std::path::PathBuf;
use std::time::Duration;

use model_actors::isolation::IsolatedLoader;
use model_actors::{Model, Portable};
use serde::de::Error as _;
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{CapabilityOf, GenerationSettings, ModelLoader, WorkerModel};
use crate::device::{Compute, ComputeDevice};
use crate::hub_settings::HubSettings;
use crate::source::{AdapterSources, Source, Unread};

/// Variables of the environment that name places and switches of the hub, which a process inherits.
pub(crate) const ENVIRONMENT: [&str; 6] = [
    "HF_HOME",
    "HF_HUB_CACHE",
    "HUGGINGFACE_HUB_CACHE",
    "HF_HUB_OFFLINE",
    "HF_HUB_DISABLE_IMPLICIT_TOKEN",
    "HF_TOKEN_PATH",
];

#[derive(Serialize, Deserialize)]
struct Recipe {
    source: Source,
    device: ComputeDevice,
    threads: usize,
    generation: GenerationSettings,
    allow_unread: bool,
    eight_bit: bool,
    #[serde(default)]
    adapters: AdapterSources,
    hub: Hub,
}

#[derive(Serialize, Deserialize)]
struct Hub {
    endpoint: Option<String>,
    cache: Option<PathBuf>,
    token: Option<String>,
    offline: bool,
    stall_limit: Duration,
    retries: usize,
}

/// With what comes from variables that may hold secrets, as a process does not inherit these.
impl From<&HubSettings> for Hub {
    fn from(settings: &HubSettings) -> Self {
        let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        let HubSettings { endpoint, cache, token, offline, stall_limit, retries } = settings;
        let token = token.as_ref().map(|token| token.secret().to_owned());
        // That it is not to be used without being asked for is said where it is looked for.
        let implicit =
            || variable("HF_TOKEN").filter(|_| std::env::var_os("HF_HUB_DISABLE_IMPLICIT_TOKEN").is_none());
        Self {
            endpoint: endpoint.clone().or_else(|| variable("HF_ENDPOINT")),
            cache: cache.clone(),
            token: token.or_else(implicit),
            offline: *offline,
            stall_limit: *stall_limit,
            retries: *retries,
        }
    }
}

impl From<Hub> for HubSettings {
    fn from(hub: Hub) -> Self {
        let Hub { endpoint, cache, token, offline, stall_limit, retries } = hub;
        let token = token.map(Into::into);
        Self { endpoint, cache, token, offline, stall_limit, retries }
    }
}

impl<M: WorkerModel> Serialize for ModelLoader<M> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // A new field is no longer forgotten here than until it is compiled.
        let Self { source, compute, generation, unread, eight_bit, adapters, hub, plan: _ } = self;
        if generation.family.is_some() {
            return Err(S::Error::custom("a family of an application's own is code, which does not travel"));
        }
        let recipe = Recipe {
            source: source.clone(),
            device: compute.device,
            threads: compute.threads,
            generation: *generation,
            allow_unread: *unread == Unread::Allowed,
            eight_bit: *eight_bit,
            adapters: adapters.clone(),
            hub: Hub::from(hub),
        };
        recipe.serialize(serializer)
    }
}

impl<'de, M: WorkerModel> Deserialize<'de> for ModelLoader<M> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Recipe { source, device, threads, generation, allow_unread, eight_bit, adapters, hub } =
            Recipe::deserialize(deserializer)?;
        let compute = Compute::new(device, threads).map_err(D::Error::custom)?;
        // It is read in a process that was started for it.
        let generation = GenerationSettings { isolated: true, ..generation };
        let loader = Self::new(source, compute, generation, hub.into()).map_err(D::Error::custom)?;
        let loader = loader.with_allow_unread(allow_unread).with_eight_bit(eight_bit);
        loader.and_then(|loader| loader.with_adapters(adapters)).map_err(D::Error::custom)
    }
}

impl<M: WorkerModel + Model<CapabilityOf<M>>> IsolatedLoader<CapabilityOf<M>> for ModelLoader<M>
where
    CapabilityOf<M>: Portable,
{
    const NAME: &'static str = "candle";
}
