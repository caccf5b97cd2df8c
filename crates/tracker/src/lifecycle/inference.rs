//! What answering costs. A [`Bench`] is a measurement of a model that answers, with what the prompt took apart
//! from what the answer took. An [`Expectation`] is that measurement times the requests somebody expects: no
//! part of a ledger's sums, since it has not happened.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{LedgerError, Lifecycle};
use crate::range::{Range, Span};
use crate::stage::Stage;

/// The version of [`Bench`]'s shape, raised when a field changes its meaning.
pub const BENCH_VERSION: u32 = 1;

/// The name of a [`Bench`] in the folder of its run.
pub const BENCH_FILE: &str = "inference.json";

/// A model that answered, measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Bench {
    /// [`BENCH_VERSION`] of the writer. By this key the file is recognised.
    pub sparsam_inference: u32,
    /// When it was measured, RFC 3339 in UTC.
    pub started: String,
    /// The base model.
    pub model: String,
    /// The adapter, where there is one.
    pub adapter: Option<String>,
    /// Whether the adapter was merged into the base before.
    pub merged: bool,
    /// How the base was quantised: `none`, `int8`, `nf4`, `nf4-dq`.
    pub quantize: String,
    /// Where it was computed: `cpu`, `cuda:0`.
    pub device: String,
    /// The machine, in words.
    pub hardware: String,
    /// Requests that are answered at once.
    pub batch: u64,
    /// Tokens that each request brings.
    pub prompt_tokens: u64,
    /// Tokens that each answer has.
    pub answer_tokens: u64,
    /// Prompts read up to the first token of an answer, and nothing more.
    pub prefill: Work,
    /// Whole answers, their prompts included.
    pub answers: Work,
    /// gCO2e of a kilowatt-hour of the machine, PUE included.
    pub g_per_kwh: Span,
    /// The part of the energy that was measured, 0 to 1.
    pub measured_share: f64,
}

/// So many requests, and what they took.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Work {
    /// Requests.
    pub requests: u64,
    /// Seconds, all together.
    pub seconds: f64,
    /// Energy, all together, kWh.
    pub energy_kwh: Range,
}

/// Time and energy.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Cost {
    /// Seconds.
    pub seconds: f64,
    /// kWh.
    pub energy_kwh: Range,
}

impl Cost {
    fn scale(self, factor: f64) -> Self {
        Self {
            seconds: self.seconds * factor,
            energy_kwh: self.energy_kwh.scale(factor),
        }
    }

    fn and(self, other: Self) -> Self {
        Self {
            seconds: self.seconds + other.seconds,
            energy_kwh: self.energy_kwh + other.energy_kwh,
        }
    }

    /// What is left of it without `other`, and nothing where that is more.
    fn less(self, other: Self) -> Self {
        let energy = self.energy_kwh - other.energy_kwh;
        let low = energy.low.max(0.0);
        let central = energy.central.max(low);
        Self {
            seconds: (self.seconds - other.seconds).max(0.0),
            energy_kwh: Range::new(low, central, energy.high.max(central)),
        }
    }
}

impl Work {
    fn of_request(self) -> Cost {
        Cost {
            seconds: self.seconds,
            energy_kwh: self.energy_kwh,
        }
        .scale(1.0 / self.requests.max(1) as f64)
    }
}

impl Bench {
    /// Reads the measurement in the folder of a run, or the file itself.
    ///
    /// # Errors
    /// A file that cannot be read, or is something else.
    pub fn read(path: &Path) -> Result<Self, LedgerError> {
        let path = if path.is_dir() {
            path.join(BENCH_FILE)
        } else {
            path.to_owned()
        };
        let not = |reason: String| LedgerError::NotABench {
            path: path.clone(),
            reason,
        };
        let bytes = std::fs::read(&path).map_err(|source| match source.kind() {
            std::io::ErrorKind::NotFound => not("there is no such file".to_owned()),
            _ => LedgerError::Read {
                path: path.clone(),
                source,
            },
        })?;
        let bench: Self = serde_json::from_slice(&bytes).map_err(|e| not(e.to_string()))?;
        if bench.sparsam_inference > BENCH_VERSION {
            return Err(not(format!(
                "it has version {}, newer than this program's {BENCH_VERSION}",
                bench.sparsam_inference
            )));
        }
        Ok(bench)
    }

    /// Reading the prompt of one request, up to the first token of its answer.
    pub fn prompt(&self) -> Cost {
        self.prefill.of_request()
    }

    /// A whole answer, its prompt included.
    pub fn answer(&self) -> Cost {
        self.answers.of_request()
    }

    /// One token of an answer, beyond the first, which comes with the prompt.
    pub fn token(&self) -> Cost {
        match self.answer_tokens {
            0 | 1 => Cost::default(),
            tokens => self
                .answer()
                .less(self.prompt())
                .scale(1.0 / (tokens - 1) as f64),
        }
    }

    /// 1,000 tokens of answers: in all, of which reading prompts, of which writing.
    pub fn thousand(&self) -> [Cost; 3] {
        let factor = 1000.0 / self.answer_tokens.max(1) as f64;
        let (all, prompt) = (self.answer(), self.prompt());
        [all, prompt, all.less(prompt)].map(|cost| cost.scale(factor))
    }

