//! Downloads from a hub, its cache without a network, and a distinct error for every way in which the hub can
//! fail.
#![cfg(feature = "hub")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::time::Duration;

use candle_actors::{Error, HubSettings, LoadOptions, Source, StandaloneModel, TextEmbeddingModel};
use common::model::TinyModel;
use common::server::{COMMIT, Fault, HubServer, REPOSITORY};
use common::web::{Answer, WebServer};
use tempfile::TempDir;

const SECRET: &str = "hf_secret_of_the_test";

/// Hub with the tiny model, and an empty cache.
struct Hub {
    server: HubServer,
    cache: TempDir,
}

impl Hub {
    fn new(faults: &[(&str, Fault)]) -> Self {
        let server = HubServer::start(TinyModel::new().files(), faults);
        Self { server, cache: tempfile::tempdir().unwrap() }
    }

    fn settings(&self) -> HubSettings {
        settings(&self.server.endpoint(), &self.cache)
    }

    fn load(&self) -> Result<TextEmbeddingModel, Error> {
        load(Source::repository(REPOSITORY), self.settings())
    }

    fn error(&self) -> Error {
        let error = self.load().err().expect("a broken hub serves a model");
        let words = format!("{error} {error:?}");
        assert!(!words.contains(SECRET) && !words.contains("http"), "{words}");
        error
    }
}

fn settings(endpoint: &str, cache: &TempDir) -> HubSettings {
    HubSettings::default().with_endpoint(endpoint).with_cache(cache.path()).with_token(SECRET).with_retries(1)
}

fn load(source: Source, hub: HubSettings) -> Result<TextEmbeddingModel, Error> {
    TextEmbeddingModel::load_with(source, LoadOptions::default().with_hub(hub))
}

/// An address at which nobody listens.
fn nowhere() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

#[test]
fn a_repository_gives_the_same_vectors_as_a_directory() {
    let hub = Hub::new(&[]);
    let folder = TinyModel::new().write();
    let local = TextEmbeddingModel::load(Source::directory(folder.path())).unwrap();
    let texts = ["cat sleeps", "dog"];
    assert_eq!(hub.load().unwrap().embed(&texts).unwrap(), local.embed(&texts).unwrap());
}

#[test]
fn only_what_is_needed_is_fetched_and_each_file_once() {
    let hub = Hub::new(&[]);
    hub.load().unwrap();
    let mut fetched: Vec<String> =
        hub.server.requests().into_iter().filter(|request| request.starts_with("GET")).collect();
    assert_eq!(fetched.len(), TinyModel::new().files().len());
    fetched.sort_unstable();
    fetched.dedup();
    assert_eq!(fetched.len(), TinyModel::new().files().len());
}

#[test]
fn a_cached_model_needs_no_hub() {
    let hub = Hub::new(&[]);
    let vectors = hub.load().unwrap().embed(&["cat"]).unwrap();
    for offline in [false, true] {
        let hub = settings(&nowhere(), &hub.cache).with_offline(offline);
        let model = load(Source::repository(REPOSITORY), hub.clone()).unwrap();
        assert_eq!(model.embed(&["cat"]).unwrap(), vectors);
        let at_commit = load(Source::repository(REPOSITORY).revision(COMMIT), hub).unwrap();
        assert_eq!(at_commit.embed(&["cat"]).unwrap(), vectors);
    }
}

#[test]
fn without_hub_and_cache_the_error_says_which_is_missing() {
    let cache = tempfile::tempdir().unwrap();
    let hub = settings(&nowhere(), &cache);
    let error = load(Source::repository(REPOSITORY), hub.clone()).err().unwrap();
    assert!(matches!(error, Error::HubUnreachable { .. }), "{error}");
    let error = load(Source::repository(REPOSITORY), hub.with_offline(true)).err().unwrap();
    assert!(matches!(error, Error::NotCached { .. }), "{error}");
}

