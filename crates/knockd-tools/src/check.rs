//! `knockd check`: finds errors and unwise settings in a configuration, without running it.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use knockd_capture::{clock_is_synchronised, interfaces};
use knockd_core::config::{
    Action, Code, Commands, Diagnostic, Door, Firewall, Key, Options, Parsed, Places, Severity,
};
use knockd_core::{CommandTemplate, Config, FlagRule, OneTime, Protocol, Sequence, advise};
use serde::Serialize;

use crate::guarded::{About, Guarded};
use crate::listening::Listening;
use crate::machine::Machine;
use knockd_cli::Exit;
use knockd_cli::args::Format;
use knockd_cli::system::config_file::{ConfigFile, Style, exposures};
use knockd_cli::system::programs;
use knockd_cli::system::selection::Selection;
use knockd_cli::system::text::count;

/// Checks a configuration file and prints its errors, everything unwise, and the odds of guessing each door's
/// sequence.
///
/// It fails if there is an error and, with `strict`, if there is a warning. With `accepts_lockout`, it is a warning if no door
/// opens ssh.
///
/// # Errors
/// When the file cannot be read, or the findings cannot be printed.
pub fn run(path: &Path, strict: bool, accepts_lockout: bool, format: Format) -> anyhow::Result<Exit> {
    let file = ConfigFile::read(path, Path::new(""))?;
    let check = Check::new(&file, accepts_lockout);
    let number = |severity: Severity| {
        check.findings.iter().filter(|finding| finding.severity == severity.name()).count()
    };
    let (errors, warnings) = (number(Severity::Error), number(Severity::Warning));
    let mut out = anstream::stdout().lock();
    match format {
        Format::Text => check.print(&mut out, errors, warnings)?,
        Format::Json => {
            serde_json::to_writer(&mut out, &check.findings).map_err(io::Error::from)?;
            writeln!(out)?;
        }
    }
    Ok(if errors > 0 || strict && warnings > 0 { Exit::Failed } else { Exit::Succeeded })
}

/// One finding, as the JSON has it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
struct Finding {
    severity: &'static str,
    code: &'static str,
    path: PathBuf,
    /// Line and column; omitted if the finding is about the whole file.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    place: Option<Place>,
    message: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    expected: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    help: Option<String>,
    /// The finding as shown to people.
    #[serde(skip)]
    drawn: String,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
struct Place {
    line: usize,
    column: usize,
}

/// The findings about a file.
struct Check<'a> {
    file: &'a ConfigFile,
    findings: Vec<Finding>,
}

impl<'a> Check<'a> {
    fn new(file: &'a ConfigFile, accepts_lockout: bool) -> Self {
        let mut check = Self { file, findings: Vec::new() };
        for path in file.paths() {
            check.access(path);
        }
        match Config::parse_files(&file.sources()) {
            Err(error) => check.add_all(error.findings),
            Ok(parsed) => check.usable(&parsed, accepts_lockout),
        }
        check
    }

    /// Adds the findings about a configuration whose text is valid.
    fn usable(&mut self, parsed: &Parsed, accepts_lockout: bool) {
        let mut findings = parsed.warnings.clone();
        findings.extend(advise(&self.file.sources(), parsed));
        let Config { options, doors } = &parsed.config;
        let machine = if doors.iter().any(Door::is_guarded) {
            Machine::read(Path::new("/"))
        } else {
            Machine { listening: Listening::read(), ..Machine::default() }
        };
        let listening = &machine.listening;
        for (door, places) in doors.iter().zip(&parsed.places) {
            findings.extend(self.programs(door, places));
            if let Key::Sequence(sequence) = &door.key {
                findings.extend(self.live_port(door, sequence, places, listening));
            }
            if let Some(path) = door.key.one_time_file() {
                findings.extend(self.one_time_file(Path::new(&**path), places));
            }
        }
        let guarded = Guarded {
            parsed,
            sources: self.file.sources(),
            machine: &machine,
            has_line: &|path| fs::read(path).is_ok_and(|text| OneTime::parse(&text).next().is_some()),
            accepts_lockout,
        };
        let (about_doors, about_machine) = guarded.findings();
        findings.extend(about_doors);
        for About { path, severity, code, message } in about_machine {
            let path = path.unwrap_or_else(|| self.file.path.clone());
            self.add_about(path, severity, code, message, None);
        }
        self.interface(options);
        if doors.iter().any(|door| door.target.is_none()) {
            self.wrong_interfaces(options);
        }
        // The notes, which are about whole doors, come last.
        let is_note = |finding: &Diagnostic| finding.severity == Severity::Note;
        findings.sort_by(|a, b| is_note(a).cmp(&is_note(b)).then_with(|| a.order(b)));
        self.add_all(findings);
        self.clock(clock_is_synchronised());
        self.rights(&parsed.config);
    }

    /// Says what knockd needs for doors of which the firewall opens some.
    fn rights(&mut self, config: &Config) {
        if config.options.firewall == Firewall::None {
            return;
        }
        let message = match config.door_with_command() {
            None => "no door has a command: knockd executes nothing and keeps two capabilities, CAP_NET_ADMIN and CAP_NET_RAW".to_owned(),
            Some(door) => {
                format!("door `{}` has a command: knockd stays root and runs a shell", door.name)
            }
        };
        self.add_about(self.file.path.clone(), Severity::Note, Code::Rights, message, None);
    }

    /// Adds a note if the machine's clock is known to be wrong, or at least not known to be right.
    fn clock(&mut self, is_synchronised: Option<bool>) {
        if is_synchronised == Some(false) {
            let message = "the clock of this machine is not synchronised: times in the log may be wrong, and doors left open over \
                           a restart may close late";
            self.add_about(self.file.path.clone(), Severity::Note, Code::Clock, message.to_owned(), None);
        }
    }

