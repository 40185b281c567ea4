//! Files of weights in safetensors.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| candle_actors::fuzzing::safetensors(bytes));
