//! A request's body of a bounded size that comes in a bounded time: JSON, or a form with files.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::multipart::Field;
use axum::extract::{FromRequest, Multipart, Request};
use axum::http::{StatusCode, header};
use serde_json::{Map, Value};

use crate::error::ApiError;
use crate::fields::Fields;
use crate::server::Server;

/// Time for a body to come in whole.
const PATIENCE: Duration = Duration::from_secs(60);
/// Maximum number of fields and files of a form.
const MAX_PARTS: usize = 64;

/// The fields of a request's body.
pub(crate) struct Body(pub(crate) Fields);

impl FromRequest<Arc<Server>> for Body {
    type Rejection = ApiError;

    async fn from_request(request: Request, server: &Arc<Server>) -> Result<Self, ApiError> {
        // A page from elsewhere can send any other type without being asked by the browser whether it may.
        if !is_of(&request, "application/json") {
            let message = "the body has to be JSON, with the header Content-Type: application/json";
            return Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", message));
        }
        let bytes = in_time(Bytes::from_request(request, server)).await?;
        let bytes = bytes.map_err(|error| unread(server, error.status(), error.body_text()))?;
        let value: Value = serde_json::from_slice(&bytes).map_err(|error| {
            ApiError::new(StatusCode::BAD_REQUEST, "invalid_json", format!("the body is not JSON: {error}"))
        })?;
        Ok(Self(Fields::of(value, "")?))
    }
}

/// The fields and the files of a form, as browsers and OpenAI's clients send one with files.
pub(crate) struct Form {
    pub(crate) fields: Fields,
    files: Vec<(String, Bytes)>,
}

impl FromRequest<Arc<Server>> for Form {
    type Rejection = ApiError;

    async fn from_request(request: Request, server: &Arc<Server>) -> Result<Self, ApiError> {
        // A browser sends a form from any page, with the page's origin, without asking whether it may.
        if is_from_elsewhere(&request) {
            let message = "a form is taken from this server's own pages, and from what is no browser";
            return Err(ApiError::new(StatusCode::FORBIDDEN, "cross_origin", message));
        }
        if !is_of(&request, "multipart/form-data") {
            let message = "the body has to be a form, with the header Content-Type: multipart/form-data";
            return Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", message));
        }
        in_time(read(request, server)).await?
    }
}

impl Form {
    /// Takes the files of this name, or of a list of this name.
    pub(crate) fn take(&mut self, name: &str) -> Vec<Bytes> {
        let of = |(known, _): &mut (String, Bytes)| known == name || known.strip_suffix("[]") == Some(name);
        self.files.extract_if(.., of).map(|(_, file)| file).collect()
    }

    /// # Errors
    /// For a field or a file that nobody took.
    pub(crate) fn end(self) -> Result<(), ApiError> {
        match self.files.first() {
            Some((name, _)) => Err(ApiError::unsupported(name)),
            None => self.fields.end(),
        }
    }
}

async fn read(request: Request, server: &Arc<Server>) -> Result<Form, ApiError> {
    let failed = |status, text| unread(server, status, text);
    let form = Multipart::from_request(request, server).await;
    let mut form = form.map_err(|error| failed(error.status(), error.body_text()))?;
    let (mut texts, mut files) = (Map::new(), Vec::new());
    while let Some(part) =
        form.next_field().await.map_err(|error| failed(error.status(), error.body_text()))?
    {
        let name = part.name().unwrap_or_default().to_owned();
        if texts.len() + files.len() == MAX_PARTS {
            return Err(ApiError::field(&name, format!("a form may have {MAX_PARTS} fields and files")));
        }
        let is_file = part.file_name().is_some();
        let bytes = Field::bytes(part).await.map_err(|error| failed(error.status(), error.body_text()))?;
        if is_file {
            files.push((name, bytes));
            continue;
        }
        let text = std::str::from_utf8(&bytes)
            .map_err(|_| ApiError::field(&name, format!("the field {name} is no text")))?;
        if texts.insert(name.clone(), text.into()).is_some() {
            return Err(ApiError::field(&name, format!("the field {name} is there twice")));
        }
    }
    Ok(Form { fields: Fields::of_form(texts), files })
}

/// The end of reading a body, unless it takes too long.
async fn in_time<T>(reading: impl Future<Output = T>) -> Result<T, ApiError> {
    tokio::time::timeout(PATIENCE, reading).await.map_err(|_| {
        let message = format!("the body did not come within {} s", PATIENCE.as_secs());
        ApiError::new(StatusCode::REQUEST_TIMEOUT, "body_timeout", message)
    })
}

/// The refusal of a body that could not be read.
fn unread(server: &Server, status: StatusCode, text: String) -> ApiError {
    if status == StatusCode::PAYLOAD_TOO_LARGE {
        let message = format!("the body has more than the {} bytes allowed", server.body_bytes);
        return ApiError::new(status, "body_too_large", message);
    }
    ApiError::new(StatusCode::BAD_REQUEST, "invalid_body", text)
}

fn is_of(request: &Request, media_type: &str) -> bool {
    let content_type = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let own = content_type.and_then(|value| value.split(';').next()).unwrap_or_default().trim();
    own.eq_ignore_ascii_case(media_type)
}

/// True for a request that a browser sends for a page of another server.
fn is_from_elsewhere(request: &Request) -> bool {
    let text = |name| request.headers().get(name).and_then(|value| value.to_str().ok());
    let authority = |origin: &str| origin.split_once("://").map(|(_, authority)| authority.to_owned());
    match request.headers().contains_key(header::ORIGIN) {
        true => text(header::ORIGIN).and_then(authority).as_deref() != text(header::HOST),
        false => false,
    }
}
