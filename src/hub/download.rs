//! Fetches one file into the cache. It gets its name there once its length and its checksum are the announced
//! ones.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::{StatusCode, Url};

use super::cache::RepositoryCache;
use super::checksum::Checksum;
use super::client::{Announced, Client, commit};
use super::errors::FileName;
use super::watch::Watch;
use crate::error::Result;

/// Pause between attempts to take a lock that another process holds.
const LOCK_PAUSE: Duration = Duration::from_millis(100);

/// Answer to the question for a file.
pub(super) struct Found {
    /// Nothing if the repository has no such file.
    pub(super) path: Option<PathBuf>,
    /// The commit that was answered for.
    pub(super) commit: Option<String>,
}

/// One file to fetch.
pub(super) struct Download<'a> {
    pub(super) client: &'a Client,
    pub(super) cache: &'a RepositoryCache,
    pub(super) url: Url,
    pub(super) name: FileName<'a>,
    pub(super) watch: &'a Watch<'a>,
}

impl Download<'_> {
    /// The file's path, fetched if the cache lacks its content.
    pub(super) async fn run(self) -> Result<Found> {
        let name = self.name;
        let answer = self.client.head(self.url.clone(), name).await?;
        if answer.status() == StatusCode::NOT_FOUND {
            let commit = commit(&answer);
            if let Some(commit) = &commit {
                self.cache.note_missing(commit, name.file).map_err(|error| name.unwritable(error))?;
            }
            return Ok(Found { path: None, commit });
        }
        if !answer.status().is_success() && !answer.status().is_redirection() {
            return Err(name.refused(&answer));
        }
        let announced = Announced::read(&answer, name)?;
        let blob = self.cache.blob(&announced.checksum);
        if !blob.exists() {
            self.fetch(&blob, &announced).await?;
        }
        let path = self.cache.link(&announced.commit, name.file, &announced.checksum);
        let path = path.map_err(|error| name.unwritable(error))?;
        Ok(Found { path: Some(path), commit: Some(announced.commit) })
    }

    async fn fetch(&self, blob: &Path, announced: &Announced) -> Result<()> {
        let partial = blob.with_extension("incomplete");
        let _lock = self.lock(&partial, &announced.checksum).await?;
        // Another process may have fetched it meanwhile.
        if !blob.exists() {
            let partial = Partial(partial);
            self.receive(&partial, announced).await?;
            fs::rename(&partial.0, blob).map_err(|error| self.name.unwritable(error))?;
        }
        Ok(())
    }

    /// The content's lock. What another process receives meanwhile counts as progress.
    async fn lock(&self, partial: &Path, checksum: &str) -> Result<File> {
        let mut seen = None;
        loop {
            if let Some(lock) = self.cache.lock(checksum).map_err(|error| self.name.unwritable(error))? {
                return Ok(lock);
            }
            let length = fs::metadata(partial).ok().map(|metadata| metadata.len());
            if length != seen {
                seen = length;
                self.watch.advance(0);
            }
            tokio::time::sleep(LOCK_PAUSE).await;
        }
    }

    async fn receive(&self, partial: &Partial, announced: &Announced) -> Result<()> {
        let name = self.name;
        let mut answer = self.client.get(self.url.clone(), name).await?;
        if !answer.status().is_success() {
            return Err(name.refused(&answer));
        }
        let length = announced.length.or(answer.content_length());
        let length = length.ok_or_else(|| name.failed("the server does not say how long it is"))?;
        name.check_length(length)?;
        self.watch.begin(length);
        let mut file = partial.create().map_err(|error| name.unwritable(error))?;
        let mut checksum = Checksum::new(&announced.checksum, length);
        let mut done = 0;
        loop {
            let piece = match answer.chunk().await {
                Ok(Some(piece)) => piece,
                Ok(None) => break,
                Err(error) if error.is_timeout() => return Err(name.unanswered(error)),
                Err(_) if done < length => return Err(name.truncated(length, done)),
                Err(error) => return Err(name.unanswered(error)),
            };
            done += piece.len() as u64;
            if done > length {
                break;
            }
            file.write_all(&piece).map_err(|error| name.unwritable(error))?;
            checksum.update(&piece);
            self.watch.advance(piece.len());
        }
        if done != length {
            return Err(name.truncated(length, done));
        }
        if checksum.matches() { Ok(()) } else { Err(name.mismatch()) }
    }
}

/// The path of a content that is not complete, whose lock is held. What is left there goes with it.
struct Partial(PathBuf);

impl Partial {
    fn create(&self) -> std::io::Result<File> {
        self.0.parent().map_or(Ok(()), fs::create_dir_all)?;
        File::create(&self.0)
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // It is not there any more once it is complete.
        drop(fs::remove_file(&self.0));
    }
}
