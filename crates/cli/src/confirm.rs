//! Questions before something that can't be taken back.

use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Write};

use opcodes::format::wrap;

use crate::error::Error;
use crate::session::Session;

/// Columns of a question (Ganeti's).
const WIDTH: usize = 70;

/// Somebody who answers questions.
pub trait Answers {
    /// Shows a text and gives the line that is typed then, without its end; `None` if there is nobody.
    fn ask(&mut self, text: &str) -> Option<String>;
}

/// The terminal that the command was typed on, also where its standard streams lead elsewhere.
pub struct Terminal;

impl Answers for Terminal {
    fn ask(&mut self, text: &str) -> Option<String> {
        let mut terminal = OpenOptions::new().read(true).write(true).open("/dev/tty").ok()?;
        terminal.write_all(text.as_bytes()).and_then(|()| terminal.flush()).ok()?;
        let mut answer = String::new();
        match BufReader::new(terminal).read_line(&mut answer) {
            Ok(length) if length > 0 => Some(answer.trim_end_matches(['\r', '\n']).to_owned()),
            _ => None,
        }
    }
}

/// The question before instances are taken off a node that does not answer.
pub(crate) fn node_is_off(node: &str) -> String {
    format!(
        "With --ignore-consistency, if {node} does not answer, it is taken to be off. If it is not, its guests go on writing \
         there while they are started elsewhere. What it wrote alone before it went off is lost in any case. Is it off?"
    )
}

/// Asks, unless `force`. `skip` is the option that would have answered.
///
/// # Errors
/// [`Error::Declined`] if the answer is no, which it also is where there is no terminal.
pub(crate) fn confirm(session: &mut Session, force: bool, question: &str, skip: &str) -> Result<(), Error> {
    if force {
        return Ok(());
    }
    session.flush()?;
    let mut prompt = format!("{}\ny/[n]/?: ", wrap(question, WIDTH));
    loop {
        let Some(answer) = session.answers.ask(&prompt) else {
            session.warn(format_args!(
                "{question}\nThere is no terminal to ask on, so the answer is no; {skip} answers yes."
            ));
            return Err(Error::Declined);
        };
        match answer.trim() {
            "y" | "Y" => return Ok(()),
            "" | "n" | "N" => {
                session.warn("Nothing was changed.");
                return Err(Error::Declined);
            }
            _ => prompt = " y - yes, go on\n n - no, change nothing (the default)\n ? - this help\ny/[n]/?: ".into(),
        }
    }
}
