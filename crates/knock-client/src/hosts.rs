//! The file with the profiles, hosts.toml: finding, reading and changing it.

mod table;

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use etcetera::BaseStrategy;
use knockd_core::config::{Code, Diagnostic, Severity, Source};
use knockd_core::similar;
use toml_edit::{Document, DocumentMut, Item, Table, TableLike, Value};

pub use self::table::{KEYS, keys};
use crate::draw::draw;
use crate::profile::{Profile, check_name};
use crate::send::reason;

/// A hosts.toml; one that does not exist is empty.
#[derive(Debug)]
pub struct Hosts {
    path: PathBuf,
    document: Document<String>,
}

/// Why a profile cannot be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum HostsError {
    /// The system does not tell where configuration belongs.
    #[error("cannot find your configuration folder: HOME is not set")]
    NoFolder,
    /// The file exists and cannot be read.
    #[error("cannot read {}: {}", path.display(), reason(cause))]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The system's error.
        cause: io::Error,
    },
    /// The file cannot be written; it is what it was.
    #[error("cannot write {}: {}", path.display(), reason(cause))]
    Unwritable {
        /// The file.
        path: PathBuf,
        /// The system's error.
        cause: io::Error,
    },
    /// What is in the file is not valid; the text draws everything that is wrong.
    #[error("invalid profile:\n{0}")]
    Invalid(String),
    /// There is no profile of this name.
    #[error(
        "no profile {name:?} in {}{}", path.display(),
        similar.as_ref().map(|name| format!("; did you mean {name:?}?")).unwrap_or_default()
    )]
    NoProfile {
        /// The name that was asked for.
        name: String,
        /// The file.
        path: PathBuf,
        /// The name of a profile that looks like it.
        similar: Option<String>,
    },
}

impl Hosts {
    /// Reads the file in this user's configuration folder: `~/.config/knock/hosts.toml`, or below `XDG_CONFIG_HOME`;
    /// on Windows below `%APPDATA%`.
    ///
    /// # Errors
    ///
    /// When there is no such folder, or the file exists and is not readable or not TOML with one table a profile.
    pub fn read() -> Result<Self, HostsError> {
        let path = Self::default_path()?;
        let text = read_text(&path)?;
        Self::parse(path, &text)
    }

    /// Returns the path of that file, which may not exist.
    ///
    /// # Errors
    ///
    /// [`HostsError::NoFolder`].
    pub fn default_path() -> Result<PathBuf, HostsError> {
        let folders = etcetera::choose_base_strategy().map_err(|_| HostsError::NoFolder)?;
        Ok(folders.config_dir().join("knock").join("hosts.toml"))
    }

    /// Parses the text of a file at this path.
    ///
    /// # Errors
    ///
    /// [`HostsError::Invalid`].
    pub fn parse(path: PathBuf, text: &str) -> Result<Self, HostsError> {
        let document = Document::parse(text.to_owned()).map_err(|error| {
            let (message, expected) = match error.message() {
                "duplicate key" => ("duplicate name".to_owned(), "each name once".to_owned()),
                "string values must be quoted, expected literal string" => {
                    ("text without quotation marks".to_owned(), "quotation marks around it".to_owned())
                }
                other => told(other),
            };
            let span = error.span().unwrap_or_default();
            HostsError::invalid(&path, text, &[finding(text, span, message, expected)])
        })?;
        let outside =
            document.iter().filter(|(_, item)| item.as_table_like().is_none()).map(|(name, item)| {
                let span =
                    document.key(name).and_then(toml_edit::Key::span).or(item.span()).unwrap_or_default();
                let message = format!("`{name}` is outside of a profile");
                finding(text, span, message, "the name of a profile before it, such as [home]")
            });
        let findings: Vec<_> = outside.collect();
        if findings.is_empty() {
            Ok(Self { path, document })
        } else {
            Err(HostsError::invalid(&path, text, &findings))
        }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its text.
    pub fn text(&self) -> &str {
        self.document.raw()
    }

    /// The names of all profiles in the order of the file.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.document.iter().map(|(name, _)| name)
    }

    /// Returns a profile. The others may be invalid.
    ///
    /// # Errors
    ///
    /// [`HostsError::NoProfile`] and [`HostsError::Invalid`].
    pub fn profile(&self, name: &str) -> Result<Profile, HostsError> {
        let table = self.document.get(name).and_then(Item::as_table_like);
        let table = table.ok_or_else(|| HostsError::no_profile(self, name))?;
        self.read_table(name, table).map_err(|findings| self.invalid(&findings))
    }

