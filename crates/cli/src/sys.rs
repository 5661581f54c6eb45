//! What the operating system says about this machine and this process. Everything that depends on
//! the system stands here; what a system does not tell is `None`.

use serde::Serialize;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Most memory that this process has had resident, in bytes.
pub(crate) fn peak_rss_bytes() -> Option<u64> {
    peak_rss_bytes_of(std::process::id())
}

/// The same of another process.
pub(crate) fn peak_rss_bytes_of(process: u32) -> Option<u64> {
    kilobytes(&fs::read_to_string(format!("/proc/{process}/status")).ok()?, "VmHWM:")
}

/// Seconds that the calling thread has had a processor.
pub(crate) fn thread_seconds() -> Option<f64> {
    let text = fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    Some(text.split_whitespace().next()?.parse::<f64>().ok()? / 1e9)
}

/// The processor.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Processor {
    /// What its maker calls it.
    pub(crate) model: Option<String>,
    /// Hardware threads that the machine has.
    pub(crate) threads: Option<usize>,
    /// Hardware threads that this process may use at once.
    pub(crate) usable_threads: usize,
    /// Threads' worth of time that the control group grants.
    pub(crate) quota: Option<f64>,
}

/// The processor, and how much of it this process may use.
pub(crate) fn processor() -> Processor {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        (name.trim() == "model name").then(|| value.trim().to_owned())
    });
    let threads = text.lines().filter(|line| line.starts_with("processor")).count();
    Processor {
        model,
        threads: (threads > 0).then_some(threads),
        usable_threads: std::thread::available_parallelism().map_or(1, usize::from),
        quota: processor_quota(),
    }
}

/// The processor's brand string, wherever the system keeps it.
pub(crate) fn brand() -> Option<String> {
    if !cfg!(windows) {
        return processor().model;
    }
    let key = r"HKLM\HARDWARE\DESCRIPTION\System\CentralProcessor\0";
    let text = answer(Command::new("reg").args(["query", key, "/v", "ProcessorNameString"]))?;
    Some(text.split_once("REG_SZ")?.1.trim().to_owned())
}

/// Of control groups of both versions.
fn processor_quota() -> Option<f64> {
    if let Ok(text) = fs::read_to_string("/sys/fs/cgroup/cpu.max") {
        return quota(&text);
    }
    ["/sys/fs/cgroup/cpu", "/sys/fs/cgroup/cpu,cpuacct"].into_iter().find_map(|folder| {
        let read = |name: &str| fs::read_to_string(Path::new(folder).join(name)).ok();
        let (time, period) = (read("cpu.cfs_quota_us")?, read("cpu.cfs_period_us")?);
        quota(&format!("{} {}", time.trim(), period.trim()))
    })
}

/// Room on the disk that holds `path` or will hold it, in bytes.
pub(crate) fn disk_free_bytes(path: &Path) -> Option<u64> {
    if !cfg!(unix) {
        return None;
    }
    let existing = path.ancestors().find(|path| path.exists())?;
    let text = answer(Command::new("df").arg("-Pk").arg(existing).env("LC_ALL", "C"))?;
    let kilobytes: u64 = text.lines().nth(1)?.split_whitespace().nth(3)?.parse().ok()?;
    kilobytes.checked_mul(1024)
}

/// The Python interpreter that is found first, and its version.
pub(crate) fn python() -> Option<(String, String)> {
    ["python3", "python"].into_iter().find_map(|name| {
        let version = answer(Command::new(name).arg("--version"))?;
        Some((name.to_owned(), version.trim_start_matches("Python ").to_owned()))
    })
}

/// The version of that interpreter's pip.
pub(crate) fn pip(python: &str) -> Option<String> {
    let text = answer(Command::new(python).args(["-m", "pip", "--version"]))?;
    text.split_whitespace().nth(1).map(str::to_owned)
}

/// A child with all that it starts, where the system can tell: they end when this is dropped, and
/// when this program ends at once ([`end_groups`]).
#[derive(Debug)]
pub(crate) struct Group(Child);

