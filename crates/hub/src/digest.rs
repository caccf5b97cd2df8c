//! The checksums the Hub names its files by: SHA-256 of large files, git's SHA-1 of small ones.

use ring::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY, SHA256, digest};

use crate::name::is_hexadecimal;

/// What a file should hash to, in hexadecimal; also the name of its blob in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hash {
    /// SHA-256 of its bytes: a file kept in LFS or Xet.
    Sha256(String),
    /// SHA-1 of git's header and its bytes: a file kept in git itself.
    Git(String),
}

impl Hash {
    /// A hash by its length: 64 digits or 40.
    pub fn parse(text: &str) -> Option<Self> {
        if is_hexadecimal(text, 64) {
            return Some(Self::Sha256(text.to_owned()));
        }
        is_hexadecimal(text, 40).then(|| Self::Git(text.to_owned()))
    }

    /// Of a file in git.
    pub fn git(bytes: &[u8]) -> Self {
        let mut hasher = Hasher::new(&Self::Git(String::new()), bytes.len() as u64);
        hasher.update(bytes);
        Self::Git(hasher.finish())
    }

    /// Of a file in LFS.
    pub fn sha256(bytes: &[u8]) -> Self {
        Self::Sha256(hexadecimal(digest(&SHA256, bytes).as_ref()))
    }

    /// The digits.
    pub fn digits(&self) -> &str {
        match self {
            Self::Sha256(digits) | Self::Git(digits) => digits,
        }
    }
}

/// A hash that grows.
pub(crate) struct Hasher(Context);

impl Hasher {
    /// Of the kind of `expected`, for a file of `size` bytes.
    pub(crate) fn new(expected: &Hash, size: u64) -> Self {
        match expected {
            Hash::Sha256(_) => Self(Context::new(&SHA256)),
            Hash::Git(_) => {
                let mut context = Context::new(&SHA1_FOR_LEGACY_USE_ONLY);
                context.update(format!("blob {size}\0").as_bytes());
                Self(context)
            }
        }
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub(crate) fn finish(self) -> String {
        hexadecimal(self.0.finish().as_ref())
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |value: u8| char::from(DIGITS[usize::from(value)]);
    bytes
        .iter()
        .flat_map(|byte| [digit(byte >> 4), digit(byte & 15)])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_those_of_git_and_sha256sum() {
        // `printf 'hello\n' | git hash-object --stdin` and `| sha256sum`.
        assert_eq!(
            Hash::git(b"hello\n").digits(),
            "ce013625030ba8dba906f756967f9e9ca394464a"
        );
        assert_eq!(
            Hash::sha256(b"hello\n").digits(),
            "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03"
        );
        assert_eq!(Hash::parse("main"), None);
    }
}
