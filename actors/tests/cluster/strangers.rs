//! Strangers: whoever does not know the secret, speaks no protocol, says nothing, or is of another version is refused, and
//! nothing else is disturbed.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use model_actors::{CallOptions, ractor};
use ractor::message::{BoxedDowncastErr, SerializedMessage};
use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};
use ractor_cluster::node::NodeConnectionMode;
use ractor_cluster::{IncomingEncryptionMode, NodeServer, client_connect};

use crate::node::{Node, NodeOptions, Say};
use crate::{Test, join, on_a_runtime, served, until};

pub(crate) const TESTS: &[Test] = &[
    ("a_wrong_secret_is_refused", a_wrong_secret_is_refused),
    ("garbage_and_silence_disturb_nobody", garbage_and_silence_disturb_nobody),
    ("a_peer_of_another_version_is_refused", a_peer_of_another_version_is_refused),
    ("tls_with_verified_peers", tls_with_verified_peers),
];

const STRANGER: &str = "--stranger";

fn a_wrong_secret_is_refused() {
    let mut there = Node::start(&NodeOptions::new("b").model("echo", "1")).unwrap();
    let stranger = NodeOptions { secret: "another secret of nodes".to_owned(), ..NodeOptions::new("x") };
    let mut stranger = Node::start(&stranger.peer(there.address)).unwrap();
    on_a_runtime(async {
        let (system, client) = join(NodeOptions::new("a"), [&there, &stranger]).await;
        let model = served(&system, &client, "echo", 1).await;
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(2) {
            model.call(Say::after("", Duration::from_millis(100)), CallOptions::default()).await.unwrap();
            assert_eq!(stranger.ask("peers").unwrap(), "no peers");
            assert!(!there.ask("peers").unwrap().contains('x'));
        }
        system.shutdown().await;
    });
}

fn garbage_and_silence_disturb_nobody() {
    let there = Node::start(&NodeOptions::new("b").model("echo", "1")).unwrap();
    let address = there.address;
    // More than are welcomed at a time say nothing.
    let silent: Vec<TcpStream> = (0..100).map(|_| TcpStream::connect(address).unwrap()).collect();
    let mut garbage = Vec::new();
    for length in [1_usize, 8, 9, 100, 100_000] {
        let mut stream = TcpStream::connect(address).unwrap();
        let bytes: Vec<u8> = (0..length).map(|_| fastrand::u8(..)).collect();
        stream.write_all(&bytes).unwrap();
        garbage.push(stream);
    }
    // A frame that says it is small, and holds no message.
    let mut framed = TcpStream::connect(address).unwrap();
    framed.write_all(&[0, 0, 0, 0, 0, 0, 0, 4, 0xff, 0xff, 0xff, 0xff]).unwrap();
    on_a_runtime(async {
        let (system, client) = join(NodeOptions::new("a"), [&there]).await;
        let model = served(&system, &client, "echo", 1).await;
        model.call(Say::default(), CallOptions::default()).await.unwrap();
        // Those that say nothing are shown out.
        let mut first = silent.into_iter().next().unwrap();
        first.set_read_timeout(Some(Duration::from_secs(15))).unwrap();
        let ended = tokio::task::spawn_blocking(move || first.read(&mut [0; 16]));
        let ended = ended.await.unwrap();
        let is_closed = |kind| matches!(kind, ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted);
        assert!(
            matches!(&ended, Ok(0)) || ended.as_ref().is_err_and(|error| is_closed(error.kind())),
            "{ended:?}"
        );
        model.call(Say::default(), CallOptions::default()).await.unwrap();
        system.shutdown().await;
    });
    drop((garbage, framed));
}

/// A speaker of a version to come.
struct Newer;

struct Word(Vec<u8>);

impl ractor::Message for Word {
    fn serializable() -> bool {
        true
    }

    fn serialize(self) -> Result<SerializedMessage, BoxedDowncastErr> {
        Ok(SerializedMessage::Cast { variant: String::new(), args: self.0, metadata: None })
    }

    fn deserialize(message: SerializedMessage) -> Result<Self, BoxedDowncastErr> {
        match message {
            SerializedMessage::Cast { args, .. } => Ok(Self(args)),
            _ => Err(BoxedDowncastErr),
        }
    }
}

const SCOPE: &str = "model-actors/example/echo";

impl Actor for Newer {
    type Msg = Word;
    type State = ();
    type Arguments = ();

    async fn pre_start(&self, myself: ActorRef<Word>, (): ()) -> Result<(), ActorProcessingErr> {
        ractor::pg::monitor_scope(SCOPE.to_owned(), myself.get_cell());
        ractor::pg::join_scoped(SCOPE.to_owned(), "x#0000000000000001".to_owned(), vec![myself.get_cell()]);
        Ok(())
    }

    async fn handle(&self, _: ActorRef<Word>, word: Word, (): &mut ()) -> Result<(), ActorProcessingErr> {
        println!("heard {} bytes", word.0.len());
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        _: ActorRef<Word>,
        event: SupervisionEvent,
        (): &mut (),
    ) -> Result<(), ActorProcessingErr> {
        let SupervisionEvent::ProcessGroupChanged(ractor::pg::GroupChangeMessage::Join(_, _, cells)) = event
        else {
            return Ok(());
        };
        for cell in cells.into_iter().filter(|cell| !cell.get_id().is_local()) {
            // A version to come, and then no message at all.
            for bytes in [vec![0, 99, 1, 2, 3], vec![], vec![0, 1, 0xc1], vec![0xff; 1000]] {
                let _ = cell.send_message(Word(bytes));
            }
            println!("spoke");
        }
        Ok(())
    }
}

