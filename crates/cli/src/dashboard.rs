//! A run as one screen that lives: loss, power by component, speed, time and energy left, budget,
//! evaluations, and what was said last.
//!
//! It knows what it was told and measures nothing but time. [`State`] is what is shown, [`draw`] shows it on
//! any terminal, [`screen`] has the real one and gives it back. What was said while it was up is printed
//! when it goes, so that it is not lost with the second screen.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use sparsam_tracker::{Gauge, accounting, format};

use crate::figures::{duration, significant, thousands};
use crate::interrupt;

mod draw;
pub(crate) mod screen;

/// Between two pictures.
const DRAW_EVERY: Duration = Duration::from_millis(250);
/// Between two pictures while nothing happens.
const LIVE_EVERY: Duration = Duration::from_secs(1);
/// Points that are kept of a curve; more are joined in pairs.
const POINTS: usize = 1024;
/// Lines of what was said that are kept to be shown.
const SAID: usize = 50;
/// The weight of a new step in the smoothed loss; the first ones weigh alike.
const FRESH: f64 = 0.1;

/// How far a run is with its budget.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Budgeted {
    /// The part of the budget for training that is used.
    pub(crate) used: f64,
    /// What is used of each limit.
    pub(crate) words: String,
}

/// What is drawn and emitted now.
#[derive(Debug, Clone, PartialEq, Default)]
struct Figures {
    watts: Option<f64>,
    grams: Option<f64>,
    /// Energy so far, kWh.
    energy_kwh: f64,
    /// Names and watts.
    components: Vec<(String, f64)>,
}

impl Figures {
    fn of(gauge: &Gauge) -> Self {
        let live = gauge.live();
        Self {
            watts: live.watts,
            grams: live.emissions_g.central,
            energy_kwh: accounting::kwh(live.joules).central,
            components: gauge.components(),
        }
    }
}

/// What is shown.
#[derive(Debug, Default)]
struct State {
    title: String,
    total: u64,
    first: u64,
    step: u64,
    /// What is going on between steps.
    doing: Option<String>,
    losses: Curve,
    smooth: Curve,
    smoothed: Option<f64>,
    /// Losses of this session.
    seen: u64,
    evaluations: Vec<(f64, f64)>,
    best: Option<(u64, f64)>,
    tokens_per_second: f64,
    budget: Option<Budgeted>,
    grams: Option<f64>,
    watts: Curve,
    components: Vec<(String, f64)>,
    /// Energy so far, kWh.
    energy_kwh: f64,
    /// Seconds and kWh when this session's first step was done, and its last.
    before: Option<(f64, f64)>,
    reached: (f64, f64),
    said: VecDeque<String>,
}

/// A curve of as many points as can be told apart.
#[derive(Debug, Default, Clone)]
struct Curve {
    points: Vec<(f64, f64)>,
    /// How many values stand in a point.
    every: usize,
    /// The sum of those that wait for a point, and their number.
    waiting: (f64, f64, usize),
}

impl Curve {
    fn push(&mut self, x: f64, y: f64) {
        self.every = self.every.max(1);
        let (sum_x, sum_y, count) = self.waiting;
        self.waiting = (sum_x + x, sum_y + y, count + 1);
        if self.waiting.2 < self.every {
            return;
        }
        let (sum_x, sum_y, count) = std::mem::take(&mut self.waiting);
        let count = count as f64;
        self.points.push((sum_x / count, sum_y / count));
        if self.points.len() >= POINTS {
            let mean = |pair: &[(f64, f64)]| {
                let sum = pair.iter().fold((0.0, 0.0), |s, p| (s.0 + p.0, s.1 + p.1));
                let count = pair.len() as f64;
                (sum.0 / count, sum.1 / count)
            };
            self.points = self.points.chunks(2).map(mean).collect();
            self.every *= 2;
        }
    }
}

