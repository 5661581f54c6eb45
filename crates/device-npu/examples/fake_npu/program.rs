//! What the pretended NPU can do: additions and multiplications, one after the other.

use std::fmt::Write;

/// Sums and products.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Add,
    Mul,
}

/// Steps over numbered values: inputs, then constants, then results.
#[derive(Clone, Debug, Default)]
pub(crate) struct Program {
    pub(crate) inputs: usize,
    pub(crate) constants: Vec<Vec<f32>>,
    pub(crate) steps: Vec<(Kind, usize, usize)>,
    pub(crate) outputs: Vec<usize>,
}

impl Program {
    /// Text, as a context holds it.
    pub(crate) fn write(&self) -> String {
        let mut out = format!("fake npu 1\ninputs {}\n", self.inputs);
        for constant in &self.constants {
            let bits: Vec<String> = constant.iter().map(|x| x.to_bits().to_string()).collect();
            let _ = writeln!(out, "constant {}", bits.join(" "));
        }
        for (kind, a, b) in &self.steps {
            let kind = if *kind == Kind::Add { "add" } else { "mul" };
            let _ = writeln!(out, "{kind} {a} {b}");
        }
        for output in &self.outputs {
            let _ = writeln!(out, "output {output}");
        }
        out
    }

    /// The program that [`Program::write`] wrote.
    pub(crate) fn read(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        if lines.next()? != "fake npu 1" {
            return None;
        }
        let mut out = Self::default();
        for line in lines {
            let mut words = line.split(' ');
            let what = words.next()?;
            let numbers: Option<Vec<u32>> = words.map(|word| word.parse().ok()).collect();
            let numbers = numbers?;
            let slot = |index: usize| numbers.get(index).map(|&slot| slot as usize);
            match what {
                "inputs" => out.inputs = slot(0)?,
                "constant" => out.constants.push(numbers.into_iter().map(f32::from_bits).collect()),
                "add" => out.steps.push((Kind::Add, slot(0)?, slot(1)?)),
                "mul" => out.steps.push((Kind::Mul, slot(0)?, slot(1)?)),
                "output" => out.outputs.push(slot(0)?),
                _ => return None,
            }
        }
        Some(out)
    }

    /// The outputs for `inputs`; constants repeat along rows.
    pub(crate) fn run(&self, inputs: Vec<Vec<f32>>) -> Option<Vec<Vec<f32>>> {
        let mut values = inputs;
        values.extend(self.constants.iter().cloned());
        for &(kind, a, b) in &self.steps {
            let (a, b) = (values.get(a)?, values.get(b)?);
            let len = a.len().max(b.len());
            let pair = |index: usize| (a[index % a.len()], b[index % b.len()]);
            let result = (0..len).map(pair).map(|(a, b)| match kind {
                Kind::Add => a + b,
                Kind::Mul => a * b,
            });
            let result = result.collect();
            values.push(result);
        }
        self.outputs.iter().map(|&output| values.get(output).cloned()).collect()
    }
}