/// Leaders of all groups that run.
static GROUPS: Mutex<Vec<u32>> = Mutex::new(Vec::new());

fn groups() -> MutexGuard<'static, Vec<u32>> {
    GROUPS.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Group {
    /// Starts a program.
    pub(crate) fn start(command: &mut Command) -> std::io::Result<Self> {
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(command, 0);
        let mut groups = groups();
        let child = command.spawn()?;
        groups.push(child.id());
        Ok(Self(child))
    }

    /// Ends it, unless it has ended, and waits.
    pub(crate) fn end(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            kill_group(self.0.id());
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
}

impl std::ops::Deref for Group {
    type Target = Child;

    fn deref(&self) -> &Child {
        &self.0
    }
}

impl std::ops::DerefMut for Group {
    fn deref_mut(&mut self) -> &mut Child {
        &mut self.0
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.end();
        let id = self.0.id();
        groups().retain(|&group| group != id);
    }
}

fn kill_group(leader: u32) {
    #[cfg(unix)]
    if let Some(group) = i32::try_from(leader).ok().and_then(rustix::process::Pid::from_raw) {
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
    }
    #[cfg(not(unix))]
    let _ = leader;
}

/// Ends all groups, for a program that ends without unwinding; no other one starts while what this
/// gives is held.
pub(crate) fn end_groups() -> impl Sized {
    let groups = groups();
    groups.iter().for_each(|&leader| kill_group(leader));
    groups
}

/// What a command that succeeds prints.
fn answer(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}

/// `cpu.max` of a control group: microseconds of processor time per period, or `max`.
fn quota(text: &str) -> Option<f64> {
    let (time, period) = text.trim().split_once(' ')?;
    let (time, period): (f64, f64) = (time.parse().ok()?, period.parse().ok()?);
    // The first version of control groups writes -1 where there is no limit.
    (period > 0.0 && time > 0.0).then_some(time / period)
}

/// The bytes behind `name` in a file whose lines are `Name:   123 kB`.
fn kilobytes(text: &str, name: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(name))?;
    value.trim().trim_end_matches("kB").trim_end().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The child that the shell starts holds its output open for as long as it lives.
    #[cfg(unix)]
    #[test]
    fn a_group_ends_with_whatever_it_has_started() {
        use std::io::Read;
        let mut shell = Command::new("sh");
        shell.args(["-c", "sleep 1000 & wait"]).stdout(Stdio::piped());
        let mut group = Group::start(&mut shell).unwrap();
        let (id, mut stdout) = (group.id(), group.stdout.take().unwrap());
        assert!(groups().contains(&id));
        drop(group);
        assert_eq!(stdout.read_to_end(&mut Vec::new()).unwrap(), 0);
        assert!(!groups().contains(&id));
    }

    #[test]
    fn reads_what_the_kernel_writes() {
        let status = "Name:\ttangor\nVmPeak:\t  9000 kB\nVmHWM:\t  1234 kB\n";
        assert_eq!(kilobytes(status, "VmHWM:"), Some(1234 * 1024));
        assert_eq!(kilobytes(status, "VmSwap:"), None);
        assert_eq!(kilobytes("VmHWM:\tmany kB", "VmHWM:"), None);
    }

    #[test]
    fn reads_processor_quotas() {
        assert_eq!(quota("150000 100000\n"), Some(1.5));
        assert_eq!(quota("max 100000\n"), None);
        assert_eq!(quota("150000 0"), None);
        assert_eq!(quota("-1 100000"), None);
    }

    #[test]
    fn free_space_is_that_of_the_nearest_folder_that_exists() {
        let here = disk_free_bytes(Path::new("."));
        let missing = disk_free_bytes(&Path::new(".").join("no").join("such").join("folder"));
        assert_eq!(here.is_some(), missing.is_some());
        assert_eq!(here.is_some(), cfg!(unix));
    }
}
