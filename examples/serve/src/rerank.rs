//! `POST /v1/rerank`: documents ordered by how well they answer a query, as Cohere's and Jina's clients ask for it;
//! OpenAI has no such endpoint.

use std::sync::Arc;

use axum::extract::State;
use candle_actors::RerankDocuments;
use serde_json::{Value, json};

use crate::body::Body;
use crate::error::ApiError;
use crate::fields::Fields;
use crate::json::Json;
use crate::server::Server;
use crate::writing::handle;

/// Maximum number of documents of a request.
const MAX_DOCUMENTS: usize = 1024;

pub(crate) async fn create(
    State(server): State<Arc<Server>>,
    Body(mut fields): Body,
) -> Result<Json, ApiError> {
    let model: String = fields.required("model")?;
    let query: String = fields.required("query")?;
    let documents = documents(&mut fields)?;
    let returned = fields.optional("return_documents")?.unwrap_or(false);
    let request = RerankDocuments::new(query, documents.clone())
        .with_top_n(fields.optional::<usize>("top_n")?)
        .with_instruction(fields.optional::<String>("instruction")?);
    fields.without_effect(&["user"]);
    fields.end()?;
    let reranker = server.engine.reranking(model.as_str());
    let reranker = handle!(server, reranker.map_err(|error| ApiError::from(error).about("model"))?);
    let ranking = reranker.rank(request).await?;
    let results = ranking.documents.iter().map(|document| {
        let mut result = json!({ "index": document.index, "relevance_score": document.score });
        let text = documents.get(document.index).filter(|_| returned);
        if let (Some(text), Some(fields)) = (text, result.as_object_mut()) {
            fields.insert("document".to_owned(), json!({ "text": text }));
        }
        result
    });
    let results: Vec<Value> = results.collect();
    let tokens = ranking.usage.prompt_tokens;
    let usage = json!({ "prompt_tokens": tokens, "total_tokens": tokens });
    let id = server.next_id("rerank");
    Ok(Json(json!({ "id": id, "object": "list", "model": model, "results": results, "usage": usage })))
}

/// Texts, or objects with a text each.
fn documents(fields: &mut Fields) -> Result<Vec<String>, ApiError> {
    let documents: Vec<Value> = fields.required("documents")?;
    if !(1..=MAX_DOCUMENTS).contains(&documents.len()) {
        let message = format!("there are {} documents; 1 to {MAX_DOCUMENTS} are allowed", documents.len());
        return Err(ApiError::field("documents", message));
    }
    let text = |(index, document)| match document {
        Value::String(text) => Ok(text),
        document => {
            let mut document = Fields::of(document, format!("documents[{index}]"))?;
            let text = document.required("text")?;
            document.end().map(|()| text)
        }
    };
    documents.into_iter().enumerate().map(text).collect()
}
