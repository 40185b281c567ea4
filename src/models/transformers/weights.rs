//! The one map of tensors that a model of candle-transformers is built from. Each tensor is read, checked and converted when
//! it is first asked for, so that a load tells its progress and can be given up between tensors, and nothing is read
//! twice. What was asked for and is not there, or is there and was not asked for, is an error that names it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{DType, Device, Shape, Tensor};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};
use model_actors::{Bytes, LoadContext};

use crate::error::{Error, Result};
use crate::language_model::Described;
use crate::weights::WeightFiles;

/// The tensors of a model that is being built, or is built anew for each text.
#[derive(Clone)]
pub(super) struct Tensors(Arc<Mutex<Map>>);

struct Map {
    /// Nothing once the model is built: from then on it asks for what it has asked for before.
    files: Option<Reading>,
    /// Under the names that are asked for, and those in the files; the tensors of both are the same.
    kept: HashMap<String, Tensor>,
    /// Of the tensors, each counted once.
    bytes: Bytes,
    other_names: fn(&str) -> Vec<String>,
    joined: fn(&str) -> Vec<String>,
    /// The first error, whose type would not survive in one of candle.
    error: Option<Error>,
}

/// Where tensors come from.
struct Reading {
    weights: WeightFiles,
    context: LoadContext,
}

impl Tensors {
    pub(super) fn new(weights: WeightFiles, described: &Described, context: &LoadContext) -> Self {
        let files = Some(Reading { weights, context: context.clone() });
        let Described { other_names, joined, .. } = *described;
        let map = Map { files, kept: HashMap::new(), bytes: Bytes(0), other_names, joined, error: None };
        Self(Arc::new(Mutex::new(map)))
    }

