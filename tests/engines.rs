//! Engines as nodes of a cluster, on loopback: a handle reaches a model wherever it is, a local one first, and a model is its
//! files. The other node is this executable again, so there is no test harness.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use candle_actors::Loader as _;
use candle_actors::{
    ClusterConfig, Engine, EngineBuilder, Error, Fetch, GenerateText, GenerationLimits, ImageEmbeddingModel,
    LoadContext, LoadOptions, PeerModelStatus, RerankingModel, Source, SourceSpec, StandaloneModel,
    TextEmbeddingModel, TextGenerationModel, TextToImageModel, VisionModel, model_actors,
};
use common::folders::copied;

const TEXTS: [&str; 2] = ["The cat sleeps.", "It rains."];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [mark, models @ ..] = arguments.as_slice()
        && mark == "--node"
    {
        return be_a_node(models);
    }
    for (name, test) in TESTS {
        let began = Instant::now();
        test();
        println!("test {name} ... ok ({:.1?})", began.elapsed());
    }
}

const TESTS: [(&str, fn()); 5] = [
    ("a_model_of_another_node_answers_as_one_here", a_model_of_another_node_answers_as_one_here),
    ("a_model_here_goes_first_and_a_model_is_its_files", a_model_here_goes_first_and_a_model_is_its_files),
    ("a_digest_is_of_all_files_of_a_load", a_digest_is_of_all_files_of_a_load),
    ("a_digest_is_of_contents_and_settings", a_digest_is_of_contents_and_settings),
    ("a_repository_is_not_fetched_for_its_digest", a_repository_is_not_fetched_for_its_digest),
];

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn node(name: &str, peers: Option<SocketAddr>) -> EngineBuilder {
    let config = ClusterConfig::new("engines", name, "the secret of the engines", ([127, 0, 0, 1], 0).into());
    Engine::builder().cluster(config.with_peers(peers.map(|peer| peer.to_string())))
}

fn on_a_runtime(work: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(Duration::from_secs(60), work).await.expect("it ends") });
}

/// A node as a process of its own, which ends with this value.
struct Node {
    process: Child,
    address: SocketAddr,
}

impl Node {
    /// Starts one with these models: `name=folder`, of texts to embed, or to write where the name begins with `chat`.
    fn start(models: &[(&str, &Path)]) -> Self {
        let models = models.iter().map(|(name, folder)| format!("{name}={}", folder.display()));
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.arg("--node").args(models).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        Self { process, address: line.trim().parse().unwrap() }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.process.kill();
        self.process.wait().unwrap();
    }
}

fn be_a_node(models: &[String]) {
    on_a_runtime(async {
        let engine = models.iter().fold(node("there", None), |builder, model| {
            let (name, folder) = model.split_once('=').unwrap();
            match name.starts_with("chat") {
                true => builder.text_to_text(name, Source::directory(folder)),
                false => builder.text_embedding(name, Source::directory(folder)),
            }
        });
        let engine = engine.start().await.unwrap();
        println!("{}", engine.system().cluster_address().unwrap());
        // Until whoever started it goes.
        tokio::task::spawn_blocking(|| std::io::stdin().read(&mut [0])).await.unwrap().unwrap();
    });
}

async fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(began.elapsed() < Duration::from_secs(30), "{what} did not come about");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A model of the other node, once it is told of.
async fn told(engine: &Engine, model: &str) -> PeerModelStatus {
    let find = || {
        let peers = engine.system().status().peers.clone();
        peers.into_iter().flat_map(|peer| peer.models).find(|told| told.model.as_str() == model)
    };
    until(&format!("{model} there"), find).await
}

