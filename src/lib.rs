//! Placeholder until the engine stands.
