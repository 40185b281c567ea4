//! The child's end: the main thread takes orders and tells of progress, a thread beside it sizes, loads and runs the model.
//! The process ends as soon as its parent does, whichever way, and whatever its threads do. The requests that it is sent
//! are in `asked`.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, Signal, getpid, getrlimit, kill_process, setrlimit};
use serde_bytes::ByteBuf;

use super::frames::{Hello, Order, Report, Run};
use super::transport::{Connection, Reader, Writer};
use super::{IsolatedLoader, KnownLoader};
use crate::batch::{Batch, Joining};
use crate::capability::Portable;
use crate::error::{Cause, Failure};
use crate::model::{LoadContext, Model};
use crate::wire;

mod asked;
#[cfg(feature = "testing")]
pub mod sabotage;
mod work;

use asked::{Arrivals, Desk};
pub(super) use work::serve_work;

/// Longest time between two looks at the progress of the model.
const LOOK: Duration = Duration::from_millis(50);
/// The same where it does nothing. What the parent says is taken in at once.
const LOOK_WHILE_IDLE: Duration = Duration::from_secs(60);
/// Time within which a parent says what its child shall be.
const HELLO_LIMIT: Duration = Duration::from_secs(30);

/// Serves a parent with a loader of one type.
pub(super) type Serve = fn(Hello, Reader, Arc<Writer>) -> !;

/// Report of a child of any capability.
type AnyReport = Report<(), ()>;

/// An order for the model's thread.
enum Work {
    Size,
    Load,
    Run { run: Run, joins: bool },
}

/// Ends this process at once, without a word and without destructors, which may hang.
fn die() -> ! {
    let _ = kill_process(getpid(), Signal::KILL);
    std::process::abort()
}

/// Is the child that the parent asks for.
pub(super) fn run(version: &OsStr, loaders: &[KnownLoader]) -> ! {
    // Without it, the end of the connection tells.
    #[cfg(target_os = "linux")]
    let _ = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
    // When memory runs out, the kernel shall take it before the application. Anybody may ask for that.
    #[cfg(target_os = "linux")]
    let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
    if version != OsStr::new(&wire::VERSION.to_string()) {
        eprintln!("this process was started as a child by another version of its program; it ends");
        die();
    }
    let Ok(stream) = take_connection() else { die() };
    let Ok(writer) = stream.try_clone() else { die() };
    let (mut reader, writer) = (Reader::new(stream), Arc::new(Writer::new(writer)));
    let Some(hello) = read_hello(&mut reader) else {
        eprintln!("this process was started as a child, but no parent says what it shall do; it ends");
        die();
    };
    if let Err(cause) = limit_address_space(hello.address_space) {
        refuse(&writer, cause);
    }
    let known =
        loaders.iter().find(|loader| loader.capability == hello.capability && loader.name == hello.loader);
    match known {
        Some(loader) => (loader.serve)(hello, reader, writer),
        None => refuse(&writer, Cause::new(format!("no child knows the loader {:?}", hello.loader))),
    }
}

/// Takes the connection off the standard input, which is empty from now on, so that model code cannot read from it.
fn take_connection() -> io::Result<UnixStream> {
    let connection = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
    rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
    Ok(UnixStream::from(connection))
}

fn read_hello(reader: &mut Reader) -> Option<Hello> {
    let began = Instant::now();
    while began.elapsed() < HELLO_LIMIT {
        let connection = reader.fill(LOOK).ok()?;
        if let Some(message) = reader.inbox.next().ok()? {
            return wire::decode(&wire::read::<ByteBuf>(message).ok()?).ok();
        }
        if connection == Connection::Closed {
            return None;
        }
    }
    None
}

fn limit_address_space(limit: Option<u64>) -> Result<(), Cause> {
    let Some(limit) = limit else { return Ok(()) };
    let limit = address_space(limit, getrlimit(Resource::As));
    setrlimit(Resource::As, limit)
        .map_err(|error| Cause::new(format!("its address space cannot be limited: {error}")))
}

/// The limit that is asked for, or the hard one that is there, which only a privileged process may raise, if that is lower.
fn address_space(asked: u64, there: Rlimit) -> Rlimit {
    let limit = Some(there.maximum.map_or(asked, |maximum| maximum.min(asked)));
    Rlimit { current: limit, maximum: limit }
}

/// Says why this process is of no use, and waits for its end.
fn refuse(writer: &Writer, cause: Cause) -> ! {
    let _ = writer.send(&AnyReport::NotLoaded(Failure::permanent(cause)));
    std::process::exit(1)
}

