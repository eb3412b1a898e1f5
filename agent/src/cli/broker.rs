//! `mt-agent broker`: the service that opens disks for the target.

use std::path::PathBuf;

use clap::Args;
use nix::unistd::User;

use super::config::scope_of;
use super::source::stop_on_signal;
use crate::broker::serve::{self, Settings};
use crate::config::{BrokerConfig, Config, DEFAULT_PATH};
use crate::error::{CliError, ExitCode};

/// What the service is told.
#[derive(Debug, Clone, Args)]
pub struct BrokerArgs {
    /// Configuration file
    #[arg(long, value_name = "FILE", default_value = DEFAULT_PATH)]
    pub config: PathBuf,
}

/// Runs the broker until it is told to stop.
///
/// # Errors
/// When the configuration is wrong, or the service cannot be brought up.
pub async fn run(args: &BrokerArgs) -> Result<ExitCode, CliError> {
    let config = Config::load(&args.config)?;
    let broker = config.broker.clone().unwrap_or_default();
    let user = user(&broker)?;
    let settings = Settings {
        socket: broker.socket.clone(),
        user: user.uid,
        group: user.gid,
        scope: scope_of(&config),
        records: broker.state_dir.join("pairs.json"),
    };
    serve::run(settings, stop_on_signal()?).await?;
    Ok(ExitCode::Done)
}

fn user(broker: &BrokerConfig) -> Result<User, CliError> {
    let name = &broker.user;
    let wrong = |found: String| {
        CliError::new(ExitCode::Config, format!("[broker] user is \"{name}\": {found}")).with_hint(
            "name the user that the target runs as; \"systemd-sysusers\" makes that of the appliance",
        )
    };
    match User::from_name(name) {
        Ok(Some(user)) => Ok(user),
        Ok(None) => Err(wrong("there is no such user".to_owned())),
        Err(errno) => Err(wrong(format!("the users of this system cannot be read: {errno}"))),
    }
}