    /// Checks every profile and its name.
    ///
    /// # Errors
    ///
    /// [`HostsError::Invalid`] with everything that is wrong.
    pub fn check(&self) -> Result<(), HostsError> {
        let mut findings = Vec::new();
        for (name, item) in self.document.iter() {
            if let Err(error) = check_name(name) {
                let (message, expected) = told(&error);
                findings.push(finding(self.text(), self.place(name), message, expected));
            }
            let read = item.as_table_like().map(|table| self.read_table(name, table));
            findings.extend(read.and_then(Result::err).unwrap_or_default());
        }
        if findings.is_empty() { Ok(()) } else { Err(self.invalid(&findings)) }
    }

    /// Says what others can do with the file or a one-time file of a profile, if they can do anything.
    pub fn exposure(&self) -> Option<String> {
        let tables = self.document.iter().filter_map(|(_, item)| item.as_table_like());
        let one_time = tables.filter_map(|table| table.get("one_time")?.as_str()).map(Path::new);
        std::iter::once(&*self.path).chain(one_time).find_map(exposure)
    }

    /// Returns the file with this profile and everything else as it is: keys that stay the same, comments, the order.
    ///
    /// # Errors
    ///
    /// [`HostsError::Invalid`] when the profile does not read back, such as with an empty host.
    pub fn with(&self, name: &str, profile: &Profile) -> Result<Self, HostsError> {
        let changed = self.changed(|document| {
            if !document.contains_key(name) {
                let mut table = Table::new();
                table.decor_mut().set_prefix(if document.is_empty() { "" } else { "\n" });
                document.insert(name, Item::Table(table));
            }
            let old = self.profile(name).map(|old| table::keys(&old)).unwrap_or_default();
            let Some(table) = document.get_mut(name).and_then(Item::as_table_like_mut) else { return };
            let new = table::keys(profile);
            for key in KEYS {
                let value = |keys: &[(&str, Value)]| {
                    keys.iter().find(|(name, _)| *name == key).map(|(_, value)| value.clone())
                };
                let (old, new) = (value(&old), value(&new));
                if old.as_ref().map(ToString::to_string) != new.as_ref().map(ToString::to_string) {
                    set(table, key, new);
                }
            }
        })?;
        changed.profile(name).map(|_| changed)
    }

    /// Returns the file without a profile.
    ///
    /// # Errors
    ///
    /// [`HostsError::NoProfile`].
    pub fn without(&self, name: &str) -> Result<Self, HostsError> {
        if !self.document.contains_key(name) {
            return Err(HostsError::no_profile(self, name));
        }
        self.changed(|document| {
            document.remove(name);
        })
    }

    fn changed(&self, change: impl FnOnce(&mut DocumentMut)) -> Result<Self, HostsError> {
        let mut document = self.document.clone().into_mut();
        change(&mut document);
        Self::parse(self.path.clone(), &document.to_string())
    }

    /// Writes the file, readable for its owner only: whole, or not at all. Where a link leads elsewhere, it stays.
    ///
    /// # Errors
    ///
    /// [`HostsError::Unwritable`].
    pub fn write(&self) -> Result<(), HostsError> {
        let folder = self.path.parent().map_or(Ok(()), create_private);
        let written = folder.and_then(|()| write_private(&followed(&self.path)?, self.text().as_bytes()));
        written.map_err(|cause| HostsError::Unwritable { path: self.path.clone(), cause })
    }

    fn read_table(&self, name: &str, table: &dyn TableLike) -> Result<Profile, Vec<Diagnostic>> {
        table::read(self.text(), self.place(name), table)
    }

    /// The bytes of a profile's name.
    fn place(&self, name: &str) -> std::ops::Range<usize> {
        self.document.key(name).and_then(toml_edit::Key::span).unwrap_or_default()
    }

    fn invalid(&self, findings: &[Diagnostic]) -> HostsError {
        HostsError::invalid(&self.path, self.text(), findings)
    }
}

impl HostsError {
    fn invalid(path: &Path, text: &str, findings: &[Diagnostic]) -> Self {
        let text = without_secrets(text);
        let drawn: Vec<_> = findings.iter().map(|finding| draw(path, &text, finding)).collect();
        Self::Invalid(drawn.join("\n"))
    }

    fn no_profile(hosts: &Hosts, name: &str) -> Self {
        let similar = similar(name, hosts.names()).map(str::to_owned);
        Self::NoProfile { name: name.to_owned(), path: hosts.path.clone(), similar }
    }
}

#[cfg(unix)]
fn exposure(path: &Path) -> Option<String> {
    use std::os::unix::fs::MetadataExt;
    let mode = fs::metadata(path).ok()?.mode();
    let what = match mode {
        _ if mode & 0o022 != 0 => "changed",
        _ if mode & 0o077 != 0 => "read",
        _ => return None,
    };
    let path = path.display();
    Some(format!("{path} can be {what} by others; run: chmod 600 {path}"))
}

/// Here, nobody can tell.
#[cfg(not(unix))]
fn exposure(_path: &Path) -> Option<String> {
    None
}

