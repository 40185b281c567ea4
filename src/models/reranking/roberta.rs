//! RoBERTa, XLM-RoBERTa (BGE reranker, Chen et al., 2024) and CamemBERT as cross-encoders: a classifier of two layers over
//! the first token.

use super::Architecture;
use super::classifier::Classifier;
use super::head::{HeadConfig, HeadPooling};
use crate::architecture::Family;
use crate::kernels::Activation;
use crate::models::text_embedding::roberta;
use crate::models::transformer::Bias;

/// The families' entries in the list.
pub(super) const FAMILY: Family<Box<dyn Architecture>> = Family {
    model_type: "roberta",
    architectures: &["RobertaForSequenceClassification"],
    read: |file, config| Classifier::architecture(&roberta::FAMILY, HEAD, file, config),
};
pub(super) const MULTILINGUAL: Family<Box<dyn Architecture>> = Family {
    model_type: "xlm-roberta",
    architectures: &["XLMRobertaForSequenceClassification"],
    read: |file, config| Classifier::architecture(&roberta::MULTILINGUAL, HEAD, file, config),
};
pub(super) const FRENCH: Family<Box<dyn Architecture>> = Family {
    model_type: "camembert",
    architectures: &["CamembertForSequenceClassification"],
    read: |file, config| Classifier::architecture(&roberta::FRENCH, HEAD, file, config),
};

const HEAD: HeadConfig = HeadConfig {
    pooling: HeadPooling::FirstToken,
    dense: "classifier.dense",
    dense_bias: Bias::Yes,
    activation: Activation::Tanh,
    norm: None,
    logit: "classifier.out_proj",
    beginnings: &["classifier."],
};
