//! The command line's conventions: help, lists of commands, and what is said about a line that makes no command.
//!
//! Ganeti's exit codes: 1 for an unknown command or a wrong number of arguments, 2 for an option that is not understood.

use std::ffi::OsString;
use std::fmt::Write as _;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Command, Parser};
use opcodes::format::wrap;

use crate::error::Error;

/// Commands of Ganeti's tools that this version does not have.
const LATER_COMMANDS: &[(&str, &str)] = &[
    (
        "gnt-cluster",
        "activate-master-ip add-tags command copyfile deactivate-master-ip epo list-tags modify queue remove-tags rename \
         renew-crypto repair-disk-sizes search-tags show-ispecs-cmd upgrade watcher",
    ),
    (
        "gnt-node",
        "add-tags health list-drbd list-storage list-tags modify-storage power powercycle remove-tags repair-storage \
         restricted-command volumes",
    ),
    ("gnt-instance", "add-tags batch-create change-group list-tags move recreate-disks reinstall remove-tags rename"),
    ("gnt-job", "autoarchive change-priority"),
    ("gnt-os", "diagnose info modify show"),
    ("gnt-debug", "iallocator allocator locks metad submit-job test-jobqueue test-osparams wconfd"),
];

/// Ganeti's long options; one of them that a command here does not take is refused as such, and not as a typing mistake.
const GANETI_OPTIONS: &str = "absolute add-uids all allocatable allow-failover archived auto auto-promote \
    backend-parameters blacklisted candidate-pool-size cleanup cluster-domain-secret commit communication compress \
    compression-tools count data-collector-interval debug-simulate-errors default-iallocator default-iallocator-params dir \
    disk disk-parameters disk-state disk-template disks drained drbd-usermode-helper dry-run early-release \
    enabled-data-collectors enabled-disk-templates enabled-hypervisors error error-codes evac-mode ext-params failure-only \
    file-driver file-storage-dir filter finished force force-join force-multiple force-variant forthcoming from \
    gluster-storage-dir groups helper-shutdown-timeout helper-startup-timeout hidden hypervisor-parameters hypervisor-state \
    iallocator ignore-consistency ignore-errors ignore-failures ignore-hvversions ignore-ipolicy ignore-offline \
    ignore-offline-nodes ignore-secondaries ignore-size ignore-soft-errors ignore-status install-image instance \
    instance-communication-network interruptible interval ip-check ipolicy-bounds-specs ipolicy-disk-templates \
    ipolicy-spindle-ratio ipolicy-std-specs ipolicy-vcpu-ratio kill mac-prefix maintain-node-health master-candidate \
    master-capable master-netdev master-netmask max-running-jobs max-tracked-jobs memory migration-mode mode \
    modify-etc-hosts name-check net new-cluster-certificate new-cluster-domain-secret new-confd-hmac-key \
    new-node-certificates new-primary new-rapi-certificate new-secondary new-spice-certificate new-ssh-keys nic-parameters \
    nics no-conflicts-check no-etc-hosts no-headers no-hotplug no-hv-param-assessment no-install no-ip-check no-locks \
    no-master no-name-check no-nics no-node-setup no-nplus1-mem no-remember no-runtime-changes no-ssh-init \
    no-ssh-key-check no-start no-strict no-voting no-wait-for-sync node node-group node-parameters node-powered node-tags \
    non-live offline on on-primary on-secondary online oob-timeout opportunistic-locking os-parameters \
    os-parameters-private os-parameters-secret os-size os-type paused pending power-delay prealloc-wipe-disks \
    pri-node-tags primary primary-ip-version primary-only priority print-jobid queued rapi-certificate readd reason \
    remove-uids repeat reserved-lvs resume roman running runtime-memory sec-node-tags secondary secondary-ip \
    secondary-only select-os separator shared-file-storage-dir show-cmd show-machine-names shutdown-timeout \
    specs-cpu-count specs-disk-count specs-disk-size specs-mem-size specs-nic-count spice-ca-certificate \
    spice-certificate spindle-use ssh-key-bits ssh-key-type static storage-type submit sync tags target-groups \
    target-node timeout to type uid-pool units use-external-mip-script use-replication-network user-shutdown vcpus \
    verbose verify-ssh-clutter vg-name vm-capable wait-for-sync waiting ya-rly yes yes-do-it zeroing-image output debug";