impl State {
    /// Seconds until the last step at the pace of this session, or until the budget is used up.
    fn left(&self) -> Option<f64> {
        let done = self.step.saturating_sub(self.first) as f64;
        let by_steps = (done > 0.0).then(|| {
            let to_do = self.total.saturating_sub(self.step) as f64;
            self.reached.0 / done * to_do
        });
        let used = self.budget.as_ref().map(|budget| budget.used);
        let by_budget = used
            .filter(|used| *used > 0.0)
            .map(|used| self.reached.0 * (1.0 - used).max(0.0) / used);
        match (by_steps, by_budget) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (one, None) | (None, one) => one,
        }
    }

    /// The energy at the end, as things go now, kWh.
    fn expected_kwh(&self) -> Option<f64> {
        let ((began, had), (reached, has)) = (self.before?, self.reached);
        let (seconds, since) = (reached - began, has - had);
        let left = self.left()?;
        let expected = has + since / seconds * left;
        (seconds > 0.0 && since > 0.0).then(|| expected.max(self.energy_kwh))
    }

    fn note(&mut self, text: &str) {
        for line in text.lines() {
            if self.said.len() == SAID {
                self.said.pop_front();
            }
            self.said.push_back(line.to_owned());
        }
    }

    fn stepped(&mut self, step: u64, loss: f64, tokens_per_second: f64, elapsed: f64) {
        self.step = step;
        self.doing = None;
        self.tokens_per_second = tokens_per_second;
        self.reached = (elapsed, self.energy_kwh);
        self.before.get_or_insert(self.reached);
        if loss.is_finite() {
            self.seen += 1;
            let weight = FRESH.max(1.0 / self.seen as f64);
            let before = self.smoothed.unwrap_or(loss);
            let smoothed = before + weight * (loss - before);
            self.smoothed = Some(smoothed);
            self.losses.push(step as f64, loss);
            self.smooth.push(step as f64, smoothed);
        }
    }

    /// What the meters say at a time since the start, seconds.
    fn measured(&mut self, figures: Figures, elapsed: f64) {
        self.grams = figures.grams;
        if let Some(watts) = figures.watts {
            self.watts.push(elapsed, watts);
        }
        self.components = figures.components;
        self.energy_kwh = figures.energy_kwh;
    }

    fn evaluated(&mut self, step: u64, loss: f64, best: bool) {
        if loss.is_finite() {
            self.evaluations.push((step as f64, loss));
        }
        if best {
            self.best = Some((step, loss));
        }
    }

    /// The figures, each with its name.
    fn figures(&self) -> Vec<(&'static str, String)> {
        let mut figures = Vec::new();
        if let Some(loss) = self.smoothed {
            figures.push(("loss", format!("{loss:.4}")));
        }
        if let Some((step, loss)) = self.best {
            figures.push((
                "held-out",
                format!("{loss:.4}, lowest, step {}", thousands(step)),
            ));
        } else if let Some((_, loss)) = self.evaluations.last() {
            figures.push(("held-out", format!("{loss:.4}")));
        }
        figures.push((
            "speed",
            format!("{} tokens/s", thousands(self.tokens_per_second as u64)),
        ));
        if let Some(left) = self.left() {
            let left = Duration::from_secs_f64(left.clamp(0.0, 1e9));
            figures.push(("left", duration(left)));
        }
        if self.energy_kwh > 0.0 {
            let mut text = format::energy_central(self.energy_kwh);
            if let Some(expected) = self.expected_kwh() {
                let _ = write!(text, " of about {}", format::energy_central(expected));
            }
            figures.push(("energy", text));
        }
        if let Some(grams) = self.grams {
            figures.push(("emissions", format!("{} gCO2e", significant(grams, 2))));
        }
        figures
    }

    fn doing(&self) -> &str {
        if interrupt::requested() {
            return "stopping after this step";
        }
        self.doing.as_deref().unwrap_or("training")
    }
}

/// The dashboard on the real terminal, drawn again by a thread of its own while nothing happens. Dropping it
/// gives the terminal back.
#[derive(Debug)]
pub(crate) struct Dashboard {
    screen: Arc<Mutex<Screen>>,
    /// Closed when the dashboard goes, for which the thread waits.
    open: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// The terminal and what is shown on it.
struct Screen {
    terminal: Terminal<CrosstermBackend<io::Stderr>>,
    gauge: Gauge,
    state: State,
    started: Instant,
    drawn: Option<Instant>,
    /// All that was said, to be printed at the end.
    said: Vec<String>,
}

impl std::fmt::Debug for Screen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Screen")
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}

