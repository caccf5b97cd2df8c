//! `sparsam publish`: what a run trained, on the Hub, with a card whose figure can be read.
//!
//! Everything is checked before anything is sent: the run is finished, its base can be found by others, the
//! card is one the Hub accepts, no file holds a token. What is sent is a list of what may be, so that
//! data, checkpoints and readings stay here whatever else lies in the folder.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use sparsam_base::builtin;
use sparsam_hub::publish::{Content, Item, Manner, Proposal, Publication, There};
use sparsam_hub::{HubError, Kind, Repo, Server, Settings};
use sparsam_tracker::EnergyRecord;
use sparsam_tracker::card::TrainingKind;
use sparsam_tracker::card::edit::{self, Details, EditError};
use sparsam_tracker::card::lint::{self, Severity};

use crate::args::hub::PublishArgs;
use crate::cards;
use crate::error::Failure;
use crate::figures::bytes;
use crate::from_hub;
use crate::recipe::{Method, TrainingType};
use crate::run_record::{self, RunRecord, State};
use crate::speaker::notes;

mod product;

use product::Product;

/// Endings of plots.
const PLOTS: &[&str] = &["png", "svg"];
/// Findings about a card that leave it without a figure although they are no errors elsewhere.
const NO_FIGURE: &[&str] = &["no-block", "nothing-emitted"];

/// Publishes, or says what would be published.
pub(super) fn run(args: &PublishArgs, quiet: bool) -> anyhow::Result<()> {
    let folder = &args.run;
    let record = RunRecord::read(folder)?;
    check_run(folder, &record)?;
    let energy = cards::energy_of(folder, &record)?;
    let product = Product::of(args);
    product.check(folder, &record)?;
    let name = from_hub::plain(&args.name);
    let own_card = product.card(folder, &record, &energy, name)?;
    check_card(&folder.join(cards::FILE_NAME), &own_card, folder)?;

    let settings = Settings::from_environment()?;
    let repo = Repo::new(Kind::Model, name)?;
    let say = |text: &str| {
        if !quiet {
            let _ = writeln!(io::stderr(), "{text}");
        }
    };
    let server = Server::new(&settings, &say);
    let publication = Publication::new(&server, &repo);
    let there = publication.look()?;
    let (card, kept) = card(&own_card, &there, &record, &energy, args)?;
    if kept {
        check_card(
            Path::new(&format!("{}/README.md", repo.id())),
            &card,
            folder,
        )?;
    }
    let manner = manner(args, &record, &product);
    let items = items(folder, &record, &product, card.clone(), quiet)?;
    let proposal = publication.propose(&there, items, &manner)?;
    let mut notes = notes(quiet);
    if kept {
        writeln!(
            notes,
            "the card on the Hub is kept, its energy and emissions are brought up to date; \
             `--replace-card` puts the run's own in its place"
        )?;
    }
    if args.dry_run {
        return Ok(rehearse(&proposal, &repo, &there, &manner)?);
    }
    if settings.token.is_none() {
        return Err(HubError::NoToken.into());
    }
    if !proposal.send.is_empty() {
        publication.check_card(&card)?;
    }
    match publication.send(&there, &proposal, &manner)? {
        None => {
            writeln!(notes, "nothing to change: `{repo}` holds all of it already")?;
            writeln!(io::stdout().lock(), "{}/{repo}", settings.endpoint)?;
        }
        Some(published) => {
            for item in &proposal.send {
                writeln!(notes, "sent {} ({})", item.path, bytes(item.size))?;
            }
            writeln!(
                notes,
                "the energy of this upload is not part of the card's figure"
            )?;
            writeln!(io::stdout().lock(), "{}", published.url)?;
        }
    }
    Ok(())
}

/// Refuses a run whose result is not one, and one on a base that nobody else could find.
fn check_run(folder: &Path, record: &RunRecord) -> Result<(), Failure> {
    let name = folder.display();
    if record.state != State::Finished {
        return Err(Failure::usage(format!(
            "the run in `{name}` is not finished, so there is no result to publish"
        ))
        .hint("continue it with `sparsam train RECIPE --resume`"));
    }
    let model = &record.base.model;
    let from_scratch = record.recipe.training_type == TrainingType::PreTraining;
    let known = record.base.revision.is_some() || model.starts_with(builtin::PREFIX);
    if known || (from_scratch && record.recipe.method == Method::Full) {
        return Ok(());
    }
    Err(Failure::usage(format!(
        "the base of the run in `{name}` is `{model}`, a folder that others do not have"
    ))
    .hint(
        "train on the base by its name on the Hub, `model: owner/name`, so that others find it too",
    ))
}

/// Refuses a card whose figure the Hub could not read, with the first of the reasons.
fn check_card(path: &Path, card: &[u8], run: &Path) -> Result<(), Failure> {
    let findings = lint::lint(card);
    let grave = findings
        .iter()
        .find(|finding| finding.severity == Severity::Error || NO_FIGURE.contains(&finding.code));
    let Some(finding) = grave else {
        return Ok(());
    };
    let failure = Failure::run(format!(
        "`{}`, line {}: {}; the Hub could not read the emissions",
        path.display(),
        finding.line,
        finding.message
    ));
    let run = run.display();
    Err(if finding.code == "no-block" {
        failure.hint(format!(
            "say where it ran, and publish again: `sparsam card update {run} --run {run} --country DEU` \
             (your own country)"
        ))
    } else {
        failure.hint(finding.reason.clone())
    })
}

