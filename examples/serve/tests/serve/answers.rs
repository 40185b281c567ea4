//! Answers that clients of OpenAI read, from the small models of the repository.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use candle_actors::{ContentPart, DescribeImage, ImageSource, Source, SourceSpec, VisionMessage};
use serde_json::{Value, json};

use crate::harness::{Running, engine, fixture, models, source};

const QUESTION: &str =
    "There is a small red circle left of a large blue square. What is left of the blue square?";

fn chat(content: &str) -> Value {
    json!({ "model": "chat", "messages": [{ "role": "user", "content": content }], "temperature": 0 })
}

/// The object with further fields.
fn with(mut request: Value, fields: Value) -> Value {
    request.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    request
}

async fn chats() -> Running {
    Running::over(engine().text_to_text("chat", source("shapes-chat")).start().await.unwrap()).await
}

#[tokio::test]
async fn a_chat_answers_whole_and_in_pieces_alike() {
    let server = chats().await;
    let response = server.client.post("/v1/chat/completions", &chat(QUESTION)).await;
    assert_eq!(response.status, 200);
    assert!(response.header("x-request-id").is_some());
    let whole = response.json().await;
    assert_eq!(whole["object"], "chat.completion");
    assert_eq!(whole["model"], "chat");
    let choice = &whole["choices"][0];
    let text = choice["message"]["content"].as_str().unwrap();
    assert_eq!((text.trim(), &choice["message"]["role"]), ("The red circle is.", &json!("assistant")));
    assert_eq!((&choice["finish_reason"], &choice["index"]), (&json!("stop"), &json!(0)));
    let usage = &whole["usage"];
    let [prompt, completion, total] =
        ["prompt_tokens", "completion_tokens", "total_tokens"].map(|name| usage[name].as_u64().unwrap());
    assert!(prompt > 10 && completion > 3 && total == prompt + completion, "{usage}");

    let streamed = json!({ "stream": true, "stream_options": { "include_usage": true } });
    let response = server.client.post("/v1/chat/completions", &with(chat(QUESTION), streamed)).await;
    assert_eq!(response.header("content-type"), Some("text/event-stream"));
    let (mut events, done) = response.events().await;
    assert!(done);
    let last = events.pop().unwrap();
    assert_eq!((&last["choices"], &last["usage"]), (&json!([]), usage));
    assert!(events.iter().all(|event| event["object"] == "chat.completion.chunk"));
    assert!(events.iter().all(|event| event["id"] == last["id"] && event["usage"].is_null()));
    let choices: Vec<&Value> = events.iter().map(|event| &event["choices"][0]).collect();
    assert_eq!(choices[0]["delta"], json!({ "role": "assistant", "content": "" }));
    let pieces: String = choices.iter().filter_map(|choice| choice["delta"]["content"].as_str()).collect();
    assert_eq!(pieces, text);
    let reasons: Vec<&Value> = choices.iter().map(|choice| &choice["finish_reason"]).collect();
    let (end, before) = reasons.split_last().unwrap();
    assert!(**end == "stop" && before.iter().all(|reason| reason.is_null()));
    assert!(server.end().await.unwrap().is_clean());
}

