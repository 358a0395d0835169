//! The columns that can be asked for, with Ganeti's names and titles.

use crate::wire::{Field, FieldKind, Resource};

/// Definition of a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FieldDef {
    /// Its name in requests.
    pub name: &'static str,
    /// Its heading.
    pub title: &'static str,
    /// Its kind: sizes are numbers of MiB, times are numbers of seconds since 1970 with a fraction, [`FieldKind::Other`]
    /// is a list or a dictionary.
    pub kind: FieldKind,
    /// What it holds.
    pub doc: &'static str,
}

impl FieldDef {
    /// As it is sent with a table.
    pub fn field(&self) -> Field {
        Field { name: self.name.into(), title: self.title.into(), kind: self.kind, doc: self.doc.into() }
    }
}

const fn def(name: &'static str, title: &'static str, kind: FieldKind, doc: &'static str) -> FieldDef {
    FieldDef { name, title, kind, doc }
}

use FieldKind::{Bool, Number, Other, Text, Timestamp, Unit};

const INSTANCE: &[FieldDef] = &[
    def("admin_state", "InstanceState", Text, "What the administrator wants: up, down or offline"),
    def("admin_up", "Autostart", Bool, "Whether the administrator wants it to run"),
    def("be/maxmem", "ConfigMaxMem", Unit, "Most memory, as configured"),
    def("be/memory", "ConfigMaxMem", Unit, "Most memory, as configured (older name of be/maxmem)"),
    def("be/minmem", "ConfigMinMem", Unit, "Least memory, as configured"),
    def("be/vcpus", "ConfigVCPUs", Number, "Virtual CPUs, as configured"),
    def("beparams", "BackendParameters", Other, "Back-end parameters that hold, defaults included"),
    def("bridge", "NicBridge/0", Text, "Bridge of the first network interface"),
    def("ctime", "CTime", Timestamp, "When it was made"),
    def("custom_beparams", "CustomBackendParameters", Other, "Back-end parameters that differ from the cluster's"),
    def("custom_hvparams", "CustomHypervisorParameters", Other, "Hypervisor parameters that differ from the cluster's"),
    def("disk.count", "Disks", Number, "Number of disks"),
    def("disk.sizes", "Disk_sizes", Other, "Size of each disk, in MiB"),
    def("disk_template", "Disk_template", Text, "How its disks are stored"),
    def("disk_usage", "DiskUsage", Unit, "Space that its disks may take on each of its nodes"),
    def(
        "disks_active",
        "DisksActive",
        Bool,
        "Whether its disks are in use: by the guest, or shown on its primary node",
    ),
    def("hvparams", "HypervisorParameters", Other, "Hypervisor parameters that hold, defaults included"),
    def("hypervisor", "Hypervisor", Text, "Hypervisor that runs it"),
    def("ip", "NicIP/0", Text, "Address of the first network interface"),
    def("mac", "NicMAC/0", Text, "Hardware address of the first network interface"),
    def("mtime", "MTime", Timestamp, "When its configuration was last changed"),
    def("name", "Instance", Text, "Its name"),
    def("network_port", "Network_port", Other, "Port of its graphical console, where it has one"),
    def("nic.count", "NICs", Number, "Number of network interfaces"),
    def("nic.ips", "NIC_IPs", Other, "Address of each network interface"),
    def("nic.links", "NIC_links", Other, "Bridge of each network interface"),
    def("nic.macs", "NIC_MACs", Other, "Hardware address of each network interface"),
    def("nic.modes", "NIC_modes", Other, "Mode of each network interface"),
    def("nic_link", "NicLink/0", Text, "Bridge of the first network interface"),
    def("nic_mode", "NicMode/0", Text, "Mode of the first network interface"),
    def("oper_ram", "Memory", Unit, "Memory that it has now, as its hypervisor says"),
    def("oper_state", "Running", Bool, "Whether it runs now, as its hypervisor says"),
    def("oper_vcpus", "VCPUs", Number, "Virtual CPUs that it has now, as its hypervisor says"),
    def("os", "OS", Text, "Operating system and its variant"),
    def("pnode", "Primary_node", Text, "Node that has it, running or not"),
    def("pnode.group", "PrimaryNodeGroup", Text, "Group of its primary node"),
    def("serial_no", "SerialNo", Number, "Grows with each change of its configuration"),
    def("snodes", "Secondary_Nodes", Other, "Nodes that hold further replicas of its disks"),
    def(
        "status",
        "Status",
        Text,
        "What is wanted and what is so: running, ADMIN_down or ADMIN_offline where both agree; ERROR_down or ERROR_up where \
         they don't; ERROR_wrongnode, ERROR_nodedown or ERROR_nodeoffline where its node is the matter",
    ),
    def("tags", "Tags", Other, "Its tags"),
    def("uuid", "UUID", Text, "Its identity, never given again"),
    def("vcpus", "ConfigVCPUs", Number, "Virtual CPUs, as configured (older name of be/vcpus)"),
];

