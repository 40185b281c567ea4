//! Limits on everything that comes from outside: on requests and images in the first table, on the contents of model
//! repositories in the second. An input over a limit is refused with both numbers before memory is allocated for it, and
//! before it is queued where no model is needed to tell.
//!
//! | what | limit | refused with |
//! |---|---|---|
//! | texts or images of one embedding request | [`MAX_ITEMS`], 256 | `InvalidInput` |
//! | bytes of one text to embed | [`MAX_TEXT_BYTES`], 1 MiB | `InvalidInput` |
//! | bytes of a prompt, all messages together | [`MAX_PROMPT_BYTES`], 4 MiB | `InvalidInput` |
//! | messages of a prompt | [`MAX_MESSAGES`], 1,024 | `InvalidInput` |
//! | tokens of a prompt | the model's context, and what a worker's caches hold ([`GenerationLimits`]), less one | [`PromptTooLong`] |
//! | bytes of a prompt before texts to embed | [`MAX_EMBED_PROMPT_BYTES`], 16 KiB | `InvalidInput` |
//! | tokens to generate | [`MAX_TOKENS`], 1,048,576; the context ends a text sooner | `InvalidInput` |
//! | stop strings, and bytes of one | [`MAX_STOPS`], 16; [`MAX_STOP_BYTES`], 256 | `InvalidInput` |
//! | stop tokens; tokens whose logits are biased, and the bias | [`MAX_STOP_TOKENS`], 64; [`MAX_LOGIT_BIASES`], 1,024; [`MAX_LOGIT_BIAS`], 100 | `InvalidInput` |
//! | frequency and presence penalties | [`MAX_PENALTY`], 2 | `InvalidInput` |
//! | log probabilities of the most probable tokens, for each token; of a request, by the tokens that all its answers may get | [`MAX_TOP_LOGPROBS`], 20; [`MAX_LOGPROBS`], 262,144 | `InvalidInput` |
//! | answers to one prompt | [`MAX_ANSWERS`], 32 | `InvalidInput` |
//! | bytes of a JSON schema, regular expression or grammar that an answer keeps to | [`MAX_CONSTRAINT_BYTES`], 256 KiB | `InvalidInput` |
//! | tools of a request, bytes of the name of one, of their descriptions and schemas together, and of template arguments | [`MAX_TOOLS`], 128; [`MAX_TOOL_NAME`], 64; [`MAX_TOOL_BYTES`], 256 KiB for each of the last two | `InvalidInput` |
//! | of what that becomes: states of its lexer; the rest as llguidance limits it | `MAX_LEXER_STATES` of `structured/engine.rs`, 32,768 | [`InvalidConstraint`], or [`ConstraintFailed`] while the text is written |
//! | tokens of a vocabulary whose texts can be constrained; bytes of a token that such a text may have | `MAX_VOCABULARY`, 2,097,152, and `MAX_TOKEN_BYTES`, 1,000, of `structured/engine.rs` | [`InvalidConstraint`] |
//! | an integer, and a number, of JSON that a schema gives no bound | `MAX_INTEGER`, 9,007,199,254,740,991, and `MAX_NUMBER`, 10^18, of `structured/schema.rs` | the text has none beyond |
//! | depth of values, and of references, in arguments of calls that are written without JSON | `MAX_DEPTH` of `generation/plain_arguments.rs`, 32 | `InvalidInput` for a schema, `UnexpectedOutput` for a call |
//! | letters of what is wrong with a schema, expression or grammar that are told | `MAX_REASON` of `structured/engine.rs`, 500 | they are cut |
//! | schemas, expressions and grammars that a model keeps compiled, and bytes of one; those known to be good | `MAX_KEPT`, 16, and `MAX_KEPT_BYTES`, 16 KiB, of `structured.rs` | they are compiled again |
//! | parts of a JSON schema that are tried for the place of a fault | `MAX_TRIALS` of `structured/place.rs`, 256 | the error names the part around it |
//! | images of a conversation; its texts and images together; its messages, and bytes of text, as of a prompt | [`MAX_IMAGES`], 16; [`MAX_PARTS`], 4,096 | `InvalidInput` |
//! | bytes of a prompt to paint, and of what to avoid | [`MAX_PAINTING_PROMPT_BYTES`], 64 KiB | `InvalidInput` |
//! | sides of a picture to paint | [`MAX_PAINTED_SIDE`], 4,096 pixels; multiples of what the model's latents stand for | `InvalidInput` |
//! | pixels of a picture to paint | [`MAX_PAINTED_PIXELS`], 589,824, or 1.5 times those of the model's own size, whichever is more | `InvalidInput` |
//! | diffusion steps | [`MAX_STEPS`], 1,000; as many as a DDPM schedule has times | `InvalidInput` |
//! | guidance of a picture to paint | 0 to [`MAX_GUIDANCE`], 100 | `InvalidInput` |
//! | an image's encoded bytes, pixels, sides, memory to decode | [`ImageLimits`], set by the application | [`ImageTooLarge`] |
//! | images of all requests at once, while they are decoded and until the requests end | `memory` of [`ImageSettings`], 2 GiB unless the application says otherwise | they wait, then [`NoRoomForImages`]; at once with `WhenFull::Fail` |
//! | images fetched at once, and fetched without room yet | `downloads` of [`UrlSettings`], 16 unless the application says otherwise | they wait, then [`DownloadFailed`], or [`NoRoomForImages`] where that is why; a conversation with more addresses is refused with `InvalidInput` |
//! | images' files read at once, and read without room yet | `AT_ONCE` of `image_input.rs`, 16 | they wait, then [`ImageTooSlow`], or [`NoRoomForImages`] where that is why |
//! | images of one call of `ImageInput::pictures` taken in at once | `AT_ONCE` of `image_input.rs`, 16, and no more addresses than are fetched at once | they follow |
//! | images decoded at once, and time to read or decode one | `decoders` and `decode_timeout` of [`ImageSettings`] | they wait, then [`ImageTooSlow`] |
//! | decoders that were given up after that and have not ended | `decoders` of [`ImageSettings`] | further ones keep their places; none is kept of those in processes of their own, which are killed |
//! | address space of a process that decodes images | `address_space` of [`ProcessOptions`]; on Linux by default what [`ImageLimits`] allow, and 2 GiB; never more than the hard limit that the application itself has | [`ImageDecoderDied`] |
//! | segments and scans of a JPEG; metadata unpacked from a PNG | `MAX_SEGMENTS`, 1,000, and `MAX_SCANS`, 100, of `image_input/jpeg.rs`; `METADATA` of `image_input/decode.rs`, 32 MiB, with its rows | [`InvalidImage`] |
//! | what an image's path leads to | a regular file | `UnreadableFile` |
//! | bytes of an image's address, and of where it redirects to | [`MAX_ADDRESS_BYTES`], 8 KiB | [`AddressRefused`] |
//! | sides of what a model is given of an image | [`MAX_MODEL_SIDE`], 4,096 pixels | `InvalidInput`, or `InvalidConfig` |
//! | pixels of that, and of what it is made of on the way | [`MAX_MODEL_PIXELS`], 67,108,864 | `InvalidInput` |
//! | rows that an image to embed becomes, a row a patch | [`MAX_IMAGE_ROWS`], 16,384 | `InvalidInput`, or `InvalidConfig` |
//! | time, redirects and networks of an image's address | [`UrlSettings`], set by the application | [`DownloadFailed`], [`AddressRefused`] |
//! | bytes of the name of a model, a device or a capability | [`MAX_NAME_BYTES`], 256 | `InvalidConfig` of the actors |
//! | bytes of a digest of a model's files, by which other nodes of a cluster know it | [`MAX_DIGEST_BYTES`], 128 | `InvalidConfig` of the actors |
//! | calls of one peer, preloads say, that are worked on at a time | `MAX_HOSTED_CALLS` of `cluster/router/calls.rs`, 1,024 | `NoPeer` |
//! | models that a pool tells other nodes of; bytes of a request, a chunk or an output between nodes | [`MAX_OFFERS`], 1,024; [`MAX_LETTER_BYTES`], 256 MiB | others are not reached from there; `InvalidInput` |
//! | tenants of a model, and weight of one | [`MAX_TENANTS`], 4,096; 1 to [`MAX_TENANT_WEIGHT`], 1,000 | `InvalidConfig` of the actors |
//! | requests that wait for a model | `QueueCapacity` of the capability | [`Overloaded`], or the caller waits |
//! | requests that run together | `BatchLimits` of the pool | they wait |
//! | bytes of a request, a chunk or an output of a model in a process of its own, and of an image, encoded or not, that is decoded in one | [`MAX_FRAME_BYTES`], 1 GiB | `InvalidInput`; [`InvalidSetting`] where [`ImageLimits`] allow a larger image |
//! | bytes that a process that decodes images may answer | those of the pixels that its header says, `MARGIN` of `image_input/apart.rs`, 8 KiB, and `ENVELOPE` of `isolation/helpers.rs` of `model-actors`, 64 KiB; `MAX_REASON` of `image_input/apart.rs`, 4 KiB, of the reason for an error | [`ImageDecoderDied`] |
//! | processes that decode images, and time without images after which one ends | `decoders` of [`ImageSettings`]; `IDLE_LIMIT` of `image_input/apart.rs`, 10 s | images wait for one, then [`ImageTooSlow`] |
//! | letters of a media type before base64 | `MAX_MEDIA_TYPE` of `image_input/base64.rs`, 256 | [`InvalidImage`] |
//! | look-ups of names at once | `MAX_LOOKUPS` of `image_input/fetch.rs`, 16 | they wait |
//! | redirects from a file of the hub to its content | `MAX_REDIRECTS` of `hub/client.rs`, 10 | [`TransferFailed`] |
//! | tiles along a side that Idefics3 splits an image into | `MAX_TILES_ALONG` of `models/vision/idefics3/split.rs`, 16 | `InvalidConfig` |
//! | tiles that LLaVA cuts an image into | `MAX_TILES` of `models/vision/llava/tiles.rs`, 64 | `InvalidInput` |
//! | crops that Moondream cuts an image into | `MAX_CROPS` of `models/vision/moondream/crops.rs`, 64 | `InvalidConfig` |
//! | tasks that an embedder has adapters for | `MAX_TASKS` of `models/text_embedding/adapters.rs`, 64 | `InvalidConfig` |
//! | adapters of a model that are loaded at a time | `MAX_LOADS` of `models/text_to_text/adapters.rs`, 4 | they wait |
//! | adapters of a model that writes text, and bytes of the name of one | [`MAX_ADAPTERS`], 256; [`MAX_NAME_BYTES`], 256 | [`InvalidSetting`]; `InvalidInput` in a request |
//! | how many times longer one side may be for Qwen-VL | `MAX_ASPECT` of `models/vision/qwen_vl/resize.rs`, 200 | `InvalidInput` |
//! | threads of a worker, and `decoders` and `downloads` of images | 1 to [`MAX_PARALLEL`], 1,024 | [`InvalidSetting`] |
//! | tokens that a worker's caches hold | `kv_cache_tokens` of [`GenerationLimits`], 128 to [`MAX_CACHE_TOKENS`], 16,777,216 | [`InvalidSetting`] |
//! | tokens that a model's prefix cache holds | `prefix_cache_tokens` of [`GenerationLimits`], 0 to [`MAX_CACHE_TOKENS`], 16,777,216 | [`InvalidSetting`] |
//! | texts that a worker generates together | `max_sequences` of [`GenerationLimits`], 1 to [`MAX_PARALLEL`], 1,024 | [`InvalidSetting`] |
//! | workers of a model, unless the pool's settings say otherwise | `MAX_WORKERS` of `engine/builder.rs`, 4 | requests wait |
//!
//! [`Overloaded`] is the actors' error; the others are variants of [`Error`].
//!
//! A model file over one of these limits is refused at the load, with `InvalidConfig` or the error of the file's format.
//!
//! | what | limit |
//! |---|---|
//! | bytes of a model's configuration file, and of any other text or JSON | [`MAX_CONFIG_BYTES`], 4 MiB |
//! | bytes of `tokenizer.json`, of a vocabulary or list of merges in its place and of a SentencePiece model, and of the list of weight files | [`MAX_TOKENIZER_BYTES`], 48 MiB; [`MAX_INDEX_BYTES`], 16 MiB |
//! | in an adapter's configuration: names of modules; patterns of each kind, bytes of one and of what it is compiled to, steps back in it | `MAX_MODULES`, 4,096; `MAX_PATTERNS`, 256, `MAX_EXPRESSION`, 16 KiB, `MAX_COMPILED`, 64 KiB, and `MAX_STEPS_BACK`, 10,000, of `models/peft/settings.rs` |
//! | values in a configuration file | `MAX_VALUES` of `source/json.rs`, 524,288 |
//! | in `tokenizer.json` and what is built in its place: values; tokens; added tokens; merges of other files | `MAX_VALUES`, 4,194,304; `MAX_TOKENS`, 1,048,576; `MAX_ADDED_TOKENS`, 65,536; `MAX_MERGES`, 1,398,101; of `tokens/output_bounds.rs` |
//! | of a SentencePiece model: pieces; bytes of one that others merge to; tokens that T5 counts beside the pieces | `MAX_PIECES`, 1,048,576; `MAX_MERGED`, 256; `MAX_EXTRA`, 1,000; of `tokens/sentence_piece.rs` |
//! | in each part of `tokenizer.json` but its model: values; regular expressions | `MAX_PART`, 4,096, and `MAX_PATTERNS`, 32, of `tokens/output_bounds.rs` |
//! | bytes of a weight file's header, of the pickles in a file of PyTorch's (`MAX_PICKLE` of `pickle.rs`), and of its list of entries | [`MAX_HEADER_BYTES`], 16 MiB |
//! | in such a pickle: values, and those that it remembers; bytes of a name; how many times more numbers a view lies spread over | `MAX_VALUES`, 4,194,304; `MAX_NAME`, 1 KiB, and letters of one in an error, `MAX_SHOWN`, 100, of `pickle/machine.rs`; `MAX_SPREAD` of `pickle/tensors.rs`, 8 |
//! | settings of a configuration that are tried whether a family reads them; bytes that are read for it, all of the file's for each | `MAX_TRIALS`, 2,048, and `MAX_TRIED_BYTES`, 256 MiB, of `architecture/unread.rs` |
//! | layers of LLaVA's tower that are taken | `MAX_FEATURE_LAYERS`, 64, of `models/vision/llava.rs` |
//! | files in a list of weight files, and tensors of all of them | `MAX_SHARDS` of `weights.rs`, 4,096; `MAX_TENSORS` of `limits.rs`, 524,288 |
//! | bytes of the name of a file, a repository or a revision | `MAX_PATH_BYTES` of `source/names.rs`, 256 |
//! | where a link in a model's directory leads to | a regular file in the directory, unless the source has [`follow_links`](crate::Source::follow_links) |
//! | dimensions of a tensor | `MAX_RANK` of `weights.rs` and of `pickle/tensors.rs`, 8; `MAX_RANK` of `gguf/header.rs`, 4 |
//! | items of a GGUF list, bytes of a text in it, and of all texts | `MAX_ITEMS`, 4,194,304; `MAX_TEXT`, 1 MiB; `MAX_TEXTS`, 64 MiB; of `gguf/header.rs` |
//! | bytes of the longer texts of a GGUF file that are left out, since nothing reads them | `MAX_SKIPPED` of `gguf/header.rs`, 256 MiB |
//! | bytes that the places of a GGUF file's tensors are multiples of | `MAX_ALIGNMENT` of `gguf/header.rs`, 1 MiB |
//! | parts of a GGUF file | `MAX_PARTS` of `gguf.rs`, 1,024 |
//! | rotary factors in a GGUF file | `MAX_FACTORS` of `models/decoder/gguf/rope.rs`, 65,536 |
//! | in a GGUF file's tokenizer: bytes of a piece that others merge to | `MAX_PIECE`, 256, of `generation/gguf_tokens.rs` |
//! | tokens of a GGUF file's vocabulary | `MAX_TOKENS` of `gguf/tokenizer.rs`, 1,048,576 |
//! | a chat template: its bytes, steps, output, nested macros and loops | `MAX_TEMPLATE_BYTES`, 64 KiB; `MAX_STEPS`, 1,000,000; `MAX_OUTPUT_BYTES`, 8 MiB; `MAX_DEPTH`, 100; of `generation/template.rs` |
//! | letters of a text, and entries of a list, in an error that goes to callers, log and events | `MAX_LETTERS`, 1,000, and `MAX_ENTRIES`, 200, of `error/shortened.rs` |
//! | letters of a chat template's error that are told | `MAX_REASON` of `generation/template.rs`, 1,000 |
//! | tags and operators of a chat template in each other | `MAX_NESTED` of `generation/template/syntax.rs`, 1,000 |
//! | in a chat template: bytes of JSON that is written; nested lists and maps | `MAX_JSON_BYTES` of `generation/template/functions.rs`, 8 MiB; `MAX_DEPTH` of `generation/template/budget.rs`, 64 |
//! | in a chat template: an attribute that a filter looks up; spaces of `indent` | `MAX_BYTES`, 256, `MAX_PARTS`, 16, and `MAX_PATHS`, 8, of `generation/template/paths.rs`; `MAX_INDENT` of `generation/template/builtins.rs`, 100 |
//! | in a chat template: letters of an indent and of a separator of JSON | `MAX_INDENT` of `generation/template/functions.rs`, 16 |
//! | bytes that a chat template handles in all, of which three times as many are its memory at most | `MAX_HANDLED` of `generation/template/budget.rs`, 256 MiB |
//! | time to compile and to render a chat template, and to compile what an answer keeps to; the stack for it; threads of one template or of one model's grammars and of all, those that were given up after that time included | `MAX_TIME`, 10 s; `STACK_BYTES`, 512 MiB; `MAX_OWN`, 8, and `MAX_THREADS`, 64; of `large_stack.rs` |
//! | ways of pooling side by side | `MAX_POOLINGS` of `pooling.rs`, 6 |
//! | layers, and sizes, of a transformer of any capability but painting | `MAX_LAYERS`, 1,024, and `MAX_SIDE`, 1,048,576, of `models/config_file.rs` |
//! | dimensions of a vector of CLIP | `MAX_DIMENSIONS` of `models/image_embedding/clip.rs`, 1,048,576 |
//! | registers of DINOv2 and DINOv3 | `MAX_REGISTERS` of `models/towers/dinov2.rs`, 1,024 |
//! | grids that LLaVA chooses from | `MAX_GRIDS` of `models/vision/llava/tiles.rs`, 64 |
//! | pixels along a patch of Qwen-VL and Pixtral, patches that they merge along a side or in time | `MAX_PATCH`, 256; `MAX_MERGED`, 16; of `models/vision/any_size.rs` |
//! | positions along a side of Qwen-VL | `MAX_GRID`, 4,096, of `models/vision/qwen_vl/tower/config.rs` |
//! | latents along a side of the default image of a text to image model | `MAX_SAMPLE` of `models/text_to_image/repository.rs`, 4,096 |
//! | levels of a UNet and of an autoencoder, and widths of a text to image model | `MAX_LEVELS`, 8, and `MAX_WIDTH`, 65,536, of `models/text_to_image/repository.rs` |
//! | layers, heads, numbers of a head and channels of a diffusion transformer; four times the channels for FLUX, which counts those of a patch | `MAX_COUNT` of `models/text_to_image/repository.rs`, 1,024 |
//! | latents along a side of a patch of Stable Diffusion 3 | `MAX_PATCH` of `models/text_to_image/sd3/transformer.rs`, 64 |
//! | T5's vocabulary, feed-forward width, heads, numbers of a head | `MAX_VOCABULARY`, 16,777,216; `MAX_INTERMEDIATE`, 1,048,576; `MAX_HEADS`, 256; `MAX_HEAD`, 4,096; of `models/text_to_image/t5.rs` |
//! | T5's buckets of relative positions, and the largest distance | `MAX_BUCKETS`, 65,536, and `MAX_DISTANCE`, 1,048,576, of `models/text_to_image/t5.rs` |
//! | the same of a T5 that writes; its heads, and their biases of all distances | `MAX_BUCKETS`, 65,536, and `MAX_DISTANCE`, 1,048,576; `MAX_HEADS`, 256, and `MAX_BIASES`, 16,777,216; of `models/t5.rs` |
//! | tokens that the files of a model of late interaction fill each query up to | `MAX_QUERY_TOKENS`, 1,024, of `models/text_embedding/late_interaction/config.rs` |
//! | merges of CLIP's `merges.txt` | `MAX_MERGES` of `models/text_to_image/prompt.rs`, 262,144 |
//! | tokens of a text to image prompt, special ones included | `MAX_PROMPT` of `models/text_to_image/prompt.rs`, 4,096 |
//! | what a tokenizer may make of a byte: its normalizer; its split, and its decoder | `MAX_NORMALIZED`, 16,384, and `MAX_SPLIT`, 16, of `tokens/output_bounds/parts.rs` |
//! | bytes of a token, and tokens that a tokenizer puts around a text | `MAX_TOKEN`, 16 KiB, of `tokens/output_bounds.rs`, and `MAX_ADDED`, 64, of `tokens/output_bounds/parts.rs` |
//! | bytes that a tokenizer may make of a text, of tokens, of those of a whole answer, and of its added tokens | `MAX_BYTES` of `tokens/output_bounds.rs`, 16 MiB; `InvalidInput` for the first three |
//! | training timesteps of a noise schedule | `MAX_TIMESTEPS` of `models/text_to_image/schedule.rs`, 100,000 |
//! | shift of a flow matching schedule | 0.001 to `MAX_SHIFT` of `models/text_to_image/flow_match.rs`, 1,000 |
//! | bytes of a configuration that is read leniently | `MAX_LENIENT` of `models/text_to_image/repository.rs`, 1 MiB |
//!
//! [`Overloaded`]: model_actors::Error::Overloaded
//! [`PromptTooLong`]: crate::Error::PromptTooLong
//! [`ImageTooLarge`]: crate::Error::ImageTooLarge
//! [`ImageTooSlow`]: crate::Error::ImageTooSlow
//! [`ImageDecoderDied`]: crate::Error::ImageDecoderDied
//! [`ProcessOptions`]: crate::isolation::ProcessOptions
//! [`InvalidImage`]: crate::Error::InvalidImage
//! [`NoRoomForImages`]: crate::Error::NoRoomForImages
//! [`ImageSettings`]: crate::ImageSettings
//! [`DownloadFailed`]: crate::Error::DownloadFailed
//! [`TransferFailed`]: crate::Error::TransferFailed
//! [`AddressRefused`]: crate::Error::AddressRefused
//! [`InvalidSetting`]: crate::Error::InvalidSetting
//! [`InvalidConstraint`]: crate::Error::InvalidConstraint
//! [`ConstraintFailed`]: crate::Error::ConstraintFailed
//! [`UrlSettings`]: crate::UrlSettings

