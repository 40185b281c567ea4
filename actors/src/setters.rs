//! The `with_` methods of settings and requests, which are `#[non_exhaustive]` and so cannot be written as
//! literals outside their crate.

/// Writes one `with_` method a line: it takes a value, stores it in the field of the argument's name, and
/// returns the whole. A path after the argument converts the value first (`Into::into`, say).
#[macro_export]
#[doc(hidden)]
macro_rules! setters {
    ($name:ident { $($method:ident($field:ident: $value:ty) $($convert:path)?;)* }) => {
        impl $name {
            $(
                #[doc = concat!("Sets [`", stringify!($field), "`](Self::", stringify!($field), ").")]
                #[must_use]
                pub fn $method(mut self, $field: $value) -> Self {
                    $(let $field = $convert($field);)?
                    self.$field = $field;
                    self
                }
            )*
        }
    };
}
