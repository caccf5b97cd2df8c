//! Where the Hub is, where its files lie here, who asks: from the environment variables that Python's
//! `huggingface_hub` reads, with the same meaning.
//!
//! | variable | meaning |
//! |---|---|
//! | `HF_ENDPOINT` | address of the Hub, `https://huggingface.co` by default |
//! | `HF_HOME` | folder of everything, `~/.cache/huggingface` by default |
//! | `HF_HUB_CACHE` | folder of the cache, `$HF_HOME/hub` by default |
//! | `HF_TOKEN`, `HF_TOKEN_PATH` | the token, or the file it is in (`$HF_HOME/token`) |
//! | `HF_HUB_DISABLE_IMPLICIT_TOKEN` | send no token when reading |
//! | `HF_HUB_OFFLINE`, `TRANSFORMERS_OFFLINE` | ask nothing of any server |
//! | `HF_HUB_DOWNLOAD_TIMEOUT` | seconds without a byte after which a transfer has stalled, 10 by default |

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::HubError;

/// A token. It is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// A token as the Hub gave it out.
    ///
    /// # Errors
    /// Characters that cannot stand in a header.
    pub fn new(text: &str) -> Result<Self, HubError> {
        let text = text.trim();
        if text.is_empty() || !text.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(HubError::TokenForm);
        }
        Ok(Self(text.to_owned()))
    }

    pub(crate) fn header(&self) -> String {
        format!("Bearer {}", self.0)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// Where the Hub is, where its files lie here, who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Address of the Hub, without a slash at its end.
    pub endpoint: String,
    /// The cache: a folder with one folder for each repository.
    pub cache: PathBuf,
    /// The token, where there is one.
    pub token: Option<Token>,
    /// Whether the token is sent when reading.
    pub token_when_reading: bool,
    /// Whether no server may be asked.
    pub offline: bool,
    /// How long nothing may come before a transfer has stalled.
    pub patience: Duration,
    /// The pause before the second attempt; it doubles with each one.
    pub pause: Duration,
    /// Attempts in a row that bring nothing before the transfer is given up.
    pub attempts: u32,
}

impl Settings {
    /// From this process's environment.
    ///
    /// # Errors
    /// A variable that cannot be meant.
    pub fn from_environment() -> Result<Self, HubError> {
        Self::read(&|name| std::env::var_os(name))
    }

    /// From an environment.
    ///
    /// # Errors
    /// A variable that cannot be meant.
    pub fn read(variable: &dyn Fn(&str) -> Option<OsString>) -> Result<Self, HubError> {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        let text = |name: &str| -> Result<Option<String>, HubError> {
            let Some(value) = set(name) else {
                return Ok(None);
            };
            let value = value.into_string().map_err(|_| HubError::Variable {
                name: name.to_owned(),
                what: "is not UTF-8".to_owned(),
            })?;
            Ok(Some(value.trim().to_owned()).filter(|value| !value.is_empty()))
        };
        let yes = |name: &str| -> Result<bool, HubError> {
            let value = text(name)?.unwrap_or_default().to_ascii_uppercase();
            Ok(["1", "ON", "YES", "TRUE"].contains(&value.as_str()))
        };
        let folder = |name: &str| set(name).map(|value| at_home(Path::new(&value), variable));
        let endpoint = text("HF_ENDPOINT")?
            .unwrap_or_else(|| "https://huggingface.co".to_owned())
            .trim_end_matches('/')
            .to_owned();
        if !endpoint.starts_with("https://") && !endpoint.starts_with("http://") {
            return Err(HubError::Variable {
                name: "HF_ENDPOINT".to_owned(),
                what: format!("is `{endpoint}`, which is no address of a web server"),
            });
        }
        let home = || {
            let base = set("XDG_CACHE_HOME").map(PathBuf::from).or_else(|| {
                let home = set("HOME").or_else(|| set("USERPROFILE"))?;
                Some(PathBuf::from(home).join(".cache"))
            });
            base.map(|base| base.join("huggingface"))
        };
        let home = folder("HF_HOME").or_else(home);
        let cache = folder("HF_HUB_CACHE")
            .or_else(|| folder("HUGGINGFACE_HUB_CACHE"))
            .or_else(|| Some(home.as_ref()?.join("hub")))
            .ok_or_else(|| HubError::Variable {
                name: "HF_HOME".to_owned(),
                what: "is not set, and there is no home folder to fall back on".to_owned(),
            })?;
        let token_file = || {
            let file = folder("HF_TOKEN_PATH").or_else(|| Some(home.as_ref()?.join("token")))?;
            std::fs::read_to_string(file).ok()
        };
        let token = text("HF_TOKEN")?
            .or(text("HUGGING_FACE_HUB_TOKEN")?)
            .or_else(token_file)
            .filter(|token| !token.trim().is_empty())
            .map(|token| Token::new(&token))
            .transpose()?;
        let patience = match text("HF_HUB_DOWNLOAD_TIMEOUT")? {
            None => 10.0,
            Some(value) => value
                .parse::<f64>()
                .ok()
                .filter(|seconds| (0.01..=86_400.0).contains(seconds))
                .ok_or_else(|| HubError::Variable {
                    name: "HF_HUB_DOWNLOAD_TIMEOUT".to_owned(),
                    what: format!("is `{value}`, which is no number of seconds"),
                })?,
        };
        Ok(Self {
            endpoint,
            cache,
            token,
            token_when_reading: !yes("HF_HUB_DISABLE_IMPLICIT_TOKEN")?,
            offline: yes("HF_HUB_OFFLINE")? || yes("TRANSFORMERS_OFFLINE")?,
            patience: Duration::from_secs_f64(patience),
            pause: Duration::from_millis(500),
            attempts: 5,
        })
    }
}

