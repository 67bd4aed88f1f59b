//! The admin listener: where it is, who may use it, and whether Triton's repository RPCs are a door
//! to the same.

use std::{
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
};

use serde::{Deserialize, Serialize};

use super::{Secret, Violation};

/// The admin listener.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdminConfig {
    /// Whether there is one.
    pub enabled: bool,
    /// Address to listen on. One that other machines can reach needs a token.
    pub host: IpAddr,
    /// Port; 0 takes a free one.
    pub port: u16,
    /// The token that calls must carry.
    pub token: Option<Secret>,
    /// A file with tokens, one a line, each by itself or after a name for the audit log.
    pub token_file: Option<PathBuf>,
    /// Who may load and unload by Triton's repository RPCs, on the public gRPC port. Left out:
    /// [`RepositoryRpcs::Token`] where there is a token, else [`RepositoryRpcs::Open`].
    pub repository_rpcs: Option<RepositoryRpcs>,
}

impl Default for AdminConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            host: IpAddr::V4(Ipv4Addr::LOCALHOST),
            port: 8003,
            token: None,
            token_file: None,
            repository_rpcs: None,
        }
    }
}

impl AdminConfig {
    /// Who may load and unload by Triton's repository RPCs.
    pub fn repository_rpcs(&self) -> RepositoryRpcs {
        self.repository_rpcs.unwrap_or(if self.has_token() {
            RepositoryRpcs::Token
        } else {
            RepositoryRpcs::Open
        })
    }

    /// Whether calls must carry a token.
    pub fn has_token(&self) -> bool {
        self.token.is_some() || self.token_file.is_some()
    }

    pub(super) fn validate(&self) -> Result<(), Violation> {
        let token = self.token.as_ref().map_or(Ok(()), Secret::check);
        Violation::unless(
            token.is_ok(),
            "admin.token",
            token.err().unwrap_or_default(),
            "16 to 256 visible ASCII characters, such as `openssl rand -hex 32` prints",
        )?;
        Violation::unless(
            self.token.is_none() || self.token_file.is_none(),
            "admin.token_file",
            "beside admin.token",
            "one of the two",
        )
    }
}

/// Who may load and unload models by Triton's repository RPCs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RepositoryRpcs {
    /// Whoever reaches the gRPC port.
    Open,
    /// Who has an admin token.
    Token,
    /// Nobody.
    Off,
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = "0123456789abcdef";

    #[test]
    fn a_token_is_never_printed() {
        let config = AdminConfig {
            token: Some(Secret::new(TOKEN)),
            ..AdminConfig::default()
        };
        let printed = format!("{config:?} {}", toml::to_string(&config).unwrap());
        assert!(!printed.contains(TOKEN), "{printed}");
        // And what is printed instead is not taken for one.
        let read: AdminConfig = toml::from_str(&toml::to_string(&config).unwrap()).unwrap();
        assert_eq!(read.validate().unwrap_err().key, "admin.token");
    }

    #[test]
    fn a_token_that_could_be_guessed_or_sent_by_no_header_is_refused() {
        for wrong in [
            "",
            "short",
            "with spaces in the middle",
            "ünïcödeünïcödeünïcöde",
        ] {
            assert!(Secret::new(wrong).check().is_err(), "{wrong}");
        }
        assert!(Secret::new("x".repeat(257)).check().is_err());
        assert_eq!(Secret::new(TOKEN).check(), Ok(()));
    }

    #[test]
    fn a_token_closes_the_repository_rpcs_unless_told_otherwise() {
        let mut config = AdminConfig::default();
        assert_eq!(config.repository_rpcs(), RepositoryRpcs::Open);
        config.token = Some(Secret::new(TOKEN));
        assert_eq!(config.repository_rpcs(), RepositoryRpcs::Token);
        config.repository_rpcs = Some(RepositoryRpcs::Off);
        assert_eq!(config.repository_rpcs(), RepositoryRpcs::Off);
    }
}
