//! Disks and network interfaces as they are typed: `--disk 0:size=4g`, `--net 0:ip=10.0.0.10,mac=auto`.

use model::DiskAccess;
use opcodes::op::{DiskRequest, ListAction, NicChange, NicRequest};
use opcodes::{ErrorCode, Failure};

use crate::options;
use crate::parameters::{Named, Setting, Settings};

/// More than any hypervisor takes; keeps a mistyped index from filling the memory.
const MAX_DEVICES: usize = 64;

fn wrong(text: String) -> Failure {
    Failure::refused(ErrorCode::WrongInput, text)
}

/// Puts what is typed for each index in order: the list is as long as the highest index says.
fn by_index<'a>(kind: &str, given: &'a [Named]) -> Result<Vec<Option<&'a Settings>>, Failure> {
    let mut list: Vec<Option<&Settings>> = Vec::new();
    for Named { name, settings } in given {
        let index = name.parse::<usize>().ok().filter(|index| *index < MAX_DEVICES).ok_or_else(|| {
            wrong(format!("Invalid {kind} index '{name}': write a number from 0, as in 0:parameter=value"))
        })?;
        if list.len() <= index {
            list.resize(index + 1, None);
        }
        if list[index].replace(settings).is_some() {
            return Err(wrong(format!("The {kind} with index {index} is given twice")));
        }
    }
    Ok(list)
}

/// The disks of a new instance.
///
/// # Errors
/// Refused with what is wrong.
pub(crate) fn disks(given: &[Named]) -> Result<Vec<DiskRequest>, Failure> {
    by_index("disk", given)?
        .into_iter()
        .enumerate()
        .map(|(index, settings)| {
            let missing = || wrong(format!("Missing size for disk {index}"));
            let settings = settings.ok_or_else(missing)?;
            let mut disk = DiskRequest::default();
            for (key, setting) in &settings.0 {
                let value = text(setting);
                match (key.as_str(), value) {
                    ("size", Some(value)) => {
                        disk.size = options::size(value)
                            .map_err(|why| wrong(format!("Invalid size '{value}' for disk {index}: {why}")))?;
                    }
                    ("mode", Some("rw")) => disk.mode = DiskAccess::Rw,
                    ("mode", Some("ro")) => disk.mode = DiskAccess::Ro,
                    ("mode", _) => return Err(wrong(format!("Invalid mode for disk {index}: write rw or ro"))),
                    ("name", Some("none")) => {}
                    ("name", Some(value)) => disk.name = Some(value.into()),
                    ("size" | "name", None) => return Err(wrong(format!("Missing {key} for disk {index}"))),
                    _ => return Err(unsupported("Disk", key)),
                }
            }
            if disk.size == 0 { Err(missing()) } else { Ok(disk) }
        })
        .collect()
}

/// The network interfaces of a new instance. Without any `--net` it has one, as the cluster's parameters say.
///
/// # Errors
/// Refused with what is wrong.
pub(crate) fn nics(given: &[Named]) -> Result<Vec<NicRequest>, Failure> {
    if given.is_empty() {
        return Ok(vec![NicRequest::default()]);
    }
    let none_to_absent = |value: Option<String>| value.filter(|text| text != "none");
    by_index("network interface", given)?
        .into_iter()
        .map(|settings| {
            let mut nic = settings.map(nic).transpose()?.unwrap_or_default();
            nic.ip = none_to_absent(nic.ip);
            nic.name = none_to_absent(nic.name);
            Ok(nic)
        })
        .collect()
}

/// Changes of an instance's network interfaces: `add:ip=…`, `1:add,ip=…`, `-1:remove`, `0:link=br1`.
///
/// # Errors
/// Refused with what is wrong.
pub(crate) fn nic_changes(given: &[Named]) -> Result<Vec<NicChange>, Failure> {
    given
        .iter()
        .map(|Named { name, settings }| {
            let mut settings = settings.clone();
            let mut word = |word: &str| settings.0.remove(word).is_some();
            let (index, action) = match name.as_str() {
                "add" => (-1, ListAction::Add),
                "remove" => (-1, ListAction::Remove),
                number => {
                    let index = number.parse::<i32>().ok().filter(|index| *index >= -1).ok_or_else(|| {
                        wrong(format!(
                            "Invalid network interface index '{number}': write a number from 0, or -1 for the last"
                        ))
                    })?;
                    match (word("add"), word("remove"), word("modify")) {
                        (true, false, false) => (index, ListAction::Add),
                        (false, true, false) => (index, ListAction::Remove),
                        (false, false, _) => (index, ListAction::Modify),
                        _ => {
                            return Err(wrong(format!(
                                "Only one of add, remove and modify can be done to interface {index}"
                            )));
                        }
                    }
                }
            };
            if action == ListAction::Remove && !settings.0.is_empty() {
                return Err(wrong("A network interface that is removed takes no parameters".into()));
            }
            if action == ListAction::Modify && settings.0.is_empty() {
                return Err(wrong(format!("No change is given for network interface {index}")));
            }
            Ok(NicChange { action, index, nic: nic(&settings)? })
        })
        .collect()
}

