//! How fast this machine's devices are: measured once, kept in the store, and planned with from
//! then on.
//!
//! Rates are kept per device and what they depend on: its driver or instruction set, its threads,
//! this program's version. Another of these is another key; what is damaged is as good as not
//! there. So a note never has to be told apart from a stale one.

use crate::devices::Opened;
use crate::error::Outcome;
use crate::progress::Progress;
use crate::terminal;
use tangor_engine::plan::Rates;
use tangor_store::Store;

/// What the numbers mean: changes with the cost model and with how it is measured.
const MEANING: u32 = 2;

/// Where the rates of devices come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Measure {
    /// They are what was measured before, or are measured now.
    Once,
    /// They are measured now.
    Again,
}

/// Rates by the names of devices.
pub(crate) type Named = Vec<(String, Rates)>;

fn key(opened: &Opened) -> String {
    let (name, version) = (&opened.device.descriptor().name, env!("CARGO_PKG_VERSION"));
    format!("rates {MEANING} of {name} by {version}: {}", opened.identity)
}

/// What was measured of a device before.
fn kept(store: &Store, opened: &Opened) -> Option<Rates> {
    let rates: Rates = serde_json::from_str(&store.find_note(&key(opened))?).ok()?;
    rates.measured.then_some(rates)
}

/// Measures a device, and keeps what came out.
fn measure(store: &Store, opened: &Opened) -> Outcome<Rates> {
    let _progress = Progress::spinner(format!("measuring {}", opened.device.descriptor().name));
    let rates = (opened.measure)()?;
    if let Err(error) = store.keep_note(&key(opened), &serde_json::to_string(&rates)?) {
        terminal::note(&format!("what was measured is not kept for the next time: {error}"));
    }
    Ok(rates)
}

/// The rates of all devices.
pub(crate) fn all_measured(store: &Store, devices: &[Opened], wanted: Measure) -> Outcome<Named> {
    let rates = |opened| match kept(store, opened).filter(|_| wanted == Measure::Once) {
        Some(rates) => Ok((opened_name(opened), rates)),
        None => Ok((opened_name(opened), measure(store, opened)?)),
    };
    devices.iter().map(rates).collect()
}

/// What was measured before of devices between which there is a choice, by name. Never measures: a
/// model would have to wait for it.
pub(crate) fn all_kept(store: &Store, devices: &[Opened]) -> Named {
    let named = |opened| Some((opened_name(opened), kept(store, opened)?));
    if devices.len() < 2 { Vec::new() } else { devices.iter().filter_map(named).collect() }
}

fn opened_name(opened: &Opened) -> String {
    opened.device.descriptor().name.clone()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::cell::Cell;
    use std::rc::Rc;
    use std::sync::Arc;
    use tangor_engine::device::oracle::OracleDevice;
    use tangor_engine::plan::Kind;
    use tangor_store::StoreOptions;

    /// A device that counts how often it is measured.
    fn opened(identity: &str) -> (Opened, Rc<Cell<u32>>) {
        let count = Rc::new(Cell::new(0));
        let counted = Rc::clone(&count);
        let measure = Box::new(move || {
            counted.set(counted.get() + 1);
            Ok(Rates { int8_ops_per_s: 7e11, measured: true, ..Rates::typical(Kind::Cpu) })
        });
        let device = Arc::new(OracleDevice::new());
        (Opened { device, identity: identity.into(), measure }, count)
    }

    #[test]
    fn rates_are_kept_for_the_device_that_they_were_measured_of() {
        let folder = tempfile::tempdir().unwrap();
        let root = Some(folder.path().to_path_buf());
        let store = Store::open(StoreOptions { root, ..StoreOptions::default() }).unwrap();
        let ((device, measured), (other, _)) = (opened("driver 1"), opened("driver 2"));
        assert_eq!(kept(&store, &device), None);
        let rates = measure(&store, &device).unwrap();
        assert_eq!((kept(&store, &device), measured.get()), (Some(rates), 1));
        assert_eq!(kept(&store, &other), None, "of another driver");
        let devices = [device, other];
        assert_eq!(all_kept(&store, &devices), [(opened_name(&devices[0]), rates)]);
        assert_eq!(all_kept(&store, &devices[..1]), [], "one device leaves nothing to choose");
        for text in ["", "{}", "not rates"] {
            store.keep_note(&key(&devices[0]), text).unwrap();
            assert_eq!(kept(&store, &devices[0]), None, "{text}");
        }
    }
}
