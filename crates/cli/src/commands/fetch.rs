//! `sparsam fetch`: a model, an adapter or a data set of the Hub into the cache.

use std::io::{self, Write};

use sparsam_hub::{Need, Split};

use crate::args::hub::FetchArgs;
use crate::figures::bytes;
use crate::from_hub;
use crate::speaker::notes;

/// Fetches and prints the folder.
pub(super) fn run(args: &FetchArgs, quiet: bool) -> anyhow::Result<()> {
    let name = from_hub::plain(&args.name);
    let revision = Some(args.revision.as_str());
    let fetched = if args.dataset {
        let split = Split {
            name: args.split.clone(),
            subset: args.subset.clone(),
        };
        from_hub::data(name, revision, split, quiet)?.0
    } else {
        from_hub::model(name, revision, &Need::Any, quiet)?
    };
    let files = fetched.files.len();
    let came = match fetched.came {
        0 => "all in the cache".to_owned(),
        count => format!("{} fetched", bytes(count)),
    };
    let license = fetched
        .license
        .map_or("its card names no licence".to_owned(), |license| {
            format!("licence {license}")
        });
    writeln!(
        notes(quiet),
        "{name} at commit {}: {files} files, {came}; {license}",
        fetched.commit
    )?;
    writeln!(io::stdout().lock(), "{}", fetched.folder.display())?;
    Ok(())
}
