//! `tangor serve` as a service of the user's systemd: the unit's text, and putting it in its place.

use crate::error::{Failure, Outcome};
use crate::files;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

/// The unit's file.
const UNIT: &str = "tangor.service";
/// The first line of units that are ours to replace and to remove.
const OURS: &str = "# Written by `tangor serve --install-service`; the next one replaces it.";
/// Where keys go: other users may read units.
const SECRETS: &str = "tangor/serve.env";
/// Seconds that a service has to end, beyond those that answers have.
const TO_END: u64 = 10;

/// What the service runs.
#[derive(Debug)]
pub(crate) struct Service {
    /// This program.
    pub(crate) program: PathBuf,
    /// Its arguments, as the user gave them: what asks for the service is left out.
    pub(crate) args: Vec<String>,
    /// Where relative names of models are looked for.
    pub(crate) folder: PathBuf,
    /// `TANGOR_HOME`, where that is set.
    pub(crate) home: Option<PathBuf>,
    /// Seconds that answers have when the service is ended.
    pub(crate) grace: u64,
}

impl Service {
    /// Of the command line that this program was called with.
    ///
    /// # Errors
    /// If that holds a key, or what cannot stand in a unit.
    pub(crate) fn of(
        args: impl Iterator<Item = OsString>,
        home: Option<PathBuf>,
        grace: u64,
    ) -> Outcome<Self> {
        let args: Result<Vec<String>, _> = args.skip(1).map(OsString::into_string).collect();
        let args = args.map_err(|_| Failure::new("an argument is no Unicode text"))?;
        // Long options may be shortened.
        let short = |arg: &str, name: &str, least: usize| {
            let arg = arg.split('=').next().unwrap_or_default();
            arg.len() >= least && name.starts_with(arg)
        };
        if args.iter().any(|arg| short(arg, "--api-key", 4) || short(arg, "--admin-api-key", 4)) {
            let hint = format!(
                "leave it out, and write TANGOR_API_KEY=… into {SECRETS} of your configuration \
                 folder (~/.config), for you alone to read"
            );
            return Err(
                Failure::new("a key cannot stand in a unit, which others may read").hint(hint)
            );
        }
        let args = args.into_iter().filter(|arg| !short(arg, "--install-service", 4)).collect();
        let program = std::env::current_exe()?;
        Ok(Self { program, args, folder: std::env::current_dir()?, home, grace })
    }

    /// The unit's text.
    ///
    /// # Errors
    /// If a name holds a line's end, which no unit can.
    pub(crate) fn unit(&self) -> Outcome<String> {
        let program = self.program.display().to_string();
        let words = std::iter::once(&program).chain(&self.args);
        let command = words.map(|word| quoted(word)).collect::<Outcome<Vec<_>>>()?.join(" ");
        let folder = specifiers(&plain(&self.folder.display().to_string())?);
        let home = match &self.home {
            None => String::new(),
            Some(home) => {
                let home = std::path::absolute(home)?;
                let set = format!("TANGOR_HOME={}", home.display());
                format!("Environment={}\n", quoted(&set)?.replace("$$", "$"))
            }
        };
        let stop = self.grace + TO_END;
        Ok(format!(
            "{OURS}\n\
             [Unit]\n\
             Description=Tangor, language models on this machine\n\
             After=network.target\n\
             \n\
             [Service]\n\
             Type=exec\n\
             ExecStart={command}\n\
             WorkingDirectory={folder}\n\
             {home}\
             # Keys, as TANGOR_API_KEY=…\n\
             EnvironmentFile=-%E/{SECRETS}\n\
             Restart=on-failure\n\
             RestartSec=5\n\
             # Answers are completed first.\n\
             TimeoutStopSec={stop}\n\
             NoNewPrivileges=yes\n\
             UMask=0077\n\
             \n\
             [Install]\n\
             WantedBy=default.target\n"
        ))
    }
}

/// A word as systemd reads it back.
fn quoted(word: &str) -> Outcome<String> {
    let word = specifiers(&plain(word)?).replace('$', "$$");
    let bare = |c: char| c.is_ascii_alphanumeric() || "-_./:=,+@%$".contains(c);
    match !word.is_empty() && word.chars().all(bare) {
        true => Ok(word),
        false => Ok(format!("\"{}\"", word.replace('\\', "\\\\").replace('"', "\\\""))),
    }
}

fn specifiers(word: &str) -> String {
    word.replace('%', "%%")
}

/// A word without what ends a line.
fn plain(word: &str) -> Outcome<String> {
    match word.chars().any(char::is_control) {
        true => Err(Failure::new(format!("{word:?} cannot stand in a unit"))),
        false => Ok(word.to_owned()),
    }
}

