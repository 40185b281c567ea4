//! Tokens of texts as applications see them: counted in outputs, listed and counted on handles, cut with a word about it or
//! refused with both numbers; and the facts of models.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use candle_actors::{
    EmbedOutputs, EmbedTexts, Engine, Error, ErrorKind, RerankDocuments, RerankingModel, Source,
    StandaloneModel, TextEmbedder, TextEmbeddingModel, Truncate,
};
use serde::Deserialize;

fn source(capability: &str, family: &str) -> Source {
    Source::directory(common::root().join("tests/fixtures").join(capability).join(family))
}

/// A text's tokens as transformers has them.
#[derive(Deserialize)]
struct Case {
    family: String,
    text: String,
    ids: Vec<u32>,
}

fn cases() -> Vec<Case> {
    #[derive(Deserialize)]
    struct File {
        cases: Vec<Case>,
    }
    serde_json::from_str::<File>(include_str!("references/whole_tokens.json")).unwrap().cases
}

const FOX: &str = "The quick brown fox jumps over the lazy dog. ";

#[test]
fn whole_texts_have_the_tokens_of_the_reference() {
    let (mut longer, mut model): (usize, Option<(String, TextEmbeddingModel)>) = (0, None);
    for case in cases() {
        if model.as_ref().is_none_or(|(family, _)| *family != case.family) {
            let loaded = TextEmbeddingModel::load(source("text_embedding", &case.family)).unwrap();
            model = Some((case.family.clone(), loaded));
        }
        let (_, model) = model.as_ref().unwrap();
        let request = EmbedTexts::from(case.text.as_str());
        let asked = request.clone().with_outputs(EmbedOutputs::tokens());
        let listed = model.embeddings(&asked).unwrap();
        assert!(listed.vectors.is_empty() && listed.usage.prompt_tokens == 0);
        let ids: Vec<u32> = listed.tokens[0].iter().map(|token| token.id).collect();
        assert_eq!(ids, case.ids, "{} {:?}", case.family, case.text);
        // The output counts those that went through the model, and tells of the others.
        let embedded = model.embeddings(&request).unwrap();
        let is_longer = ids.len() > model.max_tokens();
        longer += usize::from(is_longer);
        assert_eq!(embedded.usage.prompt_tokens, ids.len().min(model.max_tokens()), "{}", case.family);
        assert_eq!(embedded.cut, if is_longer { vec![0] } else { vec![] }, "{}", case.family);
        let refused = model.embeddings(&request.with_truncate(Truncate::Refuse));
        match refused {
            Err(Error::TextTooLong { index: 0, tokens, limit }) if is_longer => {
                assert_eq!((tokens, limit), (ids.len(), model.max_tokens()));
            }
            refused => assert!(!is_longer && refused.is_ok()),
        }
    }
    assert!(longer >= 7, "{longer}");
}

#[test]
fn tokens_come_beside_vectors_and_with_the_prompt() {
    let model = TextEmbeddingModel::load(source("text_embedding", "bert")).unwrap();
    let request = EmbedTexts::new(["a", "The cat sleeps."]);
    let both = model.embeddings(&request.clone().with_outputs(EmbedOutputs::default().with_tokens(true)));
    let both = both.unwrap();
    assert_eq!(both.vectors, model.embed_request(&request).unwrap());
    let texts: Vec<&str> = both.tokens[0].iter().map(|token| token.text.as_str()).collect();
    assert_eq!(texts, ["[CLS]", "a", "[SEP]"]);
    let count = |request: &EmbedTexts| model.embeddings(request).unwrap().usage.prompt_tokens;
    assert_eq!(count(&request), both.tokens.iter().map(Vec::len).sum::<usize>());
    let prompted = request.with_prompt(candle_actors::EmbedPrompt::Text("query: ".to_owned()));
    assert!(count(&prompted) > both.usage.prompt_tokens);
}

#[tokio::test(flavor = "multi_thread")]
async fn handles_count_tokens_and_tell_which_texts_were_cut() {
    let engine =
        Engine::builder().text_embedding("bert", source("text_embedding", "bert")).start().await.unwrap();
    let bert: TextEmbedder = engine.text_embedding("bert").unwrap();
    let alone = bert.count_tokens("a").await.unwrap();
    assert_eq!(alone, 3);
    let long = FOX.repeat(1000);
    let whole = bert.count_tokens(long.as_str()).await.unwrap();
    let one = bert.count_tokens(FOX).await.unwrap();
    assert_eq!(whole - 2, 1000 * (one - 2));
    let mut texts = vec!["a".to_owned(); 70];
    texts[40] = long;
    let embeddings = bert.embeddings(texts.clone()).await.unwrap();
    let limit = bert.facts().await.unwrap().unwrap().context.unwrap();
    assert_eq!((embeddings.vectors.len(), &embeddings.cut[..]), (70, &[40][..]));
    assert_eq!(embeddings.usage.prompt_tokens, 69 * 3 + limit);
    let array = embeddings.to_array().unwrap();
    assert_eq!((array.len(), array.width()), (70, 32));
    let error = bert.clone().truncate(Truncate::Refuse).embeddings(texts).await.unwrap_err();
    assert_eq!(error, Error::TextTooLong { index: 40, tokens: whole, limit });
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    for words in ["40", &whole.to_string(), &limit.to_string()] {
        assert!(error.to_string().contains(words), "{error}");
    }
    assert!(engine.shutdown().await.is_clean());
}

