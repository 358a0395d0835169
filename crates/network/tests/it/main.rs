//! The kernel does what we ask of it. Each test works in network namespaces of its own, which are gone when it
//! ends, however it ends.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod steer;

use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use network::netns::NetNs;
use network::{Error, Netlink, address, arp, bridge, link, tap, veth};

/// A fresh namespace, or a failure in one line where we may not make one.
fn namespace() -> NetNs {
    assert!(nix::unistd::Uid::effective().is_root(), "the tests of `network` need root (they make network namespaces)");
    NetNs::create().expect("a namespace")
}

/// Runs a test's body with a connection to a fresh namespace.
fn in_namespace<F, Fut>(body: F)
where
    F: FnOnce(Netlink) -> Fut + Send,
    Fut: Future<Output = Result<(), Error>>,
{
    namespace().configure(body).expect("no error");
}

#[test]
fn a_namespace_is_empty_and_not_the_machines() {
    let ours = namespace();
    let names = ours.configure(|net| async move { link::names(&net).await }).unwrap();
    assert_eq!(names, ["lo"]);
    let machine = std::fs::read_link("/proc/thread-self/ns/net").unwrap();
    let inside = ours.run(|| std::fs::read_link("/proc/thread-self/ns/net").unwrap()).unwrap();
    assert_ne!(machine, inside);
    assert_eq!(machine, std::fs::read_link("/proc/thread-self/ns/net").unwrap());
}

#[test]
fn bridge_is_made_once_and_holds_its_ports() {
    in_namespace(|net| async move {
        assert!(!bridge::exists(&net, "br0").await?);
        bridge::create(&net, "br0", Some([2, 0, 0, 0, 0, 5])).await?;
        bridge::create(&net, "br0", None).await?;
        assert!(bridge::exists(&net, "br0").await?);
        assert!(link::is_up(&net, "br0").await?);

        let other = NetNs::create()?;
        veth::create(&net, "p0", "up0", &other).await?;
        bridge::attach(&net, "br0", "p0").await?;
        bridge::attach(&net, "br0", "p0").await?;
        assert_eq!(bridge::ports(&net, "br0").await?, ["p0"]);
        bridge::detach(&net, "p0").await?;
        assert!(bridge::ports(&net, "br0").await?.is_empty());
        Ok(())
    });
}

#[test]
fn errors_name_the_interface_and_the_address() {
    in_namespace(|net| async move {
        let vip = Ipv4Addr::new(10, 0, 0, 20);
        let missing = address::add(&net, "br7", vip, 32).await.unwrap_err().to_string();
        assert!(missing.contains("br7"), "{missing}");
        let kind = bridge::exists(&net, "lo").await.unwrap_err().to_string();
        assert!(kind.contains("lo is not a bridge"), "{kind}");
        let prefix = address::add(&net, "lo", vip, 77).await.unwrap_err().to_string();
        assert!(prefix.contains("10.0.0.20") && prefix.contains("lo"), "{prefix}");
        let long = tap::create(&net, "a-name-that-is-too-long", "br0", "i").await.unwrap_err();
        assert!(matches!(long, Error::BadName(_)), "{long}");
        let bridge = tap::create(&net, "gnt0-0", "br9", "i").await.unwrap_err().to_string();
        assert!(bridge.contains("br9"), "{bridge}");
        assert!(tap::list(&net).await?.is_empty(), "a refused tap stays behind");
        Ok(())
    });
}

#[test]
fn address_comes_and_goes_and_both_can_be_repeated() {
    in_namespace(|net| async move {
        bridge::create(&net, "br0", None).await?;
        let own = Ipv4Addr::new(10, 0, 0, 5);
        let vip = Ipv4Addr::new(10, 0, 0, 20);
        address::add(&net, "br0", own, 24).await?;
        for _ in 0..2 {
            address::add(&net, "br0", vip, 32).await?;
            assert!(address::has(&net, "br0", vip).await?);
        }
        assert_eq!(address::list(&net, "br0").await?, [(own, 24), (vip, 32)]);
        for _ in 0..2 {
            address::remove(&net, "br0", vip, 32).await?;
            assert!(!address::has(&net, "br0", vip).await?);
        }
        assert_eq!(address::list(&net, "br0").await?, [(own, 24)]);
        assert!(!address::has(&net, "lo", own).await?);
        Ok(())
    });
}

