//! The configuration file: TOML as it is written, and the settings as the program uses them.
//!
//! `RawConfig` is the shape of the file, [`Config`] what is left after every value was checked. An error names the
//! file and the line, what was found and what would be right; the sample file in `agent/config` is checked by a test.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};

use mt_blockdev::scsi::ScsiId;
use serde::Deserialize;
use toml::Spanned;

use crate::disks::facts::LabDisk;
use crate::error::{ExitCode, Explain};
use crate::machines::lag::StoreSettings;

mod explain;

/// Where the configuration is when nothing else is said.
pub const DEFAULT_PATH: &str = "/etc/master-target/agent.toml";
/// Where the local socket is when nothing else is said.
pub const DEFAULT_SOCKET: &str = "/run/master-target/agent.sock";
/// Where the state is when nothing else is said.
pub const DEFAULT_STATE_DIR: &str = "/var/lib/master-target/agent";
/// Who may read status when nothing else is said.
pub const DEFAULT_SOCKET_GROUP: &str = "master-target";
/// Where the broker's socket is when nothing else is said.
pub const DEFAULT_BROKER_SOCKET: &str = "/run/master-target-broker/broker.sock";
/// User that the target runs as when nothing else is said.
pub const DEFAULT_BROKER_USER: &str = "master-target";
/// Where the broker keeps its records when nothing else is said.
pub const DEFAULT_BROKER_STATE_DIR: &str = "/var/lib/master-target-broker";
/// The data port when nothing else is said.
pub const DEFAULT_LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::UNSPECIFIED), 9443);
/// The control port when nothing else is said.
pub const DEFAULT_CONTROL: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::UNSPECIFIED), 443);

/// Largest file that is read, bytes: far more than any configuration, and small enough to read without thought.
pub const FILE_BYTES_MAX: u64 = 1024 * 1024;
/// Longest path of a socket, bytes. The kernel's `sun_path` holds 108 with the closing zero; the agent binds it under
/// a name that is 4 longer and renames it.
pub const SOCKET_PATH_BYTES_MAX: usize = 103;
/// Least bytes that the disks may be allowed to be behind: a step of the applier.
pub const LAG_BYTES_MIN: u64 = 4 << 20;
/// Most bytes that the disks may be allowed to be behind.
pub const LAG_BYTES_MAX: u64 = 1 << 40;
/// Longest time that the disks may be allowed to be behind, seconds.
pub const LAG_SECONDS_MAX: u64 = 86_400;
/// Most lab disks.
const LAB_DISKS_MAX: usize = 256;

