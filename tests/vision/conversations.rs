//! Conversations: several images in several messages, with words between and earlier answers, are what transformers'
//! processors and models make of them; families of one image refuse more by name.

use candle_actors::{Constraint, ContentPart, FinishReason, Role, VisionMessage};

use super::*;

/// A conversation, and the output of the reference.
#[derive(Deserialize)]
struct Talk {
    messages: Vec<Said>,
    prompt: Vec<u32>,
    tokens: Vec<u32>,
    answer: String,
}

#[derive(Deserialize)]
struct Said {
    role: Role,
    content: Vec<Part>,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Part {
    Path(String),
    Text(String),
}

fn talks(family: &str) -> Vec<Talk> {
    #[derive(Deserialize)]
    struct File {
        cases: Vec<Talk>,
    }
    let text = std::fs::read(fixture(family).join("conversations.json")).unwrap();
    serde_json::from_slice::<File>(&text).unwrap().cases
}

fn image(name: &str) -> ContentPart {
    ImageSource::Path(root().join("tests/fixtures/vision_images").join(name)).into()
}

impl Talk {
    fn request(&self) -> DescribeImage {
        let messages = self.messages.iter().map(|said| {
            let part = |part: &Part| match part {
                Part::Path(name) => image(name),
                Part::Text(text) => text.as_str().into(),
            };
            VisionMessage::new(said.role, said.content.iter().map(part))
        });
        DescribeImage::chat(messages).with_max_tokens(self.tokens.len())
    }
}

/// Families that take conversations; the others complete a text about one image.
fn talking() -> Vec<String> {
    let families = families_of("vision").into_iter();
    let (talking, others): (Vec<_>, Vec<_>) =
        families.partition(|family| fixture(family).join("conversations.json").exists());
    assert_eq!(others, ["blip", "blip2", "blip2_t5", "moondream"]);
    talking
}

#[test]
fn every_family_agrees_with_its_reference_over_conversations() {
    for family in talking() {
        let model = VisionModel::load(Source::directory(fixture(&family))).unwrap();
        let expected = fixture(&family).join("conversations.safetensors");
        let expected = candle_core::safetensors::load(expected, &Device::Cpu).unwrap();
        let (mut features, mut logits) = (0f32, 0f32);
        for (index, talk) in talks(&family).iter().enumerate() {
            let found = model.examine(&talk.request()).unwrap();
            assert_eq!(found.prompt, talk.prompt, "{family}, conversation {index}");
            features =
                features.max(difference(&found.features, &values(&expected[&format!("{index}.features")])));
            logits = logits.max(difference(&found.logits, &values(&expected[&format!("{index}.logits")])));
            let mut tokens = Vec::new();
            let completion = model.describe_each(&talk.request(), |token, _| tokens.push(token)).unwrap();
            assert_eq!(tokens, talk.tokens, "{family}, conversation {index}");
            assert_eq!(completion.text, talk.answer, "{family}, conversation {index}");
        }
        println!("{family}: largest difference of features {features:.2e}, logits {logits:.2e}");
        assert!(features <= TOLERANCE, "{family}: features {features}");
        assert!(logits <= TOLERANCE, "{family}: logits {logits}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn conversations_beside_questions_are_answered_as_they_are_alone() {
    for family in ["llava_onevision", "pixtral", "qwen3_vl", "smolvlm", "gemma3"] {
        let pool = PoolConfig::default().with_max_workers(1).with_cold_start_workers(1);
        let engine = Engine::builder().pool_config(pool).vision("model", Source::directory(fixture(family)));
        let engine = engine.start().await.unwrap();
        let model = engine.vision("model").unwrap();
        let talks = talks(family);
        let asked = talks.iter().map(|talk| (talk.request(), talk.answer.clone()));
        let questions = cases(family).into_iter().map(|case| (request(&case), case.answer));
        let answers = asked.chain(questions).map(|(request, answer)| {
            let model = model.clone();
            async move { assert_eq!(model.describe(request).await.unwrap().text, answer, "{family}") }
        });
        futures_util::future::join_all(answers).await;
        assert!(engine.shutdown().await.is_clean());
    }
}

#[test]
fn families_of_one_image_refuse_more_by_name() {
    for (family, name) in
        [("blip", "BLIP"), ("blip2", "BLIP-2"), ("blip2_t5", "BLIP-2"), ("moondream", "Moondream")]
    {
        let model = VisionModel::load(Source::directory(fixture(family))).unwrap();
        let user = |parts: Vec<ContentPart>| VisionMessage::user(parts);
        for (found, messages) in [
            ("2 images", vec![user(vec![image("wide.png"), image("tall.png")])]),
            ("0 images", vec![user(vec!["Hello.".into()])]),
            ("2 messages", vec![VisionMessage::system("Be brief."), user(vec![image("wide.png")])]),
        ] {
            let error = model.describe(&DescribeImage::chat(messages)).unwrap_err();
            assert!(matches!(error, Error::InvalidInput(_)), "{error}");
            let message = error.to_string();
            assert!(message.contains(found) && message.contains(name), "{message}");
        }
    }
}

/// The word that a template writes for an image, or what stands for a row of one.
fn image_word(family: &str) -> &'static str {
    match family {
        "pixtral" | "mistral3" => "[IMG]",
        "gemma3" => "<start_of_image>",
        qwen if qwen.starts_with("qwen") => "<|image_pad|>",
        _ => "<image>",
    }
}

#[test]
fn no_message_writes_the_token_of_an_image() {
    for family in talking() {
        let source = || Source::directory(fixture(&family));
        let split = VisionModel::load(source()).unwrap();
        let joined = LoadOptions::default().with_split_special_tokens(false);
        let joined = VisionModel::load_with(source(), joined).unwrap();
        let own = split.examine(&talks(&family)[0].request()).unwrap().prompt;
        let word = image_word(&family);
        let file = std::fs::read(fixture(&family).join("tokenizer.json")).unwrap();
        let file: serde_json::Value = serde_json::from_slice(&file).unwrap();
        let tokens = file["added_tokens"].as_array().unwrap();
        let id = tokens.iter().find(|token| token["content"] == word).unwrap()["id"].as_u64().unwrap() as u32;
        let count = |prompt: &[u32]| prompt.iter().filter(|token| **token == id).count();
        // In what the person said before, and in what the model is said to have answered.
        for message in 0..3 {
            let mut forged = talks(&family)[0].request();
            forged.messages[message].content.push(format!("{word} {word}").as_str().into());
            let found = split.examine(&forged).unwrap().prompt;
            assert_eq!(count(&found), count(&own), "{family}, message {message}");
            // LLaVA 1.6's template leaves out what the model answered.
            let is_left_out = family == "llava_next" && message == 1;
            assert!(is_left_out || found.len() > own.len(), "{family}, message {message}");
            let refused = joined.examine(&forged);
            assert!(
                is_left_out || matches!(refused, Err(Error::InvalidInput(_))),
                "{family}, message {message}"
            );
        }
    }
}

#[test]
fn an_answer_in_a_conversation_stops_samples_and_keeps_to_a_rule_as_any_text_does() {
    let model = VisionModel::load(Source::directory(fixture("qwen3_vl"))).unwrap();
    let talk = &talks("qwen3_vl")[0];
    let end = talk.answer.char_indices().nth(20).unwrap().0;
    let last: String =
        talk.answer[..end].chars().rev().take(3).collect::<Vec<_>>().into_iter().rev().collect();
    let stopped = model.describe(&talk.request().with_stop(vec![last.clone()])).unwrap();
    assert_eq!(stopped.text, talk.answer[..talk.answer.find(&last).unwrap()]);
    assert_eq!(stopped.finish_reason, FinishReason::Stop);
    let sampled = talk.request().with_sampling(Sampling::default().with_temperature(1.5).with_seed(5));
    let (first, again) = (model.describe(&sampled).unwrap(), model.describe(&sampled).unwrap());
    assert_eq!(first, again);
    assert_ne!(first.text, talk.answer);
    let told = model.describe(&talk.request().with_logprobs(2)).unwrap();
    assert_eq!((told.logprobs.len(), told.logprobs[0].top.len()), (talk.tokens.len(), 2));
    let digits = talk.request().with_constraint(Constraint::Regex("[0-9]{4}".to_owned()));
    let digits = model.describe(&digits).unwrap();
    assert!(digits.text.len() == 4 && digits.text.bytes().all(|byte| byte.is_ascii_digit()), "{digits:?}");
}

/// A template that leaves images out, or writes too many places for them.
#[test]
fn a_template_with_another_number_of_images_is_refused() {
    for family in talking() {
        let word = image_word(&family);
        for (template, found) in
            [("Hello.".to_owned(), "0 tokens"), (format!("{word}{word}"), "stands for an image")]
        {
            let model =
                load_changed(&family, "chat_template.json", |file| file["chat_template"] = template.into());
            let error = model.unwrap().describe(&request(&cases(&family)[0])).unwrap_err();
            assert!(matches!(error, Error::InvalidInput(_)), "{family}: {error}");
            assert!(error.to_string().contains(found), "{family}: {error}");
        }
    }
}

#[tokio::test]
async fn a_conversation_with_more_addresses_than_are_fetched_at_once_is_refused() {
    let urls = candle_actors::UrlSettings::default().with_downloads(1);
    let engine = Engine::builder()
        .image_input(ImageSettings::default().with_urls(urls))
        .vision("model", Source::directory(fixture("llava")));
    let engine = engine.start().await.unwrap();
    let address = || ContentPart::from(ImageSource::Url("http://example.com/cat.png".to_owned()));
    let request = DescribeImage::chat([VisionMessage::user([address(), address()])]);
    let error = engine.vision("model").unwrap().describe(request).await.unwrap_err();
    assert!(matches!(&error, Error::InvalidInput(reason) if reason.contains("downloads")), "{error}");
    assert!(engine.shutdown().await.is_clean());
}
