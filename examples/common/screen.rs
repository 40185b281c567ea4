//! Output of the demonstrations: lines with a time stamp, and below them, on a terminal, the current state
//! and the tree, redrawn in place. If standard output is no terminal, the lines are plain and the tree is
//! printed after each act.

use std::time::{Duration, Instant};

use candle_actors::{Event, System, SystemStatus};
use console::{Term, style, truncate_str};
use tokio::sync::{broadcast, mpsc};

use crate::words;

/// Time between two drawings of the tree.
const FRAME: Duration = Duration::from_millis(80);

/// As wide as a time stamp.
const INDENT: &str = "           ";

/// Item to show.
#[derive(Debug)]
pub(crate) enum Line {
    /// A new act begins.
    Act(String),
    /// Something worth saying.
    Tell(String),
    /// Lines to keep as they are.
    Keep(Vec<String>),
    /// Lines that change, shown on a terminal until something else is said.
    Live(Vec<String>),
    /// It is time to look at the tree, which a plain output shows only then.
    Tree,
}

/// Sender of the items of the acts.
pub(crate) struct Stage(mpsc::Sender<Line>);

impl Stage {
    pub(crate) fn new(lines: mpsc::Sender<Line>) -> Self {
        Self(lines)
    }

    pub(crate) async fn act(&self, title: &str) {
        self.show(Line::Act(title.to_owned())).await;
    }

    pub(crate) async fn tell(&self, words: &str) {
        self.show(Line::Tell(words.to_owned())).await;
    }

    pub(crate) async fn keep(&self, lines: Vec<String>) {
        self.show(Line::Keep(lines)).await;
    }

    pub(crate) async fn live(&self, lines: Vec<String>) {
        self.show(Line::Live(lines)).await;
    }

    pub(crate) async fn tree(&self) {
        self.show(Line::Tree).await;
    }

    async fn show(&self, line: Line) {
        // Without a screen there is nobody to tell.
        let _ = self.0.send(line).await;
    }
}

/// The terminal, or a plain output.
pub(crate) struct Screen {
    terminal: Term,
    began: Instant,
    acts: usize,
    /// The changing part, between the lines said and the tree.
    live: Vec<String>,
    /// Lines that stand below the last line said.
    drawn: usize,
}

impl Screen {
    pub(crate) fn new() -> Self {
        Self { terminal: Term::buffered_stdout(), began: Instant::now(), acts: 0, live: Vec::new(), drawn: 0 }
    }

    /// Shows everything until the acts are over.
    pub(crate) async fn follow(
        mut self,
        system: System,
        mut events: broadcast::Receiver<Event>,
        mut lines: mpsc::Receiver<Line>,
    ) -> Self {
        let mut frames = tokio::time::interval(FRAME);
        loop {
            tokio::select! {
                // Events first, so that what happened stands before what is said about it.
                biased;
                Ok(event) = events.recv() => {
                    if let Some(words) = words::sentence(&event) {
                        self.stamped(&words, &system.status());
                    }
                }
                line = lines.recv() => match line {
                    Some(line) => self.line(line, &system.status()),
                    None => break,
                },
                _ = frames.tick() => self.redraw(&system.status()),
            }
        }
        self.clear();
        self
    }

    /// Says something at the end of all lines.
    pub(crate) fn say(&mut self, text: &str) {
        self.write(text);
        self.flush();
    }

    fn line(&mut self, line: Line, status: &SystemStatus) {
        match line {
            Line::Act(title) => {
                self.acts += 1;
                let title = style(format!("{}. {title}", self.acts)).bold();
                self.clear();
                self.write(&format!("\n{title}"));
                self.redraw(status);
            }
            Line::Tell(words) => {
                self.live.clear();
                self.stamped(&style(words).italic().to_string(), status);
            }
            Line::Keep(lines) => {
                self.live.clear();
                self.clear();
                for line in lines {
                    self.write(&format!("{INDENT}{line}"));
                }
                self.redraw(status);
            }
            Line::Live(lines) => {
                self.live = lines;
                self.redraw(status);
            }
            Line::Tree if self.terminal.is_term() => {}
            Line::Tree => {
                for line in words::tree(status) {
                    self.write(&format!("{INDENT}{line}"));
                }
                self.flush();
            }
        }
    }

    fn stamped(&mut self, words: &str, status: &SystemStatus) {
        let stamp = style(format!("{:8.3} s", self.began.elapsed().as_secs_f64())).dim();
        self.clear();
        self.write(&format!("{stamp} {words}"));
        self.redraw(status);
    }

    fn redraw(&mut self, status: &SystemStatus) {
        if self.terminal.is_term() {
            self.clear();
            let (rows, columns) = self.terminal.size();
            let rows = usize::from(rows).saturating_sub(1);
            let mut lines: Vec<String> = self.live.iter().map(|line| format!("{INDENT}{line}")).collect();
            lines.push(style("─".repeat(columns.into())).dim().to_string());
            let tree = words::tree(status);
            lines.extend(if lines.len() + tree.len() <= rows { tree } else { words::short_tree(status) });
            lines.truncate(rows);
            for line in &lines {
                self.write(&truncate_str(line, columns.into(), "…"));
            }
            self.drawn = lines.len();
        }
        self.flush();
    }

    fn clear(&mut self) {
        // A terminal that is gone sees nothing; the show goes on.
        let _ = self.terminal.clear_last_lines(std::mem::take(&mut self.drawn));
    }

    fn write(&self, line: &str) {
        let _ = self.terminal.write_line(line);
    }

    fn flush(&self) {
        let _ = self.terminal.flush();
    }
}
