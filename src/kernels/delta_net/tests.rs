//! Both ways of computing a gated delta net, whole and in pieces, and states that do not fit.

use super::*;
use crate::kernels::random;

const SIZES: DeltaNetSizes = DeltaNetSizes {
    key_heads: 2,
    value_heads: 6,
    order: ValueOrder::Grouped,
    key_size: 5,
    value_size: 18,
    taps: 3,
};

fn net() -> GatedDeltaNet {
    GatedDeltaNet {
        sizes: SIZES,
        convolution: random(0.0, 0.7, (SIZES.taps, SIZES.channels())),
        activation: Activation::Silu,
        log_rates: random(-1.0, 1.0, SIZES.value_heads),
        decay_bias: random(0.0, 1.0, SIZES.value_heads),
        norm: RmsNorm { weight: random(1.0, 0.3, SIZES.value_size), epsilon: 1e-6 },
    }
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// Rows of two sequences in passes of so many each, by `work`.
fn run(
    passes: &[[usize; 2]],
    work: impl Fn(&Tensor, &Tensor, &mut [LayerSegment<'_, DeltaNetState>]) -> Tensor,
) -> [Vec<f32>; 2] {
    let total = [0, 1].map(|which| passes.iter().map(|pass| pass[which]).sum::<usize>());
    let inputs = total.map(|count| {
        (random(0.0, 1.0, (count, SIZES.projected())), random(0.0, 1.0, (count, 2 * SIZES.value_heads)))
    });
    let mut states = [DeltaNetState::default(), DeltaNetState::default()];
    let (mut out, mut past) = ([Vec::new(), Vec::new()], [0; 2]);
    for lengths in passes {
        let part = |tensors: [&Tensor; 2]| {
            let parts = [0, 1].map(|which| tensors[which].narrow(0, past[which], lengths[which]).unwrap());
            Tensor::cat(&parts, 0).unwrap().contiguous().unwrap()
        };
        let projected = part([&inputs[0].0, &inputs[1].0]);
        let gates = part([&inputs[0].1, &inputs[1].1]);
        let parts = states.iter_mut().zip(past).zip(lengths);
        let mut segments: Vec<_> =
            parts.map(|((cache, past), length)| LayerSegment { cache, past, length: *length }).collect();
        for segment in &mut segments {
            segment.cache.begin(segment.past, segment.length).unwrap();
        }
        let rows = values(&work(&projected, &gates, &mut segments));
        let (first, second) = rows.split_at(lengths[0] * SIZES.values());
        out[0].extend_from_slice(first);
        out[1].extend_from_slice(second);
        past = [past[0] + lengths[0], past[1] + lengths[1]];
    }
    for state in &states {
        assert_eq!(state.bytes(), SIZES.state_bytes());
    }
    out
}

#[test]
fn both_ways_agree_and_pieces_give_the_bits_of_the_whole_whatever_the_threads() {
    for order in [ValueOrder::Grouped, ValueOrder::Tiled] {
        agree(&GatedDeltaNet { sizes: DeltaNetSizes { order, ..SIZES }, ..net() });
    }
}

fn agree(net: &GatedDeltaNet) {
    // A new pool's thread begins with the same random tensors.
    let each = |passes: &[[usize; 2]], on_host: bool, threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            run(passes, |projected, gates, segments| match on_host {
                true => net.on_cpu(projected, gates, segments).unwrap(),
                false => net.on_any(projected, gates, segments).unwrap(),
            })
        })
    };
    let pieces = [[1, 2], [30, 1], [2, 5], [7, 1]];
    let whole = each(&[[40, 9]], true, 1);
    assert_eq!(each(&[[40, 9]], true, 3), whole);
    assert_eq!(each(&pieces, true, 1), whole);
    for passes in [&[[40, 9]], &pieces[..]] {
        let other = each(passes, false, 1);
        let pairs = whole.iter().flatten().zip(other.iter().flatten());
        let difference = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(difference < 1e-5, "{difference}");
    }
}

#[test]
fn a_state_of_other_tokens_is_refused_and_one_that_begins_anew_is_empty() {
    let net = net();
    let projected = random(0.0, 1.0, (4, SIZES.projected()));
    let gates = random(0.0, 1.0, (4, 2 * SIZES.value_heads));
    let mut state = DeltaNetState::default();
    let mut read = |past| {
        let mut segments = [LayerSegment { cache: &mut state, past, length: 4 }];
        net.forward(&projected, &gates, &mut segments).map(|out| values(&out))
    };
    assert!(read(3).is_err());
    let first = read(0).unwrap();
    assert_ne!(read(4).unwrap(), first);
    // As after a pass that failed in a later layer.
    assert!(read(4).unwrap_err().to_string().contains("read again"));
    assert_eq!(read(0).unwrap(), first);
}

#[test]
fn what_does_not_fit_is_refused() {
    let net = net();
    let gates = random(0.0, 1.0, (2, 2 * SIZES.value_heads));
    for (width, length) in [(SIZES.channels(), 2), (SIZES.projected(), 1)] {
        let mut state = DeltaNetState::default();
        let mut segments = [LayerSegment { cache: &mut state, past: 0, length }];
        assert!(net.forward(&random(0.0, 1.0, (2, width)), &gates, &mut segments).is_err());
    }
}
