//! The parent's end: a loader whose models are loaded and run in children, and the weights that it gives. A child serves one
//! worker and has its weights to itself. A run of a batch is in `run`.

use std::marker::PhantomData;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_bytes::ByteBuf;

use super::frames::{Hello, Order, Report};
use super::process::Process;
use super::transport::Connection;
use super::{IsolatedLoader, ProcessEnd, ProcessOptions, check_known};
use crate::capability::{Capability, Portable};
use crate::error::{Cause, Error, Failure, Result};
use crate::id::Bytes;
use crate::model::{Fetch, Footprint, LoadContext, Loader, Model, ModelFacts, Weights};
use crate::progress::LoadStage;
use crate::wire;

mod run;

use run::ProcessModel;

/// Longest time between two looks at whether a load is still wanted.
const LOOK: Duration = Duration::from_millis(20);

/// A report of a child for this capability.
type ReportOf<C> = Report<<C as Capability>::Chunk, <C as Capability>::Output>;

/// A loader whose model is loaded and run in processes of its own, one for each worker. A request is checked here, by the
/// wrapped loader.
///
/// All that a worker's model takes is its own, but for what processes share by themselves: mapped files.
///
/// ```
/// use model_actors::isolation::{Isolated, IsolatedLoader, ProcessOptions};
/// use model_actors::{ModelSpec, Result, TextEmbedding};
///
/// fn spec(loader: impl IsolatedLoader<TextEmbedding>) -> Result<ModelSpec<TextEmbedding>> {
///     Ok(ModelSpec::new("english", Isolated::new(loader, ProcessOptions::default())?))
/// }
/// ```
pub struct Isolated<C, L> {
    loader: L,
    recipe: Arc<Recipe>,
    capability: PhantomData<fn() -> C>,
}

impl<C: Portable, L: IsolatedLoader<C>> Isolated<C, L> {
    /// Wraps a loader.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] if `main` has not called [`run_child_if_asked`](super::run_child_if_asked) with this kind of
    /// loader, or if it cannot be written as data.
    pub fn new(loader: L, options: ProcessOptions) -> Result<Self> {
        check_known(C::NAME, L::NAME)?;
        let settings = wire::encode(&loader).map_err(|error| Error::InvalidConfig {
            setting: "isolation".into(),
            reason: format!("the loader {:?} cannot be sent to a process: {error}", L::NAME),
        })?;
        let recipe = Recipe { capability: C::NAME, loader: L::NAME, settings, options };
        Ok(Self { loader, recipe: Arc::new(recipe), capability: PhantomData })
    }
}

impl<C: Portable, L: IsolatedLoader<C>> Loader<C> for Isolated<C, L> {
    fn footprint(&self, context: &LoadContext) -> Result<Footprint, Failure> {
        let mut process = self.recipe.start(context)?;
        ask::<C>(&mut process, &Order::Size, context).map(of_one_process)
    }

    fn load(&self, context: &LoadContext) -> Result<Arc<dyn Weights<C>>, Failure> {
        let (process, footprint) = self.recipe.load::<C>(context)?;
        let loaded = Mutex::new(Some(process));
        Ok(Arc::new(ProcessWeights { recipe: self.recipe.clone(), footprint, loaded }))
    }

    fn check(&self, request: &C::Request) -> Result<(), Cause> {
        self.loader.check(request)
    }

    fn facts(&self) -> Option<ModelFacts> {
        self.loader.facts()
    }

    fn digest(&self, fetch: Fetch, context: &LoadContext) -> Result<Option<String>, Failure> {
        self.loader.digest(fetch, context)
    }

    fn size(&self, fetch: Fetch, context: &LoadContext) -> Result<Option<Footprint>, Failure> {
        Ok(self.loader.size(fetch, context)?.map(of_one_process))
    }
}

/// All that makes a child of a model.
struct Recipe {
    capability: &'static str,
    loader: &'static str,
    settings: Vec<u8>,
    options: ProcessOptions,
}

