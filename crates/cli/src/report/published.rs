//! Published emissions of training, by which a run's own can be placed. Every value stands with its
//! source. They do not count the same things: what a value holds is part of its source's words.

use serde::Serialize;

/// One published value.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Published {
    /// What was trained.
    pub(crate) model: &'static str,
    /// gCO2e.
    pub(crate) grams: f64,
    /// Who says so, when, and what the value holds.
    pub(crate) source: &'static str,
}

const fn tonnes(value: f64) -> f64 {
    value * 1e6
}

/// Pounds, by the definition of 1959, as grams.
const fn pounds(value: f64) -> f64 {
    value * 453.592_37
}

/// All of them, the smallest first.
pub(crate) const PUBLISHED: [Published; 11] = [
    Published {
        model: "AutoTrain fine-tune",
        grams: 25.4475,
        source: "co2_eq_emissions of a model card written by AutoTrain (Hugging Face), about 2022",
    },
    Published {
        model: "Transformer, base",
        grams: pounds(26.0),
        source: "Strubell et al. 2019, table 3: 26 lb, 8 P100 for 12 h, PUE 1.58, US mean",
    },
    Published {
        model: "Transformer, big",
        grams: pounds(192.0),
        source: "Strubell et al. 2019, table 3: 192 lb, 8 P100 for 84 h, PUE 1.58, US mean",
    },
    Published {
        model: "ELMo",
        grams: pounds(262.0),
        source: "Strubell et al. 2019, table 3: 262 lb, 3 GPUs for 336 h, PUE 1.58, US mean",
    },
    Published {
        model: "BERT, base",
        grams: pounds(1438.0),
        source: "Strubell et al. 2019, table 3: 1,438 lb, 64 V100 for 79 h, PUE 1.58, US mean",
    },
    Published {
        model: "BLOOM",
        grams: tonnes(50.5),
        source: "Luccioni et al. 2022: 24.7 t by dynamic power, 50.5 t with idle power and making",
    },
    Published {
        model: "NAS, Transformer",
        grams: pounds(626_155.0),
        source: "Strubell et al. 2019, table 3: 626,155 lb, an architecture search, as estimated there",
    },
    Published {
        model: "OLMo, the series",
        grams: tonnes(493.0),
        source: "Morrison et al. 2025 (arXiv 2503.05804): training, development and making, 20M to 13B",
    },
    Published {
        model: "Llama 2, the family",
        grams: tonnes(539.0),
        source: "Touvron et al. 2023, Llama 2 model card: pretraining of all sizes",
    },
    Published {
        model: "GPT-3",
        grams: tonnes(552.0),
        source: "Patterson et al. 2021: 1,287 MWh, PUE included, at 429 g/kWh",
    },
    Published {
        model: "LLaMA, the family",
        grams: tonnes(1015.0),
        source: "Touvron et al. 2023, LLaMA: 2,638 MWh over development and training of all sizes",
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_rise_and_those_that_can_be_computed_are_right() {
        assert!(
            PUBLISHED
                .windows(2)
                .all(|pair| pair[0].grams < pair[1].grams)
        );
        let of = |model: &str| PUBLISHED.iter().find(|p| p.model == model).unwrap().grams;
        // Strubell et al. give 0.954 lb for each kWh, with PUE 1.58 in it.
        assert!((of("NAS, Transformer") / 1e6 - 284.02).abs() < 0.01);
        assert!((of("GPT-3") - 1_287_000.0 * 429.0).abs() < 0.5e6);
        // 24.692 + 14.629 + 7.575 + 3.636 t.
        assert!((of("BLOOM") / 1e6 - 50.53).abs() < 0.05);
    }
}