#[test]
fn tap_is_ready_for_qemu_and_outlives_its_descriptor() {
    in_namespace(|net| async move {
        bridge::create(&net, "br0", None).await?;
        let instance = "0f3e9c1a-7b52-4f7e-9d5c-2f1f5a0b8c11";
        let name = tap::name(instance, 0);
        let fd = tap::create(&net, &name, "br0", instance).await?;
        assert_eq!(bridge::ports(&net, "br0").await?, [name.as_str()]);
        assert!(link::is_up(&net, &name).await?);

        // What QEMU sees through the descriptor: /proc names the device, and it says that it has a header.
        let fdinfo = std::fs::read_to_string(format!("/proc/thread-self/fdinfo/{}", fd.as_raw_fd()));
        assert!(fdinfo.unwrap().contains(&format!("iff:\t{name}")));
        let flags = nix::fcntl::fcntl(fd.as_fd(), nix::fcntl::FcntlArg::F_GETFD).unwrap();
        assert!(nix::fcntl::FdFlag::from_bits_retain(flags).contains(nix::fcntl::FdFlag::FD_CLOEXEC));

        // Held by somebody else: refused, and left alone.
        assert!(tap::create(&net, &name, "br0", instance).await.is_err());
        let ours = tap::Tap { name: name.clone(), instance: Some(instance.to_owned()) };
        assert_eq!(tap::list(&net).await?, std::slice::from_ref(&ours));

        // The daemon and QEMU are gone: the tap stays, can be taken up again, and is found for cleaning up.
        drop(fd);
        assert_eq!(tap::list(&net).await?, [ours]);
        let again = tap::create(&net, &name, "br0", instance).await?;
        for _ in 0..2 {
            tap::delete(&net, &name).await?;
            assert!(tap::list(&net).await?.is_empty());
        }
        drop(again);
        Ok(())
    });
}

#[test]
fn what_is_not_ours_is_not_listed_as_ours() {
    in_namespace(|net| async move {
        bridge::create(&net, "gntbr", None).await?;
        let other = NetNs::create()?;
        veth::create(&net, "gntveth", "up0", &other).await?;
        assert!(tap::list(&net).await?.is_empty());
        Ok(())
    });
}

#[test]
fn a_cable_connects_two_namespaces_and_a_failed_one_leaves_nothing() {
    let (a, b) = (namespace(), namespace());
    a.configure(|net| {
        let b = &b;
        async move {
            veth::create(&net, "a0", "b0", b).await?;
            assert!(link::exists(&net, "a0").await?);
            assert!(!link::exists(&net, "b0").await?);
            // The name is taken at the far end: the near end must not remain.
            assert!(veth::create(&net, "a1", "b0", b).await.is_err());
            assert!(!link::exists(&net, "a1").await?);
            Ok(())
        }
    })
    .unwrap();
    assert_eq!(b.configure(|net| async move { link::names(&net).await }).unwrap(), ["b0", "lo"]);
}

/// Two namespaces joined by a cable, both ends up and with addresses 10.9.0.1 and 10.9.0.2.
fn pair() -> (NetNs, NetNs) {
    let (a, b) = (namespace(), namespace());
    for ns in [&a, &b] {
        // IPv6 would talk on the cable as soon as it is up.
        ns.run(|| std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1")).unwrap().unwrap();
    }
    a.configure(|net| {
        let b = &b;
        async move {
            veth::create(&net, "a0", "b0", b).await?;
            link::set_up(&net, "a0").await?;
            address::add(&net, "a0", Ipv4Addr::new(10, 9, 0, 1), 24).await
        }
    })
    .unwrap();
    b.configure(|net| async move {
        link::set_up(&net, "b0").await?;
        address::add(&net, "b0", Ipv4Addr::new(10, 9, 0, 2), 24).await
    })
    .unwrap();
    (a, b)
}

fn sh(ns: &NetNs, program: &str, args: &[&str]) -> String {
    let output = ns.run(|| std::process::Command::new(program).args(args).output().unwrap()).unwrap();
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn announcement_corrects_a_peers_wrong_entry() {
    let (a, b) = pair();
    let vip = Ipv4Addr::new(10, 9, 0, 100);
    sh(&a, "ip", &["neigh", "add", "10.9.0.100", "lladdr", "02:00:00:00:00:99", "dev", "a0", "nud", "reachable"]);
    let show = sh(&b, "ip", &["-o", "link", "show", "b0"]);
    let mac = show.split("link/ether ").nth(1).unwrap().split(' ').next().unwrap();
    b.configure(|net| async move {
        address::add(&net, "b0", vip, 32).await?;
        arp::announce(&net, "b0", vip).await?.finished().await
    })
    .unwrap();
    let entry = sh(&a, "ip", &["neigh", "show", "10.9.0.100"]);
    assert!(entry.contains(mac), "{entry}");
}

#[test]
fn announcement_is_repeated_and_stops_when_it_is_cancelled() {
    let (a, b) = pair();
    let vip = Ipv4Addr::new(10, 9, 0, 100);
    let received = || -> u64 {
        let line = sh(&a, "ip", &["-s", "-o", "link", "show", "a0"]);
        let rx = line.split("RX:").nth(1).unwrap().split('\\').nth(1).unwrap().to_owned();
        rx.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    b.configure(|net| async move {
        let before = received();
        arp::announce(&net, "b0", vip).await?.finished().await?;
        assert_eq!(received() - before, u64::from(arp::REPEATS));

        let before = received();
        arp::announce(&net, "b0", vip).await?.cancel().await;
        let after = received();
        assert_eq!(after - before, 1, "the first frame is sent before `announce` returns");
        tokio::time::sleep(arp::INTERVAL + Duration::from_millis(200)).await;
        assert_eq!(received(), after, "a cancelled announcement goes on");
        Ok(())
    })
    .unwrap();
}
