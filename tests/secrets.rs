//! Tokens, passwords and signed addresses reach no log, no error and no event, at the finest level of logging
//! of everything in the process. In a file of its own, because a process has one collector of logs.
#![cfg(all(feature = "hub", feature = "image-urls"))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use candle_actors::{
    DescribeImage, Engine, Error, Event, HubSettings, ImageSettings, ImageSource, LoadOptions, Sampling,
    Source, StandaloneModel, TextEmbeddingModel, UrlSettings,
};
use common::model::TinyModel;
use common::root;
use common::server::{Fault, HubServer, REPOSITORY};
use common::web::{Answer, WebServer};

const TOKEN: &str = "hf_TheTokenOfTheTest";
const PASSWORD: &str = "ThePasswordOfTheTest";
const SIGNATURE: &str = "TheSignatureOfTheTest";
const PATH: &str = "ThePathOfTheTest";
/// `user:ThePasswordOfTheTest` in base64, as the header has it.
const HEADER: &str = "dXNlcjpUaGVQYXNzd29yZE9mVGhlVGVzdA";

/// Writer that keeps everything that is written to it.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Log {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

fn check(what: &str, words: &str) {
    for secret in [TOKEN, PASSWORD, SIGNATURE, PATH, HEADER] {
        if let Some(at) = words.find(secret) {
            let begin = words[..at].rfind('\n').map_or(0, |line| line + 1);
            panic!("{what} holds {secret}: {:.2000}", &words[begin..]);
        }
    }
}

fn images() -> ImageSettings {
    let urls = UrlSettings::default()
        .with_allowed_networks(vec!["127.0.0.1/32".parse().unwrap()])
        .with_read_timeout(Duration::from_secs(2))
        .with_redirects(2);
    ImageSettings::default().with_urls(urls)
}

/// Engines with a working hub and with one that fails in several ways.
async fn load_models(errors: &mut Vec<String>, events: &mut Vec<String>) {
    let faults = [
        ("config.json", Fault::Status(401)),
        ("config.json", Fault::Status(403)),
        ("config.json", Fault::Status(500)),
        ("model.safetensors", Fault::Cut),
        ("model.safetensors", Fault::Flipped),
    ];
    let mut hubs = vec![HubServer::start(TinyModel::new().files(), &[])];
    hubs.extend(faults.into_iter().map(|fault| HubServer::start(TinyModel::new().files(), &[fault])));
    for hub in &hubs {
        let cache = tempfile::tempdir().unwrap();
        let settings = HubSettings::default()
            .with_endpoint(hub.endpoint().replace("//", "//user:ThePasswordOfTheTest@"))
            .with_cache(cache.path())
            .with_token(TOKEN)
            .with_retries(0);
        errors.push(format!("{settings:?}"));
        // The control: where it leads is shown.
        assert!(format!("{settings:?}").contains(&hub.endpoint()));
        errors.push(format!("{:?}", LoadOptions::default().with_hub(settings.clone())));
        let engine = Engine::builder().hub(settings).text_embedding("tiny", Source::repository(REPOSITORY));
        let engine = engine.start().await.unwrap();
        let mut heard = engine.events();
        let result = engine.text_embedding("tiny").unwrap().embed("cat").await;
        if let Err(error) = &result {
            errors.push(format!("{error} {error:?} {:?}", error.root()));
        }
        errors.push(format!("{:?}", engine.system().status()));
        errors.push(format!("{:?}", engine.shutdown().await));
        hear(&mut heard, events);
    }
}

/// URLs in place of a model's directory or repository, which a load and a registration refuse.
async fn load_addresses(errors: &mut Vec<String>) {
    let address = format!("https://user:{TOKEN}@huggingface.co/{PATH}/b?s={SIGNATURE}");
    let sources = [
        Source::parse(&address),
        Source::parse(&format!("user:{PASSWORD}@huggingface.co/a/b")),
        Source::parse(&format!("htps://{TOKEN}@huggingface.co/a/b.gguf")),
        Source::directory(&address),
        Source::directory(&address).gguf("a.gguf"),
        Source::repository(&address).revision("main"),
    ];
    for source in sources {
        errors.push(format!("{source} {source:?}"));
        let error = TextEmbeddingModel::load(source.clone()).err().unwrap();
        assert!(matches!(&error, Error::InvalidSetting { setting, .. } if setting == "source"), "{error}");
        errors.push(format!("{error} {error:?}"));
        let error = Engine::builder().text_embedding("address", source).start().await.err().unwrap();
        errors.push(format!("{error} {error:?} {:?}", error.root()));
    }
    // The control: what is no address is shown.
    let path = Source::directory("/no/such@directory");
    let error = TextEmbeddingModel::load(path.clone()).err().unwrap();
    assert!([path.to_string(), error.to_string()].iter().all(|words| words.contains("/no/such@directory")));
}

fn hear(heard: &mut tokio::sync::broadcast::Receiver<Event>, events: &mut Vec<String>) {
    while let Ok(event) = heard.try_recv() {
        events.push(format!("{event:?}"));
    }
}

