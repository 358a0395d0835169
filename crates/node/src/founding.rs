//! Making a cluster: `gnt-cluster init`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use model::{Cluster, Command, DiskTemplate, NewNode, Params, Proposal, Timestamp, Uuid, params};
use opcodes::wire::Init;
use opcodes::{ErrorCode, Failure};
use rpc::{ClusterCa, Identity, NodeKey};

use crate::config::Config;
use crate::member::now;

/// Defaults of `gnt-cluster init`; Ganeti's where it has one.
const NETDEV: &str = "br0";
const NETMASK: u8 = 32;
const MAC_PREFIX: &str = "aa:00:00";
const FILE_STORAGE_DIR: &str = "/srv/ganeti/file-storage";
const CANDIDATE_POOL_SIZE: u32 = 10;
const MAX_RUNNING_JOBS: u32 = 20;
/// How long a lease may last, milliseconds.
const LEASES: std::ops::RangeInclusive<u32> = 500..=60_000;
/// How long a machine on the same network may take to answer. An address that nobody has is silent for longer.
pub(crate) const PROBE: Duration = Duration::from_millis(300);

/// Looks up the IPv4 address of a name.
pub async fn resolve(name: &str) -> Result<Ipv4Addr, String> {
    let found = tokio::net::lookup_host((name, 0)).await.map_err(|error| error.to_string())?;
    found
        .filter_map(|address| match address.ip() {
            IpAddr::V4(address) => Some(address),
            IpAddr::V6(_) => None,
        })
        .next()
        .ok_or_else(|| "it has no IPv4 address".to_owned())
}

/// A cluster that is about to be made: what is proposed, and this node's identity in it.
pub struct Founding {
    pub identity: Identity,
    pub proposal: Proposal,
    pub address: Ipv4Addr,
}

/// Checks what is asked for and prepares it. Nothing is changed.
pub async fn prepare(config: &Config, init: &Init) -> Result<Founding, Failure> {
    let refused = |text: String| Failure::refused(ErrorCode::WrongInput, text);
    let lookup = async |name: &str| {
        resolve(name).await.map_err(|why| {
            Failure::refused(ErrorCode::ResolverError, format!("The given name ({name}) does not resolve: {why}"))
        })
    };
    let address = lookup(&init.cluster_name).await?;
    let own = lookup(&config.host_name).await?;
    if own.is_loopback() {
        return Err(Failure::refused(
            ErrorCode::EnvironmentError,
            format!(
                "This host's name ('{}') resolves to the loopback address {own}; give it its real address in /etc/hosts",
                config.host_name
            ),
        ));
    }
    if address.is_loopback() || address.is_unspecified() || address.is_multicast() || address.is_broadcast() {
        return Err(Failure::refused(
            ErrorCode::EnvironmentError,
            format!(
                "The cluster name '{}' resolves to {address}, which can't be a cluster's address",
                init.cluster_name
            ),
        ));
    }
    if own == address {
        return Err(refused(format!(
            "The cluster name '{}' and this host's name resolve to the same address {own}; the cluster needs one of its own",
            init.cluster_name
        )));
    }
    let netdev = init.master_netdev.clone().unwrap_or_else(|| NETDEV.into());
    check_address(&netdev, own, address).await?;

    let hypervisors = init.enabled_hypervisors.clone().unwrap_or_else(|| vec!["kvm".into()]);
    if hypervisors.is_empty() {
        return Err(refused("Enabled hypervisors list must contain at least one member".into()));
    }
    for name in hypervisors.iter().chain(init.hvparams.keys()) {
        if params::hypervisor(name).is_none() {
            let known: Vec<&str> = params::HYPERVISORS.iter().map(|(name, _)| *name).collect();
            return Err(refused(format!("Unknown hypervisor '{name}'; this version has {}", known.join(", "))));
        }
    }
    let checked = |what: &str, outcome: Result<Params, params::ParamError>| {
        outcome.map_err(|error| refused(format!("{what}: {error}")))
    };
    let mut hvparams = BTreeMap::new();
    for (name, given) in &init.hvparams {
        let defs = params::hypervisor(name).unwrap_or(&[]);
        hvparams.insert(name.clone(), checked(&format!("Hypervisor '{name}'"), params::check(defs, given))?);
    }
    let mac_prefix = init.mac_prefix.clone().unwrap_or_else(|| MAC_PREFIX.into()).to_ascii_lowercase();
    check_mac_prefix(&mac_prefix)?;
    let lease_ms = init.lease_ms.unwrap_or(model::LEASE_MS);
    if !LEASES.contains(&lease_ms) {
        return Err(refused(format!(
            "A lease of {lease_ms} ms is not in range [{}, {}]: a shorter one would end in every election, a longer one is no \
             failover",
            LEASES.start(),
            LEASES.end()
        )));
    }
    let netmask = init.master_netmask.unwrap_or(NETMASK);
    if !(1..=32).contains(&netmask) {
        return Err(refused(format!("Netmask {netmask} is not in range [1, 32]")));
    }
    let file_storage_dir = init.file_storage_dir.clone().unwrap_or_else(|| FILE_STORAGE_DIR.into());
    if !file_storage_dir.starts_with('/') {
        return Err(refused(format!("File storage directory '{file_storage_dir}' is not an absolute path")));
    }

    let crypto = |error: rpc::IdentityError| Failure::failed(crate::chain(&error));
    let uuid = Uuid::new_v4();
    let ca = ClusterCa::generate(&init.cluster_name).map_err(crypto)?;
    let key = NodeKey::generate().map_err(crypto)?;
    let request = key.csr_pem(&config.host_name).map_err(crypto)?;
    let certificate = ca.sign_csr(&request, uuid, 1).map_err(crypto)?;
    let identity = key.into_identity(&certificate, &ca.cert_pem()).map_err(crypto)?;

    let cluster = Cluster {
        name: init.cluster_name.clone(),
        uuid,
        ctime: Timestamp(0),
        mtime: Timestamp(0),
        serial_no: 0,
        address,
        netmask,
        netdev,
        mac_prefix,
        hypervisors,
        hvparams,
        beparams: checked("Back-end parameters", params::check(params::BACKEND, &init.beparams))?,
        nicparams: checked("Interface parameters", params::check(params::NIC, &init.nicparams))?,
        ndparams: Params::new(),
        disk_templates: init
            .enabled_disk_templates
            .clone()
            .filter(|templates| !templates.is_empty())
            .unwrap_or_else(|| DiskTemplate::ALL.to_vec()),
        file_storage_dir,
        candidate_pool_size: init.candidate_pool_size.unwrap_or(CANDIDATE_POOL_SIZE).max(1),
        max_running_jobs: MAX_RUNNING_JOBS,
        tags: BTreeSet::new(),
        os: BTreeMap::new(),
        drained: false,
        ha: true,
        lease_ms,
        ca_certificate: ca.cert_pem(),
        ca_key: ca.to_pem(),
    };
    let node = NewNode {
        name: config.host_name.clone(),
        uuid: Uuid::new_v4(),
        primary_ip: own,
        secondary_ip: init.secondary_ip.unwrap_or(own),
        group: None,
        master_capable: true,
        vm_capable: true,
    };
    let command =
        Command::Init { cluster: Box::new(cluster), incarnation: Uuid::new_v4(), group: Uuid::new_v4(), node };
    let proposal =
        Proposal { incarnation: model::Incarnation::default(), office: None, at: now(), commands: vec![command] };
    Ok(Founding { identity, proposal, address: own })
}

