//! One file from the Hub into the cache: continued where it stopped, checked before it has a name.
//!
//! Bytes go to `HASH.incomplete`. Only when there are as many as the Hub says, and they hash to what it
//! says, is the file renamed to `HASH`; one that does not is removed. So whatever has a name is whole.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;

use crate::cache::{RepoCache, create_parent};
use crate::digest::{Hash, Hasher};
use crate::error::HubError;
use crate::http::io_reason;
use crate::hub::{Hub, RemoteFile};
use crate::name::Repo;
use crate::settings::Settings;

/// Bytes read at once.
const PIECE: usize = 256 << 10;

/// A file with everything that must be known before it is fetched.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    pub(crate) file: RemoteFile,
    pub(crate) hash: Hash,
    pub(crate) size: u64,
}

/// Where a file comes from and where it goes.
pub(crate) struct Download<'a> {
    pub(crate) hub: &'a dyn Hub,
    pub(crate) settings: &'a Settings,
    pub(crate) cache: &'a RepoCache,
    pub(crate) repo: &'a Repo,
    pub(crate) commit: &'a str,
}

/// A part of a file with its hash so far.
struct Part {
    file: File,
    hasher: Hasher,
    have: u64,
}

impl Download<'_> {
    /// Whether the blob is in the cache.
    pub(crate) fn is_here(&self, wanted: &Wanted) -> bool {
        fs::metadata(self.cache.blob(&wanted.hash))
            .is_ok_and(|blob| blob.is_file() && blob.len() == wanted.size)
    }

    /// Fetches the blob if it is not in the cache, and says how many bytes came. `at` hears how many
    /// bytes of it are here, and says whether to go on.
    pub(crate) fn fetch(
        &self,
        wanted: &Wanted,
        at: &mut dyn FnMut(u64) -> bool,
    ) -> Result<u64, HubError> {
        if self.is_here(wanted) {
            at(wanted.size);
            return Ok(0);
        }
        let _lock = self.cache.lock(&wanted.hash)?;
        if self.is_here(wanted) {
            at(wanted.size);
            return Ok(0);
        }
        let path = self.cache.incomplete(&wanted.hash);
        create_parent(&path)?;
        let mut part = Part::open(&path, wanted)?;
        // What an earlier process left may be damaged; what this one fetched is the server's word.
        let mut inherited = part.have > 0;
        let mut came = 0;
        loop {
            at(part.have);
            came += self.fill(&mut part, &path, wanted, at, &mut inherited)?;
            let found = part.hasher.finish();
            if found == wanted.hash.digits() {
                let finished = part.file;
                finished.sync_all().map_err(HubError::io("write", &path))?;
                let blob = self.cache.blob(&wanted.hash);
                fs::rename(&path, &blob).map_err(HubError::io("write", &blob))?;
                return Ok(came);
            }
            fs::remove_file(&path).map_err(HubError::io("remove", &path))?;
            if !inherited {
                return Err(HubError::Checksum {
                    file: wanted.file.path.clone(),
                    expected: wanted.hash.digits().to_owned(),
                    found,
                });
            }
            part = Part::open(&path, wanted)?;
            inherited = false;
        }
    }

    /// Fetches until the part has its full length, beginning again where it stopped for as long as
    /// something comes.
    fn fill(
        &self,
        part: &mut Part,
        path: &Path,
        wanted: &Wanted,
        at: &mut dyn FnMut(u64) -> bool,
        inherited: &mut bool,
    ) -> Result<u64, HubError> {
        let mut came = 0;
        let mut in_vain = 0;
        // A file of no bytes need not be asked for.
        while part.have < wanted.size {
            let before = part.have;
            let stream = self
                .hub
                .open(self.repo, self.commit, &wanted.file, part.have);
            let mut stream = match stream {
                Ok(stream) => stream,
                Err(error) => {
                    if matches!(error, HubError::Changed { .. }) {
                        fs::remove_file(path).map_err(HubError::io("remove", path))?;
                    }
                    return Err(error);
                }
            };
            if stream.from != part.have {
                // It does not know ranges: from the start.
                part.restart(path, wanted)?;
                *inherited = false;
            }
            let outcome = part.take(path, wanted, &mut stream.body, at);
            let gained = part.have.saturating_sub(before.min(part.have));
            came += gained;
            let reason = match outcome {
                Ok(()) if part.have >= wanted.size => break,
                Ok(()) => "the connection was cut".to_owned(),
                Err(Cut::Network(error)) => io_reason(&error, self.settings.patience),
                Err(Cut::Here(error)) => return Err(error),
            };
            in_vain = if gained > 0 { 0 } else { in_vain + 1 };
            if in_vain >= self.settings.attempts {
                return Err(HubError::Stalled {
                    file: wanted.file.path.clone(),
                    have: part.have,
                    size: wanted.size,
                    reason,
                });
            }
            std::thread::sleep(self.settings.pause * 2u32.pow(in_vain.min(6)) / 2);
        }
        Ok(came)
    }
}

/// Why a stream ended before its end.
enum Cut {
    Network(io::Error),
    Here(HubError),
}

impl Part {
    /// Opens what is there of a file; what is longer than the whole file is begun anew.
    fn open(path: &Path, wanted: &Wanted) -> Result<Self, HubError> {
        let mut file = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(path)
            .map_err(HubError::io("write", path))?;
        let length = file.metadata().map_err(HubError::io("read", path))?.len();
        if length > wanted.size {
            file.set_len(0).map_err(HubError::io("write", path))?;
        }
        let mut hasher = Hasher::new(&wanted.hash, wanted.size);
        let mut piece = vec![0u8; PIECE];
        let mut have = 0;
        loop {
            let count = file.read(&mut piece).map_err(HubError::io("read", path))?;
            if count == 0 {
                return Ok(Self { file, hasher, have });
            }
            hasher.update(&piece[..count]);
            have += count as u64;
        }
    }

    /// Takes what comes, up to the length of the whole file.
    fn take(
        &mut self,
        path: &Path,
        wanted: &Wanted,
        body: &mut dyn Read,
        at: &mut dyn FnMut(u64) -> bool,
    ) -> Result<(), Cut> {
        let mut piece = vec![0u8; PIECE];
        while self.have < wanted.size {
            let room = usize::try_from(wanted.size - self.have).unwrap_or(PIECE);
            let count = match body.read(&mut piece[..PIECE.min(room)]) {
                Ok(0) => return Ok(()),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(Cut::Network(error)),
            };
            self.file
                .write_all(&piece[..count])
                .map_err(|error| Cut::Here(HubError::io("write", path)(error)))?;
            self.hasher.update(&piece[..count]);
            self.have += count as u64;
            if !at(self.have) {
                return Err(Cut::Here(HubError::Interrupted));
            }
        }
        Ok(())
    }

    fn restart(&mut self, path: &Path, wanted: &Wanted) -> Result<(), HubError> {
        self.file.set_len(0).map_err(HubError::io("write", path))?;
        *self = Self::open(path, wanted)?;
        Ok(())
    }
}
