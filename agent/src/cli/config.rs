//! `mt-agent config check`, and what other commands need of a configuration.

use std::path::{Path, PathBuf};

use super::output::print;
use crate::broker::client::Client;
use crate::config::{BrokerConfig, Config};
use crate::disks::inventory::DiskScope;
use crate::error::{CliError, ExitCode};

/// Checks a file and says that it is right.
///
/// # Errors
/// What is wrong with it, and where.
pub fn check(path: &Path) -> Result<ExitCode, CliError> {
    let config = Config::load(path)?;
    print(&format!(
        "{} is right: data port {}, {}, state in {}\n",
        path.display(),
        config.listen,
        match config.plain {
            true => "WITHOUT TLS".to_owned(),
            false => format!("control port {}", config.control),
        },
        config.state_dir.display()
    ))?;
    Ok(ExitCode::Done)
}

/// The broker that a configuration names; where it names none, the one with the usual folder, as on an appliance.
/// Without a path it is the usual file, where there is one.
///
/// # Errors
/// What is wrong with the file.
pub fn broker(path: Option<&Path>) -> Result<Option<Client>, CliError> {
    let config = match path {
        Some(path) => Config::load(path)?,
        None => Config::load_default()?,
    };
    // By the folder of its records and not by its socket, which is gone while it does not run.
    let usual = || Some(BrokerConfig::default()).filter(|broker| broker.state_dir.exists());
    let broker = config.broker.or_else(usual);
    Ok(broker.map(|broker| Client::new(&broker.socket)))
}

/// What a configuration says of disks. Without a path it is the usual file, where there is one.
///
/// # Errors
/// What is wrong with the file.
pub fn scope(path: Option<&Path>) -> Result<DiskScope, CliError> {
    let config = match path {
        Some(path) => Config::load(path)?,
        None => Config::load_default()?,
    };
    Ok(scope_of(&config))
}

/// What a configuration says of disks.
pub fn scope_of(config: &Config) -> DiskScope {
    let own =
        std::iter::once(&config.state_dir).chain(config.broker.as_ref().map(|broker| &broker.state_dir));
    let own: Vec<PathBuf> = own.cloned().collect();
    DiskScope::new(&config.lab_disks, &own)
}