/// Is a node with a speaker of another version, and does not return, if this process was started for that.
pub(crate) fn be_a_stranger_if_asked() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [mark, address] = arguments.as_slice() else { return };
    if mark != STRANGER {
        return;
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let secret = NodeOptions::new("x").secret;
        let (raw, isolated) = (IncomingEncryptionMode::Raw, NodeConnectionMode::Isolated);
        let server = NodeServer::new(0, secret, "x".to_owned(), "x".to_owned(), Some(raw), Some(isolated))
            .with_listen_addr([127, 0, 0, 1].into());
        let (server, _) = Actor::spawn(None, server, ()).await.unwrap();
        Actor::spawn(None, Newer, ()).await.unwrap();
        client_connect(&server, address.as_str()).await.unwrap();
    });
    // Until it is killed, or whoever started it is gone.
    let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
    std::process::exit(0);
}

fn a_peer_of_another_version_is_refused() {
    let mut there = Node::start(&NodeOptions::new("b").model("echo", "1")).unwrap();
    let mut stranger = Command::new(std::env::current_exe().unwrap())
        .args([STRANGER, &there.address.to_string()])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    // It is connected, and has said its words.
    let mut said = std::io::BufReader::new(stranger.stdout.take().unwrap());
    let mut line = String::new();
    while !line.contains("spoke") {
        line.clear();
        assert!(std::io::BufRead::read_line(&mut said, &mut line).unwrap() > 0);
    }
    on_a_runtime(async {
        let (system, client) = join(NodeOptions::new("a"), [&there]).await;
        let model = served(&system, &client, "echo", 1).await;
        for _ in 0..10 {
            model.call(Say::default(), CallOptions::default()).await.unwrap();
            let peers = there.ask("peers").unwrap();
            assert!(!peers.contains('x'), "{peers}");
        }
        system.shutdown().await;
    });
    stranger.kill().unwrap();
    stranger.wait().unwrap();
}

/// Makes an authority and certificates of these nodes that it has signed, in a new folder.
fn certificates(folder: &str, nodes: &[&str]) -> Option<PathBuf> {
    let path = std::env::temp_dir().join(format!("{folder}-{}", std::process::id()));
    std::fs::create_dir_all(&path).unwrap();
    let openssl = |arguments: &[&str]| {
        let run = Command::new("openssl").args(arguments).current_dir(&path).output();
        run.is_ok_and(|run| {
            assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
            true
        })
    };
    let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
    let authority = ["req", "-x509", "-subj", "/CN=authority", "-days", "2", "-keyout", "authority.key"];
    if !openssl(&[&authority[..], &["-out", "authority.pem"], &key].concat()) {
        return None;
    }
    for node in nodes {
        let (pem, private) = (format!("{node}.pem"), format!("{node}.key"));
        let subject = format!("/CN={node}");
        let signed = ["req", "-x509", "-CA", "authority.pem", "-CAkey", "authority.key", "-subj", &subject];
        let for_loopback =
            ["-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE"];
        let files = ["-days", "2", "-keyout", &private, "-out", &pem];
        assert!(openssl(&[&signed[..], &for_loopback, &files, &key].concat()));
    }
    Some(path)
}

fn tls_with_verified_peers() {
    let Some(folder) = certificates("cluster", &["a", "b"]) else {
        return println!("TLS is left out: openssl is not at hand");
    };
    let strange = certificates("strangers", &["x"]).unwrap();
    let tls = |name: &str| NodeOptions { tls: Some(folder.clone()), ..NodeOptions::new(name) };
    let mut there = Node::start(&tls("b").model("echo", "1")).unwrap();
    let address = there.address;
    // One with a certificate of another authority, one without TLS, and some that say nothing.
    let other = NodeOptions { tls: Some(strange.clone()), ..NodeOptions::new("x") };
    let mut others = [
        Node::start(&other.peer(address)).unwrap(),
        Node::start(&NodeOptions::new("y").peer(address)).unwrap(),
    ];
    let silent: Vec<TcpStream> = (0..10).map(|_| TcpStream::connect(address).unwrap()).collect();
    on_a_runtime(async {
        let (system, client) = join(tls("a"), [&there]).await;
        let model = served(&system, &client, "echo", 1).await;
        let stream = model.stream(Say::chunks(100, Duration::ZERO), CallOptions::default()).await.unwrap();
        assert_eq!(stream.output().await.unwrap().node, "b");
        // Over some dials of the others.
        for _ in 0..20 {
            model.call(Say::after("", Duration::from_millis(25)), CallOptions::default()).await.unwrap();
            let peers = there.ask("peers").unwrap();
            assert!(!peers.contains('x') && !peers.contains('y'), "{peers}");
            others.iter_mut().for_each(|other| assert_eq!(other.ask("peers").unwrap(), "no peers"));
        }
        until("b to know a", || there.ask("peers").unwrap().contains('a').then_some(())).await;
        system.shutdown().await;
    });
    drop(silent);
    std::fs::remove_dir_all(folder).unwrap();
    std::fs::remove_dir_all(strange).unwrap();
}
