//! What can go wrong with an operating system definition.

use std::path::PathBuf;

/// The result of an operation on an operating system definition.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an operating system can't be put on an instance's disks.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No folder of the search path has it.
    #[error("Directory for OS {name} not found in search path")]
    NotFound {
        /// The system's name without variant.
        name: String,
    },
    /// The definition can't be used.
    #[error("OS {name} can't be used: {diagnosis}")]
    Invalid {
        /// The system's name without variant.
        name: String,
        /// What is wrong with it.
        diagnosis: String,
    },
    /// The system has variants, and none was named.
    #[error("OS {name} needs a variant, such as {name}+{}", .variants.first().map_or("", String::as_str))]
    NoVariant {
        /// The system's name without variant.
        name: String,
        /// Those that it has; at least one.
        variants: Vec<String>,
    },
    /// The system has no such variant.
    #[error("OS {name} has no variant '{variant}'{}", has(.variants))]
    UnknownVariant {
        /// The system's name without variant.
        name: String,
        /// What was asked for.
        variant: String,
        /// Those that it has; may be none.
        variants: Vec<String>,
    },
    /// The system doesn't know these parameters.
    #[error("OS {name} has no parameter {}{}", .unknown.join(", "), has(.known))]
    UnknownParameters {
        /// The system's name without variant.
        name: String,
        /// Those that were given and are not its own.
        unknown: Vec<String>,
        /// Those that it has; may be none.
        known: Vec<String>,
    },
    /// A script ran and failed.
    #[error("OS {script} script failed ({reason}), {}", words(.lines))]
    Script {
        /// The script's name, `create`.
        script: &'static str,
        /// How it ended: `exited with exit code 1`.
        reason: String,
        /// The last lines that it wrote; may be none.
        lines: Vec<String>,
    },
    /// An earlier run on the same disks was killed and is still there.
    #[error(
        "an earlier run of an OS script was killed and is still there after {seconds} s{}: \
         it hangs in the kernel or has left its process group; {lock_file} is free when it is gone",
        processes(.pids)
    )]
    Busy {
        /// The lock that it holds.
        lock_file: PathBuf,
        /// How long it was waited for, seconds.
        seconds: u64,
        /// The processes that hold it, as far as they can be seen.
        pids: Vec<i32>,
    },
    /// The system refused.
    #[error("can't {action} {path}")]
    Io {
        /// What was attempted, as a verb.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
}

fn has(list: &[String]) -> String {
    if list.is_empty() { ": it has none".to_owned() } else { format!(": it has {}", list.join(", ")) }
}

fn words(lines: &[String]) -> String {
    if lines.is_empty() {
        "it wrote nothing to its log file".to_owned()
    } else {
        format!("last lines in the log file:\n{}", lines.join("\n"))
    }
}

fn processes(pids: &[i32]) -> String {
    match pids {
        [] => String::new(),
        pids => format!(" (process {})", pids.iter().map(i32::to_string).collect::<Vec<_>>().join(", ")),
    }
}

/// Turns an I/O error into ours: `.map_err(io("read", path))`.
pub(crate) fn io<E: Into<std::io::Error>>(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(E) -> Error {
    let path = path.into();
    move |source| Error::Io { action, path, source: source.into() }
}