impl Recipe {
    fn start(&self, context: &LoadContext) -> Result<Process, Failure> {
        let hello = Hello {
            capability: self.capability.to_owned(),
            loader: self.loader.to_owned(),
            settings: ByteBuf::from(self.settings.clone()),
            model: context.model.clone(),
            address_space: self.options.address_space.map(|Bytes(bytes)| bytes),
        };
        Process::start(&self.options, &hello)
    }

    fn load<C: Portable>(&self, context: &LoadContext) -> Result<(Process, Footprint), Failure> {
        let mut process = self.start(context)?;
        let footprint = ask::<C>(&mut process, &Order::Load, context)?;
        Ok((process, of_one_process(footprint)))
    }
}

/// Memory of a model where nothing is shared.
fn of_one_process(footprint: Footprint) -> Footprint {
    Footprint::new(Bytes::ZERO, footprint.with_workers(1))
}

/// Has a child size or load its model.
fn ask<C: Portable>(
    process: &mut Process,
    order: &Order<()>,
    context: &LoadContext,
) -> Result<Footprint, Failure> {
    process.link.send(order).map_err(|error| Failure::failed(Cause::of(&error)))?;
    let mut shown = None;
    loop {
        if context.should_stop() {
            return Err(Failure::stopped());
        }
        let connection = process.link.pump(LOOK);
        while let Some(report) = next::<C>(process).map_err(Failure::failed)? {
            match report {
                Report::Progress(progress) => show(context, &mut shown, progress),
                Report::Sized(footprint) | Report::Loaded(footprint) => return Ok(footprint),
                Report::NotLoaded(failure) => return Err(failure),
                Report::Panicked(cause) => return Err(Failure::failed(cause)),
                _ => return Err(Failure::failed(out_of_turn())),
            }
        }
        if connection == Connection::Closed {
            return Err(Failure::failed(process.end()));
        }
    }
}

/// The next report that has come in.
///
/// # Errors
/// Bytes that are none.
fn next<C: Portable>(process: &mut Process) -> Result<Option<ReportOf<C>>, Cause> {
    let broken = |cause: Cause| broke_the_protocol(cause.message());
    match process.link.inbox.next().map_err(broken)? {
        Some(message) => wire::read(message).map(Some).map_err(|error| broken(Cause::of(&error))),
        None => Ok(None),
    }
}

fn broke_the_protocol(reason: &str) -> Cause {
    Cause::with_data(&ProcessEnd::Protocol { reason: reason.to_owned() })
}

fn out_of_turn() -> Cause {
    broke_the_protocol("a message came out of turn")
}

/// Shows the progress of a child's load as that of this one.
fn show(
    context: &LoadContext,
    shown: &mut Option<(LoadStage, u64, u64)>,
    progress: Option<(LoadStage, u64, u64)>,
) {
    context.gauge.tick();
    let Some((stage, done, total)) = progress else { return };
    let before = match *shown {
        Some((last, before, last_total)) if last == stage && last_total == total && before <= done => before,
        _ => {
            context.begin(stage, Bytes(total));
            0
        }
    };
    if done > before {
        context.advance(Bytes(done - before));
    }
    *shown = Some((stage, done, total));
}

/// The weights of a model whose workers are children. They are with the children, each of which loads its own.
struct ProcessWeights {
    recipe: Arc<Recipe>,
    footprint: Footprint,
    /// The child that was loaded to measure them, until a worker takes it.
    loaded: Mutex<Option<Process>>,
}

impl<C: Portable> Weights<C> for ProcessWeights {
    fn footprint(&self) -> Footprint {
        self.footprint
    }

    fn build(&self, context: &LoadContext) -> Result<Box<dyn Model<C>>, Failure> {
        let loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner).take();
        let process = match loaded {
            Some(process) => process,
            None => self.recipe.load::<C>(context)?.0,
        };
        Ok(Box::new(ProcessModel::new(process, context.clone(), self.recipe.options.cancel_limit)))
    }
}
