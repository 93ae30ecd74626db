//! The plots of the page, as SVG.

use anyhow::{Result, anyhow};
use plotters::prelude::*;

use crate::page::grouped;
use crate::results::{DELAYS, KNOCKS, KnockRow, LiveRow};

const SIZE: (u32, u32) = (760, 440);
const FONT: (&str, u32) = ("sans-serif", 15);
const C: RGBColor = RGBColor(0xb3, 0x5c, 0x1e);
const OURS: RGBColor = RGBColor(0x1f, 0x5f, 0x99);
const INK: RGBColor = RGBColor(0x33, 0x33, 0x33);
const FAINT: RGBColor = RGBColor(0xdd, 0xdd, 0xdd);

/// Plots the daemon's CPU per packet over the number of live attempts; both axes are logarithmic.
pub(crate) fn cpu_over_attempts(rows: &[LiveRow]) -> Result<String> {
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        root.fill(&WHITE).map_err(failed)?;
        // No attempts are drawn at 100: a logarithmic axis has no zero.
        let place = |attempts: u32| f64::from(attempts.max(100));
        let mut chart = ChartBuilder::on(&root)
            .margin(18)
            .caption("CPU of the daemon for a packet", ("sans-serif", 20, &INK))
            .x_label_area_size(48)
            .y_label_area_size(76)
            .build_cartesian_2d((50.0..500_000.0_f64).log_scale(), (50.0..3_000_000.0_f64).log_scale())
            .map_err(failed)?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(FAINT)
            .axis_style(INK)
            .label_style((FONT.0, FONT.1, &INK))
            .x_desc("live attempts")
            .x_label_formatter(&|attempts| match *attempts {
                few if few < 150.0 => "none".to_owned(),
                many => grouped(many.round() as i64),
            })
            .y_label_formatter(&|time| time_text(*time))
            .draw()
            .map_err(failed)?;
        let c = rows.iter().filter_map(|row| Some((place(row.attempts), row.c?.spread.median)));
        let c: Vec<_> = c.collect();
        let ours: Vec<_> = rows.iter().map(|row| (place(row.attempts), row.ours.spread.median)).collect();
        for (points, colour, name) in [(c, C, "C knockd 0.8"), (ours, OURS, "this knockd")] {
            chart.draw_series(LineSeries::new(points.clone(), colour.stroke_width(3))).map_err(failed)?;
            let dots = points.iter().map(|&point| Circle::new(point, 5, colour.filled()));
            chart.draw_series(dots).map_err(failed)?;
            let text = (FONT.0, 16, &colour).into_text_style(&root);
            let labels = points.iter().map(|&(x, y)| {
                EmptyElement::at((x, y))
                    + Text::new(time_text(y), (-20, -24), (FONT.0, 14, &colour).into_text_style(&root))
            });
            chart.draw_series(labels).map_err(failed)?;
            if let Some(&(x, y)) = points.iter().rev().nth(1) {
                chart
                    .draw_series([EmptyElement::at((x, y)) + Text::new(name, (10, 12), text)])
                    .map_err(failed)?;
            }
        }
        root.present().map_err(failed)?;
    }
    Ok(svg)
}

/// Plots the honest knocks that opened over the rate of the flood, with a group of bars for each rate and delay.
pub(crate) fn knocks_over_rate(rows: &[KnockRow]) -> Result<String> {
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        root.fill(&WHITE).map_err(failed)?;
        let groups = rows.len() * DELAYS.len();
        let mut chart = ChartBuilder::on(&root)
            .margin(18)
            .caption(format!("Honest knocks of {KNOCKS} that opened in a flood"), ("sans-serif", 20, &INK))
            .x_label_area_size(64)
            .y_label_area_size(44)
            .build_cartesian_2d(0.0..groups as f64, 0.0..f64::from(KNOCKS) + 3.0)
            .map_err(failed)?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .disable_x_axis()
            .light_line_style(TRANSPARENT)
            .bold_line_style(FAINT)
            .axis_style(INK)
            .y_labels(5)
            .y_label_formatter(&|count| format!("{count:.0}"))
            .label_style((FONT.0, FONT.1, &INK))
            .draw()
            .map_err(failed)?;
        let small = (FONT.0, 12, &INK).into_text_style(&root);
        let large = (FONT.0, 15, &INK).into_text_style(&root);
        for (index, row) in rows.iter().enumerate() {
            let figures = DELAYS.iter().zip(&row.c).zip(&row.ours);
            for (inner, ((delay, c), ours)) in figures.enumerate() {
                let left = (index * DELAYS.len() + inner) as f64;
                for (offset, height, colour) in [(0.15, c.median, C), (0.5, ours.median, OURS)] {
                    // A bar of zero still shows that it was measured.
                    let corners = [(left + offset, 0.0), (left + offset + 0.32, height.max(0.15))];
                    chart.draw_series([Rectangle::new(corners, colour.filled())]).map_err(failed)?;
                }
                let label = EmptyElement::at((left + 0.5, 0.0))
                    + Text::new(delay_text(*delay), (-18, 6), small.clone());
                chart.draw_series([label]).map_err(failed)?;
            }
            let middle = (index * DELAYS.len()) as f64 + 1.5;
            let rate = format!("{} a second", grouped(row.rate.kept));
            let label = EmptyElement::at((middle, 0.0)) + Text::new(rate, (-48, 30), large.clone());
            chart.draw_series([label]).map_err(failed)?;
        }
        for (x, colour, name) in [(-150, C, "C knockd 0.8"), (0, OURS, "this knockd")] {
            let at = (groups as f64 / 2.0, f64::from(KNOCKS) + 2.0);
            let text = (FONT.0, 16, &colour).into_text_style(&root);
            let label = EmptyElement::at(at) + Text::new(name, (x + 20, -6), text);
            chart.draw_series([label]).map_err(failed)?;
        }
        root.present().map_err(failed)?;
    }
    Ok(svg)
}

/// Formats nanoseconds in a suitable unit.
fn time_text(nanoseconds: f64) -> String {
    match nanoseconds {
        few if few < 1_000.0 => format!("{few:.0} ns"),
        some if some < 10_000.0 => format!("{} µs", (some / 100.0).round() / 10.0),
        more if more < 1e6 => format!("{:.0} µs", more / 1e3),
        many => format!("{:.0} ms", many / 1e6),
    }
}

fn delay_text(milliseconds: u64) -> String {
    if milliseconds < 1000 { format!("{milliseconds} ms") } else { format!("{} s", milliseconds / 1000) }
}

fn failed(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("cannot draw: {error}")
}
