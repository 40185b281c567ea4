//! Ends: of the parent, which its children do not outlive, of a model, of which nothing is left, and secrets, which a child's
//! environment and arguments do not hold.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

use model_actors::CallOptions;
use model_actors::isolation::ProcessOptions;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::model::*;

pub(crate) const TESTS: &[crate::tests::Test] = &[
    ("no_child_outlives_its_parent", no_child_outlives_its_parent),
    ("environment_and_arguments_hold_no_secret", environment_and_arguments_hold_no_secret),
];

pub(crate) const ALONE: [crate::tests::Test; 1] =
    [("nothing_is_left_after_many_cycles", || block_on(nothing_is_left_after_many_cycles()))];

/// Serves a request that never ends in a child, tells of the child, and dies as it is told once it has read a line.
pub(crate) fn be_a_parent(how: &str) {
    block_on(async {
        let stage = Stage::start().await;
        let loader = ActLoader { secret: "hush".to_owned(), ..ActLoader::default() };
        let options = ProcessOptions::default().with_environment(["ASKED_FOR".to_owned()]);
        let model = stage.model_with("one", loader, options);
        let process = process_of(&model).await;
        if how == "environment" {
            println!("{}", ask(&model, Act::Environment).await.unwrap().words);
            std::process::exit(0);
        }
        let request = Ask { chunks: 1, ..Act::Hang.into() };
        let mut stream = model.stream(request, CallOptions::default()).await.unwrap();
        stream.next().await.unwrap().unwrap();
        println!("{process}");
        std::io::stdin().lines().next();
        let fates = [Fate::Segfault, Fate::Abort, Fate::StackOverflow, Fate::Exit, Fate::Kill];
        fates[how.parse::<usize>().unwrap()].die()
    });
}

fn parent(how: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--parent", how]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    command
}

fn no_child_outlives_its_parent() {
    for how in 0..Fate::ALL.len() {
        let mut parent = parent(&how.to_string()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(parent.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let child = Pid::from_raw(line.trim().parse().unwrap()).unwrap();
        let child = pidfd_open(child, PidfdFlags::empty()).unwrap();
        parent.stdin.take().unwrap().write_all(b"\n").unwrap();
        parent.wait().unwrap();
        let limit = Timespec::try_from(Duration::from_secs(30)).unwrap();
        let ended = poll(&mut [PollFd::new(&child, PollFlags::IN)], Some(&limit)).unwrap();
        assert_eq!(ended, 1, "the child of a parent that died by {:?} lives on", Fate::ALL[how]);
    }
}

fn environment_and_arguments_hold_no_secret() {
    let mut command = parent("environment");
    command
        .env("HF_TOKEN", "hush")
        .env("AWS_SECRET_ACCESS_KEY", "hush")
        .env("ASKED_FOR", "this")
        .env("LANG", "C");
    let output = command.output().unwrap();
    let words = String::from_utf8(output.stdout).unwrap();
    assert!(words.contains("\"ASKED_FOR\"=\"this\"") && words.contains("\"LANG\"=\"C\""), "{words}");
    assert!(!words.contains("hush") && !words.contains("TOKEN") && !words.contains("SECRET"), "{words}");
}

/// The descriptors of this process, by what they are open to.
pub(crate) fn descriptors() -> Vec<String> {
    let open = std::fs::read_dir("/proc/self/fd").unwrap();
    let to = |entry: std::io::Result<std::fs::DirEntry>| std::fs::read_link(entry.unwrap().path());
    let mut all: Vec<String> = open.filter_map(|entry| Some(to(entry).ok()?.display().to_string())).collect();
    all.sort();
    all
}

/// The children of this process, zombies among them.
pub(crate) fn children() -> String {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    tasks.filter_map(|task| std::fs::read_to_string(task.unwrap().path().join("children")).ok()).collect()
}

/// Waits until this holds: a thread that ends closes its own a moment later.
pub(crate) async fn settle(holds: impl Fn() -> bool) {
    let settled = async {
        while !holds() {
            tokio::task::yield_now().await;
        }
    };
    let settled = tokio::time::timeout(Duration::from_secs(10), settled).await;
    assert!(settled.is_ok(), "children {:?}, descriptors {:#?}", children(), descriptors());
}

/// `ISOLATION_CYCLES` sets another number than 50.
async fn nothing_is_left_after_many_cycles() {
    let cycles = std::env::var("ISOLATION_CYCLES").map_or(50, |cycles| cycles.parse().unwrap());
    let stage = Stage::start().await;
    let model = stage.model("one");
    process_of(&model).await;
    model.unload(Duration::from_secs(20)).await.unwrap();
    let before = descriptors();
    for cycle in 0..cycles {
        let process = process_of(&model).await;
        if cycle % 10 == 0 {
            let stream =
                model.stream(Ask { chunks: 1, ..Act::Die(Fate::Kill).into() }, CallOptions::default()).await;
            let mut stream = stream.unwrap();
            while stream.next().await.is_some() {}
        }
        model.unload(Duration::from_secs(20)).await.unwrap();
        assert!(!is_there(process), "cycle {cycle}");
    }
    assert_eq!(children(), "", "no process and no zombie");
    settle(|| descriptors().len() <= before.len()).await;
    stage.finish().await;
}