fn a_model_of_another_node_answers_as_one_here() {
    let there =
        Node::start(&[("bert", &fixture("text_embedding/bert")), ("chat", &fixture("text_to_text/llama"))]);
    on_a_runtime(async {
        let engine = node("here", Some(there.address)).start().await.unwrap();
        // Neither was loaded yet: what their files are is known all the same.
        assert!(!told(&engine, "bert").await.resident);
        told(&engine, "chat").await;
        let embedder = until("a handle", || engine.text_embedding("bert").ok()).await;
        let here = TextEmbeddingModel::load(Source::directory(fixture("text_embedding/bert"))).unwrap();
        assert_eq!(embedder.embed_batch(TEXTS).await.unwrap(), here.embed(&TEXTS).unwrap());
        let facts = embedder.facts().await.unwrap().expect("they are known there");
        let width = embedder.embed(TEXTS[0]).await.unwrap().len();
        assert_eq!((facts.family.as_str(), facts.dimensions), ("bert", Some(width)));
        assert_eq!(embedder.count_tokens(TEXTS[0]).await.unwrap(), here.count_tokens(TEXTS[0]).unwrap());

        let chat = until("a handle", || engine.text_to_text("chat").ok()).await;
        let here = TextGenerationModel::load(Source::directory(fixture("text_to_text/llama"))).unwrap();
        let request = || GenerateText::from("the").with_max_tokens(12);
        let mut stream = chat.stream(request()).await.unwrap();
        let mut text = String::new();
        while let Some(chunk) = stream.next().await {
            text.push_str(&chunk.unwrap().text);
        }
        assert_eq!(text, here.generate(&[request()]).unwrap()[0].text);

        let error = engine.text_embedding("chat").unwrap_err();
        assert!(matches!(error, Error::Actor(model_actors::Error::UnknownModel { .. })), "{error}");
        // With it go its models, and a request says so: one that goes out before that is known is lost there.
        drop(there);
        let error = embedder.embed("x").await.unwrap_err();
        let Error::Actor(cause) = error.root() else { panic!("{error}") };
        assert!(matches!(cause.reason(), "no_peer" | "peer_lost"), "{error}");
        engine.shutdown().await;
    });
}

fn a_model_here_goes_first_and_a_model_is_its_files() {
    let (bert, mpnet) = (fixture("text_embedding/bert"), fixture("text_embedding/mpnet"));
    let copy = copied(&bert);
    let models = [("same", copy.path()), ("other", &*bert), ("settings", &bert)];
    let there = Node::start(&models);
    on_a_runtime(async {
        let engine = node("here", Some(there.address))
            .text_embedding("same", Source::directory(&bert))
            .text_embedding("other", Source::directory(&mpnet))
            .text_embedding("settings", SourceSpec::from(Source::directory(&bert)).with_eight_bit(true));
        let engine = engine.start().await.unwrap();
        for (model, differs) in [("same", false), ("other", true), ("settings", true)] {
            told(&engine, model).await;
            until("the digest of that here", || {
                let status = engine.system().status();
                let mut all = status.peers.iter().flat_map(|peer| &peer.models);
                all.any(|told| told.model.as_str() == model && told.differs == differs).then_some(())
            })
            .await;
        }
        let vector = async |model: &str| engine.text_embedding(model)?.embed(TEXTS[0]).await;
        let own = |folder: &Path| {
            let model = TextEmbeddingModel::load(Source::directory(folder)).unwrap();
            model.embed(&TEXTS[..1]).unwrap().remove(0)
        };
        assert_eq!(vector("same").await.unwrap(), own(&bert));
        assert_eq!(vector("other").await.unwrap(), own(&mpnet), "that of the other node is another model");
        engine.shutdown().await;
    });
}

/// Digest of the model in a folder, before and after it is loaded.
fn digests<M: StandaloneModel>(folder: &Path) -> [String; 2] {
    let context = LoadContext::detached(&"model".into());
    let loader = M::loader(Source::directory(folder), LoadOptions::default()).unwrap();
    let digest = |loader: &dyn model_actors::Loader<M::Capability>| {
        loader.digest(Fetch::Never, &context).unwrap().expect("a folder is here")
    };
    let before = digest(&loader);
    loader.load(&context).unwrap_or_else(|failure| panic!("{}: {failure:?}", folder.display()));
    [before, digest(&loader)]
}

fn digest<M: StandaloneModel>(folder: &Path) -> String {
    let [before, _] = digests::<M>(folder);
    before
}

