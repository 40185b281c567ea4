//! Server for the part of the hub's protocol that downloads need, with faults on purpose.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use sha1::Digest as _;

/// The one repository that it has.
pub(crate) const REPOSITORY: &str = "somebody/tiny";
/// The commit that its main branch is at.
pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// Fault of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The metadata request is answered with this status.
    Status(u16),
    /// The connection closes in the middle of the content.
    Cut,
    /// The content is shorter than the metadata announced.
    Short,
    /// The content has one wrong byte.
    Flipped,
    /// Half of the content comes, and then nothing, until the client gives up.
    Stalled,
    /// The content lies on another server, at `/content`.
    Elsewhere(SocketAddr),
    /// The checksum is this.
    Checksum(&'static str),
    /// The content is claimed to have so many bytes.
    Length(u64),
    /// The same, and only once it is asked for.
    LateLength(u64),
    /// The content lies at `/content` of another server, of which the address looks like a path here.
    Backslash(SocketAddr),
}

/// Server that runs until it is dropped.
pub(crate) struct HubServer {
    address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    files: HashMap<String, Vec<u8>>,
    faults: HashMap<String, Fault>,
    requests: Mutex<Vec<String>>,
    /// Number of requests with a token.
    authorized: Mutex<usize>,
    ended: AtomicBool,
}

impl HubServer {
    /// Serves these files, with the given faults.
    pub(crate) fn start(files: Vec<(&str, Vec<u8>)>, faults: &[(&str, Fault)]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            files: files.into_iter().map(|(name, content)| (name.to_owned(), content)).collect(),
            faults: faults.iter().map(|(name, fault)| ((*name).to_owned(), *fault)).collect(),
            requests: Mutex::default(),
            authorized: Mutex::default(),
            ended: AtomicBool::new(false),
        });
        let serving = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if serving.ended.load(Ordering::Acquire) {
                    break;
                }
                let shared = Arc::clone(&serving);
                // A client that hangs up early is part of the tests.
                std::thread::spawn(move || drop(shared.serve(stream)));
            }
        });
        Self { address, shared, thread: Some(thread) }
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Every request so far: method and path.
    pub(crate) fn requests(&self) -> Vec<String> {
        self.shared.requests.lock().unwrap().clone()
    }

    /// Number of requests with a token so far.
    pub(crate) fn authorized(&self) -> usize {
        *self.shared.authorized.lock().unwrap()
    }
}

impl Drop for HubServer {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Release);
        // Wakes the thread that waits for connections.
        drop(TcpStream::connect(self.address));
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Shared {
    fn serve(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut request = String::new();
        reader.read_line(&mut request)?;
        loop {
            let mut header = String::new();
            if reader.read_line(&mut header)? == 0 || header.trim().is_empty() {
                break;
            }
            if header.to_lowercase().starts_with("authorization: bearer ") {
                *self.authorized.lock().unwrap() += 1;
            }
        }
        let mut words = request.split_whitespace();
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        self.requests.lock().unwrap().push(format!("{method} {path}"));
        if let Some(rest) = path.strip_prefix(&format!("/api/models/{REPOSITORY}")) {
            let known = ["", "/revision/main", &format!("/revision/{COMMIT}")].contains(&rest);
            let body = format!(r#"{{"id":"{REPOSITORY}","sha":"{COMMIT}"}}"#);
            return respond(&mut stream, if known { 200 } else { 404 }, "", body.as_bytes());
        }
        let file =
            path.strip_prefix(&format!("/{REPOSITORY}/resolve/")).and_then(|rest| rest.split_once('/'));
        match file {
            Some(("main" | COMMIT, file)) => self.serve_file(&mut stream, reader, method, file),
            _ => respond(&mut stream, 404, "", b"nothing here"),
        }
    }

    fn serve_file(
        &self,
        stream: &mut TcpStream,
        mut reader: BufReader<TcpStream>,
        method: &str,
        file: &str,
    ) -> std::io::Result<()> {
        let fault = self.faults.get(file).copied();
        if let Some(Fault::Status(status)) = fault {
            return respond(stream, status, "", b"refused");
        }
        let commit = format!("X-Repo-Commit: {COMMIT}\r\n");
        let Some(content) = self.files.get(file) else {
            return respond(stream, 404, &commit, b"no such file");
        };
        let sum = match fault {
            Some(Fault::Checksum(sum)) => sum.to_owned(),
            _ => checksum(file, content),
        };
        if let Some(Fault::Elsewhere(address) | Fault::Backslash(address)) = fault {
            let length = content.len();
            let linked = format!("X-Linked-ETag: \"{sum}\"\r\nX-Linked-Size: {length}\r\n");
            let begin = if matches!(fault, Some(Fault::Backslash(_))) { "/\\" } else { "http://" };
            let location = format!("Location: {begin}{address}/content\r\n");
            return respond(stream, 302, &format!("{commit}{linked}{location}"), b"");
        }
        let headers = format!("{commit}ETag: \"{sum}\"\r\n");
        let half = &content[..content.len() / 2];
        match fault {
            Some(Fault::LateLength(_)) if method == "HEAD" => {
                return write!(stream, "HTTP/1.1 200 -\r\nConnection: close\r\n{headers}\r\n");
            }
            Some(Fault::Length(length) | Fault::LateLength(length)) => {
                head(stream, 200, &headers, length as usize)?;
                return if method == "HEAD" { Ok(()) } else { stream.write_all(half) };
            }
            _ => {}
        }
        if method == "HEAD" {
            return head(stream, 200, &headers, content.len());
        }
        match fault {
            Some(Fault::Short) => respond(stream, 200, &headers, half),
            Some(Fault::Cut) => {
                head(stream, 200, &headers, content.len())?;
                stream.write_all(half)
            }
            Some(Fault::Flipped) => {
                let mut content = content.clone();
                *content.last_mut().unwrap() ^= 1;
                respond(stream, 200, &headers, &content)
            }
            Some(Fault::Stalled) => {
                head(stream, 200, &headers, content.len())?;
                stream.write_all(half)?;
                // Ends when the client hangs up.
                reader.read_to_end(&mut Vec::new()).map(drop)
            }
            _ => respond(stream, 200, &headers, content),
        }
    }
}

fn respond(stream: &mut TcpStream, status: u16, headers: &str, body: &[u8]) -> std::io::Result<()> {
    head(stream, status, headers, body.len())?;
    stream.write_all(body)
}

fn head(stream: &mut TcpStream, status: u16, headers: &str, length: usize) -> std::io::Result<()> {
    write!(stream, "HTTP/1.1 {status} -\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n")
}

/// As the hub names content: large files by SHA-256, the others as git does.
fn checksum(file: &str, content: &[u8]) -> String {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    if file.ends_with(".safetensors") {
        return hex(&sha2::Sha256::digest(content));
    }
    let mut hasher = sha1::Sha1::new();
    hasher.update(format!("blob {}\0", content.len()));
    hasher.update(content);
    hex(&hasher.finalize())
}
