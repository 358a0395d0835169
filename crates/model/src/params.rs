//! Parameters: what can be set for hypervisors, back ends and network interfaces, what it means, and its default.
//!
//! A parameter that is not set for an instance has the cluster's value, and one not set there the built-in default. Only
//! parameters that have an effect are listed here; another name is refused, not ignored.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// Value of a parameter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum ParamValue {
    /// Yes or no; shown as `True` and `False`, as in Ganeti.
    Bool(bool),
    /// A number; for memory in MiB.
    Int(i64),
    /// Text.
    Text(String),
}

/// Parameters by name.
pub type Params = BTreeMap<String, ParamValue>;

impl fmt::Display for ParamValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ParamValue::Bool(true) => f.write_str("True"),
            ParamValue::Bool(false) => f.write_str("False"),
            ParamValue::Int(number) => write!(f, "{number}"),
            ParamValue::Text(text) => f.write_str(text),
        }
    }
}

impl ParamValue {
    /// The number, if it is one.
    pub fn as_int(&self) -> Option<i64> {
        match self {
            ParamValue::Int(number) => Some(*number),
            _ => None,
        }
    }

    /// The truth value, if it is one.
    pub fn as_bool(&self) -> Option<bool> {
        match self {
            ParamValue::Bool(value) => Some(*value),
            _ => None,
        }
    }

    /// The text, if it is one.
    pub fn as_text(&self) -> Option<&str> {
        match self {
            ParamValue::Text(text) => Some(text),
            _ => None,
        }
    }
}

/// Kind of a parameter's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParamKind {
    /// Yes or no.
    Bool,
    /// A number.
    Int,
    /// A size in MiB; written `256`, `256m` or `1g`.
    Mib,
    /// Any text.
    Text,
    /// One of these words.
    Choice(&'static [&'static str]),
}

/// Definition of a parameter.
#[derive(Clone, Debug)]
pub struct ParamDef {
    /// Its name.
    pub name: &'static str,
    /// What values it takes.
    pub kind: ParamKind,
    /// Its built-in default, as a user would type it.
    pub default: &'static str,
    /// What it does.
    pub help: &'static str,
}

const fn def(name: &'static str, kind: ParamKind, default: &'static str, help: &'static str) -> ParamDef {
    ParamDef { name, kind, default, help }
}

use ParamKind::{Bool, Choice, Int, Mib, Text};

/// Parameters of the hypervisor `kvm`: QEMU, with KVM where it really runs guests, else its translator (TCG).
pub const KVM: &[ParamDef] = &[
    def("acpi", Bool, "true", "the guest has ACPI; without it it can't be asked to shut down"),
    def("boot_order", Choice(&["disk", "network"]), "disk", "where a guest without its own kernel_path boots from"),
    def("cpu_type", Text, "", "CPU model of the guest; empty: the most that every node of the same kind can run"),
    def("initrd_path", Text, "", "initial RAM disk for kernel_path"),
    def("kernel_args", Text, "ro", "arguments for kernel_path"),
    def("kernel_path", Text, "", "kernel to boot, a file on the node; empty: boot from the disk"),
    def("machine_version", Text, "", "QEMU machine type; empty: the newest versioned 'pc' of the node's QEMU"),
    def("reboot_behavior", Choice(&["reboot", "exit"]), "reboot", "what happens when the guest reboots itself"),
    def("root_path", Text, "/dev/vda1", "root device given to kernel_path"),
    def("serial_console", Bool, "true", "the guest has a serial console; gnt-instance console needs it"),
];

/// Parameters of the hypervisor `fake`, which runs nothing.
pub const FAKE: &[ParamDef] = &[];

/// Parameters of an instance's share of a node.
pub const BACKEND: &[ParamDef] = &[
    def("always_failover", Bool, "false", "stop and start instead of migrating"),
    def("auto_balance", Bool, "true", "counted when memory is kept free for the loss of a node"),
    def("ha_priority", Int, "5", "who is taken over first when a node dies: higher ones before lower ones"),
    def("maxmem", Mib, "128", "most memory, MiB"),
    def("minmem", Mib, "128", "least memory, MiB"),
    def("spindle_use", Int, "1", "how much of a node's disk activity it is expected to take"),
    def("vcpus", Int, "1", "virtual CPUs"),
];

