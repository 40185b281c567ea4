//! Arguments of calls where a format writes them without JSON, so that texts have neither quotation marks nor escapes: rules
//! of a grammar for what a tool's schema allows, and the values read of a text. Two notations: a tag for each argument, in
//! which a text is as it is and anything else JSON; and braces, whose keys are bare and whose texts are between marks. What
//! is around the arguments is left to `calls`.

use std::collections::BTreeMap;

use model_actors::Tool;
use serde_json::{Map, Value, json};

use super::grammar_text::{escaped, quoted};
use crate::error::{Error, Result};
use crate::structured::compiled_schema;

/// Maximum depth of references in a schema, and of braces in a text.
const MAX_DEPTH: usize = 32;
/// End of an argument's tag. A text ends where it comes first.
const TAG_END: &str = "\n</parameter>";
/// Entries of a schema that say nothing of a value.
const ANNOTATIONS: [&str; 9] =
    ["type", "title", "description", "default", "examples", "$comment", "$defs", "definitions", "deprecated"];
/// Entries that bound numbers.
const BOUNDS: [&str; 5] = ["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"];

/// A text that is not whole yet, or is no such text at all.
pub(super) enum Unread {
    More,
    Wrong(&'static str),
}

type Read<T> = std::result::Result<T, Unread>;

/// The rules of a tool's arguments; the name of the first is `args_{index}`.
pub(super) struct Rules<'a> {
    tool: &'a Tool,
    index: usize,
    rules: String,
    count: usize,
    /// Rules of definitions by their references.
    named: BTreeMap<String, String>,
    /// The mark around texts as it stands in the grammar, and whether it is a special token.
    quote: Option<(String, bool)>,
}

impl<'a> Rules<'a> {
    /// Those of arguments in tags.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] for a schema that asks for what the notation cannot hold.
    pub(super) fn in_tags(tool: &'a Tool, index: usize) -> Result<String> {
        let mut rules = Self::new(tool, index, None);
        let properties = rules.properties(&tool.parameters, "")?;
        let mut all = String::new();
        for (key, schema, required) in properties {
            if key.contains(['>', '\n']) {
                return Err(rules.refused(&key, "a name with > or a line break"));
            }
            let value = rules.tag(schema, &key)?;
            let tag = format!("{} {value} \"\\n\"", quoted(&format!("<parameter={key}>\n")));
            all.push_str(&if required { format!(" {tag}") } else { format!(" ({tag})?") });
        }
        Ok(rules.end(if all.is_empty() { "\"\"" } else { &all }))
    }

    /// Those of arguments in braces, whose texts are between such marks; `special` numbers one that is a special token.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] for a schema that asks for what the notation cannot hold.
    pub(super) fn in_braces(
        tool: &'a Tool,
        index: usize,
        quote: &str,
        special: Option<u32>,
    ) -> Result<String> {
        let mark = special.map_or_else(|| escaped(quote), |id| format!("<[{id}]>"));
        let mut rules = Self::new(tool, index, Some((mark, special.is_some())));
        let opening = quoted(quote);
        let text = match special {
            Some(id) => format!("text_{index}: <[{id}]> plain_{index}? <[{id}]>\nplain_{index}: /(?s:.+)/\n"),
            None => format!(
                "text_{index}: {opening} plain_{index}\nplain_{index}[lazy]: /(?s:.*){}/\n",
                escaped(quote)
            ),
        };
        rules.rules.push_str(&text);
        let all = rules.object(&tool.parameters, "", 0)?;
        Ok(rules.end(&all))
    }

    fn new(tool: &'a Tool, index: usize, quote: Option<(String, bool)>) -> Self {
        Self { tool, index, rules: String::new(), count: 0, named: BTreeMap::new(), quote }
    }

    fn end(self, all: &str) -> String {
        format!("args_{}: {all}\n{}", self.index, self.rules)
    }

    fn refused(&self, place: &str, what: &str) -> Error {
        Error::InvalidInput(format!(
            "the model writes calls of tools without JSON, and cannot be held to {what}, which the tool {} asks for at \
             {place:?}",
            self.tool.name
        ))
    }