#[test]
fn a_repository_revision_or_file_that_is_not_there() {
    let hub = Hub::new(&[]);
    let error = load(Source::repository("nobody/nothing"), hub.settings()).err().unwrap();
    assert!(matches!(error, Error::RepositoryNotFound { .. }), "{error}");
    let error = load(Source::repository(REPOSITORY).revision("v9"), hub.settings()).err().unwrap();
    assert!(matches!(&error, Error::RevisionNotFound { revision, .. } if revision == "v9"), "{error}");
    for file in ["config.json", "tokenizer.json", "model.safetensors"] {
        let error = Hub::new(&[(file, Fault::Status(404))]).error();
        assert!(matches!(&error, Error::MissingFile { file: missing, .. } if missing == file), "{error}");
    }
}

#[test]
fn no_access() {
    for status in [401, 403] {
        let error = Hub::new(&[("modules.json", Fault::Status(status))]).error();
        assert!(matches!(&error, Error::AccessDenied { status: is, .. } if *is == status), "{error}");
    }
}

#[test]
fn a_server_that_fails() {
    let error = Hub::new(&[("model.safetensors", Fault::Status(500))]).error();
    assert!(matches!(&error, Error::HubFailed { status: 500, .. }), "{error}");
}

#[test]
fn content_that_is_too_short() {
    for fault in [Fault::Cut, Fault::Short] {
        let hub = Hub::new(&[("model.safetensors", fault)]);
        let error = hub.error();
        assert!(matches!(&error, Error::TransferTruncated { .. }), "{fault:?}: {error}");
        // What came is not kept: a better server with the same cache serves the model.
        let better = HubServer::start(TinyModel::new().files(), &[]);
        load(Source::repository(REPOSITORY), settings(&better.endpoint(), &hub.cache)).unwrap();
    }
}

#[test]
fn content_that_does_not_match_its_checksum() {
    for file in ["model.safetensors", "config.json"] {
        let hub = Hub::new(&[(file, Fault::Flipped)]);
        let error = hub.error();
        assert!(matches!(&error, Error::ChecksumMismatch { file: wrong, .. } if wrong == file), "{error}");
        let better = HubServer::start(TinyModel::new().files(), &[]);
        load(Source::repository(REPOSITORY), settings(&better.endpoint(), &hub.cache)).unwrap();
    }
}

#[test]
fn a_transfer_that_stalls() {
    let hub = Hub::new(&[("model.safetensors", Fault::Stalled)]);
    let stall_limit = Duration::from_millis(300);
    let error = load(Source::repository(REPOSITORY), hub.settings().with_stall_limit(stall_limit));
    let error = error.err().unwrap();
    assert!(matches!(&error, Error::TransferStalled { after, .. } if *after == stall_limit), "{error}");
}

#[test]
fn the_token_goes_to_the_hub_alone() {
    let files = TinyModel::new().files();
    let weights = files.iter().find(|(name, _)| *name == "model.safetensors").unwrap().1.clone();
    let other = WebServer::start("127.0.0.2", |_| vec![("/content", Answer::Whole(weights))]);
    let hub = Hub::new(&[("model.safetensors", Fault::Elsewhere(other.address()))]);
    hub.load().unwrap();
    assert_eq!(hub.server.authorized(), hub.server.requests().len());
    let asked = other.requests().concat().to_lowercase();
    assert!(asked.contains("get /content") && !asked.contains("authorization"), "{asked}");
}

#[test]
fn what_another_load_fetches_is_waited_for() {
    let hub = Hub::new(&[]);
    std::thread::scope(|scope| {
        let loads: Vec<_> = (0..4).map(|_| scope.spawn(|| hub.load().map(drop))).collect();
        loads.into_iter().for_each(|load| load.join().unwrap().unwrap());
    });
    let fetched = hub.server.requests().into_iter().filter(|request| request.starts_with("GET")).count();
    assert_eq!(fetched, TinyModel::new().files().len());
}

