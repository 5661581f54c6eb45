//! A machine's profile of any bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tangor_plan::simulate::Machine;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(machine) = Machine::parse(text) else { return };
    assert!((1..=16).contains(&machine.devices.len()));
    for device in &machine.devices {
        let rates = &device.rates;
        assert!(rates.int8_ops_per_s >= 1e3 && rates.read_bytes_per_s >= 1e3);
        assert!(device.memory_bytes > 0 && device.padded_rows(7) >= 7);
    }
});