use model_actors::Bytes;
pub use model_actors::limits::*;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Maximum number of bytes of a model's configuration file; published ones have up to 1.2 MB.
pub const MAX_CONFIG_BYTES: u64 = 4 << 20;
/// Maximum number of bytes of the list of a model's weight files; that of a model of 671 billion weights has 9 MB.
pub const MAX_INDEX_BYTES: u64 = 16 << 20;
/// Maximum number of bytes of a tokenizer; that of the largest published vocabularies has 33 MB.
pub const MAX_TOKENIZER_BYTES: u64 = 48 << 20;
/// Maximum number of bytes of a weight file's header; published ones have up to 1 MB or so.
pub const MAX_HEADER_BYTES: u64 = 16 << 20;
/// Maximum number of tensors of all weight files of a model together; one of 671 billion weights has 92,000.
pub(crate) const MAX_TENSORS: usize = 1 << 19;

/// Maximum number of bytes of a model's file by its name; weights, and what is not known, are not limited.
pub(crate) fn file_bytes(file: &str) -> Option<u64> {
    let name = file.rsplit('/').next().unwrap_or(file).to_lowercase();
    let ends = |endings: &[&str]| endings.iter().any(|ending| name.ends_with(ending));
    match () {
        () if ["tokenizer.json", "vocab.txt", "vocab.json", "merges.txt"].contains(&name.as_str()) => {
            Some(MAX_TOKENIZER_BYTES)
        }
        () if ends(&[".model"]) => Some(MAX_TOKENIZER_BYTES),
        () if ends(&[".json"]) && name.contains(".index.") => Some(MAX_INDEX_BYTES),
        () if ends(&[".json", ".jinja", ".txt", ".md", ".yaml", ".yml"]) => Some(MAX_CONFIG_BYTES),
        () => None,
    }
}

