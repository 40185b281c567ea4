//! Letters: what the speakers of two pools send each other, in the format of `wire`. A large body goes before its letter, in
//! pieces, so that the exchange of load never waits for long, and no frame of a session is large.

use std::time::Duration;

use ractor::Message as RactorMessage;
use ractor::message::{BoxedDowncastErr, SerializedMessage};
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::router::{Boot, Message};
use crate::id::{Priority, Tenant};
use crate::wire;

/// Largest number of bytes of a body that goes with its letter, and of each piece of a larger one.
pub(crate) const PIECE: usize = 128 << 10;

/// A letter, and the starts of the two speakers: one that is addressed to an earlier start is not for this one.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Letter {
    pub(crate) from: Boot,
    pub(crate) to: Boot,
    pub(crate) what: What,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum What {
    /// A message of the router, with the request, chunk or result that belongs to it.
    Message { message: Message, body: Option<Body> },
    /// The next piece of a body.
    Piece { transfer: u64, bytes: ByteBuf },
    /// A piece has come; one more may go out.
    Got { transfer: u64 },
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Body {
    Here(ByteBuf),
    /// The pieces of this transfer, so many bytes together.
    Transfer {
        transfer: u64,
        length: u64,
    },
}

/// The body of a request.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Ask<R> {
    pub(crate) priority: Priority,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) tenant: Option<Tenant>,
    /// Time left until it has to have begun, and to have ended.
    pub(crate) begin_within: Duration,
    pub(crate) end_within: Option<Duration>,
    pub(crate) streams: bool,
    pub(crate) input: R,
}

impl RactorMessage for Letter {
    fn serializable() -> bool {
        true
    }

    fn serialize(self) -> Result<SerializedMessage, BoxedDowncastErr> {
        let args = wire::encode(&self).map_err(|_| BoxedDowncastErr)?;
        Ok(SerializedMessage::Cast { variant: String::new(), args, metadata: None })
    }

    fn deserialize(_: SerializedMessage) -> Result<Self, BoxedDowncastErr> {
        // A speaker's own message takes letters in.
        Err(BoxedDowncastErr)
    }
}
