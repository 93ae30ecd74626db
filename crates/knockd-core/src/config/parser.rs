//! From the text of a knockd.conf to a [`Config`], line by line, collecting everything that is wrong.

use std::ops::Range;

use super::directives::{DOOR_DIRECTIVES, Directive, Draft, Given, OPTION_DIRECTIVES};
use super::value::{BOM, Report, Value};
use super::{
    Action, AtEnd, Code, Commands, Config, Diagnostic, Door, DoorName, Extend, Key, Parsed, Places, Severity,
    Source, Text, guarded,
};
use crate::command::CommandTemplate;
use crate::grammar::{self, Line};
use crate::similar::similar;
use crate::tcp_flags::FlagRule;

/// The section of the current line.
enum Section {
    /// Before the first section.
    Outside,
    /// With the directives given so far.
    Options(Vec<Given>),
    Door(Box<Draft>),
    /// After an invalid header: its directives are skipped, because their section is unknown.
    Unknown,
}

/// Parses a configuration and the files that it includes; `may_include` says whether it may include any.
pub(super) fn parse(sources: &[Source<'_>], may_include: bool) -> Result<Parsed, Vec<Diagnostic>> {
    let mut config = Config::default();
    let (mut findings, mut places) = (Vec::new(), Vec::new());
    let mut has_errors = false;
    for &source in sources {
        let mut report = Report::new(source, may_include && source.name.is_none());
        read(&mut config, &mut report);
        has_errors |= report.has_errors();
        report.findings.sort_by_key(|finding| finding.span.start);
        findings.append(&mut report.findings);
        places.append(&mut report.places);
    }
    if has_errors {
        return Err(findings);
    }
    let unguarded = guarded::findings(&config, &places, sources);
    if !unguarded.is_empty() {
        findings.extend(unguarded);
        findings.sort_by(Diagnostic::order);
        return Err(findings);
    }
    if config.doors.is_empty()
        && let Some(&source) = sources.first()
    {
        let (end, message, expected) =
            (source.text.len(), "no doors configured", "a section such as `[openSSH]`");
        let (severity, code) = (Severity::Warning, Code::Doubtful);
        findings.push(Diagnostic::new(source, end..end, severity, code, message, expected));
        findings.sort_by(Diagnostic::order);
    }
    Ok(Parsed { config, warnings: findings, places })
}

/// Returns the paths of the files that a configuration includes.
pub(super) fn includes(text: &[u8]) -> Vec<Text> {
    let mut report = Report::new(Source::new(text), true);
    read(&mut Config::default(), &mut report);
    report.includes
}

/// Reads one file, line by line.
fn read(config: &mut Config, report: &mut Report<'_>) {
    let text = report.source.text;
    if let Some(encoding) = utf_16(text) {
        let help = format!("convert it: iconv -f {encoding} -t UTF-8");
        return report.error(0..0, &format!("{encoding} text"), "UTF-8", Some(help));
    }
    let mut section = Section::Outside;
    let mut offset = 0;
    for line in text.split_inclusive(|&byte| byte == b'\n') {
        let start = offset;
        offset += line.len();
        let bom = if start == 0 && line.starts_with(BOM) { BOM.len() } else { 0 };
        let line = line.get(bom..).unwrap_or_default();
        let is_comment = line.trim_ascii_start().starts_with(b"#");
        match std::str::from_utf8(line) {
            _ if is_comment => {}
            Ok(line) => {
                let start = start + bom + (line.len() - line.trim_start().len());
                let line = line.trim();
                if line.is_empty() || line.starts_with('#') {
                    continue;
                }
                let found = report.findings.len();
                read_line(line, start, &mut section, config, report);
                if !report.has_errors_since(found) {
                    report.doubt_characters(line, start);
                }
            }
            Err(error) => {
                let at = start + bom + error.valid_up_to();
                let expected = "UTF-8; only comments may use another encoding";
                report.error(at..at, "invalid UTF-8", expected, None);
                if line.trim_ascii_start().starts_with(b"[") {
                    finish(std::mem::replace(&mut section, Section::Unknown), config, report);
                }
            }
        }
    }
    finish(section, config, report);
}

/// Returns the name of the encoding, if the text is in UTF-16: with a byte order mark or, without one, if it begins
/// with a letter of ASCII.
fn utf_16(text: &[u8]) -> Option<&'static str> {
    match text {
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => Some("UTF-16"),
        [1..=255, 0, 1..=255, 0, ..] => Some("UTF-16LE"),
        [0, 1..=255, 0, 1..=255, ..] => Some("UTF-16BE"),
        _ => None,
    }
}

fn read_line<'t>(
    line: &'t str,
    start: usize,
    section: &mut Section,
    config: &mut Config,
    report: &mut Report<'t>,
) {
    if let Some(zero) = line.find('\0') {
        let at = start + zero;
        report.error(at..at + 1, "unexpected NUL byte", "text", None);
        if line.starts_with('[') {
            finish(std::mem::replace(section, Section::Unknown), config, report);
        }
        return;
    }
    match grammar::whole(line, grammar::line) {
        Err(expected) => {
            report.expected("incomplete section header", line, start, &expected);
            finish(std::mem::replace(section, Section::Unknown), config, report);
        }
        Ok(Line::Section(name)) => {
            let header = start..start + line.len();
            let next = match name {
                "options" => Section::Options(Vec::new()),
                name => {
                    if let Ok(name) = DoorName::new(name) {
                        Section::Door(Box::new(Draft::new(name, header)))
                    } else {
                        // Only an empty name gets here.
                        report.error(
                            header,
                            "section without a name",
                            "`[options]` or the name of a door",
                            None,
                        );
                        Section::Unknown
                    }
                }
            };
            finish(std::mem::replace(section, next), config, report);
        }
        Ok(Line::Directive { key, value }) => {
            let key = Keyword { text: key, span: start..start + key.len() };
            let value = Value { text: value, span: value_span(line, start, value), report };
            match section {
                Section::Unknown => (),
                Section::Outside => {
                    let message = format!("`{}` before the first section", key.text);
                    report.error(key.span, &message, "a section header such as `[options]` above it", None);
                }
                Section::Options(given) => {
                    apply(&OPTION_DIRECTIVES, &mut config.options, given, &key, value, "[options]");
                }
                Section::Door(door) => {
                    let mut given = std::mem::take(&mut door.given);
                    apply(&DOOR_DIRECTIVES, door, &mut given, &key, value, "a door");
                    door.given = given;
                }
            }
        }
    }
}

/// Returns the position of a value: it extends to the end of the line; without a value, just after the key.
fn value_span(line: &str, start: usize, value: Option<&str>) -> Range<usize> {
    let end = start + line.len();
    end - value.map_or(0, str::len)..end
}

