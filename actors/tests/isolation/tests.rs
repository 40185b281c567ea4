//! The list of the tests, and the `main` that runs them: four at a time, and alone what counts the processes of all.

use std::panic::catch_unwind;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use model_actors::isolation::{KnownLoader, run_child_if_asked};
use model_actors::{ImageEmbedding, TextEmbedding};

use crate::model::{ActLoader, Acts, Fakes};
use crate::{deaths, ends, helpers, idle, serving, soak};

/// A test and its name.
pub(crate) type Test = (&'static str, fn());

pub(crate) fn main() {
    if std::env::var_os("MODEL_ACTORS_CHILD").is_none() {
        // Only here has it not been called yet.
        serving::a_main_without_the_first_line_is_told_so();
    }
    run_child_if_asked([
        KnownLoader::of::<Acts, ActLoader>(),
        KnownLoader::of::<TextEmbedding, Fakes>(),
        KnownLoader::of::<ImageEmbedding, Fakes>(),
        KnownLoader::of_work::<helpers::Tasks>(),
    ]);
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|first| first == "--parent") {
        return ends::be_a_parent(&arguments[1]);
    }
    let filter = arguments.iter().find(|argument| !argument.starts_with('-'));
    let wanted = |test: &&Test| filter.is_none_or(|filter| test.0.contains(filter.as_str()));
    let together = serving::TESTS.iter().chain(deaths::TESTS).chain(idle::TESTS).chain(ends::TESTS);
    let together: Vec<&Test> = together.chain(helpers::TESTS).filter(wanted).collect();
    let (next, failed) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while let Some(test) = together.get(next.fetch_add(1, Ordering::SeqCst)) {
                    run(test, &failed);
                }
            });
        }
    });
    // These count the children or descriptors of this process, or take all of the machine.
    ends::ALONE
        .iter()
        .chain(&helpers::ALONE)
        .chain(&soak::ALONE)
        .filter(wanted)
        .for_each(|test| run(test, &failed));
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "failed: {failed:?}");
}

fn run(test: &Test, failed: &Mutex<Vec<&'static str>>) {
    let began = std::time::Instant::now();
    let passed = catch_unwind(test.1).is_ok();
    let word = if passed { "ok" } else { "FAILED" };
    println!("test {} ... {word} ({:.1?})", test.0, began.elapsed());
    if !passed {
        failed.lock().unwrap().push(test.0);
    }
}
