//! A tour of all that this library is for: `cargo run --release --example tour`. Five small models of this
//! repository, one engine: sentences are compared, a question is answered, pictures are painted, described
//! and found again, a worker crashes in the middle of a stream, and everything cools down to nothing. On a
//! terminal the supervision tree is drawn live below it, with each model's load, run, queue and memory.
//! `acts` has what happens, `picture` shows pictures.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use candle_actors::model_actors::testing::Fuse;
use clap::Parser;
use tokio::sync::mpsc;

mod acts;
mod picture;
#[path = "../common/png.rs"]
mod png;
#[path = "../common/screen.rs"]
mod screen;
#[path = "../common/show.rs"]
mod show;
#[path = "../common/small_models.rs"]
mod small_models;
#[path = "../common/vectors.rs"]
mod vectors;
#[path = "../common/words.rs"]
mod words;

use acts::Acts;
use screen::Stage;
use show::Outcome;

/// Shows what candle-actors does, offline, with the small models of its repository.
#[derive(Parser)]
struct Arguments {
    /// The folder of the models.
    #[arg(long, value_name = "DIR", default_value = small_models::SMALL_MODELS)]
    models: PathBuf,
    /// Folder for the pictures; the folder is made if it is not there.
    #[arg(long, value_name = "DIR", default_value = "tour-pictures")]
    out: PathBuf,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    small_models::say_if_missing(&arguments.models);
    show::quiet_panics(Fuse::CRASH);
    // Threads that read pictures go soon, so that none is there when the threads are counted.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_keep_alive(Duration::from_secs(1))
        .enable_all()
        .build();
    show::ended(runtime.map_err(Into::into).and_then(|runtime| runtime.block_on(run(arguments))))
}

async fn run(arguments: Arguments) -> Outcome {
    // candle starts threads at the first large tensor and keeps them for as long as the process lives.
    candle_core::utils::barrier_pool();
    let threads = show::threads();
    let (stage, lines) = mpsc::channel(show::LINES);
    let acts = Acts::start(Stage::new(stage), arguments.models, arguments.out).await?;
    show::perform(acts.system(), lines, threads, acts.play()).await
}
