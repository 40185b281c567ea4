//! BERT as a cross-encoder (MiniLM and TinyBERT trained on MS MARCO, Nogueira and Cho, 2019): the pooling layer that it was
//! trained with, and a classifier.

use super::Architecture;
use super::classifier::Classifier;
use super::head::{HeadConfig, HeadPooling};
use crate::architecture::Family;
use crate::kernels::Activation;
use crate::models::text_embedding::bert;
use crate::models::transformer::Bias;

/// The family's entry in the list.
pub(super) const FAMILY: Family<Box<dyn Architecture>> = Family {
    model_type: "bert",
    architectures: &["BertForSequenceClassification"],
    read: |file, config| Classifier::architecture(&bert::FAMILY, HEAD, file, config),
};

const HEAD: HeadConfig = HeadConfig {
    pooling: HeadPooling::FirstToken,
    dense: "bert.pooler.dense",
    dense_bias: Bias::Yes,
    activation: Activation::Tanh,
    norm: None,
    logit: "classifier",
    beginnings: &["bert.pooler.", "classifier."],
};