/// Ganeti's short options.
const GANETI_LETTERS: &str = "BCDFHIMNOacdefgilmnoprstvy";

/// Reads a command line; `args` is what follows the tool's name.
///
/// # Errors
/// [`Error::Usage`] with what to show: help that was asked for, or what is wrong.
pub(crate) fn parse<T: Parser>(tool: &str, args: Vec<OsString>) -> Result<T, Error> {
    let mut command = T::command().name(tool.to_owned()).bin_name(tool).disable_help_subcommand(true);
    let has_commands = command.has_subcommands();
    let first = args.first().and_then(|arg| arg.to_str());
    if has_commands {
        match first {
            None => return Err(usage(commands(&mut command, tool), true, 1)),
            Some("-h" | "--help") => return Err(usage(commands(&mut command, tool), true, 0)),
            Some("--version") => {
                let text = format!("{tool} (cardume) {}\n", env!("CARGO_PKG_VERSION"));
                return Err(usage(text, true, 0));
            }
            Some(word) if is_later(tool, word) => {
                let text = format!("Error: Command {word} is not supported by this version of Cardume");
                return Err(usage(text, false, 1));
            }
            Some(_) => {}
        }
    }
    let line = std::iter::once(OsString::from(tool)).chain(args.iter().cloned());
    let matches = command.try_get_matches_from_mut(line).map_err(|error| match error.kind() {
        ErrorKind::DisplayHelp => usage(error.render().to_string(), true, 0),
        ErrorKind::InvalidSubcommand | ErrorKind::MissingSubcommand if has_commands => {
            usage(commands(&mut command, tool), true, 1)
        }
        _ => usage(option_error(&mut command, tool, &args, &error), false, 2),
    })?;
    T::from_arg_matches(&matches).map_err(|error| usage(error.render().to_string(), false, 2))
}

fn usage(text: String, stdout: bool, code: u8) -> Error {
    Error::Usage { text, stdout, code }
}

fn is_later(tool: &str, word: &str) -> bool {
    LATER_COMMANDS.iter().any(|(name, words)| *name == tool && words.split(' ').any(|later| later == word))
}

/// The list of a tool's commands, in Ganeti's form.
fn commands(command: &mut Command, tool: &str) -> String {
    let mut list: Vec<(String, String)> = command
        .get_subcommands()
        .map(|command| {
            let about = command.get_about().map(ToString::to_string).unwrap_or_default();
            (command.get_name().to_owned(), about)
        })
        .collect();
    list.sort();
    let width = list.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    // Only Ganeti's own tools have manual pages.
    let manual = if tool.starts_with("gnt-") { format!(", or man {tool}") } else { String::new() };
    let mut text = format!(
        "Usage: {tool} {{command}} [options...] [argument...]\n\
         {tool} <command> --help to see details{manual}\n\nCommands:\n"
    );
    for (name, about) in list {
        let about = wrap(&about, 76 - width).replace('\n', &format!("\n{}", " ".repeat(width + 4)));
        // Writing to a string doesn't fail.
        let _ = writeln!(text, " {name:width$} - {about}");
    }
    text.push('\n');
    text
}

