//! Chat templates, run on conversations.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| candle_actors::fuzzing::chat_template(text));
