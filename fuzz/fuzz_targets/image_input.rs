//! Encoded images: any bytes are decoded or refused, within the limits.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| candle_actors::fuzzing::image(bytes));
