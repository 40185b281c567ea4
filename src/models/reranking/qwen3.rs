//! Qwen3-Reranker (Zhang et al., 2025): Qwen3 that is asked for yes or no, in the words that it was trained with.

use super::Architecture;
use super::answer::{AnswerReranker, Question};
use super::pairs::PairPrompt;
use crate::architecture::Family;

/// The family's entry in the list.
pub(super) const FAMILY: Family<Box<dyn Architecture>> = Family {
    model_type: "qwen3",
    architectures: &["Qwen3ForCausalLM"],
    read: |file, config| AnswerReranker::architecture(&QUESTION, file, config),
};

const QUESTION: Question = Question {
    prompt: PairPrompt {
        around: [
            "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct \
             provided. Note that the answer can only be \"yes\" or \"no\".<|im_end|>\n<|im_start|>user\n",
            "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
        ],
        names: ["<Instruct>: ", "\n<Query>: ", "\n<Document>: "],
        instruction: "Given a web search query, retrieve relevant passages that answer the query",
    },
    yes: "yes",
    no: "no",
    longest: 8192,
};