/// Maximum number of bytes of an image's address.
pub const MAX_ADDRESS_BYTES: usize = 8 << 10;
/// Maximum number of pixels of a picture to paint, unless half as many again as the model's own size has are more.
pub const MAX_PAINTED_PIXELS: usize = 768 * 768;

/// Longest side, in pixels, of what a model is given of an image.
pub const MAX_MODEL_SIDE: usize = 4096;
/// Maximum number of pixels of what a model is given of an image, and of what it is made of on the way.
pub const MAX_MODEL_PIXELS: usize = 64 << 20;
/// Most rows that an image to embed becomes, a row for each patch and learned token: all of them see each other, and a
/// layer over more would take longer than a worker may be silent.
pub const MAX_IMAGE_ROWS: usize = 16 << 10;

/// Maximum number of threads of a worker, images decoded and fetched at once, and texts that a worker writes together.
pub const MAX_PARALLEL: usize = 1024;
/// Maximum number of adapters that a model may be registered with.
pub const MAX_ADAPTERS: usize = 256;
/// Maximum number of tokens that a worker's caches, and a model's prefix cache, may be set to hold.
pub const MAX_CACHE_TOKENS: usize = 16 << 20;

/// Limits on the texts that each worker of a text to text or vision model generates at a time. The memory for them is
/// part of each worker's footprint.
///
/// ```
/// use candle_actors::GenerationLimits;
/// let long = GenerationLimits::default().with_kv_cache_tokens(32_768).with_max_sequences(4);
/// assert_eq!(GenerationLimits::default().kv_cache_tokens, 8192);
/// # drop(long);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct GenerationLimits {
    /// Capacity of a worker's key-value caches in tokens, of prompts and answers of all texts together; 8,192, from 128
    /// to 16,777,216, given out in blocks of 128. A text whose prompt and answer may become longer than what is free
    /// waits; one that alone may need more than this is cut there, as at the end of the context. A prompt that leaves no
    /// room for an answer is refused with [`Error::PromptTooLong`].
    pub kv_cache_tokens: usize,
    /// Maximum number of texts that a worker generates together, from 1 to 1,024; 32, as many as a pool's default batch
    /// has. Further requests of a larger batch wait.
    pub max_sequences: usize,
    /// Capacity in tokens of a text to text model's prefix cache, which its workers share; 8,192, up to 16,777,216, and 0 for
    /// none. Prompts that begin as an earlier one did, as those of a conversation's next turn and those with one system
    /// prompt, are read from where they differ, in blocks of 64 tokens; answers are the same to the token. The memory
    /// is none of the footprint: it is taken of the budget as far as it is free, and given back when a load needs it, before
    /// any worker is evicted. On accelerators, in processes of their own, and in models whose state cannot be divided (those
    /// with gated delta nets, and those of candle-transformers), nothing is kept.
    pub prefix_cache_tokens: usize,
}

