//! `gnt-instance modify`.

use clap::Args;
use model::DiskTemplate;
use model::params::BACKEND;
use opcodes::Opcode;
use opcodes::op::InstanceSetParams;

use crate::error::Error;
use crate::options::{JobOptions, disk_template, template};
use crate::parameters::{self, Named, Settings};
use crate::session::Session;
use crate::{devices, follow, usage};

#[derive(Args)]
pub(crate) struct ModifyArgs {
    /// Name of the instance
    #[arg(value_name = "INSTANCE")]
    args: Vec<String>,
    /// Memory (MiB, or with a unit) and virtual CPUs; -name or name=default gives one back to the cluster's value.
    /// Example: -B memory=512,-vcpus
    #[arg(short = 'B', long, value_name = "PARAMETERS", value_parser = parameters::settings, allow_hyphen_values = true)]
    backend_parameters: Vec<Settings>,
    /// Parameters of its hypervisor, likewise. Example: -H kernel_args=ro
    #[arg(short = 'H', long, value_name = "PARAMETERS", value_parser = parameters::settings, allow_hyphen_values = true)]
    hypervisor_parameters: Vec<Settings>,
    /// Parameters for its operating system's scripts, likewise. Example: -O filesystem=ext4
    #[arg(short = 'O', long, value_name = "PARAMETERS", value_parser = parameters::settings, allow_hyphen_values = true)]
    os_parameters: Vec<Settings>,
    /// A change of its network interfaces: add, remove or modify, and which (-1: the last); may be given several times.
    /// Examples: --net add:ip=10.0.0.13, --net 0:link=br1, --net 0:remove
    #[arg(long, value_name = "INDEX:CHANGE", value_parser = parameters::named, allow_hyphen_values = true)]
    net: Vec<Named>,
    /// Operating system and variant that it is said to have; its disks stay as they are
    #[arg(short, long, value_name = "OS")]
    os_type: Option<String>,
    /// Mark it as not to be started, so that no memory is kept free for it
    #[arg(long)]
    offline: bool,
    /// Mark it as stopped, so that it can be started again
    #[arg(long, conflicts_with = "offline")]
    online: bool,
    /// Store its disks in another way: file or drbd; only while it is stopped. Example: -t drbd -n node02
    #[arg(short = 't', long, value_name = "TEMPLATE", value_parser = template())]
    disk_template: Option<String>,
    /// The secondary node that the template drbd needs
    #[arg(short, long, value_name = "NODE", requires = "disk_template")]
    node: Option<String>,
    #[command(flatten)]
    job: JobOptions,
}

impl ModifyArgs {
    pub(super) async fn run(mut self: Box<Self>, session: &mut Session) -> Result<u8, Error> {
        let job = std::mem::take(&mut self.job);
        let change = self.change()?;
        let name = change.instance_name.clone();
        let result = follow::one(session, Opcode::InstanceSetParams(Box::new(change)), &job).await?;
        if follow::changed(session, "instance", &name, result.as_ref())? {
            session.say(
                "Please don't forget that most parameters take effect only at the next (re)start of the instance initiated by \
                 ganeti; restarting from within the instance will not be enough.",
            )?;
        }
        Ok(0)
    }

    /// What is to be changed.
    fn change(self) -> Result<InstanceSetParams, Error> {
        let [instance_name] = usage::exactly("modify", self.args)?;
        let disk_template = disk_template(self.disk_template.as_deref())?;
        if disk_template == Some(DiskTemplate::Drbd) && self.node.is_none() {
            return Err(Error::message(
                "Changing the disk template to a mirrored one requires specifying a secondary node",
            ));
        }
        let change = InstanceSetParams {
            instance_name: instance_name.clone(),
            hvparams: parameters::all_changes(None, &self.hypervisor_parameters)?,
            beparams: parameters::all_changes(Some(BACKEND), &self.backend_parameters)?,
            osparams: parameters::all_changes(None, &self.os_parameters)?,
            nics: devices::nic_changes(&self.net)?,
            os_name: self.os_type,
            offline: if self.offline { Some(true) } else { self.online.then_some(false) },
            disk_template,
            remote_node: self.node,
        };
        if change == (InstanceSetParams { instance_name, ..InstanceSetParams::default() }) {
            return Err(Error::message("Please give at least one of the parameters."));
        }
        Ok(change)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use model::ParamValue;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        modify: ModifyArgs,
    }

    fn change(words: &[&str]) -> Result<InstanceSetParams, Error> {
        Line::try_parse_from(std::iter::once(&"modify").chain(words)).unwrap().modify.change()
    }

    #[test]
    fn changes_are_read() {
        let changed =
            change(&["-B", "memory=128,-vcpus", "-H", "-acpi,kernel_args=ro", "--net", "-1:remove", "--online", "vm1"])
                .unwrap();
        assert_eq!(changed.beparams["memory"], Some(ParamValue::Int(128)));
        assert_eq!(changed.beparams["vcpus"], None);
        assert_eq!(changed.hvparams["acpi"], None);
        assert_eq!(changed.hvparams["kernel_args"], Some(ParamValue::Text("ro".into())));
        assert_eq!(changed.nics[0].index, -1);
        assert_eq!(changed.offline, Some(false));
    }

    #[test]
    fn disks_are_converted() {
        let changed = change(&["-t", "drbd", "-n", "node02", "vm1"]).unwrap();
        assert_eq!((changed.disk_template, changed.remote_node.as_deref()), (Some(DiskTemplate::Drbd), Some("node02")));
        assert_eq!(change(&["-t", "file", "vm1"]).unwrap().disk_template, Some(DiskTemplate::File));
        let refused = change(&["-t", "drbd", "vm1"]).unwrap_err();
        assert!(refused.to_string().contains("requires specifying a secondary node"));
    }

    #[test]
    fn no_change_is_an_error() {
        assert_eq!(change(&["vm1"]).unwrap_err().to_string(), "Please give at least one of the parameters.");
        assert!(matches!(change(&["-B", "nosuchparam=1", "vm1"]), Err(Error::Parameter(_))));
    }
}