fn check_mac_prefix(prefix: &str) -> Result<(), Failure> {
    let digits = |part: &str| part.len() == 2 && part.bytes().all(|digit| digit.is_ascii_hexdigit());
    let octet = |part| if digits(part) { u8::from_str_radix(part, 16).ok() } else { None };
    let octets: Vec<Option<u8>> = prefix.split(':').map(octet).collect();
    match octets.as_slice() {
        [Some(first), Some(_), Some(_)] if first & 1 == 0 => Ok(()),
        _ => Err(Failure::refused(
            ErrorCode::WrongInput,
            format!("Invalid MAC address prefix '{prefix}'; it has to be like aa:00:00"),
        )),
    }
}

/// Refuses an interface that is not there or does not carry this host's address, and a cluster address in use.
async fn check_address(netdev: &str, own: Ipv4Addr, cluster: Ipv4Addr) -> Result<(), Failure> {
    let environment = |text: String| Failure::refused(ErrorCode::EnvironmentError, text);
    let failed = |error: network::Error| environment(crate::chain(&error));
    let net = network::Netlink::open().map_err(failed)?;
    let addresses = network::address::list(&net, netdev).await.map_err(|error| match error {
        network::Error::NoSuchInterface(_) => {
            environment(format!("The master network device '{netdev}' does not exist; choose one with --master-netdev"))
        }
        error => failed(error),
    })?;
    if !addresses.iter().any(|(address, _)| *address == own) {
        return Err(environment(format!("This host's address {own} is not on the master network device '{netdev}'")));
    }
    let own_already = addresses.iter().any(|(address, _)| *address == cluster);
    if !own_already && is_taken(cluster, opcodes::wire::NODE_PORT).await {
        return Err(Failure::refused(
            ErrorCode::ResourceNotUnique,
            format!("Cluster IP {cluster} already active: a machine answers there"),
        ));
    }
    Ok(())
}

/// Whether some machine has that address: one that takes the connection, or one that refuses it.
async fn is_taken(address: Ipv4Addr, port: u16) -> bool {
    let probe = tokio::net::TcpStream::connect((address, port));
    match tokio::time::timeout(PROBE, probe).await {
        Ok(Ok(_)) => true,
        Ok(Err(error)) => error.kind() == std::io::ErrorKind::ConnectionRefused,
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_address_is_taken_also_where_the_port_is_closed() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        assert!(is_taken(Ipv4Addr::LOCALHOST, port).await);
        drop(listener);
        assert!(is_taken(Ipv4Addr::LOCALHOST, port).await);
    }

    #[test]
    fn a_mac_prefix_is_three_octets_of_a_single_machine() {
        for good in ["aa:00:00", "52:54:00"] {
            check_mac_prefix(good).unwrap();
        }
        for bad in ["", "aa:00", "aa:00:00:00", "a:00:00", "+a:00:00", "ab:00:00", "gg:00:00"] {
            assert!(check_mac_prefix(bad).is_err(), "{bad}");
        }
    }
}
