//! Compiling for the systems that this one is not, and running what an emulator can.

use crate::command::{Outcome, output, run};
use crate::{cargo, root};
use std::fs;
use std::process::Command;

const ARM_LINUX: &str = "aarch64-unknown-linux-gnu";
const WINDOWS: &str = "x86_64-pc-windows-gnu";
const MACOS: &str = "aarch64-apple-darwin";

/// Each target, its C compiler, and the package that has it. Cryptography brings C and assembly.
const TARGETS: [(&str, &str, &str); 3] = [
    (ARM_LINUX, "aarch64-linux-gnu-gcc", "gcc-aarch64-linux-gnu"),
    (WINDOWS, "x86_64-w64-mingw32-gcc", "gcc-mingw-w64-x86-64"),
    (MACOS, "clang", "clang"),
];

/// The crates with `unsafe` code and those beside them that run everywhere.
const EMULATED: [&str; 3] = ["tangor-tensor", "tangor-formats", "tangor-device-cpu"];

const EMULATOR: &str = "qemu-aarch64";

/// Checks and lints everything for every target, then says what became of each.
pub(crate) fn cross() -> Outcome {
    let mut complete = true;
    let mut results = Vec::new();
    for (target, compiler, package) in TARGETS {
        let result = match compile(target, compiler, package) {
            Ok(()) => "all of the workspace and its tests compiled, without a warning".to_owned(),
            Err(why) => {
                complete = false;
                format!("NOT compiled: {why}")
            }
        };
        results.push(format!("{target}: {result}"));
    }
    let ran = match emulate() {
        Ok(()) => format!("tests of {} ran", EMULATED.join(", ")),
        Err(why) => {
            complete = false;
            format!("NOT run: {why}")
        }
    };
    results.push(format!("{ARM_LINUX}, emulated: {ran}"));
    results.iter().for_each(|result| println!("{result}"));
    if complete { Ok(()) } else { Err("not everything was compiled and run".into()) }
}

fn compile(target: &str, compiler: &str, package: &str) -> Outcome {
    let libraries = output(
        Command::new("rustc").args(["--print", "target-libdir"]).args(["--target", target]),
    )?;
    if !fs::exists(libraries.trim()).unwrap_or(false) {
        return Err(format!("no standard library: rustup target add {target}"));
    }
    if !there(compiler) {
        return Err(format!("no C compiler: install {compiler} (Debian: {package})"));
    }
    let lints = ["clippy", "--workspace", "--all-targets", "--all-features", "--target", target];
    let mut command = cargo(&lints);
    if target == MACOS && !cfg!(target_os = "macos") {
        without_apples_headers(&mut command)?;
    }
    run(target, command.args(["--", "-Dwarnings"]))
}

/// Lets Debian's clang compile C for macOS, as far as objects: the compiler's own headers, and of
/// Apple's the one that says which of its systems this is.
fn without_apples_headers(command: &mut Command) -> Outcome {
    let folder = root().join("target/cross");
    let header = folder.join("TargetConditionals.h");
    let write = fs::create_dir_all(&folder);
    let write = write.and_then(|()| fs::write(&header, "#define TARGET_OS_OSX 1\n"));
    write.map_err(|error| format!("cannot write {}: {error}", header.display()))?;
    let flags = "-ffreestanding -nostdlibinc -DRING_CORE_NOSTDLIBINC=1 -I";
    let archiver = if there("llvm-ar") { "llvm-ar" } else { "ar" };
    command.env("SDKROOT", &folder).env("CC_aarch64_apple_darwin", "clang");
    command.env("AR_aarch64_apple_darwin", archiver);
    command.env("CFLAGS_aarch64_apple_darwin", format!("{flags}{}", folder.display()));
    Ok(())
}

/// Runs tests on an emulated processor: NEON in place of AVX, 64-bit Arm's own rules.
fn emulate() -> Outcome {
    let (_, compiler, package) = TARGETS[0];
    for (program, package) in [(compiler, package), (EMULATOR, "qemu-user")] {
        if !there(program) {
            return Err(format!("{program} is missing (Debian: {package})"));
        }
    }
    let mut tests = cargo(&["test", "--no-fail-fast", "--target", ARM_LINUX]);
    tests.args(EMULATED.iter().flat_map(|package| ["--package", package]));
    tests.env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER", compiler);
    let runner = format!("{EMULATOR} -L /usr/aarch64-linux-gnu");
    run("emulated tests", tests.env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER", runner))
}

fn there(program: &str) -> bool {
    Command::new(program).arg("--version").output().is_ok()
}