#[tokio::test]
async fn ends_seeds_and_several_answers_are_as_asked() {
    let server = chats().await;
    let ask = async |fields: Value| {
        let response = server.client.post("/v1/chat/completions", &with(chat(QUESTION), fields)).await;
        assert_eq!(response.status, 200);
        response.json().await
    };
    let cut = ask(json!({ "max_completion_tokens": 2 })).await;
    assert_eq!(cut["choices"][0]["finish_reason"], "length");
    assert_eq!(cut["usage"]["completion_tokens"], 2);
    let stopped = ask(json!({ "stop": " circle" })).await;
    assert_eq!(stopped["choices"][0]["finish_reason"], "stop");
    assert_eq!(stopped["choices"][0]["message"]["content"].as_str().unwrap().trim(), "The red");

    let wild = json!({ "temperature": 5.0, "seed": 7, "n": 3, "max_tokens": 12, "user": "somebody" });
    let texts = |answer: &Value| -> Vec<String> {
        let choices = answer["choices"].as_array().unwrap();
        choices.iter().map(|choice| choice["message"]["content"].to_string()).collect()
    };
    let (first, again) = (ask(wild.clone()).await, ask(wild.clone()).await);
    assert_eq!(texts(&first).len(), 3);
    assert_eq!(texts(&first), texts(&again));
    assert!(texts(&first)[0] != texts(&first)[1], "{first}");
    let alone = ask(json!({ "max_tokens": 12 })).await;
    assert_eq!(first["usage"]["prompt_tokens"], alone["usage"]["prompt_tokens"], "a prompt counts once");

    // One ends before the others, and a stream says so then.
    let texts = texts(&first);
    let letters: Vec<char> = texts[0].trim_matches('"').chars().collect();
    let mut pieces = letters.windows(2).map(|pair| pair.iter().collect::<String>());
    let stop = pieces.find(|piece| !texts[1].contains(piece) && !texts[2].contains(piece)).unwrap();
    let cut = with(wild, json!({ "stop": stop }));
    let whole = ask(cut.clone()).await;
    let streamed = json!({ "stream": true, "stream_options": { "include_usage": true } });
    let asked = with(with(chat(QUESTION), cut), streamed);
    let (mut events, done) = server.client.post("/v1/chat/completions", &asked).await.events().await;
    assert_eq!((done, &events.pop().unwrap()["usage"]), (true, &whole["usage"]));
    let choices: Vec<&Value> = events.iter().map(|event| &event["choices"][0]).collect();
    let places = [0, 1, 2].map(|index| {
        let own = || choices.iter().enumerate().filter(move |(_, choice)| choice["index"] == index);
        let ends: Vec<_> = own().filter(|(_, choice)| !choice["finish_reason"].is_null()).collect();
        let [(place, end)] = ends[..] else { panic!("{ends:?}") };
        assert_eq!(end["finish_reason"], whole["choices"][index]["finish_reason"]);
        assert!(own().all(|(other, _)| other <= place), "nothing comes after the end of a choice");
        place
    });
    assert_eq!(choices[places[0]]["finish_reason"], "stop");
    assert!(places[0] + 2 < places[1].min(places[2]), "{places:?}");
    assert!(server.end().await.unwrap().is_clean());
}

#[tokio::test]
async fn log_probabilities_and_biases_are_those_of_the_tokens() {
    let server = chats().await;
    let asked = with(chat(QUESTION), json!({ "logprobs": true, "top_logprobs": 2 }));
    let whole = server.client.post("/v1/chat/completions", &asked).await.json().await;
    let tokens = whole["choices"][0]["logprobs"]["content"].as_array().unwrap();
    assert_eq!(whole["usage"]["completion_tokens"], tokens.len());
    let words: String = tokens.iter().map(|token| token["token"].as_str().unwrap()).collect();
    assert!(words.starts_with(whole["choices"][0]["message"]["content"].as_str().unwrap()), "{words}");
    for token in tokens {
        let top = token["top_logprobs"].as_array().unwrap();
        // The choice is greedy.
        assert!(top.len() == 2 && top[0]["token"] == token["token"] && top[0]["bytes"] == token["bytes"]);
        assert!(top[0]["logprob"].as_f64().unwrap() >= top[1]["logprob"].as_f64().unwrap());
    }
    let streamed = with(asked, json!({ "stream": true }));
    let (events, done) = server.client.post("/v1/chat/completions", &streamed).await.events().await;
    let parts = events.iter().filter_map(|event| event["choices"][0]["logprobs"]["content"].as_array());
    assert!(done && parts.flatten().eq(tokens));

    let biased = json!({
        "model": "chat", "prompt": "A", "temperature": 0, "max_tokens": 3, "logprobs": 0,
        "logit_bias": { "300": 100 },
    });
    let whole = server.client.post("/v1/completions", &biased).await.json().await;
    let told = &whole["choices"][0]["logprobs"];
    let length = told["tokens"][0].as_str().unwrap().chars().count();
    assert_eq!((&told["tokens"][0], &told["tokens"][1]), (&told["tokens"][1], &told["tokens"][2]));
    assert_eq!(told["text_offset"], json!([0, length, 2 * length]));
    assert!(server.end().await.unwrap().is_clean());
}

