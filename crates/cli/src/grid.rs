//! What says how clean the grid is, as a user names it, handed to the tracker, which asks no network itself.

use std::sync::Arc;
use std::time::Duration;

use sparsam_hub::grid::{Grid, TOKEN_VARIABLE};
use sparsam_tracker::LiveIntensity;
use sparsam_tracker::intensity::{self, Country};

/// Services renew their figure every half hour or hour; asking more often tells nothing new.
pub(crate) const EVERY: Duration = Duration::from_secs(300);

/// The country that `SPARSAM_COUNTRY` names.
pub(crate) fn country_of_environment() -> Option<String> {
    let named = std::env::var("SPARSAM_COUNTRY").ok();
    named.filter(|country| !country.trim().is_empty())
}

/// The key of Electricity Maps, where there is one.
pub(crate) fn token() -> Option<String> {
    std::env::var(TOKEN_VARIABLE).ok()
}

/// What may name a grid, for hints.
pub(crate) const SOURCES: &str =
    "`uk-grid`, `electricity-maps:DE`, an address or the path of a file";

/// The country whose grid it is and that of the run, where the two are known to differ.
pub(crate) fn elsewhere(
    grid: &Grid,
    country: Option<&str>,
) -> Option<(&'static Country, &'static Country)> {
    let lookup = |name: &str| intensity::lookup(name).ok();
    let both = grid
        .country()
        .and_then(lookup)
        .zip(country.and_then(lookup));
    both.filter(|(of_grid, of_run)| of_grid.alpha3 != of_run.alpha3)
}

/// The grid for the account of a run.
pub(crate) fn live(grid: Grid) -> LiveIntensity {
    LiveIntensity {
        source: grid.account(),
        every: EVERY,
        ask: Arc::new(move || {
            grid.read(token().as_deref())
                .map_err(|error| error.to_string())
        }),
    }
}
