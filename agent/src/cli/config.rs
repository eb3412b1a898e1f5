//! `mt-agent config check`, and what other commands need of a configuration.

use std::path::Path;

use super::output::print;
use crate::config::Config;
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
    DiskScope::new(&config.lab_disks, std::slice::from_ref(&config.state_dir))
}