/// Passes the value to the directive, and adds the directive to those given.
fn apply<S>(
    directives: &[Directive<S>],
    section: &mut S,
    given: &mut Vec<Given>,
    key: &Keyword<'_>,
    value: Value<'_, '_>,
    place: &str,
) {
    if let Some(directive) = directives.iter().find(|directive| directive.is_called(key.text)) {
        let name = directive.name;
        if !directive.repeats
            && let Some((earlier, _)) =
                given.iter().find(|&&(earlier, _)| earlier == name || is_key(earlier) && is_key(name))
        {
            let which = if name == "Interface" { "first" } else { "last" };
            let message = format!("duplicate directive (already given as `{earlier}`); the {which} one wins");
            value.report.warning(key.span.clone(), &message, "only one per section", None);
        }
        given.push((name, value.span.clone()));
        if value.text.is_none() && !directive.is_switch {
            let message = format!("missing value for `{}`", key.text);
            value.report.error(value.span, &message, "`= value`", None);
        } else {
            (directive.apply)(section, value);
        }
        return;
    }
    let message = format!("`{}` is not a valid directive in {place}", key.text);
    let elsewhere = |home: &str| Some(format!("it belongs in {home}"));
    let help = if DOOR_DIRECTIVES.iter().any(|directive| directive.is_called(key.text)) {
        elsewhere("a door section")
    } else if OPTION_DIRECTIVES.iter().any(|directive| directive.is_called(key.text)) {
        elsewhere("`[options]`")
    } else {
        let names = directives.iter().flat_map(Directive::names);
        similar(key.text, names).map(|name| format!("did you mean `{name}`?"))
    };
    value.report.error(key.span.clone(), &message, "a known directive", help);
}

/// Says whether the directive is a key, of which a door has one.
fn is_key(name: &str) -> bool {
    name == "Sequence" || name == "One_Time_Sequences"
}

/// Directives that say something about the services of a door.
const OF_SERVICES: [&str; 4] = ["Extend", "Idle_Limit", "Uses", "At_End"];

/// Reports directives of a door that make no sense without another one, or together.
fn check_services(draft: &Draft, report: &mut Report<'_>) {
    let place = |wanted: &str| {
        let given = draft.given.iter().rev().find(|(name, _)| *name == wanted);
        given.map(|(_, span)| span.clone())
    };
    if place("Open").is_none() && place("Forward").is_none() {
        for name in OF_SERVICES {
            let Some(span) = place(name) else { continue };
            report.error(span, &format!("`{name}` without `Open`"), "`Open` in this door", None);
        }
        return;
    }
    let is_connected = matches!(draft.extend, Some(Extend::Connected { .. }));
    if let Some(span) = place("Idle_Limit")
        && (draft.extend.is_some() || place("Extend").is_none())
        && !is_connected
    {
        let expected = "`Extend = connected` with a number of seconds, or no `Idle_Limit`";
        report.error(span, "`Idle_Limit` without `Extend = connected`", expected, None);
    }
    if let (Some(span), Some(limit), Some(Extend::Connected { time, .. })) =
        (place("Idle_Limit"), draft.idle_limit, draft.extend)
        && limit < time
    {
        let expected =
            format!("at least {time}, the time of `Extend`: connections are not looked at more often");
        report.warning(span, "short idle limit", &expected, None);
    }
    if draft.single_use
        && let Some(span) = place("Extend")
    {
        let expected = "one of both: the first connection closes the door, and nothing extends it";
        report.error(span, "`Extend` with `Uses = 1`", expected, None);
    }
    if draft.single_use
        && draft.at_end == Some(AtEnd::Cut)
        && let Some(span) = place("At_End")
    {
        let expected = "`At_End = keep`: the first connection closes the door, which would cut it off";
        report.error(span, "`At_End = cut` with `Uses = 1`", expected, None);
    }
}

/// Finishes the section that just ended; if it is a door, adds it.
fn finish(section: Section, config: &mut Config, report: &mut Report<'_>) {
    let Section::Door(draft) = section else { return };
    check_services(&draft, report);
    let Some(key) = draft.key else {
        if !draft.given.iter().any(|(name, _)| is_key(name)) {
            let message = format!("door `{}` has no sequence", draft.name);
            report.error(draft.header, &message, "a `Sequence` or `One_Time_Sequences` directive", None);
        }
        return;
    };
    let seq_timeout = draft.seq_timeout.unwrap_or(Door::DEFAULT_SEQ_TIMEOUT);
    if seq_timeout.is_zero() && matches!(&key, Key::Sequence(sequence) if sequence.len() > 1) {
        let message = format!("door `{}` can never open", draft.name);
        let expected = "a `Seq_Timeout` of at least 1, because its sequence has more than one step";
        report.warning(draft.header.clone(), &message, expected, None);
    }
    if let Key::Sequence(sequence) = &key
        && sequence.steps().any(|step| step.port == 0)
    {
        let message = format!("door `{}` uses port 0", draft.name);
        let expected = "a port from 1 to 65535; many programs and networks cannot send to port 0";
        report.warning(draft.header.clone(), &message, expected, None);
    }
    let commands = |plain: Option<String>, six: Option<String>| {
        let v4 = plain.and_then(|text| CommandTemplate::parse(&text));
        let v6 = six.map_or_else(|| v4.clone(), |text| CommandTemplate::parse(&text));
        Commands { v4, v6 }
    };
    let is_native = draft.open.is_some() || draft.forward.is_some();
    let file = report.source.name.map(str::to_owned);
    report.places.push(Places { file, header: draft.header, values: draft.given });
    config.doors.push(Door {
        name: draft.name,
        key,
        seq_timeout,
        tcp_flags: draft.tcp_flags.unwrap_or(if is_native { FlagRule::SYN } else { FlagRule::ANY }),
        target: draft.target,
        open: draft.open,
        forward: draft.forward,
        masquerade: draft.masquerade,
        open_for: draft.open_for.unwrap_or_default(),
        closed: draft.closed.unwrap_or_default(),
        extend: draft.extend.map(|extend| match (extend, draft.idle_limit) {
            (Extend::Connected { time, .. }, Some(idle_limit)) => Extend::Connected { time, idle_limit },
            _ => extend,
        }),
        single_use: draft.single_use,
        at_end: draft.at_end.unwrap_or_default(),
        action: Action::Commands {
            start: commands(draft.start, draft.start_6),
            stop: commands(draft.stop, draft.stop_6),
        },
        cmd_timeout: draft.cmd_timeout.unwrap_or(if is_native {
            Door::DEFAULT_LEASE
        } else {
            Door::DEFAULT_CMD_TIMEOUT
        }),
        reopen: draft.reopen.unwrap_or_default(),
        max_open: draft.max_open,
        cooldown: draft.cooldown.unwrap_or_default(),
    });
}

