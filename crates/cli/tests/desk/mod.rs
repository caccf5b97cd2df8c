//! A folder in which the program is run, as the tests of its commands share it.
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

/// A folder that is gone after the test.
pub(crate) struct Desk {
    folder: tempfile::TempDir,
}

/// What a command left.
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Desk {
    pub(crate) fn empty() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a file, and the folders above it.
    pub(crate) fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }

    pub(crate) fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    pub(crate) fn json(&self, name: &str) -> Value {
        serde_json::from_str(&self.read(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// The names in a folder, in order.
    pub(crate) fn names(&self, folder: &str) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(self.path(folder))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// The program, which finds nothing of this machine's settings.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sparsam"));
        command.args(arguments).current_dir(self.folder.path());
        for name in ["COUNTRY", "SYSFS", "PROCFS", "NVML"] {
            command.env_remove(format!("SPARSAM_{name}"));
        }
        command
            .env("SPARSAM_CACHE", self.path("cache"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Ran {
        finished(self.command(arguments).output().unwrap())
    }

    /// Fails unless the command ends with this exit code.
    #[track_caller]
    pub(crate) fn ends(&self, arguments: &[&str], code: i32) -> Ran {
        let ran = self.run(arguments);
        assert_eq!(ran.code, Some(code), "{arguments:?}: {}", ran.err);
        ran
    }

    /// What a successful command put out.
    #[track_caller]
    pub(crate) fn done(&self, arguments: &[&str]) -> Ran {
        self.ends(arguments, 0)
    }

    /// Fails unless the command is refused with this exit code, in one line with these words, and a hint.
    #[track_caller]
    pub(crate) fn refused(&self, arguments: &[&str], code: i32, words: &[&str]) {
        let ran = self.ends(arguments, code);
        let lines: Vec<&str> = ran.err.lines().collect();
        assert_eq!(lines.len(), 2, "{}", ran.err);
        assert!(lines[0].starts_with("error: "), "{}", ran.err);
        assert!(lines[1].starts_with("hint: "), "{}", ran.err);
        for word in words {
            assert!(lines[0].contains(word), "`{word}` is not in: {}", ran.err);
        }
        assert!(!ran.err.contains("os error"), "{}", ran.err);
    }
}

pub(crate) fn finished(output: Output) -> Ran {
    Ran {
        code: output.status.code(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}
