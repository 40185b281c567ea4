//! A `tokenizer.json`, tried on a text.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| candle_actors::fuzzing::tokenizer(bytes));
