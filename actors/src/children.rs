//! The end of an actor's children before its own. ractor ends them with their parent but does not wait for them, and
//! each has its name in the registry until it has ended. Restarting them is left to supervision.

use std::time::Duration;

use ractor::ActorCell;

/// Stops the children of an actor and waits until they have ended, at most for so long.
pub(crate) async fn end_children(parent: &ActorCell, limit: Duration) {
    let children = parent.get_children();
    for child in &children {
        child.stop(Some("its parent ends".to_owned()));
    }
    let ended = async {
        for child in &children {
            // Bounded by the limit on all of them.
            let _ = child.wait(None).await;
        }
    };
    if tokio::time::timeout(limit, ended).await.is_err() {
        tracing::error!(?limit, "children of an actor that ends have not ended");
    }
}
