//! The weights of a vision model in two GGUF files, as if they were safetensors: the tensors of the vision tower under the
//! names that its family asks for, and the file of the text half beside them. Which names these are is left to the families.

use std::collections::{HashMap, HashSet};

use model_actors::{Bytes, LoadContext};

use super::WeightFiles;
use crate::error::{Error, Result};
use crate::gguf::GgufFile;
use crate::kernels::packed::Arithmetic;
use crate::source::Unread;

/// Tensors of a vision tower by another beginning of their names. A `{}` in it stands for the number of a layer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Renamed {
    /// Beginning of the name in the GGUF file.
    pub(crate) from: &'static str,
    /// Beginning of the name that the family asks for.
    pub(crate) to: &'static str,
    pub(crate) way: Way,
}

/// The way in which the numbers of a tensor are made of those of a GGUF file.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Way {
    AsItIs,
    /// One less than in the file, of a norm's weight that the family adds one to.
    LessOne,
    /// Those of other tensors after them, whose names begin so.
    Joined(&'static [&'static str]),
    /// Rows of queries or keys in llama.cpp's order.
    HeadsInTurns,
    /// None: a copy of what the text half has, or a placeholder.
    Copied,
    /// Those of the next moment, in the tensor of this name, after those of each colour of a patch.
    WithNextMoment(&'static str),
}

impl Renamed {
    /// The tensor of this name as it is.
    pub(crate) const fn new(from: &'static str, to: &'static str) -> Self {
        Self { from, to, way: Way::AsItIs }
    }

    /// The name that the family asks for, and the number of the layer.
    fn name<'a>(&self, tensor: &'a str) -> Option<(String, &'a str, &'a str)> {
        let Some((head, tail)) = self.from.split_once("{}") else {
            let rest = tensor.strip_prefix(self.from)?;
            return Some((format!("{}{rest}", self.to), "", rest));
        };
        let after = tensor.strip_prefix(head)?;
        let (number, _) = after.split_at(after.bytes().take_while(u8::is_ascii_digit).count());
        let rest = after.strip_prefix(number)?.strip_prefix(tail).filter(|_| !number.is_empty())?;
        Some((format!("{}{rest}", self.to.replacen("{}", number, 1)), number, rest))
    }
}

/// Names of the tensors in the file that another one is made of.
#[derive(Debug)]
struct Made {
    parts: Vec<String>,
    way: Way,
}

/// Two GGUF files of one model.
pub(crate) struct TwoFiles {
    text: GgufFile,
    arithmetic: Arithmetic,
    tower: GgufFile,
    /// Of the tower.
    head_size: usize,
    made: HashMap<String, Made>,
}

impl TwoFiles {
    /// The file of the text half, and how its weights are multiplied.
    pub(crate) fn text(&self) -> (&GgufFile, Arithmetic) {
        (&self.text, self.arithmetic)
    }

    pub(super) fn contains(&self, tensor: &str) -> bool {
        self.made.contains_key(tensor)
    }

    /// Numbers of a tensor, of which nothing is known if one of its parts is not there.
    fn numbers_of(&self, made: &Made) -> u64 {
        let sides = made.parts.iter().filter_map(|part| self.tower.header().tensor(part));
        let numbers =
            |shape: &[usize]| shape.iter().fold(1, |all: u64, side| all.saturating_mul(*side as u64));
        sides.map(|info| numbers(&info.shape)).fold(0, u64::saturating_add)
    }

    /// Bytes in memory, those of the tower as 32-bit numbers.
    pub(super) fn bytes_in_memory(&self, wanted: impl Fn(&str) -> bool) -> Bytes {
        let wanted = self.made.iter().filter(|(name, _)| wanted(name));
        let tower = wanted.map(|(_, made)| self.numbers_of(made)).fold(0, u64::saturating_add);
        self.text.bytes() + Bytes(tower.saturating_mul(4))
    }

    pub(super) fn bytes_on_disk(&self) -> Bytes {
        self.text.bytes() + self.tower.bytes()
    }

    /// Appends the numbers of a tensor of exactly this shape.
    ///
    /// # Errors
    /// As [`GgufFile::read`].
    pub(super) fn append(
        &self,
        name: &str,
        shape: &[usize],
        values: &mut Vec<f32>,
        context: &LoadContext,
    ) -> Result<()> {
        let missing = || Error::MissingTensor { tensor: name.to_owned() };
        let Made { parts, way } = self.made.get(name).ok_or_else(missing)?;
        match (way, parts.as_slice(), shape) {
            (Way::AsItIs, [part], _) => values.extend(self.tower.numbers(part, shape, context)?),
            (Way::HeadsInTurns, [part], [rows, ..]) => {
                values.extend(in_order(&self.tower.numbers(part, shape, context)?, *rows, self.head_size));
            }
            (Way::LessOne, [part], _) => {
                values.extend(self.tower.numbers(part, shape, context)?.iter().map(|value| value - 1.0));
            }
            (Way::Joined(_), parts, [rows, rest @ ..]) if rows % parts.len().max(1) == 0 => {
                let shape = [&[rows / parts.len().max(1)], rest].concat();
                for part in parts {
                    values.extend(self.tower.numbers(part, &shape, context)?);
                }
            }
            (Way::WithNextMoment(_), [first, second], [rows, colours, 2, rest @ ..]) => {
                let shape = [&[*rows, *colours], rest].concat();
                let moments = [first, second].map(|part| self.tower.numbers(part, &shape, context));
                let [first, second] = moments;
                let (first, second, length) = (first?, second?, rest.iter().product::<usize>().max(1));
                for (first, second) in first.chunks(length).zip(second.chunks(length)) {
                    values.extend_from_slice(first);
                    values.extend_from_slice(second);
                }
            }
            _ => {
                let found = self.tower.header().tensor(parts.first().map_or("", String::as_str));
                return Err(Error::ShapeMismatch {
                    tensor: name.to_owned(),
                    expected: shape.to_vec(),
                    found: found.map_or_else(Vec::new, |info| info.shape.clone()),
                });
            }
        }
        Ok(())
    }

