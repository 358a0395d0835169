//! Definitions of operating systems: folders with scripts and lists.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// The versions of the interface that are spoken, ascending.
pub const API_VERSIONS: [u32; 3] = [10, 15, 20];

/// From here on definitions have variants.
const WITH_VARIANTS: u32 = 15;
/// From here on definitions have parameters and a script `verify`.
const WITH_PARAMETERS: u32 = 20;

/// A definition of an operating system, usable or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Definition {
    /// Its name, without a variant.
    pub name: String,
    /// Its folder.
    pub path: PathBuf,
    /// Whether it can be used.
    pub valid: bool,
    /// Why not; empty if it can.
    pub diagnosis: String,
    /// Its variants; none: it is used by its bare name.
    pub variants: Vec<String>,
    /// The versions of the interface that it speaks.
    pub api_versions: Vec<u32>,
    /// Its parameters: name and help.
    pub parameters: Vec<(String, String)>,
}

/// An operating system that can be put on disks: a usable definition and a variant of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct System {
    /// The definition's name.
    pub name: String,
    /// The variant; empty if the definition has none.
    pub variant: String,
    /// The definition's folder.
    pub path: PathBuf,
    /// The version of the interface in which its scripts are called.
    pub api_version: u32,
    /// Its parameters: name and help.
    pub parameters: Vec<(String, String)>,
}

impl System {
    /// Its full name, `busybox+default`.
    pub fn full_name(&self) -> String {
        if self.variant.is_empty() { self.name.clone() } else { format!("{}+{}", self.name, self.variant) }
    }

    /// Whether it has parameters and a script `verify`.
    pub(crate) fn has_parameters(&self) -> bool {
        self.api_version >= WITH_PARAMETERS
    }
}

/// All definitions in the folders of a search path, by name. Where two folders have one of the same name, the first
/// folder's counts. Reads files: to be called where that may block.
pub fn discover(search_path: &[PathBuf]) -> Vec<Definition> {
    let mut found = BTreeMap::new();
    for folder in search_path {
        let entries = match fs::read_dir(folder) {
            Ok(entries) => entries,
            Err(error) => {
                // Not every folder of the usual search path exists.
                if error.kind() != ErrorKind::NotFound {
                    tracing::warn!(folder = %folder.display(), %error, "can't look for OS definitions");
                }
                continue;
            }
        };
        for entry in entries.flatten() {
            let (path, name) = (entry.path(), entry.file_name());
            if let Some(name) = name.to_str().filter(|name| usable(name))
                && path.is_dir()
            {
                found.entry(name.to_owned()).or_insert_with(|| read(name, &path));
            }
        }
    }
    found.into_values().collect()
}

/// The operating system that an instance names: `os+variant`, or `os` where there are no variants. Reads files: to be
/// called where that may block.
///
/// # Errors
/// [`Error::NotFound`], [`Error::Invalid`], [`Error::NoVariant`], [`Error::UnknownVariant`].
pub fn find(search_path: &[PathBuf], os: &str) -> Result<System> {
    let (name, variant) = os.split_once('+').map_or((os, None), |(name, variant)| (name, Some(variant)));
    let path = search_path.iter().map(|folder| folder.join(name)).find(|path| usable(name) && path.is_dir());
    let path = path.ok_or_else(|| Error::NotFound { name: name.to_owned() })?;
    let definition = read(name, &path);
    if !definition.valid {
        return Err(Error::Invalid { name: definition.name, diagnosis: definition.diagnosis });
    }
    let Definition { name, path, variants, parameters, api_versions, .. } = definition;
    let variant = match variant {
        Some(variant) if variants.iter().any(|known| known == variant) => variant.to_owned(),
        Some(variant) => return Err(Error::UnknownVariant { name, variant: variant.to_owned(), variants }),
        None if variants.is_empty() => String::new(),
        None => return Err(Error::NoVariant { name, variants }),
    };
    Ok(System { name, variant, path, api_version: spoken(&api_versions).unwrap_or_default(), parameters })
}

/// A name that is one of a folder in the search path and of nothing else, and can be told from its variant.
fn usable(name: &str) -> bool {
    !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '+', '\0'])
}

/// The highest version that both sides speak.
fn spoken(theirs: &[u32]) -> Option<u32> {
    API_VERSIONS.into_iter().rev().find(|version| theirs.contains(version))
}

fn read(name: &str, path: &Path) -> Definition {
    let mut definition = Definition {
        name: name.to_owned(),
        path: path.to_owned(),
        valid: false,
        diagnosis: String::new(),
        variants: Vec::new(),
        api_versions: Vec::new(),
        parameters: Vec::new(),
    };
    match examine(&mut definition) {
        Ok(()) => definition.valid = true,
        Err(diagnosis) => definition.diagnosis = diagnosis,
    }
    definition
}

/// Fills in what the folder says; an error is the diagnosis.
fn examine(definition: &mut Definition) -> Result<(), String> {
    let folder = &definition.path;
    let file = folder.join("ganeti_api_version");
    for line in lines(&file)?.ok_or_else(|| format!("{} is missing", file.display()))? {
        let version = line
            .parse()
            .map_err(|_| format!("{} has to have a version number on each line, and has '{line}'", file.display()))?;
        definition.api_versions.push(version);
    }
    let Some(api_version) = spoken(&definition.api_versions) else {
        return Err(format!(
            "{} names the interface versions {}, and Cardume speaks {}",
            file.display(),
            list(&definition.api_versions),
            list(&API_VERSIONS)
        ));
    };
    if api_version >= WITH_VARIANTS {
        definition.variants = lines(&folder.join("variants.list"))?.unwrap_or_default();
    }
    if api_version >= WITH_PARAMETERS {
        let file = folder.join("parameters.list");
        let parameters = lines(&file)?.ok_or_else(|| format!("{} is missing", file.display()))?;
        definition.parameters = parameters
            .iter()
            .map(|line| {
                let (name, help) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
                (name.to_owned(), help.trim_start().to_owned())
            })
            .collect();
    }
    let scripts: &[&str] = match api_version {
        ..WITH_PARAMETERS => &["create", "import", "export", "rename"],
        WITH_PARAMETERS.. => &["create", "import", "export", "rename", "verify"],
    };
    scripts.iter().try_for_each(|script| executable(&folder.join(script)))
}

fn list(versions: &[u32]) -> String {
    if versions.is_empty() {
        return "(none)".to_owned();
    }
    versions.iter().map(u32::to_string).collect::<Vec<_>>().join(", ")
}

/// A list's lines without comments and empty ones; none if there is no such file.
fn lines(file: &Path) -> Result<Option<Vec<String>>, String> {
    match fs::read_to_string(file) {
        Ok(text) => Ok(Some(
            text.lines()
                .map(str::trim)
                .filter(|line| !line.is_empty() && !line.starts_with('#'))
                .map(str::to_owned)
                .collect(),
        )),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(format!("{} can't be read: {error}", file.display())),
    }
}

fn executable(script: &Path) -> Result<(), String> {
    let shown = script.display();
    match fs::metadata(script) {
        Ok(meta) if !meta.is_file() => Err(format!("{shown} is not a file")),
        Ok(meta) if meta.permissions().mode() & 0o111 == 0 => {
            Err(format!("{shown} is not executable: chmod +x {shown}"))
        }
        Ok(_) => Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => Err(format!("{shown} is missing")),
        Err(error) => Err(format!("{shown} can't be looked at: {error}")),
    }
}
