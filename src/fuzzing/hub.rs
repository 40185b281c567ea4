//! Answers of a hub that lies. A server on this machine gives them to the hub's own client, byte for byte; a second one
//! stands for the foreign server that an answer may lead to, and must never see the token.

use std::collections::VecDeque;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use reqwest::Url;

use crate::hub::HubFiles;
use crate::hub_settings::HubSettings;

/// Separates the answers of one input.
const SEPARATOR: u8 = 0x1e;
/// Stands in an answer for the address of the foreign server.
const FOREIGN: &str = "foreign.test";
const TOKEN: &str = "hf_fuzzed_secret";
/// Files that the client asks for, one of them in a folder.
const FILES: [&str; 2] = ["config.json", "1_Pooling/config.json"];

type Answers = Arc<Mutex<VecDeque<Vec<u8>>>>;

struct Servers {
    own: Url,
    foreign: Url,
    answers: Answers,
    folder: PathBuf,
}

static SERVERS: LazyLock<Servers> = LazyLock::new(|| {
    let answers = Answers::default();
    let folder = super::folder("hub");
    Servers { own: serve(answers.clone(), true), foreign: serve(answers.clone(), false), answers, folder }
});

/// The answers that the hub gives to the requests for two files, one after another. Whatever they are, nothing is
/// written outside of the cache, and the token goes to the hub alone.
pub fn hub(bytes: &[u8]) {
    let servers = &*SERVERS;
    let answers: VecDeque<_> =
        bytes.split(|byte| *byte == SEPARATOR).map(|answer| servers.addressed(answer)).collect();
    if !answers.iter().all(|answer| servers.stays_here(answer)) {
        return;
    }
    *servers.answers.lock().unwrap() = answers;
    let cache = servers.folder.join("cache");
    let settings = HubSettings::default()
        .with_endpoint(servers.own.as_str())
        .with_cache(&cache)
        .with_token(TOKEN)
        .with_retries(0)
        .with_stall_limit(Duration::from_secs(1));
    let (files, context) = (HubFiles::open(&settings, "somebody/tiny", None), super::context());
    for file in FILES {
        match files.fetch(file, &context) {
            Ok(Some(path)) => assert!(path.starts_with(&cache), "{}", path.display()),
            Ok(None) => drop(files.missing(file, &context)),
            Err(error) => assert!(!error.to_string().contains(TOKEN), "{error}"),
        }
    }
    let _ = files.exists("model.safetensors", &context);
    servers.answers.lock().unwrap().clear();
    let beside: Vec<_> = entries(&servers.folder).collect();
    assert!(beside.iter().all(|path| *path == cache), "{beside:?}");
    let in_cache: Vec<_> = entries(&cache).collect();
    let is_known = |path: &PathBuf| path.ends_with("models--somebody--tiny") || path.ends_with(".locks");
    assert!(in_cache.iter().all(is_known), "{in_cache:?}");
    let _ = fs::remove_dir_all(&cache);
}

impl Servers {
    /// The answer with the addresses of the two servers, whose ports differ from run to run.
    fn addressed(&self, answer: &[u8]) -> Vec<u8> {
        let text = String::from_utf8_lossy(answer);
        text.replace(FOREIGN, self.foreign.authority()).into_bytes()
    }

    /// Whether no redirect leads to another machine, so that fuzzing disturbs nobody.
    fn stays_here(&self, answer: &[u8]) -> bool {
        let text = String::from_utf8_lossy(answer);
        let mut lines = text.lines().filter(|line| line.to_lowercase().contains("location"));
        lines.all(|line| {
            let location = line.split_once(':').map(|(_, value)| value.trim()).unwrap_or_default();
            let to = self.own.join(location);
            to.is_ok_and(|to| [self.own.authority(), self.foreign.authority()].contains(&to.authority()))
        })
    }
}

fn entries(folder: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path())
}

/// Starts a server that gives each request the next answer.
fn serve(answers: Answers, sees_token: bool) -> Url {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let Some(request) = read_request(&stream) else { continue };
            if !sees_token && request.contains(TOKEN) {
                // A panic of this thread alone would go unseen.
                eprintln!("the token came to a foreign server: {request}");
                std::process::abort();
            }
            let answer = answers.lock().unwrap().pop_front();
            let _ = (&stream).write_all(&answer.unwrap_or_default());
        }
    });
    Url::parse(&format!("http://{address}/")).unwrap()
}

fn read_request(mut stream: &TcpStream) -> Option<String> {
    stream.set_read_timeout(Some(Duration::from_secs(1))).ok()?;
    let (mut request, mut piece) = (Vec::new(), [0; 4096]);
    while !request.ends_with(b"\r\n\r\n") {
        match stream.read(&mut piece) {
            Ok(read @ 1..) => request.extend(piece.get(..read)?),
            _ => return None,
        }
    }
    String::from_utf8(request).ok()
}
