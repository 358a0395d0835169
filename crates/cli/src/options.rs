//! Options that many commands share.

use clap::Args;
use model::DiskTemplate;
use opcodes::format::Units;
use opcodes::{ErrorCode, Failure};

/// Options of commands that submit a job.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct JobOptions {
    /// Submit the job and end at once; prints "JobID: N"
    #[arg(long)]
    pub submit: bool,
    /// Print the job's number in a line of its own before following it
    #[arg(long)]
    pub print_jobid: bool,
    /// Priority of the job: low, normal or high
    #[arg(long, value_name = "PRIORITY", value_parser = ["low", "normal", "high"])]
    pub priority: Option<String>,
}

impl JobOptions {
    /// The priority as a number.
    pub fn priority(&self) -> i8 {
        match self.priority.as_deref() {
            Some("low") => 10,
            Some("high") => -10,
            _ => 0,
        }
    }
}

/// Options of lists of columns.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct TableArgs {
    /// Leave the titles of the columns out
    #[arg(long)]
    pub no_headers: bool,
    /// Put this between columns instead of aligning them; sizes are then in MiB. Example: --separator=:
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub separator: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Options of lists.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct ListOptions {
    #[command(flatten)]
    pub table: TableArgs,
    /// Unit of sizes: h (as people read them), m (MiB), g (GiB) or t (TiB)
    #[arg(long, value_name = "UNIT", value_parser = ["h", "m", "g", "t"])]
    pub units: Option<String>,
    /// Columns, with commas between them; with + before them they are shown after the usual ones. Example: -o name,status
    #[arg(short, long, value_name = "FIELDS", allow_hyphen_values = true)]
    pub output: Option<String>,
    /// Write (nodata), (unavail) and (offline) for what has no value, instead of ?, - and *
    #[arg(short, long)]
    pub verbose: bool,
}

impl ListOptions {
    /// The unit that was chosen.
    pub fn units(&self) -> Option<Units> {
        self.units.as_deref().and_then(Units::from_letter)
    }
}

/// Reads yes or no.
pub(crate) fn yes_no(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "yes" | "true" => Ok(true),
        "no" | "false" => Ok(false),
        _ => Err("write yes or no".into()),
    }
}

/// Reads a size; the result is in MiB.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    match model::params::parse_mib(text) {
        Some(0) => Err("the size is zero".into()),
        Some(mib) => Ok(mib),
        None => Err("write a size such as 512m, 4g or 1.5t".into()),
    }
}

/// Names of the disk templates, for clap, which shows them where another one is given.
pub(crate) fn template() -> clap::builder::PossibleValuesParser {
    DiskTemplate::ALL.map(DiskTemplate::name).into()
}

/// The disk template that was chosen.
pub(crate) fn disk_template(name: Option<&str>) -> Result<Option<DiskTemplate>, Failure> {
    name.map(|name| name.parse().map_err(|text: String| Failure::refused(ErrorCode::WrongInput, text))).transpose()
}
