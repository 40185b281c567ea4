//! Files of weights in GGUF.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| candle_actors::fuzzing::gguf(bytes));