model_actors::setters! { GenerationLimits {
    with_prefix_cache_tokens(prefix_cache_tokens: usize);
    with_kv_cache_tokens(kv_cache_tokens: usize);
    with_max_sequences(max_sequences: usize);
} }

impl Default for GenerationLimits {
    fn default() -> Self {
        Self { kv_cache_tokens: 8192, max_sequences: 32, prefix_cache_tokens: 8192 }
    }
}

impl GenerationLimits {
    /// # Errors
    /// [`Error::InvalidSetting`] for what is out of range.
    pub(crate) fn check(&self) -> Result<()> {
        let ranges = [
            ("kv_cache_tokens", self.kv_cache_tokens, 128, MAX_CACHE_TOKENS),
            ("max_sequences", self.max_sequences, 1, MAX_PARALLEL),
            ("prefix_cache_tokens", self.prefix_cache_tokens, 0, MAX_CACHE_TOKENS),
        ];
        for (setting, found, least, most) in ranges {
            if !(least..=most).contains(&found) {
                let reason = format!("it is {found}; {least} to {most} are allowed");
                return Err(Error::InvalidSetting { setting: setting.into(), reason });
            }
        }
        Ok(())
    }

    /// The tokens that the answer to a prompt may have, in a model of this context.
    ///
    /// # Errors
    /// [`Error::PromptTooLong`] if there is room for none.
    pub(crate) fn room_after(&self, prompt: usize, context: usize) -> Result<usize> {
        let (limit, of) = match self.kv_cache_tokens < context {
            true => (self.kv_cache_tokens, "a worker's caches, as its kv_cache_tokens are set, hold"),
            false => (context, "the model's context has"),
        };
        let room = limit.checked_sub(prompt).filter(|room| *room > 0);
        room.ok_or(Error::PromptTooLong { prompt, limit, of: of.into() })
    }
}