/// The folder of the user's units, in the folder of the user's configuration.
fn units(config: &Path) -> PathBuf {
    config.join("systemd/user")
}

/// The file of the service's keys, in the folder of the user's configuration.
pub(crate) fn secrets(config: &Path) -> PathBuf {
    config.join(SECRETS)
}

/// Whether that file has a key for clients.
pub(crate) fn has_key(config: &Path) -> bool {
    let text = fs::read_to_string(secrets(config)).unwrap_or_default();
    let mut keys =
        text.lines().filter_map(|line| line.trim_start().strip_prefix("TANGOR_API_KEY="));
    keys.next_back().is_some_and(|key| !key.trim().trim_matches(['"', '\'']).is_empty())
}

/// Puts a unit in its place, whole or not at all; says where that is.
///
/// # Errors
/// If another unit is there that is not ours, or it cannot be written.
pub(crate) fn install(config: &Path, unit: &str) -> Outcome<PathBuf> {
    let folder = units(config);
    let path = folder.join(UNIT);
    check_ours(&path)?;
    fs::create_dir_all(&folder).map_err(|error| Failure::from(error).about(folder.display()))?;
    files::write_whole(&path, unit)?;
    Ok(path)
}

/// Removes the unit; says where it was, `None` if there was none.
///
/// # Errors
/// If it is not ours, or cannot be removed.
pub(crate) fn uninstall(config: &Path) -> Outcome<Option<PathBuf>> {
    let path = units(config).join(UNIT);
    if !path.exists() {
        return Ok(None);
    }
    check_ours(&path)?;
    fs::remove_file(&path).map_err(|error| Failure::from(error).about(path.display()))?;
    Ok(Some(path))
}

fn check_ours(path: &Path) -> Outcome {
    match fs::read_to_string(path) {
        Ok(text) if !text.starts_with(OURS) => {
            let error = Failure::new("this unit was not written by tangor").about(path.display());
            Err(error.hint("move it elsewhere first"))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(args: &[&str]) -> Outcome<Service> {
        let args = std::iter::once(&"tangor").chain(args).map(OsString::from);
        let service = Service::of(args, None, 30)?;
        Ok(Service { program: "/opt/my apps/tangor".into(), folder: "/home/a".into(), ..service })
    }

    #[test]
    fn a_unit_runs_what_was_typed_but_for_the_wish_for_a_service() {
        let service = of(&["serve", "--install", "smollm2", "--cors", "https://a.example/%20$x"]);
        let unit = service.unwrap().unit().unwrap();
        let expected = "ExecStart=\"/opt/my apps/tangor\" serve smollm2 --cors \
                        https://a.example/%%20$$x\nWorkingDirectory=/home/a\n";
        assert!(unit.contains(expected), "{unit}");
        assert!(unit.contains("TimeoutStopSec=40\n") && unit.starts_with(OURS));
    }

    #[test]
    fn words_are_quoted_where_systemd_would_part_them() {
        for (word, expected) in [
            ("plain-1.gguf", "plain-1.gguf"),
            ("two words", "\"two words\""),
            ("a\"b\\c", "\"a\\\"b\\\\c\""),
            ("", "\"\""),
            ("50%", "50%%"),
            ("$HOME", "$$HOME"),
            ("x;y", "\"x;y\""),
        ] {
            assert_eq!(quoted(word).unwrap(), expected);
        }
        assert!(quoted("a\nExecStartPost=b").is_err());
    }

    #[test]
    fn keys_do_not_come_into_units() {
        for arg in ["--api-key", "--api-key=x", "--api", "--admin-api-key=x", "--adm"] {
            let failure = of(&["serve", "smollm2", arg, "x", "--install-service"]).unwrap_err();
            assert!(failure.message().contains("key"));
        }
    }

    #[test]
    fn a_unit_is_replaced_and_removed_if_it_is_ours() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let unit = of(&["serve"]).unwrap().unit().unwrap();
        assert!(uninstall(folder).unwrap().is_none());
        for _ in 0..2 {
            let path = install(folder, &unit).unwrap();
            assert_eq!(fs::read_to_string(path).unwrap(), unit);
        }
        let path = uninstall(folder).unwrap().unwrap();
        assert!(!path.exists());
        fs::write(&path, "[Unit]\n").unwrap();
        assert!(install(folder, &unit).is_err() && uninstall(folder).is_err());
        assert_eq!(fs::read_dir(units(folder)).unwrap().count(), 1);
    }
}
