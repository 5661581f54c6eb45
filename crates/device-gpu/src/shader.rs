//! Kernels: texts in WGSL, put together from pieces, with constants in front.
//!
//! A line that begins with `@NAME` stands for as many copies as the constant `NAME` says, with `$`
//! being the number of the copy: loops over registers, written out, since compilers differ in what
//! they unroll.

use std::fmt::Write;

/// A kernel before its constants are known.
#[derive(Debug)]
pub(crate) struct Kernel {
    /// For messages.
    pub(crate) name: &'static str,
    /// Pieces of text, in order.
    pieces: &'static [&'static str],
    /// One letter per binding: `u`niform, `r`ead, `w`ritten.
    pub(crate) bindings: &'static str,
}

const RUN: &str = include_str!("shaders/run.wgsl");
const MATH: &str = include_str!("shaders/math.wgsl");
const WEIGHTS: &str = include_str!("shaders/weights.wgsl");
const CACHE: &str = include_str!("shaders/cache.wgsl");
const FOLD: &str = include_str!("shaders/fold.wgsl");
const SPLIT_PLAIN: &str = include_str!("shaders/split_plain.wgsl");
const INPUTS_VALUES: &str = include_str!("shaders/inputs_values.wgsl");
const INPUTS_PLAIN: &str = include_str!("shaders/inputs_plain.wgsl");
const INPUTS_BROADCAST: &str = include_str!("shaders/inputs_broadcast.wgsl");
const INPUTS_DIGITS: &str = include_str!("shaders/inputs_digits.wgsl");
const SPLIT_SUBGROUP: &str = include_str!("shaders/split_subgroup.wgsl");

macro_rules! kernel {
    ($id:ident, $name:literal, $bindings:literal, [$($piece:expr),*]) => {
        pub(crate) static $id: Kernel = Kernel {
            name: $name,
            pieces: &[$($piece,)* include_str!(concat!("shaders/", $name, ".wgsl"))],
            bindings: $bindings,
        };
    };
}

kernel!(EMBED, "embed", "uurrrw", [RUN, WEIGHTS]);
kernel!(ROWS, "rows", "uurrrw", [RUN, MATH]);
kernel!(NORM, "norm", "uurrrww", [RUN]);
kernel!(ROUND, "round", "uurw", [RUN, MATH]);
kernel!(ROTATE, "rotate", "uurrrrwww", [RUN, MATH, CACHE]);
kernel!(ATTENTION, "attention", "uurrrrww", [RUN, MATH, FOLD]);
kernel!(MERGE, "merge", "uurrw", [RUN, MATH, FOLD]);
kernel!(PROBE, "probe", "w", []);
kernel!(STREAM, "stream", "rw", []);
kernel!(COMPUTE, "compute", "rw", []);
kernel!(DOTS, "dots", "rw", []);

macro_rules! linear {
    ($($piece:expr),*) => {
        Kernel {
            name: "linear",
            pieces: &[RUN, WEIGHTS, $($piece,)* include_str!("shaders/linear.wgsl")],
            bindings: "uurrrrw",
        }
    };
}

/// `linear.wgsl`, by [`Inputs`].
static LINEAR: [Kernel; 3] = [
    linear!(SPLIT_PLAIN, INPUTS_VALUES, INPUTS_PLAIN),
    linear!(SPLIT_SUBGROUP, INPUTS_VALUES, INPUTS_PLAIN),
    linear!(SPLIT_SUBGROUP, INPUTS_VALUES, INPUTS_BROADCAST),
];

/// `linear.wgsl` over digits, by whether there are subgroups.
static LINEAR_OF_DIGITS: [Kernel; 2] =
    [linear!(SPLIT_PLAIN, INPUTS_DIGITS), linear!(SPLIT_SUBGROUP, INPUTS_DIGITS)];

/// How lanes come by the inputs of a linear, which all of them need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Inputs {
    /// Each reads them.
    Plain,
    /// Each reads them, and compilers are told that subgroups read alike.
    Subgroup,
    /// Each reads some and hands them to its subgroup.
    Broadcast,
}

impl Inputs {
    /// The kernel of a linear, over `digits` or over values.
    pub(crate) fn linear(self, digits: bool) -> &'static Kernel {
        if digits {
            &LINEAR_OF_DIGITS[usize::from(self != Self::Plain)]
        } else {
            &LINEAR[self as usize]
        }
    }
}

/// Constants of a kernel, by name.
pub(crate) type Constants = Vec<(&'static str, u32)>;

impl Kernel {
    /// The text to be compiled.
    pub(crate) fn source(&self, constants: &Constants) -> String {
        let mut out = String::new();
        for (name, value) in constants {
            let _ = writeln!(out, "const {name} = {value}u;");
        }
        for line in self.pieces.iter().flat_map(|piece| piece.lines()) {
            let Some((name, body)) =
                line.trim_start().strip_prefix('@').and_then(|rest| rest.split_once(' '))
            else {
                out.push_str(line);
                out.push('\n');
                continue;
            };
            match constants.iter().find(|(constant, _)| *constant == name) {
                Some((_, count)) => {
                    for index in 0..*count {
                        out.push_str(&body.replace('$', &index.to_string()));
                        out.push('\n');
                    }
                }
                // An attribute of WGSL.
                None => {
                    out.push_str(line);
                    out.push('\n');
                }
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_repeated_and_attributes_stay() {
        static KERNEL: Kernel = Kernel {
            name: "test",
            pieces: &["@group(0) @binding(0) var x;", "  @M let a$ = $u;\nend"],
            bindings: "",
        };
        let source = KERNEL.source(&vec![("M", 2)]);
        assert_eq!(
            source,
            "const M = 2u;\n@group(0) @binding(0) var x;\nlet a0 = 0u;\nlet a1 = 1u;\nend\n"
        );
    }
}
