//! `sparsam generate`: one prompt, one answer, nothing but the answer on standard output.

use std::io::{self, Read, Write};

use anyhow::Context;
use sparsam_base::chat_template::Message;

use crate::args::GenerateArgs;
use crate::speaker::{End, Speaker, check_prompt, notes};

/// Answers one prompt.
pub(super) fn run(args: &GenerateArgs, quiet: bool) -> anyhow::Result<()> {
    let mut notes = notes(quiet);
    let mut speaker = Speaker::open(&args.model, &mut notes, quiet)?;
    let prompt = prompt(&args.prompt)?;
    let ids = if args.raw {
        speaker.text(&prompt)?
    } else {
        let system = args.model.system.as_deref();
        let mut messages: Vec<_> = system
            .map(|text| Message::new("system", text))
            .into_iter()
            .collect();
        messages.push(Message::new("user", prompt));
        speaker.conversation(&messages)?
    };
    check_prompt(ids.len(), speaker.context())?;
    speaker.make_room(ids.len().saturating_add(speaker.longest_answer()))?;

    let mut stdout = io::stdout().lock();
    let answer = speaker.answer(ids, &mut stdout)?;
    writeln!(stdout)?;
    match answer.end {
        End::Said => {}
        End::Longest | End::Full => writeln!(
            notes,
            "note: the answer was cut, there is more with a larger --max-new-tokens where the model \
             reads as much"
        )?,
    }
    Ok(())
}

fn prompt(argument: &str) -> anyhow::Result<String> {
    if argument != "-" {
        return Ok(argument.to_owned());
    }
    let mut text = String::new();
    io::stdin()
        .lock()
        .read_to_string(&mut text)
        .context("cannot read the prompt from standard input")?;
    // The newline that ends a file is not part of what it says.
    let text = text.strip_suffix('\n').unwrap_or(&text);
    Ok(text.strip_suffix('\r').unwrap_or(text).to_owned())
}
