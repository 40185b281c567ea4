//! A child process as its parent has it: started from the executable that runs, and killed and reaped when it is dropped,
//! so that neither a zombie nor an orphan is left. It belongs to the worker's thread that started it.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus};

use super::frames::Hello;
use super::transport::Link;
use super::{MARKER, ProcessEnd, ProcessOptions};
use crate::error::{Cause, Failure};
use crate::wire;

/// Variables of the environment that a child inherits: none of them holds a secret.
const ENVIRONMENT: [&str; 16] = [
    "PATH",
    "HOME",
    "USER",
    "LANG",
    "TZ",
    "TMPDIR",
    "LD_LIBRARY_PATH",
    "DYLD_LIBRARY_PATH",
    "DYLD_FALLBACK_LIBRARY_PATH",
    "XDG_CACHE_HOME",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "RAYON_NUM_THREADS",
    "RUST_BACKTRACE",
    "RUST_LOG",
    "RUST_MIN_STACK",
];

/// Beginnings of the names of further ones.
const FAMILIES: [&str; 6] = ["LC_", "CUDA_", "NVIDIA_", "OMP_", "MKL_", "KMP_"];

/// Name of a child among the processes of the machine, before that of its model.
const NAME: &str = "model-actors-child";

/// A running child and the connection to it. Dropping it kills the process and waits for its end.
pub(super) struct Process {
    child: Child,
    pub(super) link: Link,
}

impl Process {
    /// Starts a child and says what it shall be.
    pub(super) fn start(options: &ProcessOptions, hello: &Hello) -> Result<Self, Failure> {
        let (here, there) = UnixStream::pair().map_err(not_started)?;
        let mut command = Command::new(executable().map_err(not_started)?);
        command
            .arg0(format!("{NAME} {}", hello.model))
            .stdin(OwnedFd::from(there))
            .env_clear()
            .env(MARKER, wire::VERSION.to_string());
        let usual = |name: &str| {
            ENVIRONMENT.contains(&name) || FAMILIES.iter().any(|family| name.starts_with(family))
        };
        let asked_for = |name: &str| options.environment.iter().any(|asked| asked == name);
        command.envs(std::env::vars_os().filter(|(name, _)| {
            name.to_str().is_some_and(|name| name != MARKER && (usual(name) || asked_for(name)))
        }));
        // What a terminal sends to the application is not for its children: they end with their workers.
        command.process_group(0);
        let child = command.spawn().map_err(not_started)?;
        let link = Link::new(here).map_err(not_started);
        let mut process = match link {
            Ok(link) => Self { child, link },
            Err(failure) => {
                end(child);
                return Err(failure);
            }
        };
        // The first message has the version with it.
        let hello = wire::encode(hello).map(serde_bytes::ByteBuf::from);
        hello
            .and_then(|hello| process.link.send(&hello))
            .map_err(|error| Failure::permanent(Cause::of(&error)))?;
        Ok(process)
    }

    /// Kills the process, unless it has ended by itself, and says how it ended.
    pub(super) fn end(&mut self) -> Cause {
        // A process that is ending already keeps the status that it ends with.
        let _ = self.child.kill();
        // Without a status somebody else has waited for it.
        Cause::with_data(&self.child.wait().map_or(ProcessEnd::Unknown, end_of))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}

fn end(mut child: Child) {
    let _ = child.kill();
    let _ = child.wait();
}

/// The executable that runs, even if its file has been replaced.
fn executable() -> io::Result<std::path::PathBuf> {
    match cfg!(target_os = "linux") {
        true => Ok("/proc/self/exe".into()),
        false => std::env::current_exe(),
    }
}

fn not_started(error: io::Error) -> Failure {
    Failure::failed(format!("no process could be started for it: {error}"))
}

fn end_of(status: ExitStatus) -> ProcessEnd {
    match (status.signal(), status.code()) {
        (Some(number), _) => ProcessEnd::Signal { number },
        (None, Some(status)) => ProcessEnd::Exited { status },
        (None, None) => ProcessEnd::Unknown,
    }
}
