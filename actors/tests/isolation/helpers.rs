//! Children that do other work than a model's: what work does to its process, its own caller alone is told.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use model_actors::isolation::{Helpers, IsolatedWork, ProcessEnd, ProcessOptions, sabotage};
use model_actors::{Bytes, Error, Failure, FailureKind};
use serde::{Deserialize, Serialize};

use crate::ends::{children, descriptors, settle};
use crate::model::{Fate, block_on, is_there};

pub(crate) const TESTS: &[crate::tests::Test] = &[
    ("work_of_which_no_child_knows_is_refused", work_of_which_no_child_knows_is_refused),
    ("work_that_ends_its_child_ends_alone", || block_on(work_that_ends_its_child_ends_alone())),
    ("work_after_a_child_was_spoilt_is_done_again", || {
        block_on(work_after_a_child_was_spoilt_is_done_again())
    }),
    ("work_that_nobody_waits_for_is_killed", || block_on(work_that_nobody_waits_for_is_killed())),
    ("a_child_over_its_memory_fails_alone", || block_on(a_child_over_its_memory_fails_alone())),
    ("children_are_few_and_end_when_they_are_told_to", || {
        block_on(children_are_few_and_end_when_they_are_told_to())
    }),
    #[cfg(target_os = "linux")]
    ("a_child_goes_before_its_parent_when_memory_runs_out", || {
        block_on(a_child_goes_before_its_parent_when_memory_runs_out())
    }),
    ("a_child_without_work_ends", || block_on(a_child_without_work_ends())),
];

pub(crate) const ALONE: [crate::tests::Test; 1] = [("nothing_is_left_of_helpers_after_many_cycles", || {
    block_on(nothing_is_left_of_helpers_after_many_cycles())
})];

/// An hour: nothing ends for being idle.
const LONG: Duration = Duration::from_secs(3600);

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Task {
    /// Tell the process.
    Tell,
    /// Tell it once there is a file of this name.
    WaitFor(String),
    /// Make the first file, and tell the process once there is the other.
    Between(String, String),
    Die(Fate),
    Loop,
    Panic,
    /// Write this in place of an answer.
    Garbage(Vec<u8>),
    /// Answer, and die of what is asked next before it is read.
    Spoil,
    /// Answer if the child has done nothing else, and panic otherwise.
    PanicIfUsed,
    Allocate(usize),
}

pub(crate) struct Tasks;

/// Most bytes of an answer.
const MOST: usize = 16;

/// Whether this child has done anything.
static USED: AtomicBool = AtomicBool::new(false);

impl IsolatedWork for Tasks {
    const NAME: &'static str = "tasks";
    type Input = Task;
    type Output = u32;

    fn most_bytes(_: &Task) -> usize {
        MOST
    }

    fn work(task: Task) -> u32 {
        let is_used = USED.swap(true, Ordering::Relaxed);
        match task {
            Task::Tell => {}
            Task::WaitFor(file) => wait_for(&file),
            Task::Between(begun, go_on) => {
                std::fs::write(begun, "").unwrap();
                wait_for(&go_on);
            }
            Task::Die(fate) => fate.die(),
            Task::Loop => loop {
                std::hint::spin_loop();
            },
            Task::Panic => panic!("the script says so"),
            Task::Garbage(bytes) => {
                sabotage::write_garbage(&bytes);
                loop {
                    std::thread::park();
                }
            }
            Task::Spoil => sabotage::die_when_asked(),
            Task::PanicIfUsed => assert!(!is_used, "it was used"),
            Task::Allocate(bytes) => drop(std::hint::black_box(vec![1_u8; bytes])),
        }
        std::process::id()
    }
}

fn wait_for(file: &str) {
    while !std::path::Path::new(file).exists() {
        std::thread::yield_now();
    }
}

/// Work that `main` names to no child.
struct Unknown;

impl IsolatedWork for Unknown {
    const NAME: &'static str = "unknown";
    type Input = ();
    type Output = ();

