//! `mt-agent target`: the service.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;

use super::config::scope_of;
use super::source::stop_on_signal;
use crate::broker::client::Client;
use crate::config::{BrokerConfig, Config, DEFAULT_PATH};
use crate::disks::access::DiskAccess;
use crate::error::{CliError, ExitCode};
use crate::status::server;
use crate::target::app::{self, Settings};

/// What the service is told.
#[derive(Debug, Clone, Args)]
pub struct TargetArgs {
    /// Configuration file
    #[arg(long, value_name = "FILE", default_value = DEFAULT_PATH)]
    pub config: PathBuf,
    /// Have a broker open the disks, also where the configuration has no
    /// section "broker"
    #[arg(long)]
    pub broker: bool,
}

/// Runs the target until it is told to stop.
///
/// # Errors
/// When the configuration is wrong, or the service cannot be brought up.
pub async fn run(args: &TargetArgs) -> Result<ExitCode, CliError> {
    // Before there are sessions, whose threads would get heaps of their own.
    mt_blockdev::heap::keep_little();
    let config = Config::load(&args.config)?;
    let settings = Settings {
        state_dir: config.state_dir.clone(),
        listen: config.listen,
        control: (!config.plain).then_some(config.control),
        disks: match config
            .broker
            .clone()
            .or_else(|| args.broker.then(BrokerConfig::default))
        {
            Some(broker) => DiskAccess::Broker(Client::new(&broker.socket)),
            None => DiskAccess::Own(scope_of(&config)),
        },
        lab_disks: config.lab_disks.len(),
        retention: config.retention.clone(),
        stores: config.stores,
    };
    let config = Arc::new(config);
    app::run(&settings, stop_on_signal()?, |target, stop| {
        server::serve(config, target, stop)
    })
    .await?;
    Ok(ExitCode::Done)
}
