//! The examples, as a person runs them: each works offline without arguments, prints nothing but JSON lines
//! if it is asked to, and ends with one clear line on a bad model or input.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;

/// Longer than any example takes on a busy machine.
const LIMIT: Duration = Duration::from_secs(300);
const ALL: [&str; 5] = ["embed", "chat", "embed_image", "describe", "paint"];

struct Ended {
    is_success: bool,
    out: String,
    err: String,
}

/// Runs an example in a folder, with nothing on standard input.
async fn run(folder: &Path, example: &str, arguments: &[&str]) -> Ended {
    run_with(folder, example, arguments, "").await
}

/// Runs an example in a folder, with the given text on standard input.
async fn run_with(folder: &Path, example: &str, arguments: &[&str], input: &str) -> Ended {
    let mut command = tokio::process::Command::new(binary(example));
    command.args(arguments).current_dir(folder).kill_on_drop(true);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // One that has seen enough may be gone before it has read all.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes()).await;
    let output =
        tokio::time::timeout(LIMIT, child.wait_with_output()).await.expect("it ends in time").unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Ended { is_success: output.status.success(), out: text(output.stdout), err: text(output.stderr) }
}

/// Cargo builds the examples with the tests, beside the folder that this test is in.
fn binary(example: &str) -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    let name = format!("{example}{}", std::env::consts::EXE_SUFFIX);
    let path = tests.parent().unwrap().parent().unwrap().join("examples").join(name);
    assert!(path.is_file(), "{} is missing: run `cargo build --examples`", path.display());
    path
}

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

#[tokio::test]
async fn each_example_works_without_arguments() {
    let folder = folder();
    for example in ALL {
        let ended = run(folder.path(), example, &[]).await;
        assert!(ended.is_success && ended.err.is_empty(), "{example}: {}", ended.err);
        assert!(!ended.out.trim().is_empty(), "{example} says nothing");
        match example {
            "describe" => {
                let seen = "The picture shows a small red triangle above a large purple square.";
                assert_eq!(ended.out.trim(), seen);
            }
            "chat" => assert_eq!(ended.out.trim(), "The square is blue."),
            _ => {}
        }
    }
    let painted = run(folder.path(), "describe", &["painted.png"]).await;
    for thing in ["red circle left of", "blue square"] {
        assert!(painted.out.contains(thing), "{}", painted.out);
    }
}

#[tokio::test]
async fn documents_are_ordered_and_as_many_as_are_asked_for_are_shown() {
    let folder = folder();
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/reranking/bert");
    let asked = ["--model", model, "--query", "How long do cats sleep?"];
    let documents = ["Cats sleep for 15 hours a day.", "The bus was late.", "a"];
    let all = run(folder.path(), "rerank", &[&asked[..], &documents].concat()).await;
    assert!(all.is_success && all.err.is_empty(), "{}", all.err);
    assert_eq!(all.out.lines().count(), 3);
    let arguments = [&asked[..], &["--top", "1", "--json"]].concat();
    let best = run_with(folder.path(), "rerank", &arguments, &documents.join("\n")).await;
    let best: Value = serde_json::from_str(best.out.trim()).unwrap();
    let first = documents[best["index"].as_u64().unwrap() as usize];
    assert!(all.out.lines().next().unwrap().ends_with(first), "{best} {}", all.out);
    let none = run(folder.path(), "rerank", &asked).await;
    assert!(!none.is_success && none.err.contains("no documents"), "{}", none.err);
}

#[tokio::test]
async fn a_capability_of_ones_own_ranks_documents() {
    let folder = folder();
    let ended = run(folder.path(), "own_capability", &[]).await;
    assert!(ended.is_success && ended.err.is_empty(), "{}", ended.err);
    let ranked: Vec<&str> = ended.out.lines().filter_map(|line| line.split("  ").last()).collect();
    assert_eq!(ranked, ["When it rains, the cat comes in.", "The cat has eaten.", "The bus was late again."]);
}

/// The turns exceed the context of 256 tokens, so the oldest are dropped.
#[tokio::test]
async fn a_conversation_longer_than_the_context_continues() {
    let folder = folder();
    let question = "There is a small red circle left of a large blue square. What colour is the square?\n";
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/models/shapes-chat");
    let ended = run_with(folder.path(), "chat", &["--model", model], &question.repeat(12)).await;
    assert!(ended.is_success && ended.err.is_empty(), "{}", ended.err);
    assert_eq!(ended.out.matches("The square is blue.").count(), 12, "{}", ended.out);
}

/// The small model is trained on one scene in a conversation.
#[tokio::test]
async fn the_small_model_answers_each_line_in_a_new_conversation() {
    let folder = folder();
    let lines = "There is a small red circle left of a large blue square. What colour is the square?\n\
        There is a large green triangle. How many shapes are there?\n\
        I see a small black circle above a large yellow square. What shape is yellow?\n";
    let ended = run_with(folder.path(), "chat", &[], lines).await;
    assert!(ended.is_success && ended.err.is_empty(), "{}", ended.err);
    let answers: Vec<&str> = ended.out.lines().map(str::trim).collect();
    assert_eq!(answers, ["The square is blue.", "There is one.", "The square is yellow."]);
}