/// Parameters of a network interface.
pub const NIC: &[ParamDef] = &[
    def("link", Text, "br0", "bridge on the node"),
    def("mode", Choice(&["bridged"]), "bridged", "how it is connected"),
    def("vlan", Text, "", "VLAN on the bridge"),
];

/// Every hypervisor with its parameters.
pub const HYPERVISORS: &[(&str, &[ParamDef])] = &[("kvm", KVM), ("fake", FAKE)];

/// Parameters of a hypervisor, `None` for an unknown one.
pub fn hypervisor(name: &str) -> Option<&'static [ParamDef]> {
    HYPERVISORS.iter().find(|(known, _)| *known == name).map(|(_, defs)| *defs)
}

/// Why a parameter is refused; the texts are Ganeti's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParamError {
    /// No parameter of that name.
    #[error("Unknown parameter '{0}'")]
    Unknown(String),
    /// The value is not of its kind.
    #[error("Invalid value '{value}' for parameter '{name}': {wanted}")]
    Invalid {
        /// The parameter.
        name: String,
        /// What was given.
        value: String,
        /// What it takes.
        wanted: String,
    },
}

impl ParamDef {
    /// Reads a value as a user types it.
    ///
    /// # Errors
    /// [`ParamError::Invalid`] with what would have been right.
    pub fn parse(&self, text: &str) -> Result<ParamValue, ParamError> {
        let invalid = |wanted: String| ParamError::Invalid { name: self.name.into(), value: text.into(), wanted };
        match self.kind {
            Bool => match text.to_ascii_lowercase().as_str() {
                "true" | "yes" | "on" | "1" => Ok(ParamValue::Bool(true)),
                "false" | "no" | "off" | "0" => Ok(ParamValue::Bool(false)),
                _ => Err(invalid("expected true or false".into())),
            },
            Int => match text.parse::<i64>() {
                Ok(number) if number >= 0 => Ok(ParamValue::Int(number)),
                _ => Err(invalid("expected a whole number".into())),
            },
            Mib => parse_mib(text)
                .and_then(|mib| i64::try_from(mib).ok())
                .map(ParamValue::Int)
                .ok_or_else(|| invalid("expected a size such as 256, 256m or 1g".into())),
            Text => Ok(ParamValue::Text(text.into())),
            Choice(words) if words.contains(&text) => Ok(ParamValue::Text(text.into())),
            Choice(words) => Err(invalid(format!("expected one of {}", words.join(", ")))),
        }
    }

    /// The built-in default.
    pub fn default_value(&self) -> ParamValue {
        self.parse(self.default).unwrap_or_else(|_| ParamValue::Text(self.default.into()))
    }

    /// Checks a value that came as data (from the API) and brings it into the parameter's own kind.
    ///
    /// # Errors
    /// As [`Self::parse`].
    pub fn check(&self, value: &ParamValue) -> Result<ParamValue, ParamError> {
        match (self.kind, value) {
            (Bool, ParamValue::Bool(_)) => Ok(value.clone()),
            (Int | Mib, ParamValue::Int(number)) if *number >= 0 => Ok(value.clone()),
            (_, value) => self.parse(&value.to_string()),
        }
    }
}

/// Reads a size in MiB: a number (of MiB), or one with a unit `m`, `g`, `t` (fractions allowed there). `None` if it is
/// not a size, or is larger than 2^50 MiB.
pub fn parse_mib(text: &str) -> Option<u64> {
    let text = text.trim();
    let lower = text.to_ascii_lowercase();
    let (number, factor) = match lower.trim_end_matches("ib").trim_end_matches('b') {
        trimmed if trimmed.ends_with('m') => (&lower[..trimmed.len() - 1], 1u64),
        trimmed if trimmed.ends_with('g') => (&lower[..trimmed.len() - 1], 1024),
        trimmed if trimmed.ends_with('t') => (&lower[..trimmed.len() - 1], 1024 * 1024),
        _ => (lower.as_str(), 1),
    };
    let number = number.trim();
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit()) && part.len() <= 15;
    if whole.is_empty() || !digits(whole) || !digits(fraction) || (fraction.is_empty() && number.contains('.')) {
        return None;
    }
    // Integers all the way: the same text gives the same size everywhere. What is left of a MiB is rounded up.
    let scale = 10u128.pow(fraction.len() as u32);
    let value = whole.parse::<u128>().ok()? * scale + fraction.parse::<u128>().unwrap_or(0);
    let mib = (value * u128::from(factor)).div_ceil(scale);
    (mib <= 1 << 50).then_some(mib as u64)
}

