//! What others have published of their training's emissions, by which a run's own can be placed, and models
//! by year and size. Every value stands with its source. The emissions do not count the same things: what a
//! value holds is part of its source's words. Values that could not be traced to who published them are not
//! here.

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
pub(crate) const PUBLISHED: [Published; 15] = [
    Published {
        model: "AutoTrain fine-tune",
        grams: 25.4475,
        source: "co2_eq_emissions of a model card written by AutoTrain (Hugging Face), about 2022",
    },
    Published {
        model: "Transformer, base",
        grams: pounds(26.0),
        source: "Strubell et al. 2019 (arXiv 1906.02243), table 3: 26 lb, 8 P100 for 12 h, PUE 1.58, US mean",
    },
    Published {
        model: "Transformer, big",
        grams: pounds(192.0),
        source: "Strubell et al. 2019 (arXiv 1906.02243), table 3: 192 lb, 8 P100 for 84 h, PUE 1.58, US mean",
    },
    Published {
        model: "ELMo",
        grams: pounds(262.0),
        source: "Strubell et al. 2019 (arXiv 1906.02243), table 3: 262 lb, 3 P100 for 336 h, PUE 1.58, US mean",
    },
    Published {
        model: "BERT, base",
        grams: pounds(1438.0),
        source: "Strubell et al. 2019 (arXiv 1906.02243), table 3: 1,438 lb, 64 V100 for 79 h, PUE 1.58, US mean",
    },
    Published {
        model: "BLOOM",
        grams: tonnes(50.5),
        source: "Luccioni et al. 2022 (arXiv 2211.02001): 24.7 t by dynamic power, 50.5 t with idle power and making",
    },
    Published {
        model: "OPT",
        grams: tonnes(75.0),
        source: "Zhang et al. 2022 (arXiv 2205.01068): 75 t, an estimate; what it holds is not said",
    },
    Published {
        model: "Gemma, 2B and 7B",
        grams: tonnes(131.0),
        source: "Gemma Team 2024 (arXiv 2403.08295): about 131 t, pretraining of both sizes, the data centre included",
    },
    Published {
        model: "NAS, Transformer",
        grams: pounds(626_155.0),
        source: "Strubell et al. 2019 (arXiv 1906.02243), table 3: 626,155 lb, an architecture search, as estimated there",
    },
    Published {
        model: "OLMo, the series",
        grams: tonnes(493.0),
        source: "Morrison et al. 2025 (arXiv 2503.05804): training, development and making, 20M to 13B",
    },
    Published {
        model: "Llama 2, the family",
        grams: tonnes(539.0),
        source: "Touvron et al. 2023 (arXiv 2307.09288): pretraining of all sizes, 3.3M hours of A100",
    },
    Published {
        model: "GPT-3",
        grams: tonnes(552.0),
        source: "Patterson et al. 2021 (arXiv 2104.10350): 1,287 MWh, PUE included, at 429 g/kWh",
    },
    Published {
        model: "LLaMA, the family",
        grams: tonnes(1015.0),
        source: "Touvron et al. 2023 (arXiv 2302.13971): 2,638 MWh over development and training of all sizes, US mean",
    },
    Published {
        model: "Llama 3, 8B and 70B",
        grams: tonnes(2290.0),
        source: "Meta 2024, Llama 3 model card: pretraining of both sizes, 7.7M hours of H100",
    },
    Published {
        model: "Llama 3.1, the family",
        grams: tonnes(11_390.0),
        source: "Meta 2024, Llama 3.1 model card: location-based, 39.3M hours of H100, all sizes",
    },
];

/// A model that people know.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Known {
    pub(crate) model: &'static str,
    /// In which it was published.
    pub(crate) year: u16,
    /// Parameters in billions, the largest of a family.
    pub(crate) billions: f64,
    /// Who has published what its training emitted, where somebody has.
    pub(crate) emissions: Option<&'static str>,
    /// Where year and parameters stand.
    pub(crate) source: &'static str,
}

