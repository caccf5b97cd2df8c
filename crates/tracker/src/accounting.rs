//! From joules to grams: three multiplications and nothing else, so that a reader can repeat them by
//! hand. Where the joules come from is a matter of [`crate::meter`]; where the intensity comes from,
//! of [`crate::intensity`]. Embodied hardware and water are not part of this figure.

use serde::{Deserialize, Serialize};

use crate::range::{Range, Span};

/// Joules in one kilowatt-hour, exactly.
pub const JOULES_PER_KWH: f64 = 3.6e6;

/// Power usage effectiveness: what the building draws for each joule the machine draws.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Pue {
    /// Ratio, at least 1.
    pub value: f64,
    /// Where it comes from, in words.
    pub source: String,
}

impl Default for Pue {
    /// A machine in a room without cooling of its own.
    fn default() -> Self {
        Self {
            value: 1.0,
            source: "assumed: a machine in an ordinary room, without cooling of its own".to_owned(),
        }
    }
}

/// Joules as kilowatt-hours.
pub fn kwh(joules: Range) -> Range {
    joules.scale(1.0 / JOULES_PER_KWH)
}

/// Operational emissions in grams of CO2e: energy (kWh) × PUE × intensity (gCO2e/kWh).
///
/// The result has a central value only where the intensity has one.
pub fn operational_g(energy_kwh: Range, pue: f64, g_per_kwh: Span) -> Span {
    Span {
        low: energy_kwh.low * pue * g_per_kwh.low,
        central: g_per_kwh.central.map(|g| energy_kwh.central * pue * g),
        high: energy_kwh.high * pue * g_per_kwh.high,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Luccioni et al. 2022, "Estimating the carbon footprint of BLOOM": 433,196 kWh at 57 g/kWh are
    /// 24.69 t.
    #[test]
    fn blooms_dynamic_energy_gives_its_published_tonnes() {
        let grams = operational_g(Range::exactly(433_196.0), 1.0, Range::exactly(57.0).into());
        let tonnes = grams.central.unwrap() / 1e6;
        assert!((tonnes - 24.69).abs() < 0.005, "{tonnes}");
    }

    #[test]
    fn bounds_multiply_and_an_unknown_place_has_no_centre() {
        let energy = kwh(Range::new(1.8e6, 3.6e6, 7.2e6));
        let span = Span {
            low: 20.0,
            central: None,
            high: 1000.0,
        };
        let grams = operational_g(energy, 1.5, span);
        assert!((grams.low - 15.0).abs() < 1e-9);
        assert!((grams.high - 3000.0).abs() < 1e-9);
        assert_eq!(grams.central, None);
    }
}
