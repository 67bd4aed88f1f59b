//! Pictures of a comparison, as SVG that stands in the report: colours are the page's, by class.

use std::fmt::Write;

use serde::Serialize;

use super::{escape::xml, report::number};
use crate::quality::comparison::{Comparison, Detail, Figures, quantile};

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 330.0;
const LEFT: f64 = 66.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 30.0;
const BOTTOM: f64 = 58.0;

/// Points of a scatter plot at most.
const POINTS: usize = 1500;

/// Labels of a confusion matrix that is drawn, at most.
const MATRIX_LABELS: usize = 16;

/// A picture.
#[derive(Debug, Serialize)]
pub struct Plot {
    /// What it shows.
    pub title: &'static str,
    /// How to read it.
    pub caption: String,
    /// The picture.
    pub svg: String,
}

/// The pictures of a comparison.
pub fn all(comparison: &Comparison, figures: &Figures, labels: &[String]) -> Vec<Plot> {
    let mut plots = Vec::new();
    if let Some(embeddings) = comparison.embeddings() {
        plots.extend(histogram(
            "Cosines",
            embeddings.cosines(),
            &Axis {
                name: "cosine of a text's two vectors",
                whole: false,
            },
        ));
        let [reference, candidate] = embeddings.similarities();
        let pairs: Vec<_> = reference.into_iter().zip(candidate).collect();
        plots.extend(scatter(
            "Similarities between texts",
            &pairs,
            "cosine of two texts",
        ));
    }
    if let (Some(classes), Detail::Classify(found)) = (comparison.classes(), &figures.detail) {
        plots.extend(confusion(labels, &found.confusion));
        plots.extend(histogram(
            "Divergence of probabilities",
            classes.divergences_seen(),
            &Axis {
                name: "Jensen-Shannon divergence of a text, bits",
                whole: false,
            },
        ));
    }
    if let Some(scores) = comparison.scores() {
        plots.extend(scatter("Scores", scores.pairs(), "score of a document"));
    }
    if let Some(generation) = comparison.generation() {
        plots.extend(histogram(
            "Tokens of the text",
            generation.logprob_differences(),
            &Axis {
                name: "candidate's log-probability less the reference's",
                whole: false,
            },
        ));
        plots.extend(histogram(
            "Where answers part",
            generation.divergences_seen(),
            &Axis {
                name: "tokens before the first that differs",
                whole: true,
            },
        ));
    }
    plots
}

struct Axis {
    name: &'static str,
    /// Whether its values are whole numbers.
    whole: bool,
}

/// A range of values on a stretch of the picture.
struct Scale {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

impl Scale {
    fn place(&self, value: f64) -> f64 {
        self.from + (value - self.low) / (self.high - self.low) * (self.to - self.from)
    }

    /// Round values on it, about `count`.
    fn ticks(&self, count: f64) -> Vec<f64> {
        let rough = (self.high - self.low) / count;
        let power = 10_f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0]
            .map(|factor| factor * power)
            .into_iter()
            .find(|step| *step >= rough)
            .unwrap_or(rough);
        let first = (self.low / step - 1e-9).ceil();
        (0..32)
            .map(|at| (first + f64::from(at)) * step)
            .take_while(|tick| *tick <= self.high + step * 1e-9)
            .collect()
    }
}

/// The range of values, widened a little; of one value alone, a range around it.
fn range(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
        (low.min(value), high.max(value))
    });
    if low > high {
        return None;
    }
    let least = (high.abs().max(low.abs()) * 1e-6).max(1e-9);
    let margin = ((high - low) * 0.02).max(least);
    Some((low - margin, high + margin))
}

fn open(title: &str, height: f64) -> String {
    let title = xml(title);
    format!(
        "<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"{title}\" \
         xmlns=\"http://www.w3.org/2000/svg\"><title>{title}</title>"
    )
}

/// Ticks of both axes, their names, and the lines they stand on.
fn axes(svg: &mut String, x: &Scale, y: &Scale, names: (&str, &str)) {
    for tick in y.ticks(4.0) {
        let at = y.place(tick);
        let (end, label) = (WIDTH - RIGHT, number(tick));
        let _ = write!(
            svg,
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{end}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
             <text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>",
            LEFT - 8.0,
            at + 6.0
        );
    }
    let base = HEIGHT - BOTTOM;
    for tick in x.ticks(5.0) {
        let at = x.place(tick);
        let _ = write!(
            svg,
            "<line class=\"axis\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{base}\" y2=\"{:.1}\"/>\
             <text class=\"tick\" x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            base + 4.0,
            base + 22.0,
            number(tick)
        );
    }
    let _ = write!(
        svg,
        "<line class=\"axis\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{base}\" y2=\"{base}\"/>\
         <text class=\"name\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\
         <text class=\"name\" x=\"{LEFT}\" y=\"16\" text-anchor=\"start\">{}</text>",
        WIDTH - RIGHT,
        f64::midpoint(LEFT, WIDTH - RIGHT),
        HEIGHT - 10.0,
        xml(names.0),
        xml(names.1)
    );
}

