//! What is wrong with the services that a firewall is to guard.

use std::collections::BTreeMap;

use super::{Code, Config, Diagnostic, Door, Firewall, Places, Severity, Source};
use crate::forward::Forwards;
use crate::services::Services;

/// Returns why the firewall cannot guard what doors open.
pub(super) fn findings(config: &Config, places: &[Places], sources: &[Source<'_>]) -> Vec<Diagnostic> {
    let mut names = BTreeMap::<_, usize>::new();
    for door in &config.doors {
        *names.entry(&door.name).or_default() += 1;
    }
    let has_firewall = config.options.firewall != Firewall::None;
    let mut findings = Vec::new();
    for (door, places) in config.doors.iter().zip(places) {
        let Some(source) = sources.iter().find(|source| source.name == places.file.as_deref()) else {
            continue;
        };
        let shares_name = names.get(&door.name) > Some(&1);
        for (directive, message, expected) in errors(door, places, has_firewall, shares_name) {
            let (span, severity, code) = (places.of(directive), Severity::Error, Code::Invalid);
            findings.push(Diagnostic::new(*source, span, severity, code, message, expected));
        }
    }
    findings
}

/// An error: the directive with its place, what is wrong, and what was expected.
type Wrong = (&'static str, String, &'static str);

fn errors(door: &Door, places: &Places, has_firewall: bool, shares_name: bool) -> Vec<Wrong> {
    let mut all = Vec::new();
    if door.masquerade && door.forward.is_none() {
        all.push(("Masquerade", "`Masquerade` without `Forward`".into(), "`Forward` in this door"));
    }
    if !door.is_guarded() {
        let useless = ["Closed", "Open_For"].into_iter().filter(|directive| places.has(directive));
        let tell = |directive| (directive, format!("`{directive}` without `Open`"), "`Open` in this door");
        all.extend(useless.map(tell));
        return all;
    }
    if !has_firewall {
        let given = ["Open", "Forward"].into_iter().filter(|directive| places.has(directive));
        all.extend(given.map(|directive| {
            let message = format!("`{directive}` without a firewall");
            (directive, message, "`Firewall = nftables` in `[options]`")
        }));
    } else if door.name.len() > MAX_NAME || door.name.contains('"') {
        let expected = "a name of at most 127 bytes without quotation marks";
        all.push(("", "the firewall cannot keep the name of the door".into(), expected));
    } else if shares_name {
        let expected = if door.open.is_some() {
            "a name of its own for a door with `Open`"
        } else {
            "a name of its own for a door with `Forward`"
        };
        all.push(("", "another door has the same name".into(), expected));
    }
    all.extend(forwards(door).map(|(message, expected)| ("Forward", message, expected)));
    all
}

/// What nft keeps of a comment, in which the kernel keeps the name of a door.
const MAX_NAME: usize = 127;

/// Returns what is wrong with the forwarded ports of a door, and what was expected.
fn forwards(door: &Door) -> impl Iterator<Item = (String, &'static str)> {
    let forwards = door.forward.iter().flat_map(Forwards::iter);
    forwards.filter_map(|forward| {
        let opens = door.open.iter().flat_map(Services::iter).any(|service| {
            service.protocol() == forward.protocol() && service.ports().contains(&forward.port())
        });
        let port = format!("{}/{}", forward.protocol(), forward.port());
        if opens {
            return Some((format!("{port} is in `Open` as well"), "a port that this door does not open"));
        }
        let target = door.target.filter(|target| !forward.applies_to(*target))?;
        let message = format!("{port} of {target} cannot lead to an address of the other family");
        Some((message, "a target of the same family as `Target`"))
    })
}

#[cfg(test)]
mod tests {
    use crate::config::{Config, Diagnostic};

    /// Returns the errors about a door with these lines, each with the text that it is about.
    fn errors(options: &str, lines: &str) -> Vec<(String, String)> {
        let text = format!("[options]\n{options}\n[a]\nSequence = 1,2\n{lines}\n");
        let Err(error) = Config::parse(text.as_bytes()) else { return Vec::new() };
        let told = |finding: &Diagnostic| {
            (finding.message.clone(), text.get(finding.span.clone()).unwrap().to_owned())
        };
        error.findings.iter().map(told).collect()
    }

    #[test]
    fn what_does_not_fit_together_is_an_error_at_its_place() {
        let guarded = "Firewall = nftables";
        for (options, lines, message, at) in [
            ("", "Open = tcp/22", "`Open` without a firewall", "tcp/22"),
            ("", "Forward = tcp/1 > self:2", "`Forward` without a firewall", "tcp/1 > self:2"),
            (guarded, "Open = tcp/22\nMasquerade = yes", "`Masquerade` without `Forward`", "yes"),
            (guarded, "Open_For = /24", "`Open_For` without `Open`", "/24"),
            (
                guarded,
                "Open = tcp/20-30\nForward = tcp/22 > 10.0.0.1:22",
                "tcp/22 is in `Open` as well",
                "tcp/22 > 10.0.0.1:22",
            ),
            (
                guarded,
                "Target = 192.0.2.1\nForward = tcp/22 > [fd00::1]:22",
                "tcp/22 of 192.0.2.1 cannot lead to an address of the other family",
                "tcp/22 > [fd00::1]:22",
            ),
        ] {
            assert_eq!(errors(options, lines), [(message.to_owned(), at.to_owned())], "{lines}");
        }
    }

    #[test]
    fn what_fits_together_is_no_error() {
        for lines in [
            "Open = udp/22, tcp/80\nForward = tcp/22 > 10.0.0.1:22\nOpen_For = /24, /64\nMasquerade",
            "Forward = tcp/22 > self:2222\nOpen_For = /64\nTarget = fd00::1",
            "Forward = tcp/22 > 10.0.0.1:22\nTarget = 192.0.2.1\nMasquerade = no",
            "Open = tcp/22\nOpen_For = address",
        ] {
            assert_eq!(errors("Firewall = nftables", lines), [], "{lines}");
        }
    }
}
