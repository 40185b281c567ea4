//! Limits on the size of requests, for every capability, of names and of tenants, and of what goes to other nodes. A request over a limit is refused before
//! it is queued. The checks are beside the requests, in `capability`; those of names in `config`.

/// Maximum number of bytes of the name of a model, a device, a capability or a tenant.
pub const MAX_NAME_BYTES: usize = 256;

/// Maximum weight of a tenant.
pub const MAX_TENANT_WEIGHT: u32 = 1000;
/// Maximum number of tenants that a model's settings name, or that may have requests of it at a time.
pub const MAX_TENANTS: usize = 4096;

/// Maximum number of texts or images of one embedding request, and of documents of one request to rerank.
pub const MAX_ITEMS: usize = 256;
/// Maximum number of bytes of one text to embed, and of a query or document to rerank.
pub const MAX_TEXT_BYTES: usize = 1 << 20;
/// Maximum number of bytes of a prompt that comes with texts to embed, and of an instruction to rerank.
pub const MAX_EMBED_PROMPT_BYTES: usize = 16 << 10;

/// Maximum number of bytes of a prompt to a text model, all messages together.
pub const MAX_PROMPT_BYTES: usize = 4 << 20;
/// Maximum number of messages of a prompt.
pub const MAX_MESSAGES: usize = 1024;
/// Maximum number of stop strings of a request.
pub const MAX_STOPS: usize = 16;
/// Maximum number of bytes of a stop string.
pub const MAX_STOP_BYTES: usize = 256;
/// Maximum number of stop tokens of a request.
pub const MAX_STOP_TOKENS: usize = 64;
/// Maximum number of tokens whose logits a request may bias.
pub const MAX_LOGIT_BIASES: usize = 1024;
/// Maximum size of such a bias.
pub const MAX_LOGIT_BIAS: f32 = 100.0;
/// Maximum size of a frequency and of a presence penalty.
pub const MAX_PENALTY: f32 = 2.0;
/// Maximum number of the most probable tokens whose log probabilities a request may ask for.
pub const MAX_TOP_LOGPROBS: usize = 20;
/// Maximum number of log probabilities of a request: for each token that it may get, its own and those of the most probable.
pub const MAX_LOGPROBS: usize = 1 << 18;
/// Maximum number of answers of one request to write text.
pub const MAX_ANSWERS: usize = 32;
/// Maximum number of bytes of a JSON schema, regular expression or grammar that an answer keeps to.
pub const MAX_CONSTRAINT_BYTES: usize = 256 << 10;
/// Maximum number of tools of a request.
pub const MAX_TOOLS: usize = 128;
/// Maximum number of bytes of a tool's name.
pub const MAX_TOOL_NAME: usize = 64;
/// Maximum number of bytes of the descriptions and schemas of a request's tools together, and of its template arguments.
pub const MAX_TOOL_BYTES: usize = 256 << 10;
/// Maximum number of tokens that a request may ask for. The model's context may end a text sooner.
pub const MAX_TOKENS: usize = 1 << 20;

/// Maximum number of images of a conversation, all messages together.
pub const MAX_IMAGES: usize = 16;
/// Maximum number of texts and images of a conversation about images, all messages together.
pub const MAX_PARTS: usize = 4096;

/// Maximum number of bytes of a prompt to paint, or of a negative prompt.
pub const MAX_PAINTING_PROMPT_BYTES: usize = 64 << 10;
/// Maximum side of a picture to paint, in pixels.
pub const MAX_PAINTED_SIDE: usize = 4096;
/// Maximum number of diffusion steps.
pub const MAX_STEPS: usize = 1000;
/// Maximum classifier-free guidance scale of a picture to paint.
pub const MAX_GUIDANCE: f32 = 100.0;

/// Maximum number of bytes of a request, a chunk or an output that goes to or comes from a process of its own.
pub const MAX_FRAME_BYTES: usize = 1 << 30;

/// Maximum number of bytes of a digest of a model's files.
pub const MAX_DIGEST_BYTES: usize = 128;
/// Maximum number of models that a pool tells its peers of; those beyond it, by name, are not reached from other nodes.
pub const MAX_OFFERS: usize = 1024;
/// Maximum number of bytes of a request, a chunk or an output that goes to or comes from another node.
pub const MAX_LETTER_BYTES: usize = 256 << 20;
