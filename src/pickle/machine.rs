//! The instructions of pickles that descriptions of tensors are made of (Python's `pickletools` documents them). Values
//! lie in one table and name each other by number: so a value that is used twice is there once, nothing grows faster
//! than the pickle is long, and nesting costs no stack. The meaning of a class is left to `tensors`.

#[cfg(test)]
mod tests;

use std::collections::HashMap;

/// Maximum number of values of a pickle. One of a model with 92,000 tensors has two millions.
const MAX_VALUES: usize = 1 << 22;
/// Most bytes of the name of a class, a tensor or a store. A pickle can recall a text as often as it likes, so each use of
/// one costs its whole length again.
const MAX_NAME: usize = 1 << 10;

/// Number of a value in the table.
pub(super) type Id = usize;

/// A value that an instruction has made.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    None,
    Bool(bool),
    /// A whole number of up to 64 bits.
    Whole(i64),
    /// A longer one.
    Long(Vec<u8>),
    Float,
    Text(String),
    Bytes,
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    /// A class or function by its module and name. It is only named.
    Class(String),
    /// A class or function with the arguments that it would be called with.
    Call {
        callable: Id,
        arguments: Id,
    },
    /// Something outside of the pickle: the numbers of a tensor.
    Outside(Id),
}

impl Value {
    /// Its kind, for an error.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::None => "nothing",
            Self::Bool(_) => "a truth value",
            Self::Whole(_) | Self::Long(_) | Self::Float => "a number",
            Self::Text(_) => "a text",
            Self::Bytes => "bytes",
            Self::Tuple(_) | Self::List(_) => "a list",
            Self::Dict(_) => "a table",
            Self::Class(_) => "a class",
            Self::Call { .. } => "an object",
            Self::Outside(_) => "numbers without a shape",
        }
    }
}

/// All values of a pickle.
pub(super) struct Values {
    values: Vec<Value>,
    /// The value that the pickle stands for.
    pub(super) root: Id,
}

impl Values {
    pub(super) fn get(&self, id: Id) -> Result<&Value, String> {
        self.values.get(id).ok_or_else(|| "it names a value that is not there".to_owned())
    }

    /// The parts of a tuple.
    pub(super) fn tuple(&self, id: Id) -> Result<&[Id], String> {
        match self.get(id)? {
            Value::Tuple(parts) => Ok(parts),
            other => Err(format!("a tuple was expected, and {} is there", other.kind())),
        }
    }

    pub(super) fn text(&self, id: Id) -> Result<&str, String> {
        match self.get(id)? {
            Value::Text(text) => Ok(text),
            other => Err(format!("a text was expected, and {} is there", other.kind())),
        }
    }

    /// A text that names something.
    pub(super) fn name(&self, id: Id) -> Result<&str, String> {
        let name = self.text(id)?;
        match name.len() {
            length if length > MAX_NAME => Err(too_long(length)),
            _ => Ok(name),
        }
    }

    /// A number that counts something.
    pub(super) fn count(&self, id: Id) -> Result<usize, String> {
        match self.get(id)? {
            Value::Whole(number) => usize::try_from(*number).map_err(|_| format!("{number} counts nothing")),
            other => Err(format!("a number was expected, and {} is there", other.kind())),
        }
    }

    /// Module and name of a class.
    pub(super) fn class(&self, id: Id) -> Result<&str, String> {
        match self.get(id)? {
            Value::Class(name) => Ok(name),
            other => Err(format!("a class was expected, and {} is there", other.kind())),
        }
    }
}

