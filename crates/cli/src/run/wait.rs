//! A run that waits for a cleaner grid before it begins. Nothing is measured while it waits: the machine
//! is at rest and the run is not there yet.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::words::say;
use crate::error::Failure;
use crate::figures::{duration, significant};
use crate::recipe::Recipe;
use crate::{grid, interrupt};

/// Between two looks at whether the user wants to stop.
const LOOK: Duration = Duration::from_millis(200);

/// How the wait went, for the record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Waited {
    /// What said how clean the grid was.
    pub(crate) source: String,
    /// The intensity that was wanted, gCO2e/kWh.
    pub(crate) wanted_below: f64,
    /// The last one that was read, where any was.
    pub(crate) intensity: Option<f64>,
    /// How long the run waited.
    pub(crate) seconds: f64,
    /// Whether it began because the grid was clean, and not because the time was up.
    pub(crate) reached: bool,
}

/// Waits as the recipe says. None where it says nothing.
///
/// # Errors
/// The user stopped it.
pub(super) fn for_clean_grid(recipe: &Recipe, quiet: bool) -> anyhow::Result<Option<Waited>> {
    let energy = &recipe.energy;
    let (Some(start), Some(source)) = (energy.start_when, recipe.live_grid()) else {
        return Ok(None);
    };
    let token = grid::token();
    let most = Duration::from_secs_f64(start.within_hours * 3600.0);
    let pause = (most / 20).clamp(Duration::from_secs(1), grid::EVERY);
    let began = Instant::now();
    let mut waited = Waited {
        source: source.to_string(),
        wanted_below: start.intensity_below,
        intensity: None,
        seconds: 0.0,
        reached: false,
    };
    let tell = |text: &str| {
        if !quiet {
            say(text);
        }
    };
    let mut told: Option<String> = None;
    loop {
        let read = source.read(token.as_deref());
        waited.seconds = began.elapsed().as_secs_f64();
        let state = match read {
            Ok(grams) => {
                waited.intensity = Some(grams);
                waited.reached = grams < start.intensity_below;
                format!("the grid emits {} gCO2e/kWh now", significant(grams, 3))
            }
            // It may answer the next time; that it does not is no reason to begin early.
            Err(error) => error.to_string(),
        };
        if waited.reached {
            tell(&format!(
                "{state}: starting, after waiting {}",
                duration(began.elapsed())
            ));
            return Ok(Some(waited));
        }
        let left = most.saturating_sub(began.elapsed());
        if left.is_zero() {
            tell(&format!(
                "{state}; the longest wait of {} is over: starting",
                duration(most)
            ));
            return Ok(Some(waited));
        }
        if told.as_ref() != Some(&state) {
            tell(&format!(
                "{state}; waiting for less than {}, at most {} more",
                significant(start.intensity_below, 3),
                duration(left)
            ));
            told = Some(state);
        }
        rest(pause.min(left))?;
    }
}

/// Rests, and looks up now and then.
fn rest(pause: Duration) -> anyhow::Result<()> {
    let began = Instant::now();
    while began.elapsed() < pause {
        if interrupt::requested() {
            return Err(Failure::run("interrupted while waiting for a cleaner grid")
                .hint("leave out `energy.start_when` to start at once")
                .into());
        }
        std::thread::sleep(LOOK.min(pause.saturating_sub(began.elapsed())));
    }
    Ok(())
}