/// Serves the parent until the connection ends.
pub(super) fn serve<C: Portable, L: IsolatedLoader<C>>(
    hello: Hello,
    mut reader: Reader,
    writer: Arc<Writer>,
) -> ! {
    let loader: L = match wire::decode(&hello.settings) {
        Ok(loader) => loader,
        Err(error) => refuse(&writer, Cause::of(&error)),
    };
    let context = LoadContext::detached(&hello.model);
    let desk = Arc::new(Desk::<C>::new(writer.clone()));
    let (orders, received) = mpsc::channel();
    let works = Arc::new(AtomicUsize::new(0));
    let parts = (loader, context.clone(), desk.clone(), writer.clone(), works.clone());
    let builder = std::thread::Builder::new().name(hello.model.short().to_owned());
    let serve = move || {
        let (loader, context, desk, writer, works) = parts;
        ModelThread { loader, context, desk, writer, works, model: None }.serve(&received);
    };
    if let Err(error) = builder.spawn(serve) {
        refuse(&writer, Cause::of(&error));
    }
    #[cfg(feature = "testing")]
    sabotage::offer(writer.clone());
    let (mut told, mut looked) = (context.gauge.ticks(), Instant::now());
    loop {
        #[cfg(feature = "testing")]
        sabotage::stand_still_if_asked();
        // The first orders may have come with the first message.
        loop {
            let order = match reader.inbox.next() {
                Ok(Some(message)) => wire::read::<Order<C::Request>>(message),
                Ok(None) => break,
                Err(_) => die(),
            };
            match order {
                Ok(order) => {
                    if let Some(work) = obey(order, &desk) {
                        works.fetch_add(1, Ordering::AcqRel);
                        // A thread that is gone has said why.
                        let _ = orders.send(work);
                    }
                }
                // The parent is of the same executable; what it cannot say is a fault of memory.
                Err(_) => die(),
            }
        }
        let ticks = context.gauge.ticks();
        if ticks != told && looked.elapsed() >= LOOK {
            (told, looked) = (ticks, Instant::now());
            let _ = writer.send(&AnyReport::Progress(context.progress.snapshot()));
        }
        // A model that does nothing makes no progress to tell of.
        let patience = if works.load(Ordering::Acquire) > 0 { LOOK } else { LOOK_WHILE_IDLE };
        if !matches!(reader.fill(patience), Ok(Connection::Open)) {
            die();
        }
    }
}

/// Carries an order out, and returns it if it is the model's thread's to do.
fn obey<C: Portable>(order: Order<C::Request>, desk: &Desk<C>) -> Option<Work> {
    match order {
        Order::Ask { run, request, input } => desk.put(run, request, input),
        Order::Cancel { request } => desk.cancel(request),
        Order::Credit { request, chunks } => desk.credit(request, chunks),
        Order::Ping => desk.pong(),
        Order::Size => return Some(Work::Size),
        Order::Load => return Some(Work::Load),
        Order::Start { run, joins } => return Some(Work::Run { run, joins }),
    }
    None
}

struct ModelThread<C: Portable, L> {
    loader: L,
    context: LoadContext,
    desk: Arc<Desk<C>>,
    writer: Arc<Writer>,
    /// Number of orders that it has not carried out yet.
    works: Arc<AtomicUsize>,
    model: Option<Box<dyn Model<C>>>,
}

impl<C: Portable, L: IsolatedLoader<C>> ModelThread<C, L> {
    fn serve(mut self, orders: &mpsc::Receiver<Work>) {
        while let Ok(work) = orders.recv() {
            let done = catch_unwind(AssertUnwindSafe(|| match work {
                Work::Size => self.size(),
                Work::Load => self.load(),
                Work::Run { run, joins } => self.run(run, joins),
            }));
            if let Err(panic) = done {
                let _ = self.writer.send(&AnyReport::Panicked(Cause::of_panic(panic)));
                break;
            }
            self.works.fetch_sub(1, Ordering::AcqRel);
        }
        // The parent kills this process once it has read why; a destructor of the model must not come before that.
        std::mem::forget(self.model);
    }

    fn size(&self) {
        let sized = self.loader.footprint(&self.context);
        let report = sized.map_or_else(AnyReport::NotLoaded, AnyReport::Sized);
        let _ = self.writer.send(&report);
    }

    fn load(&mut self) {
        let loaded = self.loader.load(&self.context).and_then(|weights| {
            let footprint = weights.footprint();
            weights.build(&self.context).map(|model| (model, footprint))
        });
        let report = match loaded {
            Ok((model, footprint)) => {
                self.model = Some(model);
                AnyReport::Loaded(footprint)
            }
            Err(failure) => AnyReport::NotLoaded(failure),
        };
        self.context.progress.end();
        let _ = self.writer.send(&report);
    }

    fn run(&mut self, run: Run, joins: bool) {
        let Some(model) = &mut self.model else { return };
        let gauge = &self.context.gauge;
        let mut arrivals = Arrivals { desk: &self.desk, gauge };
        let items = arrivals.take();
        let joining: Option<&mut dyn Joining<C>> = if joins { Some(&mut arrivals) } else { None };
        let mut batch = Batch::new(items, gauge, joining);
        let result = model.run(&mut batch);
        drop(batch);
        let report = match model.health() {
            Ok(()) => AnyReport::Done { run, failure: result.err() },
            Err(cause) => AnyReport::Panicked(cause),
        };
        // From here on nothing of this run is sent any more.
        self.desk.close(run);
        let _ = self.writer.send(&report);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_of_the_address_space_is_never_raised() {
        let limits = |maximum, asked| {
            let limit = address_space(asked, Rlimit { current: Some(10), maximum });
            (limit.current, limit.maximum)
        };
        assert_eq!(limits(None, 100), (Some(100), Some(100)));
        assert_eq!(limits(Some(200), 100), (Some(100), Some(100)));
        assert_eq!(limits(Some(50), 100), (Some(50), Some(50)));
    }
}
