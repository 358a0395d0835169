//! How mirrored disks are, put together from what their nodes say.

use model::State;
use opcodes::Failure;
use opcodes::disks::DiskReport;

use crate::office::Office;

/// The disks of these instances, or of all.
pub async fn reports(_office: &Office, _state: &State, _names: &[String]) -> Result<Vec<DiskReport>, Failure> {
    Err(Failure::failed("not built yet"))
}
