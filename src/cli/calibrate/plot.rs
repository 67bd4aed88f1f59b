//! The reliability plot, as SVG that stands in the page: colours are the page's, by class.

use std::fmt::Write as _;

use crate::quality::calibration::Measured;

const SIZE: f64 = 320.0;
const LEFT: f64 = 52.0;
const TOP: f64 = 12.0;
/// Height of the strip below that shows how many are in each bin.
const COUNTS: f64 = 60.0;
const WIDTH: f64 = LEFT + SIZE + 14.0;
const HEIGHT: f64 = TOP + SIZE + COUNTS + 52.0;

/// Each bin's accuracy over its confidence, with the line they should be on, and below it how many
/// are in each bin.
pub fn reliability(title: &str, found: &Measured) -> String {
    let x = |value: f64| LEFT + value * SIZE;
    let y = |value: f64| TOP + (1.0 - value) * SIZE;
    let mut svg = format!(
        "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{title}\" \
         xmlns=\"http://www.w3.org/2000/svg\"><title>{title}</title>"
    );
    for tick in [0.0, 0.25, 0.5, 0.75, 1.0] {
        let (across, up) = (x(tick), y(tick));
        let (right, bottom) = (LEFT + SIZE, TOP + SIZE + COUNTS);
        let _ = write!(
            svg,
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{up:.1}\" y2=\"{up:.1}\"/>\
             <text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{tick}</text>\
             <text class=\"tick\" x=\"{across:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{tick}</text>",
            LEFT - 8.0,
            up + 4.0,
            bottom + 18.0
        );
    }
    let most = found
        .bins
        .iter()
        .map(|bin| bin.count)
        .max()
        .unwrap_or(0)
        .max(1) as f64;
    for bin in found.bins.iter().filter(|bin| bin.count > 0) {
        let (left, width) = (x(bin.from) + 1.0, (bin.to - bin.from) * SIZE - 2.0);
        let (top, tall) = (y(bin.accuracy), bin.accuracy * SIZE);
        let (low, high) = (
            bin.confidence.min(bin.accuracy),
            bin.confidence.max(bin.accuracy),
        );
        let depth = bin.count as f64 / most * (COUNTS - 14.0);
        let _ = write!(
            svg,
            "<rect class=\"bar\" x=\"{left:.1}\" y=\"{top:.1}\" width=\"{width:.1}\" height=\"{tall:.1}\">\
             <title>{} in {:.3} to {:.3}: confidence {:.3}, accuracy {:.3}</title></rect>\
             <rect class=\"gap\" x=\"{left:.1}\" y=\"{:.1}\" width=\"{width:.1}\" height=\"{:.1}\"/>\
             <rect class=\"count\" x=\"{left:.1}\" y=\"{:.1}\" width=\"{width:.1}\" height=\"{depth:.1}\"/>",
            bin.count,
            bin.from,
            bin.to,
            bin.confidence,
            bin.accuracy,
            y(high),
            (high - low) * SIZE,
            TOP + SIZE + COUNTS - depth
        );
    }
    let _ = write!(
        svg,
        "<line class=\"right\" x1=\"{LEFT}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{TOP}\"/>\
         <line class=\"axis\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{:.1}\" y2=\"{:.1}\"/>\
         <text class=\"name\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">confidence</text>\
         <text class=\"name\" x=\"14\" y=\"{:.1}\" text-anchor=\"middle\" transform=\"rotate(-90 14 {:.1})\">accuracy</text>\
         </svg>",
        TOP + SIZE,
        LEFT + SIZE,
        LEFT + SIZE,
        TOP + SIZE,
        TOP + SIZE,
        LEFT + SIZE / 2.0,
        HEIGHT - 8.0,
        TOP + SIZE / 2.0,
        TOP + SIZE / 2.0
    );
    svg
}
