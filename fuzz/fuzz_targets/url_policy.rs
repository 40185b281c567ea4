//! Addresses of images, and redirects from them.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| candle_actors::fuzzing::address(text));