/// The card to be sent, and whether it is the one on the Hub with its figures brought up to date.
fn card(
    own: &[u8],
    there: &There,
    record: &RunRecord,
    energy: &EnergyRecord,
    args: &PublishArgs,
) -> anyhow::Result<(Vec<u8>, bool)> {
    let remote = there.card.as_deref().filter(|remote| *remote != own);
    let Some(remote) = remote.filter(|_| !args.replace_card) else {
        return Ok((own.to_vec(), false));
    };
    let training = match record.recipe.training_type {
        TrainingType::FineTuning => TrainingKind::FineTuning,
        TrainingType::PreTraining => TrainingKind::PreTraining,
    };
    let details = Details {
        training: Some(training),
        ..Details::default()
    };
    let updated = edit::update(remote, std::slice::from_ref(energy), &details);
    let updated = updated.map_err(|error| match error {
        // The run's own card was given a place that the run itself does not know.
        EditError::NoPlace { .. } => anyhow::Error::new(error),
        error => anyhow::Error::new(error).context(format!(
            "the card of `{}` on the Hub cannot be updated",
            args.name
        )),
    })?;
    Ok((updated, true))
}

fn manner(args: &PublishArgs, record: &RunRecord, product: &Product) -> Manner {
    let what = product.name(record);
    Manner {
        private: args.private,
        pull_request: args.pull_request,
        summary: format!("Publish the {what} trained with sparsam"),
        description: format!(
            "Base: {}. Trained and measured with sparsam {}. The energy of this upload is not part of \
             the card's figure.",
            from_hub::plain(&record.base.model),
            record.versions.sparsam
        ),
    }
}

/// All files, each with its bytes or where they are.
fn items(
    folder: &Path,
    record: &RunRecord,
    product: &Product,
    card: Vec<u8>,
    quiet: bool,
) -> anyhow::Result<Vec<Item>> {
    let mut items = vec![Item::new(cards::FILE_NAME, Content::Bytes(card))?];
    for (name, content) in product.files(folder, record, quiet)? {
        items.push(Item::new(&name, content)?);
    }
    let record = folder.join(run_record::FILE_NAME);
    items.push(Item::new(run_record::FILE_NAME, Content::File(record))?);
    for (name, path) in plots(folder) {
        items.push(Item::new(&name, Content::File(path))?);
    }
    items.sort_by(|one, other| one.path.cmp(&other.path));
    for item in &items {
        check_secrets(folder, &item.path, &item.text()?)?;
    }
    Ok(items)
}

/// Plots in the run's folder and in `plots`.
fn plots(folder: &Path) -> Vec<(String, PathBuf)> {
    let mut found = Vec::new();
    for (inside, prefix) in [(folder.to_owned(), ""), (folder.join("plots"), "plots/")] {
        let Ok(entries) = std::fs::read_dir(inside) else {
            continue;
        };
        for path in entries.flatten().map(|entry| entry.path()) {
            let ending = path.extension().and_then(|ending| ending.to_str());
            let name = path.file_name().and_then(|name| name.to_str());
            if let (Some(ending), Some(name)) = (ending, name)
                && PLOTS.contains(&ending)
                && path.is_file()
            {
                found.push((format!("{prefix}{name}"), path.clone()));
            }
        }
    }
    found
}

/// Refuses a file that holds what looks like a token of the Hub.
fn check_secrets(folder: &Path, name: &str, text: &[u8]) -> Result<(), Failure> {
    let is_token = |rest: &[u8]| {
        rest.iter()
            .take_while(|b| b.is_ascii_alphanumeric())
            .count()
            >= 20
    };
    let begins = text.windows(3).enumerate();
    let mut tokens = begins.filter(|(at, window)| *window == b"hf_" && is_token(&text[at + 3..]));
    if tokens.next().is_none() {
        return Ok(());
    }
    Err(Failure::run(format!(
        "`{}` holds what looks like a token of the Hub",
        folder.join(name).display()
    ))
    .hint("take it out, and revoke it at https://huggingface.co/settings/tokens if it is one"))
}

/// Says what would be sent, a line for each file: `send PATH BYTES` or `same PATH BYTES`.
fn rehearse(proposal: &Proposal, repo: &Repo, there: &There, manner: &Manner) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let change = match (there.exists(), manner.pull_request) {
        (false, _) if manner.private => "would create the private model",
        (false, _) => "would create the public model",
        (true, true) => "would propose a change to",
        (true, false) if proposal.send.is_empty() => "would change nothing in",
        (true, false) => "would make one commit to",
    };
    writeln!(out, "{change} {repo}")?;
    let width = proposal.send.iter().chain(&proposal.same);
    let width = width.map(|item| item.path.len()).max().unwrap_or(0);
    for (word, items) in [("send", &proposal.send), ("same", &proposal.same)] {
        for item in items {
            writeln!(out, "{word} {:width$} {}", item.path, item.size)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_found_anywhere() {
        let check = |text: &str| check_secrets(Path::new("run"), "run.json", text.as_bytes());
        check("hf_hub and hf_short, sparsam").unwrap();
        check("").unwrap();
        let token = format!("{}{}", "hf_", "abcdefghijABCDEFGHIJ1234");
        let failure = check(&format!("{{\"path\": \"/x?token={token}\"}}")).unwrap_err();
        assert!(!failure.to_string().contains(&token));
    }
}
