//! Demonstration of supervision: `cargo run --release --example supervise`. A system with scripted models
//! goes through a load, a panic, a stall, an open breaker, memory pressure and a cooldown to no worker, while
//! the supervision tree is drawn live. Each act (`acts`) waits for its event, not for time; `screen` draws;
//! `words` describes events.

use std::process::ExitCode;

use tokio::sync::mpsc;

mod acts;
#[path = "../common/screen.rs"]
#[allow(dead_code, reason = "these acts have nothing that changes but the tree")]
mod screen;
#[path = "../common/show.rs"]
mod show;
#[path = "../common/words.rs"]
mod words;

use acts::Acts;
use screen::Stage;
use show::Outcome;

#[tokio::main(worker_threads = 2)]
async fn main() -> ExitCode {
    show::quiet_panics("the script says");
    show::ended(run().await)
}

async fn run() -> Outcome {
    let threads = show::threads();
    let (stage, lines) = mpsc::channel(show::LINES);
    let acts = Acts::start(Stage::new(stage)).await?;
    show::perform(acts.system(), lines, threads, acts.play()).await
}
