//! An HTTP server with OpenAI's endpoints over [`candle_actors`], as an example: a file for each endpoint, which turns
//! JSON into a request of the library and its output back into JSON. Queues, memory, deadlines and crashes are the
//! library's; it knows nothing of HTTP.
//!
//! The modules are listed in reading order, and each imports only those above it.

mod json;
mod error;
mod fields;
mod tools;
mod server;
mod body;
mod events;
mod settings;
mod writing;
mod logprobs;
mod answer;
mod messages;
mod chat;
mod completions;
mod embeddings;
mod rerank;
mod png;
mod images;
mod mask;
mod edits;
mod models;
mod health;
mod metrics;
mod page;
mod traces;
mod guard;
mod connections;
mod run;

pub use metrics::record;
pub use run::serve;
pub use server::Server;
pub use traces::Traces;
