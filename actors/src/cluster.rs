//! Pools on other machines: a node of a cluster tells its peers what its pools serve, sends them requests that they serve
//! sooner, and runs those that they send, as far as it has granted them slots. A remote pool is a peer that accepts or
//! refuses, never a worker of this one; supervision stays local.
//!
//! The router decides, purely. `settings` is how a node joins, `letters` what goes over the wire, `elsewhere` what clients
//! know of it all. Carrying the decisions out is left to `node`, and sessions to `ractor_cluster`.

pub mod router;
mod settings;
mod letters;
mod elsewhere;

pub(crate) use elsewhere::{Elsewhere, ElsewhereCall};
pub(crate) use letters::{Ask, Body, Letter, PIECE, What};
pub(crate) use settings::host_of;
pub use settings::{ClusterConfig, ClusterTls};
