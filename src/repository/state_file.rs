//! Keeps the routes that operators and rollouts set, so that they outlive a restart.

use std::{collections::BTreeMap, io::Write as _, path::Path};

use super::Route;

/// A route for each model, by name.
pub(super) type Routes = BTreeMap<String, Route>;

/// The routes kept in `path`; none where there is no such file, or it is none of ours.
pub(super) fn read(path: &Path) -> Routes {
    if path.as_os_str().is_empty() {
        return Routes::new();
    }
    match std::fs::read(path) {
        Ok(text) => serde_json::from_slice(&text).unwrap_or_else(|error| {
            tracing::error!(%error, path = %path.display(), "kept routes are not understood; the manifests hold");
            Routes::new()
        }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Routes::new(),
        Err(error) => {
            tracing::error!(%error, path = %path.display(), "kept routes can't be read; the manifests hold");
            Routes::new()
        }
    }
}

/// Replaces the file as a whole, so that a crash leaves the old one or the new one.
pub(super) fn write(path: &Path, routes: &Routes) -> std::io::Result<()> {
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    let mut file = tempfile::NamedTempFile::new_in(folder.unwrap_or(Path::new(".")))?;
    serde_json::to_writer_pretty(&mut file, routes)?;
    file.flush()?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_are_read_as_they_were_written_and_a_damaged_file_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("routes.json");
        assert_eq!(read(&path), Routes::new());
        let mut routes = Routes::new();
        let route = routes.entry("minilm".to_owned()).or_default();
        route.stable = Some(2);
        route.labels.insert("blue".to_owned(), 1);
        write(&path, &routes).unwrap();
        assert_eq!(read(&path), routes);
        std::fs::write(&path, "{").unwrap();
        assert_eq!(read(&path), Routes::new());
    }
}
