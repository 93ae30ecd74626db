//! The pages of the documentation whose recipes are followed.

pub(crate) const README: &str = include_str!("../../../../README.md");
pub(crate) const FIREWALL: &str = include_str!("../../../../docs/firewall.md");
pub(crate) const GUARD: &str = include_str!("../../../../docs/guard.md");

/// What a page says below this heading, up to the next one of the same level.
pub(crate) fn section<'a>(page: &'a str, heading: &str) -> &'a str {
    let (_, rest) = page.split_once(&format!("\n{heading}\n")).unwrap();
    let level = heading.split(' ').next().unwrap();
    rest.split(&format!("\n{level} ")).next().unwrap()
}

/// The blocks in a section that are fenced as this language, as they are typed by root of a testbed's host, where only
/// `/run` may be written to.
pub(crate) fn blocks(section: &str, language: &str) -> Vec<String> {
    let fence = format!("\n```{language}\n");
    let fenced = section.split(&fence).skip(1);
    let blocks = fenced.map(|rest| rest.split("\n```").next().unwrap());
    blocks.map(|block| block.replace("sudo ", "").replace("/etc/knockd.", "/run/knockd.")).collect()
}

/// The only such block that has these words.
pub(crate) fn block(section: &str, language: &str, with: &str) -> String {
    let mut found = blocks(section, language);
    found.retain(|block| block.contains(with));
    assert_eq!(found.len(), 1, "{found:?}");
    found.remove(0)
}
