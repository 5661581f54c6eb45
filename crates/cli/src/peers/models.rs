//! What is compared, and the files that each program reads it from: made once, beside the programs.

use super::tools::{GENAI, GGUF, TORCH, Tools, scripts};
use super::{Argv, argv};
use crate::error::{Failure, Outcome};
use crate::load;
use serde::Serialize;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use tangor_engine::device::HostMemory;
use tangor_engine::plan::model::formats::Checkpoint;
use tangor_engine::plan::model::{Config, Mixture, shapes};
use tangor_store::Installed;

/// What is compared.
#[derive(Debug)]
pub(crate) struct Subject {
    source: Source,
    /// How its matrices are to be stored; `None`: as they are.
    weights: Option<Mixture>,
    /// Weights that it has.
    count: u64,
}

/// Where it comes from.
#[derive(Debug)]
enum Source {
    /// A GGUF file.
    Gguf(PathBuf),
    /// A Hugging Face folder.
    Folder(PathBuf),
    /// An ONNX Runtime GenAI folder.
    Oga(PathBuf),
    /// A published shape with random weights: its name and `config.json`.
    Shape(String, Value),
}

/// The files that a program reads.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Form {
    /// A GGUF file, stored as the subject is, or else in `Q4_0`.
    Gguf,
    /// A GGUF file of this mixture.
    GgufOf(Mixture),
    /// A Hugging Face folder in bf16.
    Hf,
    /// An ONNX Runtime GenAI folder in int4, in groups as the subject has them, or else of 32.
    Oga,
    /// One in groups of this size.
    OgaOf(usize),
}

/// What a program needs and the machine does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Memory {
    pub(crate) needed_bytes: u64,
    pub(crate) available_bytes: u64,
}

impl Subject {
    /// The files of a model; `weights` are those that they are to be made into.
    pub(crate) fn model(
        installed: &Installed,
        checkpoint: &Checkpoint,
        weights: Option<Mixture>,
    ) -> Outcome<Self> {
        let graph = load::graph(checkpoint)?;
        let matrices = graph.weights.iter().map(|named| &named.weight);
        let count = matrices.map(|weight| weight.rows() as u64 * weight.cols() as u64).sum();
        let path = installed.path.clone();
        let source = match checkpoint {
            Checkpoint::Gguf(_) => Source::Gguf(path),
            Checkpoint::Hf(_) => Source::Folder(path),
            Checkpoint::Oga(_) => Source::Oga(path),
        };
        match (&source, weights) {
            (Source::Oga(_), Some(_)) => {
                Err(Failure::Usage("--weights: an ONNX folder has weights of its own".into()))
            }
            (Source::Folder(_), Some(Mixture::Q4_0 | Mixture::Q4KM)) => {
                Err(Failure::Usage("--weights: only a GGUF file can be stored so".into()))
            }
            _ => Ok(Self { source, weights, count }),
        }
    }

    /// A published shape.
    pub(crate) fn shape(name: &str, weights: Mixture) -> Outcome<Self> {
        let config = shapes::config(name)?;
        Ok(Self {
            source: Source::Shape(name.to_owned(), config_json(&config)),
            weights: Some(weights),
            count: count(&config),
        })
    }

    /// Why a program that takes so many bytes for a weight cannot run it; `None` if it can.
    pub(crate) fn too_large(&self, bytes_per_weight: f64) -> Option<Memory> {
        let available = HostMemory::now().usable_bytes()?;
        let needed = (self.count as f64 * bytes_per_weight) as u64;
        let lack = Memory { needed_bytes: needed, available_bytes: available };
        (needed > available).then_some(lack)
    }

    /// What a form of it is called in a report.
    pub(crate) fn describe(&self, form: Form) -> String {
        match form {
            Form::Gguf => match (self.gguf_mixture(), &self.source) {
                (None, _) => "the GGUF file".to_owned(),
                (Some(mixture), _) => mixture_words(mixture),
            },
            Form::GgufOf(mixture) => mixture_words(mixture),
            Form::Hf => "bf16".to_owned(),
            Form::Oga if matches!(self.source, Source::Oga(_)) => "the ONNX folder".to_owned(),
            Form::Oga | Form::OgaOf(_) => {
                format!("int4 in groups of {}, accuracy level 4", self.group(form))
            }
        }
    }

    /// What Tangor computes with, in words.
    pub(crate) fn ours(&self) -> String {
        self.weights.map_or_else(|| "the weights of the model".to_owned(), mixture_words)
    }

