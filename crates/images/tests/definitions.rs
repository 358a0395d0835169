//! Definitions are found, and what is wrong with one is said.
#![allow(clippy::unwrap_used)] // Helpers of tests are tests.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use common::{define, script};
use images::{DiskEnv, Environment, Error, NicEnv, System, discover, find};
use model::{DiskAccess, ParamValue};

fn search(dir: &tempfile::TempDir) -> Vec<PathBuf> {
    vec![dir.path().join("first"), dir.path().join("missing"), dir.path().join("second")]
}

fn system(dir: &tempfile::TempDir, os: &str) -> System {
    find(&search(dir), os).unwrap()
}

#[test]
fn all_are_found_by_name_and_the_first_folder_wins() {
    let dir = tempfile::tempdir().unwrap();
    let [first, _, second] = search(&dir).try_into().unwrap();
    define(&second, "alpha", "exit 0");
    define(&second, "beta", "exit 0");
    define(&first, "beta", "exit 0");
    fs::write(first.join("README"), "").unwrap();
    fs::create_dir(first.join(".git")).unwrap();
    fs::create_dir(first.join("odd")).unwrap();
    let found = discover(&search(&dir));
    let seen: Vec<_> = found.iter().map(|found| (found.name.as_str(), found.path.clone(), found.valid)).collect();
    assert_eq!(
        seen,
        [("alpha", second.join("alpha"), true), ("beta", first.join("beta"), true), ("odd", first.join("odd"), false)]
    );
    assert_eq!(found[0].diagnosis, "");
    assert_eq!(found[0].variants, ["default", "small"]);
    assert_eq!(found[0].api_versions, [20, 15]);
    let parameters =
        [("release".to_owned(), "Which release to install".to_owned()), ("quiet".to_owned(), String::new())];
    assert_eq!(found[0].parameters, parameters);
    assert_eq!(found[2].diagnosis, format!("{} is missing", first.join("odd/ganeti_api_version").display()));
    assert_eq!(system(&dir, "beta+small").path, first.join("beta"));
}

#[test]
fn an_unknown_one_is_refused_in_ganetis_words() {
    let dir = tempfile::tempdir().unwrap();
    define(&dir.path().join("first"), "busybox", "exit 0");
    let text = |os: &str| find(&search(&dir), os).unwrap_err().to_string();
    assert_eq!(text("nosuchos"), "Directory for OS nosuchos not found in search path");
    assert_eq!(text("nosuchos+default"), "Directory for OS nosuchos not found in search path");
    for odd in ["", "+default", ".", "..", "../first/busybox", "/etc", "first/../busybox"] {
        assert!(matches!(find(&search(&dir), odd), Err(Error::NotFound { .. })), "{odd:?}");
    }
}

#[test]
fn a_variant_is_named_where_there_are_some_and_only_there() {
    let dir = tempfile::tempdir().unwrap();
    let first = dir.path().join("first");
    define(&first, "busybox", "exit 0");
    fs::remove_file(define(&first, "noop", "exit 0").join("variants.list")).unwrap();
    let text = |os: &str| find(&search(&dir), os).unwrap_err().to_string();
    assert_eq!(text("busybox"), "OS busybox needs a variant, such as busybox+default");
    assert_eq!(text("busybox+nosuch"), "OS busybox has no variant 'nosuch': it has default, small");
    assert_eq!(text("busybox+"), "OS busybox has no variant '': it has default, small");
    assert_eq!(text("noop+default"), "OS noop has no variant 'default': it has none");
    assert_eq!(system(&dir, "busybox+small").full_name(), "busybox+small");
    assert_eq!(system(&dir, "noop").full_name(), "noop");
}

#[test]
fn what_is_wrong_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let first = dir.path().join("first");
    let diagnosis = |spoil: &dyn Fn(&Path)| {
        let folder = define(&first, "os", "exit 0");
        spoil(&folder);
        let error = find(&search(&dir), "os+default").unwrap_err();
        let [found] = <[_; 1]>::try_from(discover(&search(&dir))).unwrap();
        assert!(!found.valid);
        assert_eq!(error.to_string(), format!("OS os can't be used: {}", found.diagnosis));
        fs::remove_dir_all(&folder).unwrap();
        found.diagnosis.replace(&folder.display().to_string(), "OS")
    };
    let write =
        |name: &'static str, text: &'static str| move |folder: &Path| fs::write(folder.join(name), text).unwrap();
    let remove = |name: &'static str| move |folder: &Path| fs::remove_file(folder.join(name)).unwrap();
    assert_eq!(
        diagnosis(&|folder| fs::set_permissions(folder.join("create"), fs::Permissions::from_mode(0o644)).unwrap()),
        "OS/create is not executable: chmod +x OS/create"
    );
    assert_eq!(diagnosis(&remove("rename")), "OS/rename is missing");
    assert_eq!(diagnosis(&remove("verify")), "OS/verify is missing");
    assert_eq!(diagnosis(&remove("parameters.list")), "OS/parameters.list is missing");
    assert_eq!(
        diagnosis(&write("ganeti_api_version", "5\n99\n")),
        "OS/ganeti_api_version names the interface versions 5, 99, and Cardume speaks 10, 15, 20"
    );
    assert_eq!(
        diagnosis(&write("ganeti_api_version", "")),
        "OS/ganeti_api_version names the interface versions (none), and Cardume speaks 10, 15, 20"
    );
    assert_eq!(
        diagnosis(&write("ganeti_api_version", "twenty\n")),
        "OS/ganeti_api_version has to have a version number on each line, and has 'twenty'"
    );
    assert_eq!(
        diagnosis(&|folder| {
            fs::remove_file(folder.join("import")).unwrap();
            fs::create_dir(folder.join("import")).unwrap();
        }),
        "OS/import is not a file"
    );
}