struct Keyword<'t> {
    text: &'t str,
    span: Range<usize>,
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::num::NonZeroU32;

    use super::*;
    use crate::config::{Closed, Firewall, LogFormat, OnExit, Options, Reopen, ScanLimit, Seconds};
    use crate::forward::OpenFor;
    use crate::sequence::Sequence;
    use crate::tcp_flags::TcpFlags;

    fn parse_one(text: &[u8]) -> Result<Parsed, Vec<Diagnostic>> {
        parse(&[Source::new(text)], false)
    }

    fn parsed(text: &str) -> Parsed {
        parse_one(text.as_bytes()).unwrap_or_else(|findings| panic!("{findings:#?}"))
    }

    /// Parses a text that must have no finding.
    fn config(text: &str) -> Config {
        let Parsed { config, warnings, .. } = parsed(text);
        assert_eq!(warnings, [], "{text:?}");
        config
    }

    /// Parses the door with these lines.
    fn door(lines: &str) -> Door {
        let mut doors = parsed(&format!("[a]\nSequence = 1,2\n{lines}\n")).config.doors;
        assert_eq!(doors.len(), 1, "{lines:?}");
        doors.remove(0)
    }

    fn sequence(text: &str) -> Key {
        Key::Sequence(text.parse::<Sequence>().unwrap())
    }

    fn both(command: &str) -> Commands {
        CommandTemplate::parse(command).map(Commands::both).unwrap_or_default()
    }

    fn runs(start: &str, stop: &str) -> Action {
        Action::Commands { start: both(start), stop: both(stop) }
    }

    fn commands(door: &Door) -> (&Commands, &Commands) {
        let Action::Commands { start, stop } = &door.action;
        (start, stop)
    }

    fn connected(time: u32, idle_limit: u32) -> Option<Extend> {
        Some(Extend::Connected { time: NonZeroU32::new(time)?, idle_limit: NonZeroU32::new(idle_limit)? })
    }

    fn value(text: &str) -> Text {
        Text::new(text).unwrap()
    }

    fn name(name: &str) -> DoorName {
        DoorName::new(name).unwrap()
    }

    /// Returns the findings about a text, and the pieces of text that they concern.
    fn findings(text: &str) -> (Vec<String>, Vec<&str>) {
        let findings = match parse_one(text.as_bytes()) {
            Ok(parsed) => parsed.warnings,
            Err(findings) => findings,
        };
        let spans = findings.iter().map(|finding| text.get(finding.span.clone()).unwrap()).collect();
        (findings.iter().map(Diagnostic::to_string).collect(), spans)
    }

    #[test]
    #[expect(clippy::too_many_lines, reason = "there are so many directives")]
    fn every_directive_by_its_main_name() {
        let text = "\
[options]
UseSyslog
LogFile = /var/log/knockd.log
PidFile = /run/knockd.pid
Interface = eth1
WaitInterface
MaxAttempts = 1000
MaxOpen = 20
MaxCommands = 3
CommandLimit = 60
ScanLimit = 0
StateDir = /var/lib/knocks
OnExit = keep
ControlSocket = /run/knocks
LogFormat = JSON
Firewall = nftables
Mark = 0x01000000
GuardExcept = lo,docker0, 10.0.0.0/8
Metrics = /var/lib/knockd.prom

[door]
Sequence = 7000, 8000:udp ,9000:TCP
Seq_Timeout = 5
TCPFlags = syn,!ack
Target = 192.0.2.1
Open = tcp/22,udp/60000-61000
Forward = tcp/2222>10.0.0.1:22
Masquerade
Open_For = /64,/24
Closed = reject
Extend = Connected 60
Idle_Limit = 120
At_End = cut
Start_Command = open %IP%
Start_Command_6 = open6 %IP%
Cmd_Timeout = 20
Stop_Command = close %IP%
Stop_Command_6 = close6 %IP%
Reopen = run
Max_Open = 5
Cooldown = 30

[other]
One_Time_Sequences = /etc/knockd/sequences
";
        let commands = |v4, v6| Commands { v4: CommandTemplate::parse(v4), v6: CommandTemplate::parse(v6) };
        let expected = Config {
            options: Options {
                use_syslog: true,
                log_file: Some(value("/var/log/knockd.log")),
                pid_file: Some(value("/run/knockd.pid")),
                interface: Some(value("eth1")),
                wait_interface: true,
                max_attempts: NonZeroU32::new(1000).unwrap(),
                max_open: NonZeroU32::new(20).unwrap(),
                max_commands: NonZeroU32::new(3).unwrap(),
                command_limit: NonZeroU32::new(60),
                scan_limit: None,
                state_dir: value("/var/lib/knocks"),
                on_exit: OnExit::Keep,
                control_socket: Some(value("/run/knocks")),
                log_format: LogFormat::Json,
                firewall: Firewall::Nftables,
                mark: NonZeroU32::new(0x0100_0000),
                guard_except: "lo, docker0, 10.0.0.0/8".parse().unwrap(),
                metrics: Some(value("/var/lib/knockd.prom")),
            },
            doors: vec![
                Door {
                    name: name("door"),
                    key: sequence("7000,8000:udp,9000"),
                    seq_timeout: Seconds::new(5),
                    tcp_flags: FlagRule::ANY.and_set(TcpFlags::SYN).and_clear(TcpFlags::ACK),
                    target: Some("192.0.2.1".parse().unwrap()),
                    open: Some("tcp/22, udp/60000-61000".parse().unwrap()),
                    forward: Some("tcp/2222 > 10.0.0.1:22".parse().unwrap()),
                    masquerade: true,
                    open_for: OpenFor { ipv4_24: true, ipv6_64: true },
                    closed: Closed::Reject,
                    extend: connected(60, 120),
                    single_use: false,
                    at_end: AtEnd::Cut,
                    action: Action::Commands {
                        start: commands("open %IP%", "open6 %IP%"),
                        stop: commands("close %IP%", "close6 %IP%"),
                    },
                    cmd_timeout: Seconds::new(20),
                    reopen: Reopen::Run,
                    max_open: NonZeroU32::new(5),
                    cooldown: Seconds::new(30),
                },
                Door::new(name("other"), Key::OneTime(value("/etc/knockd/sequences"))),
            ],
        };
        assert_eq!(config(text), expected);
        let shouted = text
            .lines()
            .map(|line| match line.split_once('=') {
                Some((key, value)) => format!("{}={value}\n", key.to_uppercase()),
                None => format!("{line}\n"),
            })
            .collect::<String>()
            .replace("UseSyslog", "USESYSLOG")
            .replace("WaitInterface", "waitINTERFACE")
            .replace("Masquerade", "MASQUERADE");
        assert_eq!(config(&shouted), expected);
        assert_eq!(config(&text.replace("UseSyslog", "usesyslog").replace("Seq_T", "sEQ_t")), expected);
    }

    #[test]
    fn what_is_not_said_has_its_default() {
        let config = config("[a]\nsequence = 1,2\n");
        assert_eq!(config.options, Options::default());
        assert_eq!(config.doors, [Door::new(name("a"), sequence("1,2"))]);
        let door = &config.doors[0];
        assert_eq!((door.seq_timeout.get(), door.cmd_timeout.get()), (25, 10));
        assert_eq!(door.action, Action::default());
        assert_eq!((door.tcp_flags, door.target, door.reopen), (FlagRule::ANY, None, Reopen::Extend));
    }

    #[test]
    fn older_names_mean_the_same() {
        let door = door("Timeout = 7\nCommand = a\nCommand_6 = b\n");
        assert_eq!(door.seq_timeout, Seconds::new(7));
        let commands = Commands { v4: CommandTemplate::parse("a"), v6: CommandTemplate::parse("b") };
        assert_eq!(*self::commands(&door).0, commands);
    }

    #[test]
    fn values_have_several_spellings() {
        for (lines, expected) in [
            ("TCPFlags = SYN , !Ack", "syn,!ack"),
            ("tcpflags = fin,syn,rst,psh,ack,urg", "fin,syn,rst,psh,ack,urg"),
            ("tcpflags = syn,!syn", "!syn"),
        ] {
            assert_eq!(door(lines).tcp_flags.to_string(), expected, "{lines}");
        }
        for (lines, expected) in [("5", 5), ("005", 5), ("+5", 5), ("0", 0), ("4294967295", 4_294_967_295)] {
            let door = door(&format!("seq_timeout = {lines}\ncmd_timeout = {lines}"));
            let expected = Seconds::new(expected);
            assert_eq!((door.seq_timeout, door.cmd_timeout), (expected, expected), "{lines}");
        }
        for (value, expected) in [("EXTEND", Reopen::Extend), ("Run", Reopen::Run)] {
            assert_eq!(door(&format!("reopen = {value}")).reopen, expected);
        }
        for address in ["192.0.2.1", "2001:db8::1", "FD00:9:0:0::0077"] {
            let expected: IpAddr = address.parse().unwrap();
            assert_eq!(door(&format!("target = {address}")).target, Some(expected));
        }
    }

    #[test]
    fn a_sequence_may_have_1_to_32_steps() {
        for count in [1, 32] {
            let steps = vec!["7000"; count].join(" , ");
            let config = config(&format!("[a]\nsequence = {steps}\n"));
            assert_eq!(config.doors[0].key, sequence(&vec!["7000"; count].join(",")));
        }
    }

    #[test]
    fn white_space_line_ends_and_comments_do_not_matter() {
        let expected = config("[options]\nLogFile = /a b\n[a]\nSequence = 1,2\nCommand = echo a\tb\n");
        for text in [
            "[options]\r\nLogFile = /a b\r\n[a]\r\nSequence = 1,2\r\nCommand = echo a\tb\r\n",
            " [options] \n\tLogFile\t=\t/a b\t\n\n \t\n[a]\t\n  Sequence=1,2\n  Command  =  echo a\tb  ",
            "# c\n[options]\n  # [b]\nLogFile=/a b\n#\n[a]\n#sequence = 9\nSequence=1 ,\t2\nCommand=echo a\tb",
            "\u{feff}[options]\nLogFile=/a b\n[a]\nSequence=1,2\nCommand=echo a\tb\n",
            "\u{feff}# c\n[options]\nLogFile=/a b\n[a]\nSequence=1,2\nCommand=echo a\tb\n",
        ] {
            assert_eq!(config(text), expected, "{text:?}");
        }
    }

    #[test]
    fn a_command_is_taken_as_it_stands() {
        for command in ["echo a # b", "X=1; echo a=b=$X", "\"echo hi\"", "[ -e /x ] && y", "é %ip% %IP%%IP%"]
        {
            assert_eq!(door(&format!("command = {command}")).action, runs(command, ""));
        }
    }

    #[test]
    fn an_ipv6_command_falls_back_to_the_plain_one_and_an_empty_one_does_nothing() {
        let commands =
            |v4: &str, v6: &str| Commands { v4: CommandTemplate::parse(v4), v6: CommandTemplate::parse(v6) };
        for (lines, expected) in [
            ("X = a", commands("a", "a")),
            ("X = a\nX_6 = b", commands("a", "b")),
            ("X_6 = b\nX = a", commands("a", "b")),
            ("X = a\nX_6 =", commands("a", "")),
            ("X_6 = b", commands("", "b")),
            ("X =\nX_6 = b", commands("", "b")),
            ("X =", Commands::default()),
        ] {
            assert_eq!(*self::commands(&door(&lines.replace('X', "Start_Command"))).0, expected, "{lines:?}");
            assert_eq!(*self::commands(&door(&lines.replace('X', "Stop_Command"))).1, expected, "{lines:?}");
        }
    }

    #[test]
    fn a_scan_limit_is_no_larger_than_the_guard_knows() {
        let text = |limit: u32| format!("[options]\nScanLimit = {limit}\n[a]\nsequence = 1\n");
        assert_eq!(config(&text(ScanLimit::MAX)).options.scan_limit, ScanLimit::new(64));
        let (messages, _) = findings(&text(ScanLimit::MAX + 1));
        assert_eq!(messages, ["2:13: error: unexpected \"65\": a whole number from 0 to 64"]);
    }

    #[test]
    fn names_of_doors_are_taken_as_they_stand() {
        for name in ["OPTIONS", " options ", "a]b", "door][x", " ", "do or", "ü", "[", "#"] {
            assert_eq!(
                config(&format!("[{name}]\nsequence = 1\n")).doors,
                [Door::new(self::name(name), sequence("1"))]
            );
        }
    }

    #[test]
    fn doors_keep_their_order_and_may_share_a_name() {
        let config = config("[b]\nsequence = 1\n[a]\nsequence = 2\n[b]\nsequence = 3\n");
        let expected = [("b", "1"), ("a", "2"), ("b", "3")]
            .map(|(name, steps)| Door::new(self::name(name), sequence(steps)));
        assert_eq!(config.doors, expected);
    }

    #[test]
    fn options_may_come_again_between_doors() {
        let text = "[options]\nLogFile = /a\n[a]\nsequence = 1\n[options]\nUseSyslog\n[b]\nsequence = 2\n";
        let config = config(text);
        assert_eq!((config.options.log_file.as_deref(), config.options.use_syslog), (Some("/a"), true));
        assert_eq!(config.doors.len(), 2);
    }

    #[test]
    fn of_a_directive_given_twice_the_last_one_counts_by_whatever_name() {
        let text = "\
[a]
sequence = 1,2
Sequence = 3,4
timeout = 5
seq_timeout = 6
start_command = x
command = y
";
        assert_eq!(
            parsed(text).config.doors,
            [Door {
                seq_timeout: Seconds::new(6),
                action: runs("y", ""),
                ..Door::new(name("a"), sequence("3,4"))
            }]
        );
        let (messages, spans) = findings(text);
        assert_eq!(
            messages,
            [
                "3:1: warning: duplicate directive (already given as `Sequence`); the last one wins: only one per section",
                "5:1: warning: duplicate directive (already given as `Seq_Timeout`); the last one wins: only one per section",
                "7:1: warning: duplicate directive (already given as `Start_Command`); the last one wins: only one per section",
            ]
        );
        assert_eq!(spans, ["Sequence", "seq_timeout", "command"]);
    }

    #[test]
    fn a_door_says_how_its_services_follow_connections() {
        let door = |lines: &str| {
            let text =
                format!("[options]\nFirewall = nftables\n[a]\nSequence = 1,2\nOpen = tcp/22\n{lines}\n");
            let mut parsed = config(&text);
            assert_eq!(config(&parsed.to_string()), parsed);
            parsed.doors.remove(0)
        };
        assert_eq!(door("extend = idle 300").extend, NonZeroU32::new(300).map(Extend::Idle));
        assert_eq!(door("extend = CONNECTED 60").extend, connected(60, 3600));
        assert_eq!(door("idle_limit = 60\nextend = connected 60").extend, connected(60, 60));
        assert_eq!((door("").extend, door("").single_use, door("").at_end), (None, false, AtEnd::Keep));
        assert!(door("uses = 1\nat_end = keep").single_use);
        assert_eq!(door("at_end = CUT").at_end, AtEnd::Cut);
    }

    #[test]
    fn what_follows_connections_senselessly_is_pointed_out_with_a_remedy() {
        let found = |lines: &str| {
            let text = format!("[options]\nFirewall = nftables\n[a]\nSequence = 1,2\n{lines}\n");
            let (messages, spans) = findings(&text);
            let pairs = messages.into_iter().zip(spans);
            pairs.map(|(message, span)| format!("{span}: {message}")).collect::<Vec<_>>()
        };
        for (name, value) in [("Extend", "idle 5"), ("Idle_Limit", "5"), ("Uses", "1"), ("At_End", "cut")] {
            let column = name.len() + 4;
            assert_eq!(
                found(&format!("{name} = {value}")),
                [format!("{value}: 5:{column}: error: `{name}` without `Open`: `Open` in this door")]
            );
        }
        let with_services = |lines: &str| found(&format!("Open = tcp/22\n{lines}"));
        for (lines, expected) in [
            ("Uses = 2", "2: 6:8: error: unexpected \"2\": `1`"),
            ("Uses = 1x", "1x: 6:8: error: unexpected \"1x\": `1`"),
            (
                "Extend = idle",
                ": 6:14: error: incomplete value: a whole number of seconds from 1 to 4294967295",
            ),
            (
                "Extend = 5",
                "5: 6:10: error: unexpected \"5\": `idle` or `connected` and a number of seconds, such as `idle 300`",
            ),
            ("At_End = drop", "drop: 6:10: error: unexpected \"drop\": `keep` or `cut`"),
            (
                "Extend = connected 5\nIdle_Limit = 0",
                "0: 7:14: error: unexpected \"0\": a whole number of seconds from 1 to 4294967295",
            ),
            (
                "Idle_Limit = 60",
                "60: 6:14: error: `Idle_Limit` without `Extend = connected`: `Extend = connected` with a number of \
                 seconds, or no `Idle_Limit`",
            ),
            (
                "Extend = idle 9\nIdle_Limit = 60",
                "60: 7:14: error: `Idle_Limit` without `Extend = connected`: `Extend = connected` with a number of \
                 seconds, or no `Idle_Limit`",
            ),
            (
                "Extend = connected 60\nIdle_Limit = 59",
                "59: 7:14: warning: short idle limit: at least 60, the time of `Extend`: connections are not looked at \
                 more often",
            ),
            (
                "Uses = 1\nExtend = idle 5",
                "idle 5: 7:10: error: `Extend` with `Uses = 1`: one of both: the first connection closes the door, and \
                 nothing extends it",
            ),
            (
                "Uses = 1\nAt_End = cut",
                "cut: 7:10: error: `At_End = cut` with `Uses = 1`: `At_End = keep`: the first connection closes the \
                 door, which would cut it off",
            ),
        ] {
            assert_eq!(with_services(lines), [expected], "{lines:?}");
        }
    }

    #[test]
    fn of_a_fixed_and_a_one_time_sequence_the_last_one_counts() {
        assert_eq!(door("one_time_sequences = /f").key, Key::OneTime(value("/f")));
        assert_eq!(door("one_time_sequences = /f\nsequence = 3").key, sequence("3"));
    }

    #[test]
    fn a_file_without_doors_is_doubtful() {
        for text in ["", "# nothing\n", "[options]\nUseSyslog\n", "\u{feff}"] {
            let Parsed { config, warnings, .. } = parsed(text);
            assert_eq!((config.doors, warnings.len()), (vec![], 1), "{text:?}");
        }
        let (messages, spans) = findings("[options]\n");
        assert_eq!(messages, ["2:1: warning: no doors configured: a section such as `[openSSH]`"]);
        assert_eq!(spans, [""]);
    }

    #[test]
    fn text_that_knockd_0_8_does_not_look_at_is_ignored_and_pointed_out() {
        let text = "\
[a]
sequence = 7000,8000 # mine
seq_timeout = 1.5
cmd_timeout = 5 s
[b]
sequence = 7000 udp,8000:udp # old, 9000
";
        let doors = parsed(text).config.doors;
        assert_eq!((doors[0].seq_timeout.get(), doors[0].cmd_timeout.get()), (1, 5));
        assert_eq!(doors[0].key, sequence("7000,8000"));
        assert_eq!(doors[1].key, sequence("7000,8000:udp,9000"));
        let (messages, spans) = findings(text);
        assert_eq!(
            messages,
            [
                "2:22: warning: text ignored: nothing; a comment needs its own line",
                "3:16: warning: text ignored: nothing; a comment needs its own line",
                "4:17: warning: text ignored: nothing; a comment needs its own line",
                "6:17: warning: text ignored: nothing; a comment needs its own line",
            ]
        );
        assert_eq!(spans, ["# mine", ".5", "s", "udp"]);
    }

    #[test]
    fn doors_that_can_hardly_be_knocked_at_are_doubtful() {
        let text =
            "[a]\nsequence = 1,2\nseq_timeout = 0\n[b]\nsequence = 1\nseq_timeout = 0\n[c]\nsequence = 0\n";
        let (messages, spans) = findings(text);
        assert_eq!(
            messages,
            [
                "1:1: warning: door `a` can never open: a `Seq_Timeout` of at least 1, because its sequence has more than one step",
                "7:1: warning: door `c` uses port 0: a port from 1 to 65535; many programs and networks cannot send to \
             port 0",
            ]
        );
        assert_eq!(spans, ["[a]", "[c]"]);
        assert_eq!(parsed(text).config.doors.len(), 3);
    }

    #[test]
    fn empty_names_in_options_are_ignored_and_pointed_out() {
        let (messages, spans) = findings("[options]\nLogFile =\nPidFile=\nInterface = \n[a]\nsequence = 1\n");
        assert_eq!(
            messages,
            [
                "2:10: warning: empty value: a name; an empty value counts as no directive",
                "3:9: warning: empty value: a name; an empty value counts as no directive",
                "4:12: warning: empty value: a name; an empty value counts as no directive",
            ]
        );
        assert_eq!(spans, ["", "", ""]);
    }

    #[test]
    fn every_error_of_a_file_is_reported_in_one_go() {
        let text = "\
UseSyslog
[options]
logfile
maxattempts = 0
target = 192.0.2.1
lgfile = /x
[]
not looked at
[one
not looked at either
[two]
sequence = 7000,70000
one_time_sequences =
seq_timeout = -1
cmd_timeout = 5s
tcpflags = syn,foo
target = localhost
reopen = never
logfile = /x
start_comand = x
nonsense
= x
[three]
command = x
[four]
sequence = 7000:sctp
";
        let (messages, spans) = findings(text);
        let expected = [
            (
                "1:1: error: `UseSyslog` before the first section: a section header such as `[options]` above it",
                "UseSyslog",
            ),
            ("3:8: error: missing value for `logfile`: `= value`", ""),
            ("4:15: error: unexpected \"0\": a whole number from 1 to 4294967295", "0"),
            (
                "5:1: error: `target` is not a valid directive in [options]: a known directive; it belongs in a door section",
                "target",
            ),
            (
                "6:1: error: `lgfile` is not a valid directive in [options]: a known directive; did you mean `LogFile`?",
                "lgfile",
            ),
            ("7:1: error: section without a name: `[options]` or the name of a door", "[]"),
            ("9:5: error: incomplete section header: `]` at the end of the line", ""),
            ("12:17: error: unexpected \"70000\": a port number from 0 to 65535", "70000"),
            (
                "13:1: warning: duplicate directive (already given as `Sequence`); the last one wins: only one per section",
                "one_time_sequences",
            ),
            ("13:21: error: empty value: a file path", ""),
            ("14:15: error: unexpected \"-1\": a whole number of seconds from 0 to 4294967295", "-1"),
            ("15:15: error: unexpected \"5s\": a whole number of seconds from 0 to 4294967295", "5s"),
            (
                "16:16: error: unexpected \"foo\": a TCP flag: fin, syn, rst, psh, ack or urg, with a leading `!` if it must be clear",
                "foo",
            ),
            (
                "17:10: error: invalid address: an IPv4 or IPv6 address; host names and networks are not supported",
                "localhost",
            ),
            ("18:10: error: unexpected \"never\": `extend` or `run`", "never"),
            (
                "19:1: error: `logfile` is not a valid directive in a door: a known directive; it belongs in `[options]`",
                "logfile",
            ),
            (
                "20:1: error: `start_comand` is not a valid directive in a door: a known directive; did you mean `Start_Command`?",
                "start_comand",
            ),
            ("21:1: error: `nonsense` is not a valid directive in a door: a known directive", "nonsense"),
            ("22:1: error: `` is not a valid directive in a door: a known directive", ""),
            (
                "23:1: error: door `three` has no sequence: a `Sequence` or `One_Time_Sequences` directive",
                "[three]",
            ),
            ("26:17: error: unexpected \"sctp\": `tcp` or `udp`", "sctp"),
        ];
        assert_eq!(messages, expected.map(|(message, _)| message));
        assert_eq!(spans, expected.map(|(_, span)| span));
    }

    #[test]
    fn values_that_knockd_0_8_misreads_are_errors() {
        for (line, message) in [
            ("sequence = abc,2", "2:12: error: unexpected \"abc\": a port number from 0 to 65535"),
            ("sequence = 8000x", "2:12: error: unexpected \"8000x\": a port number from 0 to 65535"),
            ("sequence = 7000;8000", "2:12: error: unexpected \"7000;8000\": a port number from 0 to 65535"),
            ("sequence =", "2:11: error: empty value: a port number from 0 to 65535"),
            ("sequence = 1,,2", "2:14: error: unexpected ',': a port number from 0 to 65535"),
            ("sequence = 1,", "2:14: error: incomplete value: a port number from 0 to 65535"),
            ("sequence = 1:", "2:14: error: incomplete value: `tcp` or `udp`"),
            ("sequence = 1:udpx", "2:14: error: unexpected \"udpx\": `tcp` or `udp`"),
            (
                "sequence = 99999999999",
                "2:12: error: unexpected \"99999999999\": a port number from 0 to 65535",
            ),
        ] {
            assert_eq!(findings(&format!("[a]\n{line}\n")).0, [message], "{line}");
        }
        for (line, message) in [
            (
                "seq_timeout = abc",
                "3:15: error: unexpected \"abc\": a whole number of seconds from 0 to 4294967295",
            ),
            ("seq_timeout =", "3:14: error: empty value: a whole number of seconds from 0 to 4294967295"),
            (
                "cmd_timeout = 0x1",
                "3:15: error: unexpected \"0x1\": a whole number of seconds from 0 to 4294967295",
            ),
            ("tcpflags = syn ack", "3:16: error: unexpected \"ack\": nothing more"),
            (
                "target =",
                "3:9: error: empty value: an IPv4 or IPv6 address; host names and networks are not supported",
            ),
        ] {
            assert_eq!(findings(&format!("[a]\nsequence = 1\n{line}\n")).0, [message], "{line}");
        }
    }

    #[test]
    fn the_33rd_step_is_pointed_out() {
        let text = format!("[a]\nsequence = {}, 99, 100\n", ["1"; 32].join(","));
        let (messages, spans) = findings(&text);
        assert_eq!(messages, ["2:77: error: unexpected \"99\": at most 32 steps"]);
        assert_eq!(spans, ["99"]);
    }

    #[test]
    fn columns_are_counted_in_characters_and_spans_in_bytes() {
        let text = "[é]\n\tsequence = 7000 ü, ö\nüber = 1\n";
        let (messages, spans) = findings(text);
        assert_eq!(
            messages,
            [
                "2:21: error: unexpected \"ö\": a port number from 0 to 65535",
                "3:1: error: `über` is not a valid directive in a door: a known directive",
            ]
        );
        assert_eq!(spans, ["ö", "über"]);
    }

    #[test]
    fn a_switch_can_be_turned_off_in_the_usual_words() {
        let text =
            |value: &str| format!("[options]\nUseSyslog{value}\nWaitInterface{value}\n[a]\nsequence = 1\n");
        for (value, is_on) in [
            ("", true),
            (" = yes", true),
            (" = True", true),
            (" = on", true),
            (" = 1", true),
            (" = no", false),
            (" = FALSE", false),
            (" = off", false),
            (" = 0", false),
        ] {
            let options = config(&text(value)).options;
            assert_eq!((options.use_syslog, options.wait_interface), (is_on, is_on), "{value}");
        }
    }

    #[test]
    fn another_value_of_a_switch_is_ignored_and_pointed_out() {
        for (value, said) in [("daemon", "daemon"), ("", "")] {
            let text = format!("[options]\nUseSyslog = {value}\n[a]\nsequence = 1\n");
            assert!(parsed(&text).config.options.use_syslog);
            let (messages, spans) = findings(&text);
            let column = if value.is_empty() { 12 } else { 13 };
            let message = format!("2:{column}: warning: value ignored: `yes` or `no`, or no value");
            assert_eq!((messages, spans), (vec![message], vec![said]));
        }
    }

    #[test]
    fn the_fork_s_name_of_the_cooldown_means_the_same() {
        assert_eq!(door("seq_cooldown = 30").cooldown, Seconds::new(30));
    }

    #[test]
    fn a_firewall_that_cannot_be_is_an_error_with_its_place_and_what_to_write() {
        let service = "a service such as `tcp/22` or `udp/60000-61000`";
        let port = "a port from 1 to 65535, or a range such as `60000-61000`";
        let exception = "an interface such as `docker0` or `br-*`, or a network such as `10.0.0.0/8` with no other bits set";
        let mark = "a mark such as `0x01000000`";
        for (options, door, message) in [
            (
                "Firewall = iptables",
                "",
                "2:12: error: unexpected \"iptables\": `nftables` or `none`".to_owned(),
            ),
            ("Firewall =", "", "2:11: error: unexpected \"\": `nftables` or `none`".to_owned()),
            ("Mark = 1", "", format!("2:8: error: unexpected \"1\": {mark}")),
            ("Mark = 0x0", "", format!("2:8: error: unexpected \"0x0\": {mark}")),
            ("Mark = 0x123456789", "", format!("2:8: error: unexpected \"0x123456789\": {mark}")),
            ("GuardExcept =", "", format!("2:14: error: empty value: {exception}")),
            ("GuardExcept = lo,", "", format!("2:18: error: incomplete value: {exception}")),
            (
                "GuardExcept = lo, 10.0.0.1/8",
                "",
                format!("2:19: error: unexpected \"10.0.0.1/8\": {exception}"),
            ),
            (
                "",
                "Open = tcp/22",
                "5:8: error: `Open` without a firewall: `Firewall = nftables` in `[options]`".to_owned(),
            ),
            (
                "Firewall = nftables",
                "Closed = drop",
                "5:10: error: `Closed` without `Open`: `Open` in this door".to_owned(),
            ),
            (
                "Firewall = nftables",
                "Closed = deny",
                "5:10: error: unexpected \"deny\": `drop` or `reject`".to_owned(),
            ),
            ("Firewall = nftables", "Open =", format!("5:7: error: empty value: {service}")),
            ("Firewall = nftables", "Open = 22", format!("5:8: error: unexpected \"22\": {service}")),
            (
                "Firewall = nftables",
                "Open = tcp/22, ssh",
                format!("5:16: error: unexpected \"ssh\": {service}"),
            ),
            ("Firewall = nftables", "Open = tcp/0", format!("5:12: error: unexpected \"0\": {port}")),
            ("Firewall = nftables", "Open = udp/9-8", format!("5:12: error: unexpected \"9-8\": {port}")),
            ("Firewall = nftables", "Open = tcp", "5:11: error: incomplete value: `/` and a port".to_owned()),
        ] {
            let text = format!("[options]\n{options}\n[a]\nsequence = 1\n{door}\n");
            assert_eq!(findings(&text).0, [message], "{text}");
        }
        for name in ["a\"b".to_owned(), "x".repeat(128)] {
            let text = format!("[options]\nFirewall = nftables\n[{name}]\nsequence = 1\nOpen = tcp/22\n");
            let (said, spans) = findings(&text);
            assert!(
                said[0].contains("cannot keep the name of the door: a name of at most 127 bytes"),
                "{said:?}"
            );
            assert_eq!(spans, [format!("[{name}]")]);
        }
        let text = "[options]\nFirewall = nftables\n[a]\nsequence = 1\nOpen = tcp/22\n[a]\nsequence = 2\n";
        let said = "3:1: error: another door has the same name: a name of its own for a door with `Open`";
        assert_eq!(findings(text).0, [said]);
    }

    #[test]
    fn an_error_with_a_character_that_is_not_what_it_looks_like_names_it() {
        for (line, help) in [
            ("sequence = \u{201c}7000,8000\u{201d}", "there is a curly quote (U+201C); type `\"`"),
            ("sequence = 7000\u{2013}8000", "there is an en dash (U+2013); type `-`"),
            ("sequence = 7000,\u{200b}8000", "there is a zero-width space (U+200B); delete it"),
            ("sequence = 7000\u{ff0c}8000", "there is a full-width character (U+FF0C); type the plain one"),
            ("\u{feff}sequence = 7000", "there is a zero-width space (U+FEFF); delete it"),
            ("\u{200b}# a comment", "there is a zero-width space (U+200B); delete it"),
            ("[b]\u{200b}", "there is a zero-width space (U+200B); delete it"),
            ("; a comment", "a comment starts with `#`"),
            ("// a comment = a comment", "a comment starts with `#`"),
            ("[b] ; mine", "a comment needs its own line and starts with `#`"),
            ("seq_timeout = // five", "a comment needs its own line and starts with `#`"),
            ("sequence = 7000,\\", "a line is not continued on the next one: write it as a whole"),
            ("sequence = \"7000,8000\"", "values are written without quotes"),
        ] {
            let text = format!("[a]\nsequence = 1\n{line}\n");
            let findings = parse_one(text.as_bytes()).unwrap_err();
            let error = findings.iter().find(|finding| finding.line == 3 && finding.help.is_some());
            assert_eq!(error.unwrap().help.as_deref(), Some(help), "{line}: {findings:#?}");
        }
    }

    #[test]
    fn a_text_with_a_character_that_is_not_what_it_looks_like_is_taken_and_pointed_out() {
        for (line, message) in [
            ("command = echo \u{2018}hi\u{2019}", "3:16: warning: curly quote (U+2018): `'`"),
            ("command = iptables \u{2013}I INPUT", "3:20: warning: en dash (U+2013): `-`"),
            ("command = echo\u{a0}hi", "3:15: warning: no-break space (U+00A0): a plain space"),
            ("command = echo hi\u{200b}", "3:18: warning: zero-width space (U+200B): nothing"),
            ("command = a \\", "3:13: warning: `\\` at the end of the line: the whole value on one line"),
            ("command = echo %ip%", "3:16: warning: `%ip%` is not replaced: `%IP%`, in upper case"),
            ("command = echo 100% %IP% %Ip%", "3:26: warning: `%Ip%` is not replaced: `%IP%`, in upper case"),
            ("[a\u{a0}b]\nsequence = 2", "3:3: warning: no-break space (U+00A0): a plain space"),
        ] {
            let (messages, _) = findings(&format!("[a]\nsequence = 1\n{line}\n"));
            assert_eq!(messages, [message], "{line}");
        }
        let indented = "[a]\n\u{a0}\u{a0}sequence = 1\n\u{a0}# a \u{201c}comment\u{201d}\n# \u{2013}\n";
        assert_eq!(findings(indented).0, [""; 0]);
    }

    #[test]
    fn a_file_in_utf_16_is_one_error() {
        let text = "[a]\nsequence = 1\n";
        let little: Vec<_> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
        let big: Vec<_> = text.encode_utf16().flat_map(u16::to_be_bytes).collect();
        for (bytes, name) in [
            ([&[0xff, 0xfe], &little[..]].concat(), "UTF-16"),
            ([&[0xfe, 0xff], &big[..]].concat(), "UTF-16"),
            (little, "UTF-16LE"),
            (big, "UTF-16BE"),
        ] {
            let findings = parse_one(&bytes).unwrap_err();
            let [finding] = &findings[..] else { panic!("{findings:#?}") };
            let message = format!("1:1: error: {name} text: UTF-8; convert it: iconv -f {name} -t UTF-8");
            assert_eq!(finding.to_string(), message);
        }
    }

    #[test]
    fn a_wrong_directive_hides_no_right_one_and_its_door_is_not_said_to_lack_it() {
        let (messages, _) = findings("[a]\nsequence = x\n[b]\nsequence = 1\ntarget = y\n");
        assert_eq!(
            messages,
            [
                "2:12: error: unexpected \"x\": a port number from 0 to 65535",
                "5:10: error: invalid address: an IPv4 or IPv6 address; host names and networks are not supported",
            ]
        );
    }

    #[test]
    fn comments_may_be_in_any_encoding_and_nothing_else() {
        let config = parse_one(b"# caf\xe9\n[a]\n  # \xff\xfe\0\nsequence = 1\n").unwrap();
        assert_eq!((config.config.doors.len(), config.warnings), (1, vec![]));
        let findings = parse_one(b"[a]\nsequence = 1\n\tcommand = \xc3\xa9\xe9x\n").unwrap_err();
        assert_eq!(findings.len(), 1);
        let message = "3:13: error: invalid UTF-8: UTF-8; only comments may use another encoding";
        assert_eq!((findings[0].to_string().as_str(), findings[0].span.clone()), (message, 30..30));
    }

    #[test]
    fn a_zero_byte_outside_a_comment_is_an_error() {
        let (messages, spans) = findings("[a]\nsequence = 1\n# a\0\ncommand = é\0b\n");
        assert_eq!(messages, ["4:12: error: unexpected NUL byte: text"]);
        assert_eq!(spans, ["\0"]);
    }

    #[test]
    fn the_example_of_a_pair_of_doors_is_read() {
        let text = "\
[options]
  logfile=/var/log/knockd.log

[openSSH]
  sequence = 700,800,900
  seq_timeout = 5
  command = /sbin/iptables -I INPUT -s %IP% -p tcp --dport 22 -j ACCEPT
  tcpflags = syn

[closeSSH]
  sequence = 900,800,700
  seq_timeout = 5
  command = /sbin/iptables -D INPUT -s %IP% -p tcp --dport 22 -j ACCEPT
  tcpflags = syn
";
        let door = |name, steps, letter| Door {
            seq_timeout: Seconds::new(5),
            tcp_flags: FlagRule::ANY.and_set(TcpFlags::SYN),
            action: runs(&format!("/sbin/iptables -{letter} INPUT -s %IP% -p tcp --dport 22 -j ACCEPT"), ""),
            ..Door::new(self::name(name), sequence(steps))
        };
        let options = Options { log_file: Some(value("/var/log/knockd.log")), ..Options::default() };
        let doors = vec![door("openSSH", "700,800,900", "I"), door("closeSSH", "900,800,700", "D")];
        assert_eq!(config(text), Config { options, doors });
    }

    #[test]
    fn the_example_of_a_door_that_closes_itself_is_read() {
        let text = "\
[opencloseSSH]
	sequence      = 2222:udp,3333:tcp,4444:udp
	seq_timeout   = 15
	tcpflags      = syn,ack
	start_command = /usr/sbin/iptables -A INPUT -s %IP% -p tcp --syn -j ACCEPT
	cmd_timeout   = 10
	stop_command  = /usr/sbin/iptables -D INPUT -s %IP% -p tcp --syn -j ACCEPT
";
        let expected = Door {
            seq_timeout: Seconds::new(15),
            tcp_flags: FlagRule::ANY.and_set(TcpFlags::SYN.union(TcpFlags::ACK)),
            action: runs(
                "/usr/sbin/iptables -A INPUT -s %IP% -p tcp --syn -j ACCEPT",
                "/usr/sbin/iptables -D INPUT -s %IP% -p tcp --syn -j ACCEPT",
            ),
            cmd_timeout: Seconds::new(10),
            ..Door::new(name("opencloseSSH"), sequence("2222:udp,3333,4444:udp"))
        };
        assert_eq!(config(text).doors, [expected]);
    }

    #[test]
    fn the_configuration_of_the_debian_package_is_read() {
        let text = "\
[options]
	UseSyslog

[openSSH]
	sequence    = 7000,8000,9000
	seq_timeout = 5
	command     = /sbin/iptables -A INPUT -s %IP% -p tcp --dport 22 -j ACCEPT
	tcpflags    = syn

[closeSSH]
	sequence    = 9000,8000,7000
	seq_timeout = 5
	command     = /sbin/iptables -D INPUT -s %IP% -p tcp --dport 22 -j ACCEPT
	tcpflags    = syn

[openHTTPS]
	sequence    = 12345,54321,24680,13579
	seq_timeout = 5
	command     = /usr/local/sbin/knock_add -i -c INPUT -p tcp -d 443 -f %IP%
	tcpflags    = syn
";
        let door = |name, steps, command| Door {
            seq_timeout: Seconds::new(5),
            tcp_flags: FlagRule::ANY.and_set(TcpFlags::SYN),
            action: runs(command, ""),
            ..Door::new(self::name(name), sequence(steps))
        };
        let doors = vec![
            door("openSSH", "7000,8000,9000", "/sbin/iptables -A INPUT -s %IP% -p tcp --dport 22 -j ACCEPT"),
            door("closeSSH", "9000,8000,7000", "/sbin/iptables -D INPUT -s %IP% -p tcp --dport 22 -j ACCEPT"),
            door(
                "openHTTPS",
                "12345,54321,24680,13579",
                "/usr/local/sbin/knock_add -i -c INPUT -p tcp -d 443 -f %IP%",
            ),
        ];
        assert_eq!(
            config(text),
            Config { options: Options { use_syslog: true, ..Options::default() }, doors }
        );
    }

    /// Parses a configuration with files that it includes.
    fn parse_files(main: &str, included: &[(&str, &str)]) -> Result<Parsed, Vec<Diagnostic>> {
        let others = included.iter().map(|(name, text)| Source::included(name, text.as_bytes()));
        let sources: Vec<_> = std::iter::once(Source::new(main.as_bytes())).chain(others).collect();
        parse(&sources, true)
    }

    #[test]
    fn included_files_count_as_if_they_stood_at_the_end() {
        let main = "[options]\nInclude = /d/*.conf\nLogFile = /a\nInclude = more\n[m]\nsequence = 1\n";
        let names: Vec<_> = includes(main.as_bytes()).iter().map(Text::to_string).collect();
        assert_eq!(names, ["/d/*.conf", "more"]);
        let others =
            [("/d/b.conf", "[b]\nsequence = 2\n"), ("more", "[options]\nLogFile = /b\n[a]\nsequence = 3")];
        let Parsed { config, warnings, places } = parse_files(main, &others).unwrap();
        assert_eq!(warnings, []);
        assert_eq!(config.options.log_file, Some(value("/b")));
        let doors: Vec<_> = config.doors.iter().map(|door| &*door.name).collect();
        assert_eq!(doors, ["m", "b", "a"]);
        let files: Vec<_> = places.iter().map(|places| places.file.as_deref()).collect();
        assert_eq!(files, [None, Some("/d/b.conf"), Some("more")]);
        assert_eq!(parse_files(main, &[]).unwrap().config.doors.len(), 1);
    }

    #[test]
    fn findings_about_included_files_name_the_file_and_every_file_starts_outside_of_any_section() {
        let main = "[options]\nInclude = *\n[m]\nsequence = x\n";
        let others = [
            ("a", "sequence = 1\n[options]\ninclude = *\n"),
            ("b", "[b]\nsequence = 1\nseq_timeout = 5 s\n"),
            ("c", "\u{feff}[c]\n"),
        ];
        let findings = parse_files(main, &others).unwrap_err();
        assert_eq!(
            findings.iter().map(Diagnostic::to_string).collect::<Vec<_>>(),
            [
                "4:12: error: unexpected \"x\": a port number from 0 to 65535",
                "a:1:1: error: `sequence` before the first section: a section header such as `[options]` above it",
                "a:3:11: error: files cannot be included here: `Include` in the configuration file itself, not in one that it includes",
                "b:3:17: warning: text ignored: nothing; a comment needs its own line",
                "c:1:1: error: door `c` has no sequence: a `Sequence` or `One_Time_Sequences` directive",
            ]
        );
    }

    #[test]
    fn without_files_nothing_can_be_included() {
        let (messages, _) = findings("[options]\nInclude = /d/*.conf\n[a]\nsequence = 1\n");
        assert_eq!(
            messages,
            [
                "2:11: error: files cannot be included here: `Include` in the configuration file itself, not in one that it includes"
            ]
        );
        let empty = parse_files("[options]\nInclude =\n", &[]).unwrap_err();
        assert_eq!(empty[0].to_string(), "2:10: error: empty value: a file path");
    }

    #[test]
    fn no_door_in_any_file_is_doubtful() {
        let found = parse_files("[options]\nInclude = *\n", &[("a", "# nothing\n")]).unwrap().warnings;
        assert_eq!(found[0].to_string(), "3:1: warning: no doors configured: a section such as `[openSSH]`");
        assert_eq!(
            parse_files("[options]\nInclude = *\n", &[("a", "[a]\nsequence = 1")]).unwrap().warnings,
            []
        );
    }
}
