//! Files of a Hugging Face repository, through hf-hub and its cache, which other tools share. Adds what a load needs
//! beyond it: progress, a limit on silence, a stop mark, verified content, one commit for all files of a model, and
//! errors that name the repository but never an address, because a redirect's may carry a signature.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use hf_hub::repository::{HFRepository, RepoTypeModel};
use hf_hub::{HFClient, HFError};
use model_actors::{Bytes, LoadContext};

use crate::error::{Error, Result};
use crate::hub_settings::HubSettings;

mod verify;
mod watch;

use watch::Watch;

/// How often a waiting transfer looks at its stop mark and its limit.
const LOOK: Duration = Duration::from_millis(50);

/// A repository's files at one commit.
pub(crate) struct HubFiles {
    settings: HubSettings,
    name: String,
    revision: String,
    /// What the revision was at the first file; the others come from the same commit.
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
    client: HFClient,
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
        let asked_for = std::env::var("HF_HUB_OFFLINE").is_ok_and(|value| is_yes(&value));
        let connection = Connection { open: None, offline: settings.offline || asked_for };
        Self {
            settings: settings.clone(),
            name: name.to_owned(),
            revision: revision.unwrap_or("main").to_owned(),
            commit: OnceLock::new(),
            connection: Mutex::new(connection),
        }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Closes the connection until the next file.
    pub(crate) fn rest(&self) {
        self.connection().open = None;
    }

    /// The file's path in the cache, fetched first if it is not there; nothing if the repository has no such file.
    pub(crate) fn fetch(&self, file: &str, context: &LoadContext) -> Result<Option<PathBuf>> {
        let mut connection = self.connection();
        if connection.offline {
            return self.cached(&mut connection, file, context);
        }
        let watch = Watch::new(context);
        match self.download(&mut connection, file, false, &watch) {
            Ok(Some(path)) => {
                if watch.read().started {
                    self.verify(&path, file, watch.read().total, context)?;
                }
                self.remember(&path);
                Ok(Some(path))
            }
            Err(error @ (Error::HubUnreachable { .. } | Error::TransferStalled { .. })) => {
                // The connection may be half open; the cache needs none.
                connection.open = None;
                match self.download(&mut connection, file, true, &Watch::new(context)) {
                    Ok(found) => {
                        tracing::warn!(repository = self.name, "the hub cannot be reached; using the cache");
                        connection.offline = true;
                        Ok(found.inspect(|path| self.remember(path)))
                    }
                    Err(_) => Err(error),
                }
            }
            other => other,
        }
    }