const NODE: &[FieldDef] = &[
    def("bootid", "BootID", Text, "Identity of the present boot of its kernel"),
    def("ctime", "CTime", Timestamp, "When it was added"),
    def("ctotal", "CTotal", Number, "Logical processors"),
    def("dfree", "DFree", Unit, "Space that is free for disks"),
    def("drained", "Drained", Bool, "Whether it takes no new instances"),
    def("dtotal", "DTotal", Unit, "Space for disks, free or not"),
    def("group", "Group", Text, "Its group"),
    def("master", "IsMaster", Bool, "Whether it is the master"),
    def("master_candidate", "MasterC", Bool, "Whether it may become master now"),
    def("master_capable", "MasterCapable", Bool, "Whether it may be a master candidate"),
    def("mfree", "MFree", Unit, "Memory that is free for instances"),
    def("mnode", "MNode", Unit, "Memory that the node itself uses"),
    def("mtime", "MTime", Timestamp, "When its configuration was last changed"),
    def("mtotal", "MTotal", Unit, "Memory of the machine"),
    def("name", "Node", Text, "Its name"),
    def("offline", "Offline", Bool, "Whether it is marked as away"),
    def("pinst_cnt", "Pinst", Number, "Number of instances that have it as primary node"),
    def("pinst_list", "PriInstances", Other, "Instances that have it as primary node"),
    def("pip", "PrimaryIP", Text, "Its address"),
    def("powered", "Powered", Bool, "Whether it is thought to be switched on"),
    def("role", "Role", Text, "M: master, C: master candidate, R: regular, D: drained, O: offline"),
    def("serial_no", "SerialNo", Number, "Grows with each change of its configuration"),
    def("sinst_cnt", "Sinst", Number, "Number of instances that have a further replica here"),
    def("sinst_list", "SecInstances", Other, "Instances that have a further replica here"),
    def("sip", "SecondaryIP", Text, "Its address for replication"),
    def("tags", "Tags", Other, "Its tags"),
    def("uuid", "UUID", Text, "Its identity, never given again"),
    def("vm_capable", "VMCapable", Bool, "Whether it may run instances"),
];

const JOB: &[FieldDef] = &[
    def("end_ts", "End", Timestamp, "When it ended"),
    def("id", "ID", Number, "Its number"),
    def("opresult", "OpCode_result", Other, "Result of each opcode"),
    def("ops", "OpCodes", Other, "Its opcodes, with their parameters"),
    def("opstatus", "OpCode_status", Other, "State of each opcode"),
    def("priority", "Priority", Number, "-20 (first) to 19 (last)"),
    def("received_ts", "Received", Timestamp, "When it was submitted"),
    def("start_ts", "Start", Timestamp, "When it was taken from the queue"),
    def("status", "Status", Text, "queued, waiting, canceling, running, canceled, success or error"),
    def("summary", "Summary", Other, "One line for each opcode"),
    def("user", "User", Text, "Who asked for it"),
];

const OS: &[FieldDef] = &[
    def("api_versions", "ApiVersions", Other, "Versions of the OS interface that it offers on every node"),
    def("blacklisted", "Blacklisted", Bool, "Whether new instances may not have it"),
    def("hidden", "Hidden", Bool, "Whether it is left out of lists"),
    def("name", "Name", Text, "Its name"),
    def("parameters", "Parameters", Other, "Parameters that its scripts take, with what they mean"),
    def("valid", "Valid", Bool, "Whether every node that runs instances has it, complete"),
    def("variants", "Variants", Other, "Its variants"),
];

/// All columns of a kind of object, by name.
pub fn all(what: Resource) -> &'static [FieldDef] {
    match what {
        Resource::Instance => INSTANCE,
        Resource::Node => NODE,
        Resource::Job => JOB,
        Resource::Os => OS,
    }
}

/// The columns that are shown unless others are asked for.
pub fn defaults(what: Resource) -> &'static [&'static str] {
    match what {
        Resource::Instance => &["name", "hypervisor", "os", "pnode", "status", "oper_ram"],
        Resource::Node => &["name", "dtotal", "dfree", "mtotal", "mnode", "mfree", "pinst_cnt", "sinst_cnt"],
        Resource::Job => &["id", "status", "summary"],
        Resource::Os => &["name"],
    }
}

/// The column of that name; `None` if there is none.
pub fn definition(what: Resource, name: &str) -> Option<&'static FieldDef> {
    let fields = all(what);
    fields.binary_search_by(|field| field.name.cmp(name)).ok().map(|index| &fields[index])
}

/// The column of that name as it is sent with a table; one of kind [`FieldKind::Unknown`] if there is none.
pub fn column(what: Resource, name: &str) -> Field {
    match definition(what, name) {
        Some(definition) => definition.field(),
        None => Field {
            name: name.into(),
            title: name.into(),
            kind: FieldKind::Unknown,
            doc: format!("Unknown field '{name}'"),
        },
    }
}

/// Ganeti's word for a kind of column.
pub fn kind_word(kind: FieldKind) -> &'static str {
    match kind {
        FieldKind::Text => "Text",
        FieldKind::Bool => "Boolean",
        FieldKind::Number => "Number",
        FieldKind::Unit => "Storage size",
        FieldKind::Timestamp => "Timestamp",
        FieldKind::Other => "Custom",
        FieldKind::Unknown => "Unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_column_is_found_by_its_name_and_the_defaults_exist() {
        for what in [Resource::Instance, Resource::Node, Resource::Job, Resource::Os] {
            let mut last = "";
            for field in all(what) {
                assert!(last < field.name, "{} is out of order", field.name);
                last = field.name;
                assert_eq!(definition(what, field.name), Some(field));
                assert!(!field.doc.is_empty() && !field.title.contains(' '), "{}", field.name);
            }
            for name in defaults(what) {
                assert!(definition(what, name).is_some(), "{name}");
            }
        }
    }

    #[test]
    fn an_unknown_column_keeps_its_name() {
        let field = column(Resource::Node, "nosuchfield");
        assert_eq!((field.title.as_str(), field.kind), ("nosuchfield", FieldKind::Unknown));
    }
}
