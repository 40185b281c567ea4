//! A show of supervision: `cargo run --release --example supervise`. A system with scripted models lives through a
//! load, a panic, a stall, an open breaker, short memory and a cooldown to nothing, and the tree is drawn live while
//! it does. Each act (`acts`) waits for its event, not for time; `screen` draws; `words` says what happened.

use std::process::ExitCode;
use std::time::Duration;

use tokio::sync::mpsc;

mod acts;
mod screen;
mod words;

use acts::{Outcome, Show};
use screen::{Screen, Stage};

/// Lines that wait to be shown; whoever has more to say waits.
const LINES: usize = 64;

#[tokio::main(worker_threads = 2)]
async fn main() -> ExitCode {
    quiet_scripted_panics();
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("the show went wrong: {failure}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Outcome {
    let threads = threads();
    let (stage, lines) = mpsc::channel(LINES);
    let show = Show::start(Stage::new(stage)).await?;
    let system = show.system();
    let drawing = tokio::spawn(Screen::new().follow(system.clone(), system.events(), lines));
    let outcome = show.play().await;
    // The stage went with the show, so the screen says what is left to say and ends.
    let mut screen = drawing.await?;
    let curtain = outcome?;
    drop(system);
    let after = settled_threads(threads).await;
    screen.say(&words::curtain(&curtain, threads, after));
    if curtain.left_nothing() && after == threads {
        return Ok(());
    }
    Err("something was left behind".into())
}

/// Threads of this process, where `/proc` is.
fn threads() -> Option<usize> {
    Some(std::fs::read_dir("/proc/self/task").ok()?.count())
}

/// The worker threads have reported their end; the last of them may still be leaving.
async fn settled_threads(before: Option<usize>) -> Option<usize> {
    for _ in 0..200 {
        if threads() <= before {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    threads()
}

/// A panic is part of the show; only others are worth their message.
fn quiet_scripted_panics() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !is_scripted(panic.payload()) {
            usual(panic);
        }
    }));
}

fn is_scripted(panic: &(dyn std::any::Any + Send)) -> bool {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    text.is_some_and(|text| text.starts_with("the script says"))
}