/// A path that may begin with `~`.
fn at_home(path: &Path, variable: &dyn Fn(&str) -> Option<OsString>) -> PathBuf {
    match (path.strip_prefix("~"), variable("HOME")) {
        (Ok(rest), Some(home)) => PathBuf::from(home).join(rest),
        _ => path.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Settings, HubError> {
        Settings::read(&|name| {
            let found = variables.iter().find(|(key, _)| *key == name)?;
            Some(OsString::from(found.1))
        })
    }

    #[test]
    fn variables_mean_what_they_mean_to_python() {
        let plain = read(&[("HOME", "/home/ada")]).unwrap();
        assert_eq!(plain.endpoint, "https://huggingface.co");
        assert_eq!(plain.cache, Path::new("/home/ada/.cache/huggingface/hub"));
        assert!(!plain.offline && plain.token.is_none() && plain.token_when_reading);

        let settings = read(&[
            ("HOME", "/home/ada"),
            ("HF_HOME", "~/hf"),
            ("HF_ENDPOINT", "http://127.0.0.1:9/"),
            ("HF_TOKEN", " hf_secret\n"),
            ("HF_HUB_OFFLINE", "yes"),
            ("HF_HUB_DOWNLOAD_TIMEOUT", "2.5"),
        ])
        .unwrap();
        assert_eq!(settings.endpoint, "http://127.0.0.1:9");
        assert_eq!(settings.cache, Path::new("/home/ada/hf/hub"));
        assert_eq!(settings.token, Some(Token("hf_secret".to_owned())));
        assert!(settings.offline);
        assert_eq!(settings.patience, Duration::from_millis(2500));
        assert!(!format!("{settings:?}").contains("secret"));

        let cache = read(&[
            ("HF_HUB_CACHE", "/c"),
            ("HF_HOME", "/h"),
            ("HF_HUB_OFFLINE", "0"),
        ]);
        let cache = cache.unwrap();
        assert_eq!((cache.cache, cache.offline), (PathBuf::from("/c"), false));
    }

    #[test]
    fn variables_that_cannot_be_meant_are_refused() {
        let home = ("HOME", "/h");
        for (name, value) in [
            ("HF_ENDPOINT", "huggingface.co"),
            ("HF_HUB_DOWNLOAD_TIMEOUT", "soon"),
            ("HF_TOKEN", "two words"),
        ] {
            let error = read(&[home, (name, value)]).unwrap_err();
            assert!(error.to_string().contains(name), "{error}");
            assert!(!error.to_string().contains("two words"), "{error}");
        }
        assert!(read(&[]).is_err());
    }

    #[test]
    fn a_token_is_read_from_the_file_python_leaves() {
        let home = tempfile::tempdir().unwrap();
        std::fs::write(home.path().join("token"), "hf_file\n").unwrap();
        let settings = read(&[("HF_HOME", home.path().to_str().unwrap())]).unwrap();
        assert_eq!(settings.token, Some(Token("hf_file".to_owned())));
    }
}
