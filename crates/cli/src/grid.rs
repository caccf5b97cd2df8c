//! What says how clean the grid is, as a user names it, handed to the tracker, which asks no network itself.

use std::sync::Arc;
use std::time::Duration;

use sparsam_hub::grid::{Grid, TOKEN_VARIABLE};
use sparsam_tracker::LiveIntensity;

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