/// Follows the pickle at the beginning of `bytes`. Gives its values and its length.
pub(super) fn run(bytes: &[u8]) -> Result<(Values, usize), String> {
    let mut machine = Machine {
        bytes,
        at: 0,
        values: Vec::new(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
    };
    while machine.step()? {}
    let root = machine.pop()?;
    Ok((Values { values: machine.values, root }, machine.at))
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    values: Vec<Value>,
    stack: Vec<Id>,
    /// Heights of the stack at its marks.
    marks: Vec<usize>,
    memo: HashMap<usize, Id>,
}

impl<'a> Machine<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], String> {
        let taken = self.at.checked_add(count).and_then(|end| self.bytes.get(self.at..end));
        let taken = taken.ok_or("the pickle ends in the middle, or is longer than 16 MiB")?;
        self.at += count;
        Ok(taken)
    }

    /// A number of up to eight bytes, the lowest first.
    fn number(&mut self, bytes: usize) -> Result<u64, String> {
        Ok(self.take(bytes)?.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    fn length(&mut self, bytes: usize) -> Result<usize, String> {
        usize::try_from(self.number(bytes)?).map_err(|_| "a length is beyond any memory".to_owned())
    }

    fn line(&mut self) -> Result<&'a str, String> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let length = rest.iter().position(|byte| *byte == b'\n').ok_or("a name does not end")?;
        let line = self.take(length + 1)?;
        std::str::from_utf8(&line[..length]).map_err(|_| "a name is no text".to_owned())
    }

    fn text(&mut self, length: usize) -> Result<Value, String> {
        let text = std::str::from_utf8(self.take(length)?).map_err(|_| "a text is not in UTF-8")?;
        Ok(Value::Text(text.to_owned()))
    }

    fn push(&mut self, value: Value) -> Result<(), String> {
        if self.values.len() >= MAX_VALUES {
            return Err(format!("the pickle has more than {MAX_VALUES} values"));
        }
        self.stack.push(self.values.len());
        self.values.push(value);
        Ok(())
    }

    fn pop(&mut self) -> Result<Id, String> {
        let floor = self.marks.last().copied().unwrap_or(0);
        match self.stack.pop() {
            Some(id) if self.stack.len() >= floor => Ok(id),
            _ => Err("the pickle takes more than it has put down".to_owned()),
        }
    }

    fn top(&self) -> Result<Id, String> {
        self.stack.last().copied().ok_or_else(|| "the pickle takes more than it has put down".to_owned())
    }

    /// Takes the values that were put down since the last mark.
    fn since_mark(&mut self) -> Result<Vec<Id>, String> {
        let height = self.marks.pop().filter(|height| *height <= self.stack.len());
        Ok(self.stack.split_off(height.ok_or("the pickle has a mark too few")?))
    }

    fn tuple(&mut self, count: usize) -> Result<(), String> {
        let mut parts = (0..count).map(|_| self.pop()).collect::<Result<Vec<_>, _>>()?;
        parts.reverse();
        self.push(Value::Tuple(parts))
    }

    fn pairs(ids: &[Id]) -> Result<Vec<(Id, Id)>, String> {
        match ids.as_chunks() {
            (pairs, []) => Ok(pairs.iter().map(|[name, value]| (*name, *value)).collect()),
            _ => Err("a table has a name without a value".to_owned()),
        }
    }

    fn insert(&mut self, ids: &[Id]) -> Result<(), String> {
        let pairs = Self::pairs(ids)?;
        let table = self.top()?;
        match self.values.get_mut(table) {
            Some(Value::Dict(entries)) => {
                entries.extend(pairs);
                Ok(())
            }
            _ => Err("entries are put into what is no table".to_owned()),
        }
    }

    fn append(&mut self, ids: &[Id]) -> Result<(), String> {
        let list = self.top()?;
        match self.values.get_mut(list) {
            Some(Value::List(items)) => {
                items.extend(ids);
                Ok(())
            }
            _ => Err("items are put into what is no list".to_owned()),
        }
    }

    fn remember(&mut self, place: usize) -> Result<(), String> {
        let id = self.top()?;
        if self.memo.len() >= MAX_VALUES && !self.memo.contains_key(&place) {
            return Err(format!("the pickle remembers more than {MAX_VALUES} values"));
        }
        self.memo.insert(place, id);
        Ok(())
    }

    fn recall(&mut self, place: usize) -> Result<(), String> {
        let id = self.memo.get(&place).ok_or("the pickle recalls what it has not put down")?;
        self.stack.push(*id);
        Ok(())
    }

    fn call(&mut self) -> Result<(), String> {
        let (arguments, callable) = (self.pop()?, self.pop()?);
        // An ordered table is a table like any other.
        let is_table = matches!(self.values.get(callable), Some(Value::Class(name)) if name == "collections.OrderedDict");
        match (is_table, self.values.get(arguments)) {
            (true, Some(Value::Tuple(parts))) if parts.is_empty() => self.push(Value::Dict(Vec::new())),
            _ => self.push(Value::Call { callable, arguments }),
        }
    }

    /// Follows one instruction; false after the last.
    fn step(&mut self) -> Result<bool, String> {
        let [code] = *self.take(1)? else { return Err("the pickle ends in the middle".to_owned()) };
        match code {
            // The protocol's number, and the length of what follows.
            0x80 => drop(self.take(1)?),
            0x95 => drop(self.take(8)?),
            b'.' => return Ok(false),
            b'(' => self.marks.push(self.stack.len()),
            b'0' => drop(self.pop()?),
            b'N' => self.push(Value::None)?,
            0x88 => self.push(Value::Bool(true))?,
            0x89 => self.push(Value::Bool(false))?,
            b'K' => {
                let number = self.number(1)?;
                self.push(Value::Whole(number.cast_signed()))?;
            }
            b'M' => {
                let number = self.number(2)?;
                self.push(Value::Whole(number.cast_signed()))?;
            }
            b'J' => {
                let bytes = self.take(4)?;
                self.push(whole(bytes))?;
            }
            0x8a => {
                let length = self.length(1)?;
                let bytes = self.take(length)?;
                self.push(whole(bytes))?;
            }
            b'G' => {
                self.take(8)?;
                self.push(Value::Float)?;
            }
            b'X' | 0x8c | 0x8d => {
                let length = self.length(if code == b'X' {
                    4
                } else if code == 0x8c {
                    1
                } else {
                    8
                })?;
                let text = self.text(length)?;
                self.push(text)?;
            }
            // Texts of Python 2.
            b'U' | b'T' => {
                let length = self.length(if code == b'U' { 1 } else { 4 })?;
                let text = self.text(length)?;
                self.push(text)?;
            }
            b'B' | b'C' | 0x8e => {
                let length = self.length(if code == b'B' {
                    4
                } else if code == b'C' {
                    1
                } else {
                    8
                })?;
                self.take(length)?;
                self.push(Value::Bytes)?;
            }
            b')' => self.push(Value::Tuple(Vec::new()))?,
            0x85..=0x87 => self.tuple(usize::from(code - 0x84))?,
            b't' => {
                let parts = self.since_mark()?;
                self.push(Value::Tuple(parts))?;
            }
            b']' => self.push(Value::List(Vec::new()))?,
            b'l' => {
                let items = self.since_mark()?;
                self.push(Value::List(items))?;
            }
            b'a' => {
                let item = self.pop()?;
                self.append(&[item])?;
            }
            b'e' => {
                let items = self.since_mark()?;
                self.append(&items)?;
            }
            b'}' => self.push(Value::Dict(Vec::new()))?,
            b'd' => {
                let entries = Self::pairs(&self.since_mark()?)?;
                self.push(Value::Dict(entries))?;
            }
            b's' => {
                let (value, name) = (self.pop()?, self.pop()?);
                self.insert(&[name, value])?;
            }
            b'u' => {
                let entries = self.since_mark()?;
                self.insert(&entries)?;
            }
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.push(class(module, name)?)?;
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let text = |id| match self.values.get(id) {
                    Some(Value::Text(text)) => Ok(text),
                    _ => Err("a class's name is no text".to_owned()),
                };
                let class = class(text(module)?, text(name)?)?;
                self.push(class)?;
            }
            b'q' | b'r' => {
                let place = self.length(if code == b'q' { 1 } else { 4 })?;
                self.remember(place)?;
            }
            0x94 => self.remember(self.memo.len())?,
            b'h' | b'j' => {
                let place = self.length(if code == b'h' { 1 } else { 4 })?;
                self.recall(place)?;
            }
            b'Q' => {
                let id = self.pop()?;
                self.push(Value::Outside(id))?;
            }
            b'R' | 0x81 => self.call()?,
            // The state of an object. That of a table is what PyTorch notes about versions.
            b'b' => {
                self.pop()?;
                let object = self.top()?;
                match self.values.get(object) {
                    Some(Value::Dict(_)) => {}
                    _ => return Err(format!("it holds {}, which is no tensor", self.name(object))),
                }
            }
            _ => return Err(format!("it has the instruction 0x{code:02x}, which no file of tensors needs")),
        }
        Ok(true)
    }

    /// An object by its class, where it has one.
    fn name(&self, object: Id) -> String {
        let class = match self.values.get(object) {
            Some(Value::Call { callable, .. }) => self.values.get(*callable),
            other => other,
        };
        match class {
            Some(Value::Class(name)) => shown(name),
            Some(other) => other.kind().to_owned(),
            None => "nothing".to_owned(),
        }
    }
}

/// A class or function of a module.
fn class(module: &str, name: &str) -> Result<Value, String> {
    match module.len().saturating_add(name.len()) {
        length if length > MAX_NAME => Err(too_long(length)),
        _ => Ok(Value::Class(format!("{module}.{name}"))),
    }
}

fn too_long(length: usize) -> String {
    format!("it has a name of {length} bytes; at most {MAX_NAME} are allowed")
}

/// A name of the file's, short enough for an error.
pub(super) fn shown(name: &str) -> String {
    const MAX_SHOWN: usize = 100;
    let short: String = name.chars().take(MAX_SHOWN).collect();
    if short.len() < name.len() { format!("{short:?} and so on") } else { format!("{short:?}") }
}

/// A whole number with a sign, the lowest byte first.
fn whole(bytes: &[u8]) -> Value {
    let negative = bytes.last().is_some_and(|byte| byte & 0x80 != 0);
    let mut number = [if negative { 0xff } else { 0 }; 8];
    match number.get_mut(..bytes.len()) {
        Some(low) => {
            low.copy_from_slice(bytes);
            Value::Whole(i64::from_le_bytes(number))
        }
        None => Value::Long(bytes.to_vec()),
    }
}