#[test]
fn a_query_and_a_document_that_are_too_long_are_cut_or_refused() {
    for (family, around) in [("bert", 3), ("roberta", 4), ("modernbert", 3), ("qwen3", 0)] {
        let model = RerankingModel::load(source("reranking", family)).unwrap();
        let request = RerankDocuments::new("a", ["a".to_owned(), FOX.repeat(200)]);
        let ranking = model.rank(&request).unwrap();
        assert_eq!(ranking.cut, [1], "{family}");
        assert!(ranking.usage.prompt_tokens > model.max_tokens());
        let error = model.rank(&request.clone().with_truncate(Truncate::Refuse)).unwrap_err();
        let Error::TextTooLong { index: 1, tokens, limit } = error else { panic!("{family}: {error}") };
        assert_eq!(limit, model.max_tokens());
        assert!(tokens > 1000 && tokens > limit, "{family}: {tokens}");
        let short = request.with_documents(vec!["a".to_owned()]).with_truncate(Truncate::Refuse);
        let short = model.rank(&short).unwrap();
        assert!(short.cut.is_empty());
        if around > 0 && family == "bert" {
            assert_eq!(short.usage.prompt_tokens, 2 + around);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn facts_are_those_of_the_files() {
    let engine = Engine::builder()
        .text_embedding("bert", source("text_embedding", "bert"))
        .text_embedding("roberta", source("text_embedding", "roberta"))
        .text_embedding("nomic", source("text_embedding", "nomic_bert"))
        .reranking("ranker", source("reranking", "roberta"))
        .start()
        .await
        .unwrap();
    let facts = async |id: &str| engine.text_embedding(id).unwrap().facts().await.unwrap().unwrap();
    assert_eq!(engine.text_embedding("bert").unwrap().model().facts(), None, "it was never loaded");
    let bert = facts("bert").await;
    assert_eq!((bert.family.as_str(), bert.context, bert.dimensions), ("bert", Some(96), Some(32)));
    assert_eq!(bert.pooling, ["cls"]);
    assert!(bert.prompts["query"].starts_with("Represent this sentence"));
    assert_eq!(engine.text_embedding("bert").unwrap().model().facts(), Some(bert));
    assert_eq!(facts("roberta").await.pooling, ["max", "mean_sqrt_len_tokens", "weightedmean"]);
    assert_eq!(facts("roberta").await.dimensions, Some(96));
    let nomic = facts("nomic").await;
    assert!(nomic.shorter_dimensions.contains(&8), "{nomic:?}");
    let ranker = engine.reranking("ranker").unwrap().facts().await.unwrap().unwrap();
    assert_eq!((ranker.family.as_str(), ranker.context), ("roberta", Some(96)));
    assert_eq!(ranker.default_prompt.as_deref(), Some("web"));
    assert!(engine.shutdown().await.is_clean());
}

/// The outputs of BGE-M3 beside its vectors, by a reference written down from their description.
#[test]
fn sparse_vectors_and_those_of_tokens_are_those_of_the_reference() {
    #[derive(Deserialize)]
    struct File {
        cases: Vec<Outputs>,
    }
    #[derive(Deserialize)]
    struct Outputs {
        text: String,
        tokens: Vec<u32>,
        weights: Vec<f32>,
        count: usize,
        vectors: Vec<Vec<f32>>,
    }
    let file = common::root().join("tests/fixtures/text_embedding/bge_m3/expected_tokens.json");
    let File { cases } = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    let model = TextEmbeddingModel::load(source("text_embedding", "bge_m3")).unwrap();
    let all = EmbedOutputs::default().with_sparse(true).with_token_vectors(true);
    let texts: Vec<&str> = cases.iter().map(|case| case.text.as_str()).collect();
    let together = model.embeddings(&EmbedTexts::new(texts).with_outputs(all)).unwrap();
    let mut largest: f32 = 0.0;
    for (index, case) in cases.iter().enumerate() {
        let alone = EmbedTexts::from(case.text.as_str());
        let vector = &model.embed_request(&alone).unwrap()[0];
        assert!(common::difference(vector, &together.vectors[index]) <= 1e-5);
        let alone = model.embeddings(&alone.with_outputs(all.with_vectors(false))).unwrap();
        assert!(alone.vectors.is_empty());
        for (sparse, rows) in [
            (&together.sparse[index], &together.token_vectors[index]),
            (&alone.sparse[0], &alone.token_vectors[0]),
        ] {
            assert_eq!(sparse.tokens(), case.tokens, "{:?}", case.text);
            largest = largest.max(common::difference(sparse.weights(), &case.weights));
            assert_eq!((rows.len(), rows.width()), (case.count, 32));
            for (row, expected) in rows.rows().zip(&case.vectors) {
                largest = largest.max(common::difference(row, expected));
            }
        }
    }
    println!("{} texts, largest difference {largest:.2e}", cases.len());
    assert!(largest <= 1e-4, "{largest}");
    let cats = &together.token_vectors[3];
    assert!((cats.late_interaction(cats) - 1.0).abs() < 1e-4);
    assert!(cats.late_interaction(&together.token_vectors[6]) < 0.99);
    let other = TextEmbeddingModel::load(source("text_embedding", "xlm_roberta")).unwrap();
    let error = other.embeddings(&EmbedTexts::from("a").with_outputs(all)).unwrap_err();
    assert!(matches!(&error, Error::InvalidInput(words) if words.contains("BGE-M3")), "{error}");
}