fn histogram(title: &'static str, values: &[f64], axis: &Axis) -> Option<Plot> {
    let (low, high) = if axis.whole {
        let (low, high) = range(values.iter().copied())?;
        (low.round() - 0.5, high.round() + 0.5)
    } else {
        range(values.iter().copied())?
    };
    let bins = if axis.whole {
        // Whole numbers fall into bins of whole width.
        let width = ((high - low) / 40.0).ceil().max(1.0);
        ((high - low) / width).ceil() as usize
    } else {
        ((values.len() as f64).sqrt() * 1.5).clamp(8.0, 40.0) as usize
    };
    let mut counts = vec![0_u32; bins];
    let width = if axis.whole {
        ((high - low) / 40.0).ceil().max(1.0)
    } else {
        (high - low) / bins as f64
    };
    for value in values {
        let bin = ((value - low) / width) as usize;
        counts[bin.min(bins - 1)] += 1;
    }
    let x = Scale {
        low,
        high: low + width * bins as f64,
        from: LEFT,
        to: WIDTH - RIGHT,
    };
    let most = f64::from(counts.iter().copied().max().unwrap_or(0)).max(4.0);
    let y = Scale {
        low: 0.0,
        high: most * 1.05,
        from: HEIGHT - BOTTOM,
        to: TOP,
    };
    let mut svg = open(title, HEIGHT);
    axes(&mut svg, &x, &y, (axis.name, "count"));
    for (bin, count) in counts.iter().enumerate().filter(|(_, count)| **count > 0) {
        let from = low + width * bin as f64;
        let (left, right) = (x.place(from), x.place(from + width));
        let top = y.place(f64::from(*count));
        let range = if axis.whole && width <= 1.0 {
            number(from + 0.5)
        } else {
            format!("{} to {}", number(from), number(from + width))
        };
        let _ = write!(
            svg,
            "<rect class=\"bar\" x=\"{:.1}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{:.1}\">\
             <title>{range}: {count}</title></rect>",
            left + 0.5,
            (right - left - 1.0).max(1.0),
            HEIGHT - BOTTOM - top
        );
    }
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (p5, median) = (quantile(&sorted, 0.05), quantile(&sorted, 0.5));
    for (value, name) in [(p5, "p5"), (median, "median")] {
        let at = x.place(value);
        let _ = write!(
            svg,
            "<line class=\"mark\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{:.1}\" y2=\"{:.1}\">\
             <title>{name}: {}</title></line>",
            TOP - 2.0,
            HEIGHT - BOTTOM,
            number(value)
        );
    }
    svg.push_str("</svg>");
    let count = values.len();
    Some(Plot {
        title,
        caption: format!(
            "{count} values; the dashed lines are p5 ({}) and the median ({}).",
            number(p5),
            number(median)
        ),
        svg,
    })
}

fn scatter(title: &'static str, pairs: &[(f64, f64)], what: &str) -> Option<Plot> {
    let (low, high) = range(pairs.iter().flat_map(|(a, b)| [*a, *b]))?;
    let x = Scale {
        low,
        high,
        from: LEFT,
        to: WIDTH - RIGHT,
    };
    let y = Scale {
        low,
        high,
        from: HEIGHT - BOTTOM,
        to: TOP,
    };
    let mut svg = open(title, HEIGHT);
    let names = (format!("reference: {what}"), format!("candidate: {what}"));
    axes(&mut svg, &x, &y, (&names.0, &names.1));
    let _ = write!(
        svg,
        "<line class=\"mark\" x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\"/>",
        x.place(low),
        y.place(low),
        x.place(high),
        y.place(high)
    );
    let step = pairs.len().div_ceil(POINTS).max(1);
    let mut shown = 0;
    for (a, b) in pairs.iter().step_by(step) {
        shown += 1;
        let _ = write!(
            svg,
            "<circle class=\"dot\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"2.5\"/>",
            x.place(*a),
            y.place(*b)
        );
    }
    svg.push_str("</svg>");
    let all = pairs.len();
    let shown = if shown == all {
        format!("{all} points")
    } else {
        format!("{shown} of {all} points")
    };
    Some(Plot {
        title,
        caption: format!("{shown}; on the dashed line both sides say the same."),
        svg,
    })
}