    /// The tensors as the library asks for them, on this device.
    pub(super) fn builder(&self, device: &Device) -> VarBuilder<'static> {
        let backend: Box<dyn SimpleBackend> = Box::new(self.clone());
        VarBuilder::from_backend(backend, DType::F32, device.clone())
    }

    /// Closes the files, if nothing in them is left that has an effect. Gives the bytes of the tensors that were read.
    ///
    /// # Errors
    /// [`Error::UnreadTensor`] names the first tensor that was never asked for.
    pub(super) fn close(&self, has_no_effect: impl Fn(&str) -> bool) -> Result<Bytes> {
        self.with(|map| {
            if let Some(Reading { weights, .. }) = map.files.take() {
                weights.check_all_read(has_no_effect)?;
            }
            Ok(map.bytes)
        })
    }

    /// The first error of those that were handed to the library.
    pub(super) fn error(&self) -> Option<Error> {
        self.with(|map| map.error.take())
    }

    fn with<R>(&self, work: impl FnOnce(&mut Map) -> R) -> R {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Map {
    /// The name in the files of a tensor that is asked for by this one.
    fn stored(&self, name: &str) -> Option<String> {
        let Some(Reading { weights, .. }) = &self.files else { return None };
        let names = std::iter::once(name.to_owned()).chain((self.other_names)(name));
        names.into_iter().find(|name| weights.contains(name))
    }

    /// The parts of a tensor that the files have in pieces.
    fn parts(&self, name: &str) -> Option<Vec<String>> {
        let parts = (self.joined)(name);
        (!parts.is_empty() && parts.iter().all(|part| self.stored(part).is_some())).then_some(parts)
    }

    fn contains(&self, name: &str) -> bool {
        self.kept.contains_key(name) || self.stored(name).is_some() || self.parts(name).is_some()
    }

    /// A tensor, of this shape if one is asked for.
    fn tensor(&mut self, name: &str, shape: Option<&Shape>, device: &Device) -> Result<Tensor> {
        let tensor = match self.kept.get(name) {
            Some(tensor) => tensor.clone(),
            None => {
                let tensor = match (self.stored(name), self.parts(name)) {
                    (Some(stored), _) => self.read(&stored, device)?,
                    (None, Some(parts)) => {
                        let parts = parts.iter().map(|part| self.part(part, device));
                        let whole = Tensor::cat(&parts.collect::<Result<Vec<_>>>()?, 0)?;
                        self.bytes += bytes_of(&whole);
                        whole
                    }
                    (None, None) => return Err(Error::MissingTensor { tensor: name.to_owned() }),
                };
                self.kept.insert(name.to_owned(), tensor.clone());
                tensor
            }
        };
        match shape {
            Some(shape) if shape != tensor.shape() => Err(Error::ShapeMismatch {
                tensor: name.to_owned(),
                expected: shape.dims().to_vec(),
                found: tensor.dims().to_vec(),
            }),
            _ => Ok(tensor),
        }
    }

    /// Reads a tensor of the files, unless it was read under another name.
    fn read(&mut self, stored: &str, device: &Device) -> Result<Tensor> {
        if let Some(tensor) = self.kept.get(stored) {
            return Ok(tensor.clone());
        }
        let tensor = self.part(stored, device)?;
        self.kept.insert(stored.to_owned(), tensor.clone());
        self.bytes += bytes_of(&tensor);
        Ok(tensor)
    }

    /// Reads a tensor of the files that is not kept by itself.
    fn part(&self, stored: &str, device: &Device) -> Result<Tensor> {
        let missing = || Error::MissingTensor { tensor: stored.to_owned() };
        let Reading { weights, context } = self.files.as_ref().ok_or_else(missing)?;
        let shape = weights.shape(stored).ok_or_else(missing)?;
        weights.reader("", device, context).tensor(stored, shape)
    }

    fn get(
        &mut self,
        name: &str,
        shape: Option<&Shape>,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        match self.tensor(name, shape, device) {
            // All are of 32 bits, and so is what the library asks for.
            Ok(tensor) => tensor.to_dtype(dtype),
            Err(error) => {
                let told = candle_core::Error::msg(&error);
                self.error.get_or_insert(error);
                Err(told)
            }
        }
    }
}

#[cfg(feature = "transformers")]
/// The tensors of a model that asks for each once and keeps what it gets.
pub(super) struct Lent<'a> {
    pub(super) weights: &'a WeightFiles,
    pub(super) context: &'a LoadContext,
    /// True for tensors whose absence is no error.
    pub(super) may_lack: fn(&str) -> bool,
    /// The first error, whose type would not survive in one of candle.
    pub(super) error: Arc<Mutex<Option<Error>>>,
}

#[cfg(feature = "transformers")]
impl Lent<'_> {
    fn read(&self, name: &str, shape: Option<&[usize]>, device: &Device) -> candle_core::Result<Tensor> {
        let missing = || Error::MissingTensor { tensor: name.to_owned() };
        let own = self.weights.shape(name).ok_or_else(missing);
        let read = |own| self.weights.reader("", device, self.context).tensor(name, shape.unwrap_or(own));
        own.and_then(read).map_err(|error| {
            let told = candle_core::Error::msg(&error);
            if !matches!(error, Error::MissingTensor { .. }) || !(self.may_lack)(name) {
                self.error.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
            }
            told
        })
    }
}

#[cfg(feature = "transformers")]
impl SimpleBackend for Lent<'_> {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        _: Init,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        self.read(name, Some(shape.dims()), device)?.to_dtype(dtype)
    }

    fn get_unchecked(&self, name: &str, dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
        self.read(name, None, device)?.to_dtype(dtype)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.weights.contains(name)
    }
}

/// Bytes of a tensor of 32-bit numbers.
fn bytes_of(tensor: &Tensor) -> Bytes {
    Bytes((tensor.elem_count() as u64).saturating_mul(4))
}

impl SimpleBackend for Tensors {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        _: Init,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        self.with(|map| map.get(name, Some(&shape), dtype, device))
    }

    fn get_unchecked(&self, name: &str, dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
        self.with(|map| map.get(name, None, dtype, device))
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.with(|map| map.contains(name))
    }
}
