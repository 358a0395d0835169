//! What the demo shows: headings, commands as they are typed, their output as it comes, and the closing table.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use anyhow::bail;

use super::report::Report;
use crate::{Node, Pty};

/// How long a command of the scenario may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// The terminal, or whatever standard output is; and a transcript of what was shown on it.
pub(super) struct Screen {
    colour: bool,
    transcript: String,
}

/// A command that has ended.
pub(super) struct Outcome {
    /// The command line.
    line: String,
    code: i32,
    /// What it wrote, without control sequences.
    pub text: String,
    /// From typing it to its end.
    pub elapsed: Duration,
}

impl Outcome {
    /// It must have succeeded.
    pub fn succeeded(self) -> anyhow::Result<Outcome> {
        self.ended_with(0)
    }

    /// It must have ended with this exit code.
    pub fn ended_with(self, code: i32) -> anyhow::Result<Outcome> {
        if self.code != code {
            bail!("'{}' ended with exit code {}, not {code}", self.line, self.code);
        }
        Ok(self)
    }

    /// It must have said this.
    pub fn says(self, wanted: &str) -> anyhow::Result<Outcome> {
        if !self.text.contains(wanted) {
            bail!("'{}' does not say '{wanted}'", self.line);
        }
        Ok(self)
    }

    /// It must not have said this.
    pub fn does_not_say(self, unwanted: &str) -> anyhow::Result<Outcome> {
        if self.text.contains(unwanted) {
            bail!("'{}' says '{unwanted}'", self.line);
        }
        Ok(self)
    }
}

impl Screen {
    pub fn new() -> Screen {
        let colour = io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Screen { colour, transcript: String::new() }
    }

    /// Everything that was shown of commands.
    pub fn transcript(&self) -> &str {
        &self.transcript
    }

    /// A remark.
    pub fn say(&self, text: &str) {
        self.put(&format!("{text}\n"));
    }

    /// What went wrong.
    pub fn alarm(&self, text: &str) {
        self.put(&format!("{}\n", self.paint("1;31", &format!("FAILED: {text}"))));
    }

    /// The heading of a step.
    pub fn heading(&mut self, name: &str, about: &str) {
        self.put(&format!("\n{}\n", self.paint("1;36", &format!("== {name}: {about}"))));
        self.transcript.push_str(&format!("\n## {name}: {about}\n\n"));
    }

    /// A remark in the middle of a step.
    pub fn note(&mut self, text: &str) {
        self.put(&format!("{}\n", self.paint("2", &format!("   {text}"))));
        self.transcript.push_str(&format!("    ({text})\n"));
    }

    /// A drawing of how the cluster is now, in a file beside the report.
    pub fn figure(&mut self, title: &str, file: &str) {
        self.put(&format!("{}\n", self.paint("2", &format!("   drawn in {file}: {title}"))));
        self.transcript.push_str(&format!("\n![{title}]({file})\n\n"));
    }

    /// Types a command on a node and shows it to its end.
    pub fn run(&mut self, node: &Node, line: &str) -> anyhow::Result<Outcome> {
        self.type_in(node, line)?.finish()
    }

    /// Types a command on a node and returns while it runs.
    pub fn type_in(&mut self, node: &Node, line: &str) -> anyhow::Result<Typed<'_>> {
        let prompt = format!("root@{}:~#", node.name);
        self.put(&format!("{} {}\n", self.paint("1", &prompt), self.paint("1;32", line)));
        self.transcript.push_str(&format!("    {prompt} {line}\n"));
        let started = Instant::now();
        let pty = node.command(["sh", "-c", line]).pty()?;
        let line = line.to_owned();
        Ok(Typed { screen: self, pty, line, started, plain: Plain::default(), text: String::new(), read: 0, noted: 0 })
    }

    /// The closing tables.
    pub fn table(&self, report: &Report) {
        self.put(&format!("\n{}", report.table(|ok, text| if ok { text } else { self.paint("1;31", &text) })));
        self.put(&format!("\n{}\n", report.closing()));
    }

    fn paint(&self, colour: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{colour}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// Nobody may be looking any more; the demo goes on all the same.
    fn put(&self, text: &str) {
        let mut out = io::stdout().lock();
        let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    }
}