fn confusion(labels: &[String], counts: &[Vec<u64>]) -> Option<Plot> {
    let n = labels.len();
    if n == 0 || n > MATRIX_LABELS || counts.len() != n {
        return None;
    }
    let (left, top) = (190.0, 62.0);
    let cell = ((WIDTH - left - RIGHT) / n as f64).min(92.0);
    let height = top + cell * n as f64 + 12.0;
    let mut svg = open("Labels", height);
    let shorten = |label: &str| {
        let mut short: String = label.chars().take(16).collect();
        if short.len() < label.len() {
            short.push('…');
        }
        xml(&short)
    };
    let _ = write!(
        svg,
        "<text class=\"name\" x=\"{left}\" y=\"20\">candidate</text>\
         <text class=\"name\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">reference</text>",
        left - 8.0,
        top - 8.0
    );
    for (at, label) in labels.iter().enumerate() {
        let middle = cell * (at as f64 + 0.5);
        let _ = write!(
            svg,
            "<text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            left - 8.0,
            top + middle + 6.0,
            shorten(label)
        );
        // Above narrow columns names would run into one another; numbers tell the column by its row.
        let above = if cell < 84.0 {
            (at + 1).to_string()
        } else {
            shorten(label)
        };
        let _ = write!(
            svg,
            "<text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{above}</text>",
            left + middle,
            top - 8.0
        );
    }
    let most = counts.iter().flatten().copied().max().unwrap_or(0).max(1) as f64;
    for (row, counts) in counts.iter().enumerate() {
        for (column, count) in counts.iter().enumerate() {
            let (x, y) = (left + cell * column as f64, top + cell * row as f64);
            let share = *count as f64 / most;
            let class = if row == column { "same" } else { "other" };
            let _ = write!(
                svg,
                "<rect class=\"cell\" x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\"/>\
                 <rect class=\"{class}\" style=\"opacity:{:.3}\" x=\"{:.1}\" y=\"{:.1}\" \
                 width=\"{:.1}\" height=\"{:.1}\"/>",
                x + 1.0,
                y + 1.0,
                cell - 2.0,
                cell - 2.0,
                // Few are seen, too, where most are many.
                if *count == 0 { 0.0 } else { 0.15 + 0.6 * share },
                x + 1.0,
                y + 1.0,
                cell - 2.0,
                cell - 2.0
            );
            if *count > 0 && cell > 24.0 {
                let _ = write!(
                    svg,
                    "<text class=\"count\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{count}</text>",
                    x + cell / 2.0,
                    y + cell / 2.0 + 6.0
                );
            }
        }
    }
    svg.push_str("</svg>");
    Some(Plot {
        title: "Labels",
        caption: "Texts by the reference's best label (row) and the candidate's (column)."
            .to_owned(),
        svg,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_inside() {
        let scale = Scale {
            low: 0.913,
            high: 1.0,
            from: 0.0,
            to: 100.0,
        };
        let ticks: Vec<String> = scale.ticks(6.0).into_iter().map(number).collect();
        assert_eq!(ticks, ["0.92", "0.94", "0.96", "0.98", "1"]);
    }

    #[test]
    fn a_single_value_and_none_are_no_panic() {
        let axis = Axis {
            name: "x",
            whole: false,
        };
        assert!(histogram("t", &[], &axis).is_none());
        assert!(
            histogram("t", &[1.0; 5], &axis)
                .unwrap()
                .svg
                .contains("rect")
        );
        let axis = Axis {
            name: "x",
            whole: true,
        };
        assert!(
            histogram("t", &[3.0], &axis)
                .unwrap()
                .svg
                .contains("<title>3: 1")
        );
        assert!(scatter("t", &[], "x").is_none());
        assert!(scatter("t", &[(0.0, 0.0)], "x").is_some());
    }

    #[test]
    fn labels_are_escaped() {
        let labels = ["<b>".to_owned(), "x".to_owned()];
        let plot = confusion(&labels, &[vec![3, 1], vec![0, 2]]).unwrap();
        assert!(plot.svg.contains("&lt;b&gt;") && !plot.svg.contains("<b>"));
    }
}
