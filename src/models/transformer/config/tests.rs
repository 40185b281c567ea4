//! Configurations that are refused, and the memory of those that are not.

use super::*;
use crate::error::Error;

const FILE: &str = "config.json";

fn encoder(sizes: Sizes) -> Result<TransformerConfig> {
    TransformerConfig::encoder(FILE.as_ref(), sizes, NormPlacement::Post, Activation::GeluErf, 1e-12)
}

#[test]
fn sizes_that_no_model_can_have_are_refused() {
    let good = Sizes { width: 8, intermediate: 16, layers: 1, heads: 2 };
    assert!(encoder(good).is_ok());
    for bad in [
        Sizes { heads: 0, ..good },
        Sizes { heads: 3, ..good },
        Sizes { width: 0, ..good },
        Sizes { width: usize::MAX, ..good },
        Sizes { intermediate: usize::MAX, ..good },
        Sizes { layers: usize::MAX, ..good },
    ] {
        assert!(matches!(encoder(bad), Err(Error::InvalidConfig { .. })), "{bad:?}");
    }
    assert!(Rope::plain(FILE.as_ref(), 3, 1e4).is_err());
    assert!(Rope::plain(FILE.as_ref(), 4, 0.0).is_err());
    assert!(Rope::plain(FILE.as_ref(), 4, f64::NAN).is_err());
}

#[test]
fn keys_that_are_there_twice_while_they_grow_are_counted() {
    let sizes = Sizes { width: 768, intermediate: 3072, layers: 12, heads: 12 };
    let config = TransformerConfig { workload: Workload::GrowingSequences, ..encoder(sizes).unwrap() };
    let more = config.scratch(1, 100_000).0 - config.scratch(1, 50_000).0;
    assert_eq!(more, 50_000 * 768 * 4);
}
