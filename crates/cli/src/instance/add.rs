//! `gnt-instance add`.

use std::collections::BTreeSet;

use clap::Args;
use model::params::{BACKEND, hypervisor};
use model::{DiskTemplate, Params};
use opcodes::op::{DiskRequest, InstanceCreate};
use opcodes::{ErrorCode, Failure, Opcode};

use crate::error::Error;
use crate::options::{JobOptions, disk_template, size, template};
use crate::parameters::{self, Named, Settings};
use crate::session::Session;
use crate::{devices, follow, usage};

pub(super) const EXAMPLES: &str = "EXAMPLES
  gnt-instance add -t drbd -s 4g -B memory=128 -o busybox+default -n node01:node02 vm2
  gnt-instance add -t file -s 4g -B memory=128 -o busybox+default -n node01 vm3
  gnt-instance add -t file --disk 0:size=10g --disk 1:size=512m,mode=ro --net 0:ip=10.0.0.10,mac=auto \\
      -B memory=256,vcpus=2 -o busybox+default -n node01 vm1
  gnt-instance add -t diskless --no-nics --no-start -H kvm:kernel_path=/boot/vmlinuz -o busybox+default -n node01 vm4";

#[derive(Args)]
pub(crate) struct AddArgs {
    /// Name of the new instance
    #[arg(value_name = "INSTANCE")]
    args: Vec<String>,
    /// How its disks are stored; the cluster's usual template unless given
    #[arg(short = 't', long, value_name = "TEMPLATE", value_parser = template())]
    disk_template: Option<String>,
    /// A disk: its index, its size and more; may be given several times. Parameters: size (512m, 4g, 1.5t; a number
    /// alone is MiB), mode (rw or ro), name. Example: --disk 0:size=4g
    #[arg(long, value_name = "INDEX:PARAMETERS", value_parser = parameters::named)]
    disk: Vec<Named>,
    /// Size of its only disk; short for --disk 0:size=SIZE. Example: -s 4g
    #[arg(short = 's', long, value_name = "SIZE", value_parser = size, conflicts_with = "disk")]
    os_size: Option<u64>,
    /// A network interface; may be given several times. Parameters: mac (auto, or a hardware address), ip, mode, link (a
    /// bridge), vlan, name. Without it there is one, as the cluster's parameters say. Example: --net 0:ip=10.0.0.10,mac=auto
    #[arg(long, value_name = "INDEX:PARAMETERS", value_parser = parameters::named)]
    net: Vec<Named>,
    /// No network interfaces
    #[arg(long, conflicts_with = "net")]
    no_nics: bool,
    /// Operating system and variant; 'gnt-os list' shows them. Example: -o busybox+default
    #[arg(short, long, value_name = "OS")]
    os_type: Option<String>,
    /// Parameters for the operating system's scripts. Example: -O filesystem=ext4
    #[arg(short = 'O', long, value_name = "PARAMETERS", value_parser = parameters::settings)]
    os_parameters: Vec<Settings>,
    /// Node to put it on, and after a colon the node for the second replica of its disks. Example: -n node01:node02
    #[arg(short, long, value_name = "NODE[:NODE]")]
    node: Option<String>,
    /// Memory (MiB, or with a unit) and virtual CPUs. Example: -B memory=256,vcpus=2
    #[arg(short = 'B', long, value_name = "PARAMETERS", value_parser = parameters::settings)]
    backend_parameters: Vec<Settings>,
    /// Hypervisor and its parameters. Example: -H kvm:kernel_path=/boot/vmlinuz,root_path=/dev/vda
    #[arg(short = 'H', long, value_name = "NAME[:PARAMETERS]", value_parser = parameters::named)]
    hypervisor_parameters: Option<Named>,
    /// Don't start it
    #[arg(long)]
    no_start: bool,
    /// Leave its disks empty; its first start is up to you
    #[arg(long)]
    no_install: bool,
    /// Make it although its address answers already
    #[arg(long)]
    no_ip_check: bool,
    /// Make it although its name can't be resolved
    #[arg(long)]
    no_name_check: bool,
    /// Refuse it if its address answers already (this is so unless --no-ip-check is given)
    #[arg(long, conflicts_with = "no_ip_check")]
    ip_check: bool,
    /// Refuse it if its name can't be resolved (this is so unless --no-name-check is given)
    #[arg(long, conflicts_with = "no_name_check")]
    name_check: bool,
    /// Tags, with commas between them. Example: --tags=web,prod
    #[arg(long, value_name = "TAGS", value_delimiter = ',')]
    tags: Vec<String>,
    #[command(flatten)]
    job: JobOptions,
}

impl AddArgs {
    pub(super) async fn run(mut self: Box<Self>, session: &mut Session) -> Result<u8, Error> {
        let job = std::mem::take(&mut self.job);
        let op = self.opcode()?;
        follow::one(session, op, &job).await?;
        Ok(0)
    }

