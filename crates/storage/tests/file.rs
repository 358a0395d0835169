//! Disks that are files.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use model::{DiskId, DiskTemplate, Uuid};
use storage::{DiskSpec, Error, Health, Template, space, template};

const MIB: u64 = 1 << 20;

fn file() -> &'static dyn Template {
    &storage::File
}

fn disk(folder: &Path, number: u128) -> DiskSpec {
    DiskSpec {
        instance: "vm1".to_owned(),
        index: 0,
        id: DiskId(Uuid::from_u128(number)),
        size_mib: 8,
        folder: folder.join("file-storage"),
    }
}

fn path(disk: &DiskSpec) -> PathBuf {
    disk.folder.join(&disk.instance).join(format!("{}.file.disk{}", disk.id, disk.index))
}

#[tokio::test]
async fn a_disk_is_a_sparse_file_of_its_size_that_only_we_can_read() {
    let dir = tempfile::tempdir().unwrap();
    let disk = disk(dir.path(), 1);
    file().create(&disk).await.unwrap();
    let meta = fs::metadata(path(&disk)).unwrap();
    assert_eq!(meta.len(), 8 * MIB);
    assert!(meta.blocks() * 512 < MIB, "it takes space before anything is in it");
    assert_eq!(meta.permissions().mode() & 0o777, 0o600);
    assert_eq!(file().check(&disk).await.unwrap(), Health::Good);
    let attachment = file().activate(&disk).await.unwrap();
    assert_eq!(attachment.path, path(&disk));
    file().deactivate(&disk).await.unwrap();
    let names: Vec<_> =
        fs::read_dir(disk.folder.join("vm1")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), 1, "something else was left: {names:?}");
}

#[tokio::test]
async fn creating_again_keeps_what_is_on_it_and_refuses_another_size() {
    let dir = tempfile::tempdir().unwrap();
    let mut disk = disk(dir.path(), 1);
    file().create(&disk).await.unwrap();
    fs::write(path(&disk), vec![7; (8 * MIB) as usize]).unwrap();
    file().create(&disk).await.unwrap();
    assert_eq!(fs::read(path(&disk)).unwrap()[0], 7);
    disk.size_mib = 9;
    let error = file().create(&disk).await.unwrap_err();
    assert!(error.to_string().contains("has 8 MiB and not 9 MiB"), "{error}");
    assert!(error.to_string().contains(&path(&disk).display().to_string()), "{error}");
}

#[tokio::test]
async fn an_attempt_that_was_cut_off_is_no_disk_and_is_begun_anew() {
    let dir = tempfile::tempdir().unwrap();
    let disk = disk(dir.path(), 1);
    let unfinished = PathBuf::from(format!("{}.new", path(&disk).display()));
    fs::create_dir_all(unfinished.parent().unwrap()).unwrap();
    fs::write(&unfinished, "half-made").unwrap();
    assert_eq!(file().check(&disk).await.unwrap(), Health::Missing { path: path(&disk) });
    assert!(matches!(file().activate(&disk).await, Err(Error::Missing { .. })));
    assert_eq!(file().orphans(&disk.folder, &[]).await.unwrap(), std::slice::from_ref(&unfinished));
    file().create(&disk).await.unwrap();
    assert!(!unfinished.exists());
    assert!(fs::read(path(&disk)).unwrap().iter().all(|byte| *byte == 0), "it reads zeroes");
    fs::write(&unfinished, "half-made").unwrap();
    file().remove(&disk).await.unwrap();
    assert!(!unfinished.exists(), "an unfinished one goes with the disk");
}

#[tokio::test]
async fn many_at_once_make_one_disk() {
    let dir = tempfile::tempdir().unwrap();
    let disk = disk(dir.path(), 1);
    let all: Vec<_> = (0..16)
        .map(|_| {
            tokio::spawn({
                let disk = disk.clone();
                async move { file().create(&disk).await }
            })
        })
        .collect();
    for one in all {
        one.await.unwrap().unwrap();
    }
    assert_eq!(file().check(&disk).await.unwrap(), Health::Good);
}

