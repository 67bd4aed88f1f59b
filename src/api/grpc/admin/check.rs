//! What an operator's request may say.

use crate::{
    api::proto::ferry::v1 as pb,
    error::RequestError,
    repository::{RouteChange, Share},
};

/// What a file system takes for one name.
const LONGEST_NAME: usize = 255;
/// Labels of one request.
const MOST_LABELS: usize = 64;

/// Checks that `name` can be a folder in the models folder, and nothing outside it.
///
/// # Errors
/// [`RequestError::InvalidArgument`].
pub fn check_name(name: &str) -> Result<(), RequestError> {
    let found = if name.is_empty() {
        "no name".to_owned()
    } else if name.len() > LONGEST_NAME {
        format!("{} bytes", name.len())
    } else if name.starts_with('.') || name.contains(['/', '\\']) || name.contains(char::is_control)
    {
        format!("{:?}", beginning(name))
    } else {
        return Ok(());
    };
    Err(RequestError::invalid(
        "model",
        found,
        "the name of a folder in the models folder: no '/', '\\' or control characters, no '.' in front",
    ))
}

/// As much of a text from outside as an error should repeat.
fn beginning(text: &str) -> String {
    text.chars().take(64).collect()
}

/// The version, which has to be given.
///
/// # Errors
/// [`RequestError::InvalidArgument`] when it isn't.
pub fn need_version(version: u64) -> Result<u64, RequestError> {
    if version == 0 {
        return Err(RequestError::invalid(
            "version",
            0,
            "a version's number, from 1",
        ));
    }
    Ok(version)
}

/// The change that a request asks for. What may be routed to, in which shares and by which labels,
/// the repository knows.
///
/// # Errors
/// [`RequestError::InvalidArgument`] for a request that changes nothing.
pub fn route_change(request: &pb::SetRouteRequest) -> Result<RouteChange, RequestError> {
    let nothing = request.stable.is_none()
        && request.canary.is_none()
        && request.shadow.is_none()
        && request.labels.is_empty();
    if nothing {
        return Err(RequestError::invalid(
            "route",
            "nothing to change",
            "one or more of stable, canary, shadow, labels",
        ));
    }
    if request.stable == Some(0) {
        let allowed = "a version's number, from 1 (Drain or Unload end all traffic)";
        return Err(RequestError::invalid("stable", 0, allowed));
    }
    if request.labels.len() > MOST_LABELS {
        let allowed = format!("at most {MOST_LABELS}");
        return Err(RequestError::invalid(
            "labels",
            request.labels.len(),
            allowed,
        ));
    }
    Ok(RouteChange {
        stable: request.stable,
        canary: request.canary.map(share),
        shadow: request.shadow.map(share),
        labels: request
            .labels
            .iter()
            .map(|(label, version)| (label.clone(), Some(*version).filter(|version| *version > 0)))
            .collect(),
    })
}

/// What a request asks for, in a line for the audit log.
pub fn describe(change: &RouteChange) -> String {
    let share = |name: &str, share: Option<Share>| match share {
        Some(Share { version, percent }) => format!("{name} {version} at {percent} %"),
        None => format!("no {name}"),
    };
    let stable = change.stable.map(|version| format!("stable {version}"));
    let canary = change.canary.map(|canary| share("canary", canary));
    let shadow = change.shadow.map(|shadow| share("shadow", shadow));
    let labels = change.labels.iter().map(|(label, version)| match version {
        Some(version) => format!("{label} = {version}"),
        None => format!("no {label}"),
    });
    let parts = [stable, canary, shadow].into_iter().flatten();
    parts.chain(labels).collect::<Vec<_>>().join(", ")
}

/// A share; `None` ends it.
fn share(pb::Share { version, percent }: pb::Share) -> Option<Share> {
    (version > 0).then_some(Share { version, percent })
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, HashMap};

    use super::*;

    #[test]
    fn a_name_that_leads_out_of_the_models_folder_is_refused() {
        for wrong in [
            "", ".", "..", "../x", "a/b", "/etc", "a\\b", "a\0b", "a\n", ".git",
        ] {
            assert!(check_name(wrong).is_err(), "{wrong:?}");
        }
        assert!(check_name(&"x".repeat(256)).is_err());
        for right in ["minilm", "gemma3-270m", "Ünï", "a..b"] {
            assert!(check_name(right).is_ok(), "{right}");
        }
    }

    #[test]
    fn version_0_takes_away_and_what_is_left_out_stays() {
        let change = route_change(&pb::SetRouteRequest {
            shadow: Some(pb::Share::default()),
            labels: HashMap::from([("old".to_owned(), 0), ("blue".to_owned(), 3)]),
            ..pb::SetRouteRequest::default()
        });
        let wanted = RouteChange {
            shadow: Some(None),
            labels: BTreeMap::from([("old".to_owned(), None), ("blue".to_owned(), Some(3))]),
            ..RouteChange::default()
        };
        assert_eq!(change, Ok(wanted.clone()));
        assert_eq!(describe(&wanted), "no shadow, blue = 3, no old");
        assert!(route_change(&pb::SetRouteRequest::default()).is_err());
    }
}