#[tokio::test]
async fn completions_continue_each_prompt() {
    let server = chats().await;
    let prompts = json!(["Once upon a time there was a", "A small red circle"]);
    let request = json!({ "model": "chat", "prompt": prompts, "temperature": 0, "max_tokens": 5 });
    let whole = server.client.post("/v1/completions", &request).await.json().await;
    assert_eq!(whole["object"], "text_completion");
    let texts: Vec<&str> =
        whole["choices"].as_array().unwrap().iter().map(|choice| choice["text"].as_str().unwrap()).collect();
    assert!(texts.len() == 2 && texts[0] != texts[1], "{texts:?}");
    let response = server.client.post("/v1/completions", &with(request, json!({ "stream": true }))).await;
    let (events, done) = response.events().await;
    assert!(done);
    for (index, text) in texts.iter().enumerate() {
        let own = events.iter().map(|event| &event["choices"][0]).filter(|choice| choice["index"] == index);
        let pieces: String = own.map(|choice| choice["text"].as_str().unwrap()).collect();
        assert_eq!(pieces, *text);
    }
    assert!(server.end().await.unwrap().is_clean());
}

#[tokio::test]
async fn vectors_are_the_same_as_numbers_and_in_base64() {
    let embedding = engine().text_embedding("acme/english", source("english-embedding-small"));
    let server = Running::over(embedding.start().await.unwrap()).await;
    let ask = async |fields: Value| {
        let request = with(json!({ "model": "acme/english" }), fields);
        let response = server.client.post("/v1/embeddings", &request).await;
        assert_eq!(response.status, 200);
        response.json().await
    };
    let texts = json!(["A cat sleeps.", "It rains."]);
    let numbers = ask(json!({ "input": texts })).await;
    assert_eq!((&numbers["object"], &numbers["model"]), (&json!("list"), &json!("acme/english")));
    let vectors: Vec<Vec<f32>> = (0..2)
        .map(|index| serde_json::from_value(numbers["data"][index]["embedding"].clone()).unwrap())
        .collect();
    assert_eq!((vectors[0].len(), &numbers["data"][1]["index"]), (192, &json!(1)));
    let tokens = numbers["usage"]["prompt_tokens"].as_u64().unwrap();
    assert!(tokens > 8 && numbers["usage"]["total_tokens"] == tokens, "{tokens} tokens");
    let long = json!({ "model": "acme/english", "input": "word ".repeat(2000) });
    assert_eq!(server.client.post("/v1/embeddings", &long).await.status, 400);
    assert_eq!(
        server.client.post("/v1/embeddings", &with(long, json!({ "truncate": true }))).await.status,
        200
    );
    let bytes = ask(json!({ "input": texts, "encoding_format": "base64" })).await;
    for (index, vector) in vectors.iter().enumerate() {
        let encoded = bytes["data"][index]["embedding"].as_str().unwrap();
        let decoded = STANDARD.decode(encoded).unwrap();
        let numbers = decoded.chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()));
        assert_eq!(numbers.collect::<Vec<_>>(), *vector);
    }
    let one = ask(json!({ "input": "A cat sleeps.", "dimensions": 64 })).await;
    assert_eq!(one["data"][0]["embedding"].as_array().unwrap().len(), 64);

    let list = server.client.get("/v1/models").await.json().await;
    let model = &list["data"][0];
    assert_eq!((&model["id"], &model["state"]), (&json!("acme/english"), &json!("ready")));
    assert_eq!((&model["object"], &model["capability"]), (&json!("model"), &json!("text_embedding")));
    let alone = server.client.get("/v1/models/acme/english").await.json().await;
    assert_eq!(alone["id"], "acme/english");
    assert!(server.end().await.unwrap().is_clean());
}

