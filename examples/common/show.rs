//! Helpers of the demonstrations `supervise` and `tour`: panics that are part of the script, waiting for an
//! event, and the resources that have to be released at the end.

use std::any::Any;
use std::error::Error;
use std::fmt::Display;
use std::process::ExitCode;
use std::time::Duration;

use candle_actors::{Event, System};
use console::style;
use tokio::sync::{broadcast, mpsc};
use tokio::time::timeout;

use crate::screen::{Line, Screen};

/// Result of a demonstration or of a part of it.
pub(crate) type Outcome<T = ()> = Result<T, Box<dyn Error + Send + Sync>>;

/// Longest wait for an event.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);
/// Lines that wait to be shown. Whoever has more to say waits, so that on a slow terminal too what is said
/// stands near what happened then.
pub(crate) const LINES: usize = 1;

/// Resources that are left at the end.
pub(crate) trait Curtain: Display {
    /// True if all resources are released.
    fn left_nothing(&self) -> bool;
}

/// Draws the system while the acts are played, and says at the end what is left of it, `threads` being the
/// number before it was started.
pub(crate) async fn perform<C: Curtain>(
    system: System,
    lines: mpsc::Receiver<Line>,
    threads: Option<usize>,
    acts: impl Future<Output = Outcome<C>>,
) -> Outcome {
    let drawing = tokio::spawn(Screen::new().follow(system.clone(), system.events(), lines));
    let outcome = acts.await;
    // The stage went with the acts, so the screen says what is left to say and ends.
    let mut screen = drawing.await?;
    let curtain = outcome?;
    drop(system);
    let after = settled_threads(threads).await;
    let is_well = curtain.left_nothing() && after <= threads;
    let verdict = match is_well {
        true => style("Everything is back where it began.").green().bold(),
        false => style("SOMETHING WAS LEFT BEHIND.").red().bold(),
    };
    let known = |number: Option<usize>| number.map_or("unknown".to_owned(), |number| number.to_string());
    let (before, after) = (known(threads), known(after));
    screen.say(&format!("\n{verdict}\n{curtain}\n  threads                  {before} before, {after} after"));
    if is_well { Ok(()) } else { Err("something was left behind".into()) }
}

/// Reports an error in one line on standard error.
pub(crate) fn ended(outcome: Outcome) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("the show went wrong: {failure}");
            ExitCode::FAILURE
        }
    }
}

/// Threads of this process, where `/proc` is.
pub(crate) fn threads() -> Option<usize> {
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

/// Beginning of the message of a panic that is part of the script; only other panics are printed.
pub(crate) fn quiet_panics(beginning: &'static str) {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !words_of(panic.payload()).is_some_and(|words| words.starts_with(beginning)) {
            usual(panic);
        }
    }));
}

fn words_of(panic: &(dyn Any + Send)) -> Option<&str> {
    panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied())
}

pub(crate) fn started(event: &Event, name: &str) -> bool {
    matches!(event, Event::WorkerStarted { model, .. } if model.as_str() == name)
}

/// Waits for an event.
pub(crate) async fn event(
    events: &mut broadcast::Receiver<Event>,
    what: &str,
    wanted: impl Fn(&Event) -> bool,
) -> Outcome {
    let next = async {
        loop {
            match events.recv().await {
                Ok(event) if wanted(&event) => return Ok(()),
                Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return Err("the system is gone"),
            }
        }
    };
    match timeout(LIMIT, next).await {
        Ok(outcome) => Ok(outcome?),
        Err(_) => Err(format!("not within {} s: {what}", LIMIT.as_secs()).into()),
    }
}
