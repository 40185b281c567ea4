//! A child without a model: it does one piece of work after another on a thread beside its main thread, which sees the end
//! of its parent.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc;

use super::super::IsolatedWork;
use super::super::frames::{Hello, Order, Report, Run};
use super::super::transport::{Connection, Reader, Writer};
use super::{LOOK_WHILE_IDLE, die, refuse};
use crate::error::{Cause, Failure};
use crate::id::RequestId;
use crate::wire;

/// Does the parent's work until the connection ends.
pub(in crate::isolation) fn serve_work<W: IsolatedWork>(
    hello: Hello,
    mut reader: Reader,
    writer: Arc<Writer>,
) -> ! {
    let (orders, received) = mpsc::channel();
    let builder = std::thread::Builder::new().name(hello.loader);
    let told = writer.clone();
    if let Err(error) = builder.spawn(move || work_off::<W>(&received, &told)) {
        refuse(&writer, Cause::of(&error));
    }
    #[cfg(feature = "testing")]
    super::sabotage::offer(writer);
    loop {
        #[cfg(feature = "testing")]
        super::sabotage::stand_still_if_asked();
        loop {
            let order = match reader.inbox.next() {
                Ok(Some(message)) => wire::read::<Order<W::Input>>(message),
                Ok(None) => break,
                Err(_) => die(),
            };
            // A thread that is gone has said why. The parent is of the same executable; what it cannot say is a fault of memory.
            match order {
                Ok(Order::Ask { run, request, input }) => drop(orders.send((run, request, input))),
                _ => die(),
            }
        }
        if !matches!(reader.fill(LOOK_WHILE_IDLE), Ok(Connection::Open)) {
            die();
        }
    }
}

fn work_off<W: IsolatedWork>(orders: &mpsc::Receiver<(Run, RequestId, W::Input)>, writer: &Writer) {
    while let Ok((_, request, input)) = orders.recv() {
        let output = match catch_unwind(AssertUnwindSafe(|| W::work(input))) {
            Ok(output) => output,
            Err(panic) => {
                let _ = writer.send(&Report::<(), W::Output>::Panicked(Cause::of_panic(panic)));
                return;
            }
        };
        if let Err(error) = writer.send(&Report::<(), W::Output>::Finished { request, output }) {
            let failure = Failure::invalid_input(Cause::of(&error));
            let _ = writer.send(&Report::<(), W::Output>::Failed { request, failure });
        }
    }
}