#[tokio::test]
async fn removing_leaves_nothing_of_it_and_everything_else() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (disk(dir.path(), 1), DiskSpec { index: 1, ..disk(dir.path(), 2) });
    file().create(&one).await.unwrap();
    file().create(&two).await.unwrap();
    file().remove(&one).await.unwrap();
    assert!(!path(&one).exists() && path(&two).exists());
    file().remove(&one).await.unwrap();
    file().remove(&two).await.unwrap();
    assert!(!one.folder.join("vm1").exists(), "the instance's folder goes with its last disk");
    assert!(one.folder.exists());
    fs::remove_dir(&one.folder).unwrap();
    file().remove(&one).await.unwrap();
}

#[tokio::test]
async fn a_disk_is_known_by_its_id_when_its_place_has_changed() {
    let dir = tempfile::tempdir().unwrap();
    let second = DiskSpec { index: 1, ..disk(dir.path(), 2) };
    file().create(&second).await.unwrap();
    let now_first = DiskSpec { index: 0, ..second.clone() };
    assert_eq!(file().check(&now_first).await.unwrap(), Health::Good);
    assert_eq!(file().activate(&now_first).await.unwrap().path, path(&second));
    let known = std::slice::from_ref(&now_first);
    assert!(file().orphans(&second.folder, known).await.unwrap().is_empty());
    file().remove(&now_first).await.unwrap();
    assert!(!path(&second).exists());
}

#[tokio::test]
async fn a_disk_grows_and_never_shrinks() {
    let dir = tempfile::tempdir().unwrap();
    let mut disk = disk(dir.path(), 1);
    assert!(matches!(file().grow(&disk, 16).await, Err(Error::Missing { .. })));
    file().create(&disk).await.unwrap();
    file().grow(&disk, 16).await.unwrap();
    file().grow(&disk, 16).await.unwrap();
    assert_eq!(fs::metadata(path(&disk)).unwrap().len(), 16 * MIB);
    file().activate(&disk).await.expect("grown, and the cluster doesn't know it yet");
    disk.size_mib = 16;
    assert_eq!(file().check(&disk).await.unwrap(), Health::Good);
    let error = file().grow(&disk, 15).await.unwrap_err();
    assert!(error.to_string().contains("to 15 MiB: it has 16 MiB already"), "{error}");
}

#[tokio::test]
async fn a_disk_that_is_too_small_is_not_handed_out() {
    let dir = tempfile::tempdir().unwrap();
    let disk = disk(dir.path(), 1);
    file().create(&disk).await.unwrap();
    fs::OpenOptions::new().write(true).open(path(&disk)).unwrap().set_len(8 * MIB - 1).unwrap();
    assert!(matches!(file().activate(&disk).await, Err(Error::OtherSize { .. })));
    let health = file().check(&disk).await.unwrap();
    assert_eq!(health, Health::WrongSize { path: path(&disk), bytes: 8 * MIB - 1, wanted_mib: 8 });
    assert!(health.to_string().ends_with("has 8388607 bytes instead of 8 MiB"), "{health}");
}

#[tokio::test]
async fn too_little_space_is_said_before_anything_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let mut disk = disk(dir.path(), 1);
    file().create(&disk).await.unwrap();
    let too_much = space(dir.path()).unwrap().total_mib + 100;
    assert!(matches!(file().grow(&disk, too_much).await, Err(Error::NoSpace { .. })));
    assert_eq!(fs::metadata(path(&disk)).unwrap().len(), 8 * MIB);
    disk.instance = "vm2".to_owned();
    disk.size_mib = too_much;
    let error = file().create(&disk).await.unwrap_err();
    assert!(matches!(&error, Error::NoSpace { needed_mib, .. } if *needed_mib == too_much));
    assert!(error.to_string().contains(&format!("needed {too_much} MiB, available ")), "{error}");
    assert!(!disk.folder.join("vm2").exists());
}

