//! The same arithmetic after the fact: devices × hours × watts × PUE × intensity, for runs that nobody
//! measured. Every input stands in the result, with the formula in words, so that a reader can put in
//! another figure. An estimate is no measurement, and it says so.
//!
//! For named hardware the central figure takes the rated power for the whole time, as the papers do that
//! this is checked against (Luccioni et al. 2022, Strubell et al. 2019). Real trainings stay below it:
//! the low bound is the least that Dodge et al. 2022 measured.

use serde::Serialize;

use crate::accounting::{self, Pue};
use crate::comparison::{self, Comparison};
use crate::embodied::{self, Embodied};
use crate::hardware;
use crate::intensity::{self, CarbonIntensity};
use crate::meter::processors;
use crate::range::{Range, Span};
use crate::record::Place;
use crate::tracker::{StartError, StatedIntensity, stated_intensity, stated_pue};
use crate::water::{self, Water};
use crate::{format, summary};

/// The least part of its rated power at which a GPU was seen to train: the trainings of Dodge et al.
/// 2022 took 0.07 to 0.28 kWh a GPU-hour, and the least is set against the 300 W of a V100.
pub const LOW_LOAD: f64 = 0.07 / 0.3;

/// What drew the power.
#[derive(Debug, Clone, PartialEq)]
pub enum Power {
    /// A GPU or processor of the tables, by name.
    Hardware(String),
    /// Watts of one device, as the user knows them.
    Watts(f64),
}

/// What is asked.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// What drew the power.
    pub power: Power,
    /// How many of it.
    pub count: f64,
    /// For how long, hours.
    pub hours: f64,
    /// Power usage effectiveness; 1 unless told otherwise.
    pub pue: Option<f64>,
    /// ISO 3166 code or English name.
    pub country: Option<String>,
    /// An own figure for the electricity, which takes the country's place.
    pub intensity: Option<StatedIntensity>,
    /// Whether the share of making the hardware is wanted.
    pub embodied: bool,
    /// Litres evaporated on the site for each kWh.
    pub water_site_l_per_kwh: Option<f64>,
    /// Litres consumed by the grid's power plants for each kWh.
    pub water_grid_l_per_kwh: Option<f64>,
}

impl Request {
    /// One device for that many hours, nothing else known.
    pub fn new(power: Power, hours: f64) -> Self {
        Self {
            power,
            count: 1.0,
            hours,
            pue: None,
            country: None,
            intensity: None,
            embodied: false,
            water_site_l_per_kwh: None,
            water_grid_l_per_kwh: None,
        }
    }
}

/// Why there is no estimate.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum EstimateError {
    /// The hardware is in neither table.
    #[error("unknown hardware `{given}`")]
    UnknownHardware {
        /// What was asked for.
        given: String,
        /// Names that share words with it.
        near: Vec<&'static str>,
    },
    /// A number is out of range.
    #[error("`{option}` is {given}, and must be {wanted}")]
    OutOfRange {
        /// The option's name.
        option: &'static str,
        /// What was given.
        given: f64,
        /// What is allowed.
        wanted: &'static str,
    },
    /// Making the hardware was asked for, and only watts were given.
    #[error("making the hardware cannot be estimated from watts")]
    EmbodiedOfWatts,
    /// Place, intensity or PUE make no sense.
    #[error(transparent)]
    Accounting(#[from] StartError),
}

impl EstimateError {
    /// What to write instead.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::UnknownHardware { near, .. } if near.is_empty() => {
                Some("give the power of one device as `--watts` instead".to_owned())
            }
            Self::UnknownHardware { near, .. } => Some(format!(
                "did you mean `{}`? Or give `--watts` instead",
                near.join("`, `")
            )),
            Self::OutOfRange { .. } => None,
            Self::EmbodiedOfWatts => Some("name the hardware, as `--hardware`".to_owned()),
            Self::Accounting(error) => error.hint(),
        }
    }
}

