//! What a request may hold at most, for every capability: what is over a limit is refused before it is queued. The
//! checks are beside the requests, in `capability`.

/// Most texts or images of one embedding request.
pub const MAX_ITEMS: usize = 256;
/// Most bytes of one text to embed.
pub const MAX_TEXT_BYTES: usize = 1 << 20;
/// Most bytes of a prompt that comes with texts to embed.
pub const MAX_EMBED_PROMPT_BYTES: usize = 16 << 10;

/// Most bytes of a prompt to a text model, all messages together.
pub const MAX_PROMPT_BYTES: usize = 4 << 20;
/// Most messages of a prompt.
pub const MAX_MESSAGES: usize = 1024;
/// Most stop strings of a request.
pub const MAX_STOPS: usize = 16;
/// Most bytes of a stop string.
pub const MAX_STOP_BYTES: usize = 256;
/// Most tokens that a request may ask for. The model's context ends a text sooner.
pub const MAX_TOKENS: usize = 1 << 20;

/// Most bytes of a question about an image, or of a prompt to paint; of what to avoid as well.
pub const MAX_QUESTION_BYTES: usize = 64 << 10;
/// Longest side of a picture to paint, in pixels.
pub const MAX_PAINTED_SIDE: usize = 4096;
/// Most diffusion steps.
pub const MAX_STEPS: usize = 1000;
/// Strongest guidance of a picture to paint.
pub const MAX_GUIDANCE: f32 = 100.0;
