//! The configuration file: reading it, checking who else may use it, and drawing findings as a compiler would.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};
use knockd_core::Config;
use knockd_core::config::{Diagnostic, Parsed, Severity, Source};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::process::geteuid;
use serde::{Deserialize, Serialize};

use super::include::{self, Included};

/// How much may come out of a pipe at a reload, and how long that may take: packets wait meanwhile.
const PIPE_SIZE: usize = 16 << 20;
const PIPE_TIME: Duration = Duration::from_secs(1);

/// Why there is no usable configuration.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each prints what it says")]
pub enum ConfigFileError {
    #[error("cannot read {}", path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    #[error(
        "cannot read {}: No such file or directory; create it (see knockd(1) for examples), or name \
         another file",
        path.display()
    )]
    Missing { path: PathBuf },
    #[error("invalid configuration:\n{}", drawn(file, findings, Style::Plain))]
    Invalid { file: ConfigFile, findings: Vec<Diagnostic> },
    #[error(
        "{} is world-writable, so anyone could run commands as root; run: chmod o-w {}",
        path.display(),
        path.display()
    )]
    Writable { path: PathBuf },
    /// The helper has said so.
    #[error("{0}")]
    Told(String),
}

/// How a finding is drawn.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Style {
    /// For a log.
    Plain,
    /// For a terminal, with colours; print it through `anstream`, which drops them where they are not wanted.
    Coloured,
}

/// The text of a configuration and its path, with the files that it includes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ConfigFile {
    /// The path as the user wrote it.
    pub path: PathBuf,
    /// Its content.
    text: Vec<u8>,
    included: Vec<Included>,
    /// The folders in which a new file would be included.
    folders: Vec<PathBuf>,
}

impl ConfigFile {
    /// Reads a configuration file and the files that it includes; the paths of these start at `directory`.
    ///
    /// # Errors
    /// When one is missing or cannot be read.
    pub fn read(path: &Path, directory: &Path) -> Result<Self, ConfigFileError> {
        let text = fs::read(path).map_err(|error| ConfigFileError::of(path, error))?;
        Self::with_included(path, text, directory)
    }

    /// Reads them again while the daemon runs, without waiting for anybody for long.
    ///
    /// A pipe is read only once, as a rule, and is empty from then on; that is no configuration, unlike an empty file.
    ///
    /// # Errors
    /// When one is missing, cannot be read, or is no regular file and has nothing to read.
    pub(crate) fn read_again(path: &Path, directory: &Path) -> Result<Self, ConfigFileError> {
        let mut options = OpenOptions::new();
        let file = options
            .read(true)
            .custom_flags((OFlags::NONBLOCK | OFlags::NOCTTY).bits().cast_signed())
            .open(path);
        let text = file.and_then(|mut file| {
            if !file.metadata()?.is_file() {
                return read_soon(&file);
            }
            let mut text = Vec::new();
            file.read_to_end(&mut text).map(|_| text)
        });
        let text = text.map_err(|error| ConfigFileError::of(path, error))?;
        Self::with_included(path, text, directory)
    }

    fn with_included(path: &Path, text: Vec<u8>, directory: &Path) -> Result<Self, ConfigFileError> {
        let patterns: Vec<_> =
            Config::includes(&text).iter().map(|include| directory.join(&**include)).collect();
        let included = include::read(&patterns)
            .map_err(|(path, source)| ConfigFileError::Unreadable { path, source })?;
        let folders = patterns.iter().filter_map(|path| include::folder(path)).map(Path::to_owned).collect();
        Ok(Self { path: path.to_owned(), text, included, folders })
    }

    /// Parses it, together with the files that it includes.
    ///
    /// # Errors
    /// When it is invalid.
    pub fn parse(&self) -> Result<Parsed, ConfigFileError> {
        Config::parse_files(&self.sources())
            .map_err(|error| ConfigFileError::Invalid { file: self.clone(), findings: error.findings })
    }

    /// Returns the texts that were parsed.
    pub fn sources(&self) -> Vec<Source<'_>> {
        let included = self.included.iter().map(|file| Source::included(&file.name, &file.text));
        std::iter::once(Source::new(&self.text)).chain(included).collect()
    }

    /// Returns the text that a finding or a door is about, by its `file`.
    pub fn source(&self, file: Option<&str>) -> Source<'_> {
        let meant = self.sources().into_iter().find(|source| source.name == file);
        meant.unwrap_or(Source::new(&self.text))
    }

    /// Returns the path of the file that a finding or a door is about, by its `file`.
    pub fn path_of(&self, file: Option<&str>) -> &Path {
        let included = self.included.iter().find(|included| Some(&*included.name) == file);
        included.map_or(&self.path, |included| &included.path)
    }

    /// Returns everything that decides what knockd does: the files, and the folders in which more would be included.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        let files = std::iter::once(&self.path).chain(self.included.iter().map(|included| &included.path));
        files.chain(&self.folders).map(PathBuf::as_path)
    }

    /// Draws a finding: `path:line:column: error: message`, then the source line with the expectation below it; a
    /// note is the first line alone.
    pub fn draw(&self, finding: &Diagnostic, style: Style) -> String {
        let file = finding.file.as_deref();
        draw(self.path_of(file), self.source(file).text, finding, style)
    }
}

