//! What an `authorization` header carries, for keys and admin tokens alike.

/// What stands before it.
const SCHEME: &str = "Bearer";

/// The key or token of an `authorization` header; `None` where it has none, be it that nothing stands
/// after the scheme. The scheme's case says nothing (RFC 9110, 11.1).
pub fn bearer(authorization: &[u8]) -> Option<&[u8]> {
    let (scheme, rest) = authorization.split_at_checked(SCHEME.len())?;
    let token = rest.strip_prefix(b" ")?.trim_ascii();
    (scheme.eq_ignore_ascii_case(SCHEME.as_bytes()) && !token.is_empty()).then_some(token)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_after_the_scheme_is_read_and_nothing_is_none() {
        for (header, token) in [
            ("Bearer k", Some("k")),
            ("bearer  k ", Some("k")),
            ("BEARER a b", Some("a b")),
            ("Bearer ", None),
            ("Bearer", None),
            ("Bearer    ", None),
            ("Bearerk", None),
            ("Basic k", None),
            ("k", None),
            ("", None),
        ] {
            let read = bearer(header.as_bytes());
            assert_eq!(read, token.map(str::as_bytes), "{header:?}");
        }
    }
}
