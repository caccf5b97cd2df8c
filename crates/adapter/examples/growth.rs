//! How the cost of a step grows: with length, rank, blocks, vocabulary and threads. A table and a plot.
//!
//!     cargo run --release -p sparsam-adapter --example growth -- target/growth
//!
//! A small Llama with drawn weights is trained in f32, one setting at a time away from its usual value. Each time
//! is the least of three rounds, a round's the median of five steps after one that is not counted: a machine that
//! others use as well is slow for seconds at a time, which a round cannot see and the next one need not meet. A
//! line (for the length a parabola, as attention looks at pairs) is fitted to each series by least squares, and the
//! table says how far the points lie from it. Writes `<output>.md` and `<output>.svg`.

use std::fmt::Write as _;
use std::io::Write as _;
use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use sparsam_adapter::lora::LoraConfig;
use sparsam_adapter::optimizer::Optimizer;
use sparsam_adapter::pass::{Input, differentiate};
use sparsam_adapter::trainable::Trainable;
use sparsam_base::config::ModelConfig;
use sparsam_base::error::Result as BaseResult;
use sparsam_base::model::{LoadOptions, Model, Quantize};
use sparsam_base::stack::Checkpointing;
use sparsam_base::weights::Weights;
use sparsam_kernels::Documents;
use sparsam_kernels::adamw::AdamW;
use sparsam_kernels::arena::Arena;
use sparsam_kernels::cross_entropy::IGNORE;

#[global_allocator]
static ALLOCATOR: Arena<mimalloc::MiMalloc> = Arena::around(mimalloc::MiMalloc);

const HIDDEN: usize = 576;
const WIDE: usize = 1536;
const KEYS: usize = 192;
/// Steps that count.
const STEPS: usize = 5;
/// Times that all settings are measured.
const ROUNDS: usize = 3;

/// What a step is made of.
#[derive(Clone, Copy)]
struct Setting {
    tokens: usize,
    length: usize,
    rank: usize,
    blocks: usize,
    vocabulary: usize,
    threads: usize,
}

/// One setting that is varied.
struct Series {
    name: &'static str,
    values: Vec<usize>,
    set: fn(&mut Setting, usize),
    /// Degree of the polynomial that is fitted.
    degree: usize,
}

/// Weights that are drawn when they are asked for.
struct Drawn {
    vocabulary: usize,
}

impl Drawn {
    fn dims(&self, name: &str) -> Vec<usize> {
        let part = name.trim_end_matches(".weight").rsplit('.').next();
        match part.unwrap_or_default() {
            "embed_tokens" | "lm_head" => vec![self.vocabulary, HIDDEN],
            "q_proj" | "o_proj" => vec![HIDDEN, HIDDEN],
            "k_proj" | "v_proj" => vec![KEYS, HIDDEN],
            "gate_proj" | "up_proj" => vec![WIDE, HIDDEN],
            "down_proj" => vec![HIDDEN, WIDE],
            _ => vec![HIDDEN],
        }
    }
}

impl Weights for Drawn {
    fn contains(&self, name: &str) -> bool {
        name.rsplit('.').next() != Some("bias")
    }

    fn tensor(&self, name: &str) -> BaseResult<Tensor> {
        let dims = self.dims(name);
        if dims.len() == 1 {
            return Ok(Tensor::ones(dims, DType::F32, &Device::Cpu)?);
        }
        Ok(Tensor::randn(0f32, 0.02, dims, &Device::Cpu)?)
    }
}

