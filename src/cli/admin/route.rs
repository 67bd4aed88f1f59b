//! `route`, `promote`, `rollback`: where a model's requests go; `baseline`: what is usual for it.

use std::{collections::HashMap, str::FromStr};

use clap::Args;

use super::{AdminFailure, connect::Server, json as to_json, table};
use crate::api::proto::ferry::v1 as pb;

/// Split a model's traffic. What isn't named stays as it is; all of it changes at once.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ferry admin route minilm                                    show the route
  ferry admin route minilm --canary 2:10                      10 % of the requests to version 2
  ferry admin route minilm --canary none --shadow 3:100       mirror everything to version 3
  ferry admin route minilm --stable 2 --label blue=2 --label old=none")]
pub struct SetRoute {
    /// The model's name.
    model: String,
    /// The version that answers what the canary doesn't.
    #[arg(long, value_name = "VERSION", value_parser = clap::value_parser!(u64).range(1..))]
    stable: Option<u64>,
    /// A version on trial and the percent of the requests it answers; none ends it.
    #[arg(long, value_name = "VERSION:PERCENT|none")]
    canary: Option<ShareArgument>,
    /// A version that is shown so many percent of the requests, its answers compared and thrown
    /// away; none ends it.
    #[arg(long, value_name = "VERSION:PERCENT|none")]
    shadow: Option<ShareArgument>,
    /// A name that requests may use as version; none takes it away. May be given more than once.
    #[arg(long = "label", value_name = "NAME=VERSION|none")]
    labels: Vec<LabelArgument>,
}

/// Make the candidate the stable version.
#[derive(Debug, Args)]
pub struct Promote {
    /// The model's name.
    model: String,
    /// Even though a rule of the manifest's [rollout] is broken, or too little was seen to know.
    #[arg(long)]
    force: bool,
}

/// Go back.
#[derive(Debug, Args)]
pub struct Rollback {
    /// The model's name.
    model: String,
}

/// Record a baseline.
#[derive(Debug, Args)]
pub struct Baseline {
    /// The model's name.
    model: String,
    /// The version; left out, the stable one.
    // Not `version`, which is the flag that every command has.
    #[arg(id = "number", value_name = "VERSION", value_parser = clap::value_parser!(u64).range(1..))]
    version: Option<u64>,
}

impl Baseline {
    pub async fn run(self, server: Server, json: bool) -> Result<(), AdminFailure> {
        let mut client = server.client.clone();
        let request = pb::RecordBaselineRequest {
            model: self.model,
            version: self.version.unwrap_or_default(),
        };
        let call = async { Ok(client.record_baseline(request).await?.into_inner()) };
        let pb::RecordBaselineResponse {
            model,
            version,
            rows,
        } = server.short(call).await?;
        if json {
            let document = serde_json::json!({"model": model, "version": version, "rows": rows});
            say!("{document:#}");
        } else {
            say!("{model}: {rows} rows of version {version} are its baseline now");
        }
        Ok(())
    }
}

impl SetRoute {
    pub async fn run(self, server: Server, json: bool) -> Result<(), AdminFailure> {
        let mut client = server.client.clone();
        let changes_nothing = self.stable.is_none()
            && self.canary.is_none()
            && self.shadow.is_none()
            && self.labels.is_empty();
        let call = async {
            if changes_nothing {
                return show(client, self.model).await;
            }
            let labels: HashMap<String, u64> = self
                .labels
                .into_iter()
                .map(|LabelArgument { label, version }| (label, version))
                .collect();
            let request = pb::SetRouteRequest {
                model: self.model,
                stable: self.stable,
                canary: self.canary.map(|ShareArgument(share)| share),
                shadow: self.shadow.map(|ShareArgument(share)| share),
                labels,
            };
            Ok(client.set_route(request).await?.into_inner())
        };
        print(&server.short(call).await?, json);
        Ok(())
    }
}

impl Promote {
    pub async fn run(self, server: Server, json: bool) -> Result<(), AdminFailure> {
        let mut client = server.client.clone();
        let request = pb::PromoteRequest {
            model: self.model,
            force: self.force,
        };
        let call = async { Ok(client.promote(request).await?.into_inner()) };
        print(&server.short(call).await?, json);
        Ok(())
    }
}

impl Rollback {
    pub async fn run(self, server: Server, json: bool) -> Result<(), AdminFailure> {
        let mut client = server.client.clone();
        let request = pb::RollbackRequest { model: self.model };
        let call = async { Ok(client.rollback(request).await?.into_inner()) };
        // It may have to load the version first.
        print(&server.long(call).await?, json);
        Ok(())
    }
}

async fn show(
    mut client: super::connect::Client,
    model: String,
) -> Result<pb::RouteResponse, AdminFailure> {
    let request = pb::StatusRequest {
        model: model.clone(),
    };
    let models = client.status(request).await?.into_inner().models;
    let route = models.into_iter().next().and_then(|status| status.route);
    Ok(pb::RouteResponse { model, route })
}

fn print(answer: &pb::RouteResponse, json: bool) {
    if json {
        say!("{:#}", to_json::route_answer(answer));
        return;
    }
    let route = answer.route.clone().unwrap_or_default();
    say!("{}: {}", answer.model, table::route(&route));
}

/// `VERSION:PERCENT`, or `none`, which is version 0.
#[derive(Debug, Clone)]
struct ShareArgument(pb::Share);

impl FromStr for ShareArgument {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Self(pb::Share::default()));
        }
        let wrong = || "allowed: VERSION:PERCENT such as 2:10, or none".to_owned();
        let (version, percent) = text.split_once(':').ok_or_else(wrong)?;
        let version: u64 = version.parse().map_err(|_| wrong())?;
        let percent: f64 = percent.trim_end_matches('%').parse().map_err(|_| wrong())?;
        if version == 0 {
            return Err(wrong());
        }
        if !(0.0..=100.0).contains(&percent) {
            return Err(format!("found {percent} percent; allowed: 0 to 100"));
        }
        Ok(Self(pb::Share { version, percent }))
    }
}

/// `NAME=VERSION`, or `NAME=none`, which is version 0.
#[derive(Debug, Clone)]
struct LabelArgument {
    label: String,
    version: u64,
}

impl FromStr for LabelArgument {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "allowed: NAME=VERSION such as blue=2, or NAME=none".to_owned();
        let (label, version) = text.split_once('=').ok_or_else(wrong)?;
        let version = match version {
            "none" => 0,
            number => number
                .parse()
                .ok()
                .filter(|number| *number > 0)
                .ok_or_else(wrong)?,
        };
        Ok(Self {
            label: label.to_owned(),
            version,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_and_labels_are_read_as_they_are_written() {
        let share = |text: &str| text.parse::<ShareArgument>().map(|share| share.0);
        let two = |percent| pb::Share {
            version: 2,
            percent,
        };
        assert_eq!(share("2:10"), Ok(two(10.0)));
        assert_eq!(share("2:0.5%"), Ok(two(0.5)));
        assert_eq!(share("none"), Ok(pb::Share::default()));
        for wrong in ["", "2", "0:10", "2:", "2:101", "2:-1", "2:NaN", "two:10"] {
            assert!(share(wrong).is_err(), "{wrong}");
        }
        let label = |text: &str| {
            let label = text.parse::<LabelArgument>()?;
            Ok::<_, String>((label.label, label.version))
        };
        assert_eq!(label("blue=2"), Ok(("blue".to_owned(), 2)));
        assert_eq!(label("blue=none"), Ok(("blue".to_owned(), 0)));
        assert!(label("blue").is_err() && label("blue=0").is_err());
    }
}
