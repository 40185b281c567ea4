//! Both ways of attention over caches, what caches take, and rows that do not fit.

use super::super::rotary::RotaryEmbedding;
use super::*;

/// Two sequences, one in its middle, the other at its beginning, then a token more of each.
fn run(layer: &CausalAttention, caches: &mut [KvCache; 2]) -> Vec<f32> {
    let frequencies = RotaryEmbedding::new(vec![1.0, 0.1, 0.01]);
    let width = (layer.heads + 2 * layer.kv_heads) * layer.size;
    let mut out = Vec::new();
    let mut past = [0, 0];
    for lengths in [[70, 0], [3, 9], [1, 1]] {
        let count = lengths[0] + lengths[1];
        let values = (0..count * width).map(|index| ((index + count) as f32 * 0.37).sin());
        let qkv = Tensor::from_iter(values, &Device::Cpu).unwrap().reshape((count, width)).unwrap();
        let mut rope = RopeTable::new(3);
        for (past, length) in past.iter().zip(lengths) {
            rope.extend(&frequencies, (*past..past + length).map(|place| [place as u32; 3]));
        }
        let parts = caches.iter_mut().zip(past).zip(lengths);
        let segments = parts.map(|((cache, past), length)| LayerSegment { cache, past, length });
        let mut segments: Vec<LayerSegment<'_>> = segments.filter(|segment| segment.length > 0).collect();
        let on_host = matches!(segments[0].cache, KvCache::Host { .. });
        let mut attend = |layer: &CausalAttention, rows: &Tensor| {
            let rows = match on_host {
                true => layer.on_cpu(rows, &rope, &mut segments),
                false => layer.on_any(rows, &rope, &mut segments),
            };
            rows.unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        let rows = attend(layer, &qkv);
        // A later layer with the same queries sees the same keys and values.
        let shared = CausalAttention { key_values: KeyValues::Shared, ..layer.clone() };
        let queries = qkv.narrow(1, 0, layer.heads * layer.size).unwrap().contiguous().unwrap();
        assert_eq!(attend(&shared, &queries), rows);
        out.extend(rows);
        past = [past[0] + lengths[0], past[1] + lengths[1]];
    }
    out
}

#[test]
fn both_ways_of_attention_agree_whatever_is_seen() {
    let norm = || RmsNorm { weight: Tensor::new(&[1.5f32; 8], &Device::Cpu).unwrap(), epsilon: 1e-6 };
    for mask in [AttentionMask::Causal, AttentionMask::SlidingWindow(5), AttentionMask::Full] {
        let sinks = vec![0.5, -1.0, 2.0, 30.0];
        let table: Vec<f32> = (0..8 * 4).map(|number| (number as f32 * 0.7).sin()).collect();
        let relative = Some(Arc::new(RelativeBias::causal(&table, 4, 20)));
        for (soft_cap, head_norms, sinks, relative_bias) in [
            (None, None, vec![], None),
            (Some(2.0), Some((norm(), norm())), vec![], None),
            (None, None, sinks, None),
            (None, None, vec![], relative),
        ] {
            let layer = CausalAttention {
                heads: 4,
                kv_heads: 2,
                size: 8,
                scale: 0.35,
                soft_cap,
                mask,
                value_norm: head_norms.is_some().then(norm),
                head_norms,
                key_values: KeyValues::Own,
                sinks,
                relative_bias,
            };
            let host = || KvCache::new(16, &Device::Cpu).unwrap();
            let device = || {
                let empty =
                    Tensor::zeros((KV_CACHE_STEP, 16), candle_core::DType::F32, &Device::Cpu).unwrap();
                KvCache::Device { keys: empty.copy().unwrap(), values: empty.copy().unwrap(), tokens: 0 }
            };
            let ours = run(&layer, &mut [host(), host()]);
            let theirs = run(&layer, &mut [device(), device()]);
            let difference = ours.iter().zip(&theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(difference < 1e-5, "{mask:?}: {difference}");
        }
    }
}

#[test]
fn no_more_is_taken_than_is_counted_however_long_a_sequence_becomes() {
    let layer = CausalAttention {
        heads: 2,
        kv_heads: 2,
        size: 4,
        scale: 0.5,
        soft_cap: None,
        mask: AttentionMask::Causal,
        head_norms: None,
        value_norm: None,
        key_values: KeyValues::Own,
        sinks: Vec::new(),
        relative_bias: None,
    };
    let empty = Tensor::zeros((KV_CACHE_STEP, 8), candle_core::DType::F32, &Device::Cpu).unwrap();
    let device = KvCache::Device { keys: empty.clone(), values: empty.copy().unwrap(), tokens: 0 };
    for mut cache in [KvCache::new(8, &Device::Cpu).unwrap(), device] {
        let mut past = 0;
        for length in [100, 50, 300, 1, 61, 1, 700, 128] {
            let qkv = Tensor::zeros((length, 24), candle_core::DType::F32, &Device::Cpu).unwrap();
            let on_host = matches!(cache, KvCache::Host { .. });
            let mut segments = [LayerSegment { cache: &mut cache, past, length }];
            match on_host {
                true => layer.on_cpu(&qkv, &RopeTable::new(0), &mut segments).unwrap(),
                false => layer.on_any(&qkv, &RopeTable::new(0), &mut segments).unwrap(),
            };
            past += length;
            assert_eq!(cache.bytes(), KvCache::bytes_for(past, 8), "{past} tokens");
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let layer = CausalAttention {
        heads: 2,
        kv_heads: 1,
        size: 4,
        scale: 0.5,
        soft_cap: None,
        mask: AttentionMask::Causal,
        head_norms: None,
        value_norm: None,
        key_values: KeyValues::Own,
        sinks: Vec::new(),
        relative_bias: None,
    };
    let qkv = Tensor::zeros((2, 16), candle_core::DType::F32, &Device::Cpu).unwrap();
    let mut cache = KvCache::new(4, &Device::Cpu).unwrap();
    for (past, length) in [(0, 1), (1, 2)] {
        let mut segments = [LayerSegment { cache: &mut cache, past, length }];
        assert!(layer.forward(&qkv, &RopeTable::new(0), &mut segments).is_err());
    }
}
