//! The server as `async-openai` uses it, a client in Rust that reads every answer into types: a field that is missing, or
//! of another type than OpenAI's, is an error here.

use async_openai::Client;
use async_openai::config::OpenAIConfig;
use async_openai::error::OpenAIError;
use async_openai::middleware::ReqwestService;
use async_openai::types::chat::{
    ChatCompletionMessageToolCalls, ChatCompletionRequestAssistantMessage, ChatCompletionRequestMessage,
    ChatCompletionRequestToolMessage, ChatCompletionRequestUserMessage, ChatCompletionStreamOptions,
    ChatCompletionTool, ChatCompletionToolChoiceOption, ChatCompletionTools, CreateChatCompletionRequest,
    FinishReason, FunctionObject, ToolChoiceOptions,
};
use async_openai::types::embeddings::{CreateEmbeddingRequest, EncodingFormat};
use async_openai::types::images::{
    CreateImageEditRequest, CreateImageRequest, Image, ImageEditInput, ImageEditStreamEvent,
    ImageGenStreamEvent, ImageModel, ImageSize,
};
use candle_actors::System;
use futures_util::{StreamExt as _, TryStreamExt as _};
use serde_json::{Value, json};
use serve::Server;

use crate::harness::{Running, engine, models, source, waiting};
use crate::structured;

const KEY: &str = "secret";
const QUESTION: &str =
    "There is a small red circle left of a large blue square. What is left of the blue square?";

/// A client that sends this key, and one request for each call: by itself it repeats those that are refused for now.
fn client(server: &Running, key: &str) -> Client<OpenAIConfig> {
    let tls = rustls::ClientConfig::builder_with_provider(rustls::crypto::ring::default_provider().into());
    let tls = tls.with_safe_default_protocol_versions().unwrap();
    let tls = tls.with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth();
    let http = reqwest::Client::builder().no_proxy().tls_backend_preconfigured(tls).build().unwrap();
    let base = format!("http://{}/v1", server.client.address);
    let config = OpenAIConfig::new().with_api_base(base).with_api_key(key);
    Client::build(http.clone(), config).with_http_service(ReqwestService::new(http))
}

/// A server with a key.
async fn with_key(server: Server, system: System) -> Running {
    Running::start(server.with_key(KEY.to_owned()), system).await
}

fn chat(text: &str) -> CreateChatCompletionRequest {
    let message = ChatCompletionRequestUserMessage::from(text);
    CreateChatCompletionRequest {
        model: "chat".to_owned(),
        messages: vec![message.into()],
        temperature: Some(0.0),
        ..Default::default()
    }
}