    /// Appends a rule and gives its name.
    fn rule(&mut self, body: &str) -> String {
        let name = format!("value_{}_{}", self.index, self.count);
        self.count += 1;
        self.rules.push_str(&format!("{name}: {body}\n"));
        name
    }

    /// A rule of JSON that satisfies a schema, which may refer to definitions of the tool's.
    fn json(&mut self, schema: &Value) -> String {
        let mut whole = schema.as_object().cloned().unwrap_or_default();
        for definitions in ["$defs", "definitions"] {
            if let Some(own) = self.tool.parameters.get(definitions) {
                whole.entry(definitions).or_insert_with(|| own.clone());
            }
        }
        let compiled = compiled_schema(&Value::Object(whole));
        self.rule(&format!("%json {compiled}"))
    }

    /// An object's properties in order, with their schemas, and whether each has to be there.
    fn properties<'b>(&self, schema: &'b Value, place: &str) -> Result<Vec<(String, &'b Value, bool)>> {
        let Some(entries) = schema.as_object() else { return Ok(Vec::new()) };
        let known = ["properties", "required", "additionalProperties", "$schema"];
        self.check_entries(entries, place, &known)?;
        if entries.get("additionalProperties").is_some_and(|more| more.is_object() || *more == json!(true)) {
            return Err(self.refused(place, "arguments of any name"));
        }
        let properties = entries.get("properties").and_then(Value::as_object);
        let required: Vec<&str> = entries
            .get("required")
            .and_then(Value::as_array)
            .map(|names| names.iter().filter_map(Value::as_str).collect())
            .unwrap_or_default();
        if let Some(unknown) =
            required.iter().find(|name| !properties.is_some_and(|all| all.contains_key(**name)))
        {
            return Err(self.refused(unknown, "a required argument without a schema"));
        }
        let of =
            |(name, schema): (&String, &'b Value)| (name.clone(), schema, required.contains(&name.as_str()));
        Ok(properties.into_iter().flatten().map(of).collect())
    }

    fn check_entries(&self, entries: &Map<String, Value>, place: &str, known: &[&str]) -> Result<()> {
        let is_known = |name: &str| known.contains(&name) || ANNOTATIONS.contains(&name);
        match entries.keys().find(|name| !is_known(name)) {
            Some(other) => Err(self.refused(place, &format!("{other:?}"))),
            None => Ok(()),
        }
    }

    /// The text between the tags of an argument, the end included.
    fn tag(&mut self, schema: &Value, place: &str) -> Result<String> {
        let mut ways = Vec::new();
        let mut texts = false;
        for way in variants(schema, &self.tool.parameters, 0)
            .ok_or_else(|| self.refused(place, "references without end"))?
        {
            match &way {
                Variant::Literal(Value::String(text)) => ways.push(quoted(&format!("{text}{TAG_END}"))),
                Variant::Literal(other) => ways.push(quoted(&format!("{other}{TAG_END}"))),
                Variant::Of("string", entries) => {
                    self.check_entries(entries, place, &[])?;
                    texts = true;
                }
                Variant::Of(kind, entries) => {
                    let mut own = (*entries).clone();
                    own.insert("type".to_owned(), json!(kind));
                    ways.push(format!("{} {}", self.json(&Value::Object(own)), quoted(TAG_END)));
                }
                Variant::Other(entries) => {
                    let json = self.json(&Value::Object((*entries).clone()));
                    ways.push(format!("{json} {}", quoted(TAG_END)));
                }
            }
        }
        // A text may be anything, so that it is the only way.
        if texts {
            let index = self.index;
            let name = format!("text_{index}");
            let rule = format!("{name}[lazy]: /(?s:.*){}/\n", escaped(TAG_END));
            if !self.rules.contains(&rule) {
                self.rules.push_str(&rule);
            }
            return Ok(name);
        }
        Ok(format!("({})", ways.join(" | ")))
    }

    /// The rule of a value in braces.
    fn value(&mut self, schema: &Value, place: &str, depth: usize) -> Result<String> {
        if depth > MAX_DEPTH {
            return Err(self.refused(place, "values that deep"));
        }
        if let Some(reference) = schema.get("$ref").and_then(Value::as_str) {
            return self.reference(reference, place, depth);
        }
        let mut ways = Vec::new();
        for way in variants(schema, &self.tool.parameters, 0)
            .ok_or_else(|| self.refused(place, "references without end"))?
        {
            ways.push(match &way {
                Variant::Literal(Value::String(text)) => self.between_marks(text),
                Variant::Literal(value @ (Value::Array(_) | Value::Object(_))) => {
                    return Err(self.refused(place, &format!("the value {value}")));
                }
                Variant::Literal(value) => quoted(&value.to_string()),
                Variant::Of("string", entries) => {
                    self.check_entries(entries, place, &[])?;
                    format!("text_{}", self.index)
                }
                Variant::Of("array", entries) => self.array(entries, place, depth)?,
                Variant::Of("object", entries) => {
                    self.object(&Value::Object((*entries).clone()), place, depth)?
                }
                Variant::Of(kind @ ("integer" | "number"), entries) => {
                    self.check_entries(entries, place, &BOUNDS)?;
                    let mut own = (*entries).clone();
                    own.insert("type".to_owned(), json!(kind));
                    self.json(&Value::Object(own))
                }
                Variant::Of("boolean", _) => "(\"true\" | \"false\")".to_owned(),
                Variant::Of(_, _) => "\"null\"".to_owned(),
                Variant::Other(entries) => {
                    let name = entries.keys().next().map_or("any", String::as_str);
                    return Err(self.refused(place, &format!("{name:?}")));
                }
            });
        }
        Ok(format!("({})", ways.join(" | ")))
    }

    fn between_marks(&self, text: &str) -> String {
        match &self.quote {
            Some((mark, true)) => format!("{mark} {} {mark}", quoted(text)),
            Some((mark, false)) => format!("/{mark}{}{mark}/", escaped(text)),
            None => quoted(text),
        }
    }

    fn reference(&mut self, reference: &str, place: &str, depth: usize) -> Result<String> {
        if let Some(name) = self.named.get(reference) {
            return Ok(name.clone());
        }
        let target = resolve(reference, &self.tool.parameters)
            .ok_or_else(|| self.refused(place, &format!("the reference {reference:?}")))?;
        let name = format!("value_{}_{}", self.index, self.count);
        self.count += 1;
        self.named.insert(reference.to_owned(), name.clone());
        let body = self.value(target, place, depth + 1)?;
        self.rules.push_str(&format!("{name}: {body}\n"));
        Ok(name)
    }

    fn array(&mut self, entries: &Map<String, Value>, place: &str, depth: usize) -> Result<String> {
        self.check_entries(entries, place, &["items", "minItems", "maxItems"])?;
        let items = entries.get("items").ok_or_else(|| self.refused(place, "items of any kind"))?;
        let item = self.value(items, place, depth + 1)?;
        let item = self.rule(&item);
        let number = |name: &str| entries.get(name).and_then(Value::as_u64);
        let (least, most) = (number("minItems").unwrap_or(0), number("maxItems"));
        let more = match most {
            Some(0) => return Ok("\"[]\"".to_owned()),
            Some(1) => String::new(),
            Some(most) => format!("(\",\" {item}){{{},{}}}", least.saturating_sub(1), most - 1),
            None => format!("(\",\" {item}){{{},}}", least.saturating_sub(1)),
        };
        let some = format!("\"[\" {item} {more} \"]\"");
        Ok(if least == 0 { format!("(\"[]\" | {some})") } else { some })
    }

    /// An object in braces: its properties in order, those that need not be there perhaps, and commas between.
    fn object(&mut self, schema: &Value, place: &str, depth: usize) -> Result<String> {
        let properties = self.properties(schema, place)?;
        let mut pairs = Vec::new();
        for (key, schema, required) in properties {
            if key.is_empty() || key.contains([':', ',', '{', '}', '[', ']', '<', '"']) || key.trim() != key {
                return Err(self.refused(&key, "a name with such letters"));
            }
            let value = self.value(schema, &key, depth + 1)?;
            let pair = format!("{} {value}", quoted(&format!("{key}:")));
            pairs.push((self.rule(&pair), required));
        }
        // Whichever comes first has no comma; all before it need not be there.
        let mut ways = Vec::new();
        for (first, (pair, required)) in pairs.iter().enumerate() {
            let rest = pairs.iter().skip(first + 1).map(|(pair, required)| match required {
                true => format!(" \",\" {pair}"),
                false => format!(" (\",\" {pair})?"),
            });
            ways.push(format!("{pair}{}", rest.collect::<String>()));
            if *required {
                break;
            }
        }
        Ok(match (ways.is_empty(), pairs.iter().any(|(_, required)| *required)) {
            (true, _) => "\"{}\"".to_owned(),
            (false, true) => format!("\"{{\" ({}) \"}}\"", ways.join(" | ")),
            (false, false) => format!("\"{{\" ({})? \"}}\"", ways.join(" | ")),
        })
    }
}