    fn work((): ()) {}
}

fn helpers(most: usize) -> Helpers<Tasks> {
    Helpers::new(ProcessOptions::default(), most, LONG).unwrap()
}

async fn run(helpers: &Helpers<Tasks>, task: Task) -> Result<u32, Failure> {
    helpers.run(Arc::new(task)).await
}

/// A file that is not there yet.
fn file(name: &str) -> String {
    let path = std::env::temp_dir().join(format!("{name}-{}", std::process::id()));
    let _ = std::fs::remove_file(&path);
    path.display().to_string()
}

fn end_of(failure: &Failure) -> ProcessEnd {
    failure.cause.data::<ProcessEnd>().unwrap_or_else(|| panic!("no end: {failure}"))
}

fn work_of_which_no_child_knows_is_refused() {
    let refused = Helpers::<Unknown>::new(ProcessOptions::default(), 1, LONG).unwrap_err();
    assert!(matches!(&refused, Error::InvalidConfig { .. }), "{refused}");
    assert!(refused.to_string().contains("children do not know the work \"unknown\""), "{refused}");
}

async fn work_that_ends_its_child_ends_alone() {
    let helpers = helpers(2);
    let other = file("beside");
    let beside = run(&helpers, Task::WaitFor(other.clone()));
    let deaths = async {
        for (fate, word) in Fate::ALL {
            let before = run(&helpers, Task::Tell).await.unwrap();
            let failure = run(&helpers, Task::Die(fate)).await.unwrap_err();
            assert!(failure.cause.message().contains(word), "{failure}");
            match fate {
                Fate::Exit => assert_eq!(end_of(&failure), ProcessEnd::Exited { status: 3 }),
                _ => assert!(matches!(end_of(&failure), ProcessEnd::Signal { .. }), "{failure}"),
            }
            assert!(!is_there(before));
            assert_ne!(run(&helpers, Task::Tell).await.unwrap(), before);
        }
        for bytes in [vec![0xff; 64], vec![0, 0, 0, 3, 0xc1, 0xc1, 0xc1], vec![0, 0, 0, 1, 0x07]] {
            let failure = run(&helpers, Task::Garbage(bytes)).await.unwrap_err();
            assert!(matches!(end_of(&failure), ProcessEnd::Protocol { .. }), "{failure}");
        }
        // The length of an answer that is too large, whose bytes never come.
        let failure = run(&helpers, Task::Garbage(vec![0, 2, 0, 0])).await.unwrap_err();
        assert!(failure.cause.message().contains("a frame of 131072 bytes"), "{failure}");
        let failure = run(&helpers, Task::Panic).await.unwrap_err();
        assert!(failure.cause.message().contains("the script says so"), "{failure}");
        run(&helpers, Task::Tell).await.unwrap();
        std::fs::write(&other, "").unwrap();
    };
    let (beside, ()) = tokio::join!(beside, deaths);
    assert!(is_there(beside.unwrap()), "the other child has seen nothing of it");
    std::fs::remove_file(other).unwrap();
}

async fn work_after_a_child_was_spoilt_is_done_again() {
    let helpers = helpers(1);
    let spoilt = run(&helpers, Task::Spoil).await.unwrap();
    assert!(is_there(spoilt));
    assert_ne!(run(&helpers, Task::Tell).await.unwrap(), spoilt, "it was not to blame");
    assert!(!is_there(spoilt));
    // So it is with one that panics.
    let used = run(&helpers, Task::Tell).await.unwrap();
    assert_ne!(run(&helpers, Task::PanicIfUsed).await.unwrap(), used);
    assert!(!is_there(used));
}

async fn work_that_nobody_waits_for_is_killed() {
    let helpers = helpers(1);
    let before = run(&helpers, Task::Tell).await.unwrap();
    let endless = tokio::time::timeout(Duration::from_millis(50), run(&helpers, Task::Loop)).await;
    assert!(endless.is_err());
    // There is one place: it has been given back once the child was dead.
    let after = run(&helpers, Task::Tell).await.unwrap();
    assert!(after != before && !is_there(before));
}