    /// The opcode that is meant.
    fn opcode(self) -> Result<Opcode, Error> {
        let [instance_name] = usage::exactly("add", self.args)?;
        let disk_template = disk_template(self.disk_template.as_deref())?;
        let disks = match self.os_size {
            Some(size) => vec![DiskRequest { size, ..DiskRequest::default() }],
            None => devices::disks(&self.disk)?,
        };
        match disk_template {
            Some(DiskTemplate::Diskless) if !disks.is_empty() => {
                return Err(wrong("Diskless instance, but disk information passed").into());
            }
            Some(DiskTemplate::Diskless) | None => {}
            Some(_) if disks.is_empty() => return Err(wrong("No disk information specified").into()),
            Some(_) => {}
        }
        let (pnode, snode) = nodes(self.node.as_deref())?;
        let (hypervisor_name, hvparams) = match &self.hypervisor_parameters {
            None => (None, Params::new()),
            Some(Named { name, settings }) => (Some(name.clone()), parameters::params(hypervisor(name), settings)?),
        };
        Ok(Opcode::InstanceCreate(Box::new(InstanceCreate {
            instance_name,
            pnode,
            snode,
            disk_template,
            disks,
            nics: if self.no_nics { Vec::new() } else { devices::nics(&self.net)? },
            os_type: self.os_type,
            osparams: parameters::all(None, &self.os_parameters)?,
            hypervisor: hypervisor_name,
            hvparams,
            beparams: parameters::all(Some(BACKEND), &self.backend_parameters)?,
            start: !self.no_start,
            no_install: self.no_install,
            ip_check: !self.no_ip_check,
            name_check: !self.no_name_check,
            tags: self.tags.into_iter().filter(|tag| !tag.is_empty()).collect::<BTreeSet<_>>(),
        })))
    }
}

fn wrong(text: &str) -> Failure {
    Failure::refused(ErrorCode::WrongInput, text)
}

/// Reads `node` or `node:node`.
fn nodes(text: Option<&str>) -> Result<(Option<String>, Option<String>), Failure> {
    let Some(text) = text else { return Ok((None, None)) };
    let (primary, secondary) = match text.split_once(':') {
        Some((primary, secondary)) => (primary, Some(secondary)),
        None => (text, None),
    };
    if primary.is_empty() || secondary.is_some_and(|node| node.is_empty() || node.contains(':')) {
        return Err(wrong(&format!("Invalid nodes '{text}': write node or primary:secondary")));
    }
    Ok((Some(primary.to_owned()), secondary.map(str::to_owned)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use model::ParamValue;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        add: AddArgs,
    }

    fn create(line: &str) -> Result<InstanceCreate, Error> {
        let words = std::iter::once("add").chain(line.split_whitespace());
        match Line::try_parse_from(words).unwrap().add.opcode()? {
            Opcode::InstanceCreate(create) => Ok(*create),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_commands_of_the_thesis_are_read() {
        let vm2 = create("-t file --disk 0:size=4g -B memory=128 -o debootstrap+default -n node01:node02 vm2").unwrap();
        assert_eq!((vm2.instance_name.as_str(), vm2.os_type.as_deref()), ("vm2", Some("debootstrap+default")));
        assert_eq!((vm2.pnode.as_deref(), vm2.snode.as_deref()), (Some("node01"), Some("node02")));
        assert_eq!(vm2.disks, [DiskRequest { size: 4096, ..DiskRequest::default() }]);
        assert_eq!(vm2.beparams["memory"], ParamValue::Int(128));
        assert_eq!(vm2.nics.len(), 1);
        assert!(vm2.start && vm2.ip_check && vm2.name_check && !vm2.no_install);
        let same =
            create("-tfile --disk=0:size=4g -Bmemory=128 -odebootstrap+default --node=node01:node02 vm2").unwrap();
        assert_eq!(same, vm2);
    }

    #[test]
    fn every_option_has_its_effect() {
        let vm = create(
            "-t file -s 10g --net 0:ip=10.0.0.10,mac=auto -H kvm:kernel_path=/vmlinuz,root_path=/dev/vda -O a=b,c \
             --no-start --no-install --no-ip-check --no-name-check --tags=web,prod vm1",
        )
        .unwrap();
        assert_eq!(vm.disks[0].size, 10240);
        assert_eq!(vm.nics[0].ip.as_deref(), Some("10.0.0.10"));
        assert_eq!(vm.hypervisor.as_deref(), Some("kvm"));
        assert_eq!(vm.hvparams["root_path"], ParamValue::Text("/dev/vda".into()));
        assert_eq!(vm.osparams["c"], ParamValue::Bool(true));
        assert!(!vm.start && vm.no_install && !vm.ip_check && !vm.name_check);
        assert_eq!(vm.tags, ["prod", "web"].map(str::to_owned).into());
        assert!(create("-t diskless --no-nics vm1").unwrap().nics.is_empty());
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_ganetis_words() {
        for (line, text) in [
            ("-t file vm", "error type: wrong_input, error details:\nNo disk information specified"),
            ("-t diskless -s 4g vm", "Diskless instance"),
            ("-t file --disk 0:size=4x vm", "Invalid size '4x' for disk 0"),
            ("-t file -s 4g -B nosuchparam=1 vm", "Parameter Error: Unknown parameter 'nosuchparam'"),
            ("-t file -s 4g -B memory=lots vm", "Parameter Error: Invalid value 'lots'"),
            ("-t file -s 4g -H kvm:nosuch=1 vm", "Parameter Error: Unknown parameter 'nosuch'"),
            ("-t file -s 4g -n a:b:c vm", "Invalid nodes 'a:b:c'"),
            ("-t file -s 4g -n :b vm", "Invalid nodes ':b'"),
            ("-t file -s 4g", "Error: Command add expects 1 argument(s)"),
            ("-t file -s 4g a b", "Error: Command add expects 1 argument(s)"),
        ] {
            let error = create(line).unwrap_err();
            assert!(error.to_string().contains(text), "{line}: {error}");
            assert_eq!(error.exit_code(), 1, "{line}");
        }
    }
}
