//! A client that shows the bytes: one request a connection, over a plain socket.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Patience with a machine that does much else.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// A request to a server.
pub(crate) struct Client {
    pub(crate) address: SocketAddr,
    /// Further header lines.
    pub(crate) headers: Vec<String>,
}

/// A response whose body has not been read.
pub(crate) struct Response {
    pub(crate) status: u16,
    headers: Vec<(String, String)>,
    reader: BufReader<TcpStream>,
    is_chunked: bool,
    /// Bytes that have come and were not asked for yet.
    buffer: Vec<u8>,
}

impl Client {
    pub(crate) fn new(address: SocketAddr) -> Self {
        Self { address, headers: Vec::new() }
    }

    pub(crate) async fn get(&self, path: &str) -> Response {
        self.send("GET", path, "").await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Response {
        self.send("POST", path, &body.to_string()).await
    }

    pub(crate) async fn send(&self, method: &str, path: &str, body: &str) -> Response {
        self.send_bytes(method, path, body.as_bytes()).await
    }

    pub(crate) async fn send_bytes(&self, method: &str, path: &str, body: &[u8]) -> Response {
        let stream = self.write_bytes(method, path, body).await;
        timeout(PATIENCE, Response::read(stream)).await.expect("no response came")
    }

    /// Sends a request, and reads nothing.
    pub(crate) async fn write(&self, method: &str, path: &str, body: &str) -> TcpStream {
        self.write_bytes(method, path, body.as_bytes()).await
    }

    async fn write_bytes(&self, method: &str, path: &str, body: &[u8]) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n");
        if !body.is_empty() {
            head += &format!("Content-Length: {}\r\n", body.len());
            if !self.headers.iter().any(|line| line.starts_with("Content-Type:")) {
                head += "Content-Type: application/json\r\n";
            }
        }
        self.headers.iter().for_each(|line| head += &format!("{line}\r\n"));
        stream.write_all(&[head.as_bytes(), b"\r\n", body].concat()).await.unwrap();
        stream
    }
}

impl Response {
    async fn read(stream: TcpStream) -> Self {
        let mut reader = BufReader::new(stream);
        let status = line(&mut reader).await;
        let status = status.split(' ').nth(1).expect("a status line").parse().unwrap();
        let mut headers = Vec::new();
        loop {
            let line = line(&mut reader).await;
            let Some((name, value)) = line.split_once(':') else { break };
            headers.push((name.to_lowercase(), value.trim().to_owned()));
        }
        let is_chunked =
            headers.iter().any(|(name, value)| name == "transfer-encoding" && value == "chunked");
        Self { status, headers, reader, is_chunked, buffer: Vec::new() }
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// More of the body; false at its end.
    async fn more(&mut self) -> bool {
        if !self.is_chunked {
            return self.reader.read_buf(&mut self.buffer).await.unwrap() > 0;
        }
        let size = line(&mut self.reader).await;
        let size = usize::from_str_radix(&size, 16).expect("the size of a chunk");
        let begin = self.buffer.len();
        self.buffer.resize(begin + size, 0);
        self.reader.read_exact(&mut self.buffer[begin..]).await.unwrap();
        line(&mut self.reader).await;
        size > 0
    }

    pub(crate) async fn text(mut self) -> String {
        timeout(PATIENCE, async { while self.more().await {} }).await.expect("the body did not end");
        String::from_utf8(self.buffer).unwrap()
    }

    pub(crate) async fn json(self) -> Value {
        let text = self.text().await;
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    /// The next server-sent event: its name and its data. `None` at the end.
    pub(crate) async fn event(&mut self) -> Option<(String, String)> {
        timeout(PATIENCE, self.next_event()).await.expect("no event came")
    }

    async fn next_event(&mut self) -> Option<(String, String)> {
        loop {
            while let Some(end) = self.buffer.windows(2).position(|pair| pair == b"\n\n") {
                let event: Vec<u8> = self.buffer.drain(..end + 2).collect();
                let event = String::from_utf8(event).unwrap();
                let field = |name: &str| {
                    let values = event.lines().filter_map(|line| line.strip_prefix(name));
                    values.map(str::trim_start).collect::<Vec<_>>().join("\n")
                };
                // A comment keeps the connection alive.
                if event.lines().any(|line| line.starts_with("data:")) {
                    return Some((field("event:"), field("data:")));
                }
            }
            if !self.more().await {
                return None;
            }
        }
    }

    /// All events as JSON, and whether `[DONE]` was the last.
    pub(crate) async fn events(mut self) -> (Vec<Value>, bool) {
        let mut events = Vec::new();
        while let Some((_, data)) = self.event().await {
            if data == "[DONE]" {
                return (events, self.event().await.is_none());
            }
            events.push(serde_json::from_str(&data).unwrap());
        }
        (events, false)
    }
}

async fn line(reader: &mut BufReader<TcpStream>) -> String {
    let mut line = String::new();
    reader.read_line(&mut line).await.unwrap();
    line.trim_end().to_owned()
}
