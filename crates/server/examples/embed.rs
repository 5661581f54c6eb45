//! A server inside another program: `cargo run -p tangor-server --example embed -- model.gguf PORT`
//! serves a model on the oracle, the device that is correct and slow. Programs that want speed
//! open devices of their own in their [`Loader`].
#![allow(clippy::print_stderr, reason = "an example talks to whoever runs it")]

use std::error::Error;
use std::sync::Arc;
use tangor_engine::device::Device;
use tangor_engine::device::oracle::OracleDevice;
use tangor_engine::plan::model::formats;
use tangor_engine::{LoadOptions, Model, SamplingParams};
use tangor_server::{LoadAsk, LoadError, Loaded, Loader, Options, Server};
use tangor_store::{DirSource, Installed, ModelName, Store, StoreOptions};

#[derive(Debug)]
struct OnOracle;

impl Loader for OnOracle {
    fn load(
        &self,
        installed: &Installed,
        ask: &LoadAsk,
        memory_limit: Option<u64>,
    ) -> Result<Loaded, LoadError> {
        let load = || -> Result<Arc<Model>, Box<dyn Error>> {
            let source = DirSource::open(&installed.path)?;
            let limits = formats::Limits::default();
            let checkpoint = formats::Checkpoint::open(&source, source.file(), &limits)?;
            let devices: Vec<Arc<dyn Device>> = vec![Arc::new(OracleDevice::new())];
            let context = ask.context;
            let options = LoadOptions { context, memory_limit, ..LoadOptions::default() };
            Ok(Model::load(&checkpoint, &devices, &options, &mut |_| {})?)
        };
        let model = load().map_err(|error| LoadError::Other(error.to_string()))?;
        Ok(Loaded { model, recommended: SamplingParams::default() })
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model, port] = args.as_slice() else { return Err("give a model and a port".into()) };
    let options = Options {
        address: ([127, 0, 0, 1], port.parse()?).into(),
        ..Options::new(vec![ModelName::Path(model.into())], Arc::new(OnOracle))
    };
    let server = Server::bind(options, Store::open(StoreOptions::from_env())?)?;
    let address = server.address();
    server.run(move || eprintln!("serving on http://{address}"))?;
    Ok(())
}
