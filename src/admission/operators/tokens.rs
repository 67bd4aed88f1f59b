//! The admin tokens: read once, kept as hashes only, compared in constant time.

use std::{path::PathBuf, sync::Arc};

use crate::config::{
    Secret,
    admin::{AdminConfig, RepositoryRpcs},
};

/// Tokens of one file at most.
const MOST: usize = 64;

/// Why the operators' gate can't be built.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// Other machines could operate the server.
    #[error(
        "admin.host is {host}, which other machines can reach, and there is no token; set \
         FERRY_ADMIN_TOKEN, admin.token_file or admin.token, or leave admin.host out to listen on \
         this machine only"
    )]
    Unprotected {
        /// The address.
        host: std::net::IpAddr,
    },
    /// The repository RPCs ask for a token that nobody can have.
    #[error(
        "admin.repository_rpcs is \"token\" and there is no token; set FERRY_ADMIN_TOKEN, \
         admin.token_file or admin.token, or set it to \"off\""
    )]
    NoToken,
    /// A token isn't fit to be one.
    #[error(
        "{place}: {reason}; allowed: 16 to 256 visible ASCII characters, such as `openssl rand -hex 32` prints"
    )]
    Unfit {
        /// Where it stands.
        place: String,
        /// What is wrong, without the token.
        reason: String,
    },
    /// The file can't be read.
    #[error("admin.token_file: can't read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file has no token, or too many.
    #[error("admin.token_file: {} has {found} tokens; allowed: 1 to {MOST}, one a line, each by itself or after a name", path.display())]
    Count {
        /// The file.
        path: PathBuf,
        /// How many it has.
        found: usize,
    },
    /// A line of the file isn't a token.
    #[error("admin.token_file: {} line {line}: allowed: a token by itself or after a name", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
    },
}

/// The tokens that pass.
#[derive(Debug)]
pub struct Tokens(Vec<Token>);

#[derive(Debug)]
struct Token {
    name: Arc<str>,
    hash: blake3::Hash,
}

impl Tokens {
    /// The tokens of a configuration; `None` where it needs none.
    ///
    /// # Errors
    /// [`TokenError`].
    pub fn read(config: &AdminConfig) -> Result<Option<Self>, TokenError> {
        let tokens = match (&config.token, &config.token_file) {
            (Some(secret), _) => {
                secret.check().map_err(|reason| TokenError::Unfit {
                    place: "the admin token (admin.token or FERRY_ADMIN_TOKEN)".to_owned(),
                    reason,
                })?;
                vec![Token::new("token", secret)]
            }
            (None, Some(path)) => read_file(path)?,
            (None, None) => {
                if config.enabled && !config.host.is_loopback() {
                    return Err(TokenError::Unprotected { host: config.host });
                }
                return if config.repository_rpcs == Some(RepositoryRpcs::Token) {
                    Err(TokenError::NoToken)
                } else {
                    Ok(None)
                };
            }
        };
        Ok(Some(Self(tokens)))
    }

    /// The name of the token that `candidate` is. Takes the same time for any candidate of one
    /// length: hashes are compared, in constant time, with every token.
    pub fn name_of(&self, candidate: &[u8]) -> Option<Arc<str>> {
        let hash = blake3::hash(candidate);
        let mut found = None;
        for token in &self.0 {
            // `blake3::Hash` compares in constant time.
            if token.hash == hash {
                found = Some(Arc::clone(&token.name));
            }
        }
        found
    }
}

impl Token {
    fn new(name: &str, secret: &Secret) -> Self {
        Self {
            name: Arc::from(name),
            hash: blake3::hash(secret.reveal().as_bytes()),
        }
    }
}

/// One token a line, by itself or after a name; empty lines and `#` are passed over.
fn read_file(path: &std::path::Path) -> Result<Vec<Token>, TokenError> {
    let text = std::fs::read_to_string(path).map_err(|source| TokenError::Read {
        path: path.to_owned(),
        source,
    })?;
    let mut tokens = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line_number = index + 1;
        let mut words = line.split_whitespace();
        let (name, token) = match (words.next(), words.next(), words.next()) {
            (None, ..) => continue,
            (Some(first), ..) if first.starts_with('#') => continue,
            (Some(token), None, _) => (format!("line {line_number}"), token),
            (Some(name), Some(token), None) => (name.to_owned(), token),
            _ => {
                return Err(TokenError::Line {
                    path: path.to_owned(),
                    line: line_number,
                });
            }
        };
        let secret = Secret::new(token);
        secret.check().map_err(|reason| TokenError::Unfit {
            place: format!("admin.token_file {} line {line_number}", path.display()),
            reason,
        })?;
        tokens.push(Token::new(&name, &secret));
    }
    match tokens.len() {
        1..=MOST => Ok(tokens),
        found => Err(TokenError::Count {
            path: path.to_owned(),
            found,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Option<Tokens>, TokenError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        Tokens::read(&AdminConfig {
            token_file: Some(file.path().to_owned()),
            ..AdminConfig::default()
        })
    }

    #[test]
    fn a_file_has_named_tokens_so_that_one_can_be_replaced_by_another() {
        let text = "# ours\n\nanna 0123456789abcdef\n  fedcba9876543210  \n";
        let tokens = read(text).unwrap().unwrap();
        assert_eq!(tokens.name_of(b"0123456789abcdef").as_deref(), Some("anna"));
        let name = tokens.name_of(b"fedcba9876543210");
        assert_eq!(name.as_deref(), Some("line 4"));
        assert_eq!(tokens.name_of(b"anna"), None);
        assert_eq!(tokens.name_of(b""), None);
    }

    #[test]
    fn a_wrong_file_is_refused_with_its_line_and_without_its_secrets() {
        for (text, part) in [
            ("", "0 tokens"),
            ("# nothing\n", "0 tokens"),
            ("\nsecret\n", "line 2: a token of 6 characters"),
            ("a 0123456789abcdef b\n", "line 1"),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
            assert!(
                !error.contains("secret") && !error.contains("0123"),
                "{error}"
            );
        }
        let error = Tokens::read(&AdminConfig {
            token_file: Some("/nowhere/token".into()),
            ..AdminConfig::default()
        });
        assert!(error.unwrap_err().to_string().contains("/nowhere/token"));
    }

    #[test]
    fn an_address_that_others_can_reach_needs_a_token() {
        let mut config = AdminConfig::default();
        for (host, fine) in [
            ("127.0.0.1", true),
            ("127.9.9.9", true),
            ("::1", true),
            ("0.0.0.0", false),
            ("::", false),
            ("10.0.0.1", false),
            ("::ffff:10.0.0.1", false),
        ] {
            config.host = host.parse().unwrap();
            assert_eq!(Tokens::read(&config).is_ok(), fine, "{host}");
        }
        config.token = Some(Secret::new("0123456789abcdef"));
        assert!(Tokens::read(&config).unwrap().is_some());
    }

    #[test]
    fn repository_rpcs_that_ask_for_a_token_need_one() {
        let config = AdminConfig {
            repository_rpcs: Some(RepositoryRpcs::Token),
            ..AdminConfig::default()
        };
        let error = Tokens::read(&config).unwrap_err().to_string();
        assert!(error.contains("FERRY_ADMIN_TOKEN"), "{error}");
    }
}