/// Reads a pipe or a device to its end, which has to come soon.
fn read_soon(file: &File) -> io::Result<Vec<u8>> {
    let end = Instant::now() + PIPE_TIME;
    let mut text = Vec::new();
    loop {
        let mut buffer = [0; 4096];
        match rustix::io::read(file, &mut buffer) {
            Ok(0) if text.is_empty() => return Err(io::Error::other("not a regular file, and it is empty")),
            Ok(0) => return Ok(text),
            Ok(length) => text.extend(buffer.get(..length).unwrap_or_default()),
            Err(Errno::AGAIN) => {
                let left = Timespec::try_from(end.saturating_duration_since(Instant::now())).ok();
                let _ = poll(&mut [PollFd::new(file, PollFlags::IN)], left.as_ref());
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        if text.len() > PIPE_SIZE || Instant::now() >= end {
            return Err(io::Error::other("not a regular file, and its end does not come"));
        }
    }
}

/// Reads a configuration file and the files that it includes, again if the daemon runs already, and says who else may use
/// them.
///
/// # Errors
/// When one is missing or cannot be read, or everybody may write one with commands that run as root.
pub(crate) fn read_files(
    path: &Path,
    directory: &Path,
    again: bool,
) -> Result<(ConfigFile, Vec<String>), ConfigFileError> {
    let read = if again { ConfigFile::read_again } else { ConfigFile::read };
    with_access(read(path, directory)?)
}

/// Says who else may use these files.
///
/// # Errors
/// When everybody may write one with commands that run as root.
pub(crate) fn with_access(file: ConfigFile) -> Result<(ConfigFile, Vec<String>), ConfigFileError> {
    let mut warnings = Vec::new();
    for path in file.paths() {
        warnings.extend(check_access(path)?);
    }
    Ok((file, warnings))
}

impl ConfigFileError {
    /// What the helper says is a whole message.
    pub(crate) fn told(error: &io::Error) -> Self {
        Self::Told(error.to_string())
    }

    fn of(path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::NotFound => Self::Missing { path },
            _ => Self::Unreadable { path, source },
        }
    }

    /// Draws the findings in colour, if the file is invalid.
    pub(crate) fn coloured(&self) -> Option<String> {
        match self {
            Self::Invalid { file, findings } => {
                Some(format!("invalid configuration:\n{}", drawn(file, findings, Style::Coloured)))
            }
            _ => None,
        }
    }
}

fn drawn(file: &ConfigFile, findings: &[Diagnostic], style: Style) -> String {
    let drawn: Vec<_> = findings.iter().map(|finding| file.draw(finding, style)).collect();
    drawn.join("\n")
}

/// Somebody besides root and our own user may read or change a file that contains secrets and commands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Exposure {
    /// Who may do what, as a fragment of a sentence.
    pub what: String,
    /// The command that ends it.
    pub remedy: String,
    /// Everybody may change the file.
    pub is_for_all: bool,
}

/// Returns who else may use a file that contains secrets or commands, or add one to a folder of such files.
pub fn exposures(path: &Path) -> Vec<Exposure> {
    // The code that reads the file reports that it is missing.
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_file() || metadata.is_dir() => {
            // Who can list the names in a folder knows no secret.
            let unread = if metadata.is_dir() { 0o444 } else { 0 };
            let mode = metadata.mode() & !unread;
            exposures_of(path, metadata.uid(), metadata.gid(), mode, geteuid().as_raw())
        }
        _ => Vec::new(),
    }
}

fn exposures_of(path: &Path, owner: u32, group: u32, mode: u32, user: u32) -> Vec<Exposure> {
    let name = path.display();
    let us = if user == 0 { "root" } else { "this user" };
    let mut found = Vec::new();
    let mut add = |what: String, remedy: String| found.push(Exposure { what, remedy, is_for_all: false });
    if owner != 0 && owner != user {
        let what = format!("owned by user {owner}, who could run commands as {us}");
        add(what, format!("chown {} {name}", if user == 0 { "root".to_owned() } else { user.to_string() }));
    }
    if mode & 0o022 == 0o020 {
        let what = format!("writable by group {group}, whose members could run commands as {us}");
        add(what, format!("chmod g-w {name}"));
    }
    if mode & 0o002 != 0 {
        let what = format!("world-writable, so anyone could run commands as {us}");
        found.push(Exposure { what, remedy: format!("chmod o= {name}"), is_for_all: true });
    } else if mode & 0o004 != 0 {
        add("world-readable, but contains secrets".to_owned(), format!("chmod o= {name}"));
    }
    found
}

