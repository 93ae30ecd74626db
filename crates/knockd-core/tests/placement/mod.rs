//! Whether findings about a configuration point into its text. The fuzz target uses it too.

use knockd_core::config::Diagnostic;

/// Panics unless the findings are in file order, each at whole characters of the one line that it names.
pub fn check(findings: &[Diagnostic], text: &[u8]) {
    for finding in findings {
        assert!(is_placed_in(finding, text), "{finding:?}");
    }
    assert!(findings.is_sorted_by_key(|finding| finding.span.start), "{findings:?}");
}

fn is_placed_in(finding: &Diagnostic, text: &[u8]) -> bool {
    let Diagnostic { line, column, span, .. } = finding;
    let (Some(before), Some(spanned)) = (text.get(..span.start), text.get(span.clone())) else {
        return false;
    };
    let in_line = before.rsplit(|&byte| byte == b'\n').next().unwrap_or_default();
    // A byte order mark at the beginning of the file is no column.
    let in_line = in_line.strip_prefix(b"\xef\xbb\xbf").filter(|_| *line == 1).unwrap_or(in_line);
    std::str::from_utf8(spanned).is_ok()
        && !spanned.contains(&b'\n')
        && *line == before.split(|&byte| byte == b'\n').count()
        && *column == String::from_utf8_lossy(in_line).chars().count() + 1
}