/// Seconds of a step, the median.
fn seconds(setting: Setting) -> anyhow::Result<f64> {
    let config = format!(
        r#"{{"model_type": "llama", "hidden_size": {HIDDEN}, "intermediate_size": {WIDE},
            "num_hidden_layers": {}, "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": {},
            "rms_norm_eps": 1e-5, "max_position_embeddings": 8192, "hidden_act": "silu",
            "tie_word_embeddings": true}}"#,
        setting.blocks, setting.vocabulary
    );
    let options = LoadOptions {
        quantize: Quantize::None,
        dtype: DType::F32,
        max_length: setting.length,
    };
    let weights = Drawn {
        vocabulary: setting.vocabulary,
    };
    let mut model = Model::load(ModelConfig::parse(&config)?, &weights, options)?;
    let lora = LoraConfig {
        r: setting.rank,
        lora_alpha: 2.0 * setting.rank as f64,
        ..LoraConfig::default()
    };
    let mut trainable = Trainable::lora(&mut model, &lora, 1)?;
    let mut optimizer = Optimizer::new(&trainable, AdamW::default(), None)?;
    let rows = setting.tokens / setting.length;
    let documents = Documents::from_lengths(&vec![setting.length; rows]);
    let ids: Vec<u32> = (0..setting.tokens)
        .map(|i| (i * 7919 % setting.vocabulary) as u32)
        .collect();
    let mut targets = [&ids[1..], &[IGNORE]].concat();
    for end in documents.ranges().map(|range| range.end) {
        targets[end - 1] = IGNORE;
    }
    let input = Input {
        ids: &ids,
        targets: &targets,
        documents: &documents,
    };
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(setting.threads)
        .build()?;
    let mut times = Vec::new();
    for step in 0..=STEPS {
        let begun = Instant::now();
        pool.install(|| -> anyhow::Result<()> {
            trainable.set_training(Some(step as u64));
            let scale = 1.0 / setting.tokens as f64;
            differentiate(&model, &mut trainable, input, scale, Checkpointing::Off)?;
            optimizer.step(&trainable, 1e-4)?;
            Ok(())
        })?;
        times.push(begun.elapsed().as_secs_f64());
    }
    let mut counted = times.split_off(1);
    counted.sort_by(f64::total_cmp);
    Ok(counted[STEPS / 2])
}

/// Coefficients of the polynomial of a degree that lies nearest to the points, from the constant on.
fn fit(points: &[(f64, f64)], degree: usize) -> Vec<f64> {
    // The normal equations, on x scaled to at most 1, solved by elimination.
    let most = points.iter().fold(0f64, |most, (x, _)| most.max(*x));
    let size = degree + 1;
    let mut rows = vec![vec![0.0; size + 1]; size];
    for (x, y) in points {
        let x = x / most;
        for (i, row) in rows.iter_mut().enumerate() {
            for (j, cell) in row[..size].iter_mut().enumerate() {
                *cell += x.powi((i + j) as i32);
            }
            row[size] += y * x.powi(i as i32);
        }
    }
    for i in 0..size {
        let pivot = rows[i].clone();
        for (j, row) in rows.iter_mut().enumerate() {
            if j != i {
                let factor = row[i] / pivot[i];
                row.iter_mut()
                    .zip(&pivot)
                    .for_each(|(cell, p)| *cell -= factor * p);
            }
        }
    }
    let solved = rows.iter().enumerate().map(|(i, row)| row[size] / row[i]);
    solved
        .enumerate()
        .map(|(i, c)| c / most.powi(i as i32))
        .collect()
}

fn value(polynomial: &[f64], x: f64) -> f64 {
    polynomial.iter().rev().fold(0.0, |sum, c| sum * x + c)
}

/// A panel of the plot: points and the fitted curve, both axes from 0.
fn panel(name: &str, points: &[(f64, f64)], curve: &[f64], left: usize) -> String {
    let (wide, high) = (200.0, 150.0);
    let most = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).fold(0.0, f64::max) * 1.05;
    let (x_most, y_most) = (most(|p| p.0), most(|p| p.1));
    let at = |x: f64, y: f64| (wide * x / x_most, high * (1.0 - y / y_most));
    let mut svg = format!("<g transform=\"translate({left} 30)\">");
    let _ = write!(
        svg,
        "<path d=\"M0 0V{high}H{wide}\" fill=\"none\" stroke=\"#888\"/>\
         <text x=\"0\" y=\"-10\">{name}</text>\
         <text x=\"{wide}\" y=\"{}\" text-anchor=\"end\">{:.0}</text>\
         <text x=\"4\" y=\"10\">{:.2} s</text>",
        high + 16.0,
        x_most / 1.05,
        y_most / 1.05
    );
    let line = (0..=40).map(|i| {
        let x = x_most * f64::from(i) / 40.0;
        let (x, y) = at(x, value(curve, x).max(0.0));
        format!("{x:.1},{y:.1}")
    });
    let line: Vec<String> = line.collect();
    let _ = write!(
        svg,
        "<polyline points=\"{}\" fill=\"none\" stroke=\"#4477aa\"/>",
        line.join(" ")
    );
    for (x, y) in points {
        let (x, y) = at(*x, *y);
        let _ = write!(
            svg,
            "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"#ee6677\"/>"
        );
    }
    svg + "</g>\n"
}

