//! ModernBERT as a cross-encoder (GTE reranker): the layer and norm that it predicts words with, over the first token or
//! the mean of all, and a classifier.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};

use super::Architecture;
use super::classifier::Classifier;
use super::head::{HeadConfig, HeadPooling};
use crate::architecture::{Family, parse};
use crate::error::Result;
use crate::models::config_file::{activation, unsupported, with_defaults};
use crate::models::text_embedding::modernbert;
use crate::models::transformer::NormKind;

/// The family's entry in the list.
pub(super) const FAMILY: Family<Box<dyn Architecture>> = Family {
    model_type: "modernbert",
    architectures: &["ModernBertForSequenceClassification"],
    read: |file, config| Classifier::architecture(&modernbert::FAMILY, head(file, config)?, file, config),
};

/// Settings of the classifier.
#[derive(Deserialize)]
struct Config {
    classifier_pooling: String,
    classifier_bias: bool,
    classifier_activation: String,
    norm_eps: f64,
    norm_bias: bool,
}

fn head(file: &Path, config: &Value) -> Result<HeadConfig> {
    let defaults = json!({
        "classifier_pooling": "cls", "classifier_bias": false, "classifier_activation": "gelu", "norm_eps": 1e-5,
        "norm_bias": false
    });
    let config: Config = parse(file, &with_defaults(config, defaults))?;
    Ok(HeadConfig {
        pooling: match config.classifier_pooling.as_str() {
            "cls" => HeadPooling::FirstToken,
            "mean" => HeadPooling::Mean,
            other => return Err(unsupported(file, "classifier_pooling", other, "cls, mean")),
        },
        dense: "head.dense",
        dense_bias: config.classifier_bias.into(),
        activation: activation(file, "classifier_activation", &config.classifier_activation)?,
        norm: Some(("head.norm", NormKind::Layer(config.norm_bias.into()), config.norm_eps)),
        logit: "classifier",
        beginnings: &["head.", "classifier."],
    })
}