/// The estimate with all its inputs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Estimate {
    /// The hardware's name, or none where watts were given.
    pub hardware: Option<String>,
    /// How many devices.
    pub count: f64,
    /// Watts of one.
    pub watts: Range,
    /// Where the watts come from.
    pub watts_source: String,
    /// Hours.
    pub hours: f64,
    /// The devices' energy, kWh, without PUE.
    pub energy_kwh: Range,
    /// The building's energy, kWh: times PUE.
    pub energy_with_pue_kwh: Range,
    /// Power usage effectiveness.
    pub pue: Pue,
    /// The country, where it was given.
    pub place: Option<Place>,
    /// Carbon intensity of the electricity.
    pub intensity: CarbonIntensity,
    /// Operational emissions, gCO2e.
    pub emissions_g: Span,
    /// The formula with its numbers, line by line.
    pub formula: Vec<String>,
    /// Share of making the hardware, where it was asked for. Not in `emissions_g`.
    pub embodied: Option<Embodied>,
    /// Water, where the rates are known. Not in `emissions_g`.
    pub water: Option<Water>,
    /// The emissions in terms people know.
    pub comparisons: Vec<Comparison>,
    /// What the emissions leave out.
    pub not_included: Vec<String>,
}

/// Makes the estimate.
///
/// # Errors
/// The hardware is unknown or a figure makes no sense.
pub fn estimate(request: &Request) -> Result<Estimate, EstimateError> {
    let above_zero = "more than 0";
    let positive = |option, given: f64| {
        if given.is_finite() && given > 0.0 {
            Ok(())
        } else {
            Err(EstimateError::OutOfRange {
                option,
                given,
                wanted: above_zero,
            })
        }
    };
    positive("count", request.count)?;
    positive("hours", request.hours)?;
    let (name, watts, watts_source) = power(&request.power, &positive)?;
    for (option, given) in [
        ("water_site_l_per_kwh", request.water_site_l_per_kwh),
        ("water_grid_l_per_kwh", request.water_grid_l_per_kwh),
    ] {
        if let Some(given) = given
            && !(0.0..=1000.0).contains(&given)
        {
            return Err(EstimateError::OutOfRange {
                option,
                given,
                wanted: "from 0 to 1000 L/kWh",
            });
        }
    }
    let pue = stated_pue(request.pue)?;
    let country = request
        .country
        .as_deref()
        .map(intensity::lookup)
        .transpose()
        .map_err(StartError::from)?;
    let intensity = match (&request.intensity, country) {
        (Some(stated), _) => stated_intensity(stated)?,
        (None, Some(country)) => CarbonIntensity::of(country),
        (None, None) => CarbonIntensity::unknown_place(),
    };
    let energy_kwh = watts.scale(request.count * request.hours / 1e3);
    let emissions_g = accounting::operational_g(energy_kwh, pue.value, intensity.g_per_kwh);
    let embodied = request
        .embodied
        .then(|| making(request, name.as_deref()))
        .transpose()?
        .flatten();
    let water = water::rates(
        country.map(|country| country.alpha3),
        request.water_site_l_per_kwh,
        request.water_grid_l_per_kwh,
    )
    .map(|rates| water::litres(energy_kwh, pue.value, &rates));
    let mut estimate = Estimate {
        hardware: name,
        count: request.count,
        watts,
        watts_source,
        hours: request.hours,
        energy_with_pue_kwh: energy_kwh.scale(pue.value),
        energy_kwh,
        pue,
        place: country.map(|country| Place {
            name: country.name.to_owned(),
            alpha3: country.alpha3.to_owned(),
        }),
        intensity,
        emissions_g,
        formula: Vec::new(),
        embodied,
        water,
        comparisons: comparison::of(emissions_g),
        not_included: [
            "the rest of the machines: processors, memory, disks, network, fans",
            "the manufacture of the hardware",
            "water",
            "other runs: searches, failed attempts, preparation of the data",
        ]
        .map(str::to_owned)
        .to_vec(),
    };
    estimate.formula = formula(&estimate);
    Ok(estimate)
}

