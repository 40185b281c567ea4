//! Faults in real models: any loader, with a hook of the test called at each tick of its workers' progress.
//! It may panic, so that the worker crashes in the middle of a run, or wait, so that the test knows where the
//! worker is. Scripted models are in `script`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::capability::Capability;
use crate::error::{Cause, Failure};
use crate::model::{Fetch, Footprint, LoadContext, Loader, Model, Weights};
use crate::progress::Hook;

/// A loader that does what the one inside does, and whose workers call the hook at each tick of their runs.
///
/// ```
/// use model_actors::ModelSpec;
/// use model_actors::testing::{Fuse, HookedLoader, Scripted, ScriptedLoader};
/// let fuse = Fuse::default();
/// let loader = HookedLoader::new(ScriptedLoader::default(), { let fuse = fuse.clone(); move || fuse.burn() });
/// let spec = ModelSpec::<Scripted>::new("fragile", loader);
/// # drop(spec);
/// ```
pub struct HookedLoader<L> {
    loader: L,
    hook: Hook,
}

impl<L> HookedLoader<L> {
    /// Puts the hook into every worker of the loader's model.
    pub fn new(loader: L, hook: impl Fn() + Send + Sync + 'static) -> Self {
        Self { loader, hook: Hook(Arc::new(hook)) }
    }
}

impl<C: Capability, L: Loader<C>> Loader<C> for HookedLoader<L> {
    fn check(&self, request: &C::Request) -> Result<(), Cause> {
        self.loader.check(request)
    }

    fn digest(&self, fetch: Fetch, context: &LoadContext) -> Result<Option<String>, Failure> {
        self.loader.digest(fetch, context)
    }

    fn size(&self, fetch: Fetch, context: &LoadContext) -> Result<Option<Footprint>, Failure> {
        self.loader.size(fetch, context)
    }

    fn footprint(&self, context: &LoadContext) -> Result<Footprint, Failure> {
        self.loader.footprint(context)
    }

    fn load(&self, context: &LoadContext) -> Result<Arc<dyn Weights<C>>, Failure> {
        Ok(Arc::new(Hooked { weights: self.loader.load(context)?, hook: self.hook.clone() }))
    }
}

struct Hooked<C: Capability> {
    weights: Arc<dyn Weights<C>>,
    hook: Hook,
}

impl<C: Capability> Weights<C> for Hooked<C> {
    fn footprint(&self) -> Footprint {
        self.weights.footprint()
    }

    fn build(&self, context: &LoadContext) -> Result<Box<dyn Model<C>>, Failure> {
        context.gauge.hook(&self.hook);
        self.weights.build(context)
    }
}

/// Lets a worker panic once, at a tick of its progress, as a hook. Clones are the same fuse.
///
/// ```
/// use model_actors::testing::Fuse;
/// let fuse = Fuse::default();
/// fuse.light(2);
/// fuse.burn();
/// assert!(fuse.is_lit());
/// ```
#[derive(Debug, Clone, Default)]
pub struct Fuse(Arc<AtomicU64>);

impl Fuse {
    /// The beginning of its panic's words, for tests that keep quiet about it.
    pub const CRASH: &str = "the fuse was lit: this worker crashes on purpose";

    /// The tick of this number from now on, the next one being 1, panics.
    pub fn light(&self, ticks: u64) {
        self.0.store(ticks, Ordering::SeqCst);
    }

    /// Lit, and nobody has panicked yet.
    pub fn is_lit(&self) -> bool {
        self.0.load(Ordering::SeqCst) > 0
    }

    /// One tick.
    ///
    /// # Panics
    /// At the tick that [`Self::light`] named.
    pub fn burn(&self) {
        let left = self.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        assert!(left != Ok(1), "{}", Self::CRASH);
    }
}