/// The file as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table")]
struct RawConfig {
    agent: RawAgent,
    target: RawTarget,
    retention: RawRetention,
    broker: Option<RawBroker>,
    lab: Option<RawLab>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table")]
struct RawAgent {
    state_dir: Option<Spanned<String>>,
    socket: Option<Spanned<String>>,
    socket_group: Option<Spanned<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table")]
struct RawTarget {
    listen: Option<Spanned<String>>,
    control: Option<Spanned<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table")]
struct RawRetention {
    folder: Option<Spanned<String>>,
    lag_bytes: Option<Spanned<i64>>,
    lag_seconds: Option<Spanned<i64>>,
    compression: Option<Spanned<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table")]
struct RawBroker {
    socket: Option<Spanned<String>>,
    user: Option<Spanned<String>>,
    state_dir: Option<Spanned<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
struct RawLab {
    enabled: bool,
    plain: Option<Spanned<bool>>,
    #[serde(default)]
    disks: Vec<RawLabDisk>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
struct RawLabDisk {
    scsi_id: Spanned<String>,
    path: Spanned<String>,
    block_size: Option<Spanned<i64>>,
}

/// Where the broker is, and who the target is to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokerConfig {
    /// Its socket.
    pub socket: PathBuf,
    /// User that the target runs as.
    pub user: String,
    /// Folder of the pairs that it has recorded.
    pub state_dir: PathBuf,
}

impl Default for BrokerConfig {
    fn default() -> Self {
        Self {
            socket: DEFAULT_BROKER_SOCKET.into(),
            user: DEFAULT_BROKER_USER.to_owned(),
            state_dir: DEFAULT_BROKER_STATE_DIR.into(),
        }
    }
}

/// The settings, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Folder of the durable state.
    pub state_dir: PathBuf,
    /// The local socket.
    pub socket: PathBuf,
    /// Group whose members may read status.
    pub socket_group: String,
    /// Where sources connect to replicate; a loopback address where [`Self::plain`] is set.
    pub listen: SocketAddr,
    /// Where machines register and renew their certificates.
    pub control: SocketAddr,
    /// Folder of the retention volume; none where no recovery points are kept.
    pub retention: Option<PathBuf>,
    /// How the stores on it are to be held.
    pub stores: StoreSettings,
    /// Who opens disks for the target; none where it does so itself.
    pub broker: Option<BrokerConfig>,
    /// Whether the lab setting is on.
    pub lab: bool,
    /// Whether the data port speaks without TLS and takes whoever connects; never without the lab setting.
    pub plain: bool,
    /// Stand-ins for SCSI disks; empty unless the lab setting is on.
    pub lab_disks: Vec<LabDisk>,
    /// Lab disks that the file lists and that are not used, because the setting is off.
    pub lab_disks_unused: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            state_dir: DEFAULT_STATE_DIR.into(),
            socket: DEFAULT_SOCKET.into(),
            socket_group: DEFAULT_SOCKET_GROUP.to_owned(),
            listen: DEFAULT_LISTEN,
            control: DEFAULT_CONTROL,
            retention: None,
            stores: StoreSettings::default(),
            broker: None,
            lab: false,
            plain: false,
            lab_disks: Vec::new(),
            lab_disks_unused: 0,
        }
    }
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("cannot read the configuration {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// It cannot be a configuration, whatever is in it.
    #[error("{path} is not a configuration: {found}")]
    NotText {
        /// The file.
        path: PathBuf,
        /// What was found.
        found: String,
    },
    /// Something in it is wrong.
    #[error("{path}:{line}: {found}{}", .more.iter().map(|line| format!("\n       {line}")).collect::<String>())]
    Wrong {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What was found against what was expected.
        found: String,
        /// What to do about it.
        hint: Option<String>,
        /// Further keys that are unknown, a line each with its hint.
        more: Vec<String>,
    },
}

impl Explain for ConfigError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Read { source, .. } if source.kind() == std::io::ErrorKind::NotFound => Some(format!(
                "name another file with --config; the default is {DEFAULT_PATH}"
            )),
            Self::Read { .. } => Some("check that it is a file this user may read".to_owned()),
            Self::NotText { .. } => {
                Some("give a TOML file in UTF-8, such as the sample agent.toml".to_owned())
            }
            Self::Wrong { hint, .. } => hint.clone(),
        }
    }

    fn exit_code(&self) -> ExitCode {
        ExitCode::Config
    }
}

/// What is wrong with a value, and where in the text it stands.
struct Fault {
    offset: usize,
    found: String,
    hint: Option<String>,
}

