//! Profiles for other programs and devices, read back by models of those.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::string_slice, reason = "tests")]
#![allow(clippy::needless_raw_string_hashes, reason = "snapbox writes its snapshots with them")]

mod common;

use std::fs;

use common::User;
use knockd_core::{Config, config::Key};
use serde::Deserialize;
use snapbox::str;

const HOSTS: &str = r#"
[home]
host = "gate.example.com"
sequence = "7101,8202:udp,9303"
close = "9303,domain:udp"
delay = 200
family = "ipv6"
verify = "tcp/2222"
retries = 4
timeout = 7
lease = 45
then = ["ssh", "home"]

[bare]
host = "192.0.2.1"
sequence = "1"

[null]
host = "192.0.2.1"
sequence = "1,2"
tcpflags = "none"

[once]
host = "192.0.2.1"
one_time = "/etc/lines"
"#;

impl User {
    /// Returns what is exported; on standard error there is a warning.
    fn export(&self, name: &str, format: &str) -> String {
        let exported = self.knock(&["export", name, "--format", format]).code(0);
        let exported =
            exported.stderr_eq(format!("knock: warning: anyone who sees this can knock at {name}\n"));
        String::from_utf8(exported.get_output().stdout.clone()).unwrap()
    }
}

/// What Knock on Ports 2.1.10 reads, with its own spelling.
#[derive(Deserialize, Debug, PartialEq)]
struct Sequences {
    version: u8,
    sequences: Vec<Sequence>,
}

#[derive(Deserialize, Debug, PartialEq)]
#[serde(deny_unknown_fields)]
struct Sequence {
    name: Option<String>,
    host: Option<String>,
    delay: Option<i32>,
    ipv: Option<Ipv>,
    #[serde(default, rename = "checkAccess")]
    check_access: bool,
    #[serde(default)]
    check_type: CheckType,
    check_port: Option<i32>,
    check_host: Option<String>,
    #[serde(default)]
    check_timeout: i32,
    #[serde(default)]
    check_post_knock: bool,
    #[serde(default)]
    check_max_retries: i32,
    #[serde(default)]
    steps: Vec<Step>,
}

#[derive(Deserialize, Debug, PartialEq)]
#[serde(rename_all = "snake_case")]
enum Ipv {
    PreferIpv4,
    PreferIpv6,
    OnlyIpv4,
    OnlyIpv6,
    #[serde(rename = "both_ipv4_ipv6")]
    Both,
}

#[derive(Deserialize, Debug, PartialEq, Default)]
enum CheckType {
    #[default]
    #[serde(rename = "URL")]
    Url,
    #[serde(rename = "PORT")]
    Port,
    #[serde(rename = "PING")]
    Ping,
}

#[derive(Deserialize, Debug, PartialEq)]
struct Step {
    #[serde(rename = "type")]
    kind: String,
    port: Option<i32>,
}

fn step(kind: &str, port: i32) -> Step {
    Step { kind: kind.to_owned(), port: Some(port) }
}

#[test]
fn knock_on_ports_reads_its_file() {
    let user = User::with(HOSTS);
    let read: Sequences = serde_json::from_str(&user.export("home", "knockonports")).unwrap();
    let open = Sequence {
        name: Some("home".to_owned()),
        host: Some("gate.example.com".to_owned()),
        delay: Some(200),
        ipv: Some(Ipv::OnlyIpv6),
        check_access: true,
        check_type: CheckType::Port,
        check_port: Some(2222),
        check_host: Some("gate.example.com".to_owned()),
        check_timeout: 7,
        check_post_knock: true,
        check_max_retries: 4,
        steps: vec![step("tcp", 7101), step("udp", 8202), step("tcp", 9303)],
    };
    let close = Sequence {
        name: Some("home-close".to_owned()),
        host: Some("gate.example.com".to_owned()),
        delay: Some(200),
        ipv: Some(Ipv::OnlyIpv6),
        check_access: false,
        check_type: CheckType::Url,
        check_port: None,
        check_host: None,
        check_timeout: 0,
        check_post_knock: false,
        check_max_retries: 0,
        steps: vec![step("tcp", 9303), step("udp", 53)],
    };
    assert_eq!(read, Sequences { version: 1, sequences: vec![open, close] });
    let bare: Sequences = serde_json::from_str(&user.export("bare", "knockonports")).unwrap();
    assert_eq!(bare.sequences[0].steps, [step("tcp", 1)]);
    assert!(!bare.sequences[0].check_access && bare.sequences[0].ipv.is_none());
}