    /// Refuses a tensor of either file that was not read, unless `unread` allows it. `has_no_effect` knows those of the tower by
    /// the names that its family asks for.
    pub(super) fn check_all_read(&self, unread: Unread, has_no_effect: impl Fn(&str) -> bool) -> Result<()> {
        let of_tower = self.made.iter().filter(|(name, made)| made.way == Way::Copied || has_no_effect(name));
        let of_tower: HashSet<&str> =
            of_tower.flat_map(|(_, made)| &made.parts).map(String::as_str).collect();
        self.tower.check_all_read(unread, |tensor| of_tower.contains(tensor))?;
        self.text.check_all_read(unread, has_no_effect)
    }
}

/// Rows, each of as many values, from llama.cpp's order to that of safetensors files: in each head first the
/// first numbers of all pairs, then the second.
pub(crate) fn in_order<T: Copy>(values: &[T], rows: usize, head_size: usize) -> Vec<T> {
    let row = values.len() / rows.max(1);
    let mut out = Vec::with_capacity(values.len());
    for head in values.chunks(row * head_size.max(1)) {
        for half in 0..2 {
            let rows = head.chunks(row.max(1)).skip(half).step_by(2);
            rows.for_each(|row| out.extend_from_slice(row));
        }
    }
    out
}

impl WeightFiles {
    /// The weights of two GGUF files: the text half's, multiplied in this way, and those of the vision tower with heads of this
    /// size by these tables of names, each with what its own names begin with.
    pub(crate) fn of_gguf(
        (text, arithmetic): (GgufFile, Arithmetic),
        (tower, head_size): (GgufFile, usize),
        tables: &[(&str, &[Renamed])],
        unread: Unread,
    ) -> Self {
        let mut made = HashMap::new();
        for (tensor, _) in tower.header().tensors() {
            let mut rows =
                tables.iter().flat_map(|(prefix, table)| table.iter().map(move |row| (prefix, row)));
            let found = rows.find_map(|(prefix, row)| Some((prefix, row, row.name(tensor)?)));
            let Some((prefix, row, (name, number, rest))) = found else { continue };
            let part = |beginning: &&str| format!("{}{rest}", beginning.replacen("{}", number, 1));
            let others = match row.way {
                Way::AsItIs | Way::LessOne | Way::HeadsInTurns | Way::Copied => Vec::new(),
                Way::Joined(beginnings) => beginnings.iter().map(part).collect(),
                Way::WithNextMoment(name) => vec![name.to_owned()],
            };
            let parts = std::iter::once(tensor.clone()).chain(others).collect();
            made.insert(format!("{prefix}{name}"), Made { parts, way: row.way });
        }
        Self { unread, gguf: Some(TwoFiles { text, arithmetic, tower, head_size, made }), ..Self::default() }
    }

    /// The two GGUF files that they are in, if they are.
    pub(crate) fn gguf(&self) -> Option<&TwoFiles> {
        self.gguf.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_found_by_its_beginning_and_the_number_of_its_layer() {
        let row = Renamed::new("v.blk.{}.attn_q.", "tower.layers.{}.q.");
        let name = |tensor| row.name(tensor).map(|(name, ..)| name);
        assert_eq!(name("v.blk.12.attn_q.weight").as_deref(), Some("tower.layers.12.q.weight"));
        for other in
            ["v.blk..attn_q.weight", "v.blk.x.attn_q.weight", "v.blk.1.attn_q_norm.weight", "v.blk.1"]
        {
            assert_eq!(name(other), None, "{other}");
        }
        let whole = Renamed::new("v.class_embd", "tower.class");
        assert_eq!(whole.name("v.class_embd").map(|(name, ..)| name).as_deref(), Some("tower.class"));
    }

    #[test]
    fn rows_of_a_head_come_in_the_order_of_halves() {
        let values = [[0, 0], [2, 2], [1, 1], [3, 3], [4, 4], [6, 6], [5, 5], [7, 7]].concat();
        let ordered: Vec<i32> = (0..8).flat_map(|value| [value, value]).collect();
        assert_eq!(in_order(&values, 8, 4), ordered);
    }
}
