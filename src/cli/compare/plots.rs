//! Pictures of a comparison, as SVG that stands in the report: colours are the page's, by class.

use std::fmt::Write;

use crate::{
    cli::page::{
        Plot, number,
        svg::{BOTTOM, HEIGHT, RIGHT, Scale, TOP, WIDTH, axes, open, range},
        xml,
    },
    quality::comparison::{Comparison, Detail, Figures, quantile},
};

/// Points of a scatter plot at most.
const POINTS: usize = 1500;

/// Labels of a confusion matrix that is drawn, at most.
const MATRIX_LABELS: usize = 16;

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

fn histogram(title: &str, values: &[f64], axis: &Axis) -> Option<Plot> {
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
    let x = Scale::across(low, low + width * bins as f64);
    let most = f64::from(counts.iter().copied().max().unwrap_or(0)).max(4.0);
    let y = Scale::up(0.0, most * 1.05);
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
        title: title.to_owned(),
        caption: format!(
            "{count} values; the dashed lines are p5 ({}) and the median ({}).",
            number(p5),
            number(median)
        ),
        svg,
    })
}

fn scatter(title: &str, pairs: &[(f64, f64)], what: &str) -> Option<Plot> {
    let (low, high) = range(pairs.iter().flat_map(|(a, b)| [*a, *b]))?;
    let x = Scale::across(low, high);
    let y = Scale::up(low, high);
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
        title: title.to_owned(),
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
        title: "Labels".to_owned(),
        caption: "Texts by the reference's best label (row) and the candidate's (column)."
            .to_owned(),
        svg,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

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
