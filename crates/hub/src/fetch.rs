//! A repository at a revision, as a folder: out of the cache where it is whole there, or else from the Hub.

use std::fs;
use std::path::PathBuf;

use crate::cache::RepoCache;
use crate::download::{Download, Wanted};
use crate::error::HubError;
use crate::hub::{Hub, Listing};
use crate::name::{Repo, check_revision, is_commit};
use crate::select::{CARD, Lack, Need, select};
use crate::settings::Settings;

/// What is about to be fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// Files that are not in the cache.
    pub files: usize,
    /// Bytes of them.
    pub bytes: u64,
}

/// Who watches. All of it happens on the thread that fetches.
pub trait Observer {
    /// Begins to fetch; not called where everything is in the cache.
    fn begin(&mut self, plan: Plan);
    /// So many of the plan's bytes are here. Says whether to go on.
    fn at(&mut self, bytes: u64) -> bool;
    /// Something the user should know.
    fn say(&mut self, text: &str);
}

/// A repository that is here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// The folder of the snapshot.
    pub folder: PathBuf,
    /// The commit it is.
    pub commit: String,
    /// Its files that were asked for.
    pub files: Vec<String>,
    /// The licence its card names.
    pub license: Option<String>,
    /// Bytes that came over the network.
    pub came: u64,
}

impl From<Lack> for Problem {
    fn from(lack: Lack) -> Self {
        Self::Lack(lack)
    }
}

impl From<HubError> for Problem {
    fn from(error: HubError) -> Self {
        Self::Hub(error)
    }
}

/// Why files cannot be chosen.
enum Problem {
    Lack(Lack),
    Hub(HubError),
}

impl Problem {
    fn of(self, repo: &Repo) -> HubError {
        match self {
            Self::Hub(error) => error,
            Self::Lack(Lack { what, hint }) => HubError::Unsuitable {
                repo: repo.id().to_owned(),
                what,
                hint,
            },
        }
    }
}

/// Brings what is needed of a repository into the cache and says where it is.
///
/// A commit that is whole in the cache is not asked for again, and no branch is where
/// [`Settings::offline`] is set. Where the Hub does not answer, what a branch was when it last did serves
/// instead, and the observer is told.
///
/// # Errors
/// Everything [`HubError`] has; whatever came so far stays for the next time, and nothing that is not
/// whole has a name.
pub fn fetch(
    hub: &dyn Hub,
    settings: &Settings,
    repo: &Repo,
    revision: &str,
    need: &Need,
    observer: &mut dyn Observer,
) -> Result<Fetched, HubError> {
    check_revision(revision)?;
    let cache = RepoCache::new(&settings.cache, repo);
    let job = Job {
        hub,
        settings,
        cache: &cache,
        repo,
        need,
    };
    if settings.offline || is_commit(revision) {
        match job.cached(revision) {
            Some(fetched) => return Ok(fetched),
            None if settings.offline => {
                return Err(HubError::Offline {
                    repo: repo.id().to_owned(),
                    revision: revision.to_owned(),
                    cache: settings.cache.clone(),
                });
            }
            None => {}
        }
    }
    let mut again = false;
    loop {
        let listing = match hub.listing(repo, revision) {
            Ok(listing) => listing,
            Err(error) if error.is_no_answer() => {
                let Some(fetched) = job.cached(revision) else {
                    return Err(error);
                };
                observer.say(&format!(
                    "{error}; using `{repo}` as it was fetched before, commit {}",
                    &fetched.commit[..12]
                ));
                return Ok(fetched);
            }
            Err(error) => return Err(error),
        };
        match job.fetch(&listing, observer) {
            // A branch that moved while it was fetched: once more, as it is now.
            Err(HubError::Changed { .. }) if !again => again = true,
            Ok(fetched) => {
                cache.remember(revision, &listing.commit)?;
                return Ok(fetched);
            }
            Err(error) => return Err(error),
        }
    }
}

struct Job<'a> {
    hub: &'a dyn Hub,
    settings: &'a Settings,
    cache: &'a RepoCache,
    repo: &'a Repo,
    need: &'a Need,
}