    /// The mixture of a GGUF file that is stored as the subject is; `None`: the file that there is.
    fn gguf_mixture(&self) -> Option<Mixture> {
        match (self.weights, &self.source) {
            (Some(Mixture::Int4 { .. }), Source::Gguf(_)) => None,
            (Some(Mixture::Int4 { .. }), _) => Some(Mixture::Q4_0),
            (weights, _) => weights,
        }
    }

    fn group(&self, form: Form) -> usize {
        match (form, self.weights) {
            (Form::OgaOf(group), _) | (_, Some(Mixture::Int4 { group })) => group,
            _ => 32,
        }
    }

    /// A name for what is made of it.
    fn key(&self) -> String {
        let of = |path: &Path| {
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let bytes = path.metadata().map_or(0, |metadata| metadata.len());
            format!("{name}-{bytes}")
        };
        match &self.source {
            Source::Gguf(path) | Source::Folder(path) | Source::Oga(path) => of(path),
            Source::Shape(name, _) => name.clone(),
        }
    }
}

fn mixture_words(mixture: Mixture) -> String {
    match mixture {
        Mixture::Q4_0 => "Q4_0 in every matrix".to_owned(),
        Mixture::Q4KM => "Q4_K_M".to_owned(),
        Mixture::Int4 { group } => format!("int4 with zero points in groups of {group}"),
    }
}

/// A `config.json` of a published shape, with what speed depends on.
fn config_json(config: &Config) -> Value {
    let hyper = &config.hyper;
    json!({
        "model_type": hyper.arch,
        "vocab_size": hyper.vocab,
        "hidden_size": hyper.hidden,
        "intermediate_size": hyper.ffn,
        "num_hidden_layers": hyper.layers,
        "num_attention_heads": hyper.heads,
        "num_key_value_heads": hyper.kv_heads,
        "head_dim": hyper.head_dim,
        "max_position_embeddings": hyper.context,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "sliding_window": config.windows.first().copied().flatten(),
        "tie_word_embeddings": config.tied,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    })
}

/// Weights in the matrices of a shape.
fn count(config: &Config) -> u64 {
    let hyper = &config.hyper;
    let width = |heads: usize| heads * hyper.head_dim;
    let attention = hyper.hidden * 2 * (width(hyper.heads) + width(hyper.kv_heads));
    let layer = attention + 3 * hyper.hidden * hyper.ffn;
    let tables = if config.tied { 1 } else { 2 };
    (tables * hyper.vocab * hyper.hidden + hyper.layers * layer) as u64
}

impl Tools {
    /// The subject in the form that a program reads; made unless it is there.
    pub(crate) fn make(&self, subject: &Subject, form: Form) -> Outcome<PathBuf> {
        match form {
            Form::Gguf => self.gguf(subject, subject.gguf_mixture()),
            Form::GgufOf(mixture) => self.gguf(subject, Some(mixture)),
            Form::Hf => self.hf(subject),
            Form::Oga | Form::OgaOf(_) => self.oga(subject, subject.group(form)),
        }
    }

    /// What `tangor bench` is to be asked for.
    pub(crate) fn ours(&self, subject: &Subject) -> Outcome<Argv> {
        Ok(match (&subject.source, subject.weights) {
            (Source::Shape(name, _), weights) => {
                let weights = weights.unwrap_or_default().name();
                argv([&"--shape", &name.as_str(), &"--weights", &weights])
            }
            (Source::Gguf(path) | Source::Folder(path) | Source::Oga(path), None) => {
                argv([&path.as_path()])
            }
            (_, Some(Mixture::Int4 { group })) => argv([&self.oga(subject, group)?]),
            (_, weights) => argv([&self.gguf(subject, weights)?]),
        })
    }

    fn gguf(&self, subject: &Subject, mixture: Option<Mixture>) -> Outcome<PathBuf> {
        let (source, mixture) = match (&subject.source, mixture) {
            (Source::Gguf(path), None) => return Ok(path.clone()),
            (Source::Folder(_) | Source::Oga(_), _) => {
                return Err(Failure::new("it reads GGUF files, and the model is none"));
            }
            (source, mixture) => (source, mixture.unwrap_or_default()),
        };
        let path = self.model(subject, &format!("{mixture}.gguf"));
        if path.exists() {
            return Ok(path);
        }
        self.disk_has("the GGUF file", subject.count * 5 / 8)?;
        match source {
            Source::Shape(name, config) => {
                self.install(&GGUF)?;
                let mut make = self.script(&GGUF, scripts::MAKE_GGUF);
                make.extend([config.to_string().into(), mixture.name().into()]);
                make.push(path.clone().into());
                self.step(&format!("writing {name} as a GGUF file in {mixture}"), &make)?;
            }
            _ => self.quantise(&self.gguf(subject, None)?, mixture.name(), &path)?,
        }
        Ok(path)
    }