/// Limits on the size of an image. What is over one is refused before memory is asked for.
///
/// ```
/// use candle_actors::{Bytes, ImageLimits};
/// let small = ImageLimits::default().with_encoded(Bytes::mib(1)).with_pixels(1_000_000);
/// assert!(small.pixels < ImageLimits::default().pixels);
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct ImageLimits {
    /// Maximum bytes of an encoded image (PNG, JPEG …), before base64; 32 MiB.
    pub encoded: Bytes,
    /// Maximum pixels, width × height; 50 million, which takes a photograph of 48 megapixels.
    pub pixels: u64,
    /// Maximum length of a side in pixels; 16,384.
    pub side: u32,
    /// Maximum ratio of the longer side to the shorter one; 200. A strip of one pixel's height would become gigantic
    /// when a model scales its shorter side to the size that it needs.
    pub aspect: u32,
    /// Maximum pixels of all images of one request together; 500 million, which take 1.5 GB.
    pub request_pixels: u64,
    /// Maximum bytes that decoding one image may take, the decoded image included; 768 MiB, which 50 million pixels of
    /// any PNG, JPEG, GIF or BMP take. On top come three copies of the encoded bytes, and 64 MiB for metadata and rows. A
    /// WebP that is compressed without loss counts with 500 bytes for each of its own, which its tables may take, so that
    /// one of more than about a megabyte is refused.
    pub decoder: Bytes,
}

model_actors::setters! { ImageLimits {
    with_encoded(encoded: Bytes);
    with_pixels(pixels: u64);
    with_side(side: u32);
    with_aspect(aspect: u32);
    with_request_pixels(request_pixels: u64);
    with_decoder(decoder: Bytes);
} }

impl Default for ImageLimits {
    fn default() -> Self {
        Self {
            encoded: Bytes::mib(32),
            pixels: 50_000_000,
            side: 16_384,
            aspect: 200,
            request_pixels: 500_000_000,
            decoder: Bytes::mib(768),
        }
    }
}
