//! The JSON files of models of every family, loaded.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| candle_actors::fuzzing::config(bytes));