    /// Stores a GGUF file in another type; `Q4_0` and `F32` then are that of every matrix.
    pub(crate) fn quantise(&self, source: &Path, name: &str, path: &Path) -> Outcome {
        self.install_llama_cpp()?;
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let part = path.with_extension("part");
        let quantize = self.llama_cpp("llama-quantize");
        let mut make = argv([&quantize, &"--allow-requantize"]);
        if name != Mixture::Q4KM.name() {
            make.push("--pure".into());
        }
        make.extend(argv([&source, &part.as_path(), &name.to_uppercase().as_str()]));
        self.step(&format!("storing the model in {name}"), &make)?;
        Ok(std::fs::rename(part, path)?)
    }

    fn hf(&self, subject: &Subject) -> Outcome<PathBuf> {
        let source = match &subject.source {
            Source::Folder(path) => return Ok(path.clone()),
            Source::Oga(_) => return Err(Failure::new("it does not read ONNX folders")),
            Source::Gguf(path) => path.clone().into_os_string(),
            Source::Shape(_, config) => config.to_string().into(),
        };
        let path = self.model(subject, "hf");
        if !path.exists() {
            self.disk_has("the bf16 folder", subject.count * 2)?;
            self.install(&TORCH)?;
            let mut make = self.script(&TORCH, scripts::MAKE_HF);
            make.extend([source, path.clone().into_os_string()]);
            self.step("writing the model as a Hugging Face folder in bf16", &make)?;
        }
        Ok(path)
    }

    fn oga(&self, subject: &Subject, group: usize) -> Outcome<PathBuf> {
        if let Source::Oga(path) = &subject.source {
            return Ok(path.clone());
        }
        let path = self.model(subject, &format!("int4-g{group}-onnx"));
        if !path.exists() {
            self.disk_has("the ONNX folder", subject.count * 5 / 4)?;
            let source = match &subject.source {
                Source::Shape(_, config) => config.to_string().into(),
                _ => self.hf(subject)?.into_os_string(),
            };
            self.install(&GENAI)?;
            let mut make = self.script(&GENAI, scripts::MAKE_OGA);
            make.extend([source, group.to_string().into(), path.clone().into_os_string()]);
            self.step("building the model for onnxruntime-genai (minutes)", &make)?;
        }
        Ok(path)
    }

    fn model(&self, subject: &Subject, form: &str) -> PathBuf {
        self.folder.join("models").join(format!("{}-{form}", subject.key()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_published_shape_has_a_config_and_a_size() {
        for name in shapes::names() {
            let config = shapes::config(name).unwrap();
            assert!(config_json(&config)["hidden_size"].as_u64() > Some(0), "{name}");
        }
        let count = |name: &str| Subject::shape(name, Mixture::Q4_0).unwrap().count as f64 / 1e9;
        assert!((count("llama-3.2-1b") - 1.2358).abs() < 1e-3);
        assert!((count("mistral-7b") - 7.2480).abs() < 1e-3);
    }

    #[test]
    fn what_cannot_be_stored_as_asked_is_stored_in_the_nearest_way() {
        let shape = |weights| Subject::shape("llama-3.2-1b", weights).unwrap();
        let subject = shape(Mixture::Int4 { group: 128 });
        assert_eq!(subject.describe(Form::Gguf), "Q4_0 in every matrix");
        assert_eq!(subject.describe(Form::Oga), "int4 in groups of 128, accuracy level 4");
        let subject = shape(Mixture::Q4KM);
        assert_eq!(subject.describe(Form::Gguf), "Q4_K_M");
        assert_eq!(subject.describe(Form::Oga), "int4 in groups of 32, accuracy level 4");
        assert_eq!(subject.describe(Form::OgaOf(128)), "int4 in groups of 128, accuracy level 4");
    }

    #[test]
    fn a_program_that_needs_more_memory_than_there_is_says_so() {
        let subject = Subject::shape("mistral-7b", Mixture::Q4_0).unwrap();
        assert_eq!(subject.too_large(0.0), None);
        if let Some(lack) = subject.too_large(1e6) {
            assert!(lack.needed_bytes > lack.available_bytes);
        }
    }
}
