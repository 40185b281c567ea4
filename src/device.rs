//! Devices that models compute on, and the processor threads that one worker may use. Scheduling of workers is left to
//! the actors.

use std::fmt;
use std::sync::{Arc, OnceLock};

use model_actors::{Bytes, Footprint};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::limits::MAX_PARALLEL;

/// Device that an engine's models run on.
///
/// ```
/// use candle_actors::ComputeDevice;
/// assert_eq!(ComputeDevice::default(), ComputeDevice::Cpu);
/// assert_eq!(ComputeDevice::Cuda(1).to_string(), "cuda:1");
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ComputeDevice {
    /// The processor.
    #[default]
    Cpu,
    /// An NVIDIA card by its number, from 0; needs the feature `cuda`.
    Cuda(usize),
    /// An Apple GPU by its number, from 0; needs the feature `metal`.
    Metal(usize),
}

impl ComputeDevice {
    /// Memory that its models are charged to.
    pub fn memory(self) -> model_actors::Device {
        match self {
            Self::Cpu => model_actors::Device::host(),
            other => model_actors::Device::named(&other.to_string()),
        }
    }

    fn open(self) -> Result<candle_core::Device> {
        let opened = match self {
            Self::Cpu => Ok(candle_core::Device::Cpu),
            Self::Cuda(index) => candle_core::Device::new_cuda(index),
            Self::Metal(index) => candle_core::Device::new_metal(index),
        };
        opened.map_err(|error| Error::Device { device: self.to_string(), reason: first_line(&error) })
    }
}

impl fmt::Display for ComputeDevice {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => formatter.write_str("cpu"),
            Self::Cuda(index) => write!(formatter, "cuda:{index}"),
            Self::Metal(index) => write!(formatter, "metal:{index}"),
        }
    }
}

fn first_line(error: &candle_core::Error) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

/// Memory of each thread of a worker beyond the first: attention scores, gemm's packed panels, the allocator's own.
const FURTHER_THREAD: Bytes = Bytes::mib(4);

/// Device and threads of an engine's models. The device is opened at the first load and shared from then on, because
/// tensors of two openings of one card cannot be used together.
#[derive(Debug, Clone)]
pub(crate) struct Compute {
    pub(crate) device: ComputeDevice,
    /// Processor threads of each worker.
    pub(crate) threads: usize,
    opened: Arc<OnceLock<candle_core::Device>>,
}

impl Compute {
    /// # Errors
    /// [`Error::InvalidSetting`] for a number of threads that is out of range.
    pub(crate) fn new(device: ComputeDevice, threads: usize) -> Result<Self> {
        if !(1..=MAX_PARALLEL).contains(&threads) {
            let reason = format!("{threads} threads a worker are asked for; 1 to {MAX_PARALLEL} are allowed");
            return Err(Error::InvalidSetting { setting: "threads".into(), reason });
        }
        Ok(Self { device, threads, opened: Arc::default() })
    }

    /// Footprint of a model whose workers have these threads, given that with one thread.
    pub(crate) fn counted(&self, footprint: Footprint) -> Footprint {
        let more = FURTHER_THREAD.0.saturating_mul(self.threads.saturating_sub(1) as u64);
        Footprint::new(footprint.shared, footprint.per_worker + Bytes(more))
    }

    /// True where packed weights of 16 bits stay so: on the processor.
    pub(crate) fn packs(&self) -> bool {
        self.device == ComputeDevice::Cpu
    }

    pub(crate) fn open(&self) -> Result<candle_core::Device> {
        if let Some(device) = self.opened.get() {
            return Ok(device.clone());
        }
        let device = self.device.open()?;
        Ok(self.opened.get_or_init(|| device).clone())
    }
}

/// A worker's own compute threads. One thread is the worker's own, with no pool and no hand-over; more are a rayon
/// pool, within which candle, gemm and the kernels here use no other threads than these. The threads end with it.
pub(crate) struct ComputeThreads(Option<rayon::ThreadPool>);

impl ComputeThreads {
    /// For models that are written on [`crate::kernels`], which never leave the calling thread by themselves.
    pub(crate) fn for_kernels(threads: usize) -> Result<Self> {
        if threads == 1 { Ok(Self(None)) } else { Self::pool(threads) }
    }

    /// For models that use operations of candle: outside a pool candle would spread its products over every core.
    pub(crate) fn pool(threads: usize) -> Result<Self> {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|index| format!("compute-{index}"))
            .build()
            .map_err(|error| Error::Device { device: "cpu".into(), reason: error.to_string() })?;
        Ok(Self(Some(pool)))
    }

    pub(crate) fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        match &self.0 {
            Some(pool) => pool.install(work),
            None => work(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_further_thread_of_a_worker_is_counted() {
        let footprint = Footprint::new(Bytes(7), Bytes(1));
        let with = |threads| Compute::new(ComputeDevice::Cpu, threads).unwrap().counted(footprint);
        assert_eq!(with(1), footprint);
        assert_eq!(with(3), Footprint::new(Bytes(7), Bytes(1) + FURTHER_THREAD + FURTHER_THREAD));
    }
}