#[tokio::test]
async fn a_typed_client_lists_embeds_and_paints() {
    let engine = engine()
        .text_embedding("english", source("english-embedding-small"))
        .text_to_image("painter", source("shapes-text-to-image"))
        .start()
        .await
        .unwrap();
    let system = engine.system().clone();
    let server = with_key(Server::new(engine), system).await;
    let client = client(&server, KEY);
    let listed = client.models().list().await.unwrap();
    let names: Vec<&str> = listed.data.iter().map(|model| model.id.as_str()).collect();
    assert_eq!((listed.object.as_str(), names), ("list", vec!["english", "painter"]));
    assert_eq!(client.models().retrieve("painter").await.unwrap().owned_by, "candle-actors");

    let input = vec!["A cat sleeps on the sofa.", "A kitten naps on the couch.", "The bus was late again."];
    let mut request =
        CreateEmbeddingRequest { model: "english".to_owned(), input: input.into(), ..Default::default() };
    let numbers = client.embeddings().create(request.clone()).await.unwrap();
    let [cat, kitten, bus] = [0, 1, 2].map(|index| numbers.data[index].embedding.as_slice());
    let product = |one: &[f32], other: &[f32]| one.iter().zip(other).map(|(x, y)| x * y).sum::<f32>();
    assert!(product(cat, kitten) > product(cat, bus) + 0.2);
    assert!(numbers.usage.prompt_tokens > 15 && numbers.usage.total_tokens == numbers.usage.prompt_tokens);
    request.encoding_format = Some(EncodingFormat::Base64);
    let bytes = client.embeddings().create_base64(request.clone()).await.unwrap();
    for (coded, plain) in bytes.data.into_iter().zip(&numbers.data) {
        assert_eq!((Vec::<f32>::from(coded.embedding), coded.index), (plain.embedding.clone(), plain.index));
    }
    let short = CreateEmbeddingRequest { dimensions: Some(64), encoding_format: None, ..request };
    assert_eq!(client.embeddings().create(short).await.unwrap().data[0].embedding.len(), 64);

    let request = CreateImageRequest {
        model: ImageModel::Other("painter".to_owned()),
        prompt: "a yellow square left of a green circle".to_owned(),
        size: Some(ImageSize::Other("64x64".to_owned())),
        n: Some(2),
        ..Default::default()
    };
    let painted = client.images().generate(request.clone()).await.unwrap();
    assert_eq!(painted.data.len(), 2);
    for image in &painted.data {
        let Image::B64Json { b64_json, .. } = image.as_ref() else { panic!("{image:?} is no picture") };
        assert!(b64_json.starts_with("iVBORw0KGgo"), "a PNG file");
    }
    let streamed = CreateImageRequest { n: None, partial_images: Some(2), ..request };
    let stream = client.images().generate_stream(streamed).await.unwrap();
    let told: Vec<String> = stream
        .map(|event| match event.unwrap() {
            ImageGenStreamEvent::PartialImage(event) => format!("partial {}", event.partial_image_index),
            ImageGenStreamEvent::Completed(event) => format!("completed {}", event.size),
        })
        .collect()
        .await;
    assert_eq!(told, ["partial 0", "partial 1", "completed 64x64"]);

    let mut edit = CreateImageEditRequest {
        image: ImageEditInput::Image(models().join("shapes/held_out/000.png").into()),
        model: ImageModel::Other("painter".to_owned()),
        prompt: "a green circle".to_owned(),
        n: Some(2),
        ..Default::default()
    };
    assert_eq!(client.images().edit(edit.clone()).await.unwrap().data.len(), 2);
    (edit.n, edit.stream) = (None, Some(true));
    let events: Vec<_> = client.images().edit_stream(edit).await.unwrap().try_collect().await.unwrap();
    assert!(matches!(&events[..], [ImageEditStreamEvent::Completed(event)] if event.usage.total_tokens == 0));
    drop(client);
    assert!(server.end().await.unwrap().is_clean());
}

#[tokio::test]
async fn a_typed_client_chats_whole_and_in_pieces_with_usage() {
    let engine = engine().text_to_text("chat", source("shapes-chat")).start().await.unwrap();
    let system = engine.system().clone();
    let server = with_key(Server::new(engine), system).await;
    let client = client(&server, KEY);
    let whole = client.chat().create(chat(QUESTION)).await.unwrap();
    let choice = &whole.choices[0];
    let text = choice.message.content.as_deref().unwrap();
    assert_eq!((text.trim(), choice.finish_reason), ("The red circle is.", Some(FinishReason::Stop)));
    let usage = whole.usage.clone().unwrap();
    assert!(usage.prompt_tokens > 10 && usage.completion_tokens > 3);
    assert_eq!(usage.total_tokens, usage.prompt_tokens + usage.completion_tokens);

    let options = ChatCompletionStreamOptions { include_usage: Some(true), ..Default::default() };
    let streamed = CreateChatCompletionRequest {
        stream_options: Some(options),
        logprobs: Some(true),
        top_logprobs: Some(2),
        ..chat(QUESTION)
    };
    let stream = client.chat().create_stream(streamed).await.unwrap();
    let mut parts: Vec<_> = stream.try_collect().await.unwrap();
    let last = parts.pop().unwrap();
    assert_eq!(last.usage.unwrap().completion_tokens, usage.completion_tokens);
    assert!(last.choices.is_empty() && parts.iter().all(|part| part.usage.is_none() && part.id == last.id));
    let choices = || parts.iter().flat_map(|part| &part.choices);
    assert_eq!(choices().filter_map(|choice| choice.delta.content.as_deref()).collect::<String>(), text);
    let tokens = choices().filter_map(|choice| choice.logprobs.as_ref()?.content.as_ref()).flatten();
    let tops: Vec<usize> = tokens.map(|token| token.top_logprobs.len()).collect();
    assert_eq!(tops, vec![2; usage.completion_tokens as usize]);
    drop(client);
    assert!(server.end().await.unwrap().is_clean());
}

