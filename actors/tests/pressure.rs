//! A memory that runs short stops the growth of the models in it, and of no others.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod timeline;

use model_actors::scheduler::{Effect, Input};
use model_actors::{Device, PoolConfig, PressureLevel};
use timeline::Core;

/// Whether a further worker is asked for when the only one is busy and a request waits.
fn grows(device: Device, level: PressureLevel) -> bool {
    let mut core = Core::new(PoolConfig { cold_start_workers: 1, ..PoolConfig::default() });
    core.tell(Input::Pressure { device, level });
    core.submit();
    let (_, effects) = core.submit();
    effects.iter().any(|effect| matches!(effect, Effect::Reserve { .. }))
}

#[test]
fn only_pressure_on_its_own_device_keeps_a_model_from_growing() {
    let card = Device::named("cuda:0");
    let table = [
        (Device::host(), PressureLevel::Normal, true),
        (Device::host(), PressureLevel::Elevated, false),
        (Device::host(), PressureLevel::Critical, false),
        (card.clone(), PressureLevel::Elevated, true),
        (card, PressureLevel::Critical, true),
    ];
    for (device, level, expected) in table {
        assert_eq!(grows(device.clone(), level), expected, "{device} at {level:?}");
    }
}