impl Fault {
    fn at<T>(value: &Spanned<T>, found: impl Into<String>, hint: impl Into<String>) -> Self {
        let hint = Some(hint.into());
        Self {
            offset: value.span().start,
            found: found.into(),
            hint,
        }
    }
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// See [`ConfigError`]. At most [`FILE_BYTES_MAX`] bytes are read of whatever the path leads to.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let fail = |source| ConfigError::Read {
            path: path.to_owned(),
            source,
        };
        // Looked at first: opening a pipe would wait for somebody to write into it.
        if std::fs::metadata(path).map_err(fail)?.file_type().is_fifo() {
            return Err(fail(std::io::Error::other("it is not a regular file")));
        }
        let file = File::open(path).map_err(fail)?;
        if !file.metadata().map_err(fail)?.is_file() {
            return Err(fail(std::io::Error::other("it is not a regular file")));
        }
        let mut bytes = Vec::new();
        file.take(FILE_BYTES_MAX + 1)
            .read_to_end(&mut bytes)
            .map_err(fail)?;
        Self::from_bytes(path, &bytes)
    }

    /// Reads the default file; without one, the defaults.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn load_default() -> Result<Self, ConfigError> {
        match Self::load(Path::new(DEFAULT_PATH)) {
            Err(ConfigError::Read { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                Ok(Self::default())
            }
            other => other,
        }
    }

    /// Checks the content of a file; `path` is for messages.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn from_bytes(path: &Path, bytes: &[u8]) -> Result<Self, ConfigError> {
        let not_text = |found: String| ConfigError::NotText {
            path: path.to_owned(),
            found,
        };
        if bytes.len() as u64 > FILE_BYTES_MAX {
            return Err(not_text(format!("it is larger than {FILE_BYTES_MAX} bytes")));
        }
        if let Some(at) = bytes.iter().position(|byte| *byte == 0) {
            return Err(not_text(format!("it has a zero byte at offset {at:#x}")));
        }
        let text = std::str::from_utf8(bytes)
            .map_err(|error| not_text(format!("it is not UTF-8 at offset {:#x}", error.valid_up_to())))?;
        // Editors of other systems begin a file with a byte order mark; it says nothing in UTF-8.
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        Self::parse(text).map_err(|fault| ConfigError::Wrong {
            path: path.to_owned(),
            line: explain::line_of(text, fault.offset),
            more: explain::more_unknown(text, &fault)
                .into_iter()
                .map(|(line, found, hint)| {
                    let hint = hint.map_or_else(String::new, |hint| format!(" ({hint})"));
                    format!("{}:{line}: {found}{hint}", path.display())
                })
                .collect(),
            found: fault.found,
            hint: fault.hint,
        })
    }

    fn parse(text: &str) -> Result<Self, Fault> {
        let raw: RawConfig = toml::from_str(text).map_err(|error| explain::fault_of(text, &error))?;
        let mut config = Self::default();
        if let Some(state_dir) = &raw.agent.state_dir {
            config.state_dir = absolute_path(state_dir, "state_dir")?;
        }
        if let Some(socket) = &raw.agent.socket {
            config.socket = socket_path(socket)?;
        }
        if let Some(group) = &raw.agent.socket_group {
            config.socket_group = account_name(group, "socket_group", "group")?;
        }
        if let Some(broker) = &raw.broker {
            config.broker = Some(broker_config(broker, &config)?);
        }
        if let Some(listen) = &raw.target.listen {
            config.listen = address(listen, "listen", DEFAULT_LISTEN)?;
        }
        if let Some(control) = &raw.target.control {
            config.control = address(control, "control", DEFAULT_CONTROL)?;
            if config.control == config.listen {
                return Err(Fault::at(
                    control,
                    format!("control and listen are both {}", config.control),
                    "machines register on one port and replicate on another: give each its own",
                ));
            }
        }
        if let Some(folder) = &raw.retention.folder {
            config.retention = Some(absolute_path(folder, "folder")?);
        }
        config.stores = store_settings(&raw.retention)?;
        if let Some(lab) = &raw.lab {
            let disks = lab_disks(&lab.disks)?;
            config.lab = lab.enabled;
            if let Some(plain) = lab.plain.as_ref().filter(|plain| *plain.get_ref()) {
                config.plain = plain_allowed(plain, lab.enabled, config.listen)?;
            }
            if lab.enabled {
                config.lab_disks = disks;
            } else {
                config.lab_disks_unused = disks.len();
            }
        }
        Ok(config)
    }
}

fn absolute_path(value: &Spanned<String>, key: &str) -> Result<PathBuf, Fault> {
    let path = PathBuf::from(value.get_ref());
    if path.is_absolute() {
        return Ok(path);
    }
    let found = format!("{key} is \"{}\", which is not an absolute path", value.get_ref());
    Err(Fault::at(
        value,
        found,
        "begin it with \"/\": a service has no folder of its own",
    ))
}

fn socket_path(value: &Spanned<String>) -> Result<PathBuf, Fault> {
    let path = absolute_path(value, "socket")?;
    let length = value.get_ref().len();
    if length <= SOCKET_PATH_BYTES_MAX {
        return Ok(path);
    }
    let found = format!("socket is {length} bytes long, the kernel allows {SOCKET_PATH_BYTES_MAX}");
    Err(Fault::at(
        value,
        found,
        "choose a shorter path, such as one in /run",
    ))
}

fn broker_config(raw: &RawBroker, config: &Config) -> Result<BrokerConfig, Fault> {
    let mut broker = BrokerConfig::default();
    if let Some(socket) = &raw.socket {
        broker.socket = socket_path(socket)?;
        if broker.socket == config.socket {
            let found = "socket is the one of [agent]".to_owned();
            return Err(Fault::at(socket, found, "give each of the two its own"));
        }
    }
    if let Some(user) = &raw.user {
        broker.user = account_name(user, "user", "user")?;
        if broker.user == "root" {
            let hint = "name the user that the target runs as; a target that is root needs no broker";
            return Err(Fault::at(
                user,
                "user is root, who may do all that a broker keeps from him",
                hint,
            ));
        }
    }
    if let Some(state_dir) = &raw.state_dir {
        broker.state_dir = absolute_path(state_dir, "state_dir")?;
        if broker.state_dir == config.state_dir {
            let found = "state_dir is the one of [agent], whose user may write to it".to_owned();
            return Err(Fault::at(state_dir, found, "give the broker a folder of root's"));
        }
    }
    Ok(broker)
}