/// What is wrong with an option, below the usage of its command.
fn option_error(command: &mut Command, tool: &str, args: &[OsString], error: &clap::Error) -> String {
    command.build();
    let name = args.first().and_then(|word| word.to_str()).unwrap_or_default();
    let line = match command.find_subcommand_mut(name) {
        Some(command) => command.render_usage().to_string(),
        None => command.render_usage().to_string(),
    };
    let mut text = format!("Usage\n=====\n  {}\n\n", line.trim_start_matches("Usage:").trim());
    let word = |kind| match error.get(kind) {
        Some(ContextValue::String(word)) => word.clone(),
        Some(ContextValue::Strings(words)) => words.join(", "),
        _ => String::new(),
    };
    let typed = typed(args, &word(ContextKind::InvalidArg));
    let what = match error.kind() {
        ErrorKind::UnknownArgument if is_ganeti_option(&typed) => {
            format!("option {typed} is not supported by this version of Cardume")
        }
        ErrorKind::UnknownArgument => match word(ContextKind::SuggestedArg) {
            near if near.is_empty() => format!("no such option: {typed}"),
            near => format!("no such option: {typed} (there is {near})"),
        },
        ErrorKind::InvalidValue if word(ContextKind::InvalidValue).is_empty() => {
            format!("option {typed} requires 1 argument")
        }
        ErrorKind::InvalidValue => {
            let value = word(ContextKind::InvalidValue);
            let choices = match error.get(ContextKind::ValidValue) {
                Some(ContextValue::Strings(choices)) => choices.iter().map(|choice| format!("'{choice}'")).collect(),
                _ => Vec::new(),
            };
            format!("option {typed}: invalid choice: '{value}' (choose from {})", choices.join(", "))
        }
        ErrorKind::ValueValidation => {
            let reason = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
            format!("option {typed}: invalid value: '{}': {reason}", word(ContextKind::InvalidValue))
        }
        ErrorKind::ArgumentConflict => {
            format!("option {typed} can't be given together with {}", word(ContextKind::PriorArg))
        }
        _ => {
            let rendered = error.render().to_string();
            let line = rendered.lines().next().unwrap_or_default();
            line.trim_start_matches("error: ").to_owned()
        }
    };
    let name = tool.split(' ').next().unwrap_or(tool);
    let _ = write!(text, "{name}: error: {what}");
    text
}

/// The option as it was typed: clap names `--disk-template <TEMPLATE>` also where `-t` was typed.
fn typed(args: &[OsString], argument: &str) -> String {
    let long = argument.split([' ', '=', '<']).next().unwrap_or(argument).trim();
    let was_typed = |option: &str| {
        args.iter().filter_map(|arg| arg.to_str()).any(|arg| arg == option || arg.starts_with(&format!("{option}=")))
    };
    if was_typed(long) || !long.starts_with("--") {
        return long.to_owned();
    }
    SHORT_FORMS
        .iter()
        .filter(|(_, name)| *name == &long[2..])
        .map(|(letter, _)| format!("-{letter}"))
        .find(|short| args.iter().filter_map(|arg| arg.to_str()).any(|arg| arg.starts_with(short.as_str())))
        .unwrap_or_else(|| long.to_owned())
}

/// Short forms of the options that are checked when they are read.
const SHORT_FORMS: &[(char, &str)] = &[
    ('B', "backend-parameters"),
    ('C', "candidate-pool-size"),
    ('C', "master-candidate"),
    ('D', "drained"),
    ('H', "hypervisor-parameters"),
    ('N', "nic-parameters"),
    ('O', "offline"),
    ('O', "os-parameters"),
    ('r', "repeat"),
    ('s', "os-size"),
    ('s', "secondary-ip"),
    ('t', "disk-template"),
    ('t', "type"),
];

fn is_ganeti_option(option: &str) -> bool {
    match option.strip_prefix("--") {
        Some(long) => GANETI_OPTIONS.split_whitespace().any(|known| known == long),
        None => option.strip_prefix('-').is_some_and(|letter| letter.len() == 1 && GANETI_LETTERS.contains(letter)),
    }
}

/// The arguments of a command, if there are `N` of them.
///
/// # Errors
/// Ganeti's message, with exit code 1.
pub(crate) fn exactly<const N: usize>(command: &str, args: Vec<String>) -> Result<[String; N], Error> {
    <[String; N]>::try_from(args)
        .map_err(|_| usage(format!("Error: Command {command} expects {N} argument(s)"), false, 1))
}

/// The arguments of a command that takes at least one.
///
/// # Errors
/// Ganeti's message, with exit code 1.
pub(crate) fn some(command: &str, args: Vec<String>) -> Result<Vec<String>, Error> {
    if args.is_empty() {
        return Err(usage(format!("Error: Command {command} expects at least 1 argument(s)"), false, 1));
    }
    Ok(args)
}

/// Makes sure that a command that takes no arguments has none.
///
/// # Errors
/// Ganeti's message, with exit code 1.
pub(crate) fn none(command: &str, args: &[String]) -> Result<(), Error> {
    if args.is_empty() {
        return Ok(());
    }
    Err(usage(format!("Error: Command {command} expects no arguments"), false, 1))
}
