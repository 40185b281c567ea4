//! Each limit of a request: at it, the request is taken, and one more is refused with the number.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::fmt::Debug;

use model_actors::limits::*;
use model_actors::{
    Capability, Constraint, ContentPart, Cost, DescribeImage, EmbedImages, EmbedOutputs, EmbedTexts,
    GenerateText, ImageEmbedding, ImageSource, Message, PaintImage, Picture, Prompt, RerankDocuments,
    Reranking, Role, Sampling, TextEmbedding, TextToImage, TextToText, Tool, ToolChoice, Vision,
    VisionMessage,
};
use serde_json::json;

/// `of` makes a request of so much of something.
fn holds<C: Capability>(limit: usize, of: impl Fn(usize) -> C::Request)
where
    C::Request: Debug,
{
    C::check(&of(limit)).unwrap();
    for more in [limit + 1, limit * 2] {
        let words = C::check(&of(more)).unwrap_err();
        assert!(
            words.message().contains(&limit.to_string()) && words.message().contains(&more.to_string()),
            "{words}"
        );
    }
}

fn question(bytes: usize, max_tokens: usize) -> DescribeImage {
    let image = ImageSource::Picture(Picture::new(1, 1, vec![0; 3]));
    DescribeImage::new(image)
        .with_question("a".repeat(bytes))
        .with_sampling(Sampling::default())
        .with_max_tokens(max_tokens)
}

#[test]
fn embedding_requests() {
    let text = |count| vec!["a".to_owned(); count];
    let long = |bytes| vec!["a".to_owned(), "a".repeat(bytes)];
    holds::<TextEmbedding>(MAX_ITEMS, |n| EmbedTexts::default().with_texts(text(n)));
    holds::<TextEmbedding>(MAX_TEXT_BYTES, |n| EmbedTexts::default().with_texts(long(n)));
    holds::<ImageEmbedding>(MAX_ITEMS, |n| EmbedImages::texts(text(n)));
    holds::<ImageEmbedding>(MAX_TEXT_BYTES, |n| EmbedImages::texts(long(n)));
    holds::<ImageEmbedding>(MAX_ITEMS, |n| EmbedImages::images(vec![ImageSource::Bytes(Vec::new()); n]));
}

#[test]
fn a_request_to_embed_asks_for_something() {
    let nothing = EmbedOutputs::default().with_vectors(false);
    assert!(TextEmbedding::check(&EmbedTexts::from("a").with_outputs(nothing)).is_err());
    assert!(TextEmbedding::check(&EmbedTexts::from("a").with_outputs(EmbedOutputs::tokens())).is_ok());
}

#[test]
fn requests_to_rerank() {
    let request = || RerankDocuments::new("a", ["a"]);
    holds::<Reranking>(MAX_ITEMS, |n| request().with_documents(vec!["a".to_owned(); n]));
    holds::<Reranking>(MAX_TEXT_BYTES, |n| request().with_documents(vec!["a".to_owned(), "a".repeat(n)]));
    holds::<Reranking>(MAX_TEXT_BYTES, |n| request().with_query("a".repeat(n)));
    holds::<Reranking>(MAX_EMBED_PROMPT_BYTES, |n| request().with_instruction("a".repeat(n)));
    assert!(Reranking::check(&request().with_top_n(0)).is_err());
    assert!(Reranking::check(&request().with_top_n(usize::MAX)).is_ok());
}

