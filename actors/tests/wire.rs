//! The format of messages: golden files pin it, older and newer ones are read, and no bytes do any harm.
//!
//! How the files are kept is at the top of `common/golden.rs`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "common/golden.rs"]
mod golden;

use std::time::Duration;

use model_actors::wire::{self, WireError};
use model_actors::{
    AnswerEnd, Bytes, Cause, Completion, Constraint, DescribeImage, Device, EmbedImages, EmbedOutputs,
    EmbedPrompt, EmbedTexts, Embeddings, Error, FailureKind, FinishReason, GenerateText, ImageSource, Lane,
    LeasedPicture, Message, ModelId, PaintImage, PaintStep, Picture, RankedDocument, Ranking, RequestPhase,
    RerankDocuments, Sampling, SparseVector, TextChunk, TextToken, TokenLogprob, TokenLogprobs, Tool,
    ToolCall, ToolChoice, Truncate, Usage, VectorArray, VisionMessage, WorkerId,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::json;

use golden::pinned;

fn picture() -> Picture {
    Picture::new(2, 1, vec![0, 1, 2, 253, 254, 255])
}

/// Every message of the shipped capabilities, checked against its files, and the bytes of each.
fn messages() -> Vec<Vec<u8>> {
    let sampling = Sampling::default().with_temperature(0.5).with_top_k(40).with_top_p(0.75).with_seed(7);
    let talk = [Message::system("Be brief."), Message::user("Why?"), Message::assistant("Because.")];
    let texts = EmbedTexts::new(["a cat", "der Bär"]).with_prompt(EmbedPrompt::Named("query".into()));
    let documents = RerankDocuments::new("why", ["It rains.", "Weil es regnet."])
        .with_instruction("Find reasons".to_owned())
        .with_top_n(1);
    let leased = ImageSource::Leased(LeasedPicture::new(picture(), ()));
    let completion = Completion::new("Rain.", FinishReason::Length, Usage::new(12, 3));
    let with_all = GenerateText::from("Once")
        .with_sampling(
            Sampling::of_model()
                .with_frequency_penalty(0.5)
                .with_presence_penalty(-0.5)
                .with_logit_bias([(3, 1.5), (400, -100.0)].into()),
        )
        .with_min_tokens(2)
        .with_stop_tokens(vec![1, 70_000])
        .with_logprobs(5);
    let by_schema = GenerateText::from("Once").with_constraint(Constraint::json_object());
    let parameters = json!({"type": "object", "properties": {"city": {"type": "string", "maxLength": 40}}});
    let tool = Tool::new("weather").with_description("Weather in a city.").with_parameters(parameters);
    let calls =
        vec![ToolCall::new("weather", json!({"city": "Oslo", "days": [1, -2.5, null]})).with_id("abcdefghi")];
    let with_calls = [
        Message::user("Rain?"),
        Message::assistant("").with_tool_calls(calls.clone()),
        Message::tool("no").with_tool_call_id("abcdefghi".to_owned()),
    ];
    let with_tools = GenerateText::chat(with_calls)
        .with_tools(vec![tool])
        .with_tool_choice(ToolChoice::Named("weather".into()))
        .with_parallel_tool_calls(false)
        .with_template_arguments([("enable_thinking".to_owned(), json!(false))].into());
    let token = |token, logprob| TokenLogprob::new(token, vec![0xf0, 0x9f], logprob);
    let logprobs = vec![TokenLogprobs::new(token(7, -0.5), vec![token(9, -0.25), token(7, -0.5)])];
    let painting = PaintImage::from("a red circle")
        .with_negative_prompt("text".to_owned())
        .with_size((64, 32))
        .with_steps(4)
        .with_guidance(7.5)
        .with_scheduler("euler".to_owned())
        .with_preview(true);
    let from_image = PaintImage::from("a red circle")
        .with_image(ImageSource::Picture(picture()))
        .with_strength(0.5)
        .with_mask(leased.clone());
    let question = DescribeImage::new(ImageSource::Picture(picture())).with_question("What is it?");
    let conversation = DescribeImage::chat([
        VisionMessage::system("Be brief."),
        VisionMessage::user([ImageSource::Picture(picture()).into(), "What is it?".into()]),
        VisionMessage::assistant("A line."),
        VisionMessage::user(["And this,".into(), ImageSource::Picture(picture()).into(), "here?".into()]),
    ])
    .with_max_tokens(9);
    let (model, capability) = (ModelId::from("acme/english"), "text_embedding");
    let errors = [
        Error::InvalidInput { cause: Cause::with_data(&Told { words: 3 }) },
        Error::Timeout {
            model: model.clone(),
            capability: capability.into(),
            phase: RequestPhase::Loading { percent: Some(40) },
            after: Duration::from_millis(1500),
        },
        Error::Overloaded {
            model: model.clone(),
            capability: capability.into(),
            lane: Lane::Batch,
            tenant: None,
            capacity: 50,
            retry_after: Duration::from_secs(2),
        },
        Error::MemoryExhausted {
            model: model.clone(),
            capability: capability.into(),
            device: Device::host(),
            needed: Bytes(7),
            free: Bytes(5),
            limit: Bytes(6),
        },
        Error::SpawnFailed {
            model: model.clone(),
            capability: capability.into(),
            failure: FailureKind::OutOfMemory,
            cause: "no page".into(),
        },
        Error::WorkerCrashed {
            model,
            capability: capability.into(),
            worker: WorkerId(3),
            cause: "gone".into(),
        },
        Error::ShuttingDown,
    ];
    vec![
        pinned("embed_texts", &texts),
        pinned(
            "embed_texts_with_a_text",
            &texts.with_prompt(EmbedPrompt::Text("q: ".into())).with_dimensions(64),
        ),
        pinned("embeddings", &Embeddings::new(vec![vec![0.5, -1.0], vec![f32::MIN_POSITIVE, f32::MAX]])),
        pinned("rerank_documents", &documents),
        pinned("ranking", &Ranking::new(vec![RankedDocument::new(1, 0.5, 0.0)], Usage::new(20, 0))),
        pinned(
            "embed_texts_to_tokens",
            &EmbedTexts::from("a cat").with_truncate(Truncate::Refuse).with_outputs(EmbedOutputs::tokens()),
        ),
        pinned(
            "embeddings_with_tokens",
            &Embeddings::new(vec![vec![0.5]])
                .with_usage(Usage::new(3, 0))
                .with_cut(vec![0])
                .with_tokens(vec![vec![TextToken::new(7, "cat")]])
                .with_sparse(vec![SparseVector::new([(7, 0.5)])])
                .with_token_vectors(vec![VectorArray::new(vec![0.5, 1.0], 2)]),
        ),
        pinned("embed_images", &EmbedImages::images([ImageSource::Picture(picture()), leased])),
        pinned("embed_images_texts", &EmbedImages::texts(["a cat"])),
        pinned("generate_text", &GenerateText::chat(talk).with_sampling(sampling.clone()).with_max_tokens(9)),
        pinned("generate_text_with_all", &with_all),
        pinned("generate_text_by_schema", &by_schema),
        pinned("generate_text_with_tools", &with_tools),
        pinned(
            "text_chunk_with_parts",
            &TextChunk::default().with_reasoning("hm").with_tool_calls(calls.clone()),
        ),
        pinned(
            "completion_with_parts",
            &Completion::new("", FinishReason::ToolCalls, Usage::new(1, 2))
                .with_reasoning("hm")
                .with_tool_calls(calls),
        ),
        pinned(
            "generate_text_by_regex",
            &GenerateText::from("7").with_constraint(Constraint::Regex("[0-9]".into())),
        ),
        pinned(
            "describe_image_by_grammar",
            &question.clone().with_constraint(Constraint::Lark("start: \"a\"".into())),
        ),
        pinned("generate_text_with_adapter", &GenerateText::from("Once").with_adapter("polite".to_owned())),
        pinned("generate_text_with_answers", &GenerateText::from("Once").with_answers(3)),
        pinned("describe_image_with_answers", &question.clone().with_answers(2)),
        pinned("text_chunk_of_an_answer", &TextChunk::from("Ra").with_answer(2)),
        pinned(
            "text_chunk_with_an_end",
            &TextChunk::default()
                .with_answer(1)
                .with_end(AnswerEnd::new(FinishReason::Stop, Usage::new(7, 3))),
        ),
        pinned("completion_with_others", &completion.clone().with_others(vec![completion.clone()])),
        pinned("generate_text_raw", &GenerateText::from("Once").with_stop(vec!["\n".to_owned()])),
        pinned("completion", &completion),
        pinned(
            "completion_from_a_cache",
            &Completion::new("Rain.", FinishReason::Stop, Usage::new(130, 3).with_cached_tokens(128)),
        ),
        pinned("describe_image", &question.with_sampling(sampling)),
        pinned("describe_images_in_a_conversation", &conversation),
        pinned("paint_image", &painting),
        pinned("paint_image_from_an_image", &from_image),
        pinned("paint_step", &PaintStep::new(3, 20, Some(picture()))),
        pinned("picture", &picture()),
        pinned("text_chunk", &TextChunk::from("Ra").with_logprobs(logprobs.clone())),
        pinned("completion_with_logprobs", &completion.with_logprobs(logprobs)),
        pinned("errors", &errors),
    ]
}

#[derive(Debug, thiserror::Error, Serialize)]
#[error("{words} words")]
struct Told {
    words: usize,
}

#[test]
fn the_format_is_the_one_of_the_golden_files() {
    messages();
}

#[test]
fn a_message_of_an_older_peer_lacks_fields_and_one_of_a_newer_peer_has_more() {
    #[derive(Serialize)]
    struct Older {
        prompt: Prompt,
    }
    #[derive(Serialize)]
    struct Newer {
        prompt: Prompt,
        mood: &'static str,
        max_tokens: u64,
        nested: Vec<Option<(u8, f32)>>,
    }
    #[derive(Serialize)]
    #[serde(rename_all = "snake_case")]
    enum Prompt {
        Raw(&'static str),
    }
    let older = wire::encode(&Older { prompt: Prompt::Raw("Once") }).unwrap();
    assert_eq!(wire::decode::<GenerateText>(&older).unwrap(), GenerateText::from("Once"));
    let newer =
        Newer { prompt: Prompt::Raw("Once"), mood: "sad", max_tokens: 5, nested: vec![None, Some((1, 2.0))] };
    let newer = wire::encode(&newer).unwrap();
    let expected = GenerateText::from("Once").with_max_tokens(5);
    assert_eq!(wire::decode::<GenerateText>(&newer).unwrap(), expected);
}

#[test]
fn a_format_of_the_future_is_refused_by_its_version() {
    let mut bytes = wire::encode(&EmbedTexts::from("a")).unwrap();
    bytes[..2].copy_from_slice(&(wire::VERSION + 1).to_be_bytes());
    let (found, newest) = (wire::VERSION + 1, wire::VERSION);
    assert_eq!(wire::decode::<EmbedTexts>(&bytes).unwrap_err(), WireError::Version { found, newest });
    assert!(matches!(wire::decode::<EmbedTexts>(&[0, 0]), Err(WireError::Version { found: 0, .. })));
}

#[test]
fn an_image_travels_as_pixels_that_were_checked_and_are_checked_again() {
    for source in [
        ImageSource::Path("cat.png".into()),
        ImageSource::Url("https://example.org/cat.png".into()),
        ImageSource::Base64("aGk=".into()),
        ImageSource::Bytes(vec![1]),
        ImageSource::Picture(Picture::new(2, 2, vec![0; 6])),
        ImageSource::Picture(Picture::new(0, 0, Vec::new())),
    ] {
        let refused = wire::encode(&DescribeImage::new(source)).unwrap_err();
        assert!(matches!(refused, WireError::Unwritable { .. }), "{refused}");
    }
    #[derive(Serialize, Deserialize)]
    struct Claimed {
        width: u64,
        height: u64,
        #[serde(with = "serde_bytes")]
        rgb: Vec<u8>,
    }
    for (width, height) in [(2, 2), (0, 0), (0, 7), (u64::MAX, u64::MAX), (1 << 63, 2), (3, 1)] {
        let bytes = wire::encode(&Claimed { width, height, rgb: vec![0; 6] }).unwrap();
        let refused = wire::decode::<Picture>(&bytes).unwrap_err();
        assert!(matches!(refused, WireError::Malformed { .. }), "{width} x {height}: {refused}");
        wire::decode::<ImageSource>(&bytes).unwrap_err();
    }
}

/// Reads the bytes as every type; it is enough that nothing panics.
fn read_as_everything(bytes: &[u8]) {
    fn reads<T: DeserializeOwned>(bytes: &[u8]) {
        drop(wire::decode::<T>(bytes));
    }
    reads::<EmbedTexts>(bytes);
    reads::<EmbedImages>(bytes);
    reads::<Embeddings>(bytes);
    reads::<GenerateText>(bytes);
    reads::<Completion>(bytes);
    reads::<DescribeImage>(bytes);
    reads::<PaintImage>(bytes);
    reads::<PaintStep>(bytes);
    reads::<Picture>(bytes);
    reads::<Vec<Error>>(bytes);
}

#[test]
fn no_bytes_do_any_harm() {
    let mut random = fastrand::Rng::with_seed(17);
    for message in messages() {
        for end in 0..message.len() {
            read_as_everything(&message[..end]);
        }
        for _ in 0..500 {
            let mut spoilt = message.clone();
            for _ in 0..random.usize(1..4) {
                let place = random.usize(2..spoilt.len());
                spoilt[place] = random.u8(..);
            }
            read_as_everything(&spoilt);
        }
    }
    // Lengths of 4 GiB that nothing follows, and nesting without end.
    for claim in [[0xdd; 5], [0xdf; 5], [0xc6; 5], [0xdb; 5]] {
        read_as_everything(&[&[0, 1][..], &claim[..1], &[0xff; 4]].concat());
        let map = [&[0, 1, 0x81, 0xa3][..], b"rgb", &claim[..1], &[0xff; 4]].concat();
        read_as_everything(&map);
    }
    read_as_everything(&[&[0, 1][..], &[0x91; 1 << 20]].concat());
    read_as_everything(&[&[0, 1, 0x81, 0xa1, b'x'][..], &[0x91; 1 << 20]].concat());
}