/// Reads the profile in a table that is not in a file. An error is what is wrong, and what was expected.
pub(crate) fn profile_of(table: Table) -> Result<Profile, (String, String)> {
    let mut document = DocumentMut::new();
    document.insert("profile", Item::Table(table));
    let text = document.to_string();
    let table = document.get("profile").and_then(Item::as_table_like);
    let read = table.map(|table| table::read(&text, 0..0, table));
    let findings = match read {
        Some(Ok(profile)) => return Ok(profile),
        Some(Err(findings)) => findings,
        None => Vec::new(),
    };
    let first = findings.into_iter().next();
    Err(first.map_or_else(Default::default, |finding| (finding.message, finding.expected)))
}

/// Reads a file with profiles; one that does not exist is empty.
///
/// # Errors
///
/// [`HostsError::Unreadable`], also for what is no regular file: a pipe could block for ever, a device never end.
pub fn read_text(path: &Path) -> Result<String, HostsError> {
    let read = fs::metadata(path).and_then(|there| {
        if there.is_file() { fs::read_to_string(path) } else { Err(io::Error::other("not a regular file")) }
    });
    match read {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        read => read.map_err(|cause| HostsError::Unreadable { path: path.to_owned(), cause }),
    }
}

/// Returns where a link leads, also if nothing is there yet.
fn followed(path: &Path) -> io::Result<PathBuf> {
    const MOST_LINKS: usize = 40;
    let mut path = path.to_owned();
    for _ in 0..MOST_LINKS {
        match fs::read_link(&path) {
            Ok(link) => path = path.parent().unwrap_or(Path::new("")).join(link),
            Err(_) => return Ok(path),
        }
    }
    Err(io::Error::other("too many links"))
}

/// Writes a file that only its owner can read, in place of what was there: whole, or not at all. A device or a pipe is
/// written to.
///
/// # Errors
///
/// The system's; then what was there is still there.
pub fn write_private(path: &Path, content: &[u8]) -> io::Result<()> {
    if fs::metadata(path).is_ok_and(|there| !there.is_file() && !there.is_dir()) {
        // A device or a pipe takes what is written; in its place, a file would break what others do with it.
        return OpenOptions::new().write(true).open(path)?.write_all(content);
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // A temporary file belongs to its owner alone from the beginning.
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(content)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
}

/// Creates a folder that only its owner can use, unless it exists.
///
/// # Errors
///
/// The system's.
pub fn create_private(folder: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(folder)
}

/// Sets a key of a table; what is written around the old value, such as a comment, stays.
fn set(table: &mut dyn TableLike, key: &str, value: Option<Value>) {
    match (table.get_mut(key).and_then(Item::as_value_mut), value) {
        (_, None) => {
            table.remove(key);
        }
        (Some(old), Some(mut value)) => {
            *value.decor_mut() = old.decor().clone();
            *old = value;
        }
        (None, Some(value)) => {
            table.insert(key, Item::Value(value));
        }
    }
}

/// Returns a text of the same length in which no sequence can be read: output ends up in logs.
///
/// A line stays as it is if it is certain to hold none: a heading, a comment or a key that is no secret. An error can be
/// that a sequence has no quotation marks, or a key of another name.
fn without_secrets(text: &str) -> String {
    let is_harmless = |line: &str| {
        let key = line.split_once('=').map(|(key, _)| key.trim());
        let is_known = key.is_some_and(|key| KEYS.contains(&key));
        let is_heading = line.starts_with('[') && !line.contains(',');
        (is_known || is_heading) && !line.contains("sequence") && !line.contains("close")
    };
    let hidden = |line: &str| {
        let (shown, value) = line.split_at(line.find('=').unwrap_or_default());
        shown.to_owned() + &value.replace(|c: char| c.is_ascii_alphanumeric(), "*")
    };
    text.split_inclusive('\n')
        .map(|line| if is_harmless(line) { line.to_owned() } else { hidden(line) })
        .collect()
}

/// Creates a finding about these bytes of a hosts.toml.
fn finding(
    text: &str,
    span: std::ops::Range<usize>,
    message: impl Into<String>,
    expected: impl Into<String>,
) -> Diagnostic {
    Diagnostic::new(Source::new(text.as_bytes()), span, Severity::Error, Code::Invalid, message, expected)
}

/// Parts an error into what is wrong and what was expected.
fn told(error: &str) -> (String, String) {
    let parted = error.split_once("; expected ").or_else(|| error.split_once(", expected "));
    let (message, expected) = parted.unwrap_or_else(|| match error.strip_prefix("expected ") {
        Some(expected) => ("invalid value", expected),
        None => (error, "valid TOML"),
    });
    (message.trim().to_owned(), expected.trim().to_owned())
}