#[test]
fn requests_for_text() {
    let request = || GenerateText::from("a");
    holds::<TextToText>(MAX_PROMPT_BYTES, |n| GenerateText::from("a".repeat(n)));
    holds::<TextToText>(MAX_PROMPT_BYTES, |n| GenerateText::chat([Message::user("a".repeat(n))]));
    holds::<TextToText>(MAX_MESSAGES, |n| {
        request().with_prompt(Prompt::Messages(vec![Message::user("a"); n]))
    });
    holds::<TextToText>(MAX_STOPS, |n| request().with_stop(vec!["a".to_owned(); n]));
    holds::<TextToText>(MAX_STOP_BYTES, |n| request().with_stop(vec!["a".repeat(n)]));
    holds::<TextToText>(MAX_TOKENS, |n| request().with_max_tokens(n));
    holds::<TextToText>(MAX_STOP_TOKENS, |n| request().with_stop_tokens(vec![7; n]));
    holds::<TextToText>(MAX_LOGIT_BIASES, |n| sampled(|sampling| sampling.with_logit_bias(biases(n, 1.0))));
    holds::<TextToText>(MAX_TOP_LOGPROBS, |n| request().with_logprobs(n));
    let any = |bytes| Constraint::Regex("a".repeat(bytes));
    holds::<TextToText>(MAX_CONSTRAINT_BYTES, |n| request().with_constraint(any(n)));
    holds::<Vision>(MAX_CONSTRAINT_BYTES, |n| question(1, 1).with_constraint(any(n)));
    assert!(TextToText::check(&request().with_constraint(any(0))).is_err());
    let tool = |index: usize| Tool::new(format!("tool_{index}"));
    let chat = || GenerateText::chat([Message::user("a")]);
    holds::<TextToText>(MAX_TOOLS, |n| chat().with_tools((0..n).map(tool).collect()));
    holds::<TextToText>(MAX_TOOL_NAME, |n| chat().with_tools(vec![Tool::new("a".repeat(n))]));
    let described = |n: usize| tool(0).with_parameters(json!({})).with_description("a".repeat(n - 2));
    holds::<TextToText>(MAX_TOOL_BYTES, |n| chat().with_tools(vec![described(n)]));
    let named = |n: usize| [("a".to_owned(), json!("a".repeat(n - 3)))].into();
    holds::<TextToText>(MAX_TOOL_BYTES, |n| chat().with_template_arguments(named(n)));
    for refused in [
        chat().with_tools(vec![tool(1), tool(1)]),
        chat().with_tools(vec![Tool::new("a b")]),
        chat().with_tool_choice(ToolChoice::Required),
        chat().with_tools(vec![tool(1)]).with_tool_choice(ToolChoice::Named("tool_2".into())),
        chat().with_tools(vec![tool(1)]).with_constraint(any(1)),
        request().with_tools(vec![tool(1)]),
    ] {
        assert!(TextToText::check(&refused).is_err(), "{refused:?}");
    }
    let words = chat().with_tools(vec![tool(1)]).with_constraint(any(1)).with_tool_choice(ToolChoice::None);
    assert!(TextToText::check(&words).is_ok());
    holds::<TextToText>(MAX_LOGPROBS, |n| request().with_max_tokens(n).with_logprobs(0));
    holds::<TextToText>(MAX_ANSWERS, |n| request().with_answers(n));
    holds::<Vision>(MAX_ANSWERS, |n| question(1, 1).with_answers(n));
    for (answers, taken) in [(2, true), (3, false)] {
        let asked = request().with_max_tokens(MAX_LOGPROBS / 2).with_answers(answers).with_logprobs(0);
        assert_eq!(TextToText::check(&asked).is_ok(), taken, "{answers} answers");
    }
    for answers in [0, usize::MAX] {
        assert!(TextToText::check(&request().with_answers(answers).with_logprobs(0)).is_err(), "{answers}");
    }
    let cost = |answers| TextToText::cost(&request().with_max_tokens(50).with_answers(answers));
    assert_eq!((cost(1), cost(3)), (Cost(50), Cost(150)));
    holds::<TextToText>(300, |n| request().with_max_tokens(300).with_min_tokens(n));
    let most = MAX_LOGPROBS / (MAX_TOP_LOGPROBS + 1);
    for (tokens, taken) in [(most, true), (most + 1, false), (MAX_TOKENS, false)] {
        let asked = request().with_max_tokens(tokens).with_logprobs(MAX_TOP_LOGPROBS);
        assert_eq!(TextToText::check(&asked).is_ok(), taken, "{tokens}");
    }
    assert!(TextToText::check(&request().with_max_tokens(usize::MAX)).is_err());
    assert!(TextToText::check(&request().with_max_tokens(0)).is_err());
}

fn biases(count: usize, bias: f32) -> BTreeMap<u32, f32> {
    (0..count as u32).map(|token| (token, bias)).collect()
}

fn sampled(set: impl Fn(Sampling) -> Sampling) -> GenerateText {
    GenerateText::from("a").with_sampling(set(Sampling::default()))
}

#[test]
fn penalties_and_biases_have_ranges() {
    let takes = |set: fn(Sampling, f32) -> Sampling, value| {
        let request = sampled(|sampling| set(sampling, value));
        let image = ImageSource::Bytes(Vec::new());
        let about_image = DescribeImage::new(image).with_sampling(request.sampling.clone());
        let taken = TextToText::check(&request).is_ok();
        assert_eq!(taken, Vision::check(&about_image).is_ok());
        taken
    };
    for (set, most) in [
        (Sampling::with_frequency_penalty as fn(Sampling, f32) -> Sampling, MAX_PENALTY),
        (Sampling::with_presence_penalty, MAX_PENALTY),
        (|sampling, bias| sampling.with_logit_bias(biases(2, bias)), MAX_LOGIT_BIAS),
    ] {
        assert!(takes(set, most) && takes(set, -most) && takes(set, 0.0));
        for bad in [most * 1.01, -most * 1.01, f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert!(!takes(set, bad), "{bad}");
        }
    }
}

#[test]
fn a_conversation_about_images_has_messages_with_content_and_without_tools() {
    let check = |messages: Vec<VisionMessage>| Vision::check(&DescribeImage::chat(messages));
    assert!(check(vec![VisionMessage::system("Be brief."), VisionMessage::user(["Why?".into()])]).is_ok());
    assert!(check(Vec::new()).is_err());
    assert!(check(vec![VisionMessage::user([])]).is_err());
    assert!(check(vec![VisionMessage::new(Role::Tool, ["4".into()])]).is_err());
}

