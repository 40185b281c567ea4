//! Files of a Hugging Face repository, through the cache that other tools share. One commit for all files of
//! a model, progress, a limit on silence and a stop mark belong to each fetch. The cache's layout is left to
//! `cache`, requests to `client`, and one transfer to `download`. Another kind of hub is a file beside this one; what opens
//! either is in `source`.

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use model_actors::LoadContext;
use reqwest::{StatusCode, Url};

use crate::error::{Error, Result};
use crate::hub_settings::HubSettings;

mod watch;
mod checksum;
mod environment;
mod cache;
mod errors;
mod client;
mod download;

use cache::{Cached, RepositoryCache};
use client::Client;
use download::{Download, Found};
use errors::FileName;
use watch::Watch;

/// Interval at which a waiting transfer looks at its stop mark and its limit.
const LOOK: Duration = Duration::from_millis(50);

/// A repository's files at one commit.
pub(crate) struct HubFiles {
    settings: HubSettings,
    name: String,
    revision: String,
    /// The commit of the first file; the others come from the same one.
    commit: OnceLock<String>,
    connection: Mutex<Connection>,
}

/// Open only while files are fetched, so that a loaded model holds no socket.
#[derive(Default)]
struct Connection {
    open: Option<Open>,
    /// The hub could not be reached, and the cache has what is needed: it is not asked again.
    offline: bool,
}