/// By year, then by size.
pub(crate) const KNOWN: [Known; 17] = [
    known("GPT", 2018, 0.117, None, "Radford et al. 2018"),
    known(
        "BERT, large",
        2018,
        0.34,
        Some("for the base size: Strubell et al. 2019"),
        "Devlin et al. 2018 (arXiv 1810.04805)",
    ),
    known("GPT-2", 2019, 1.5, None, "Radford et al. 2019"),
    known(
        "T5",
        2019,
        11.0,
        Some("46.7 t, Patterson et al. 2021"),
        "Raffel et al. 2019 (arXiv 1910.10683)",
    ),
    known(
        "GPT-3",
        2020,
        175.0,
        Some("552 t, Patterson et al. 2021"),
        "Brown et al. 2020 (arXiv 2005.14165)",
    ),
    known(
        "Gopher",
        2021,
        280.0,
        Some("380 t, Rae et al. 2021, as the authors of OPT cite it"),
        "Rae et al. 2021 (arXiv 2112.11446)",
    ),
    known(
        "OPT",
        2022,
        175.0,
        Some("75 t, its authors"),
        "Zhang et al. 2022 (arXiv 2205.01068)",
    ),
    known(
        "BLOOM",
        2022,
        176.0,
        Some("50.5 t, Luccioni et al. 2022"),
        "BigScience 2022 (arXiv 2211.05100)",
    ),
    known(
        "Mistral",
        2023,
        7.3,
        None,
        "Jiang et al. 2023 (arXiv 2310.06825)",
    ),
    known(
        "LLaMA",
        2023,
        65.2,
        Some("1,015 t for the family, its authors"),
        "Touvron et al. 2023 (arXiv 2302.13971)",
    ),
    known(
        "Llama 2",
        2023,
        70.0,
        Some("539 t for the family, its authors"),
        "Touvron et al. 2023 (arXiv 2307.09288)",
    ),
    known(
        "Gemma",
        2024,
        7.0,
        Some("131 t for both sizes, its authors"),
        "Gemma Team 2024 (arXiv 2403.08295)",
    ),
    known(
        "Llama 3",
        2024,
        70.0,
        Some("2,290 t for both sizes, its model card"),
        "Meta 2024, Llama 3 model card",
    ),
    known(
        "Qwen2.5",
        2024,
        72.0,
        None,
        "Qwen Team 2024 (arXiv 2412.15115)",
    ),
    known(
        "Llama 3.1",
        2024,
        405.0,
        Some("11,390 t for the family, its model card"),
        "Meta 2024, Llama 3.1 model card",
    ),
    known(
        "DeepSeek-V3",
        2024,
        671.0,
        None,
        "DeepSeek-AI 2024 (arXiv 2412.19437)",
    ),
    known(
        "OLMo 2",
        2025,
        13.0,
        Some("493 t for the series, Morrison et al. 2025"),
        "OLMo Team 2025 (arXiv 2501.00656)",
    ),
];

const fn known(
    model: &'static str,
    year: u16,
    billions: f64,
    emissions: Option<&'static str>,
    source: &'static str,
) -> Known {
    Known {
        model,
        year,
        billions,
        emissions,
        source,
    }
}

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
        // 2,638 MWh, PUE included, at the 385 g/kWh of the paper.
        assert!((of("LLaMA, the family") / 1e6 - 2638.0 * 0.385).abs() < 1.0);
    }

    #[test]
    fn known_models_are_in_order_and_agree_with_the_published_values() {
        assert!(
            KNOWN
                .windows(2)
                .all(|pair| (pair[0].year, pair[0].billions) <= (pair[1].year, pair[1].billions))
        );
        for known in KNOWN {
            let Some(published) = PUBLISHED.iter().find(|p| p.model == known.model) else {
                continue;
            };
            let said = known.emissions.expect(known.model);
            let tonnes = (published.grams / 1e6).to_string();
            assert!(said.starts_with(&tonnes), "{}: {said}", known.model);
        }
    }
}
