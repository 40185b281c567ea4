//! Speed of a decoder of about 100 million parameters: one stream, eight together, a prompt. To be run by
//! hand: `cargo test --release -p candle-actors --lib decoder::speed -- --ignored --nocapture`.

use std::time::Instant;

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use serde_json::json;

use super::names::LLAMA;
use super::{Decoder, FAMILIES, load};
use crate::architecture;
use crate::error::Result;
use crate::kernels::ggml::GgmlType;
use crate::kernels::packed::{Arithmetic, PackedLinear, QuantizedRows, RowUse};
use crate::kernels::random;
use crate::models::transformer::{Cache, Linears, MatrixOrder, Projection, Segment, Tensors};

/// Random weights, plain or in blocks.
struct Random(Option<(GgmlDType, u32)>);

impl Tensors for Random {
    fn contains(&self, name: &str) -> bool {
        !LLAMA.heads.iter().any(|head| name.starts_with(head))
    }

    fn tensor(&self, _: &str, shape: &[usize]) -> Result<Tensor> {
        Ok(Tensor::ones(shape, candle_core::DType::F32, &Device::Cpu)?)
    }

    fn packed(&self, layers: &Linears<'_>, _: RowUse) -> Result<PackedLinear> {
        let (out_dim, in_dim) = (layers.out_dim(), layers.in_dim);
        let values = random(0.0, 0.03, (out_dim, in_dim));
        let Some((kind, number)) = self.0 else {
            return PackedLinear::new(values.flatten_all()?.to_vec1()?, in_dim, None, &Device::Cpu);
        };
        let bytes = QTensor::quantize(&values, kind)?.data()?.into_owned();
        let dtype = GgmlType::from_number(number).unwrap();
        let rows = vec![QuantizedRows { dtype, bytes, out_dim }];
        PackedLinear::quantized(rows, in_dim, None, &Device::Cpu, RowUse::LookedUp, Arithmetic::EightBit)
    }

    fn stacked(&self, layers: &Linears<'_>, count: usize, _: MatrixOrder) -> Result<Vec<Projection>> {
        (0..count).map(|_| self.projection(layers)).collect()
    }
}

fn decoder(weights: Random) -> Decoder {
    let config = json!({
        "model_type": "llama", "vocab_size": 16000, "hidden_size": 768, "intermediate_size": 3072,
        "num_hidden_layers": 12, "num_attention_heads": 12, "num_key_value_heads": 4, "tie_word_embeddings": true
    });
    let config = architecture::find(FAMILIES, "text to text", "config.json".as_ref(), &config).unwrap();
    load::load(&config, config.names, &weights, &weights, &Device::Cpu).unwrap()
}

/// Seconds that the calling thread had of a processor so far, or that have passed where nobody tells.
fn clock(start: Instant) -> f64 {
    let told = std::fs::read_to_string("/proc/thread-self/schedstat").ok();
    let nanoseconds = told.and_then(|line| line.split(' ').next()?.parse::<f64>().ok());
    nanoseconds.map_or_else(|| start.elapsed().as_secs_f64(), |nanoseconds| nanoseconds * 1e-9)
}

/// Seconds of a pass of `length` tokens of each of `continuous_batching` sequences.
fn seconds(decoder: &Decoder, streams: usize, length: usize, passes: usize) -> f64 {
    let mut caches: Vec<Cache> = (0..streams).map(|_| decoder.cache(0).unwrap()).collect();
    let tokens = vec![7; streams * length];
    let mut pass = || {
        let rows = decoder.embed(&tokens).unwrap();
        let segments =
            caches.iter_mut().map(|cache| Segment { cache, length, positions: None, adapter: None });
        let hidden = decoder.forward(&rows, &mut segments.collect::<Vec<_>>()).unwrap();
        decoder.logits(&hidden.narrow(0, 0, streams).unwrap()).unwrap();
    };
    pass();
    let start = Instant::now();
    let begin = clock(start);
    (0..passes).for_each(|_| pass());
    (clock(start) - begin) / passes as f64
}

#[test]
#[ignore = "takes a minute"]
fn eight_streams_together_make_three_times_the_tokens_of_one() {
    let kinds = [
        ("f32", None),
        ("Q8_0", Some((GgmlDType::Q8_0, 8))),
        ("Q4_K", Some((GgmlDType::Q4K, 12))),
        ("Q6_K", Some((GgmlDType::Q6K, 14))),
    ];
    for (name, kind) in kinds {
        let decoder = decoder(Random(kind));
        let measure = |streams, length, passes| seconds(&decoder, streams, length, passes);
        let (one, eight, sixteen) = (measure(1, 1, 15), measure(8, 1, 15), measure(16, 1, 10));
        let prompt = measure(1, 256, 2);
        let ratio = 8.0 * one / eight;
        let [one, eight, sixteen, prompt] = [1.0 / one, 8.0 / eight, 16.0 / sixteen, 256.0 / prompt];
        println!(
            "{name}, tokens a second of one thread: one stream {one:.1}, eight {eight:.1} ({ratio:.1} times), \
             sixteen {sixteen:.1}, a prompt of 256 {prompt:.0}"
        );
        assert!(ratio > 3.0 || kind.is_some(), "{ratio}");
    }
}
