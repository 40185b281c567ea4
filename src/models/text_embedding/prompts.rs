//! The prompt before a request's texts, and the task whose adapter it turns on, by the names in the model's files.

use std::collections::BTreeMap;

use model_actors::EmbedPrompt;

use super::{LoadedModel, Task};
use crate::error::{Error, Result};
use crate::tokens::Side;

impl LoadedModel {
    /// The prompt before each text, and the number of the task whose adapter is on.
    pub(super) fn prompt<'a>(&'a self, asked: Option<&'a EmbedPrompt>) -> Result<(&'a str, Option<usize>)> {
        let (config, architecture) = (&self.plan.prompts, &self.plan.architecture);
        let prompts = &config.prompts;
        let by_default = config.default_prompt_name.as_ref();
        let name = match (asked, by_default) {
            (Some(EmbedPrompt::Text(prompt)), _) => return Ok((prompt, architecture.default_task())),
            (Some(EmbedPrompt::Named(name)), _) | (None, Some(name)) => name,
            (None, None) => return Ok(("", architecture.default_task())),
            (Some(_), _) => {
                return Err(Error::InvalidInput("this kind of prompt is not supported".to_owned()));
            }
        };
        let tasks = architecture.tasks();
        let Some((prompt, task)) = resolve(name, prompts, by_default.map(String::as_str), tasks) else {
            let names = tasks.iter().map(|task| &task.name).filter(|name| !prompts.contains_key(*name));
            let known: Vec<&str> = prompts.keys().chain(names).map(String::as_str).collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            return Err(Error::InvalidInput(format!("the model has no prompt {name:?}; it has: {known}")));
        };
        Ok((prompt, task.or(architecture.default_task())))
    }

    /// The side of a search that texts with this prompt are on: that of the query for the prompt of its name.
    pub(super) fn side(&self, asked: Option<&EmbedPrompt>) -> Side {
        let name = match asked {
            Some(EmbedPrompt::Named(name)) => Some(name),
            None => self.plan.prompts.default_prompt_name.as_ref(),
            _ => None,
        };
        if name.is_some_and(|name| name == "query") { Side::Query } else { Side::Document }
    }
}

/// The prompt and the task that a name stands for: that of a prompt, that of a task, or a task's and a prompt's with a dot
/// between them.
fn resolve<'a>(
    name: &str,
    prompts: &'a BTreeMap<String, String>,
    by_default: Option<&str>,
    tasks: &[Task],
) -> Option<(&'a str, Option<usize>)> {
    let number = |name: &str| tasks.iter().position(|task| task.name == name);
    let written = |name: &str| prompts.get(name).map(String::as_str);
    // The two sides of retrieval go by these names whatever the model calls them.
    let name = match name {
        "query" if number("retrieval.query").is_some() => "retrieval.query",
        "document" | "passage" if number("retrieval.passage").is_some() => "retrieval.passage",
        name => name,
    };
    if let Some(prompt) = written(name) {
        return Some((prompt, number(name)));
    }
    if let Some(task) = number(name) {
        return Some((by_default.and_then(written).unwrap_or_default(), Some(task)));
    }
    if let Some((task, name)) = name.rsplit_once('.')
        && let (Some(task), Some(prompt)) = (number(task), written(name))
    {
        return Some((prompt, Some(task)));
    }
    // sentence-transformers has these two, empty, where the model's files have none.
    matches!(name, "query" | "document").then_some(("", None))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_prompts_of_tasks_or_of_both() {
        let tasks =
            ["retrieval", "a.b"].map(|name| Task { name: name.to_owned(), instruction: None, folder: None });
        let prompts =
            [("query", "Q: "), ("document", "D: ")].map(|(name, text)| (name.to_owned(), text.to_owned()));
        let prompts = BTreeMap::from(prompts);
        let ask = |name, by_default| resolve(name, &prompts, by_default, &tasks);
        assert_eq!(ask("query", Some("document")), Some(("Q: ", None)));
        assert_eq!(ask("a.b", Some("document")), Some(("D: ", Some(1))));
        assert_eq!(ask("a.b", None), Some(("", Some(1))));
        assert_eq!(ask("a.b.query", None), Some(("Q: ", Some(1))));
        for name in ["passage", "retrieval.other", "other.query", ""] {
            assert_eq!(ask(name, None), None, "{name}");
        }
        let sides = ["retrieval.query", "retrieval.passage"].map(|name| Task {
            name: name.to_owned(),
            instruction: None,
            folder: None,
        });
        let none = BTreeMap::new();
        assert_eq!(resolve("passage", &none, None, &sides), Some(("", Some(1))));
        assert_eq!(resolve("query", &none, None, &[]), Some(("", None)));
    }
}