#[tokio::test]
async fn a_typed_client_calls_tools_and_tells_their_results() {
    let server = structured::callers().await;
    let client = client(&server, KEY);
    let function = FunctionObject {
        name: "describe".to_owned(),
        description: Some("Describes a shape".to_owned()),
        parameters: Some(structured::schema()),
        strict: Some(true),
    };
    let asked = CreateChatCompletionRequest {
        tools: Some(vec![ChatCompletionTools::Function(ChatCompletionTool { function })]),
        tool_choice: Some(ChatCompletionToolChoiceOption::Mode(ToolChoiceOptions::Required)),
        parallel_tool_calls: Some(false),
        ..chat("What is red?")
    };
    let called = client.chat().create(asked.clone()).await.unwrap();
    assert_eq!(called.choices[0].finish_reason, Some(FinishReason::ToolCalls));
    let message = called.choices[0].message.clone();
    let Some([ChatCompletionMessageToolCalls::Function(call)]) = message.tool_calls.as_deref() else {
        panic!("one call of a function was asked for: {message:?}")
    };
    let arguments: Value = serde_json::from_str(&call.function.arguments).unwrap();
    structured::check(&json!(call.function.arguments));

    let stream = client.chat().create_stream(asked.clone()).await.unwrap();
    let parts: Vec<_> = stream.try_collect().await.unwrap();
    let deltas =
        parts.iter().flat_map(|part| &part.choices).filter_map(|choice| choice.delta.tool_calls.as_ref());
    let calls: Vec<_> = deltas.flatten().collect();
    let streamed = calls[0].function.as_ref().unwrap().arguments.as_deref().unwrap();
    assert_eq!((calls.len(), serde_json::from_str::<Value>(streamed).unwrap()), (1, arguments));

    let result =
        ChatCompletionRequestToolMessage { content: "A red one.".into(), tool_call_id: call.id.clone() };
    let mut messages = asked.messages.clone();
    messages.push(ChatCompletionRequestMessage::Assistant(ChatCompletionRequestAssistantMessage {
        tool_calls: message.tool_calls.clone(),
        ..Default::default()
    }));
    messages.push(result.into());
    let again = CreateChatCompletionRequest {
        messages,
        tool_choice: Some(ChatCompletionToolChoiceOption::Mode(ToolChoiceOptions::None)),
        max_completion_tokens: Some(3),
        ..asked
    };
    assert!(client.chat().create(again).await.unwrap().choices[0].message.tool_calls.is_none());
    drop(client);
    assert!(server.end().await.unwrap().is_clean());
}

#[tokio::test]
async fn a_typed_client_reads_what_is_refused() {
    let engine = engine().start().await.unwrap();
    let system = engine.system().clone();
    let (gate, mut told) = waiting(&system, 1);
    let server = with_key(Server::new(engine), system).await;
    let refused = async |key: &str, request: CreateChatCompletionRequest| {
        let Err(OpenAIError::ApiError(error)) = client(&server, key).chat().create(request).await else {
            panic!("it was not refused")
        };
        let status = error.status_code.as_u16();
        (status, error.api_error.code.unwrap(), error.api_error.param)
    };
    let of = |status, code: &str, param: Option<&str>| (status, code.to_owned(), param.map(str::to_owned));
    assert_eq!(refused("wrong", chat("Hi")).await, of(401, "invalid_api_key", None));
    assert_eq!(refused(KEY, chat("Hi")).await, of(404, "model_not_found", Some("model")));
    let wild = CreateChatCompletionRequest { top_p: Some(2.0), ..chat("Hi") };
    assert_eq!(refused(KEY, wild).await, of(400, "invalid_value", Some("top_p")));

    let busy = CreateChatCompletionRequest { model: "waiting".to_owned(), ..chat("Hi") };
    let holder = client(&server, KEY);
    let mut held = holder.chat().create_stream(busy.clone()).await.unwrap();
    held.next().await.unwrap().unwrap();
    told.recv().await.unwrap();
    assert_eq!(refused(KEY, busy).await, of(429, "overloaded", None));
    gate.open();
    let rest: Vec<_> = held.try_collect().await.unwrap();
    let last = rest.iter().flat_map(|part| &part.choices).find_map(|choice| choice.finish_reason);
    assert_eq!(last, Some(FinishReason::Stop));
    drop(holder);
    assert!(server.end().await.unwrap().is_clean());
}
