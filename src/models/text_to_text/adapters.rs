//! The adapters (LoRA) that a model was registered with: each is loaded when a request first asks for it, by a thread of its
//! own, while others are written; its bytes are charged beside the model's, and may go once no request holds it. One that
//! cannot be loaded fails the requests that wait for it, and is tried anew by the next. Who goes when room runs short is left to
//! `model_actors::OnDemandParts`.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use candle_core::Device;
use model_actors::{Bytes, LoadContext, OnDemandParts, PartRoom};

use super::network::{HeldAdapter, LoadedAdapter, NetworkConfig};
use crate::error::{Error, Result};
use crate::models::continuous_batching::{Prepared, Wait};
use crate::models::peft::{PeftAdapter, of_adapter};
use crate::source::OpenAdapters;

/// Adapters of a model that are loaded at a time; further ones wait.
const MAX_LOADS: usize = 4;
/// Time that an adapter waits for memory, as long as a load of a model does unless its pool says otherwise.
const ROOM_WAIT: Duration = Duration::from_secs(10);
/// Pause between two looks for memory.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// Time after which an idle worker is asked to go for it, and again: what caches gave back takes a moment less.
const RELIEF: Duration = Duration::from_millis(500);

/// The adapters of a loaded model.
pub(super) struct Adapters {
    source: Arc<AdapterLoader>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// All that loading one takes, which the threads share.
struct AdapterLoader {
    sources: OpenAdapters,
    config: Arc<NetworkConfig>,
    device: Device,
    context: LoadContext,
    parts: OnDemandParts<LoadedAdapter>,
    loads: Mutex<BTreeMap<String, Arc<Load>>>,
    /// The files of each adapter when it was last loaded, and the number of times that they had changed by then.
    versions: Mutex<BTreeMap<String, (Vec<FileState>, u32)>>,
}

/// A load under way, and how it ended.
#[derive(Default)]
struct Load(OnceLock<Result<HeldAdapter>>);

/// A file, its length and the time of its last change.
type FileState = (PathBuf, Option<(u64, SystemTime)>);

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Adapters {
    /// Those of a model; none is loaded.
    pub(super) fn new(
        sources: OpenAdapters,
        config: Arc<NetworkConfig>,
        device: Device,
        context: &LoadContext,
    ) -> Self {
        let source = AdapterLoader {
            sources,
            config,
            device,
            // The model's own load is over by the time that one is loaded.
            context: LoadContext::detached(&"adapters".into()),
            parts: context.on_demand_parts(),
            loads: Mutex::default(),
            versions: Mutex::default(),
        };
        Self { source: Arc::new(source), threads: Mutex::default() }
    }

    /// The adapter of this name, which is loaded here if it is not there.
    ///
    /// # Errors
    /// [`Error::UnknownAdapter`], [`Error::BrokenAdapter`], [`Error::NoRoomForAdapter`].
    pub(super) fn get(&self, name: &str) -> Result<HeldAdapter> {
        self.source.load(name)
    }

    /// Begins to load the adapter of this name unless it is there. The wait ends once it is, or cannot be loaded, or may be
    /// begun with.
    ///
    /// # Errors
    /// [`Error::UnknownAdapter`], [`Error::Compute`] if no thread can be started.
    pub(super) fn prepare(&self, name: &str) -> Result<Prepared> {
        let wait = |load: Arc<Load>| -> Wait {
            Box::new(move || Some(load.0.get()?.as_ref().map(|_| ()).map_err(Error::clone)))
        };
        self.source.sources.get(name)?;
        if let Some(held) = self.source.parts.get(name) {
            return Ok(Prepared::There(Some(Box::new(held))));
        }
        let mut loads = locked(&self.source.loads);
        if let Some(load) = loads.get(name) {
            return Ok(Prepared::Later(wait(load.clone())));
        }
        if loads.len() >= MAX_LOADS {
            let source = self.source.clone();
            return Ok(Prepared::Later(Box::new(move || {
                (locked(&source.loads).len() < MAX_LOADS).then_some(Ok(()))
            })));
        }
        let load = Arc::new(Load::default());
        let (source, own, told) = (self.source.clone(), name.to_owned(), load.clone());
        let started = thread::Builder::new().name("adapter".to_owned()).spawn(move || {
            let loaded = catch_unwind(AssertUnwindSafe(|| source.load(&own)));
            let loaded = loaded.unwrap_or_else(|_| Err(Error::compute("loading an adapter panicked")));
            // A request that comes after a failure begins anew.
            locked(&source.loads).remove(&own);
            // Nobody else sets it.
            let _ = told.0.set(loaded);
        });
        let thread =
            started.map_err(|error| Error::compute(format!("no thread to load an adapter: {error}")))?;
        loads.insert(name.to_owned(), load.clone());
        drop(loads);
        let mut threads = locked(&self.threads);
        threads.retain(|thread| !thread.is_finished());
        threads.push(thread);
        Ok(Prepared::Later(wait(load)))
    }
}

/// Waits for the threads, so that nothing of a model is left behind.
impl Drop for Adapters {
    fn drop(&mut self) {
        self.source.context.give_up();
        for thread in locked(&self.threads).drain(..) {
            // It panics nowhere, and nobody waits for what it loads.
            let _ = thread.join();
        }
    }
}

impl AdapterLoader {
    fn load(&self, name: &str) -> Result<HeldAdapter> {
        if let Some(there) = self.parts.get(name) {
            return Ok(there);
        }
        let opened = open(&self.sources, name, &self.context)?;
        let room = self.room(name, opened.bytes())?;
        let began = Instant::now();
        // Before they are read: files that change meanwhile have another number the next time.
        let identity = self.identity(name, &opened);
        let adapter = self.config.load_adapter(&opened, &self.device, &self.context);
        let adapter = adapter.map_err(|error| of_adapter(name, opened.file(), error))?;
        Ok(self.parts.insert(room, began.elapsed(), LoadedAdapter { adapter, identity }))
    }

