//! llama.cpp as a reader of texts: the same tokens in the same windows as Tangor's own models, so
//! that what its arithmetic costs is measured in the same way.

use super::argv;
use super::child::{keep, last_words, spawn};
use super::tools::{GGUF, Tools, scripts};
use crate::error::Outcome;
use crate::sys::Group;
use std::io::{BufReader, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, ChildStdout, Stdio};
use std::thread::JoinHandle;
use tangor_eval::{EvalError, Reader};

/// How llama.cpp computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// f32 weights, keys and values, no flash attention.
    Exact,
    /// As it does if it is not told otherwise.
    Fast,
}

/// A process of llama.cpp that reads a text.
#[derive(Debug)]
pub(crate) struct LlamaCpp {
    child: Group,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    stderr: Option<JoinHandle<Vec<u8>>>,
    vocab: usize,
    context: usize,
}

impl Tools {
    /// The file with a GGUF file's weights as `f32`; made unless it is there.
    pub(crate) fn f32_gguf(&self, model: &Path) -> Outcome<PathBuf> {
        let name = model.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let bytes = model.metadata()?.len();
        let path = self.folder.join("models").join(format!("{name}-{bytes}-f32.gguf"));
        if !path.exists() {
            self.disk_has("the model in f32", bytes.saturating_mul(8))?;
            self.quantise(model, "f32", &path)?;
        }
        Ok(path)
    }

    /// Starts llama.cpp with a GGUF file, to read texts of up to `context` tokens.
    pub(crate) fn llama_cpp_reader(
        &self,
        model: &Path,
        mode: Mode,
        threads: usize,
        context: usize,
    ) -> Outcome<LlamaCpp> {
        self.install_llama_cpp()?;
        self.install(&GGUF)?;
        let program = self.llama_cpp("llama-bench");
        let libraries = program.parent().unwrap_or(Path::new(".")).to_owned();
        let mode = if mode == Mode::Exact { "exact" } else { "fast" };
        let mut read = self.script(&GGUF, scripts::LLAMA_LOGITS);
        read.extend(argv([&libraries, &self.llama_cpp_source()?, &model, &mode]));
        read.extend(argv([&threads, &context]));
        Ok(LlamaCpp::start(spawn(&read, Stdio::piped())?, context)?)
    }
}

impl LlamaCpp {
    fn start(mut child: Group, context: usize) -> Result<Self, EvalError> {
        let stderr = child.stderr.take().map(keep);
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(program("it cannot be spoken to".to_owned()));
        };
        let stdout = BufReader::with_capacity(1 << 20, stdout);
        let mut this = Self { child, stdin, stdout, stderr, vocab: 0, context };
        this.start()?;
        Ok(this)
    }

    /// Sends a line and reads the answer.
    fn ask(&mut self, line: &str, answer: &mut [u8]) -> Result<(), EvalError> {
        let sent = writeln!(self.stdin, "{line}").and_then(|()| self.stdin.flush());
        sent.and_then(|()| self.stdout.read_exact(answer)).map_err(|error| self.failure(&error))
    }

    fn failure(&mut self, error: &std::io::Error) -> EvalError {
        self.child.end();
        let said = self.stderr.take().and_then(|reader| reader.join().ok());
        let said = last_words(&String::from_utf8_lossy(&said.unwrap_or_default()));
        let gone = matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::BrokenPipe);
        let ended = || if gone { "it ended early".to_owned() } else { error.to_string() };
        program(said.unwrap_or_else(ended))
    }
}

fn program(why: String) -> EvalError {
    EvalError::Program { name: "llama.cpp", why }
}

impl Reader for LlamaCpp {
    fn vocab(&self) -> usize {
        self.vocab
    }

    fn context(&self) -> usize {
        self.context
    }

    fn start(&mut self) -> Result<(), EvalError> {
        let mut vocab = [0; 8];
        self.ask("", &mut vocab)?;
        self.vocab = usize::try_from(u64::from_le_bytes(vocab)).unwrap_or(0);
        Ok(())
    }

    fn read(&mut self, tokens: &[u32], logits: &mut Vec<f32>) -> Result<(), EvalError> {
        logits.clear();
        if tokens.is_empty() {
            return Ok(());
        }
        let line = tokens.iter().map(u32::to_string).collect::<Vec<_>>().join(" ");
        let mut bytes = vec![0; tokens.len() * self.vocab * 4];
        self.ask(&line, &mut bytes)?;
        let floats = bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        logits.extend(floats);
        Ok(())
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    /// Something that speaks as llama.cpp's reader does.
    fn shell(script: &str) -> Result<LlamaCpp, EvalError> {
        let child = spawn(&argv([&"sh", &"-c", &script]), Stdio::piped());
        LlamaCpp::start(child.map_err(|failure| program(format!("{failure:?}")))?, 16)
    }

    #[test]
    fn logits_are_read_as_they_were_written() {
        // Two logits, 1.0 and 2.0, after each of two tokens.
        let script = r#"read a; printf '\002\0\0\0\0\0\0\0'
            read a
            test "$a" = '5 6' && printf '\0\0\200\077\0\0\0\100\0\0\200\077\0\0\0\100'"#;
        let mut reader = shell(script).unwrap();
        let mut logits = vec![9.0];
        reader.read(&[5, 6], &mut logits).unwrap();
        assert_eq!((reader.vocab(), logits), (2, vec![1.0, 2.0, 1.0, 2.0]));
    }

    #[test]
    fn a_program_that_fails_is_named_with_its_last_words() {
        let error = shell("echo 'error: no memory' >&2; exit 1").unwrap_err();
        assert_eq!(error.to_string(), "llama.cpp: error: no memory");
        let error = shell("exit 0").unwrap_err();
        assert_eq!(error.to_string(), "llama.cpp: it ended early");
    }
}
