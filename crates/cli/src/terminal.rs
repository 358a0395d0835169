//! The terminal in raw mode, as a console needs it.

use std::fs::File;
use std::io;

use nix::sys::termios::{self, SetArg, Termios};

/// A terminal in raw mode. It gets its settings back when this is dropped, also while a panic unwinds.
pub(crate) struct RawMode {
    terminal: File,
    before: Termios,
}

impl RawMode {
    /// Sets the terminal that the process was started on to raw mode.
    ///
    /// # Errors
    /// There is no terminal, or it can't be set.
    pub(crate) fn enter() -> io::Result<Self> {
        let terminal = File::options().read(true).write(true).open("/dev/tty")?;
        Self::of(terminal)
    }

    fn of(terminal: File) -> io::Result<Self> {
        let before = termios::tcgetattr(&terminal)?;
        let mut raw = before.clone();
        termios::cfmakeraw(&mut raw);
        termios::tcsetattr(&terminal, SetArg::TCSADRAIN, &raw)?;
        Ok(Self { terminal, before })
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // If the terminal is gone there is nobody left to tell. TCSANOW: a terminal that takes no more output must not
        // hold up the end.
        let _ = termios::tcsetattr(&self.terminal, SetArg::TCSANOW, &self.before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::pty::openpty;
    use nix::sys::termios::LocalFlags;

    #[test]
    fn a_terminal_gets_its_settings_back_also_after_a_panic() {
        let pty = openpty(None, None).unwrap();
        let flags = || termios::tcgetattr(&pty.slave).unwrap().local_flags;
        let before = flags();
        assert!(before.contains(LocalFlags::ECHO | LocalFlags::ICANON | LocalFlags::ISIG));
        let terminal = File::from(pty.slave.try_clone().unwrap());
        let panicked = std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    let _raw = RawMode::of(terminal).unwrap();
                    assert!(!flags().intersects(LocalFlags::ECHO | LocalFlags::ICANON | LocalFlags::ISIG));
                    panic!("on purpose");
                })
                .join()
        });
        assert!(panicked.is_err());
        assert_eq!(flags(), before);
    }
}
