//! Folders written so that one which has its name is whole: beside, then renamed.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// A folder on its way; what was written is removed again unless [`commit`](Self::commit) is reached.
#[derive(Debug)]
pub struct Staged {
    target: PathBuf,
    partial: PathBuf,
}

impl Staged {
    /// Begins a folder that will be `target`, which does not exist yet or is empty.
    ///
    /// # Errors
    /// A target that holds something already, or a folder that cannot be made.
    pub fn begin(target: &Path) -> Result<Self> {
        let occupied = match fs::read_dir(target) {
            Ok(mut entries) => entries.next().is_some(),
            Err(error) => error.kind() == std::io::ErrorKind::NotADirectory,
        };
        let Some(name) = target.file_name().filter(|_| !occupied) else {
            return Err(Error::Occupied {
                path: target.to_owned(),
            });
        };
        let mut partial = std::ffi::OsString::from(".");
        partial.push(name);
        partial.push(".partial");
        let staged = Self {
            target: target.to_owned(),
            partial: target.with_file_name(partial),
        };
        // What an attempt that was killed has left would be taken for this one's.
        if staged.partial.exists() {
            fs::remove_dir_all(&staged.partial).map_err(Error::write(&staged.partial))?;
        }
        fs::create_dir_all(&staged.partial).map_err(Error::write(target))?;
        Ok(staged)
    }

    /// Where files are to be written.
    pub fn path(&self) -> &Path {
        &self.partial
    }

    /// Writes a file.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.partial.join(name);
        fs::write(&path, bytes).map_err(Error::write(&path))
    }

    /// Gives the folder its name.
    ///
    /// # Errors
    /// A folder that cannot be renamed.
    pub fn commit(self) -> Result<()> {
        if self.target.exists() {
            fs::remove_dir(&self.target).map_err(Error::write(&self.target))?;
        }
        fs::rename(&self.partial, &self.target).map_err(Error::write(&self.target))
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        // Gone after a commit; else the first error says more than one about its leftovers.
        let _ = fs::remove_dir_all(&self.partial);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_appears_whole_or_not_at_all() {
        let parent = tempfile::tempdir().expect("a folder");
        let target = parent.path().join("model");
        let staged = Staged::begin(&target).expect("begun");
        staged.write("a", b"1").expect("written");
        assert!(!target.exists());
        drop(staged);
        assert_eq!(fs::read_dir(parent.path()).expect("read").count(), 0);

        let staged = Staged::begin(&target).expect("begun");
        staged.write("a", b"1").expect("written");
        staged.commit().expect("committed");
        assert_eq!(fs::read(target.join("a")).expect("read"), b"1");
        assert_eq!(fs::read_dir(parent.path()).expect("read").count(), 1);
        assert!(matches!(
            Staged::begin(&target),
            Err(Error::Occupied { .. })
        ));
    }
}
