//! What pictures stand on: scales, axes, ticks. SVG that stands in a page: colours are the page's, by
//! class.

use std::fmt::Write;

use super::{escape::xml, number};

/// Width of a picture, in its own units.
pub const WIDTH: f64 = 640.0;
/// Height of a picture.
pub const HEIGHT: f64 = 330.0;
/// Room left of the axes.
pub const LEFT: f64 = 66.0;
/// Room right of them.
pub const RIGHT: f64 = 16.0;
/// Room above them.
pub const TOP: f64 = 30.0;
/// Room below them.
pub const BOTTOM: f64 = 58.0;

/// A range of values on a stretch of the picture.
pub struct Scale {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
    /// Whether equal steps are equal factors.
    logarithmic: bool,
}

impl Scale {
    /// From the left of a picture to its right.
    pub fn across(low: f64, high: f64) -> Self {
        Self {
            low,
            high,
            from: LEFT,
            to: WIDTH - RIGHT,
            logarithmic: false,
        }
    }

    /// From the bottom of a picture to its top.
    pub fn up(low: f64, high: f64) -> Self {
        Self {
            low,
            high,
            from: HEIGHT - BOTTOM,
            to: TOP,
            logarithmic: false,
        }
    }

    /// The same stretch with equal factors in equal steps; as it is where not all of it is above 0.
    pub fn logarithmic(self) -> Self {
        Self {
            logarithmic: self.low > 0.0,
            ..self
        }
    }

    /// Where a value stands.
    pub fn place(&self, value: f64) -> f64 {
        let share = if self.logarithmic {
            (value.max(self.low) / self.low).ln() / (self.high / self.low).ln()
        } else {
            (value - self.low) / (self.high - self.low)
        };
        self.from + share * (self.to - self.from)
    }

    /// Round values on it, about `count`; on a logarithmic one powers of two, or of ten where that
    /// would be too many.
    pub fn ticks(&self, count: f64) -> Vec<f64> {
        if self.logarithmic {
            let base = if self.high / self.low <= 1024.0 {
                2.0_f64
            } else {
                10.0
            };
            let first = (self.low.ln() / base.ln() - 1e-9).ceil() as i32;
            return (first..first + 32)
                .map(|power| base.powi(power))
                .take_while(|tick| *tick <= self.high * (1.0 + 1e-9))
                .collect();
        }
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
pub fn range(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
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

/// The beginning of a picture; `</svg>` ends it.
pub fn open(title: &str, height: f64) -> String {
    let title = xml(title);
    format!(
        "<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"{title}\" \
         xmlns=\"http://www.w3.org/2000/svg\"><title>{title}</title>"
    )
}

/// Ticks of both axes, their names, and the lines they stand on.
pub fn axes(svg: &mut String, x: &Scale, y: &Scale, names: (&str, &str)) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_inside() {
        let scale = Scale::across(0.913, 1.0);
        let ticks: Vec<String> = scale.ticks(6.0).into_iter().map(number).collect();
        assert_eq!(ticks, ["0.92", "0.94", "0.96", "0.98", "1"]);
        let scale = Scale::across(1.0, 64.0).logarithmic();
        assert_eq!(scale.ticks(5.0), [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0]);
        let scale = Scale::across(0.5, 20_000.0).logarithmic();
        assert_eq!(scale.ticks(5.0), [1.0, 10.0, 100.0, 1000.0, 10_000.0]);
    }

    #[test]
    fn equal_factors_are_equal_steps_on_a_logarithmic_scale() {
        let scale = Scale::across(1.0, 16.0).logarithmic();
        let middle = f64::midpoint(LEFT, WIDTH - RIGHT);
        assert!((scale.place(4.0) - middle).abs() < 1e-9);
        // What has no logarithm is shown as it is.
        let plain = Scale::across(0.0, 16.0).logarithmic();
        assert!((plain.place(8.0) - middle).abs() < 1e-9);
    }
}
