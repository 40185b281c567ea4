//! Products with quantised weights of each type, 1024 × 3072, on one thread: by integers, with the dequantised weight, and
//! by candle's `QMatMul` where it has the type. Microseconds of the first, and the others' times as ratios to it. Then
//! products with weights of 32 and of 16 bits that no cache holds, beside the speed at which memory is read.
//!
//! ```text
//! cargo bench --features benchmarks --bench kernels
//! ```

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, reason = "a benchmark")]

use std::hint::black_box;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use candle_actors::benchmarks::{PlainProduct, QuantizedProduct};
use candle_core::quantized::{GgmlDType, QMatMul, QTensor};
use candle_core::{DType, Device, Module, Tensor};

const IN_DIM: usize = 1024;
const OUT_DIM: usize = 3072;
const ROWS: [usize; 3] = [1, 8, 64];
/// Shortest duration of a measurement.
const MEASURE: Duration = Duration::from_millis(150);
/// Turns, of which the best counts.
const TURNS: usize = 3;
/// The environment alone sets the number of candle's threads.
const CANDLE_THREADS: &str = "RAYON_NUM_THREADS";

/// Name, number in files, and candle's name or the bytes of 32 numbers.
const TYPES: [(&str, u32, Option<GgmlDType>); 13] = [
    ("Q4_0", 2, Some(GgmlDType::Q4_0)),
    ("Q4_1", 3, Some(GgmlDType::Q4_1)),
    ("Q5_0", 6, Some(GgmlDType::Q5_0)),
    ("Q5_1", 7, Some(GgmlDType::Q5_1)),
    ("Q8_0", 8, Some(GgmlDType::Q8_0)),
    ("Q2_K", 10, Some(GgmlDType::Q2K)),
    ("Q3_K", 11, Some(GgmlDType::Q3K)),
    ("Q4_K", 12, Some(GgmlDType::Q4K)),
    ("Q5_K", 13, Some(GgmlDType::Q5K)),
    ("Q6_K", 14, Some(GgmlDType::Q6K)),
    ("IQ4_NL", 20, None),
    ("IQ4_XS", 23, None),
    ("MXFP4", 39, None),
];

fn main() -> ExitCode {
    if std::env::var_os(CANDLE_THREADS).is_none() {
        let program = std::env::current_exe().unwrap();
        let status = Command::new(program).env(CANDLE_THREADS, "1").status().unwrap();
        return if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    println!(
        "{IN_DIM} x {OUT_DIM}, one thread: microseconds by integers; dequantised and candle's as ratios"
    );
    println!("{:<8} {}", "", ROWS.map(|rows| format!("{rows:>10} rows {:>16}", "")).concat());
    let weight = Tensor::randn(0f32, 0.1, (OUT_DIM, IN_DIM), &Device::Cpu).unwrap();
    for (name, number, candle) in TYPES {
        let quantized = candle.map(|kind| QTensor::quantize(&weight, kind).unwrap());
        // The types that candle lacks have blocks of 17 to 18 bytes, or as many in eight parts, of any content.
        let bytes = match &quantized {
            Some(quantized) => quantized.data().unwrap().into_owned(),
            None => {
                vec![0x2d; OUT_DIM * IN_DIM / 32 * 17 + if number == 20 { OUT_DIM * IN_DIM / 32 } else { 0 }]
            }
        };
        let product = QuantizedProduct::new(number, &bytes, OUT_DIM, IN_DIM).unwrap();
        let candle = quantized.map(|quantized| QMatMul::from_qtensor(quantized).unwrap());
        print!("{name:<8}");
        for rows in ROWS {
            let input = Tensor::randn(0f32, 1.0, (rows, IN_DIM), &Device::Cpu).unwrap();
            let mut best = [f64::MAX; 3];
            for _ in 0..TURNS {
                best[0] = best[0].min(seconds(|| product.eight_bit(&input).unwrap()));
                best[1] = best[1].min(seconds(|| product.exact(&input).unwrap()));
                if let Some(candle) = &candle {
                    best[2] = best[2].min(seconds(|| candle.forward(&input).unwrap()));
                }
            }
            let ratio = |time: f64| match time {
                f64::MAX => "-".to_owned(),
                time => format!("x {:.2}", time / best[0]),
            };
            print!(" {:>12.1} {:>8} {:>8}", best[0] * 1e6, ratio(best[1]), ratio(best[2]));
        }
        println!();
    }
    plain();
    ExitCode::SUCCESS
}

/// Rows and columns of a weight of 256 MiB in 32 bits.
const LARGE: (usize, usize) = (16_384, 4_096);

/// Products with the weights of safetensors files, and memory that is only read.
fn plain() {
    let weight = Tensor::randn(0f32, 0.1, LARGE, &Device::Cpu).unwrap();
    let numbers = |kind| -> Vec<f32> {
        let rounded = weight.to_dtype(kind).unwrap().to_dtype(DType::F32).unwrap();
        rounded.flatten_all().unwrap().to_vec1().unwrap()
    };
    let bytes: Vec<u64> = vec![1; LARGE.0 * LARGE.1 / 2];
    let sum = || {
        black_box(bytes.iter().fold(0u64, |sum, word| sum ^ word));
    };
    println!("\n{} x {}, one thread: milliseconds, and gigabytes of weights a second", LARGE.1, LARGE.0);
    println!("{:<8} {}", "", ROWS.map(|rows| format!("{rows:>10} rows {:>8}", "")).concat());
    let read = (0..TURNS).map(|_| time(sum)).fold(f64::MAX, f64::min);
    println!("{:<8} {:>12.2} {:>8.1}", "memory", read * 1e3, (bytes.len() * 8) as f64 / read / 1e9);
    for (name, kind, size) in [("f32", DType::F32, 4), ("bf16", DType::BF16, 2), ("f16", DType::F16, 2)] {
        let product = PlainProduct::new(numbers(kind), LARGE.1).unwrap();
        print!("{name:<8}");
        for rows in ROWS {
            let input = Tensor::randn(0f32, 1.0, (rows, LARGE.1), &Device::Cpu).unwrap();
            let turn = |_| seconds(|| product.forward(&input).unwrap());
            let best = (0..TURNS).map(turn).fold(f64::MAX, f64::min);
            print!(" {:>12.2} {:>8.1}   ", best * 1e3, (LARGE.0 * LARGE.1 * size) as f64 / best / 1e9);
        }
        println!();
    }
}

fn seconds(work: impl Fn() -> Tensor) -> f64 {
    time(|| drop(black_box(work())))
}

fn time(work: impl Fn()) -> f64 {
    work();
    let (began, mut count) = (Instant::now(), 0);
    while began.elapsed() < MEASURE {
        work();
        count += 1;
    }
    began.elapsed().as_secs_f64() / f64::from(count)
}