#[tokio::test]
async fn a_question_about_an_image_is_answered() {
    let server =
        Running::over(engine().vision("describer", source("shapes-vision")).start().await.unwrap()).await;
    let file = std::fs::read(models().join("shapes/held_out/000.png")).unwrap();
    let url = format!("data:image/png;base64,{}", STANDARD.encode(file));
    let content = json!([
        { "type": "image_url", "image_url": { "url": url } },
        { "type": "text", "text": "What colour is the triangle?" },
    ]);
    let messages = json!([{ "role": "user", "content": content }]);
    let request = json!({ "model": "describer", "messages": messages, "temperature": 0 });
    let whole = server.client.post("/v1/chat/completions", &request).await.json().await;
    let text = whole["choices"][0]["message"]["content"].as_str().unwrap();
    assert_eq!(text.trim(), "The triangle is red.");
    let stopped = with(request.clone(), json!({ "stop": " is" }));
    let stopped = server.client.post("/v1/chat/completions", &stopped).await.json().await;
    assert_eq!(stopped["choices"][0]["message"]["content"].as_str().unwrap().trim(), "The triangle");
    let response =
        server.client.post("/v1/chat/completions", &with(request, json!({ "stream": true }))).await;
    let (events, done) = response.events().await;
    let pieces = events.iter().filter_map(|event| event["choices"][0]["delta"]["content"].as_str());
    assert!(done && pieces.collect::<String>() == text);
    assert!(server.end().await.unwrap().is_clean());
}

#[tokio::test]
async fn images_in_several_messages_of_a_conversation_are_seen_in_their_order() {
    let describer = engine().vision("describer", source("shapes-vision")).start().await.unwrap();
    let library = describer.vision("describer").unwrap();
    let server = Running::over(describer).await;
    let path = |name: &str| models().join("shapes/held_out").join(name);
    let (first, second) = (path("000.png"), path("001.png"));
    let part = |path: &std::path::Path| {
        let url = format!("data:image/png;base64,{}", STANDARD.encode(std::fs::read(path).unwrap()));
        json!({ "type": "image_url", "image_url": { "url": url } })
    };
    let text = |text: &str| json!({ "type": "text", "text": text });
    let messages = json!([
        { "role": "user", "content": [text("What colour is the triangle?"), part(&first)] },
        { "role": "assistant", "content": "The triangle is red." },
        { "role": "user", "content": [text("And here:"), part(&second), text("Describe the picture.")] },
    ]);
    let request = json!({ "model": "describer", "messages": messages, "temperature": 0, "max_tokens": 12 });
    let whole = server.client.post("/v1/chat/completions", &request).await.json().await;
    let image = |path: &std::path::Path| ContentPart::from(ImageSource::Path(path.to_owned()));
    let conversation = |first, second| {
        DescribeImage::chat([
            VisionMessage::user(["What colour is the triangle?".into(), image(first)]),
            VisionMessage::assistant("The triangle is red."),
            VisionMessage::user(["And here:".into(), image(second), "Describe the picture.".into()]),
        ])
        .with_max_tokens(12)
    };
    let expected = library.describe(conversation(&first, &second)).await.unwrap();
    assert_eq!(whole["choices"][0]["message"]["content"], expected.text);
    assert_eq!(whole["usage"]["prompt_tokens"], expected.usage.prompt_tokens);
    let exchanged = library.describe(conversation(&second, &first)).await.unwrap();
    assert_ne!(exchanged.text, expected.text);
    assert!(server.end().await.unwrap().is_clean());
}

#[tokio::test]
async fn documents_are_ranked_with_their_texts_if_asked() {
    let reranker = engine().reranking("judge", Source::directory(fixture("reranking/bert")));
    let server = Running::over(reranker.start().await.unwrap()).await;
    let documents: Vec<String> = (0..40).map(|number| format!("document {number}")).collect();
    let request = json!({ "model": "judge", "query": "a query", "documents": documents, "top_n": 35 });
    let plain = server.client.post("/v1/rerank", &request).await.json().await;
    let results = plain["results"].as_array().unwrap();
    let scores: Vec<f64> = results.iter().map(|result| result["relevance_score"].as_f64().unwrap()).collect();
    assert!(scores.len() == 35 && scores.is_sorted_by(|one, other| one >= other), "{scores:?}");
    assert!(plain["usage"]["total_tokens"].as_u64().unwrap() > 40, "{plain}");
    let asked = json!({ "return_documents": true, "top_n": 3 });
    let told = server.client.post("/v1/rerank", &with(request, asked)).await.json().await;
    for (result, same) in told["results"].as_array().unwrap().iter().zip(results) {
        let index = result["index"].as_u64().unwrap();
        assert_eq!(
            (&result["document"]["text"], &same["index"]),
            (&json!(format!("document {index}")), &json!(index))
        );
    }
    assert!(server.end().await.unwrap().is_clean());
}

