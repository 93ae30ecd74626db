//! Draws what is wrong in a file as a compiler would.

use std::path::Path;

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};
use knockd_core::config::{Diagnostic, Severity};

/// Draws a finding: `path:line:column: error: message`, then the source line with the expectation below it.
pub fn draw(path: &Path, text: &str, finding: &Diagnostic) -> String {
    let level = if finding.severity == Severity::Error { Level::ERROR } else { Level::WARNING };
    let Diagnostic { severity, line, column, message, .. } = finding;
    let heading = format!("{}:{line}:{column}: {severity}: {message}", path.display());
    let before = text.get(..finding.span.start).unwrap_or(text);
    let start = before.rfind('\n').map_or(0, |newline| newline + 1);
    let source = text.get(start..).and_then(|rest| rest.lines().next()).unwrap_or_default().trim_end();
    let at = finding.span.start.saturating_sub(start).min(source.len());
    let to = finding.span.end.saturating_sub(start).clamp(at, source.len());
    let snippet = Snippet::source(source)
        .line_start(finding.line)
        .annotation(AnnotationKind::Primary.span(at..to).label(format!("expected {}", finding.expected)));
    let mut group = Group::with_level(level).element(snippet);
    if let Some(help) = &finding.help {
        group = group.element(Level::HELP.message(help));
    }
    format!("{heading}\n{}", Renderer::plain().render(&[group]))
}