struct Open {
    client: Client,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Drop for Open {
    fn drop(&mut self) {
        // A look-up of a name may still be blocked; nobody waits for it.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl HubFiles {
    /// Names a repository; nothing is fetched yet.
    pub(crate) fn open(settings: &HubSettings, name: &str, revision: Option<&str>) -> Self {
        let offline = settings.offline || environment::is_set("HF_HUB_OFFLINE");
        Self {
            settings: settings.clone(),
            name: name.to_owned(),
            revision: revision.unwrap_or("main").to_owned(),
            commit: OnceLock::new(),
            connection: Mutex::new(Connection { open: None, offline }),
        }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Closes the connection until the next file.
    pub(crate) fn rest(&self) {
        self.connection().open = None;
    }

    /// The file's path in the cache, fetched first if it is not there; nothing if the repository has no such
    /// file.
    pub(crate) fn fetch(&self, file: &str, context: &LoadContext) -> Result<Option<PathBuf>> {
        let mut connection = self.connection();
        let cache = self.cache(file)?;
        if connection.offline {
            return Ok(self.cached(&cache, file).unwrap_or_default());
        }
        if self.commit.get().is_some()
            && let Cached::File(path) = cache.find(file)
        {
            return Ok(Some(path));
        }
        match self.download(&mut connection, &cache, file, context) {
            Ok(found) => {
                self.remember(found.commit);
                Ok(found.path)
            }
            Err(error @ (Error::HubUnreachable { .. } | Error::TransferStalled { .. })) => {
                // The connection may be half open; the cache needs none.
                connection.open = None;
                let path = self.cached(&cache, file).ok_or(error)?;
                tracing::warn!(repository = self.name, "the hub cannot be reached; using the cache");
                connection.offline = true;
                Ok(path)
            }
            Err(error) => Err(error),
        }
    }

    /// True if the repository has the file.
    pub(crate) fn exists(&self, file: &str, context: &LoadContext) -> Result<bool> {
        let mut connection = self.connection();
        if connection.offline {
            return Ok(matches!(self.cache(file)?.find(file), Cached::File(_)));
        }
        let (name, revision) = (self.file_name(file), self.at());
        self.run(&mut connection, name, &Watch::new(context), async |client| {
            let answer = client.head(client.file(&self.name, revision, file), name).await?;
            match answer.status() {
                StatusCode::NOT_FOUND => Ok(false),
                status if status.is_success() || status.is_redirection() => Ok(true),
                _ => Err(name.refused(&answer)),
            }
        })
    }

    /// Error for a needed file that is not there: the repository or its revision may not exist either.
    pub(crate) fn missing(&self, file: &str, context: &LoadContext) -> Error {
        let repository = self.name.clone();
        let name = self.file_name(file);
        let mut connection = self.connection();
        if connection.offline {
            return name.not_cached();
        }
        let lacks_file = Error::MissingFile { model: self.name.clone(), file: file.to_owned() };
        if self.commit.get().is_some() {
            return lacks_file;
        }
        let found = self.run(&mut connection, name, &Watch::new(context), async |client| {
            Ok((
                is_there(client, client.about(&self.name, None), name).await?,
                is_there(client, client.about(&self.name, Some(&self.revision)), name).await?,
            ))
        });
        match found {
            Ok((false, _)) => Error::RepositoryNotFound { repository },
            Ok((true, false)) => Error::RevisionNotFound { repository, revision: self.revision.clone() },
            Ok((true, true)) => lacks_file,
            Err(error) => error,
        }
    }

    fn at(&self) -> &str {
        self.commit.get().unwrap_or(&self.revision)
    }

    fn file_name<'a>(&'a self, file: &'a str) -> FileName<'a> {
        FileName { repository: &self.name, file }
    }

    fn cache(&self, file: &str) -> Result<RepositoryCache> {
        let revision = self.at();
        // It is a part of paths, here and in the cache.
        let is_plain = std::path::Path::new(revision)
            .components()
            .all(|part| matches!(part, std::path::Component::Normal(_)));
        if !is_plain || revision.is_empty() {
            let (repository, revision) = (self.name.clone(), revision.to_owned());
            return Err(Error::RevisionNotFound { repository, revision });
        }
        let cache = environment::cache(&self.settings);
        let cache = cache.map_err(|reason| self.file_name(file).failed(reason))?;
        Ok(RepositoryCache::new(&cache, &self.name, revision))
    }

    /// Looks only into the cache: gives the file, or that the repository has none, or nothing if that is unknown.
    fn cached(&self, cache: &RepositoryCache, file: &str) -> Option<Option<PathBuf>> {
        match cache.find(file) {
            Cached::File(path) => {
                self.remember(cache.commit());
                Some(Some(path))
            }
            Cached::KnownMissing => Some(None),
            Cached::Unknown => None,
        }
    }

    fn download(
        &self,
        connection: &mut Connection,
        cache: &RepositoryCache,
        file: &str,
        context: &LoadContext,
    ) -> Result<Found> {
        let (name, watch) = (self.file_name(file), Watch::new(context));
        let found = self.run(connection, name, &watch, async |client| {
            let url = client.file(&self.name, self.at(), file);
            Download { client, cache, url, name, watch: &watch }.run().await
        });
        if watch.should_stop() { Err(Error::Stopped) } else { found }
    }

    /// Asks the hub, until the answer, the limit on silence or the stop mark.
    fn run<R>(
        &self,
        connection: &mut Connection,
        name: FileName<'_>,
        watch: &Watch<'_>,
        question: impl AsyncFnOnce(&Client) -> Result<R>,
    ) -> Result<R> {
        let open = match &mut connection.open {
            Some(open) => open,
            closed => closed.insert(self.connect(name)?),
        };
        let Some(runtime) = &open.runtime else { return Err(Error::Stopped) };
        runtime.block_on(async {
            let mut answer = std::pin::pin!(question(&open.client));
            loop {
                tokio::select! {
                    answer = &mut answer => return answer,
                    () = tokio::time::sleep(LOOK) => self.look(name, watch)?,
                }
            }
        })
    }

    fn look(&self, name: FileName<'_>, watch: &Watch<'_>) -> Result<()> {
        let after = self.settings.stall_limit;
        match watch.should_stop() {
            true => Err(Error::Stopped),
            false if watch.silence() < after => Ok(()),
            false => Err(name.stalled(after)),
        }
    }

    fn connect(&self, name: FileName<'_>) -> Result<Open> {
        let client = Client::new(&self.settings).map_err(|reason| name.failed(reason))?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| name.failed(error.to_string()))?;
        Ok(Open { client, runtime: Some(runtime) })
    }

    fn remember(&self, commit: Option<String>) {
        if let Some(commit) = commit {
            self.commit.get_or_init(|| commit);
        }
    }

    fn connection(&self) -> MutexGuard<'_, Connection> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn is_there(client: &Client, url: Url, name: FileName<'_>) -> Result<bool> {
    let answer = client.get(url, name).await?;
    match answer.status() {
        StatusCode::NOT_FOUND => Ok(false),
        status if status.is_success() => Ok(true),
        _ => Err(name.refused(&answer)),
    }
}
