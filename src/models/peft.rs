//! Adapters as PEFT writes them: a configuration that says which layers have one, and two matrices for each. What is added to
//! a layer is found for the name that the layer has in the reference implementation; the computation is left to
//! `transformer`. An adapter that is anything else than two matrices a layer is refused by the setting that says so.

mod settings;

use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use model_actors::{Bytes, LoadContext};

use crate::error::{Error, Result};
use crate::models::transformer::LowRankMatrices;
use crate::source::Files;
use crate::weights::{WeightFiles, WeightReader};
use settings::Settings;

/// Beginning of all names.
const BEGINNING: &str = "base_model.model.";

/// An adapter that is not loaded.
pub(crate) struct PeftAdapter {
    config: PathBuf,
    settings: Settings,
    weights: WeightFiles,
}

impl PeftAdapter {
    /// Opens the adapter in a folder, which is named with a slash at its end or empty.
    ///
    /// # Errors
    /// Those of reading its two files; [`Error::UnreadSetting`] for one that is more than two matrices a layer.
    pub(crate) fn open(files: &Files, folder: &str, context: &LoadContext) -> Result<Self> {
        let file = files.required(&format!("{folder}adapter_config.json"), context)?;
        let settings = Settings::read(&file, files.unread)?;
        let weights = WeightFiles::open_named(files, folder, "adapter_model", context)?;
        Ok(Self { config: file, settings, weights })
    }

    /// The file that has its matrices.
    pub(crate) fn file(&self) -> PathBuf {
        self.weights.path().map(Path::to_owned).unwrap_or_default()
    }

    /// Its files: the settings, and that which has its matrices.
    pub(crate) fn files(&self) -> [PathBuf; 2] {
        [self.config.clone(), self.file()]
    }

    /// Bytes of its matrices in memory.
    pub(crate) fn bytes(&self) -> Bytes {
        self.weights.bytes_in_memory(|_| true, |_| false)
    }

    /// Refuses one with a tensor that belongs to no layer. `has_no_effect` is true for the weights of modules that nothing is
    /// computed with.
    pub(crate) fn check_all_read(&self, has_no_effect: impl Fn(&str) -> bool) -> Result<()> {
        self.weights.check_all_read(|tensor| {
            let module = tensor.strip_prefix(BEGINNING).and_then(|name| name.split_once(".lora_"));
            module.is_some_and(|(module, _)| has_no_effect(&format!("{module}.weight")))
        })
    }

    /// Its matrices for layers whose names, which begin with `blocks`, follow one of these beginnings.
    pub(crate) fn matrices<'a>(
        &'a self,
        prefixes: &[&'static str],
        blocks: &str,
        device: &'a Device,
        context: &'a LoadContext,
    ) -> PeftMatrices<'a> {
        let is_there = |prefix: &&&str| self.weights.has_beginning(&format!("{BEGINNING}{prefix}{blocks}"));
        let prefix = prefixes.iter().find(is_there).or(prefixes.first()).copied().unwrap_or_default();
        let reader = self.weights.reader(BEGINNING, device, context);
        PeftMatrices { settings: &self.settings, reader, prefix }
    }
}

/// The matrices of an adapter.
pub(crate) struct PeftMatrices<'a> {
    settings: &'a Settings,
    reader: WeightReader<'a>,
    prefix: &'static str,
}

impl LowRankMatrices for PeftMatrices<'_> {
    /// A layer that the settings name has both matrices, and another has none.
    fn matrices(&self, layer: &str, out_dim: usize, in_dim: usize) -> Result<Option<(Tensor, Tensor)>> {
        let module = format!("{}{layer}", self.prefix);
        let Some((rank, scaling)) = self.settings.of_module(&module)? else { return Ok(None) };
        let down = self.reader.tensor(&format!("{module}.lora_A.weight"), &[rank, in_dim])?;
        let up = self.reader.tensor(&format!("{module}.lora_B.weight"), &[out_dim, rank])?;
        Ok(Some((down, (up * scaling)?)))
    }
}

/// The same error of an adapter, with its name and file.
pub(crate) fn of_adapter(adapter: &str, place: PathBuf, error: Error) -> Error {
    match error {
        Error::Stopped => Error::Stopped,
        error => Error::BrokenAdapter { adapter: adapter.to_owned(), place, error: Box::new(error) },
    }
}
