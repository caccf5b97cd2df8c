//! Models, adapters and data sets by their names on the Hub, for every command that opens them.
//!
//! A name is taken for one on the Hub only where nothing here can be meant: there is no such file or
//! folder, and not even a folder with the owner's name, so that a mistyped path never leaves the machine.
//! `hub:owner/name` always means the Hub.

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use sparsam_hub::{
    Fetched, Kind, Need, Observer, Plan, Repo, Server, Settings, Split, fetch, is_name,
};

use crate::figures::bytes;
use crate::interrupt;

/// Marks a name that means the Hub whatever lies here.
pub(crate) const PREFIX: &str = "hub:";

/// The branch that is meant where none is named.
pub(crate) const MAIN: &str = "main";

/// Between two plain lines of progress.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// What of the Hub a run was made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Source {
    /// The commit, 40 digits.
    pub(crate) commit: String,
    /// The licence its card names.
    pub(crate) license: Option<String>,
}

/// The name on the Hub that a text means, if it means one.
pub(crate) fn hub_name(text: &str) -> Option<&str> {
    if let Some(name) = text.strip_prefix(PREFIX) {
        return Some(name);
    }
    let (owner, _) = text.split_once('/')?;
    let here = |path: &str| Path::new(path).symlink_metadata().is_ok();
    (is_name(text) && !here(text) && !here(owner)).then_some(text)
}

/// A name without the mark.
pub(crate) fn plain(name: &str) -> &str {
    name.strip_prefix(PREFIX).unwrap_or(name)
}

/// The same for a path of a recipe or an argument.
pub(crate) fn hub_path(path: &Path) -> Option<&str> {
    hub_name(path.to_str()?)
}

/// A model or an adapter of the Hub, as a folder here.
///
/// # Errors
/// Whatever keeps it from being fetched.
pub(crate) fn model(
    name: &str,
    revision: Option<&str>,
    need: &Need,
    quiet: bool,
) -> anyhow::Result<Fetched> {
    fetched(&Repo::new(Kind::Model, name)?, revision, need, quiet)
}

fn fetched(
    repo: &Repo,
    revision: Option<&str>,
    need: &Need,
    quiet: bool,
) -> anyhow::Result<Fetched> {
    let settings = Settings::from_environment()?;
    let revision = revision.unwrap_or(MAIN);
    let mut screen = Screen::new(repo.id(), quiet);
    let say = |text: &str| note(text, quiet);
    let server = Server::new(&settings, &say);
    let fetched = fetch(&server, &settings, repo, revision, need, &mut screen);
    screen.end();
    Ok(fetched?)
}

/// The folder of an adapter: the one named, or one of the Hub.
///
/// # Errors
/// Whatever keeps it from being fetched.
pub(crate) fn adapter(path: &Path, quiet: bool) -> anyhow::Result<PathBuf> {
    match hub_path(path) {
        Some(name) => Ok(model(name, None, &Need::Adapter, quiet)?.folder),
        None => Ok(path.to_owned()),
    }
}

/// A split of a data set of the Hub, as its files here in the order of their names.
///
/// # Errors
/// Whatever keeps it from being fetched.
pub(crate) fn data(
    name: &str,
    revision: Option<&str>,
    split: Split,
    quiet: bool,
) -> anyhow::Result<(Fetched, Vec<PathBuf>)> {
    let repo = Repo::new(Kind::Dataset, name)?;
    let fetched = fetched(&repo, revision, &Need::Data(split), quiet)?;
    let files = fetched.files.iter().filter(|path| *path != "README.md");
    let files = files.map(|path| fetched.folder.join(path)).collect();
    Ok((fetched, files))
}

/// News that cannot be told is no reason to stop.
fn note(text: &str, quiet: bool) {
    if !quiet {
        let _ = writeln!(io::stderr(), "{text}");
    }
}

/// How a download looks: a bar on a terminal, a line now and then elsewhere, nothing with `--quiet`.
struct Screen<'a> {
    name: &'a str,
    quiet: bool,
    total: u64,
    bar: Option<ProgressBar>,
    last: Instant,
}

impl<'a> Screen<'a> {
    fn new(name: &'a str, quiet: bool) -> Self {
        Self {
            name,
            quiet,
            total: 0,
            bar: None,
            last: Instant::now(),
        }
    }

    fn end(self) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
    }
}

impl Observer for Screen<'_> {
    fn begin(&mut self, plan: Plan) {
        let files = if plan.files == 1 { "file" } else { "files" };
        let (name, count, size) = (self.name, plan.files, bytes(plan.bytes));
        self.say(&format!("fetching {count} {files} of `{name}`, {size}"));
        self.total = plan.bytes;
        if !self.quiet && io::stderr().is_terminal() {
            let target = ProgressDrawTarget::stderr();
            let bar = ProgressBar::with_draw_target(Some(plan.bytes), target);
            let style = "{bar:16} {bytes}/{total_bytes}  {bytes_per_sec}, {eta} left";
            if let Ok(style) = ProgressStyle::with_template(style) {
                bar.set_style(style.progress_chars("━╸─"));
            }
            self.bar = Some(bar);
        }
    }

    fn at(&mut self, done: u64) -> bool {
        if let Some(bar) = &self.bar {
            bar.set_position(done);
        } else if self.last.elapsed() >= LINE_EVERY {
            self.last = Instant::now();
            note(
                &format!("{} of {}", bytes(done), bytes(self.total)),
                self.quiet,
            );
        }
        !interrupt::requested()
    }

    fn say(&mut self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| note(text, self.quiet)),
            None => note(text, self.quiet),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_lie_here_never_means_the_hub() {
        // The tests run in the crate's folder, which has `src`.
        assert_eq!(hub_name("org/name"), Some("org/name"));
        assert_eq!(hub_name("hub:src/name"), Some("src/name"));
        for local in [
            "src/main.rs",
            "src/mistyped",
            "name",
            "./org/name",
            "org/sub/name",
            "/org/name",
        ] {
            assert_eq!(hub_name(local), None, "{local}");
        }
    }
}