    fn programs(&self, door: &Door, places: &Places) -> Vec<Diagnostic> {
        let mut findings: Vec<Diagnostic> = Vec::new();
        let Action::Commands { start, stop } = &door.action else { return findings };
        let Commands { v4: start, v6: start_6 } = start;
        let Commands { v4: stop, v6: stop_6 } = stop;
        for (directive, command) in [
            ("Start_Command", start),
            ("Start_Command_6", start_6),
            ("Stop_Command", stop),
            ("Stop_Command_6", stop_6),
        ] {
            let Some(command) = command.as_ref().map(CommandTemplate::to_string) else { continue };
            let Some(program) = programs::missing(&command) else { continue };
            // If the directive for IPv6 is absent, the plain one applies, and that has been checked.
            let span = places.of(directive);
            if span == places.header {
                continue;
            }
            let message = format!("{program}: not found or not executable");
            let expected = "an installed program; its package may be missing";
            findings.push(self.warning(places, Code::MissingProgram, span, message, expected));
        }
        findings
    }

    fn live_port(
        &self,
        door: &Door,
        sequence: &Sequence,
        places: &Places,
        listening: &Listening,
    ) -> Option<Diagnostic> {
        let step = sequence.steps().find(|&step| listening.is_listening(step))?;
        let span = places.of("Sequence");
        let expected = "a port on which nothing listens";
        let spoils = step.protocol == Protocol::Tcp && door.tcp_flags == FlagRule::ANY;
        let message = if spoils {
            format!("a local service listens on {step}; without `TCPFlags`, every packet to it counts")
        } else {
            format!("a local service listens on {step}; its users also hit this port")
        };
        Some(self.warning(places, Code::LivePort, span, message, expected))
    }

    /// Creates a finding about a door.
    fn warning(
        &self,
        places: &Places,
        code: Code,
        span: std::ops::Range<usize>,
        message: String,
        expected: &str,
    ) -> Diagnostic {
        let source = self.file.source(places.file.as_deref());
        Diagnostic::new(source, span, Severity::Warning, code, message, expected)
    }

    /// Checks that the interfaces named in the configuration exist.
    fn interface(&mut self, options: &Options) {
        let Some(selection) = options.interface.as_deref().and_then(Selection::parse) else { return };
        if let Err(error) = selection.at_start(&interfaces(), options.wait_interface) {
            self.add_about(
                self.file.path.clone(),
                Severity::Warning,
                Code::MissingInterface,
                error.to_string(),
                None,
            );
        }
    }

    /// Looks for interfaces where knocks may be missed; without `Interface`, at the one that knockd takes without `-i`.
    fn wrong_interfaces(&mut self, options: &Options) {
        let all = interfaces();
        let selection = options.interface.as_deref().and_then(Selection::parse);
        let selection = selection.unwrap_or_else(|| Selection::by_default(&all).0);
        for interface in selection.of(&all) {
            let Some(problem) = selection.problem(&interface, &all) else { continue };
            let message = format!("{}: {problem}", interface.name);
            self.add_about(self.file.path.clone(), Severity::Warning, Code::WrongInterface, message, None);
        }
    }

    /// One that cannot be read keeps the daemon from starting; one that is used up disables its door.
    fn one_time_file(&mut self, path: &Path, places: &Places) -> Option<Diagnostic> {
        let (severity, message, expected) = match fs::read(path) {
            Err(reason) => {
                let message = format!("cannot read {}: {reason}", path.display());
                (Severity::Error, message, "a file with one sequence per line")
            }
            Ok(text) => {
                self.access(path);
                if OneTime::parse(&text).next().is_some() {
                    return None;
                }
                let message = format!("no sequence left in {}", path.display());
                (Severity::Warning, message, "a file with an unused sequence")
            }
        };
        let (source, span) = (self.file.source(places.file.as_deref()), places.of("One_Time_Sequences"));
        Some(Diagnostic::new(source, span, severity, Code::OneTimeFile, message, expected))
    }

    /// Checks who else may use a file.
    fn access(&mut self, path: &Path) {
        for exposure in exposures(path) {
            let severity = if exposure.is_for_all { Severity::Error } else { Severity::Warning };
            let (what, remedy) = (exposure.what, Some(exposure.remedy));
            self.add_about(path.to_owned(), severity, Code::OpenToOthers, what, remedy);
        }
    }

    fn add_all(&mut self, findings: Vec<Diagnostic>) {
        for finding in findings {
            let drawn = self.file.draw(&finding, Style::Coloured);
            let Diagnostic { severity, code, file, line, column, message, expected, help, .. } = finding;
            self.findings.push(Finding {
                severity: severity.name(),
                code: code.name(),
                path: self.file.path_of(file.as_deref()).to_owned(),
                place: Some(Place { line, column }),
                message,
                expected,
                help,
                drawn,
            });
        }
    }

    /// Adds a finding about a whole file.
    fn add_about(
        &mut self,
        path: PathBuf,
        severity: Severity,
        code: Code,
        message: String,
        help: Option<String>,
    ) {
        let mut drawn = format!("{}: {severity}: {message}", path.display());
        if let Some(help) = &help {
            drawn = format!("{drawn}; run: {help}");
        }
        let (severity, code, expected) = (severity.name(), code.name(), String::new());
        self.findings.push(Finding { severity, code, path, place: None, message, expected, help, drawn });
    }

    fn print(&self, out: &mut impl Write, errors: usize, warnings: usize) -> io::Result<()> {
        for finding in &self.findings {
            writeln!(out, "{}", finding.drawn)?;
        }
        let (errors, warnings) = (count(errors, "error"), count(warnings, "warning"));
        writeln!(out, "{}: {errors}, {warnings}", self.file.path.display())
    }
}
