//! A daemon's life on one node, in a network namespace of its own: founding, crashes, destruction. A crash is the end of
//! its runtime where it stands.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests are tests too")]

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use network::netns::NetNs;
use network::{Netlink, address, bridge, link};
use node::{Config, Daemon, StartError};
use opcodes::wire::{Init, Join, NodeStatus, Request};
use opcodes::{ErrorCode, Failure};
use tempfile::TempDir;

const BRIDGE: &str = "br0";
const NODE: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const CLUSTER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);

/// A machine with a network of its own.
struct Machine {
    dir: TempDir,
    net: NetNs,
}

impl Machine {
    fn new() -> Self {
        let net = NetNs::create().expect("needs root");
        net.configure(|net| async move {
            link::set_up(&net, "lo").await?;
            bridge::create(&net, BRIDGE, None).await?;
            link::set_up(&net, BRIDGE).await?;
            address::add(&net, BRIDGE, NODE, 24).await
        })
        .unwrap();
        Self { dir: tempfile::tempdir().unwrap(), net }
    }

    fn config(&self) -> Config {
        let folder = |name: &str| self.dir.path().join(name);
        Config {
            run_dir: folder("run"),
            log_dir: folder("log"),
            os_search_path: Vec::new(),
            qemu: PathBuf::from("/nonexistent/qemu"),
            // An address is a name that resolves to itself.
            host_name: NODE.to_string(),
            ..Config::new(folder("state")).unwrap()
        }
    }

    async fn start(&self) -> Arc<Daemon> {
        loop {
            match node::start(self.config()).await {
                Ok(daemon) => return daemon,
                // The last one's writer is on its way out: a thread of its own, unlike in a process that was killed.
                Err(StartError::Store(consensus::StoreError::InUse { .. })) => tokio::task::yield_now().await,
                Err(error) => panic!("{error:?}"),
            }
        }
    }

    /// Runs a daemon for as long as the work takes, then ends it as SIGKILL would.
    fn run<T: Send>(&self, work: impl AsyncFnOnce(Arc<Daemon>) -> T + Send) -> T {
        self.net
            .run(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async { work(self.start().await).await })
            })
            .unwrap()
    }

    /// Whether the cluster's address is on this machine.
    fn has_address(&self) -> bool {
        self.net.configure(|net: Netlink| async move { address::has(&net, BRIDGE, CLUSTER).await }).unwrap()
    }
}

async fn init(daemon: &Arc<Daemon>) -> Result<(), Failure> {
    let init: Init = serde_json::from_value(serde_json::json!({
        "cluster_name": CLUSTER.to_string(),
        "enabled_hypervisors": ["fake"],
        "master_netdev": BRIDGE,
    }))
    .unwrap();
    daemon.handle().call(Request::Init(Box::new(init)), "root").await.map(drop)
}

async fn destroy(daemon: &Arc<Daemon>) -> Result<(), Failure> {
    daemon.handle().call(Request::Destroy, "root").await.map(drop)
}

async fn cluster(daemon: &Arc<Daemon>) -> Option<String> {
    let status = daemon.handle().call(Request::Status, "root").await.unwrap();
    serde_json::from_value::<NodeStatus>(status).unwrap().cluster
}

#[test]
fn of_two_that_found_a_cluster_at_once_one_does() {
    Machine::new().run(async |daemon| {
        let (one, other) = tokio::join!(init(&daemon), init(&daemon));
        let refusals: Vec<_> = [one, other].into_iter().filter_map(Result::err).collect();
        assert_eq!(refusals, [Failure::refused(ErrorCode::WrongState, "Cluster is already initialised")]);
        assert_eq!(cluster(&daemon).await, Some(CLUSTER.to_string()));
    });
}

#[test]
fn a_cluster_can_be_destroyed_and_made_again_at_once() {
    let machine = Machine::new();
    machine.run(async |daemon| {
        for _ in 0..2 {
            init(&daemon).await.unwrap();
            destroy(&daemon).await.unwrap();
        }
        init(&daemon).await.unwrap();
    });
    machine.run(async |daemon| {
        assert_eq!(cluster(&daemon).await, Some(CLUSTER.to_string()));
        destroy(&daemon).await.unwrap();
    });
    assert!(!machine.has_address());
    machine.run(async |daemon| assert_eq!(cluster(&daemon).await, None));
}

#[test]
fn a_daemon_that_dies_while_it_founds_or_destroys_goes_on_or_begins_anew() {
    let machine = Machine::new();
    for millis in [0, 10, 30, 90] {
        let moment = Duration::from_millis(millis);
        machine.run(async |daemon| drop(tokio::time::timeout(moment, init(&daemon)).await));
        machine.run(async |daemon| {
            if cluster(&daemon).await.is_none() {
                init(&daemon).await.unwrap();
            }
        });
        machine.run(async |daemon| drop(tokio::time::timeout(moment, destroy(&daemon)).await));
        machine.run(async |daemon| {
            if cluster(&daemon).await.is_some() {
                destroy(&daemon).await.unwrap();
            }
        });
        assert!(!machine.has_address(), "left behind by a destruction that died after {moment:?}");
    }
}

#[test]
fn the_address_goes_with_a_daemon_that_is_stopped() {
    let machine = Machine::new();
    machine.run(async |daemon| {
        init(&daemon).await.unwrap();
        let net = Netlink::open().unwrap();
        while !address::has(&net, BRIDGE, CLUSTER).await.unwrap() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        daemon.shutdown().await;
    });
    assert!(!machine.has_address());
}

#[test]
fn a_stop_does_not_wait_for_a_join_that_waits() {
    Machine::new().run(async |daemon| {
        let silent = tokio::net::TcpListener::bind((NODE, 0)).await.unwrap();
        let token = rpc::JoinToken::generate(rpc::Fingerprint([7; 32])).unwrap().to_string();
        let join = Join { address: silent.local_addr().unwrap().to_string(), token };
        let handle = daemon.handle();
        let joining = tokio::spawn(async move { handle.call(Request::Join(join), "root").await });
        let _connection = silent.accept().await.unwrap();
        daemon.shutdown().await;
        let refusal = joining.await.unwrap().unwrap_err();
        assert_eq!(refusal, Failure::failed("The daemon of this node is being stopped"));
    });
}

#[test]
fn a_bad_token_costs_a_member_nothing() {
    let machine = Machine::new();
    machine.run(async |daemon| {
        init(&daemon).await.unwrap();
        let join = Join { address: NODE.to_string(), token: "cardume1_nonsense".into() };
        let refusal = daemon.handle().call(Request::Join(join), "root").await.unwrap_err();
        assert!(refusal.text.starts_with("This node is in the cluster 10.77.0.2 already"), "{refusal:?}");
    });
    machine.run(async |daemon| assert!(cluster(&daemon).await.is_some()));
}