#[tokio::test]
async fn no_name_leads_out_of_the_folder() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["", ".", "..", "../x", "a/b", "/etc", "a/", "./a", "a/..", "a\0b"] {
        let disk = DiskSpec { instance: name.to_owned(), ..disk(dir.path(), 1) };
        for result in [file().create(&disk).await, file().remove(&disk).await, file().grow(&disk, 9).await] {
            assert!(matches!(result, Err(Error::BadInstanceName { .. })), "{name:?}: {result:?}");
        }
        assert!(matches!(file().activate(&disk).await, Err(Error::BadInstanceName { .. })), "{name:?}");
        assert!(matches!(file().check(&disk).await, Err(Error::BadInstanceName { .. })), "{name:?}");
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    let relative = DiskSpec { folder: PathBuf::from("disks"), ..disk(dir.path(), 1) };
    assert!(matches!(file().create(&relative).await, Err(Error::RelativeFolder { .. })));
}

#[tokio::test]
async fn what_is_no_regular_file_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let disk = disk(dir.path(), 1);
    let target = dir.path().join("precious");
    fs::write(&target, "precious").unwrap();
    fs::create_dir_all(disk.folder.join("vm1")).unwrap();
    std::os::unix::fs::symlink(&target, path(&disk)).unwrap();
    assert!(matches!(file().create(&disk).await, Err(Error::NotADisk { .. })));
    assert!(matches!(file().activate(&disk).await, Err(Error::NotADisk { .. })));
    assert!(matches!(file().grow(&disk, 16).await, Err(Error::NotADisk { .. })));
    assert!(matches!(file().remove(&disk).await, Err(Error::NotADisk { .. })));
    assert_eq!(file().check(&disk).await.unwrap(), Health::NotADisk { path: path(&disk) });
    assert_eq!(fs::read(&target).unwrap(), b"precious");
}

#[tokio::test]
async fn a_link_in_the_place_of_an_unfinished_disk_is_not_followed() {
    let dir = tempfile::tempdir().unwrap();
    let disk = disk(dir.path(), 1);
    let target = dir.path().join("precious");
    fs::write(&target, "precious").unwrap();
    fs::create_dir_all(disk.folder.join("vm1")).unwrap();
    std::os::unix::fs::symlink(&target, format!("{}.new", path(&disk).display())).unwrap();
    assert!(matches!(file().create(&disk).await, Err(Error::Io { action: "create", .. })));
    assert_eq!(fs::read(&target).unwrap(), b"precious");
    file().create(&disk).await.expect("the link was cleared away");
}

#[tokio::test]
async fn orphans_are_our_files_of_no_known_disk() {
    let dir = tempfile::tempdir().unwrap();
    let (known, unknown) = (disk(dir.path(), 1), disk(dir.path(), 2));
    assert!(file().orphans(&known.folder, &[]).await.unwrap().is_empty(), "no folder, no orphans");
    file().create(&known).await.unwrap();
    file().create(&unknown).await.unwrap();
    fs::write(known.folder.join("README"), "not ours").unwrap();
    fs::write(known.folder.join("vm1/notes.file.disk0"), "not ours").unwrap();
    fs::write(known.folder.join("vm1").join(format!("{}.file.diskette", known.id)), "not ours").unwrap();
    let specs = [known.clone()];
    assert_eq!(file().orphans(&known.folder, &specs).await.unwrap(), [path(&unknown)]);
    // A copy in another instance's folder is none of that instance's disks.
    fs::create_dir(known.folder.join("vm2")).unwrap();
    let copy = known.folder.join("vm2").join(path(&known).file_name().unwrap());
    fs::copy(path(&known), &copy).unwrap();
    assert_eq!(file().orphans(&known.folder, &specs).await.unwrap(), [path(&unknown), copy]);
}

#[tokio::test]
async fn a_diskless_instance_has_none() {
    let dir = tempfile::tempdir().unwrap();
    let diskless = template(DiskTemplate::Diskless).unwrap();
    let disk = disk(dir.path(), 1);
    assert!(matches!(diskless.create(&disk).await, Err(Error::Diskless { .. })));
    assert!(matches!(diskless.activate(&disk).await, Err(Error::Diskless { .. })));
    diskless.remove(&disk).await.unwrap();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    for kind in [DiskTemplate::File, DiskTemplate::Diskless] {
        assert_eq!(template(kind).unwrap().name(), kind.name());
        assert!(!template(kind).unwrap().mirrored());
    }
}