#[test]
fn an_old_definition_needs_no_more_than_it_knew() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("first/noop");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("ganeti_api_version"), "5\n10\n").unwrap();
    for name in ["create", "import", "export", "rename"] {
        script(&folder, name, "exit 0");
    }
    let system = system(&dir, "noop");
    assert_eq!((system.api_version, system.variant.as_str()), (10, ""));
    let environment = Environment::default().variables(&system).unwrap();
    assert_eq!(environment["OS_API_VERSION"], "10");
}

#[test]
fn a_script_is_told_everything_about_its_instance() {
    let dir = tempfile::tempdir().unwrap();
    define(&dir.path().join("first"), "busybox", "exit 0");
    let disk = DiskEnv {
        path: "/srv/disk0".into(),
        size_mib: 10240,
        uuid: "disk-uuid".to_owned(),
        name: None,
        access: DiskAccess::Rw,
        frontend: "paravirtual".to_owned(),
        backend: "file".to_owned(),
    };
    let nic = NicEnv {
        mac: "aa:00:00:00:00:01".to_owned(),
        ip: Some("10.0.0.10".to_owned()),
        mode: "bridged".to_owned(),
        link: "br0".to_owned(),
        vlan: None,
        uuid: "nic-uuid".to_owned(),
        name: None,
        frontend: "paravirtual".to_owned(),
    };
    let mut environment = Environment {
        instance: "vm1.example.com".to_owned(),
        hypervisor: "kvm".to_owned(),
        primary: "node01".to_owned(),
        secondaries: vec!["node02".to_owned(), "node03".to_owned()],
        disks: vec![disk.clone(), DiskEnv { name: Some("data".to_owned()), access: DiskAccess::Ro, ..disk }],
        nics: vec![
            nic.clone(),
            NicEnv {
                ip: None,
                mode: "routed".to_owned(),
                link: "100".to_owned(),
                vlan: Some("7".to_owned()),
                name: Some("lan".to_owned()),
                ..nic
            },
        ],
        osparams: [("release".to_owned(), ParamValue::Text("sid".to_owned()))].into(),
        debug_level: 2,
        reinstall: false,
    };
    let system = system(&dir, "busybox+small");
    let expected: BTreeMap<_, _> = [
        ("DEBUG_LEVEL", "2"),
        ("DISK_0_ACCESS", "rw"),
        ("DISK_0_BACKEND_TYPE", "file"),
        ("DISK_0_FRONTEND_TYPE", "paravirtual"),
        ("DISK_0_PATH", "/srv/disk0"),
        ("DISK_0_SIZE", "10240"),
        ("DISK_0_UUID", "disk-uuid"),
        ("DISK_1_ACCESS", "ro"),
        ("DISK_1_BACKEND_TYPE", "file"),
        ("DISK_1_FRONTEND_TYPE", "paravirtual"),
        ("DISK_1_NAME", "data"),
        ("DISK_1_PATH", "/srv/disk0"),
        ("DISK_1_SIZE", "10240"),
        ("DISK_1_UUID", "disk-uuid"),
        ("DISK_COUNT", "2"),
        ("HYPERVISOR", "kvm"),
        ("INSTANCE_NAME", "vm1.example.com"),
        ("INSTANCE_OS", "busybox+small"),
        ("INSTANCE_PRIMARY_NODE", "node01"),
        ("INSTANCE_SECONDARY_NODES", "node02 node03"),
        ("NIC_0_BRIDGE", "br0"),
        ("NIC_0_FRONTEND_TYPE", "paravirtual"),
        ("NIC_0_IP", "10.0.0.10"),
        ("NIC_0_LINK", "br0"),
        ("NIC_0_MAC", "aa:00:00:00:00:01"),
        ("NIC_0_MODE", "bridged"),
        ("NIC_0_UUID", "nic-uuid"),
        ("NIC_1_FRONTEND_TYPE", "paravirtual"),
        ("NIC_1_LINK", "100"),
        ("NIC_1_MAC", "aa:00:00:00:00:01"),
        ("NIC_1_MODE", "routed"),
        ("NIC_1_NAME", "lan"),
        ("NIC_1_UUID", "nic-uuid"),
        ("NIC_1_VLAN", "7"),
        ("NIC_COUNT", "2"),
        ("OSP_RELEASE", "sid"),
        ("OS_API_VERSION", "20"),
        ("OS_NAME", "busybox"),
        ("OS_VARIANT", "small"),
        ("PATH", "/sbin:/bin:/usr/sbin:/usr/bin"),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .collect();
    assert_eq!(environment.variables(&system).unwrap(), expected);
    environment.reinstall = true;
    assert_eq!(environment.variables(&system).unwrap()["INSTANCE_REINSTALL"], "1");
}

#[test]
fn a_parameter_that_the_system_does_not_have_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    define(&dir.path().join("first"), "busybox", "exit 0");
    let osparams = [("relaese".to_owned(), ParamValue::Text("sid".to_owned()))].into();
    let error =
        Environment { osparams, ..Environment::default() }.variables(&system(&dir, "busybox+small")).unwrap_err();
    assert_eq!(error.to_string(), "OS busybox has no parameter relaese: it has release, quiet");
}
