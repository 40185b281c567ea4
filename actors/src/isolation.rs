//! Models in processes of their own: [`Isolated`] is a loader that wraps a loader, and runs its model in a child of the
//! same executable, one for each worker. A child that dies, hangs or breaks the protocol is killed, its worker is replaced
//! as after a panic, and its bytes are back. The scheduler's policies know nothing of it.
//!
//! The ends talk over a socket pair that the child gets as its standard input: there is no port and no path, and nothing
//! secret in the environment or the arguments. `frames` says what they say, `transport` carries it, `parent` and `child`
//! are the two ends. `helpers` has children that do other work than a model's, as decoding an image.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::capability::Portable;
use crate::error::{Error, Result};
use crate::id::Bytes;
use crate::limits::MAX_FRAME_BYTES;
use crate::model::Loader;

mod end;
#[cfg(unix)]
mod frames;
#[cfg(unix)]
mod transport;
#[cfg(unix)]
mod process;
#[cfg(unix)]
mod parent;
#[cfg(not(unix))]
#[path = "isolation/elsewhere.rs"]
mod parent;
#[cfg(unix)]
mod helpers;
#[cfg(unix)]
mod child;

#[cfg(all(unix, feature = "testing"))]
pub use child::sabotage;
pub use end::ProcessEnd;
#[cfg(unix)]
pub use helpers::Helpers;
#[cfg(not(unix))]
pub use parent::Helpers;
pub use parent::Isolated;

/// Environment variable that tells an executable that it is a child, and its version of the protocol.
#[cfg(unix)]
const MARKER: &str = "MODEL_ACTORS_CHILD";

/// Stands for a capability where a child is to do work that is no model's.
const WORK: &str = "work";

/// Capabilities and names of the loaders that children of this executable know, once its `main` has said so.
static KNOWN: OnceLock<Vec<(&'static str, &'static str)>> = OnceLock::new();

/// A loader that a child can be given: it travels as data, and is known there by its name.
///
/// ```
/// use model_actors::isolation::IsolatedLoader;
/// use model_actors::{Failure, Footprint, LoadContext, Loader, TextEmbedding, Weights};
/// use std::sync::Arc;
///
/// #[derive(serde::Serialize, serde::Deserialize)]
/// struct FromFolder {
///     folder: String,
/// }
/// impl Loader<TextEmbedding> for FromFolder {
///     fn footprint(&self, _: &LoadContext) -> Result<Footprint, Failure> {
///         Ok(Footprint::default())
///     }
///     fn load(&self, _: &LoadContext) -> Result<Arc<dyn Weights<TextEmbedding>>, Failure> {
///         Err(Failure::permanent(format!("there is nothing in {}", self.folder)))
///     }
/// }
/// impl IsolatedLoader<TextEmbedding> for FromFolder {
///     const NAME: &'static str = "from_folder";
/// }
/// ```
pub trait IsolatedLoader<C: Portable>: Loader<C> + Serialize + DeserializeOwned {
    /// The name under which children know the loader, unique among those of its capability.
    const NAME: &'static str;
}

/// Work that [`Helpers`] have children do: a function that takes and returns data. What it does to its process is nobody
/// else's concern.
pub trait IsolatedWork: 'static {
    /// The name under which children know the work, unique in the executable.
    const NAME: &'static str;
    /// The data that it takes.
    type Input: Serialize + DeserializeOwned + Send + Sync;
    /// The data that it returns.
    type Output: Serialize + DeserializeOwned + Send;

    /// Does it, in a child.
    fn work(input: Self::Input) -> Self::Output;

    /// Most bytes that the answer to this input may have as it travels. A child that says more is killed before they are
    /// taken in, as one that breaks the protocol. [`MAX_FRAME_BYTES`], unless the work says less.
    fn most_bytes(_: &Self::Input) -> usize {
        MAX_FRAME_BYTES
    }
}

/// A kind of loader, or of other work, that children of this executable know, for [`run_child_if_asked`].
///
/// ```
/// use model_actors::isolation::{IsolatedLoader, KnownLoader, run_child_if_asked};
/// use model_actors::TextEmbedding;
///
/// fn first_line_of_main<L: IsolatedLoader<TextEmbedding>>() {
///     run_child_if_asked([KnownLoader::of::<TextEmbedding, L>()]);
/// }
/// ```
#[derive(Clone, Copy)]
pub struct KnownLoader {
    capability: &'static str,
    name: &'static str,
    #[cfg(unix)]
    serve: child::Serve,
}