/// Checks who else may use a file, and returns the warnings that are due.
///
/// # Errors
/// When everybody may write a file with commands that run as root.
pub(crate) fn check_access(path: &Path) -> Result<Vec<String>, ConfigFileError> {
    let exposures = exposures(path);
    if geteuid().is_root() && exposures.iter().any(|exposure| exposure.is_for_all) {
        return Err(ConfigFileError::Writable { path: path.to_owned() });
    }
    let warning =
        |Exposure { what, remedy, .. }| format!("{}: warning: {what}; run: {remedy}", path.display());
    Ok(exposures.into_iter().map(warning).collect())
}

fn draw(path: &Path, text: &[u8], finding: &Diagnostic, style: Style) -> String {
    let level = match finding.severity {
        Severity::Error => Level::ERROR,
        Severity::Warning => Level::WARNING,
        Severity::Note => Level::NOTE,
    };
    let Diagnostic { severity, line, column, message, .. } = finding;
    let heading = format!("{}:{line}:{column}: {severity}: {message}", path.display());
    if finding.severity == Severity::Note {
        return heading;
    }
    // The snippet shows one line; invalid UTF-8 in it becomes replacement characters after the span.
    let before = text.get(..finding.span.start).unwrap_or_default();
    let start = before.iter().rposition(|&byte| byte == b'\n').map_or(0, |newline| newline + 1);
    let rest = text.get(start..).unwrap_or_default();
    let line = rest.split(|&byte| byte == b'\n').next().unwrap_or_default().trim_ascii_end();
    let source = String::from_utf8_lossy(line);
    let at = (finding.span.start - start).min(source.len());
    let to = (finding.span.end - start).clamp(at, source.len());
    let snippet = Snippet::source(source)
        .line_start(finding.line)
        .annotation(AnnotationKind::Primary.span(at..to).label(format!("expected {}", finding.expected)));
    let mut group = Group::with_level(level).element(snippet);
    if let Some(help) = &finding.help {
        group = group.element(Level::HELP.message(help));
    }
    let renderer = match style {
        Style::Plain => Renderer::plain(),
        Style::Coloured => Renderer::styled(),
    };
    let drawn = renderer.render(&[group]);
    format!("{heading}\n{drawn}")
}

#[cfg(test)]
mod tests {
    use knockd_core::Config;

    use super::*;

    fn drawn(text: &[u8]) -> String {
        let findings = match Config::parse(text) {
            Ok(parsed) => parsed.warnings,
            Err(error) => error.findings,
        };
        let (included, folders) = (Vec::new(), Vec::new());
        let file = ConfigFile { path: "k.conf".into(), text: text.to_vec(), included, folders };
        super::drawn(&file, &findings, Style::Plain)
    }

    #[test]
    fn every_error_shows_its_line_and_what_was_expected() {
        let text = b"[ssh]\n  sequence = 7000,80000\n  seq_timeot = 5\n";
        assert_eq!(
            drawn(text),
            "k.conf:2:19: error: unexpected \"80000\"
  |
2 |   sequence = 7000,80000
  |                   ^^^^^ expected a port number from 0 to 65535
k.conf:3:3: error: `seq_timeot` is not a valid directive in a door
  |
3 |   seq_timeot = 5
  |   ^^^^^^^^^^ expected a known directive
  |
  = help: did you mean `Seq_Timeout`?"
        );
    }

    #[test]
    fn whoever_else_may_use_a_file_is_named_with_the_remedy() {
        let of = |owner, group, mode: u32, user| {
            let found = exposures_of(Path::new("k.conf"), owner, group, 0o100_000 | mode, user);
            let told = found.into_iter().map(|Exposure { what, remedy, .. }| format!("{what}; {remedy}"));
            told.collect::<Vec<_>>()
        };
        for mode in [0o600, 0o640, 0o440] {
            assert_eq!(
                (of(0, 0, mode, 0), of(1000, 5, mode, 1000), of(0, 5, mode, 1000)),
                Default::default()
            );
        }
        let owned = "owned by user 1000, who could run commands as root; chown root k.conf";
        let group = "writable by group 27, whose members could run commands as root; chmod g-w k.conf";
        let read = "world-readable, but contains secrets; chmod o= k.conf";
        let written = "world-writable, so anyone could run commands as root; chmod o= k.conf";
        assert_eq!(of(1000, 27, 0o600, 0), [owned]);
        assert_eq!(of(0, 27, 0o660, 0), [group]);
        assert_eq!(of(1000, 27, 0o664, 0), [owned, group, read]);
        assert_eq!(of(0, 27, 0o606, 0), [written]);
        let other = "owned by user 33, who could run commands as this user; chown 1000 k.conf";
        assert_eq!(of(33, 0, 0o600, 1000), [other]);
    }

    #[test]
    fn any_bytes_can_be_drawn() {
        for text in
            [&b"\xff"[..], b"[\xff\xfe", b"[a]\nsequence = 1,\xc3", b"", b"\n\n", "[ä]\nö = ü".as_bytes()]
        {
            assert!(drawn(text).starts_with("k.conf:"), "{text:?}");
        }
    }
}
