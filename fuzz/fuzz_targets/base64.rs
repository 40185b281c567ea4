//! Base64 and `data:` addresses.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| candle_actors::fuzzing::base64(text));
