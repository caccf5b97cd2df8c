//! Water: `E × (WUE_site + PUE × WUE_grid)`, where E is the energy of the machine itself (kWh). The
//! site's rate (L per kWh of the machine) already belongs to the machine's energy, so PUE multiplies
//! the grid's rate alone. Nothing is computed where a rate is not known: a country without a figure has
//! no water line.

use serde::{Deserialize, Serialize};

use crate::range::Range;

/// Litres for each kilowatt-hour, and where the rates come from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WaterRates {
    /// L/kWh evaporated on the site for cooling.
    pub site: f64,
    /// L/kWh consumed by the power plants of the grid.
    pub grid: f64,
    /// Where both come from, in words.
    pub source: String,
}

/// Water of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Water {
    /// Litres.
    pub litres: Range,
    /// The rates.
    pub rates: WaterRates,
}

/// Off-site water by country, L/kWh: World Resources Institute, as used by EcoLogits 0.9
/// (2025); for the United States the mean of Li et al. 2023, "Making AI Less Thirsty".
#[expect(
    clippy::approx_constant,
    reason = "the mean of the United States, and not pi"
)]
const GRID: [(&str, f64, &str); 5] = [
    ("ARG", 11.46, "WRI, through EcoLogits 0.9 (2025)"),
    ("AUS", 4.73, "WRI, through EcoLogits 0.9 (2025)"),
    ("AUT", 5.72, "WRI, through EcoLogits 0.9 (2025)"),
    ("BEL", 2.62, "WRI, through EcoLogits 0.9 (2025)"),
    ("USA", 3.142, "US mean, Li et al. 2023"),
];

/// The rates for a place. Rates that are stated come first; without a stated site rate the machine is
/// taken to be in a room without cooling by water, which the source says.
pub fn rates(
    alpha3: Option<&str>,
    site_stated: Option<f64>,
    grid_stated: Option<f64>,
) -> Option<WaterRates> {
    let (grid, grid_source) = match grid_stated {
        Some(grid) => (grid, "as stated".to_owned()),
        None => GRID
            .iter()
            .find(|(code, _, _)| Some(*code) == alpha3)
            .map(|(_, litres, source)| (*litres, (*source).to_owned()))?,
    };
    let site_source = if site_stated.is_some() {
        "as stated"
    } else {
        "none assumed, as in an ordinary room"
    };
    Some(WaterRates {
        site: site_stated.unwrap_or(0.0),
        grid,
        source: format!("grid: {grid_source}; site: {site_source}"),
    })
}

/// Litres of that energy.
pub fn litres(energy_kwh: Range, pue: f64, rates: &WaterRates) -> Water {
    Water {
        litres: energy_kwh.scale(rates.site + pue * rates.grid),
        rates: rates.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pue_multiplies_the_grids_rate_alone() {
        let rates = rates(Some("USA"), Some(0.5), None).unwrap();
        let water = litres(Range::exactly(10.0), 1.2, &rates);
        assert!((water.litres.central - 42.704).abs() < 1e-9);
    }

    #[test]
    fn an_unknown_rate_is_no_water_and_not_none_of_it() {
        assert_eq!(rates(Some("DEU"), Some(0.2), None), None);
        assert_eq!(rates(None, None, None), None);
        let stated = rates(Some("DEU"), None, Some(1.0)).unwrap();
        assert_eq!((stated.site, stated.grid), (0.0, 1.0));
        assert!(stated.source.contains("none assumed"));
    }
}