fn nic(settings: &Settings) -> Result<NicRequest, Failure> {
    let mut nic = NicRequest::default();
    for (key, setting) in &settings.0 {
        let place = match key.as_str() {
            "mac" => &mut nic.mac,
            "ip" => &mut nic.ip,
            "mode" => &mut nic.mode,
            "link" | "bridge" => &mut nic.link,
            "vlan" => &mut nic.vlan,
            "name" => &mut nic.name,
            _ => return Err(unsupported("Network interface", key)),
        };
        match setting {
            Setting::Value(value) if !value.is_empty() => *place = Some(value.clone()),
            Setting::Default => {}
            _ => return Err(wrong(format!("Missing value for '{key}' of a network interface"))),
        }
    }
    Ok(nic)
}

fn text(setting: &Setting) -> Option<&str> {
    match setting {
        Setting::Value(value) => Some(value),
        Setting::Switch(_) | Setting::Default => None,
    }
}

fn unsupported(kind: &str, key: &str) -> Failure {
    wrong(format!("{kind} parameter '{key}' is not supported by this version of Cardume"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parameters::named;

    fn parsed(texts: &[&str]) -> Vec<Named> {
        texts.iter().map(|text| named(text).unwrap()).collect()
    }

    #[test]
    fn disks_are_read() {
        let disks = disks(&parsed(&["1:size=512m,mode=ro,name=data", "0:size=10g"])).unwrap();
        assert_eq!(disks[0], DiskRequest { size: 10240, ..DiskRequest::default() });
        assert_eq!(disks[1], DiskRequest { size: 512, mode: DiskAccess::Ro, name: Some("data".into()) });
    }

    #[test]
    fn disks_that_make_no_sense_are_refused() {
        for (text, part) in [
            ("x:size=1g", "Invalid disk index 'x'"),
            ("-1:size=1g", "Invalid disk index '-1'"),
            ("99999999999:size=1g", "Invalid disk index"),
            ("0:size=huge", "Invalid size 'huge' for disk 0"),
            ("0:size=0", "zero"),
            ("0:size", "Missing size for disk 0"),
            ("0", "Missing size for disk 0"),
            ("1:size=1g", "Missing size for disk 0"),
            ("0:size=1g,mode=wo", "Invalid mode"),
            ("0:size=1g,vg=xenvg", "'vg' is not supported"),
        ] {
            let failure = disks(&parsed(&[text])).unwrap_err();
            assert!(failure.text.contains(part), "{text}: {}", failure.text);
            assert_eq!(failure.code, Some(ErrorCode::WrongInput));
        }
        assert!(disks(&parsed(&["0:size=1g", "0:size=2g"])).is_err());
    }

    #[test]
    fn interfaces_are_read() {
        let given = nics(&parsed(&["0:ip=10.0.0.10,mac=auto", "1:link=br1,vlan=7,ip=none"])).unwrap();
        assert_eq!(given[0].ip.as_deref(), Some("10.0.0.10"));
        assert_eq!(given[0].mac.as_deref(), Some("auto"));
        assert_eq!(given[1].link.as_deref(), Some("br1"));
        assert_eq!(given[1].ip, None);
        assert_eq!(nics(&[]).unwrap(), [NicRequest::default()]);
        assert_eq!(nics(&parsed(&["1:mac=auto"])).unwrap().len(), 2);
        assert!(nics(&parsed(&["0:network=net1"])).unwrap_err().text.contains("not supported"));
        assert!(nics(&parsed(&["0:mac"])).is_err());
    }

    #[test]
    fn changes_of_interfaces_are_read() {
        let changes =
            nic_changes(&parsed(&["add:ip=10.0.0.9", "-1:add,link=br1", "0:remove", "remove", "1:ip=none"])).unwrap();
        let said: Vec<_> = changes.iter().map(|change| (change.action, change.index)).collect();
        use ListAction::{Add, Modify, Remove};
        assert_eq!(said, [(Add, -1), (Add, -1), (Remove, 0), (Remove, -1), (Modify, 1)]);
        assert_eq!(changes[4].nic.ip.as_deref(), Some("none"));
        for text in ["x:ip=1", "-2:remove", "0", "0:add,remove", "0:remove,ip=1.2.3.4"] {
            assert!(nic_changes(&parsed(&[text])).is_err(), "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn reading_devices_never_panics(text in "[-0-9a-z:,=. ]{0,40}", other in ".{0,20}") {
            let given: Vec<Named> = [text.as_str(), other.as_str()].into_iter().filter_map(|text| named(text).ok()).collect();
            let _ = (disks(&given), nics(&given), nic_changes(&given));
        }
    }
}