#[test]
fn a_question_takes_the_place_of_the_texts_of_the_last_message() {
    let image = || ImageSource::Picture(Picture::new(1, 1, vec![0; 3]));
    let texts = |request: &DescribeImage| -> Vec<String> {
        request.messages.iter().flat_map(VisionMessage::texts).map(str::to_owned).collect()
    };
    let asked = DescribeImage::new(image()).with_question("Why?").with_question("How?");
    assert_eq!((texts(&asked), asked.images().count()), (vec!["How?".to_owned()], 1));
    let unasked = asked.with_question("");
    assert_eq!((texts(&unasked), unasked.images().count()), (Vec::new(), 1));
    let earlier = [VisionMessage::user(["a".into(), image().into()]), VisionMessage::assistant("b")];
    let next = DescribeImage::chat(earlier.into_iter().chain([VisionMessage::user([image().into()])]));
    assert_eq!(texts(&next.with_question("c")), ["a", "b", "c"]);
    assert_eq!(texts(&DescribeImage::default().with_question("d")), ["d"]);
}

#[test]
fn requests_with_and_for_images() {
    holds::<Vision>(MAX_STOPS, |n| question(1, 1).with_stop(vec!["a".to_owned(); n]));
    holds::<Vision>(MAX_STOP_TOKENS, |n| question(1, 1).with_stop_tokens(vec![7; n]));
    holds::<Vision>(MAX_TOP_LOGPROBS, |n| question(1, 1).with_logprobs(n));
    holds::<Vision>(300, |n| question(1, 300).with_min_tokens(n));
    holds::<Vision>(MAX_PROMPT_BYTES, |n| question(n, 1));
    let image = || ContentPart::from(ImageSource::Path("a.png".into()));
    holds::<Vision>(MAX_IMAGES, |n| DescribeImage::chat([VisionMessage::user(vec![image(); n])]));
    holds::<Vision>(MAX_IMAGES, |n| DescribeImage::chat(vec![VisionMessage::user([image()]); n]));
    holds::<Vision>(MAX_PARTS, |n| DescribeImage::chat([VisionMessage::user(vec!["a".into(); n])]));
    holds::<Vision>(MAX_MESSAGES, |n| DescribeImage::chat(vec![VisionMessage::assistant("a"); n]));
    holds::<Vision>(MAX_TOKENS, |n| question(1, n));
    holds::<TextToImage>(MAX_PAINTING_PROMPT_BYTES, |n| PaintImage::from("a".repeat(n)));
    holds::<TextToImage>(MAX_PAINTING_PROMPT_BYTES, |n| {
        PaintImage::from("a").with_negative_prompt("a".repeat(n))
    });
    holds::<TextToImage>(MAX_GUIDANCE as usize, |n| PaintImage::from("a").with_guidance(n as f32));
    for guidance in [-0.1, f32::NAN, f32::INFINITY] {
        assert!(TextToImage::check(&PaintImage::from("a").with_guidance(guidance)).is_err());
    }
    for size in [(0, 8), (8, 0), (usize::MAX, usize::MAX), (1 << 63, 2)] {
        assert!(TextToImage::check(&PaintImage::from("a").with_size(size)).is_err());
    }
    let from_image = || PaintImage::from("a").with_image(ImageSource::Path("a.png".into()));
    for strength in [0.0, -0.5, 1.01, f32::NAN] {
        assert!(TextToImage::check(&from_image().with_strength(strength)).is_err(), "{strength}");
    }
    assert!(TextToImage::check(&from_image().with_strength(1.0)).is_ok());
    assert!(TextToImage::check(&PaintImage::from("a").with_strength(0.5)).is_err());
    assert!(TextToImage::check(&PaintImage::from("a").with_mask(ImageSource::Path("a.png".into()))).is_err());
    holds::<TextToImage>(MAX_STEPS, |n| PaintImage::from("a").with_steps(n));
    holds::<TextToImage>(MAX_PAINTED_SIDE, |n| PaintImage::from("a").with_size((n, 1)));
    holds::<TextToImage>(MAX_PAINTED_SIDE, |n| PaintImage::from("a").with_size((1, n)));
}

#[test]
fn an_image_shows_neither_its_address_nor_its_content() {
    let url = ImageSource::Url("https://user:secret@example.org/secret?secret".to_owned());
    let sources = [url, ImageSource::Base64("secret".to_owned()), ImageSource::Bytes(b"secret".to_vec())];
    for source in sources {
        let words = format!("{source:?} {:?}", EmbedImages::images([source.clone()]));
        assert!(!words.contains("secret") && !words.contains("115"), "{words}");
    }
}