    /// Offline, a file that is not in the cache counts as one that the repository does not have: what the model
    /// cannot do without is found missing by whoever needs it.
    fn cached(
        &self,
        connection: &mut Connection,
        file: &str,
        context: &LoadContext,
    ) -> Result<Option<PathBuf>> {
        match self.download(connection, file, true, &Watch::new(context)) {
            Ok(found) => Ok(found.inspect(|path| self.remember(path))),
            Err(Error::NotCached { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether the repository has the file.
    pub(crate) fn exists(&self, file: &str, context: &LoadContext) -> Result<bool> {
        let mut connection = self.connection();
        if connection.offline {
            return Ok(self.cached(&mut connection, file, context)?.is_some());
        }
        let revision = self.at().to_owned();
        self.ask(&mut connection, file, &Watch::new(context), async |repository| {
            repository.file_exists().filename(file).revision(&revision).send().await
        })
    }

    /// Why a needed file is not there: the repository or its revision may not exist either.
    pub(crate) fn missing(&self, file: &str, context: &LoadContext) -> Error {
        let (repository, wanted) = (self.name.clone(), file.to_owned());
        let mut connection = self.connection();
        if connection.offline {
            return Error::NotCached { repository, file: wanted };
        }
        let lacks_file = Error::MissingFile { model: self.name.clone(), file: wanted };
        if self.commit.get().is_some() {
            return lacks_file;
        }
        let watch = Watch::new(context);
        let found = self.ask(&mut connection, file, &watch, async |hub| {
            Ok((hub.exists().send().await?, hub.revision_exists().revision(&self.revision).send().await?))
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

    fn download(
        &self,
        connection: &mut Connection,
        file: &str,
        cache_only: bool,
        watch: &Watch,
    ) -> Result<Option<PathBuf>> {
        let revision = self.at().to_owned();
        let progress = watch.clone();
        let path = self.ask(connection, file, watch, async |repository| {
            let download = repository.download_file().filename(file).revision(revision.as_str());
            match download.local_files_only(cache_only).progress(progress).send().await {
                Ok(path) => Ok(Some(path)),
                Err(HFError::EntryNotFound { .. }) => Ok(None),
                Err(error) => Err(error),
            }
        });
        if watch.should_stop() { Err(Error::Stopped) } else { path }
    }

    /// Asks the hub, until the answer, the limit on silence or the stop mark.
    fn ask<R>(
        &self,
        connection: &mut Connection,
        file: &str,
        watch: &Watch,
        question: impl AsyncFnOnce(&HFRepository<RepoTypeModel>) -> Result<R, HFError>,
    ) -> Result<R> {
        let open = match &mut connection.open {
            Some(open) => open,
            closed => closed.insert(self.connect(file)?),
        };
        let (owner, name) = hf_hub::split_id(&self.name);
        let repository = open.client.model(owner, name);
        let Some(runtime) = &open.runtime else { return Err(Error::Stopped) };
        runtime.block_on(async {
            let answer = question(&repository);
            tokio::pin!(answer);
            loop {
                tokio::select! {
                    answer = &mut answer => return answer.map_err(|error| self.name_error(error, file, watch)),
                    () = tokio::time::sleep(LOOK) => self.look(file, watch)?,
                }
            }
        })
    }

    fn look(&self, file: &str, watch: &Watch) -> Result<()> {
        if watch.should_stop() {
            return Err(Error::Stopped);
        }
        let after = self.settings.stall_limit;
        if watch.read().last.elapsed() < after {
            return Ok(());
        }
        Err(Error::TransferStalled { repository: self.name.clone(), file: file.to_owned(), after })
    }

    fn connect(&self, file: &str) -> Result<Open> {
        let failed = |reason: String| self.transfer_failed(file, reason);
        let mut builder = HFClient::builder().retry_max_attempts(self.settings.retries);
        if let Some(endpoint) = &self.settings.endpoint {
            builder = builder.endpoint(endpoint);
        }
        if let Some(cache) = &self.settings.cache {
            builder = builder.cache_dir(cache);
        }
        if let Some(token) = &self.settings.token {
            builder = builder.token(token.secret());
        }
        let client = builder.build().map_err(|_| failed("the client cannot be set up".to_owned()))?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| failed(error.to_string()))?;
        Ok(Open { client, runtime: Some(runtime) })
    }

    /// The commit is a part of every path in the cache: `…/snapshots/<commit>/<file>`.
    fn remember(&self, path: &Path) {
        let parts: Vec<_> = path.iter().collect();
        let snapshots = parts.iter().rposition(|part| *part == "snapshots");
        let commit = snapshots.and_then(|index| parts.get(index + 1)?.to_str());
        if let Some(commit) = commit {
            self.commit.get_or_init(|| commit.to_owned());
        }
    }

    fn name_error(&self, error: HFError, file: &str, watch: &Watch) -> Error {
        let (repository, name) = (self.name.clone(), file.to_owned());
        match error {
            HFError::AuthRequired { .. } => Error::AccessDenied { repository, status: 401 },
            HFError::Forbidden { .. } => Error::AccessDenied { repository, status: 403 },
            HFError::RepoNotFound { .. } => Error::RepositoryNotFound { repository },
            HFError::RevisionNotFound { revision, .. } => Error::RevisionNotFound { repository, revision },
            HFError::LocalEntryNotFound { .. } => Error::NotCached { repository, file: name },
            HFError::RateLimited { retry_after, .. } => Error::RateLimited { retry_after },
            HFError::Http { context } => {
                Error::HubFailed { repository, file: name, status: context.status.as_u16() }
            }
            HFError::Request { source, .. } => {
                let (unreachable, broken) =
                    (source.is_connect() || source.is_timeout(), source.is_body() || source.is_decode());
                let state = watch.read();
                if broken && state.done < state.total {
                    let (expected, actual) = (Bytes(state.total), Bytes(state.done));
                    return Error::TransferTruncated { repository, file: name, expected, actual };
                }
                let reason = innermost(&source.without_url());
                match unreachable {
                    true => Error::HubUnreachable { repository, file: name, reason },
                    false => self.transfer_failed(file, reason),
                }
            }
            HFError::Io(error) => self.transfer_failed(file, error.to_string()),
            HFError::Xet { operation, .. } => self.transfer_failed(file, format!("xet {operation} failed")),
            HFError::MalformedResponse { what, .. } => self.transfer_failed(file, what),
            HFError::CacheLockTimeout { .. } => self.transfer_failed(
                file,
                "another process has held its lock in the cache for too long".to_owned(),
            ),
            _ => self.transfer_failed(file, "the answer makes no sense".to_owned()),
        }
    }

    fn transfer_failed(&self, file: &str, reason: String) -> Error {
        Error::TransferFailed { repository: self.name.clone(), file: file.to_owned(), reason }
    }

    fn connection(&self) -> MutexGuard<'_, Connection> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_yes(value: &str) -> bool {
    ["1", "true", "yes", "on"].contains(&value.to_lowercase().as_str())
}

/// The last cause in a chain of errors; the ones above it say no more than "request failed".
fn innermost(error: &dyn std::error::Error) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}