/// A command that was typed and runs on a terminal of its own.
pub(super) struct Typed<'a> {
    screen: &'a mut Screen,
    pty: Pty,
    line: String,
    started: Instant,
    plain: Plain,
    text: String,
    /// How much of the text was waited for already.
    read: usize,
    /// How much of it is in the transcript.
    noted: usize,
}

impl Typed<'_> {
    /// Shows what it writes until `wanted` appears, and returns what came before that.
    pub fn until(&mut self, wanted: &str) -> anyhow::Result<String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(at) = self.text[self.read..].find(wanted) {
                let before = self.text[self.read..self.read + at].to_owned();
                self.read += at + wanted.len();
                return Ok(before);
            }
            if !self.show_more(deadline)? {
                bail!("'{}' does not say '{wanted}'", self.line);
            }
        }
    }

    /// Types keys.
    pub fn keys(&mut self, keys: &[u8]) -> anyhow::Result<()> {
        Ok(self.pty.write(keys)?)
    }

    /// For what is shown of another terminal meanwhile.
    pub fn screen(&mut self) -> &mut Screen {
        self.write_down();
        self.screen
    }

    /// Shows it to its end.
    pub fn finish(mut self) -> anyhow::Result<Outcome> {
        let deadline = Instant::now() + PATIENCE;
        while self.show_more(deadline)? {}
        if !self.text.is_empty() && !self.text.ends_with('\n') {
            self.screen.put("\n");
            self.text.push('\n');
        }
        self.write_down();
        let (status, _) = self.pty.finish(deadline.saturating_duration_since(Instant::now()))?;
        let elapsed = self.started.elapsed();
        let code = status.code().unwrap_or(-1);
        let mut said = format!("{:.2} s", elapsed.as_secs_f64());
        if code != 0 {
            said.push_str(&format!(", exit code {code}"));
        }
        self.screen.note(&said);
        Ok(Outcome { line: self.line, code, text: self.text, elapsed })
    }

    fn write_down(&mut self) {
        for line in self.text[self.noted..].lines() {
            self.screen.transcript.push_str(&format!("    {line}\n"));
        }
        self.noted = self.text.len();
    }

    fn show_more(&mut self, deadline: Instant) -> anyhow::Result<bool> {
        let Some(bytes) = self.pty.read(deadline.saturating_duration_since(Instant::now()))? else {
            return Ok(false);
        };
        let text = self.plain.take(&bytes);
        self.screen.put(&text);
        self.text.push_str(&text);
        Ok(true)
    }
}

/// Takes carriage returns and control sequences out of what a terminal is sent: a guest's shell asks the terminal where
/// its cursor is, and the answer of a real one would end up in the shell that the demo was started from.
#[derive(Default)]
struct Plain {
    /// The beginning of a character or of a sequence, the rest of which is still to come.
    rest: Vec<u8>,
}

impl Plain {
    fn take(&mut self, bytes: &[u8]) -> String {
        self.rest.extend_from_slice(bytes);
        let mut plain = Vec::new();
        let mut from = self.rest.as_slice();
        while let [first, rest @ ..] = from {
            from = match (first, rest) {
                (b'\r' | 0x07, rest) => rest,
                (0x1b, [b'[', sequence @ ..]) => match sequence.iter().position(|byte| (0x40..0x7f).contains(byte)) {
                    Some(end) => &sequence[end + 1..],
                    None => break,
                },
                (0x1b, [_, rest @ ..]) => rest,
                (0x1b, []) => break,
                (byte, rest) => {
                    plain.push(*byte);
                    rest
                }
            };
        }
        self.rest = from.to_vec();
        if let Err(error) = std::str::from_utf8(&plain)
            && error.error_len().is_none()
        {
            let cut = plain.split_off(error.valid_up_to());
            self.rest.splice(0..0, cut);
        }
        String::from_utf8_lossy(&plain).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_text_is_left_wherever_it_was_cut() {
        let sent = "a\r\n\x1b[6nroot@vm1:~# \x1b[1;32mgrün\x1b[0m…".as_bytes();
        for cut in 0..sent.len() {
            let mut plain = Plain::default();
            let text = plain.take(&sent[..cut]) + &plain.take(&sent[cut..]);
            assert_eq!(text, "a\nroot@vm1:~# grün…", "cut at {cut}");
        }
    }
}
