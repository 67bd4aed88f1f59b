//! `status`: what is there and what it does, once or as it changes.

use std::{collections::BTreeMap, io::IsTerminal as _};

use clap::Args;

use super::{AdminFailure, connect::Server, json as to_json, table};
use crate::api::proto::ferry::v1 as pb;

/// Show models, versions, their states and their traffic.
#[derive(Debug, Args)]
pub struct Status {
    /// One model, with its labels, comparison and latest decisions; left out, all of them.
    model: Option<String>,
    /// Show it again whenever it changes. Piped, one line for each change of a state.
    #[arg(long, short)]
    watch: bool,
    /// How often --watch looks at figures (in flight, memory), in milliseconds; 0: only when a state
    /// or a route changes.
    #[arg(long, value_name = "MS", default_value_t = 1000)]
    interval_ms: u32,
}

impl Status {
    pub async fn run(self, server: Server, json: bool) -> Result<(), AdminFailure> {
        let mut client = server.client.clone();
        let model = self.model.clone().unwrap_or_default();
        if !self.watch {
            let request = pb::StatusRequest { model };
            let call = async { Ok(client.status(request).await?.into_inner().models) };
            let models = server.short(call).await?;
            if json {
                say!("{:#}", to_json::models(&models));
            } else {
                say_part!("{}", self.page(&models));
            }
            return Ok(());
        }
        let on_terminal = std::io::stdout().is_terminal();
        // A line for each change of a state needs no look at figures.
        let interval_ms = if on_terminal || json {
            self.interval_ms
        } else {
            0
        };
        let request = pb::WatchRequest { model, interval_ms };
        let call = async {
            let mut changes = client.watch(request).await?.into_inner();
            let mut known = BTreeMap::new();
            while let Some(message) = changes.message().await? {
                if json {
                    say!("{}", to_json::watched(&message));
                } else {
                    self.show(message, &mut known, on_terminal);
                }
            }
            Err(AdminFailure::CutShort)
        };
        server.long(call).await
    }

    fn page(&self, models: &[pb::ModelStatus]) -> String {
        match models {
            [] => "no models; bring some with `ferry fetch`\n".to_owned(),
            [model] if self.model.is_some() => table::details(model),
            models => table::overview(models),
        }
    }

    fn show(
        &self,
        message: pb::WatchResponse,
        known: &mut BTreeMap<String, pb::ModelStatus>,
        on_terminal: bool,
    ) {
        let is_first = known.is_empty();
        for name in &message.gone {
            known.remove(name);
        }
        for model in message.models {
            known.insert(model.name.clone(), model);
        }
        if on_terminal || is_first {
            if on_terminal {
                // Clears the screen and goes to its top, as `watch` does.
                say_part!("\x1b[2J\x1b[H");
            }
            let models: Vec<_> = known.values().cloned().collect();
            say_part!("{}", self.page(&models));
        } else {
            for change in &message.changes {
                say!("{}", table::told(change));
            }
        }
        // A reader at the other end of a pipe wants it now.
        let _ = std::io::Write::flush(&mut std::io::stdout());
    }
}