fn json(example: &str, ended: &Ended) -> Vec<Value> {
    assert!(ended.is_success && ended.err.is_empty(), "{example}: {}", ended.err);
    ended.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The keys of an object, in the order of the alphabet.
fn keys(line: &Value) -> Vec<&str> {
    let mut keys: Vec<&str> = line.as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    keys
}

#[tokio::test]
async fn with_json_each_line_is_an_object_and_nothing_else_is_printed() {
    let folder = folder();
    let ended = run(folder.path(), "embed", &["--json", "a cat", "a dog"]).await;
    let lines = json("embed", &ended);
    assert_eq!(lines.len(), 2);
    assert!(lines.iter().all(|line| keys(line) == ["embedding", "index", "text"]), "{}", ended.out);

    let ended = run(folder.path(), "embed_image", &["--json"]).await;
    let lines = json("embed_image", &ended);
    assert!(
        lines.iter().all(|line| keys(line) == ["embedding", "image", "index", "similarity"]),
        "{}",
        ended.out
    );

    for example in ["chat", "describe"] {
        let ended = run(folder.path(), example, &["--json", "--max-tokens", "5"]).await;
        let lines = json(example, &ended);
        let (last, pieces) = lines.split_last().unwrap();
        assert!(!pieces.is_empty() && pieces.iter().all(|line| keys(line) == ["text"]), "{}", ended.out);
        assert_eq!(keys(last), ["finish_reason", "usage"]);
        assert_eq!(
            (&last["finish_reason"], &last["usage"]["completion_tokens"]),
            (&"length".into(), &5.into())
        );
    }

    let ended = run(folder.path(), "paint", &["--json", "--steps", "3", "--out", "here.png"]).await;
    let lines = json("paint", &ended);
    let (last, steps) = lines.split_last().unwrap();
    assert!(steps.iter().all(|line| keys(line) == ["of", "step"]), "{}", ended.out);
    assert_eq!(steps.last().unwrap()["step"], steps.last().unwrap()["of"]);
    assert_eq!(*last, serde_json::json!({ "image": "here.png" }));
    assert!(folder.path().join("here.png").is_file());
}

#[tokio::test]
async fn a_bad_model_or_input_ends_with_one_clear_line() {
    let folder = folder();
    let no_model = ALL.map(|example| (example, vec!["--model", "./no/such/model"], "no/such/model"));
    let bad_inputs = [
        ("describe", vec!["no-picture.png"], "no-picture.png"),
        ("embed_image", vec!["no-picture.png"], "no-picture.png"),
        ("paint", vec!["--size", "60"], "512x512"),
        ("paint", vec!["--steps", "0"], "0 steps"),
        ("paint", vec!["--out", "no/folder/here.png"], "no/folder/here.png"),
        ("chat", vec!["--prompt", ""], "prompt"),
        ("chat", vec!["--max-tokens", "many"], "many"),
    ];
    for (example, arguments, named) in no_model.into_iter().chain(bad_inputs) {
        let ended = run(folder.path(), example, &arguments).await;
        assert!(!ended.is_success, "{example} {arguments:?} is content: {}", ended.out);
        assert!(ended.out.is_empty(), "{example} {arguments:?}: {}", ended.out);
        assert_eq!(ended.err.lines().count(), 1, "{example} {arguments:?}: {}", ended.err);
        assert!(ended.err.starts_with("error: ") && ended.err.contains(named), "{example}: {}", ended.err);
    }
}

/// The package on crates.io is without them.
#[tokio::test]
async fn missing_small_models_are_told_first() {
    let folder = folder();
    for example in ["tour", "measure"] {
        let ended = run(folder.path(), example, &["--models", "no/such/folder"]).await;
        let first = ended.err.lines().next().unwrap_or_default();
        assert!(!ended.is_success && first.contains("repository"), "{example}: {}", ended.err);
    }
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_process_is_killed_and_the_next_question_is_answered() {
    let ended = run(folder().path(), "isolated", &[]).await;
    assert!(ended.is_success && ended.err.is_empty(), "{}\n{}", ended.out, ended.err);
    for said in [
        "The same vectors and texts",
        "and its process is killed",
        "SIGKILL",
        "The next question is answered",
    ] {
        assert!(ended.out.contains(said), "{said}: {}", ended.out);
    }
}

#[tokio::test]
async fn the_tour_shows_all_of_it_and_leaves_nothing_behind() {
    let folder = folder();
    let ended = run(folder.path(), "tour", &["--out", "pictures"]).await;
    assert!(ended.is_success && ended.err.is_empty(), "{}\n{}", ended.out, ended.err);
    for said in [
        "running 64",
        "model The square is blue.",
        "model The red circle is.",
        "How many shapes? There are two.",
        "3 of 3 are the picture painted for it",
        "its reader is told: worker #",
        "replaces it",
        "0 B of",
        "Everything is back where it began.",
    ] {
        assert!(ended.out.contains(said), "{said}: {}", ended.out);
    }
    let is_under_load = |line: &str| line.contains("english  ") && !line.contains("queue 0  running 0");
    assert!(ended.out.lines().any(is_under_load), "no tree shows how callers wait: {}", ended.out);
    let nearest = ended.out.lines().skip_while(|line| !line.ends_with("A cat sleeps on the sofa.")).nth(1);
    assert!(nearest.is_some_and(|line| line.ends_with("A kitten naps on the couch.")), "{}", ended.out);
    let painted = [
        ["yellow square", "left of", "green circle"],
        ["purple square", "above", "green square"],
        ["blue circle", "left of", "green triangle"],
    ];
    for (number, words) in (1..).zip(painted) {
        let line =
            ended.out.lines().find(|line| line.contains(&format!("{number}.png  The picture"))).unwrap();
        let places = words.map(|word| line.find(word));
        assert!(places.is_sorted() && places[0].is_some(), "{number}: {line}");
    }
    for picture in 1..=3 {
        assert!(folder.path().join(format!("pictures/{picture}.png")).is_file());
    }
}