async fn a_child_over_its_memory_fails_alone() {
    let options = ProcessOptions::default().with_address_space(Bytes::mib(1024));
    let helpers = Helpers::<Tasks>::new(options, 1, LONG).unwrap();
    run(&helpers, Task::Allocate(1 << 20)).await.unwrap();
    let failure = run(&helpers, Task::Allocate(2 << 30)).await.unwrap_err();
    assert!(failure.cause.message().contains("SIGABRT"), "the allocator gives up: {failure}");
    assert_eq!(failure.kind, FailureKind::Failed);
    run(&helpers, Task::Allocate(1 << 20)).await.unwrap();
}

async fn children_are_few_and_end_when_they_are_told_to() {
    let helpers = Arc::new(helpers(2));
    let all = (0..8).map(|_| {
        let helpers = helpers.clone();
        tokio::spawn(async move { run(&helpers, Task::Tell).await.unwrap() })
    });
    let mut processes = Vec::new();
    for one in all.collect::<Vec<_>>() {
        processes.push(one.await.unwrap());
    }
    processes.sort_unstable();
    processes.dedup();
    assert!(processes.len() <= 2, "{processes:?}");
    helpers.end().await;
    assert!(!processes.iter().any(|process| is_there(*process)));
    // One at work ends after it, and not before.
    let (begun, go_on) = (file("at-work"), file("go-on"));
    let work = run(&helpers, Task::Between(begun.clone(), go_on.clone()));
    let end = async {
        settle(|| std::path::Path::new(&begun).exists()).await;
        let mut end = std::pin::pin!(helpers.end());
        assert!(tokio::time::timeout(Duration::ZERO, &mut end).await.is_err(), "it is at work");
        std::fs::write(&go_on, "").unwrap();
        end.await;
    };
    let (worked, ()) = tokio::join!(work, end);
    assert!(!is_there(worked.unwrap()));
    [begun, go_on].iter().for_each(|file| std::fs::remove_file(file).unwrap());
    let last = run(&helpers, Task::Tell).await.unwrap();
    drop(helpers);
    settle(|| !is_there(last)).await;
}

#[cfg(target_os = "linux")]
async fn a_child_goes_before_its_parent_when_memory_runs_out() {
    let helpers = helpers(1);
    let process = run(&helpers, Task::Tell).await.unwrap();
    let score = std::fs::read_to_string(format!("/proc/{process}/oom_score_adj")).unwrap();
    assert_eq!(score.trim(), "1000");
}

async fn a_child_without_work_ends() {
    let helpers = Helpers::<Tasks>::new(ProcessOptions::default(), 1, Duration::from_millis(100)).unwrap();
    let idle = run(&helpers, Task::Tell).await.unwrap();
    settle(|| !is_there(idle)).await;
    assert_ne!(run(&helpers, Task::Tell).await.unwrap(), idle);
}

/// `ISOLATION_CYCLES` sets another number than 50.
async fn nothing_is_left_of_helpers_after_many_cycles() {
    let cycles = std::env::var("ISOLATION_CYCLES").map_or(50, |cycles| cycles.parse().unwrap());
    let before = descriptors();
    for cycle in 0..cycles {
        let helpers = helpers(2);
        let (one, other) = tokio::join!(run(&helpers, Task::Tell), run(&helpers, Task::Tell));
        one.and(other).unwrap();
        match cycle % 4 {
            0 => drop(run(&helpers, Task::Die(Fate::Segfault)).await.unwrap_err()),
            1 => drop(run(&helpers, Task::Garbage(vec![0xff; 4])).await.unwrap_err()),
            2 => drop(tokio::time::timeout(Duration::from_millis(5), run(&helpers, Task::Loop)).await),
            _ => helpers.end().await,
        }
    }
    settle(|| children().is_empty() && descriptors().len() <= before.len()).await;
}
