//! Finds the line on which a key of a TOML document stands, so that an error can point at it.

/// The line (from 1) of the dotted `key` in `document`, if it is there.
pub fn line_of(document: &str, key: &str) -> Option<usize> {
    let parsed = toml_edit::Document::parse(document).ok()?;
    let mut item = parsed.as_item();
    let mut span = None;
    for part in key.split('.') {
        let (name, value) = item.as_table_like()?.get_key_value(part)?;
        span = name.span().or_else(|| value.span());
        item = value;
    }
    let start = span?.start;
    Some(document[..start].matches('\n').count() + 1)
}

#[cfg(test)]
mod tests {
    use super::line_of;

    #[test]
    fn a_key_in_a_section_is_found_on_its_line() {
        let document = "# head\n[grpc]\nport = 1\n\n[http]\nport = 2\n";
        assert_eq!(line_of(document, "grpc.port"), Some(3));
        assert_eq!(line_of(document, "http.port"), Some(6));
        assert_eq!(line_of(document, "http.host"), None);
    }
}
