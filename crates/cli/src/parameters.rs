//! Parameters as they are typed: `memory=128,vcpus=2`, `kvm:kernel_path=/boot/vmlinuz,acpi`.

use std::collections::BTreeMap;

use model::params::{self, ParamDef, ParamError};
use model::{ParamValue, Params};

/// What is typed for a parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Setting {
    /// `key=value`
    Value(String),
    /// `key` alone, or `no_key`.
    Switch(bool),
    /// `-key`, or `key=default`: back to the cluster's.
    Default,
}

/// `key=value` pairs. A later one for the same key is refused, because only one can be meant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Settings(pub BTreeMap<String, Setting>);

/// Something and its parameters: `kvm:acpi=no`, `0:size=4g`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Named {
    /// What stands before the colon.
    pub name: String,
    /// What stands after it.
    pub settings: Settings,
}

/// Divides at a separator; a backslash takes the special meaning from the character after it.
fn split(text: &str, separator: char) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut chars = text.chars();
    while let Some(char) = chars.next() {
        match char {
            '\\' => push(&mut parts, chars.next().unwrap_or('\\')),
            char if char == separator => parts.push(String::new()),
            char => push(&mut parts, char),
        }
    }
    parts
}

fn push(parts: &mut [String], char: char) {
    if let Some(last) = parts.last_mut() {
        last.push(char);
    }
}

/// Reads `key=value` pairs with commas between them. In a value, `\,` is a comma.
pub(crate) fn settings(text: &str) -> Result<Settings, String> {
    let mut settings = BTreeMap::new();
    if text.is_empty() {
        return Ok(Settings(settings));
    }
    for part in split(text, ',') {
        let (key, setting) = match part.split_once('=') {
            Some((key, "default")) => (key, Setting::Default),
            Some((key, value)) => (key, Setting::Value(value.into())),
            None => match part.strip_prefix("no_") {
                Some(key) => (key, Setting::Switch(false)),
                None => match part.strip_prefix('-') {
                    Some(key) => (key, Setting::Default),
                    None => (part.as_str(), Setting::Switch(true)),
                },
            },
        };
        if key.is_empty() {
            return Err(format!("'{part}' names no parameter; write name=value,name=value"));
        }
        if settings.insert(key.to_owned(), setting).is_some() {
            return Err(format!("'{key}' is given twice"));
        }
    }
    Ok(Settings(settings))
}

/// Reads a name and, after a colon, its parameters.
pub(crate) fn named(text: &str) -> Result<Named, String> {
    let (name, rest) = text.split_once(':').unwrap_or((text, ""));
    if name.is_empty() {
        return Err("there is nothing before the colon; write name:parameter=value".into());
    }
    Ok(Named { name: name.to_owned(), settings: settings(rest)? })
}

/// A value as it is sent. Where the parameter is known here its value is checked here; else the daemon does it.
fn value(defs: Option<&[ParamDef]>, name: &str, setting: &Setting) -> Result<Option<ParamValue>, ParamError> {
    let value = match setting {
        Setting::Default => None,
        Setting::Switch(on) => Some(ParamValue::Bool(*on)),
        Setting::Value(text) => Some(ParamValue::Text(text.clone())),
    };
    let Some(defs) = defs else { return Ok(value) };
    // "memory" stands for two parameters of one kind; it travels under its own name, as the daemon's answer shows it.
    let checked = match &value {
        Some(value) => params::check(defs, &Params::from([(name.to_owned(), value.clone())]))?,
        None if name == "memory" => return Ok(None),
        None if defs.iter().any(|def| def.name == name) => return Ok(None),
        None => return Err(ParamError::Unknown(name.to_owned())),
    };
    Ok(checked.into_values().next())
}

/// Parameters of something new: one that is set to the default is left out.
pub(crate) fn params(defs: Option<&[ParamDef]>, given: &Settings) -> Result<Params, ParamError> {
    let changes = changes(defs, given)?;
    Ok(changes.into_iter().filter_map(|(name, value)| Some((name, value?))).collect())
}

/// As [`params`], for an option that was given several times: the last one wins.
pub(crate) fn all(defs: Option<&[ParamDef]>, given: &[Settings]) -> Result<Params, ParamError> {
    let mut all = Params::new();
    for settings in given {
        all.extend(params(defs, settings)?);
    }
    Ok(all)
}

