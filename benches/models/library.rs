//! Language models of candle-transformers of a hundred million parameters, one of each kind of state: tokens a second through
//! the pool beside a plain loop over the library's model, with one thread each, in pairs one after the other; and two
//! workers beside one, which contend for the pool of threads that candle has for a process.

use std::time::{Duration, Instant};

use candle_actors::{
    Engine, GenerateText, PoolConfig, Prompt, Source, StandaloneModel, TextGenerationModel, TextGenerator,
};
use candle_core::{Device, Tensor};

use super::TEXT;
use super::large_library::{Begin, LARGE, Large};

/// Tokens of an answer, and pairs of answers.
const TOKENS: usize = 12;
const PAIRS: usize = 15;
/// Words of a prompt that is long enough for every elementwise operation to go to candle's own pool.
const WORDS: usize = 60;

/// All rows whose names are wanted.
pub(super) async fn rows(is_wanted: impl Fn(&str) -> bool) {
    for large in LARGE {
        if is_wanted(&format!("library/{}", large.name)) {
            row(&large).await;
        }
    }
    if is_wanted("library/contention") {
        contention().await;
    }
}

async fn start(source: Source, workers: usize) -> (Engine, TextGenerator) {
    let pool = PoolConfig::default().with_max_workers(workers).with_cold_start_workers(workers);
    let engine =
        Engine::builder().threads(1).pool_config(pool).text_to_text("large", source).start().await.unwrap();
    let generator = engine.text_to_text("large").unwrap().timeout(Duration::from_secs(600));
    (engine, generator)
}

/// Median, least and most of some numbers.
pub(super) fn spread(mut numbers: Vec<f64>) -> String {
    numbers.sort_by(f64::total_cmp);
    let at = |part: usize| numbers[(numbers.len() - 1) * part / 4];
    format!("{:.3} (quarters {:.3} and {:.3}, all {:.3} to {:.3})", at(2), at(1), at(3), at(0), at(4))
}

async fn row(large: &Large) {
    let folder = tempfile::tempdir().unwrap();
    let (begin, parameters) = large.write(folder.path());
    let source = || Source::directory(folder.path());
    let prompt = TextGenerationModel::load(source()).unwrap().tokenize(&Prompt::Raw(TEXT.into())).unwrap();
    let (engine, generator) = start(source(), 1).await;
    let threads = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    let plain = || {
        let began = Instant::now();
        let written = threads.install(|| plain_loop(large, &begin, &prompt));
        (written, began.elapsed().as_secs_f64())
    };
    let mut pairs = Vec::new();
    for pair in 0..=PAIRS {
        // Each is the first of a pair as often as the other.
        let before = (pair % 2 == 0).then(plain);
        let began = Instant::now();
        let answer = generator.generate(GenerateText::from(TEXT).with_max_tokens(TOKENS)).await.unwrap();
        let pooled = began.elapsed().as_secs_f64();
        let (written, alone) = before.unwrap_or_else(plain);
        assert_eq!(answer.usage.completion_tokens, written.len(), "no text ended early");
        // The first pair warms up.
        if pair > 0 {
            pairs.push((alone, pooled));
        }
    }
    let mut rates: Vec<f64> = pairs.iter().map(|(alone, _)| TOKENS as f64 / alone).collect();
    rates.sort_by(f64::total_cmp);
    println!(
        "library/{:<20} {:<10} {:>4} M  plain loop {:>6.2} tokens/s; the pool to it {}",
        large.name,
        large.state,
        parameters / 1_000_000,
        rates[rates.len() / 2],
        spread(pairs.iter().map(|(alone, pooled)| alone / pooled).collect()),
    );
    assert!(engine.shutdown().await.is_clean());
}

/// Greedy tokens of the library's model, with nothing around it.
fn plain_loop(large: &Large, begin: &Begin, prompt: &[u32]) -> Vec<u32> {
    let (mut text, mut read, mut written) = (begin().unwrap(), 0, Vec::new());
    let mut unread = prompt.to_vec();
    while written.len() < TOKENS {
        let mut logits = None;
        for piece in unread.chunks(if large.by_token { 1 } else { usize::MAX }) {
            let tokens = Tensor::new(piece, &Device::Cpu).unwrap().unsqueeze(0).unwrap();
            logits = Some(text(&tokens, read).unwrap());
            read += piece.len();
        }
        let logits = logits.unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let best = logits.iter().enumerate().max_by(|one, other| one.1.total_cmp(other.1)).unwrap().0;
        written.push(best as u32);
        unread = vec![best as u32];
    }
    written
}

/// Long prompts a second of one worker and of two, each with one thread.
async fn contention() {
    let folder = tempfile::tempdir().unwrap();
    let _ = LARGE[1].write(folder.path());
    let (one, alone) = start(Source::directory(folder.path()), 1).await;
    let (two, both) = start(Source::directory(folder.path()), 2).await;
    let text = [TEXT; WORDS / 6].join(" ");
    let ask = |generator: &TextGenerator| {
        let (generator, text) = (generator.clone(), text.clone());
        async move { generator.generate(GenerateText::from(text.as_str()).with_max_tokens(1)).await.unwrap() }
    };
    let mut ratios = Vec::new();
    let mut tokens = 0;
    for pair in 0..=PAIRS {
        let began = Instant::now();
        ask(&alone).await;
        let single = began.elapsed().as_secs_f64();
        let began = Instant::now();
        let (first, _) = tokio::join!(ask(&both), ask(&both));
        tokens = first.usage.prompt_tokens;
        if pair > 0 {
            ratios.push(2.0 * single / began.elapsed().as_secs_f64());
        }
    }
    println!("library/contention: prompts of {tokens} tokens, two workers to one: {}", spread(ratios));
    for engine in [one, two] {
        assert!(engine.shutdown().await.is_clean());
    }
}
