//! Running other programs with a clear word when they fail.

use std::process::Command;
use std::time::Instant;

/// What a chore returns: nothing, or what went wrong.
pub(crate) type Outcome<T = ()> = Result<T, String>;

/// Runs a step, its output going straight to the terminal, and says how long it took.
pub(crate) fn run(step: &str, command: &mut Command) -> Outcome {
    eprintln!("== {step}");
    let start = Instant::now();
    let status = command.status().map_err(|error| cannot_start(command, &error))?;
    if !status.success() {
        return Err(format!("{step} failed ({status}): {}", line(command)));
    }
    eprintln!("== {step}: {:.0} s", start.elapsed().as_secs_f32());
    Ok(())
}

/// Runs a program and returns its standard output.
pub(crate) fn output(command: &mut Command) -> Outcome<String> {
    let output = command.output().map_err(|error| cannot_start(command, &error))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{} failed: {}", line(command), stderr.trim()));
    }
    String::from_utf8(output.stdout).map_err(|_| format!("{} wrote no UTF-8", line(command)))
}

fn cannot_start(command: &Command, error: &std::io::Error) -> String {
    format!("cannot start {}: {error}", line(command))
}

fn line(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|arg| arg.to_string_lossy().into_owned()));
    words.join(" ")
}