fn sides(picture: &Value) -> (u32, u32) {
    let file = STANDARD.decode(picture["b64_json"].as_str().unwrap()).unwrap();
    let picture = image::load_from_memory(&file).unwrap();
    (picture.width(), picture.height())
}

#[tokio::test]
async fn a_picture_is_painted_whole_and_with_partial_ones() {
    let painter = engine().text_to_image("painter", source("shapes-text-to-image"));
    let server = Running::over(painter.start().await.unwrap()).await;
    let prompt = "a yellow square left of a green circle";
    let request = json!({ "model": "painter", "prompt": prompt, "steps": 4, "seed": 1 });
    let two = with(request.clone(), json!({ "n": 2 }));
    let whole = server.client.post("/v1/images/generations", &two).await.json().await;
    assert_eq!((sides(&whole["data"][0]), sides(&whole["data"][1])), ((64, 64), (64, 64)));
    assert!(whole["data"][0] != whole["data"][1]);

    let streamed = with(request, json!({ "stream": true, "partial_images": 2 }));
    let mut response = server.client.post("/v1/images/generations", &streamed).await;
    let mut told = Vec::new();
    let mut last = Value::Null;
    while let Some((name, data)) = response.event().await {
        last = serde_json::from_str(&data).unwrap();
        assert_eq!(last["type"], name);
        sides(&last);
        told.push((name, last["partial_image_index"].as_u64()));
    }
    let partial = |index| ("image_generation.partial_image".to_owned(), Some(index));
    assert_eq!(told, [partial(0), partial(1), ("image_generation.completed".to_owned(), None)]);
    assert_eq!(last["b64_json"], whole["data"][0]["b64_json"], "the same seed, the same picture");
    assert!(server.end().await.unwrap().is_clean());
}

/// An adapter is a model of its own for clients.
#[tokio::test(flavor = "multi_thread")]
async fn an_adapter_is_listed_with_its_base_and_answers_by_its_name() {
    let adapter = Source::directory(fixture("adapters/llama/plain"));
    let spec =
        SourceSpec::from(Source::directory(fixture("text_to_text/llama"))).with_adapter("plain", adapter);
    let server = Running::over(engine().text_to_text("base", spec).start().await.unwrap()).await;
    let list = server.client.get("/v1/models").await.json().await;
    let of = |field: &str| {
        list["data"].as_array().unwrap().iter().map(|one| one[field].clone()).collect::<Vec<_>>()
    };
    assert_eq!(of("id"), ["base", "base:plain"]);
    assert_eq!(of("parent"), [Value::Null, "base".into()]);
    let one = server.client.get("/v1/models/base:plain").await.json().await;
    assert_eq!(one["parent"], "base");
    let mut texts = Vec::new();
    for model in ["base", "base:plain"] {
        let completion = json!({ "model": model, "prompt": "The cat", "max_tokens": 16 });
        let completed = server.client.post("/v1/completions", &completion).await.json().await;
        assert_eq!(completed["model"], model);
        let chat =
            json!({ "model": model, "messages": [{ "role": "user", "content": "Hi" }], "max_tokens": 16 });
        let said = server.client.post("/v1/chat/completions", &chat).await.json().await;
        texts.push((
            completed["choices"][0]["text"].clone(),
            said["choices"][0]["message"]["content"].clone(),
        ));
    }
    assert!(texts[0].0 != texts[1].0 && texts[0].1 != texts[1].1, "{texts:?}");
    for model in ["base:other", "other:plain"] {
        let asked = json!({ "model": model, "prompt": "The cat" });
        let refused = server.client.post("/v1/completions", &asked).await;
        assert_eq!(refused.status, 404);
        assert_eq!(refused.json().await["error"]["code"], "model_not_found");
    }
}
