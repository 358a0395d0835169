//! What a command has around it: the daemon, the streams, somebody to ask.

use std::fmt;
use std::io::{self, BufWriter, IsTerminal, Read, Write};
use std::time::Duration;

use jiff::tz::TimeZone;

use crate::client::Client;
use crate::confirm::{Answers, Terminal};
use crate::error::Error;

/// Surroundings of a command. Another program, or a test, can put its own streams here.
pub struct Session {
    /// The daemon.
    pub client: Client,
    /// Standard output.
    pub out: Box<dyn Write + Send>,
    /// Standard output is a terminal: it may get colours, and a picture that is drawn anew in place.
    pub screen: bool,
    /// Standard error.
    pub err: Box<dyn Write + Send>,
    /// Standard input, for consoles; it is taken by the first one.
    pub input: Option<Box<dyn Read + Send>>,
    /// Standard input is a terminal, so a console sets it to raw mode and `^]` detaches.
    pub interactive: bool,
    /// Who answers questions.
    pub answers: Box<dyn Answers + Send>,
    /// Zone of times; `None`: the machine's.
    pub zone: Option<TimeZone>,
    /// How long a command that follows a job tries to get back to a daemon that went away.
    pub patience: Duration,
}

impl Session {
    /// The process' own streams, the daemon of this machine.
    pub fn standard() -> Self {
        Self {
            client: Client::local(),
            // Lines of a job are flushed one by one; a long table goes out in large pieces.
            out: Box::new(BufWriter::new(io::stdout())),
            screen: io::stdout().is_terminal(),
            err: Box::new(io::stderr()),
            input: Some(Box::new(io::stdin())),
            interactive: io::stdin().is_terminal(),
            answers: Box::new(Terminal),
            zone: None,
            patience: Duration::from_secs(60),
        }
    }

    /// Writes a line to standard output, at once.
    pub(crate) fn say(&mut self, line: impl fmt::Display) -> Result<(), Error> {
        writeln!(self.out, "{line}").and_then(|()| self.out.flush()).map_err(Error::Output)
    }

    /// Writes text that has its line breaks to standard output.
    pub(crate) fn print(&mut self, text: &str) -> Result<(), Error> {
        self.out.write_all(text.as_bytes()).map_err(Error::Output)
    }

    /// Writes a value as JSON to standard output.
    pub(crate) fn json(&mut self, value: &serde_json::Value) -> Result<(), Error> {
        self.say(format_args!("{value:#}"))
    }

    /// Writes a line to standard error. That it can't be written changes nothing.
    pub(crate) fn warn(&mut self, line: impl fmt::Display) {
        // What was said before on standard output shall also be read before.
        let _ = self.out.flush();
        let _ = writeln!(self.err, "{line}");
    }

    /// Zone of the times that are shown.
    pub(crate) fn zone(&mut self) -> TimeZone {
        self.zone.get_or_insert_with(TimeZone::system).clone()
    }

    /// Says why a command ends, and gives its exit code.
    pub(crate) fn fail(&mut self, error: &Error) -> u8 {
        match error {
            Error::Usage { text, stdout: true, .. } => {
                let _ = self.print(text).and_then(|()| self.flush());
            }
            error if !error.is_silent() => self.warn(error),
            _ => {}
        }
        error.exit_code()
    }

    pub(crate) fn flush(&mut self) -> Result<(), Error> {
        self.out.flush().map_err(Error::Output)
    }
}