impl Screen {
    /// A picture that cannot be drawn is no reason to end a run.
    fn draw(&mut self) {
        if screen::is_stale() {
            let _ = self.terminal.clear();
        }
        let elapsed = self.started.elapsed().as_secs_f64();
        self.state.measured(Figures::of(&self.gauge), elapsed);
        let state = &self.state;
        let _ = self.terminal.draw(|frame| draw::draw(frame, state));
        self.drawn = Some(Instant::now());
    }

    fn is_due(&self, every: Duration) -> bool {
        self.drawn.is_none_or(|drawn| drawn.elapsed() >= every)
    }
}

impl Dashboard {
    /// Takes the terminal for a run of `total` steps of which `done` were made before.
    ///
    /// # Errors
    /// The terminal's size cannot be told.
    pub(crate) fn open(title: &str, gauge: Gauge, total: u64, done: u64) -> io::Result<Self> {
        let terminal = Terminal::new(CrosstermBackend::new(io::stderr()))?;
        screen::enter();
        let mut screen = Screen {
            terminal,
            gauge,
            state: State {
                title: title.to_owned(),
                total,
                first: done,
                step: done,
                ..State::default()
            },
            started: Instant::now(),
            drawn: None,
            said: Vec::new(),
        };
        screen.draw();
        let screen = Arc::new(Mutex::new(screen));
        let (open, closed) = mpsc::channel();
        let shared = Arc::clone(&screen);
        // Without the thread the picture still changes with every step.
        let thread = thread::Builder::new()
            .name("dashboard".to_owned())
            .spawn(move || {
                while closed.recv_timeout(LIVE_EVERY) == Err(RecvTimeoutError::Timeout) {
                    let mut screen = locked(&shared);
                    if screen.is_due(LIVE_EVERY / 2) {
                        screen.draw();
                    }
                }
            })
            .ok();
        Ok(Self {
            screen,
            open: Some(open),
            thread,
        })
    }

    /// A step is done.
    pub(crate) fn stepped(
        &self,
        (step, loss, tokens_per_second): (u64, f64, f64),
        budget: Option<Budgeted>,
    ) {
        let mut screen = locked(&self.screen);
        let elapsed = screen.started.elapsed().as_secs_f64();
        screen.state.budget = budget;
        screen.state.stepped(step, loss, tokens_per_second, elapsed);
        if screen.is_due(DRAW_EVERY) {
            screen.draw();
        }
    }

    /// The evaluation data was measured.
    pub(crate) fn evaluated(&self, step: u64, loss: f64, best: bool) {
        let mut screen = locked(&self.screen);
        screen.state.evaluated(step, loss, best);
        screen.draw();
    }

    /// Something is said.
    pub(crate) fn note(&self, text: &str) {
        let mut screen = locked(&self.screen);
        screen.said.push(text.to_owned());
        screen.state.note(text);
        screen.draw();
    }

    /// Something is done between steps.
    pub(crate) fn doing(&self, what: &str) {
        let mut screen = locked(&self.screen);
        screen.state.doing = Some(what.to_owned());
        screen.draw();
    }
}

/// The screen, whatever became of the thread that had it before.
fn locked(screen: &Mutex<Screen>) -> MutexGuard<'_, Screen> {
    screen.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Dashboard {
    fn drop(&mut self) {
        self.open = None;
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
        screen::leave();
        let mut stderr = io::stderr().lock();
        for text in &locked(&self.screen).said {
            let _ = writeln!(stderr, "{text}");
        }
    }
}

#[cfg(test)]
mod tests {
    use ratatui::backend::TestBackend;

    use super::*;

    fn state() -> State {
        let mut state = State {
            title: "runs/trees".to_owned(),
            total: 400,
            ..State::default()
        };
        for step in 1..=100u64 {
            let elapsed = step as f64 * 0.5;
            let figures = Figures {
                watts: Some(45.0),
                grams: Some(0.25),
                energy_kwh: 0.001 + elapsed * 45.0 / 3.6e6,
                components: vec![("CPU package 0".into(), 42.0), ("memory".into(), 3.0)],
            };
            state.measured(figures, elapsed);
            state.stepped(step, 3.0 / (1.0 + step as f64 / 20.0), 1234.0, elapsed);
        }
        state.evaluated(0, 3.1, false);
        state.evaluated(100, 0.61, true);
        state.note("step 100: evaluation loss 0.6100, the lowest so far");
        state
    }