impl Job<'_> {
    fn fetch(&self, listing: &Listing, observer: &mut dyn Observer) -> Result<Fetched, HubError> {
        let download = Download {
            hub: self.hub,
            settings: self.settings,
            cache: self.cache,
            repo: self.repo,
            commit: &listing.commit,
        };
        let mut came = 0;
        let names: Vec<String> = listing.files.iter().map(|file| file.path.clone()).collect();
        let files = select(&names, self.need, |path| {
            let wanted = self.wanted(listing, path)?;
            came += download.fetch(&wanted, &mut |_| true)?;
            let blob = self.cache.blob(&wanted.hash);
            let bytes = fs::read(&blob).map_err(HubError::io("read", &blob))?;
            Ok::<_, Problem>(bytes)
        })
        .map_err(|problem| problem.of(self.repo))?;
        let mut wanted = Vec::with_capacity(files.len());
        for path in &files {
            wanted.push(self.wanted(listing, path)?);
        }
        let missing: Vec<&Wanted> = wanted
            .iter()
            .filter(|wanted| !download.is_here(wanted))
            .collect();
        if !missing.is_empty() {
            observer.begin(Plan {
                files: missing.len(),
                bytes: missing.iter().map(|wanted| wanted.size).sum(),
            });
        }
        let mut done = 0;
        for wanted in missing {
            came += download.fetch(wanted, &mut |bytes| observer.at(done + bytes))?;
            done += wanted.size;
        }
        for wanted in &wanted {
            self.cache
                .point(&listing.commit, &wanted.file.path, &wanted.hash)?;
        }
        Ok(Fetched {
            folder: self.cache.snapshot(&listing.commit),
            commit: listing.commit.clone(),
            license: listing
                .license
                .clone()
                .or_else(|| self.license_on_card(&listing.commit)),
            files,
            came,
        })
    }

    /// A listed file with its size and hash, which are asked for where the listing leaves them out.
    fn wanted(&self, listing: &Listing, path: &str) -> Result<Wanted, HubError> {
        let listed = listing.files.iter().find(|file| file.path == path);
        let file = match listed {
            Some(file) if file.size.is_some() && file.hash.is_some() => file.clone(),
            _ => self.hub.details(self.repo, &listing.commit, path)?,
        };
        match (file.size, file.hash.clone()) {
            (Some(size), Some(hash)) => Ok(Wanted { file, hash, size }),
            _ => Err(HubError::Answer {
                endpoint: self.settings.endpoint.clone(),
                what: format!("it says neither how long `{path}` is nor what it hashes to"),
            }),
        }
    }

    /// What the cache holds of a revision, if it is whole.
    fn cached(&self, revision: &str) -> Option<Fetched> {
        let commit = self.cache.commit_of(revision)?;
        let there = self.cache.files(&commit);
        let folder = self.cache.snapshot(&commit);
        let read = |path: &str| fs::read(folder.join(path)).map_err(HubError::io("read", path));
        let files = select(&there, self.need, |path| Ok::<_, Problem>(read(path)?)).ok()?;
        Some(Fetched {
            license: self.license_on_card(&commit),
            folder,
            commit,
            files,
            came: 0,
        })
    }

    /// The licence that the card in the cache names, read line by line: the value of `license` and, where
    /// that is `other`, of `license_name`.
    fn license_on_card(&self, commit: &str) -> Option<String> {
        let card = fs::read_to_string(self.cache.snapshot(commit).join(CARD)).ok()?;
        let mut lines = card.trim_start_matches('\u{feff}').lines();
        lines.next().filter(|line| line.trim_end() == "---")?;
        let front: Vec<&str> = lines.take_while(|line| line.trim_end() != "---").collect();
        let value = |key: &str| {
            let line = front
                .iter()
                .find_map(|line| line.strip_prefix(key)?.trim_start().strip_prefix(':'))?;
            let value = line.split(" #").next()?.trim();
            let value = value.trim_matches(['"', '\'']);
            (!value.is_empty() && !value.starts_with(['[', '|', '>', '&']))
                .then(|| value.to_owned())
        };
        match value("license")? {
            license if license == "other" => value("license_name").or(Some(license)),
            license => Some(license),
        }
    }
}
