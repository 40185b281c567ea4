//! Answers of a hub, given to its client by a server on this machine.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| candle_actors::fuzzing::hub(bytes));
