//! `ferry key`: makes an API key, and what the keys file has to say of it.

use clap::Args;

use super::Failure;
use crate::config::auth::{ApiKey, KeysFile, Scope};

/// Random bytes of a key.
const BYTES: usize = 32;

/// Make an API key. The key goes to standard output, once; what belongs into the keys file, which has
/// no more than its hash, goes to standard error (or into the file).
#[derive(Debug, Args)]
pub struct Key {
    /// The tenant whose key it is: a `[[tenant]]` of the keys file.
    #[arg(long)]
    tenant: String,
    /// The key's name, for logs and for who has to take it away; by default the tenant's with a part
    /// of the hash.
    #[arg(long)]
    name: Option<String>,
    /// What it opens.
    #[arg(long, value_delimiter = ',', default_value = "infer", value_enum)]
    scopes: Vec<Scope>,
    /// The models that it opens, by name or by patterns such as `bge-*`; by default all.
    #[arg(long, value_delimiter = ',', value_name = "MODEL")]
    models: Vec<String>,
    /// A keys file to add it to, and the tenant where the file has none of that name. A running server
    /// takes it up by itself.
    #[arg(long, value_name = "FILE")]
    file: Option<std::path::PathBuf>,
}

impl Key {
    pub fn run(self) -> Result<(), Failure> {
        let mut random = [0; BYTES];
        getrandom::fill(&mut random).map_err(|error| format!("no random numbers: {error}"))?;
        let secret = format!("ferry_{}", blake3::Hash::from_bytes(random).to_hex());
        let hash = ApiKey::write_hash(&secret);
        let name = self.name.unwrap_or_else(|| {
            let (_, digits) = hash.split_once(':').unwrap_or_default();
            format!("{}-{}", self.tenant, &digits[..8])
        });
        let mut added = KeysFile::default();
        added.keys.push(ApiKey {
            name,
            tenant: self.tenant.clone(),
            hash,
            scopes: self.scopes,
            models: (!self.models.is_empty()).then_some(self.models),
        });
        match &self.file {
            None => say_aside_part!("{}", toml::to_string(&added)?),
            Some(path) => append(path, added)?,
        }
        say!("{secret}");
        Ok(())
    }
}

/// Adds to a keys file what it has not; what it has stays as it is, comments and all.
fn append(path: &std::path::Path, mut added: KeysFile) -> Result<(), Failure> {
    let before = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(format!("can't read {}: {error}", path.display()).into()),
    };
    let there = toml::from_str::<KeysFile>(&before)
        .map_err(|error| format!("{}: {error}", path.display()))?;
    let tenant = &added.keys[0].tenant;
    if !there.tenants.iter().any(|there| there.name == *tenant) {
        added.tenants.push(crate::config::auth::TenantLimits {
            name: tenant.clone(),
            requests_per_second: None,
            burst: None,
            max_concurrent: None,
        });
    }
    let gap = if before.is_empty() || before.ends_with("\n\n") {
        ""
    } else if before.ends_with('\n') {
        "\n"
    } else {
        "\n\n"
    };
    let text = format!("{before}{gap}{}", toml::to_string(&added)?);
    // Beside the file and then in its place: a server that reads it now sees the one or the other.
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    let new = tempfile::NamedTempFile::new_in(folder.unwrap_or(std::path::Path::new(".")))?;
    std::fs::write(new.path(), text)?;
    KeysFile::read(new.path()).map_err(|error| error.to_string())?;
    if let Ok(metadata) = std::fs::metadata(path) {
        std::fs::set_permissions(new.path(), metadata.permissions())?;
    }
    new.persist(path)
        .map_err(|error| format!("can't write {}: {error}", path.display()))?;
    Ok(())
}
