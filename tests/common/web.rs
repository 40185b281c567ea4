//! Web server of images, with faults on purpose.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// Response of a path.
#[derive(Debug, Clone)]
pub(crate) enum Answer {
    /// These bytes.
    Whole(Vec<u8>),
    /// These bytes with the content type of a text.
    CalledText(Vec<u8>),
    /// These bytes without a content length.
    NoLength(Vec<u8>),
    /// Redirect to another address.
    Redirect(String),
    /// Redirect without an address.
    RedirectToNowhere,
    /// Only a status.
    Status(u16),
    /// Nothing at all, until the client gives up.
    Silent,
    /// The head, and then nothing until the client gives up.
    Stalled,
    /// A byte now and then, until the client gives up.
    Trickle,
    /// Zeros until the client gives up, without a content length.
    Endless,
    /// This content length, and then nothing until the client gives up.
    Claims(u64),
    /// Half of these bytes.
    Cut(Vec<u8>),
    /// No HTTP.
    Garbage,
}

/// Server that runs until it is dropped.
pub(crate) struct WebServer {
    address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    answers: Vec<(String, Answer)>,
    /// Every request: its first line and its headers.
    requests: Mutex<Vec<String>>,
    connections: Mutex<usize>,
    ended: AtomicBool,
}

impl WebServer {
    /// Listens on an address of this machine: all of 127.0.0.0/8 is.
    pub(crate) fn start(address: &str, answers: impl FnOnce(&str) -> Vec<(&'static str, Answer)>) -> Self {
        let listener = TcpListener::bind((address, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let answers = answers(&format!("http://{address}"));
        let shared = Arc::new(Shared {
            answers: answers.into_iter().map(|(path, answer)| (path.to_owned(), answer)).collect(),
            requests: Mutex::default(),
            connections: Mutex::default(),
            ended: AtomicBool::new(false),
        });
        let serving = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if serving.ended.load(Ordering::Acquire) {
                    break;
                }
                *serving.connections.lock().unwrap() += 1;
                let shared = Arc::clone(&serving);
                // A client that hangs up early is part of the tests.
                std::thread::spawn(move || drop(shared.serve(stream)));
            }
        });
        Self { address, shared, thread: Some(thread) }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The address of a path.
    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    /// Every request so far: first line and headers.
    pub(crate) fn requests(&self) -> Vec<String> {
        self.shared.requests.lock().unwrap().clone()
    }

    /// Number of connections so far.
    pub(crate) fn connections(&self) -> usize {
        *self.shared.connections.lock().unwrap()
    }
}

impl Drop for WebServer {
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
        while reader.read_line(&mut request)? > 2 {}
        let path = request.split_whitespace().nth(1).unwrap_or_default().to_owned();
        self.requests.lock().unwrap().push(request);
        let path = path.split('?').next().unwrap_or_default();
        let answer = self.answers.iter().find(|(known, _)| known == path).map(|(_, answer)| answer);
        match answer.unwrap_or(&Answer::Status(404)) {
            Answer::Whole(body) => {
                head(
                    &mut stream,
                    200,
                    &format!("Content-Type: image/png\r\nContent-Length: {}\r\n", body.len()),
                )?;
                stream.write_all(body)
            }
            Answer::CalledText(body) => {
                head(
                    &mut stream,
                    200,
                    &format!("Content-Type: text/plain\r\nContent-Length: {}\r\n", body.len()),
                )?;
                stream.write_all(body)
            }
            Answer::NoLength(body) => {
                head(&mut stream, 200, "")?;
                stream.write_all(body)
            }
            Answer::Redirect(location) => head(&mut stream, 302, &format!("Location: {location}\r\n")),
            Answer::RedirectToNowhere => head(&mut stream, 302, ""),
            Answer::Status(status) => head(&mut stream, *status, "Content-Length: 0\r\n"),
            Answer::Silent => wait(reader),
            Answer::Stalled => {
                head(&mut stream, 200, "Content-Length: 100\r\n")?;
                wait(reader)
            }
            Answer::Trickle => {
                head(&mut stream, 200, "")?;
                // Returns when the client hangs up, or else after the time.
                stream.set_read_timeout(Some(Duration::from_millis(5)))?;
                while stream.write_all(b"x").is_ok() && !matches!(stream.read(&mut [0]), Ok(0)) {}
                Ok(())
            }
            Answer::Endless => {
                head(&mut stream, 200, "")?;
                while stream.write_all(&[0; 4096]).is_ok() {}
                Ok(())
            }
            Answer::Claims(length) => {
                head(&mut stream, 200, &format!("Content-Length: {length}\r\n"))?;
                wait(reader)
            }
            Answer::Cut(body) => {
                head(&mut stream, 200, &format!("Content-Length: {}\r\n", body.len()))?;
                stream.write_all(&body[..body.len() / 2])
            }
            Answer::Garbage => stream.write_all(b"\0\x01\x02 this is no HTTP\r\n\r\n"),
        }
    }
}

/// Ends when the client hangs up.
fn wait(mut reader: BufReader<TcpStream>) -> std::io::Result<()> {
    reader.read_to_end(&mut Vec::new()).map(drop)
}

fn head(stream: &mut TcpStream, status: u16, headers: &str) -> std::io::Result<()> {
    write!(stream, "HTTP/1.1 {status} -\r\nConnection: close\r\n{headers}\r\n")
}
