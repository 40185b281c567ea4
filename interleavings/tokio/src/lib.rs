//! shuttle's tokio. What its oneshot channel does is no step of its own there; here it is, so that others may come between.

pub use shuttle_tokio::*;

/// As `tokio::sync`.
pub mod sync {
    pub use shuttle_tokio::sync::*;

    /// As `tokio::sync::oneshot`.
    pub mod oneshot {
        use std::future::Future;
        use std::pin::Pin;
        use std::task::{Context, Poll};

        use shuttle::sync::atomic::{AtomicBool, Ordering};
        use shuttle_tokio::sync::oneshot as inner;

        pub use inner::error;

        /// Gives the others a turn: whatever touches an atomic of shuttle does.
        fn step() {
            AtomicBool::new(false).load(Ordering::SeqCst);
        }

        /// The sending end.
        #[derive(Debug)]
        pub struct Sender<T>(inner::Sender<T>);

        /// The receiving end.
        #[derive(Debug)]
        pub struct Receiver<T>(inner::Receiver<T>);

        /// A channel for one value.
        pub fn channel<T>() -> (Sender<T>, Receiver<T>) {
            let (sender, receiver) = inner::channel();
            (Sender(sender), Receiver(receiver))
        }

        impl<T> Sender<T> {
            /// Sends the value.
            ///
            /// # Errors
            /// The value, if the receiver has gone or is closed.
            pub fn send(self, value: T) -> Result<(), T> {
                step();
                self.0.send(value)
            }
        }

        impl<T> Receiver<T> {
            /// Takes no value from now on but one that is there.
            pub fn close(&mut self) {
                step();
                self.0.close();
            }

            /// Looks for a value.
            ///
            /// # Errors
            /// There is none yet, or there will be none.
            pub fn try_recv(&mut self) -> Result<T, error::TryRecvError> {
                step();
                self.0.try_recv()
            }
        }

        impl<T> Drop for Receiver<T> {
            fn drop(&mut self) {
                if !std::thread::panicking() {
                    step();
                }
            }
        }

        impl<T> Future for Receiver<T> {
            type Output = Result<T, error::RecvError>;
            fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
                step();
                Pin::new(&mut self.0).poll(context)
            }
        }
    }
}