    /// A request of so many tokens that is answered with so many: reading grows with the one, writing
    /// with the other.
    pub fn request(&self, prompt_tokens: f64, answer_tokens: f64) -> Cost {
        let read = prompt_tokens / self.prompt_tokens.max(1) as f64;
        let written = (answer_tokens - 1.0).max(0.0);
        self.prompt().scale(read).and(self.token().scale(written))
    }

    /// `adapter merged, base in nf4`.
    pub fn way(&self) -> String {
        let mut way = match (&self.adapter, self.merged) {
            (None, _) => "no adapter",
            (Some(_), false) => "adapter beside the base",
            (Some(_), true) => "adapter merged",
        }
        .to_owned();
        if self.quantize != "none" {
            way.push_str(", base in ");
            way.push_str(&self.quantize);
        }
        if self.batch > 1 {
            let _ = write!(way, ", {} at once", self.batch);
        }
        way
    }

    /// Whether another measured the same thing, so that the later one stands for both.
    fn is_as(&self, other: &Self) -> bool {
        let what = |bench: &Self| {
            (
                bench.way(),
                bench.model.clone(),
                bench.adapter.clone(),
                bench.device.clone(),
                bench.hardware.clone(),
            )
        };
        what(self) == what(other)
    }
}

/// The last measurement of each way, in the order of time.
pub(super) fn latest(mut benches: Vec<Bench>) -> Vec<Bench> {
    benches.sort_by(|a, b| a.started.cmp(&b.started));
    let mut kept: Vec<Bench> = Vec::new();
    for bench in benches {
        kept.retain(|have| !have.is_as(&bench));
        kept.push(bench);
    }
    kept
}

/// Requests that are expected.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Requests {
    /// A day.
    pub per_day: f64,
    /// For so many days.
    pub days: f64,
    /// Tokens of each, that of the measurement where it is not given.
    pub prompt_tokens: Option<f64>,
    /// Tokens of each answer, that of the measurement where it is not given.
    pub answer_tokens: Option<f64>,
}

/// What answering them will cost, in each way that was measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Expectation {
    /// The requests.
    pub requests: Requests,
    /// All that the ledger holds but answering, kWh: what inference is held against.
    pub training_kwh: Range,
    /// The ways of answering.
    pub ways: Vec<Way>,
}

/// One way of answering.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Way {
    /// [`Bench::way`], with the model where there are several.
    pub name: String,
    /// Tokens of a request and of its answer.
    pub tokens: (f64, f64),
    /// One request.
    pub request: Cost,
    /// All of them, kWh.
    pub energy_kwh: Range,
    /// All of them, gCO2e.
    pub emissions_g: Span,
    /// Requests after which answering has used more than everything before it. The ends take the errors
    /// of both sides as if they pointed apart.
    pub overtakes_after: Option<Range>,
}

impl Lifecycle {
    /// Adds what answering these requests is expected to cost.
    ///
    /// # Errors
    /// No way of answering was measured.
    pub fn expect(&mut self, requests: Requests) -> Result<(), LedgerError> {
        if self.inference.is_empty() {
            return Err(LedgerError::NoBench);
        }
        let training_kwh: Range = self
            .stages
            .iter()
            .filter(|stage| stage.stage != Some(Stage::Inference))
            .map(|stage| stage.energy_kwh)
            .sum();
        let models = self.inference.iter().map(|bench| &bench.model);
        let several = models
            .clone()
            .any(|model| *model != self.inference[0].model);
        let ways = self
            .inference
            .iter()
            .map(|bench| {
                let mut way = way(bench, &requests, training_kwh);
                if several {
                    way.name = format!("{}, {}", bench.model, way.name);
                }
                way
            })
            .collect();
        self.expected = Some(Expectation {
            requests,
            training_kwh,
            ways,
        });
        Ok(())
    }
}

fn way(bench: &Bench, requests: &Requests, training: Range) -> Way {
    let tokens = (
        requests.prompt_tokens.unwrap_or(bench.prompt_tokens as f64),
        requests.answer_tokens.unwrap_or(bench.answer_tokens as f64),
    );
    let request = bench.request(tokens.0, tokens.1);
    let energy_kwh = request.energy_kwh.scale(requests.per_day * requests.days);
    let each = request.energy_kwh;
    let grams = bench.g_per_kwh;
    Way {
        name: bench.way(),
        tokens,
        request,
        energy_kwh,
        emissions_g: Span {
            low: energy_kwh.low * grams.low,
            central: grams.central.map(|grams| energy_kwh.central * grams),
            high: energy_kwh.high * grams.high,
        },
        overtakes_after: (training.central > 0.0 && each.low > 0.0).then(|| {
            Range::new(
                training.low / each.high,
                training.central / each.central,
                training.high / each.low,
            )
        }),
    }
}

/// The measurement of a folder, where it holds one that can be read.
pub(super) fn beside(folder: &Path) -> Option<PathBuf> {
    Some(folder.join(BENCH_FILE)).filter(|path| path.is_file())
}