#[test]
fn a_checksum_that_is_none_writes_nothing() {
    for checksum in ["../../../escaped", "", "/tmp/escaped", "0123456789abcdefg"] {
        let hub = Hub::new(&[("config.json", Fault::Checksum(checksum))]);
        let error = hub.error();
        assert!(matches!(&error, Error::TransferFailed { file, .. } if file == "config.json"), "{error}");
        let blobs = hub.cache.path().join("models--somebody--tiny/blobs");
        let count = std::fs::read_dir(&blobs).map_or(0, |entries| entries.count());
        assert!(count <= 1 && !hub.cache.path().join("escaped").exists(), "{checksum}: {count}");
    }
}

#[test]
fn a_file_of_more_bytes_than_one_of_its_name_may_have_is_not_fetched() {
    for (file, length) in [("config.json", 3 << 30), ("tokenizer.json", 100 << 20), ("modules.json", 5 << 20)]
    {
        for fault in [Fault::Length(length), Fault::LateLength(length)] {
            let hub = Hub::new(&[(file, fault)]);
            let error = hub.error();
            let is_told = error.to_string().contains(&length.to_string());
            assert!(matches!(&error, Error::TransferFailed { .. }) && is_told, "{fault:?}: {error}");
            let asked = format!("GET /{REPOSITORY}/resolve/{COMMIT}/{file}");
            let is_announced = matches!(fault, Fault::Length(_));
            assert!(!is_announced || !hub.server.requests().contains(&asked), "{fault:?}");
            let blobs = hub.cache.path().join("models--somebody--tiny/blobs");
            let kept = std::fs::read_dir(&blobs).into_iter().flatten().flatten();
            assert!(kept.map(|entry| entry.metadata().unwrap().len()).all(|bytes| bytes < 1 << 20));
        }
    }
}

#[test]
fn a_redirect_that_looks_like_a_path_does_not_take_the_token_along() {
    let files = TinyModel::new().files();
    let weights = files.iter().find(|(name, _)| *name == "model.safetensors").unwrap().1.clone();
    let other = WebServer::start("127.0.0.2", |_| vec![("/content", Answer::Whole(weights))]);
    let hub = Hub::new(&[("model.safetensors", Fault::Backslash(other.address()))]);
    hub.load().unwrap();
    let asked = other.requests().concat().to_lowercase();
    assert!(asked.contains("get /content") && !asked.contains("authorization"), "{asked}");
}

#[test]
fn names_in_a_models_own_files_lead_nowhere_else() {
    for name in [
        "../../../other/model/resolve/main/secret.safetensors",
        "secret.safetensors?download=true",
        "secret.safetensors#part.safetensors",
        "%2e%2e/secret.safetensors",
        "..\\secret.safetensors",
        "/etc/secret.safetensors",
        "a//secret.safetensors",
        "./secret.safetensors",
        "secret.json",
        "",
    ] {
        let index = serde_json::json!({"weight_map": {"embeddings.weight": name}}).to_string();
        let folder = name.rsplit_once('.').map_or("", |(folder, _)| folder);
        let modules = serde_json::json!([
            {"idx": 0, "type": "sentence_transformers.models.Transformer", "path": ""},
            {"idx": 1, "type": "sentence_transformers.models.Pooling", "path": format!("../{folder}")},
        ]);
        for (file, content) in [
            ("model.safetensors.index.json", index.into_bytes()),
            ("modules.json", modules.to_string().into_bytes()),
        ] {
            let mut files = TinyModel::new().files();
            let is_index = file != "modules.json";
            files.retain(|(name, _)| *name != file && !(is_index && *name == "model.safetensors"));
            files.push((file, content));
            let server = HubServer::start(files, &[]);
            let cache = tempfile::tempdir().unwrap();
            let error = load(Source::repository(REPOSITORY), settings(&server.endpoint(), &cache)).err();
            let error = error.unwrap_or_else(|| panic!("{file}: {name:?} is taken"));
            assert!(matches!(&error, Error::InvalidConfig { .. }), "{file}: {name:?}: {error}");
            let asked = server.requests().concat();
            assert!(!asked.contains("secret") && !asked.contains("etc"), "{file}: {name:?}: {asked}");
        }
    }
}