/// As [`changes`], for an option that was given several times: the last one wins.
pub(crate) fn all_changes(
    defs: Option<&[ParamDef]>,
    given: &[Settings],
) -> Result<BTreeMap<String, Option<ParamValue>>, ParamError> {
    let mut all = BTreeMap::new();
    for settings in given {
        all.extend(changes(defs, settings)?);
    }
    Ok(all)
}

/// Changes of parameters: `None` gives one back to the cluster's value.
pub(crate) fn changes(
    defs: Option<&[ParamDef]>,
    given: &Settings,
) -> Result<BTreeMap<String, Option<ParamValue>>, ParamError> {
    given.0.iter().map(|(name, setting)| Ok((name.clone(), value(defs, name, setting)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::params::BACKEND;

    fn value_of(settings: &Settings, key: &str) -> Setting {
        settings.0[key].clone()
    }

    #[test]
    fn pairs_are_read_as_in_ganeti() {
        let given = settings("memory=128,acpi,no_pae,-vcpus,cpu_type=default").unwrap();
        assert_eq!(value_of(&given, "memory"), Setting::Value("128".into()));
        assert_eq!(value_of(&given, "acpi"), Setting::Switch(true));
        assert_eq!(value_of(&given, "pae"), Setting::Switch(false));
        assert_eq!(value_of(&given, "vcpus"), Setting::Default);
        assert_eq!(value_of(&given, "cpu_type"), Setting::Default);
        assert_eq!(settings("").unwrap(), Settings::default());
    }

    #[test]
    fn values_may_hold_signs_that_divide() {
        let given = named(r"kvm:kernel_args=console=ttyS0\ ip=10.0.0.10\,ro,root_path=/dev/vda").unwrap();
        assert_eq!(given.name, "kvm");
        assert_eq!(value_of(&given.settings, "kernel_args"), Setting::Value("console=ttyS0 ip=10.0.0.10,ro".into()));
        assert_eq!(value_of(&given.settings, "root_path"), Setting::Value("/dev/vda".into()));
        assert_eq!(named("kvm").unwrap().settings, Settings::default());
        assert_eq!(value_of(&named("0:ip=::1").unwrap().settings, "ip"), Setting::Value("::1".into()));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for text in ["=5", "a=1,,b=2", "a=1,a=2", ","] {
            assert!(settings(text).is_err(), "{text:?}");
        }
        assert!(named(":a=1").is_err());
    }

    #[test]
    fn values_are_checked_where_the_parameter_is_known() {
        let memory = params(Some(BACKEND), &settings("memory=1g,vcpus=2").unwrap()).unwrap();
        assert_eq!(memory["memory"], ParamValue::Int(1024));
        assert_eq!(memory["vcpus"], ParamValue::Int(2));
        let unknown = params(Some(BACKEND), &settings("nosuchparam=1").unwrap()).unwrap_err();
        assert_eq!(unknown.to_string(), "Unknown parameter 'nosuchparam'");
        assert!(params(Some(BACKEND), &settings("memory=lots").unwrap()).is_err());
        assert!(changes(Some(BACKEND), &settings("-nosuchparam").unwrap()).is_err());
        assert_eq!(changes(Some(BACKEND), &settings("-memory").unwrap()).unwrap()["memory"], None);
        assert!(params(Some(BACKEND), &settings("memory=default").unwrap()).unwrap().is_empty());
    }

    proptest::proptest! {
        #[test]
        fn reading_parameters_never_panics(text in ".{0,60}") {
            let _ = settings(&text);
            if let Ok(named) = named(&text) {
                let _ = params(Some(BACKEND), &named.settings);
                let _ = changes(None, &named.settings);
            }
        }

        #[test]
        fn what_is_written_with_backslashes_is_read_as_it_was(value in "[a-z,=: \\\\]{1,20}") {
            proptest::prop_assume!(value != "default");
            let escaped = value.replace('\\', "\\\\").replace(',', "\\,");
            let given = settings(&format!("key={escaped}")).unwrap();
            assert_eq!(value_of(&given, "key"), Setting::Value(value));
        }
    }
}