    fn shown(state: &State, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw::draw(frame, state)).unwrap();
        let buffer = terminal.backend().buffer();
        let lines = (0..height).map(|y| {
            let line: String = (0..width).map(|x| buffer[(x, y)].symbol()).collect();
            line.trim_end().to_owned()
        });
        lines.collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn everything_that_is_known_is_on_the_screen() {
        let text = shown(&state(), 90, 26);
        for part in [
            "runs/trees",
            "training",
            "100 of 400 steps",
            "Loss",
            "Power",
            "CPU package 0",
            "42 W",
            "memory",
            "45 W",
            "1,234 tokens/s",
            // 100 steps took 50 s, 300 are left; 45 W for 200 s in all, and a watt-hour before.
            "2 min 30 s",
            "of about 3.5 Wh",
            "0.25 gCO2e",
            "0.6100, lowest, step 100",
            "evaluation loss 0.6100",
            "Ctrl-C",
        ] {
            assert!(text.contains(part), "{part}:\n{text}");
        }
        assert!(!text.contains("budget"), "{text}");
        // The curve is drawn: braille dots in the upper left part.
        let dots = text
            .chars()
            .filter(|c| ('\u{2801}'..='\u{28ff}').contains(c));
        assert!(dots.count() > 20, "{text}");
    }

    /// Power and energy go on while the evaluation data is measured; what is expected is not less than what
    /// was used.
    #[test]
    fn between_steps_the_meters_go_on() {
        let mut state = state();
        state.doing = Some("measuring the evaluation data".to_owned());
        let figures = Figures {
            watts: Some(31.0),
            grams: Some(0.75),
            energy_kwh: 0.25,
            components: vec![("CPU package 0".into(), 31.0)],
        };
        state.measured(figures, 500.0);
        let text = shown(&state, 90, 26);
        for part in [
            "measuring the evaluation data",
            "31 W",
            "0.75 gCO2e",
            "250 Wh of about 250 Wh",
        ] {
            assert!(text.contains(part), "{part}:\n{text}");
        }
        assert!(
            text.contains("2 min 30 s"),
            "the time left is that of the steps:\n{text}"
        );
    }

    #[test]
    fn a_budget_has_a_bar_and_decides_what_is_left() {
        let mut state = state();
        state.budget = Some(Budgeted {
            used: 0.5,
            words: "0.8 of 1.6 min (50.0 %)".to_owned(),
        });
        let text = shown(&state, 90, 26);
        assert!(
            text.contains("budget") && text.contains("0.8 of 1.6 min"),
            "{text}"
        );
        // Half of the budget took 50 s.
        assert!(text.contains("50 s"), "{text}");
    }

    #[test]
    fn no_size_and_no_state_is_too_small() {
        for (width, height) in [(1, 1), (5, 2), (20, 6), (40, 10), (79, 23), (250, 80)] {
            shown(&state(), width, height);
            shown(&State::default(), width, height);
        }
        let text = shown(&state(), 40, 8);
        assert!(text.contains("100 of 400"), "{text}");
        let mut state = state();
        state.stepped(101, f64::NAN, f64::INFINITY, 1.0);
        state.evaluated(101, f64::NAN, false);
        shown(&state, 80, 24);
    }

    #[test]
    fn a_long_curve_keeps_its_ends_and_its_mean() {
        let mut curve = Curve::default();
        for x in 0..100_000 {
            curve.push(f64::from(x), f64::from(x % 2));
        }
        assert!(curve.points.len() < POINTS && curve.points.len() >= POINTS / 4);
        assert!(curve.points[0].0 < 1000.0 && curve.points.last().unwrap().0 > 99_000.0);
        assert!(curve.points.iter().all(|(_, y)| (y - 0.5).abs() < 0.01));
    }
}