/// What Knock on Ports 2.1.10 makes of a knockd.conf: sections with a sequence, cut at the first `#`.
fn as_knock_on_ports_reads(conf: &str) -> Vec<(String, Vec<(u16, &'static str)>)> {
    let mut sections: Vec<(String, Vec<_>)> = Vec::new();
    for line in conf.lines() {
        let line = line.split('#').next().unwrap().trim();
        if line.starts_with('[') && line.ends_with(']') {
            sections.push((line.trim_matches(['[', ']', ' ', '\t']).to_owned(), Vec::new()));
        } else if let (Some(section), Some((key, value))) = (sections.last_mut(), line.split_once('='))
            && key.trim().eq_ignore_ascii_case("sequence")
        {
            let steps = value.split(',').filter_map(|step| {
                let (port, kind) = step.split_once(':').unwrap_or((step, "tcp"));
                let kind = if kind.trim().eq_ignore_ascii_case("udp") { "udp" } else { "tcp" };
                Some((port.trim().parse().ok().filter(|&port| port > 0)?, kind))
            });
            section.1 = steps.collect();
        }
    }
    sections.retain(|(_, steps)| !steps.is_empty());
    sections
}

#[test]
fn an_exported_knockd_conf_is_one_for_knockd_for_the_app_and_for_import() {
    let user = User::with(HOSTS);
    let conf = user.export("home", "knockd");
    assert_eq!(
        as_knock_on_ports_reads(&conf),
        [
            ("home".to_owned(), vec![(7101, "tcp"), (8202, "udp"), (9303, "tcp")]),
            ("home-close".to_owned(), vec![(9303, "tcp"), (53, "udp")]),
        ]
    );
    let config = Config::parse(conf.as_bytes()).unwrap().config;
    let Key::Sequence(sequence) = &config.doors[0].key else { panic!("{conf}") };
    assert_eq!(sequence.to_string(), "7101:tcp,8202:udp,9303:tcp");
    assert!(config.is_native(), "{conf}");

    let other = User::new();
    let file = other.file("knockd.conf", &conf);
    let import = ["import", &file, "home", "--close", "home-close", "--host", "gate.example.com"];
    other.knock(&import).code(0);
    let shared = "host = \"gate.example.com\"\nsequence = \"7101,8202:udp,9303\"\nclose = \"9303,53:udp\"\n";
    assert_eq!(other.text(), format!("[home]\n{shared}verify = \"tcp/2222\"\nlease = 45\n"));

    for (name, line) in
        [("null", "TCPFlags = !syn"), ("bare", "TCPFlags = syn"), ("once", "One_Time_Sequences = /etc/lines")]
    {
        let conf = user.export(name, "knockd");
        assert!(Config::parse(conf.as_bytes()).is_ok() && conf.contains(line), "{conf}");
    }
}

#[test]
fn a_link_makes_the_same_profile_elsewhere() {
    let user = User::with(HOSTS);
    let link = user.export("home", "uri");
    assert_eq!(
        link,
        "knock://gate.example.com/home?v=p1&sequence=7101,8202:udp,9303&close=9303,domain:udp&delay=200\
         &family=ipv6&verify=tcp/2222&retries=4&timeout=7&lease=45\n"
    );
    let other = User::new();
    other.knock(&["add", "home", &link]).code(0);
    assert_eq!(other.export("home", "uri"), link);
    // What runs a command does not travel.
    assert!(!other.text().contains("then"), "{}", other.text());
}

#[test]
fn json_has_every_key_of_the_profile() {
    let user = User::with(HOSTS);
    let json: serde_json::Value = serde_json::from_str(&user.export("home", "json")).unwrap();
    assert_eq!(
        json,
        serde_json::json!({
            "name": "home", "host": "gate.example.com", "sequence": "7101,8202:udp,9303",
            "close": "9303,domain:udp", "delay": 200, "family": "ipv6", "verify": "tcp/2222", "retries": 4,
            "timeout": 7, "lease": 45, "then": ["ssh", "home"],
        })
    );
}

/// Finds the QR code in a picture and reads it.
fn decoded(width: usize, height: usize, is_dark: impl Fn(usize, usize) -> bool) -> String {
    let pixel = |x, y| if is_dark(x, y) { 0 } else { 255 };
    let mut picture = rqrr::PreparedImage::prepare_from_greyscale(width, height, pixel);
    let grids = picture.detect_grids();
    assert_eq!(grids.len(), 1);
    grids[0].decode().unwrap().1
}

#[test]
fn the_qr_code_on_the_terminal_holds_the_link() {
    let user = User::with(HOSTS);
    let drawn = user.export("home", "qr");
    let rows: Vec<Vec<char>> = drawn.lines().map(|line| line.chars().collect()).collect();
    // Half a character is a module; a lit half is a light one. The decoder wants some pixels for each.
    let is_dark = |x: usize, y: usize| {
        let (x, y) = (x / 4, y / 4);
        match rows[y / 2][x] {
            '█' => false,
            '▀' => y % 2 == 1,
            '▄' => y % 2 == 0,
            _ => true,
        }
    };
    let text = decoded(rows[0].len() * 4, rows.len() * 2 * 4, is_dark);
    assert_eq!(text, user.export("home", "uri").trim());
}

#[test]
fn the_qr_code_in_a_picture_holds_the_link() {
    let user = User::with(HOSTS);
    let link = user.export("home", "uri");
    user.knock(&["export", "home", "--format", "qr", "--output", "home.png"])
        .code(0)
        .stdout_eq("")
        .stderr_eq("knock: wrote home.png; anyone who sees it can knock at home\n");
    let file = fs::File::open(user.home.path().join("home.png")).unwrap();
    let mut reader = png::Decoder::new(std::io::BufReader::new(file)).read_info().unwrap();
    let mut bits = vec![0; reader.output_buffer_size().unwrap()];
    let picture = reader.next_frame(&mut bits).unwrap();
    assert_eq!((picture.bit_depth, picture.color_type), (png::BitDepth::One, png::ColorType::Grayscale));
    let (width, height) = (picture.width as usize, picture.height as usize);
    let is_dark = |x: usize, y: usize| bits[y * picture.line_size + x / 8] & (0x80 >> (x % 8)) == 0;
    assert_eq!(decoded(width, height, is_dark), link.trim());

    user.knock(&["export", "home", "--format", "qr", "--output", "home.SVG"]).code(0);
    let svg = fs::read_to_string(user.home.path().join("home.SVG")).unwrap();
    assert!(svg.starts_with("<?xml") && svg.trim_end().ends_with("</svg>"), "{svg}");
}

#[cfg(unix)]
#[test]
fn exported_files_are_readable_for_their_owner_only() {
    use std::os::unix::fs::PermissionsExt;
    let user = User::with(HOSTS);
    for (format, file) in [
        ("uri", "a"),
        ("json", "b"),
        ("knockd", "c"),
        ("knockonports", "d"),
        ("qr", "e.png"),
        ("qr", "f.svg"),
    ] {
        let path = user.file(file, "something that others can read");
        fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
        user.knock(&["export", "home", "--format", format, "--output", file]).code(0);
        let mode = fs::metadata(user.home.path().join(file)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
}

#[test]
fn what_a_format_cannot_hold_is_named() {
    let user = User::with(HOSTS);
    for (name, format, expected) in [
        (
            "once",
            "uri",
            str![[r#"
knock: a one-time file does not fit into a link; copy the file, and export the profile as json

"#]],
        ),
        (
            "once",
            "qr",
            str![[r#"
knock: a one-time file does not fit into a link; copy the file, and export the profile as json

"#]],
        ),
        (
            "once",
            "knockonports",
            str![[r#"
knock: Knock on Ports has no one-time files, so this profile cannot be exported to it

"#]],
        ),
    ] {
        user.knock(&["export", name, "--format", format]).code(1).stdout_eq("").stderr_eq(expected);
    }
    user.knock(&["export", "null", "--format", "knockonports"]).code(0).stderr_eq(str![[r#"
knock: warning: Knock on Ports cannot send TCP flags of its own, which this door needs
knock: warning: anyone who sees this can knock at null

"#]]);
    let user = User::with(
        "[own]\nhost = \"h\"\nsequence = \"7101:flags=fin,8202:tcp-connect,9303:udp:delay=500\"\n",
    );
    user.knock(&["export", "own", "--format", "knockonports"]).code(0).stderr_eq(str![[r#"
knock: warning: Knock on Ports cannot send TCP flags of its own, which this door needs
knock: warning: Knock on Ports does not wait for connections, which this network may need
knock: warning: Knock on Ports has one delay for all hits; those of single hits are left out
knock: warning: anyone who sees this can knock at own

"#]]);
    user.knock(&["export", "own", "--format", "knockd"]).code(0).stderr_eq(str![[r#"
knock: warning: a door of knockd has one `TCPFlags` for all hits; those of single hits are left out
knock: warning: anyone who sees this can knock at own

"#]]);
}
