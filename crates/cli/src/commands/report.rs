//! `sparsam report`: runs as one page, with its pictures as files beside it.

use std::io::{self, Write};
use std::path::PathBuf;

use crate::args::report::ReportArgs;
use crate::error::{Failure, io_reason};
use crate::report;

pub(super) fn run(args: &ReportArgs) -> anyhow::Result<()> {
    let page = match (&args.output, &args.folders[..]) {
        (Some(page), _) => page.clone(),
        (None, [one]) => one.join("report.html"),
        (None, _) => PathBuf::from("report.html"),
    };
    if page.is_dir() || page.file_name().is_none() {
        return Err(Failure::usage(format!("`{}` is a folder", page.display()))
            .hint("name the file to write, such as `report.html`")
            .into());
    }
    let report = report::make(&args.folders, args.language)?;
    let written = report.write(&page).map_err(|error| {
        Failure::run(format!(
            "cannot write the report `{}`: {}",
            page.display(),
            io_reason(&error)
        ))
    })?;
    let mut out = io::stdout().lock();
    for path in written {
        writeln!(out, "{}", path.display())?;
    }
    Ok(())
}
