//! `sparsam chat`: a conversation, one line a message.
//!
//! The whole conversation is put through the chat template again at every turn, as in training; a
//! template may look back at what was said before.

use std::io::{self, BufRead, IsTerminal, Write};

use anyhow::Context;
use sparsam_base::chat_template::Message;

use crate::args::ChatArgs;
use crate::speaker::{End, Speaker, notes};
use crate::terminal::paint_stderr;

/// The longest conversation, in tokens: room takes memory, and a model that reads 128,000 tokens is
/// not asked for them here.
const LONGEST: usize = 4096;

/// Talks until an empty line, the end of the input or the end of the model's context.
pub(super) fn run(args: &ChatArgs, quiet: bool) -> anyhow::Result<()> {
    let mut notes = notes(quiet);
    let mut speaker = Speaker::open(&args.model, &mut notes, quiet)?;
    let room = speaker.context().min(LONGEST);
    speaker.make_room(room)?;

    let system = args.model.system.as_deref();
    let mut messages: Vec<_> = system
        .map(|text| Message::new("system", text))
        .into_iter()
        .collect();
    let (stdin, mut stdout) = (io::stdin(), io::stdout().lock());
    let talks = stdin.is_terminal() && io::stderr().is_terminal();
    loop {
        if talks {
            write!(io::stderr(), "{} ", paint_stderr().bold(">"))?;
        }
        let mut line = String::new();
        let read = stdin.lock().read_line(&mut line);
        read.context("cannot read from standard input")?;
        let line = line.trim();
        if line.is_empty() {
            return Ok(());
        }
        messages.push(Message::new("user", line));
        let ids = speaker.conversation(&messages)?;
        if ids.len() >= room {
            return full(&mut notes, room);
        }
        let answer = speaker.answer(ids, &mut stdout)?;
        writeln!(stdout)?;
        match answer.end {
            End::Full => return full(&mut notes, room),
            End::Longest => writeln!(
                notes,
                "note: the answer was cut at {} tokens, see --max-new-tokens",
                speaker.longest_answer()
            )?,
            End::Said => {}
        }
        messages.push(Message::new("assistant", answer.text));
    }
}

fn full(notes: &mut dyn Write, room: usize) -> anyhow::Result<()> {
    writeln!(
        notes,
        "note: the conversation has filled its {room} tokens and ends here; start a new one to go on"
    )?;
    Ok(())
}