/// One of the ways in which a value can satisfy a schema.
enum Variant<'a> {
    /// This value.
    Literal(&'a Value),
    /// A value of this type, with the schema's other entries.
    Of(&'static str, &'a Map<String, Value>),
    /// A schema that names no type.
    Other(&'a Map<String, Value>),
}

const TYPES: [&str; 7] = ["string", "integer", "number", "boolean", "null", "array", "object"];

/// The ways of a schema. `None` where references do not end, or lead nowhere.
fn variants<'a>(schema: &'a Value, root: &'a Value, depth: usize) -> Option<Vec<Variant<'a>>> {
    let Some(entries) = schema.as_object() else { return Some(Vec::new()) };
    if depth > MAX_DEPTH {
        return None;
    }
    // With other entries beside it, such an entry is not all that is asked for.
    let is_all =
        |name: &str| entries.keys().all(|other| other == name || ANNOTATIONS.contains(&other.as_str()));
    if ["$ref", "anyOf", "oneOf", "allOf"].iter().any(|name| entries.contains_key(*name) && !is_all(name)) {
        return Some(vec![Variant::Other(entries)]);
    }
    if let Some(reference) = entries.get("$ref").and_then(Value::as_str) {
        return variants(resolve(reference, root)?, root, depth + 1);
    }
    for choice in ["anyOf", "oneOf"] {
        if let Some(choices) = entries.get(choice).and_then(Value::as_array) {
            let ways = choices.iter().map(|choice| variants(choice, root, depth + 1));
            return Some(ways.collect::<Option<Vec<_>>>()?.into_iter().flatten().collect());
        }
    }
    if let Some(values) = entries.get("enum").and_then(Value::as_array) {
        return Some(values.iter().map(Variant::Literal).collect());
    }
    if let Some(value) = entries.get("const") {
        return Some(vec![Variant::Literal(value)]);
    }
    let known = |name: &str| TYPES.into_iter().find(|kind| *kind == name);
    match entries.get("type") {
        Some(Value::String(name)) => Some(vec![Variant::Of(known(name)?, entries)]),
        Some(Value::Array(names)) => {
            let kinds = names.iter().map(|name| Some(Variant::Of(known(name.as_str()?)?, entries)));
            kinds.collect()
        }
        _ => Some(vec![Variant::Other(entries)]),
    }
}

/// The definition that a reference into the same schema means.
fn resolve<'a>(reference: &str, root: &'a Value) -> Option<&'a Value> {
    root.pointer(reference.strip_prefix('#')?)
}

