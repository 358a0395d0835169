//! The node's memory and CPUs, as the kernel tells them.

use std::collections::BTreeSet;

use crate::error::{Error, Result};

/// A node's resources without regard to guests. Memory is in MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Host {
    pub memory_total_mib: u64,
    pub memory_available_mib: u64,
    pub cpus: u32,
    pub cpu_nodes: u32,
    pub cpu_sockets: u32,
}

/// Reads `/proc` and `/sys`.
pub(crate) fn read() -> Result<Host> {
    let read = |path: &str| std::fs::read_to_string(path).map_err(Error::io(format!("read {path}")));
    let meminfo = read("/proc/meminfo")?;
    let cpuinfo = read("/proc/cpuinfo")?;
    let numa = std::fs::read_dir("/sys/devices/system/node").map_or(0, |entries| {
        let names = entries.flatten().map(|entry| entry.file_name());
        names.filter(|name| is_numa_node(&name.to_string_lossy())).count()
    });
    let (cpus, cpu_sockets) = count_cpus(&cpuinfo);
    Ok(Host {
        memory_total_mib: field_mib(&meminfo, "MemTotal"),
        memory_available_mib: field_mib(&meminfo, "MemAvailable"),
        cpus,
        cpu_nodes: (numa as u32).max(1),
        cpu_sockets,
    })
}

/// Memory that a process holds, in MiB; 0 if it is gone.
pub(crate) fn resident_mib(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"));
    status.map_or(0, |status| field_mib(&status, "VmRSS"))
}

/// A field of `/proc/meminfo` or `/proc/PID/status`, `Name:  123 kB`, in MiB; 0 if it is not there.
fn field_mib(text: &str, name: &str) -> u64 {
    text.lines()
        .filter_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .find_map(|value| value.split_ascii_whitespace().next()?.parse::<u64>().ok())
        .map_or(0, |kib| kib / 1024)
}

fn is_numa_node(name: &str) -> bool {
    name.strip_prefix("node").is_some_and(|number| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
}

/// Logical CPUs and sockets. Virtual machines often tell no socket: then it is one.
fn count_cpus(cpuinfo: &str) -> (u32, u32) {
    let fields = cpuinfo.lines().filter_map(|line| line.split_once(':'));
    let mut cpus = 0;
    let mut sockets = BTreeSet::new();
    for (name, value) in fields {
        match name.trim() {
            "processor" => cpus += 1,
            "physical id" => {
                sockets.insert(value.trim());
            }
            _ => {}
        }
    }
    (cpus.max(1), (sockets.len() as u32).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_and_cpus_are_counted() {
        let meminfo = "MemTotal:       24683776 kB\nMemFree:  1 kB\nMemAvailable:    2048 kB\n";
        assert_eq!(field_mib(meminfo, "MemTotal"), 24105);
        assert_eq!(field_mib(meminfo, "MemAvailable"), 2);
        assert_eq!(field_mib(meminfo, "Mem"), 0);
        let cpuinfo = "processor\t: 0\nphysical id\t: 0\n\nprocessor\t: 1\nphysical id\t: 1\n";
        assert_eq!(count_cpus(cpuinfo), (2, 2));
        assert_eq!(count_cpus("processor : 0\n"), (1, 1));
    }

    #[test]
    fn this_machine_has_some_of_each() {
        let host = read().unwrap();
        assert!(host.memory_total_mib > 0 && host.memory_available_mib <= host.memory_total_mib);
        assert!(host.cpus > 0 && resident_mib(std::process::id() as i32) > 0);
    }
}