/// Checks parameters against their definitions. `memory` stands for both `minmem` and `maxmem` where those exist.
///
/// # Errors
/// The first one that is unknown or has a value of the wrong kind.
pub fn check(defs: &[ParamDef], given: &Params) -> Result<Params, ParamError> {
    let mut checked = Params::new();
    for (name, value) in given {
        let names: &[&str] = match name.as_str() {
            "memory" if defs.iter().any(|def| def.name == "maxmem") => &["maxmem", "minmem"],
            other => &[other],
        };
        for name in names {
            let def =
                defs.iter().find(|def| def.name == *name).ok_or_else(|| ParamError::Unknown((*name).to_owned()))?;
            checked.insert(def.name.to_owned(), def.check(value)?);
        }
    }
    Ok(checked)
}

/// The values that hold: the built-in defaults, overlaid by each layer in turn.
pub fn fill(defs: &[ParamDef], layers: &[&Params]) -> Params {
    defs.iter()
        .map(|def| {
            let value = layers.iter().rev().find_map(|layer| layer.get(def.name)).cloned();
            (def.name.to_owned(), value.unwrap_or_else(|| def.default_value()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_users_write_them() {
        for (text, mib) in [
            ("128", Some(128)),
            ("128m", Some(128)),
            ("128M", Some(128)),
            ("4g", Some(4096)),
            ("1.5G", Some(1536)),
            ("2T", Some(2 << 20)),
            ("10GiB", Some(10240)),
            ("0.0001g", Some(1)),
            ("", None),
            ("g", None),
            ("-1", None),
            ("4x", None),
            ("1.g", None),
            ("1..5g", None),
            ("99999999999999999999g", None),
            ("999999999999999t", None),
            ("1e3", None),
        ] {
            assert_eq!(parse_mib(text), mib, "{text:?}");
        }
    }

    #[test]
    fn memory_stands_for_both_bounds() {
        let given = Params::from([("memory".to_owned(), ParamValue::Text("1g".into()))]);
        let checked = check(BACKEND, &given).unwrap();
        assert_eq!(checked["minmem"], ParamValue::Int(1024));
        assert_eq!(checked["maxmem"], ParamValue::Int(1024));
    }

    #[test]
    fn an_unknown_or_wrong_parameter_is_refused() {
        let given = |name: &str, value: &str| Params::from([(name.to_owned(), ParamValue::Text(value.into()))]);
        assert_eq!(check(BACKEND, &given("nosuchparam", "1")), Err(ParamError::Unknown("nosuchparam".into())));
        assert!(check(BACKEND, &given("vcpus", "-1")).is_err());
        assert!(check(KVM, &given("acpi", "perhaps")).is_err());
        assert!(check(KVM, &given("boot_order", "floppy")).is_err());
    }

    #[test]
    fn a_later_layer_wins() {
        let cluster = Params::from([("vcpus".to_owned(), ParamValue::Int(2))]);
        let instance = Params::from([("vcpus".to_owned(), ParamValue::Int(4))]);
        assert_eq!(fill(BACKEND, &[&cluster])["vcpus"], ParamValue::Int(2));
        assert_eq!(fill(BACKEND, &[&cluster, &instance])["vcpus"], ParamValue::Int(4));
        assert_eq!(fill(BACKEND, &[])["maxmem"], ParamValue::Int(128));
    }

    #[test]
    fn every_default_is_a_value_of_its_kind() {
        for def in KVM.iter().chain(BACKEND).chain(NIC) {
            assert!(def.parse(def.default).is_ok(), "{}", def.name);
        }
    }

    proptest::proptest! {
        #[test]
        fn reading_a_size_never_panics(text in ".{0,40}") {
            let _ = parse_mib(&text);
        }
    }
}
