//! The soak as small multiples in SVG: one panel a figure or two, all over the same minutes.

use std::fmt::Write;

use super::judge::{FIGURES, Verdict};
use super::sample::Sample;

/// A panel: what it shows, and the figures of `judge` in it.
const PANELS: [(&str, &[&str]); 8] = [
    ("Memory, MiB", &["memory of run", "memory of the broker"]),
    ("State and copies on disk, MiB", &["state on disk", "copies of checkpoints"]),
    ("Disk of the broker, MiB", &["disk of the broker"]),
    ("Open files", &["open files of run", "open files of the broker"]),
    ("Record in to record visible, ms", &["record p50", "record p99"]),
    ("Window closed to result visible, ms", &["window p50", "window p99"]),
    ("Lag, records", &["lag"]),
    ("CPU, % of a core", &["CPU of run", "CPU of the broker"]),
];
const COLORS: [&str; 2] = ["#1f5fa8", "#c2571a"];
const COLUMNS: usize = 2;
const PANEL: (f64, f64) = (470.0, 190.0);
/// Of a panel's plot within it: left, top, right, bottom.
const MARGIN: (f64, f64, f64, f64) = (58.0, 40.0, 14.0, 30.0);
const Y_TICKS: usize = 4;
const X_TICKS: usize = 6;

pub fn svg(samples: &[Sample], verdicts: &[Verdict], warm_up_seconds: f64) -> String {
    let rows = PANELS.len().div_ceil(COLUMNS);
    let (width, height) = (PANEL.0 * COLUMNS as f64, PANEL.1 * rows as f64 + 30.0);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" \
         font-size=\"11\" fill=\"#333\">\n<rect width=\"{width}\" height=\"{height}\" fill=\"#fff\"/>\n"
    );
    for (index, (title, figures)) in PANELS.iter().enumerate() {
        let (x, y) = ((index % COLUMNS) as f64 * PANEL.0, (index / COLUMNS) as f64 * PANEL.1);
        let _ = writeln!(svg, "<g transform=\"translate({x} {y})\">");
        panel(&mut svg, title, figures, samples, verdicts, warm_up_seconds);
        svg.push_str("</g>\n");
    }
    let _ = writeln!(
        svg,
        "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">minutes; grey: warm-up, not judged</text>\n</svg>",
        width / 2.0,
        height - 10.0
    );
    svg
}

fn panel(
    svg: &mut String,
    title: &str,
    figures: &[&str],
    samples: &[Sample],
    verdicts: &[Verdict],
    warm_up_seconds: f64,
) {
    let (left, top) = (MARGIN.0, MARGIN.1);
    let (width, height) = (PANEL.0 - left - MARGIN.2, PANEL.1 - top - MARGIN.3);
    let figures: Vec<_> =
        figures.iter().filter_map(|name| FIGURES.iter().find(|figure| figure.name == *name)).collect();
    let all = figures.iter().flat_map(|figure| samples.iter().map(|sample| (figure.of)(sample)));
    let highest = round_up(all.filter(|value| value.is_finite()).fold(1.0, f64::max));
    let minutes = samples.last().map_or(1.0, |sample| sample.seconds / 60.0).max(0.1);
    let x = |seconds: f64| left + seconds / 60.0 / minutes * width;
    let y = |value: f64| top + height - value / highest * height;
    let _ = writeln!(svg, "<text x=\"{left}\" y=\"16\" font-size=\"13\" font-weight=\"bold\">{title}</text>");
    let _ = writeln!(
        svg,
        "<rect x=\"{left}\" y=\"{top}\" width=\"{:.1}\" height=\"{height}\" fill=\"#f0f0f0\"/>",
        x(warm_up_seconds) - left
    );
    for tick in 0..=Y_TICKS {
        let value = highest * tick as f64 / Y_TICKS as f64;
        let _ = writeln!(
            svg,
            "<line x1=\"{left}\" x2=\"{:.1}\" y1=\"{1:.1}\" y2=\"{1:.1}\" stroke=\"#ddd\"/><text x=\"{2:.1}\" y=\"{3:.1}\" \
             text-anchor=\"end\">{4}</text>",
            left + width,
            y(value),
            left - 6.0,
            y(value) + 4.0,
            number(value)
        );
    }
    let step = round_up(minutes / X_TICKS as f64);
    let mut minute = 0.0;
    while minute <= minutes {
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            x(minute * 60.0),
            top + height + 15.0,
            number(minute)
        );
        minute += step;
    }
    for (index, figure) in figures.iter().enumerate() {
        let color = COLORS[index % COLORS.len()];
        let mut path = String::new();
        let mut pen = 'M';
        for sample in samples {
            let value = (figure.of)(sample);
            if value.is_finite() {
                let _ = write!(path, "{pen}{:.1} {:.1}", x(sample.seconds), y(value));
                pen = 'L';
            }
        }
        let _ = writeln!(svg, "<path d=\"{path}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"1.2\"/>");
        let word = verdicts.iter().find(|verdict| verdict.name == figure.name).map_or("", Verdict::word);
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"32\" fill=\"{color}\">{} {word}</text>",
            left + index as f64 * width / 2.0,
            figure.name
        );
    }
}

/// The next 1, 2, 2.5 or 5 times a power of ten.
fn round_up(value: f64) -> f64 {
    let power = 10_f64.powf(value.log10().floor());
    [1.0, 2.0, 2.5, 5.0, 10.0]
        .map(|factor| factor * power)
        .into_iter()
        .find(|&step| step >= value)
        .unwrap_or(value)
}

fn number(value: f64) -> String {
    if value.fract() == 0.0 { format!("{value:.0}") } else { format!("{value:.1}") }
}