/// The value of an argument that stood in a tag: what its schema can take as JSON, and else a text, if that is allowed.
pub(super) fn value_in_tag(text: &str, key: &str, tool: Option<&Tool>) -> Read<Value> {
    let parameters = tool.map(|tool| &tool.parameters);
    let schema = parameters.and_then(|all| all.get("properties")?.get(key));
    let ways = schema.zip(parameters).and_then(|(schema, root)| variants(schema, root, 0));
    let Some(ways) = ways.filter(|ways| !ways.is_empty()) else { return Ok(text.into()) };
    let read: Option<Value> = serde_json::from_str(text).ok();
    let takes = |value: &Value| {
        ways.iter().any(|way| match way {
            Variant::Literal(literal) => *literal == value,
            Variant::Of(kind, _) => is_of(kind, value),
            Variant::Other(_) => true,
        })
    };
    // A text is written as JSON only where its schema is JSON's alone.
    let is_json = ways.iter().any(|way| matches!(way, Variant::Other(_)));
    match read.filter(|value| is_json || !value.is_string()).filter(takes) {
        Some(value) => Ok(value),
        None if takes(&text.into()) => Ok(text.into()),
        None => Err(Unread::Wrong("an argument is of another type than its schema says")),
    }
}

fn is_of(kind: &str, value: &Value) -> bool {
    match kind {
        "string" => value.is_string(),
        "integer" => value.is_i64() || value.is_u64() || value.as_f64().is_some_and(|it| it.fract() == 0.0),
        "number" => value.is_number(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        "array" => value.is_array(),
        _ => value.is_object(),
    }
}

/// Arguments in tags up to what ends them, and the text behind that.
pub(super) fn read_tags<'a>(mut text: &'a str, end: &str, tool: Option<&Tool>) -> Read<(Value, &'a str)> {
    let mut arguments = Map::new();
    loop {
        text = text.trim_start();
        if let Some(rest) = text.strip_prefix(end) {
            return Ok((Value::Object(arguments), rest));
        }
        let Some(rest) = text.strip_prefix("<parameter=") else {
            let may_come = "<parameter=".starts_with(text) || end.starts_with(text);
            return Err(if may_come { Unread::More } else { Unread::Wrong("an argument has no tag") });
        };
        let (key, rest) = rest.split_once('>').ok_or(Unread::More)?;
        // The line break after the tag is none of the value's; it may be the one before the end.
        let value = rest.strip_prefix('\n').unwrap_or(rest);
        let (value, rest) = value.split_once(TAG_END).ok_or(Unread::More)?;
        arguments.insert(key.to_owned(), value_in_tag(value, key, tool)?);
        text = rest;
    }
}

