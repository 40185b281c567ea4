//! Helpers of the command-line examples: exit with an error, and the progress bar for download and load.

mod small_models;

use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;

use candle_actors::{Event, LoadStage};
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::sync::broadcast::{Receiver, error::RecvError};

/// Error of an example.
pub(crate) type Failure = Box<dyn std::error::Error>;

/// Runs an example with the arguments of its command line. An error in them is reported in one line, like
/// every other.
pub(crate) async fn main<A: Parser, F>(run: impl FnOnce(A) -> F) -> ExitCode
where
    F: Future<Output = Result<(), Failure>>,
{
    match A::try_parse() {
        Ok(arguments) => ended(run(arguments).await),
        // Help that was asked for.
        Err(error) if !error.use_stderr() => ended(error.print().map_err(Failure::from)),
        Err(error) => {
            let text = error.to_string();
            let sentence: Vec<&str> =
                text.lines().take_while(|line| !line.is_empty()).map(str::trim).collect();
            eprintln!("{}", sentence.join(" "));
            ExitCode::FAILURE
        }
    }
}

/// Reports an error in one line on standard error. A closed output is no error.
fn ended(result: Result<(), Failure>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_closed_pipe(&*error) => ExitCode::SUCCESS,
        Err(error) => {
            small_models::say_if_missing(Path::new(small_models::SMALL_MODELS));
            // What a load says for itself is all that a person at a terminal needs.
            let error = match error.downcast_ref::<candle_actors::Error>() {
                Some(error) => error.root().to_string(),
                None => error.to_string(),
            };
            eprintln!("error: {}", error.replace('\n', " "));
            ExitCode::FAILURE
        }
    }
}

/// True for the error of a closed output.
pub(crate) fn is_closed_pipe(error: &(dyn std::error::Error + 'static)) -> bool {
    let io = error.downcast_ref::<std::io::Error>();
    io.is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

/// Progress bar for download and load, on standard error, if that is a terminal.
pub(crate) async fn show_progress(mut events: Receiver<Event>) {
    if !std::io::stderr().is_terminal() {
        return;
    }
    let bar = ProgressBar::new(0);
    if let Ok(style) = ProgressStyle::with_template("{msg:10} [{wide_bar}] {bytes}/{total_bytes}") {
        bar.set_style(style);
    }
    loop {
        match events.recv().await {
            Ok(Event::Loading { stage, done, total, .. }) => {
                bar.set_message(match stage {
                    LoadStage::Download => "download",
                    LoadStage::Load => "load",
                    _ => "warm-up",
                });
                bar.set_length(total.unwrap_or(done).0);
                bar.set_position(done.0);
            }
            Ok(Event::WorkerStarted { .. } | Event::StartFailed { .. }) | Err(RecvError::Closed) => break,
            Ok(_) | Err(RecvError::Lagged(_)) => {}
        }
    }
    bar.finish_and_clear();
}