/// Addresses with a user, a password, a path and a signature, which lead to a picture or to trouble.
async fn open_addresses(errors: &mut Vec<String>) {
    let png = std::fs::read(root().join("tests/fixtures/images/rgb.png")).unwrap();
    let server = WebServer::start("127.0.0.1", |own| {
        let loops = format!(
            "{}/ThePathOfTheTest/loop?s={SIGNATURE}",
            own.replace("//", "//user:ThePasswordOfTheTest@")
        );
        let inner = format!("http://user:{PASSWORD}@127.0.0.2/{PATH}?s={SIGNATURE}");
        vec![
            ("/ThePathOfTheTest/a.png", Answer::Whole(png.clone())),
            ("/ThePathOfTheTest/loop", Answer::Redirect(loops)),
            ("/ThePathOfTheTest/inner", Answer::Redirect(inner)),
            ("/ThePathOfTheTest/file", Answer::Redirect(format!("file:///{PATH}?{SIGNATURE}"))),
            ("/ThePathOfTheTest/bad", Answer::Redirect(format!("http://[{SIGNATURE}/"))),
            ("/ThePathOfTheTest/gone", Answer::Status(404)),
            ("/ThePathOfTheTest/cut", Answer::Cut(png)),
            ("/ThePathOfTheTest/stalled", Answer::Stalled),
            ("/ThePathOfTheTest/garbage", Answer::Garbage),
            ("/ThePathOfTheTest/page", Answer::Whole(b"<html>".to_vec())),
        ]
    });
    let engine = Engine::builder().image_input(images()).start().await.unwrap();
    let port = server.port();
    let host = format!("user:{PASSWORD}@127.0.0.1:{port}");
    let paths = ["a.png", "loop", "inner", "file", "bad", "gone", "cut", "stalled", "garbage", "page"];
    let mut addresses: Vec<String> =
        paths.iter().map(|path| format!("http://{host}/{PATH}/{path}?s={SIGNATURE}#{SIGNATURE}")).collect();
    addresses.extend([
        format!("https://{host}/{PATH}/a.png?s={SIGNATURE}"),
        format!("http://user:{PASSWORD}@localhost:1/{PATH}?s={SIGNATURE}"),
        format!("http://user:{PASSWORD}@no-such-host.invalid/{PATH}?s={SIGNATURE}"),
        format!("ftp://user:{PASSWORD}@127.0.0.1/{PATH}?s={SIGNATURE}"),
        format!("http://user:{PASSWORD}@[::/{PATH}?s={SIGNATURE}"),
        format!("user:{PASSWORD}"),
        format!("htps://user:{PASSWORD}@127.0.0.1/{PATH}?s={SIGNATURE}"),
        format!("htp://{PASSWORD}/{PATH}"),
        format!("{PASSWORD}://127.0.0.1/{PATH}"),
        format!("{PASSWORD}:{SIGNATURE}"),
    ]);
    let mut good = 0;
    // Such as an application gets that tells addresses from paths by what they begin with.
    let mistyped = format!("htps://user:{PASSWORD}@127.0.0.1/{PATH}?s={SIGNATURE}");
    let sources = addresses.into_iter().map(ImageSource::Url).chain([ImageSource::Path(mistyped.into())]);
    for source in sources {
        // A path is shown, which the application should have known to be none.
        if !matches!(source, ImageSource::Path(_)) {
            errors.push(format!("{source:?}"));
        }
        match engine.images().picture(source).await {
            Ok(_) => good += 1,
            Err(error) => errors.push(format!("{error} {error:?}")),
        }
    }
    assert_eq!(good, 1, "{errors:#?}");
    errors.push(format!("{:?}", engine.images()));
}

/// Client without a handle: the worker, or the failing load, gives the error.
async fn send_raw(errors: &mut Vec<String>, events: &mut Vec<String>) {
    let folder = TinyModel::new().write();
    let engine = Engine::builder().vision("tiny", Source::directory(folder.path())).start().await.unwrap();
    let mut heard = engine.events();
    let image = ImageSource::Url(format!("http://user:{PASSWORD}@127.0.0.1/{PATH}?{SIGNATURE}"));
    let request =
        DescribeImage::new(image).with_question("?").with_sampling(Sampling::default()).with_max_tokens(1);
    errors.push(format!("{request:?}"));
    let error = engine.vision("tiny").unwrap().describe(request).await.unwrap_err();
    errors.push(format!("{error} {error:?}"));
    hear(&mut heard, events);
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_reach_no_log_no_error_and_no_event() {
    let log = Log::default();
    let writer = log.clone();
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_span_events(tracing_subscriber::fmt::format::FmtSpan::FULL)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .init();
    let (mut errors, mut events) = (Vec::new(), Vec::new());
    load_models(&mut errors, &mut events).await;
    load_addresses(&mut errors).await;
    open_addresses(&mut errors).await;
    send_raw(&mut errors, &mut events).await;
    assert!(errors.len() > 30 && events.len() > 6, "{} {}", errors.len(), events.len());
    check("an error", &errors.join("\n"));
    check("an event", &events.join("\n"));
    // What the libraries below say is there: the HTTP client's own lines, and the actors' spans.
    let text = log.text();
    assert!(text.contains("starting new connection") && text.contains("model_actors"), "{text:.2000}");
    check("the log", &text);
    // The control: what is logged is seen.
    tracing::trace!("{TOKEN}");
    assert!(log.text().contains(TOKEN));
}
