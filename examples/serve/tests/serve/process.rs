//! The program as it is run: its models by default, its metrics as Prometheus reads them, and its end by a signal.
#![cfg(unix)]

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Child, ChildStdout, Command, Stdio};

use serde_json::json;

use crate::client::Client;

/// The program, which is killed if a test ends without its end.
pub(crate) struct Program {
    child: Child,
    out: BufReader<ChildStdout>,
    pub(crate) client: Client,
}

impl Program {
    /// Starts it with this key and further settings.
    pub(crate) fn start(key: &str, set: impl FnOnce(&mut Command) -> &mut Command) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_serve"));
        command.args(["--listen", "127.0.0.1:0", "--log", "warn"]).env("SERVE_API_KEY", key);
        let mut child = set(command.stdout(Stdio::piped())).spawn().unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        out.read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("listening on http://").expect("the address").parse().unwrap();
        let mut client = Client::new(address);
        client.headers.push(format!("Authorization: Bearer {key}"));
        Self { child, out, client }
    }

    /// Sends a signal, and gives whether all went well, with what was printed.
    pub(crate) fn end(mut self, signal: &str) -> (bool, String) {
        let sent = Command::new("kill").args([signal, &self.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
        let mut words = String::new();
        self.out.read_to_string(&mut words).unwrap();
        (self.child.wait().unwrap().success(), words)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The value of a metric with these labels.
fn value(metrics: &str, name: &str, labels: &str) -> Option<f64> {
    let line = metrics.lines().find(|line| line.starts_with(name) && line.contains(labels))?;
    line.rsplit(' ').next()?.parse().ok()
}

#[tokio::test]
async fn a_scrape_says_what_was_asked_and_a_signal_ends_cleanly() {
    let program = Program::start("secret", |command| command);
    let models = program.client.get("/v1/models").await.json().await;
    let names: Vec<&str> =
        models["data"].as_array().unwrap().iter().map(|model| model["id"].as_str().unwrap()).collect();
    assert_eq!(names, ["english", "chat", "describer", "painter"]);
    for _ in 0..3 {
        let request = json!({ "model": "english", "input": "A cat sleeps." });
        assert_eq!(program.client.post("/v1/embeddings", &request).await.status, 200);
    }
    let request = json!({ "model": "english", "input": "Hi", "dimensions": 100_000 });
    assert_eq!(program.client.post("/v1/embeddings", &request).await.status, 400);
    let response = program.client.get("/metrics").await;
    assert!(response.header("content-type").unwrap().starts_with("text/plain; version=0.0.4"));
    let metrics = response.text().await;
    // Every line is a comment, or a name, labels and a number.
    for line in metrics.lines().filter(|line| !line.is_empty() && !line.starts_with("# ")) {
        let number = line.rsplit(' ').next().unwrap();
        assert!(number.parse::<f64>().is_ok(), "{line}");
    }
    let model = "model=\"english\"";
    assert_eq!(value(&metrics, "model_actors_requests_succeeded_total{", model), Some(3.0));
    assert_eq!(value(&metrics, "model_actors_errors_total{", model), Some(1.0));
    assert_eq!(value(&metrics, "model_actors_request_seconds_count{", model), Some(3.0));
    let infinite = format!("{model},le=\"+Inf\"");
    assert_eq!(value(&metrics, "model_actors_request_seconds_bucket{", &infinite), Some(3.0));
    assert!(metrics.contains("# TYPE model_actors_request_seconds histogram"));
    assert!(metrics.contains("# HELP model_actors_requests_total"));
    let (well, words) = program.end("-TERM");
    assert!(well && words.contains("ended in") && words.contains(" 0 requests were cut off"), "{words}");
}