    /// Waits for memory, and has idle workers go where caches do not have enough.
    fn room(&self, name: &str, bytes: Bytes) -> Result<PartRoom> {
        let began = Instant::now();
        let mut relief = began + RELIEF;
        // Memory that was free or a cache's when an idle worker was last asked to go.
        let mut before = None;
        loop {
            let found = match self.parts.room(name, bytes) {
                Ok(room) => return Ok(room),
                Err(found) => found,
            };
            if self.context.should_stop() {
                return Err(Error::Stopped);
            }
            if bytes > found.limit() || began.elapsed() >= ROOM_WAIT {
                let (free, limit) = (found.free(), found.limit());
                return Err(Error::NoRoomForAdapter { adapter: name.to_owned(), needed: bytes, free, limit });
            }
            if Instant::now() >= relief {
                // What caches hold will do, or is another's who waits. And where nobody went, nobody will.
                let available = found.free() + found.cached();
                if available < bytes && before.is_none_or(|before| before < available) {
                    self.parts.ask_for_relief();
                    before = Some(available);
                }
                relief = Instant::now() + RELIEF;
            }
            thread::sleep(LOOK_AGAIN);
        }
    }

    /// Numbers of an adapter: its place among the names, and how often its files had changed when they were read.
    fn identity(&self, name: &str, opened: &PeftAdapter) -> [u32; 2] {
        let place = self.sources.names().iter().take_while(|other| *other != name).count();
        let state = |file: &Path| -> FileState {
            let read = || {
                let metadata = std::fs::metadata(file).ok()?;
                Some((metadata.len(), metadata.modified().ok()?))
            };
            (file.to_owned(), read())
        };
        let files: Vec<FileState> = opened.files().iter().map(|file| state(file)).collect();
        let mut versions = locked(&self.versions);
        let (last, changes) = versions.entry(name.to_owned()).or_insert_with(|| (files.clone(), 0));
        if *last != files {
            *last = files;
            *changes = changes.wrapping_add(1);
        }
        [place as u32 + 1, *changes]
    }
}

/// Bytes that all of a model's adapters take; one that cannot be opened takes none.
///
/// # Errors
/// [`Error::Stopped`].
pub(super) fn bytes(sources: &OpenAdapters, context: &LoadContext) -> Result<Bytes> {
    let bytes = |name: String| match open(sources, &name, context) {
        Err(Error::Stopped) => Err(Error::Stopped),
        opened => Ok(opened.map_or(Bytes::ZERO, |opened| opened.bytes())),
    };
    sources.names().into_iter().map(bytes).sum()
}

fn open(sources: &OpenAdapters, name: &str, context: &LoadContext) -> Result<PeftAdapter> {
    let place = PathBuf::from(sources.get(name)?.to_string());
    let opened = sources.open(name).and_then(|files| PeftAdapter::open(&files, "", context));
    opened.map_err(|error| of_adapter(name, place, error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub_settings::HubSettings;
    use crate::source::{AdapterSources, Files, Source};

    fn fixtures() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
    }

    fn copy(from: &str, to: &Path) {
        for name in ["adapter_config.json", "adapter_model.safetensors"] {
            std::fs::copy(fixtures().join("adapters/llama").join(from).join(name), to.join(name)).unwrap();
        }
    }

    #[test]
    fn an_adapter_that_is_loaded_again_is_the_same_unless_its_files_were_changed() {
        let folder = tempfile::TempDir::new().unwrap();
        copy("plain", folder.path());
        let sources: BTreeMap<String, Source> = [
            ("other".to_owned(), Source::directory(fixtures().join("adapters/llama/patterns"))),
            ("own".to_owned(), Source::directory(folder.path())),
        ]
        .into();
        let hub = HubSettings::default();
        let files = Files::open(&Source::directory(fixtures().join("text_to_text/llama")), &hub).unwrap();
        let files = files.with_adapters(AdapterSources::from(sources), hub);
        // Room for one: two take more than their matrices.
        let context = LoadContext::detached(&"base".into());
        let room = bytes(&files.adapters, &context).unwrap();
        let context = context.with_cache_memory(room);
        let config = Arc::new(NetworkConfig::read(&files, None, &context).unwrap());
        let adapters = Adapters::new(files.adapters.clone(), config, Device::Cpu, &context);
        let identity = |name: &str| adapters.get(name).unwrap().identity;
        let is_there = |name: &str| adapters.source.parts.get(name).is_some();
        for _ in 0..2 {
            assert_eq!((identity("own"), is_there("own")), ([2, 0], true));
            assert_eq!((identity("other"), is_there("own")), ([1, 0], false));
        }
        copy("patterns", folder.path());
        assert_eq!(identity("own"), [2, 1]);
    }
}
