//! Real models whose workers crash on command, to see that their answers stay the same.

use candle_actors::model_actors::testing::{Fuse, HookedLoader};
use candle_actors::{Capability, Engine, Loader, ModelSpec};

/// Registers a model whose workers crash when the fuse is lit.
pub(crate) fn fragile<C: Capability>(
    engine: &Engine,
    id: &str,
    loader: impl Loader<C>,
    batching: impl Fn(ModelSpec<C>) -> ModelSpec<C>,
) -> Fuse {
    let fuse = Fuse::default();
    let burning = fuse.clone();
    let spec = ModelSpec::new(id, HookedLoader::new(loader, move || burning.burn()));
    engine.system().client::<C>().unwrap().register(batching(spec)).unwrap();
    fuse
}