fn main() -> anyhow::Result<()> {
    let output = std::env::args()
        .nth(1)
        .unwrap_or_else(|| "growth".to_owned());
    let threads = std::thread::available_parallelism()?.get();
    let usual = Setting {
        tokens: 1024,
        length: 256,
        rank: 16,
        blocks: 6,
        vocabulary: 8192,
        threads,
    };
    let doubled = std::iter::successors(Some(1), |n| Some(2 * n));
    let mut counts: Vec<usize> = doubled.take_while(|n| *n < threads).collect();
    counts.push(threads);
    let all = [
        Series {
            name: "length, one text",
            values: vec![128, 256, 512, 1024, 2048, 4096],
            set: |s, n| (s.length, s.tokens) = (n, n),
            degree: 2,
        },
        Series {
            name: "rank",
            values: vec![4, 8, 16, 32, 64, 128, 256],
            set: |s, n| s.rank = n,
            degree: 1,
        },
        Series {
            name: "blocks",
            values: vec![2, 4, 8, 16, 32],
            set: |s, n| s.blocks = n,
            degree: 1,
        },
        Series {
            name: "vocabulary",
            values: vec![2048, 8192, 32768, 65536, 131_072],
            set: |s, n| s.vocabulary = n,
            degree: 1,
        },
        Series {
            name: "threads",
            values: counts,
            set: |s, n| s.threads = n,
            degree: 0,
        },
    ];
    let mut text = format!(
        "Seconds of a training step: hidden {HIDDEN}, feed-forward {WIDE}, {} blocks, vocabulary {}, LoRA r {}, \
         {} tokens in texts of {}, f32, {threads} threads, unless it says otherwise.\n\n\
         | Varied | values | seconds | tokens/s | off the fitted curve |\n|---|---|---|---|--:|\n",
        usual.blocks, usual.vocabulary, usual.rank, usual.tokens, usual.length
    );
    let settings = |series: &Series| -> Vec<Setting> {
        let with = |n: &usize| {
            let mut setting = usual;
            (series.set)(&mut setting, *n);
            setting
        };
        series.values.iter().map(with).collect()
    };
    let settings: Vec<Vec<Setting>> = all.iter().map(settings).collect();
    let mut least: Vec<Vec<f64>> = settings.iter().map(|s| vec![f64::MAX; s.len()]).collect();
    for _ in 0..ROUNDS {
        for (settings, least) in settings.iter().zip(&mut least) {
            for (setting, least) in settings.iter().zip(least) {
                *least = least.min(seconds(*setting)?);
            }
        }
    }
    let mut svg = String::new();
    for (place, (series, (settings, times))) in
        all.iter().zip(settings.iter().zip(&least)).enumerate()
    {
        let values = series.values.iter().map(|n| *n as f64);
        let points: Vec<(f64, f64)> = values.zip(times.iter().copied()).collect();
        let rate =
            |(setting, time): (&Setting, &f64)| format!("{:.0}", setting.tokens as f64 / time);
        let rates: Vec<String> = settings.iter().zip(times).map(rate).collect();
        let curve = fit(&points, series.degree);
        let off = points
            .iter()
            .map(|(x, y)| (value(&curve, *x) / y - 1.0).abs())
            .fold(0.0, f64::max);
        let list = |of: &dyn Fn(&(f64, f64)) -> String| {
            points.iter().map(of).collect::<Vec<_>>().join(", ")
        };
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} |",
            series.name,
            list(&|(x, _)| format!("{x:.0}")),
            list(&|(_, y)| format!("{y:.3}")),
            rates.join(", "),
            match series.degree {
                0 => "-".to_owned(),
                1 => format!("{:.1} % (line)", 100.0 * off),
                _ => format!("{:.1} % (parabola)", 100.0 * off),
            }
        );
        svg += &panel(series.name, &points, &curve, 20 + place * 240);
    }
    let wide = 20 + all.len() * 240;
    std::fs::write(format!("{output}.md"), &text)?;
    std::fs::write(
        format!("{output}.svg"),
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {wide} 210\" font-family=\"sans-serif\" \
             font-size=\"12\"><rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n{svg}</svg>\n"
        ),
    )?;
    write!(std::io::stdout(), "{text}")?;
    Ok(())
}