fn store_settings(raw: &RawRetention) -> Result<StoreSettings, Fault> {
    let mut settings = StoreSettings::default();
    if let Some(value) = &raw.lag_bytes {
        settings.lag_bytes = within(value, "lag_bytes", LAG_BYTES_MIN, LAG_BYTES_MAX)?;
    }
    if let Some(value) = &raw.lag_seconds {
        settings.lag_seconds = within(value, "lag_seconds", 1, LAG_SECONDS_MAX)?;
    }
    if let Some(value) = &raw.compression {
        settings.packing = match value.get_ref().as_str() {
            "lz4" => true,
            "none" => false,
            other => {
                let found = format!("compression is {other:?}");
                return Err(Fault::at(value, found, "it is \"lz4\" or \"none\""));
            }
        };
    }
    Ok(settings)
}

fn within(value: &Spanned<i64>, key: &str, min: u64, max: u64) -> Result<u64, Fault> {
    u64::try_from(*value.get_ref())
        .ok()
        .filter(|number| (min..=max).contains(number))
        .ok_or_else(|| {
            let found = format!("{key} is {}", value.get_ref());
            Fault::at(
                value,
                found,
                format!("a number from {min} to {max} is right here"),
            )
        })
}

fn account_name(value: &Spanned<String>, key: &str, kind: &str) -> Result<String, Fault> {
    let name = value.get_ref();
    let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if (1..=32).contains(&name.len()) && name.bytes().all(good) {
        return Ok(name.clone());
    }
    let found = format!("{key} is {name:?}, which cannot be the name of a {kind}");
    let database = if kind == "group" { "group" } else { "passwd" };
    Err(Fault::at(
        value,
        found,
        format!("give the name of a {kind} of this system, see \"getent {database}\""),
    ))
}

fn address(value: &Spanned<String>, key: &str, usual: SocketAddr) -> Result<SocketAddr, Fault> {
    let text = value.get_ref();
    text.parse().map_err(|_| {
        let found = format!("{key} is \"{text}\", which is not an IP address with a port");
        Fault::at(
            value,
            found,
            format!("write it like \"{usual}\" or \"[::]:{}\"", usual.port()),
        )
    })
}

/// Without TLS whoever connects may write: only a laboratory may have that, and only on this machine.
fn plain_allowed(value: &Spanned<bool>, lab: bool, listen: SocketAddr) -> Result<bool, Fault> {
    if lab && listen.ip().is_loopback() {
        return Ok(true);
    }
    let found = if lab {
        format!("plain is set and [target] listen is {listen}: without TLS only loopback is allowed")
    } else {
        "plain is set and [lab] is not enabled: only a laboratory may do without TLS".to_owned()
    };
    let hint = "remove plain and register the machines (\"mt-agent register\"), or listen on 127.0.0.1 in a laboratory";
    Err(Fault::at(value, found, hint))
}

fn lab_disks(raw: &[RawLabDisk]) -> Result<Vec<LabDisk>, Fault> {
    let mut disks = Vec::new();
    let (mut ids, mut paths) = (HashMap::new(), HashMap::new());
    for (index, disk) in raw.iter().enumerate() {
        let number = index + 1;
        if number > LAB_DISKS_MAX {
            let found = format!("there are more than {LAB_DISKS_MAX} lab disks");
            return Err(Fault::at(&disk.scsi_id, found, "take some away"));
        }
        let scsi_id = ScsiId::parse(disk.scsi_id.get_ref()).map_err(|error| {
            let found = format!("scsi_id of lab disk {number}: {error}");
            Fault::at(
                &disk.scsi_id,
                found,
                "write it like \"naa.6000c29a71e02b4c9d118e55037faa01\"",
            )
        })?;
        let path = absolute_path(&disk.path, "path")?;
        if let Some(before) = ids.insert(scsi_id, number) {
            let found = format!("lab disks {before} and {number} have the same scsi_id {scsi_id}");
            return Err(Fault::at(&disk.scsi_id, found, "give each lab disk its own"));
        }
        if let Some(before) = paths.insert(path.clone(), number) {
            let found = format!(
                "lab disks {before} and {number} have the same path {}",
                path.display()
            );
            return Err(Fault::at(&disk.path, found, "give each lab disk its own"));
        }
        let block_size = disk.block_size.as_ref().map(block_size).transpose()?;
        disks.push(LabDisk {
            scsi_id,
            path,
            block_size,
        });
    }
    Ok(disks)
}

fn block_size(value: &Spanned<i64>) -> Result<u32, Fault> {
    match *value.get_ref() {
        512 => Ok(512),
        4096 => Ok(4096),
        other => {
            let found = format!("block_size is {other} bytes");
            Err(Fault::at(
                value,
                found,
                "logical blocks of disks have 512 or 4096 bytes",
            ))
        }
    }
}

#[cfg(test)]
mod tests;
