//! The Hub of the tests as a program, for `just interop-hub`.
//!
//!     cargo run -p sparsam-hub --example loopback -- models/org/name=FOLDER …
//!
//! Prints its address and serves the files of the folders until its standard input ends.

use std::io::{Read, Write};
use std::path::Path;

#[path = "../tests/loopback/mod.rs"]
mod loopback;

use loopback::Loopback;

fn main() -> std::io::Result<()> {
    let server = Loopback::start();
    for argument in std::env::args().skip(1) {
        let Some((repository, folder)) = argument.split_once('=') else {
            let what = format!("`{argument}` is not REPOSITORY=FOLDER");
            return Err(std::io::Error::other(what));
        };
        let files = files(Path::new(folder))?;
        let files: Vec<(&str, &[u8])> = files
            .iter()
            .map(|(name, bytes)| (name.as_str(), bytes.as_slice()))
            .collect();
        server.put(repository, &files);
    }
    writeln!(std::io::stdout(), "{}", server.endpoint)?;
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

fn files(folder: &Path) -> std::io::Result<Vec<(String, Vec<u8>)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            let name = entry.file_name().to_string_lossy().into_owned();
            found.push((name, std::fs::read(entry.path())?));
        }
    }
    Ok(found)
}
