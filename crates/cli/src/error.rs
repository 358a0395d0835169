//! Why a command ends without success, and with which exit code.

use std::io;

use opcodes::Failure;

use crate::client::CallError;

/// Exit code of a command whose question was answered with no.
pub(crate) const EXIT_DECLINED: u8 = 13;
/// Exit code of a list with an unknown column.
pub(crate) const EXIT_UNKNOWN_FIELD: u8 = 14;

/// Why a command ends without success.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The daemon can't be asked, or it refuses.
    #[error(transparent)]
    Call(#[from] CallError),
    /// Refused here, or a job failed.
    #[error(transparent)]
    Failure(#[from] Failure),
    /// A parameter that can't be set so.
    #[error("Parameter Error: {0}")]
    Parameter(#[from] model::params::ParamError),
    /// Any other reason, in one sentence.
    #[error("{0}")]
    Message(String),
    /// What was typed makes no command: text for standard output or standard error, and the exit code.
    #[error("{text}")]
    Usage {
        /// What to show.
        text: String,
        /// Shown on standard output, because it was asked for or because Ganeti does it so.
        stdout: bool,
        /// The exit code.
        code: u8,
    },
    /// A question was answered with no. It was said already.
    #[error("not confirmed")]
    Declined,
    /// A signal ended the command.
    #[error("ended by signal {0}")]
    Signal(i32),
    /// The output can't be written.
    #[error("can't write the output")]
    Output(#[source] io::Error),
    /// The console broke.
    #[error("the connection to the console broke: {0}")]
    Console(#[source] io::Error),
    /// The terminal can't be set as a console needs it.
    #[error("can't set the terminal for a console: {0}")]
    Terminal(#[source] io::Error),
    /// The machine is out of something.
    #[error("can't start the command: {0}")]
    Runtime(#[source] io::Error),
}

impl Error {
    /// A reason in one sentence; exit code 1.
    pub(crate) fn message(text: impl Into<String>) -> Self {
        Error::Message(text.into())
    }

    /// Ganeti's exit code for it.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Call(CallError::Refused(failure)) | Error::Failure(failure) => failure.exit_code(),
            Error::Usage { code, .. } => *code,
            Error::Declined => EXIT_DECLINED,
            Error::Signal(number) => 128u8.saturating_add(u8::try_from(*number).unwrap_or(0)),
            // As the shell shows a program that was ended by SIGPIPE: the reader went away, nothing else is wrong.
            Error::Output(cause) if cause.kind() == io::ErrorKind::BrokenPipe => 141,
            _ => 1,
        }
    }

    /// Whether there is nothing to say about it.
    pub(crate) fn is_silent(&self) -> bool {
        match self {
            Error::Declined | Error::Signal(_) => true,
            Error::Output(cause) => cause.kind() == io::ErrorKind::BrokenPipe,
            _ => false,
        }
    }

    /// The failure that the daemon gave, if it is one.
    pub(crate) fn failure(&self) -> Option<&Failure> {
        match self {
            Error::Call(CallError::Refused(failure)) | Error::Failure(failure) => Some(failure),
            _ => None,
        }
    }
}