fn a_digest_is_of_all_files_of_a_load() {
    let of = [
        digests::<TextEmbeddingModel>(&fixture("text_embedding/jina_v3_adapters")),
        digests::<TextEmbeddingModel>(&fixture("text_embedding/static")),
        digests::<TextEmbeddingModel>(&fixture("text_embedding/bge_m3")),
        digests::<TextEmbeddingModel>(&fixture("text_embedding/stella_400m")),
        digests::<RerankingModel>(&fixture("reranking/qwen3")),
        digests::<TextGenerationModel>(&fixture("text_to_text/llama")),
        digests::<TextGenerationModel>(&fixture("text_to_text/gguf_qwen2")),
        digests::<ImageEmbeddingModel>(&fixture("image_embedding/siglip")),
        digests::<VisionModel>(&fixture("vision/moondream")),
        digests::<TextToImageModel>(&fixture("text_to_image/sd15")),
    ];
    for (index, [before, after]) in of.iter().enumerate() {
        assert_eq!(before, after, "of model {index}, its load asks for more files than its sizing");
        assert!(of.iter().filter(|[other, _]| other == before).count() == 1, "each is another model");
    }
}

fn a_digest_is_of_contents_and_settings() {
    let bert = fixture("text_embedding/bert");
    let model = digest::<TextEmbeddingModel>(&bert);
    let copy = copied(&bert);
    assert_eq!(digest::<TextEmbeddingModel>(copy.path()), model);
    std::fs::write(copy.path().join("README.md"), "what nothing reads").unwrap();
    assert_eq!(digest::<TextEmbeddingModel>(copy.path()), model);
    for file in ["model.safetensors", "tokenizer.json", "1_Pooling/config.json"] {
        let path = copy.path().join(file);
        let whole = std::fs::read(&path).unwrap();
        let mut changed = whole.clone();
        match file.ends_with(".json") {
            true => changed.push(b'\n'),
            // Of the last weight.
            false => *changed.last_mut().unwrap() ^= 1,
        }
        std::fs::write(&path, changed).unwrap();
        assert_ne!(digest::<TextEmbeddingModel>(copy.path()), model, "{file}");
        std::fs::write(&path, whole).unwrap();
    }
    let context = LoadContext::detached(&"model".into());
    let options = LoadOptions::default().with_eight_bit(true);
    let loader = TextEmbeddingModel::loader(Source::directory(&bert), options).unwrap();
    assert_ne!(loader.digest(Fetch::Never, &context).unwrap(), Some(model));

    let llama = fixture("text_to_text/llama");
    let with = |options: LoadOptions| {
        let loader = TextGenerationModel::loader(Source::directory(&llama), options).unwrap();
        loader.digest(Fetch::Never, &context).unwrap().unwrap()
    };
    let plain = digest::<TextGenerationModel>(&llama);
    assert_eq!(with(LoadOptions::default()), plain);
    let shorter = GenerationLimits::default().with_kv_cache_tokens(1024);
    assert_ne!(with(LoadOptions::default().with_generation(shorter)), plain, "it refuses other prompts");
    // Its weights in a file of another name, which a load takes too.
    let folder = copied(&fixture("adapters/llama/patterns"));
    let weights = folder.path().join("adapter_model.fp16.safetensors");
    std::fs::rename(folder.path().join("adapter_model.safetensors"), &weights).unwrap();
    let adapter =
        |name: &str| with(LoadOptions::default().with_adapter(name, Source::directory(folder.path())));
    let adapted = adapter("one");
    assert!(adapted != plain && adapted != adapter("other"), "its adapters count");
    let mut changed = std::fs::read(&weights).unwrap();
    *changed.last_mut().unwrap() ^= 1;
    std::fs::write(&weights, changed).unwrap();
    assert_ne!(adapter("one"), adapted, "and what is in them");
}

fn a_repository_is_not_fetched_for_its_digest() {
    let context = LoadContext::detached(&"model".into());
    let loader =
        TextEmbeddingModel::loader(Source::repository("no-one/nothing"), LoadOptions::default()).unwrap();
    assert_eq!(loader.digest(Fetch::Never, &context).unwrap(), None);
}
