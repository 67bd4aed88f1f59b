//! A picture of lines: how figures change with what was varied.

use std::fmt::Write;

use super::{
    Plot, number,
    svg::{BOTTOM, HEIGHT, LEFT, RIGHT, Scale, TOP, WIDTH, axes, open, range},
    xml,
};

/// Colours that the page has for lines; further lines take them again.
const COLOURS: usize = 6;

/// Width that a letter of a line's name takes, at most.
const LETTER: f64 = 8.6;

/// Points with a name of their own.
#[derive(Debug, Clone)]
pub struct Series {
    /// What they are.
    pub name: String,
    /// In the order in which they are joined.
    pub points: Vec<(f64, f64)>,
}

/// A value that the figures are held against.
#[derive(Debug, Clone)]
pub struct Level {
    /// What it is.
    pub name: String,
    /// On the upright axis.
    pub value: f64,
}

/// A picture of lines.
#[derive(Debug)]
pub struct Chart<'a> {
    /// What it shows.
    pub title: &'a str,
    /// How to read it.
    pub caption: &'a str,
    /// What was varied.
    pub x: &'a str,
    /// What was measured.
    pub y: &'a str,
    /// Whether equal steps to the right are equal factors.
    pub logarithmic: bool,
    /// Dashed lines across.
    pub levels: &'a [Level],
}

impl Chart<'_> {
    /// The picture of these lines; none where there is nothing to see.
    pub fn draw(&self, series: &[Series]) -> Option<Plot> {
        let finite = |(x, y): &&(f64, f64)| x.is_finite() && y.is_finite();
        let points = || {
            series
                .iter()
                .flat_map(|one| &one.points)
                .filter(finite)
                .copied()
        };
        let (left, right) = if self.logarithmic {
            let (low, high) = points().fold((f64::INFINITY, 0.0_f64), |(low, high), (x, _)| {
                (low.min(x), high.max(x))
            });
            (low, if high > low { high } else { low * 2.0 })
        } else {
            range(points().map(|(x, _)| x))?
        };
        let levels = self.levels.iter().map(|level| level.value);
        let (_, high) = range(points().map(|(_, y)| y).chain(levels).chain([0.0]))?;
        if !left.is_finite() || points().next().is_none() {
            return None;
        }
        let mut x = Scale::across(left, right);
        if self.logarithmic {
            x = x.logarithmic();
        }
        let y = Scale::up(0.0, high * 1.03);
        let mut svg = open(self.title, HEIGHT);
        axes(&mut svg, &x, &y, (self.x, self.y));
        for level in self.levels {
            let at = y.place(level.value);
            let _ = write!(
                svg,
                "<line class=\"mark\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{at:.1}\" y2=\"{at:.1}\">\
                 <title>{}: {}</title></line>",
                WIDTH - RIGHT,
                xml(&level.name),
                number(level.value)
            );
        }
        for (at, one) in series.iter().enumerate() {
            draw_line(&mut svg, one, at % COLOURS, &x, &y);
        }
        if series.len() > 1 {
            draw_legend(&mut svg, series);
        }
        svg.push_str("</svg>");
        Some(Plot {
            title: self.title.to_owned(),
            caption: self.caption.to_owned(),
            svg,
        })
    }
}

fn draw_line(svg: &mut String, one: &Series, colour: usize, x: &Scale, y: &Scale) {
    let mut path = String::new();
    let mut dots = String::new();
    for (across, up) in &one.points {
        if !across.is_finite() || !up.is_finite() {
            continue;
        }
        let (left, top) = (x.place(*across), y.place(*up));
        let _ = write!(path, "{left:.1},{top:.1} ");
        let _ = write!(
            dots,
            "<circle class=\"point s{colour}\" cx=\"{left:.1}\" cy=\"{top:.1}\" r=\"3.5\">\
             <title>{}: {} at {}</title></circle>",
            xml(&one.name),
            number(*up),
            number(*across)
        );
    }
    let _ = write!(
        svg,
        "<polyline class=\"line s{colour}\" points=\"{}\"/>{dots}",
        path.trim_end()
    );
}

/// The lines' names, in the right half above the picture; those that find no room are told by the
/// points alone.
fn draw_legend(svg: &mut String, series: &[Series]) {
    let mut right = WIDTH - RIGHT;
    for (at, one) in series.iter().enumerate().rev() {
        let width = one.name.chars().count() as f64 * LETTER + 32.0;
        if right - width < WIDTH * 0.3 {
            break;
        }
        right -= width;
        let colour = at % COLOURS;
        let _ = write!(
            svg,
            "<circle class=\"point s{colour}\" cx=\"{:.1}\" cy=\"11\" r=\"5\"/>\
             <text class=\"tick\" x=\"{:.1}\" y=\"16\">{}</text>",
            right + 6.0,
            right + 15.0,
            xml(&one.name)
        );
    }
}

// The room above the axes is the legend's, too.
const _: () = assert!(TOP >= 20.0 && BOTTOM >= 40.0);

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(logarithmic: bool) -> Chart<'static> {
        Chart {
            title: "t",
            caption: "",
            x: "clients",
            y: "ms",
            logarithmic,
            levels: &[],
        }
    }

    fn series(name: &str, points: &[(f64, f64)]) -> Series {
        Series {
            name: name.to_owned(),
            points: points.to_vec(),
        }
    }

    #[test]
    fn nothing_to_show_is_no_picture() {
        for logarithmic in [false, true] {
            assert!(chart(logarithmic).draw(&[]).is_none());
            let nothing = series("a", &[(1.0, f64::NAN)]);
            assert!(chart(logarithmic).draw(&[nothing]).is_none());
        }
    }

    #[test]
    fn each_line_has_its_points_and_its_name_escaped() {
        let lines = [
            series("p50 <ms>", &[(1.0, 2.0), (64.0, 9.0)]),
            series("p99", &[(1.0, 3.0)]),
        ];
        for logarithmic in [false, true] {
            let plot = chart(logarithmic).draw(&lines).unwrap();
            assert_eq!(plot.svg.matches("<polyline").count(), 2);
            assert!(plot.svg.contains("p50 &lt;ms&gt;: 9 at 64"));
            assert!(!plot.svg.contains("NaN") && !plot.svg.contains("inf"));
        }
    }
}
