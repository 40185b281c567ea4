//! Message implementations under ractor's `cluster` feature, which removes its blanket one: each message type
//! then needs one of its own. No message is sent to another node.

/// Implements [`ractor::Message`] for a message type, generic over a capability `C` or not.
#[macro_export]
#[doc(hidden)]
macro_rules! impl_message {
    ($name:ident<C>) => {
        #[cfg(feature = "cluster")]
        impl<C: $crate::Capability> ractor::Message for $name<C> {}
    };
    ($name:ident) => {
        #[cfg(feature = "cluster")]
        impl ractor::Message for $name {}
    };
}
