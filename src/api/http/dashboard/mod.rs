//! The dashboard: one page that shows what the server does, and lets one try its models. Plain files,
//! compiled in; what it shows comes from `/metrics`, `/dashboard/status` and the public routes.

use axum::{
    Router,
    extract::{Path, State},
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Redirect, Response},
    routing::get,
};

use super::openai::ApiError;
use crate::api::{
    gate::allowed_models,
    grpc::{Shared, admin},
    json::to_json,
    proto::ferry::v1::StatusResponse,
};

/// What the page may do: nothing from elsewhere, nothing in another's frame.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
                      img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The page's files, with their types.
const FILES: [(&str, &str, &str); 7] = [
    ("", "text/html", include_str!("index.html")),
    ("style.css", "text/css", include_str!("style.css")),
    ("main.js", "text/javascript", include_str!("main.js")),
    ("metrics.js", "text/javascript", include_str!("metrics.js")),
    ("charts.js", "text/javascript", include_str!("charts.js")),
    ("models.js", "text/javascript", include_str!("models.js")),
    (
        "playground.js",
        "text/javascript",
        include_str!("playground.js"),
    ),
];

/// The routes.
pub fn routes() -> Router<Shared> {
    Router::new()
        .route("/", get(|| async { Redirect::temporary("/dashboard/") }))
        .route(
            "/dashboard",
            get(|| async { Redirect::temporary("/dashboard/") }),
        )
        .route("/dashboard/", get(|| file(Path(String::new()))))
        .route("/dashboard/status", get(status))
        .route("/dashboard/{file}", get(file))
}

async fn file(Path(name): Path<String>) -> Response {
    let Some((_, kind, text)) = FILES.iter().find(|(file, ..)| *file == name) else {
        let message = "the dashboard has no such file".to_owned();
        return ApiError::of_request(StatusCode::NOT_FOUND, "unknown_route", message)
            .into_response();
    };
    let content_type = HeaderValue::try_from(format!("{kind}; charset=utf-8"));
    let mut response = (*text).into_response();
    let headers = response.headers_mut();
    if let Ok(content_type) = content_type {
        headers.insert(header::CONTENT_TYPE, content_type);
    }
    // Another version of the server has other files under the same names.
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(
        header::CONTENT_SECURITY_POLICY,
        HeaderValue::from_static(POLICY),
    );
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    headers.insert(
        header::REFERRER_POLICY,
        HeaderValue::from_static("no-referrer"),
    );
    response
}

/// Models, versions, routes and what was decided of them: `ferry.v1.Admin/Status` as JSON.
async fn status(State(shared): State<Shared>) -> Result<Response, ApiError> {
    let mut models = admin::named(shared.admission.repository(), "").await?;
    let allowed = allowed_models();
    models.retain(|model| allowed.allows(&model.name));
    let json = to_json(&StatusResponse { models }, "ferry.v1.StatusResponse")?;
    Ok(([(header::CONTENT_TYPE, "application/json")], json).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_needs_nothing_that_is_not_compiled_in() {
        for (name, _, text) in FILES {
            for reference in ["src=\"", "href=\"", "from \"./", "import \"./"] {
                for (at, _) in text.match_indices(reference) {
                    let rest = &text[at + reference.len()..];
                    let wanted = rest.split('"').next().unwrap();
                    let known = FILES.iter().any(|(file, ..)| *file == wanted);
                    let local = wanted.starts_with('#') || wanted.starts_with("data:");
                    assert!(known || local, "{name} wants '{wanted}'");
                }
            }
        }
    }

    #[test]
    fn the_page_puts_no_text_from_outside_into_markup() {
        for (name, _, text) in FILES {
            for hole in [
                "innerHTML",
                "outerHTML",
                "insertAdjacentHTML",
                "document.write",
                "eval(",
            ] {
                assert!(!text.contains(hole), "{name} has {hole}");
            }
        }
    }
}