impl KnownLoader {
    /// The kind of this type.
    pub fn of<C: Portable, L: IsolatedLoader<C>>() -> Self {
        Self {
            capability: C::NAME,
            name: L::NAME,
            #[cfg(unix)]
            serve: child::serve::<C, L>,
        }
    }

    /// Work of this kind, for [`Helpers`].
    pub fn of_work<W: IsolatedWork>() -> Self {
        Self {
            capability: WORK,
            name: W::NAME,
            #[cfg(unix)]
            serve: child::serve_work::<W>,
        }
    }
}

/// Runs a model or does other work, and does not return, if this process is a child that was started for it; otherwise notes that this
/// executable can start children, and returns. To be called at the top of `main`, before what the application does, which a
/// child shall not do; only what a child logs goes nowhere unless a subscriber was set up before.
pub fn run_child_if_asked(loaders: impl IntoIterator<Item = KnownLoader>) {
    let loaders: Vec<KnownLoader> = loaders.into_iter().collect();
    #[cfg(unix)]
    if let Some(version) = std::env::var_os(MARKER) {
        child::run(&version, &loaders);
    }
    // A second call adds nothing.
    let _ = KNOWN.set(loaders.iter().map(|loader| (loader.capability, loader.name)).collect());
}

/// The place where a model is loaded and run.
///
/// ```
/// use model_actors::isolation::{Isolation, ProcessOptions};
/// assert_eq!(Isolation::default(), Isolation::Thread);
/// let process = Isolation::from(ProcessOptions::default());
/// assert_ne!(process, Isolation::Thread);
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Isolation {
    /// Threads of this process. A fault that ends a process ends this one.
    #[default]
    Thread,
    /// A child process for each worker.
    Process(ProcessOptions),
}

impl From<ProcessOptions> for Isolation {
    fn from(options: ProcessOptions) -> Self {
        Self::Process(options)
    }
}

impl Isolation {
    /// The loader for this place.
    ///
    /// # Errors
    /// Those of [`Isolated::new`].
    pub fn place<C: Portable, L: IsolatedLoader<C>>(&self, loader: L) -> Result<Arc<dyn Loader<C>>> {
        match self {
            Self::Thread => Ok(Arc::new(loader)),
            Self::Process(options) => Ok(Arc::new(Isolated::new(loader, options.clone())?)),
        }
    }
}

/// Settings of the processes of a model.
///
/// ```
/// use model_actors::Bytes;
/// use model_actors::isolation::ProcessOptions;
/// let options = ProcessOptions::default().with_address_space(Bytes::mib(4096)).with_environment(["MODELS".to_owned()]);
/// assert_eq!(options.address_space, Some(Bytes::mib(4096)));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ProcessOptions {
    /// Limit that the kernel sets on the address space of each process; none. A lower hard limit of this process stands. A process over it fails alone. Mapped files and
    /// reserved stacks count, so that it has to be well above the model's footprint.
    pub address_space: Option<Bytes>,
    /// Time for a run to end once nobody waits for any of its requests, after which its process is killed; 30 s.
    pub cancel_limit: Duration,
    /// Names of environment variables that a process inherits beside the usual ones (paths, language, threads, devices). None
    /// of these holds secrets, and the rest of the environment is not passed on, as it may.
    pub environment: Vec<String>,
}

crate::setters! { ProcessOptions {
    with_address_space(address_space: impl Into<Option<Bytes>>) Into::into;
    with_cancel_limit(cancel_limit: Duration);
    with_environment(environment: impl IntoIterator<Item = String>) Vec::from_iter;
} }

impl Default for ProcessOptions {
    fn default() -> Self {
        Self { address_space: None, cancel_limit: Duration::from_secs(30), environment: Vec::new() }
    }
}

/// Checks that a child would know the loader.
#[cfg_attr(not(unix), allow(dead_code, reason = "there is none"))]
fn check_known(capability: &'static str, name: &'static str) -> Result<()> {
    let refuse = |reason: String| Err(Error::InvalidConfig { setting: "isolation".into(), reason });
    match KNOWN.get() {
        None => refuse(
            "call isolation::run_child_if_asked at the top of main first, so that children can start".into(),
        ),
        Some(known) if known.contains(&(capability, name)) => Ok(()),
        Some(_) => refuse(match capability {
            WORK => {
                format!("children do not know the work {name:?}; name it to isolation::run_child_if_asked")
            }
            capability => format!(
                "children do not know the loader {name:?} of {capability}; name it to isolation::run_child_if_asked"
            ),
        }),
    }
}
