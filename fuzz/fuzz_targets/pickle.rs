//! PyTorch's own files of weights.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| candle_actors::fuzzing::pickle(bytes));