/// A value in braces, brackets, marks or as JSON writes it, and the text behind it.
pub(super) fn read_braces<'a>(text: &'a str, quote: &str, depth: usize) -> Read<(Value, &'a str)> {
    if depth > MAX_DEPTH {
        return Err(Unread::Wrong("its values are too deep"));
    }
    if let Some(rest) = text.strip_prefix(quote) {
        let (value, rest) = rest.split_once(quote).ok_or(Unread::More)?;
        return Ok((value.into(), rest));
    }
    if quote.starts_with(text) {
        return Err(Unread::More);
    }
    if let Some(rest) = text.strip_prefix('[') {
        let mut values = Vec::new();
        let rest = listed(rest, ']', |text| {
            let (value, rest) = read_braces(text, quote, depth + 1)?;
            values.push(value);
            Ok(rest)
        })?;
        return Ok((values.into(), rest));
    }
    if let Some(rest) = text.strip_prefix('{') {
        let mut entries = Map::new();
        let rest = listed(rest, '}', |text| {
            let (key, rest) = text.split_once(':').ok_or(Unread::More)?;
            let (value, rest) = read_braces(rest, quote, depth + 1)?;
            entries.insert(key.trim().to_owned(), value);
            Ok(rest)
        })?;
        return Ok((entries.into(), rest));
    }
    let end = text.find([',', '}', ']']).ok_or(Unread::More)?;
    let (value, rest) = text.split_at(end);
    let value = serde_json::from_str(value.trim()).map_err(|_| Unread::Wrong("a value cannot be read"))?;
    Ok((value, rest))
}

/// Reads what is between commas up to a closing, and gives the text behind that.
fn listed<'a>(
    mut text: &'a str,
    closing: char,
    mut one: impl FnMut(&'a str) -> Read<&'a str>,
) -> Read<&'a str> {
    if let Some(rest) = text.trim_start().strip_prefix(closing) {
        return Ok(rest);
    }
    loop {
        text = one(text.trim_start())?.trim_start();
        if let Some(rest) = text.strip_prefix(closing) {
            return Ok(rest);
        }
        text = match text.strip_prefix(',') {
            Some(rest) => rest,
            None if text.is_empty() => return Err(Unread::More),
            None => return Err(Unread::Wrong("a comma is missing between its values")),
        };
    }
}
