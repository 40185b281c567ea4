//! The model families, one folder for each capability. A new family is one file in its capability's folder and one
//! line in that capability's list.

pub(crate) mod text_embedding;
