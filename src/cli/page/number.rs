//! Numbers as the reports write them.

/// What stands for a figure that there isn't.
pub const NOT_MEASURED: &str = "–";

/// A figure, or what stands for none.
pub fn maybe(value: Option<f64>) -> String {
    value.map_or_else(|| NOT_MEASURED.to_owned(), number)
}

/// A number with as many digits as matter: four after a point at most, more where it is near 0 or 1.
pub fn number(value: f64) -> String {
    let size = value.abs();
    let from_one = (size - 1.0).abs();
    let digits = if size >= 1000.0 {
        0
    } else if size >= 10.0 {
        1
    } else if size > 0.0 && size < 1e-6 {
        return format!("{value:.1e}");
    } else if size < 1e-3 || (from_one > 0.0 && from_one < 1e-3) {
        6
    } else {
        4
    };
    let text = format!("{value:.digits$}");
    if text.contains('.') {
        let text = text.trim_end_matches('0').trim_end_matches('.');
        if text == "-0" { "0" } else { text }.to_owned()
    } else {
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_as_many_digits_as_matter() {
        for (value, text) in [
            (0.0, "0"),
            (-0.0, "0"),
            (1.0, "1"),
            (0.5, "0.5"),
            (0.999_987, "0.999987"),
            (0.000_012, "0.000012"),
            (1.2e-9, "1.2e-9"),
            (86.64, "86.6"),
            (12_345.6, "12346"),
            (1.25, "1.25"),
            (0.98, "0.98"),
        ] {
            assert_eq!(number(value), text);
        }
    }
}