/// Name, watts and their source.
fn power(
    power: &Power,
    positive: &dyn Fn(&'static str, f64) -> Result<(), EstimateError>,
) -> Result<(Option<String>, Range, String), EstimateError> {
    match power {
        Power::Watts(watts) => {
            positive("watts", *watts)?;
            Ok((None, Range::exactly(*watts), "as stated".to_owned()))
        }
        Power::Hardware(given) => {
            if let Some(row) = hardware::find(given) {
                return Ok((
                    Some(row.name.to_owned()),
                    Range::new(row.watts * LOW_LOAD, row.watts, row.watts),
                    format!(
                        "rated power of the data sheet ({}), taken for the whole time; low bound: the \
                         least load Dodge et al. 2022 measured",
                        row.year
                    ),
                ));
            }
            if let Some(row) = processors::find(given) {
                return Ok((
                    Some(row.name.to_owned()),
                    Range::new(row.tdp_watts * LOW_LOAD, row.tdp_watts, row.tdp_watts),
                    format!(
                        "rated power of the product page ({}), taken for the whole time; low bound as \
                         for GPUs",
                        row.year
                    ),
                ));
            }
            Err(EstimateError::UnknownHardware {
                given: given.clone(),
                near: hardware::near(given),
            })
        }
    }
}

/// The share of making the hardware; none for processors, of which no figure is in the table.
fn making(request: &Request, name: Option<&str>) -> Result<Option<Embodied>, EstimateError> {
    let Some(name) = name else {
        return Err(EstimateError::EmbodiedOfWatts);
    };
    Ok(hardware::find(name).map(|row| {
        let missing = if row.host.is_none() {
            vec![format!("the machine around {}", row.name)]
        } else {
            Vec::new()
        };
        Embodied::sum(
            embodied::of_accelerator(row, request.count, request.hours),
            missing,
        )
    }))
}

fn formula(estimate: &Estimate) -> Vec<String> {
    let number = |value: f64| format::plain_decimal(value, 6);
    let pue = number(estimate.pue.value);
    let mut lines = vec![format!(
        "energy = {} x {} h x {} W x PUE {pue} = {} kWh",
        number(estimate.count),
        number(estimate.hours),
        number(estimate.watts.central),
        number(estimate.energy_with_pue_kwh.central),
    )];
    let span = estimate.intensity.g_per_kwh;
    lines.push(match (span.central, estimate.emissions_g.central) {
        (Some(g), Some(grams)) => format!(
            "emissions = {} kWh x {} g/kWh = {} g",
            number(estimate.energy_with_pue_kwh.central),
            number(g),
            number(grams)
        ),
        _ => format!(
            "emissions = {} kWh x {:.0} to {:.0} g/kWh",
            number(estimate.energy_with_pue_kwh.central),
            span.low,
            span.high
        ),
    });
    if let Some(embodied) = &estimate.embodied {
        for line in &embodied.lines {
            lines.push(format!(
                "making {} = {} kg x {} h / {} h = {} g",
                line.label,
                number(line.made_kg.central),
                number(line.unit_hours),
                number(line.life_hours[1]),
                number(line.grams.central),
            ));
        }
    }
    lines
}

/// The estimate in words.
pub fn lines(estimate: &Estimate) -> Vec<String> {
    let count = format::plain_decimal(estimate.count, 6);
    let what = match &estimate.hardware {
        Some(name) => format!("{count} x {name}"),
        None if estimate.count == 1.0 => "1 device".to_owned(),
        None => format!("{count} devices"),
    };
    let mut lines = vec![
        format!(
            "estimate   {what} for {} h; not measured",
            format::plain_decimal(estimate.hours, 6)
        ),
        format!(
            "energy     {}",
            format::energy(estimate.energy_with_pue_kwh)
        ),
        format!(
            "  {} W each: {}; PUE {}: {}",
            format::plain_decimal(estimate.watts.central, 6),
            estimate.watts_source,
            format::plain_decimal(estimate.pue.value, 3),
            estimate.pue.source
        ),
        format!("emissions  {} CO2e", format::grams(estimate.emissions_g)),
    ];
    let mut from = Vec::new();
    from.extend(estimate.place.as_ref().map(|place| place.name.clone()));
    from.extend(estimate.intensity.year.map(|year| year.to_string()));
    from.push(estimate.intensity.source.clone());
    lines.push(format!("  intensity: {}", from.join(", ")));
    lines.extend(estimate.formula.iter().map(|line| format!("  {line}")));
    if let Some(embodied) = &estimate.embodied {
        lines.push(format!("  {}", summary::embodied_line(embodied)));
    }
    lines.extend(
        summary::beside_parts(None, None, estimate.water.as_ref(), &estimate.comparisons)
            .into_iter()
            .map(|line| format!("  {line}")),
    );
    lines.push(format!(
        "  not included: {}",
        estimate.not_included.join("; ")
    ));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stated(g_per_kwh: f64) -> StatedIntensity {
        StatedIntensity {
            g_per_kwh,
            source: "the paper".to_owned(),
        }
    }

    fn tonnes(grams: f64) -> String {
        format!("{:.2}", grams / 1e6)
    }

    /// Luccioni, Viguier and Ligozat 2022, "Estimating the carbon footprint of BLOOM", table 3:
    /// 1,082,990 GPU-hours of A100 80GB at 400 W, 57 g/kWh, 24.69 t dynamic; 256,646 kWh idle, 14.6 t;
    /// making of servers 7.57 t and of GPUs 3.64 t; 50.5 t in all, of which 48.9, 28.9 and 22.2 %.
    #[test]
    fn bloom_to_the_printed_digit() {
        let dynamic = estimate(&Request {
            intensity: Some(stated(57.0)),
            embodied: true,
            ..Request::new(
                Power::Hardware("NVIDIA A100 SXM4 80GB".to_owned()),
                1_082_990.0,
            )
        })
        .unwrap();
        assert_eq!(format!("{:.0}", dynamic.energy_kwh.central), "433196");
        let operational = dynamic.emissions_g.central.unwrap();
        assert_eq!(tonnes(operational), "24.69");

        let idle = estimate(&Request {
            intensity: Some(stated(57.0)),
            ..Request::new(Power::Watts(1000.0), 256_646.0)
        })
        .unwrap();
        let idle = idle.emissions_g.central.unwrap();
        assert_eq!(format!("{:.1}", idle / 1e6), "14.6");

        let embodied = dynamic.embodied.unwrap();
        let making: Vec<f64> = embodied.lines.iter().map(|l| l.grams.central).collect();
        assert_eq!(tonnes(making[0]), "3.64", "GPUs");
        // 7.5753 and, below, 28.95: the paper cuts these two and rounds the others.
        assert_eq!((making[1] / 1e4).floor() / 100.0, 7.57, "servers");

        let total = operational + idle + embodied.grams.central;
        assert_eq!(format!("{:.1}", total / 1e6), "50.5");
        let share = |part: f64| format!("{:.1}", 100.0 * part / total);
        assert_eq!(share(operational), "48.9");
        assert_eq!((1000.0 * idle / total).floor() / 10.0, 28.9);
        assert_eq!(share(embodied.grams.central), "22.2");
    }

    /// Strubell, Ganesh and McCallum 2019, "Energy and policy considerations for deep learning in NLP",
    /// tables 1 and 3: PUE 1.58, 0.954 lb of CO2e a kWh.
    #[test]
    fn strubell_to_the_printed_digit() {
        const POUND_GRAMS: f64 = 453.592_37;
        for (model, watts, hours, kwh, pounds) in [
            ("Transformer base", 1415.78, 12.0, "27", "26"),
            ("Transformer big", 1515.43, 84.0, "201", "192"),
            ("ELMo", 517.66, 336.0, "275", "262"),
            ("NAS", 1515.43, 274_120.0, "656347", "626155"),
        ] {
            let result = estimate(&Request {
                pue: Some(1.58),
                intensity: Some(stated(0.954 * POUND_GRAMS)),
                ..Request::new(Power::Watts(watts), hours)
            })
            .unwrap();
            let energy = result.energy_with_pue_kwh.central;
            assert_eq!(format!("{energy:.0}"), kwh, "{model}");
            let emitted = result.emissions_g.central.unwrap() / POUND_GRAMS;
            assert_eq!(format!("{emitted:.0}"), pounds, "{model}");
        }
    }

    /// The GPT-3 row of the BLOOM paper's comparison: its 1,287 MWh contain the PUE already, so 552 t are
    /// 1,287 MWh × 429 g/kWh, and a PUE of 1.1 on top would count it twice.
    #[test]
    fn energy_that_contains_the_pue_is_not_multiplied_again() {
        let request = Request {
            intensity: Some(stated(429.0)),
            ..Request::new(Power::Watts(1e6), 1287.0)
        };
        let once = estimate(&request).unwrap();
        assert_eq!(
            format!("{:.0}", once.emissions_g.central.unwrap() / 1e6),
            "552"
        );
    }

    #[test]
    fn every_input_is_in_the_result_and_in_the_words() {
        let result = estimate(&Request {
            count: 8.0,
            pue: Some(1.2),
            country: Some("FRA".to_owned()),
            ..Request::new(Power::Hardware("NVIDIA H100 80GB HBM3".to_owned()), 100.0)
        })
        .unwrap();
        assert_eq!(result.hardware.as_deref(), Some("NVIDIA H100 SXM5 80GB"));
        assert!((result.energy_kwh.central - 560.0).abs() < 1e-9);
        assert!((result.energy_with_pue_kwh.central - 672.0).abs() < 1e-9);
        assert_eq!(
            result.formula[0],
            "energy = 8 x 100 h x 700 W x PUE 1.2 = 672 kWh"
        );
        let words = lines(&result).join("\n");
        for part in [
            "not measured",
            "France",
            "PUE 1.2: stated by the user",
            "672 kWh",
        ] {
            assert!(words.contains(part), "{part}: {words}");
        }
        let json = serde_json::to_value(&result).unwrap();
        assert_eq!(json["count"], 8.0);
        assert!(json["emissions_g"]["central"].is_number());
    }

    #[test]
    fn what_makes_no_sense_is_an_error_with_a_hint() {
        let by_name = |name: &str| Request::new(Power::Hardware(name.to_owned()), 1.0);
        let error = estimate(&by_name("A100")).unwrap_err();
        assert_eq!(error.to_string(), "unknown hardware `A100`");
        assert!(error.hint().unwrap().contains("NVIDIA A100 SXM4 80GB"));
        assert!(
            estimate(&by_name("?"))
                .unwrap_err()
                .hint()
                .unwrap()
                .contains("--watts")
        );
        for (hours, watts) in [
            (0.0, 1.0),
            (-1.0, 1.0),
            (1.0, f64::NAN),
            (f64::INFINITY, 1.0),
        ] {
            assert!(matches!(
                estimate(&Request::new(Power::Watts(watts), hours)),
                Err(EstimateError::OutOfRange { .. })
            ));
        }
        let request = Request {
            embodied: true,
            ..Request::new(Power::Watts(1.0), 1.0)
        };
        assert_eq!(estimate(&request), Err(EstimateError::EmbodiedOfWatts));
        let unknown = Request {
            country: Some("Atlantis".to_owned()),
            ..Request::new(Power::Watts(1.0), 1.0)
        };
        assert!(
            estimate(&unknown)
                .unwrap_err()
                .hint()
                .unwrap()
                .contains("ISO 3166")
        );
    }
}
