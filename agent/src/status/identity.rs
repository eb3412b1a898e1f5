//! The appliance's identity and the machines that registered, on the local socket.
//!
//! Answers hold no secret but two: a passphrase that was just made, and an encrypted backup. Both are asked for by POST,
//! which only root may.

use std::fmt::Write as _;
use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use jiff::{SignedDuration, Timestamp};
use mt_identity::passphrase::PassphraseError;
use mt_identity::registry::Machine;
use mt_identity::{Fingerprint, MachineId, Passphrase};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::model::{ErrorDoc, SCHEMA};
use super::routes::{ApiError, Service, blocking, read_json};
use crate::error::{ExitCode, Explain};
use crate::identity::keeper::{Act, Keeper, KeeperError};
use crate::model::PairName;

/// Longest time that registration may be opened for at once: a week.
const WINDOW_SECONDS_MAX: u64 = 7 * 24 * 3600;
/// Most protected machines that one approval names.
const NAMES_MAX: usize = 64;

type Shared = State<Arc<Service>>;

/// Who the appliance is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct IdentityDoc {
    /// Version of this document.
    pub schema: u32,
    /// Id of the appliance.
    pub appliance: String,
    /// Fingerprint of its CA: what "register --ca-fingerprint" takes.
    pub ca: String,
    /// Until when the CA is valid.
    #[schema(value_type = String, format = DateTime)]
    pub ca_until: Timestamp,
    /// Until when machines may register; none when it was closed.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub registration_until: Option<Timestamp>,
    /// Whether machines may register now.
    pub registration_open: bool,
    /// Whether a passphrase was made and not shown yet.
    pub passphrase_waits: bool,
    /// Where machines register.
    pub control: String,
    /// Where they replicate.
    pub listen: String,
}

/// A passphrase, shown once.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PassphraseDoc {
    /// Version of this document.
    pub schema: u32,
    /// The passphrase; none when it was shown before, or the agent was started anew since it was made.
    pub passphrase: Option<String>,
}

/// Asks for another passphrase.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PassphraseRequest {
    /// One that was chosen; without it one is made.
    pub passphrase: Option<String>,
}

/// Opens registration, or closes it.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RegistrationRequest {
    /// For how long, seconds; 0 closes it.
    pub seconds: u64,
}

/// Asks for a backup.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BackupRequest {
    /// The passphrase that opens it.
    pub passphrase: String,
}

/// A backup.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct BackupDoc {
    /// Version of this document.
    pub schema: u32,
    /// The encrypted bytes, in hexadecimal digits.
    pub backup: String,
}

/// All machines that registered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RegistryDoc {
    /// Version of this document.
    pub schema: u32,
    /// By name.
    pub machines: Vec<RegisteredDoc>,
}

/// A machine that registered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RegisteredDoc {
    /// Its id.
    pub id: String,
    /// What it calls itself; not unique.
    pub name: String,
    /// source or relay.
    pub role: String,
    /// pending, active or revoked.
    pub state: String,
    /// Fingerprint of its key.
    pub key: String,
    /// Fingerprint of a key that waits to take the place of the one it has.
    pub waiting_key: Option<String>,
    /// The protected machines whose pairs it may open.
    pub speaks_for: Vec<String>,
    /// When it first registered.
    #[schema(value_type = String, format = DateTime)]
    pub registered: Timestamp,
    /// When its state or its keys last changed.
    #[schema(value_type = String, format = DateTime)]
    pub changed: Timestamp,
    /// Until when its newest certificate is valid.
    #[schema(value_type = String, format = DateTime)]
    pub certificate_until: Timestamp,
}

/// What to decide about a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Verb {
    /// A key of it may connect.
    Approve,
    /// A key may not take the place of the one it has.
    Decline,
    /// None of its keys may connect any more.
    Revoke,
    /// It is forgotten.
    Remove,
}

/// Decides about a machine.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DecideRequest {
    /// What.
    pub verb: Verb,
    /// The key that is approved or declined.
    pub key: Option<String>,
    /// The protected machines whose pairs it may open, when it is approved; none: the one of its own name.
    #[serde(default)]
    pub speaks_for: Vec<String>,
}

/// What was decided.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DecidedDoc {
    /// Version of this document.
    pub schema: u32,
    /// What happened, in words.
    pub what: String,
    /// The machine as it is now; none when it is gone.
    pub machine: Option<RegisteredDoc>,
}

impl From<KeeperError> for ApiError {
    fn from(error: KeeperError) -> Self {
        Self::of_machine("identity", &error)
    }
}

/// A passphrase that cannot be one.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct NoPassphrase(#[from] PassphraseError);

impl Explain for NoPassphrase {
    fn hint(&self) -> Option<String> {
        Some(self.0.hint().to_owned())
    }

    fn exit_code(&self) -> ExitCode {
        ExitCode::Usage
    }
}

fn keeper(service: &Service) -> Result<Keeper, ApiError> {
    service.target.keeper.clone().ok_or_else(|| {
        ApiError::refused(
            "no-identity",
            "this laboratory's data port takes whoever connects: there is no identity",
        )
        .with_hint("remove [lab] plain from the configuration and restart the target")
    })
}

fn chosen(text: &str) -> Result<Passphrase, ApiError> {
    Passphrase::chosen(text)
        .map(|(passphrase, _)| passphrase)
        .map_err(|error| ApiError::of_machine("bad-passphrase", &NoPassphrase(error)))
}

/// Who the appliance is.
#[utoipa::path(get, path = "/v1/identity", responses(
    (status = 200, body = IdentityDoc), (status = 403, body = ErrorDoc), (status = 409, body = ErrorDoc)))]
pub async fn identity(State(service): Shared) -> Result<Json<IdentityDoc>, ApiError> {
    let keeper = keeper(&service)?;
    let about = blocking(move || Ok::<_, ApiError>(keeper.about())).await?;
    Ok(Json(IdentityDoc {
        schema: SCHEMA,
        appliance: about.id.to_string(),
        ca: about.ca.to_string(),
        ca_until: about.ca_until,
        registration_until: about.window.end(),
        registration_open: about.window.is_open(Timestamp::now()),
        passphrase_waits: about.passphrase_waits,
        control: service.config.control.to_string(),
        listen: service.config.listen.to_string(),
    }))
}

/// Shows the passphrase that was made at the first start, once.
#[utoipa::path(post, path = "/v1/identity/passphrase/show", responses(
    (status = 200, body = PassphraseDoc), (status = 403, body = ErrorDoc), (status = 409, body = ErrorDoc)))]
pub async fn show_passphrase(State(service): Shared) -> Result<Json<PassphraseDoc>, ApiError> {
    let keeper = keeper(&service)?;
    let passphrase = blocking(move || Ok::<_, ApiError>(keeper.take_passphrase())).await?;
    Ok(Json(PassphraseDoc {
        schema: SCHEMA,
        passphrase: passphrase.map(|passphrase| passphrase.reveal().to_string()),
    }))
}

/// Makes another passphrase, or takes one that was chosen; the old one is worth nothing from then on.
#[utoipa::path(post, path = "/v1/identity/passphrase", request_body = PassphraseRequest, responses(
    (status = 200, body = PassphraseDoc), (status = 400, body = ErrorDoc), (status = 403, body = ErrorDoc),
    (status = 409, body = ErrorDoc)))]
pub async fn rotate_passphrase(State(service): Shared, body: Body) -> Result<Json<PassphraseDoc>, ApiError> {
    let request: PassphraseRequest = read_json(body).await?;
    let keeper = keeper(&service)?;
    let chosen = request.passphrase.as_deref().map(chosen).transpose()?;
    let passphrase = blocking(move || keeper.rotate_passphrase(chosen)).await?;
    Ok(Json(PassphraseDoc {
        schema: SCHEMA,
        passphrase: Some(passphrase.reveal().to_string()),
    }))
}

/// Opens registration for some time, or closes it.
#[utoipa::path(post, path = "/v1/identity/registration", request_body = RegistrationRequest, responses(
    (status = 200, body = IdentityDoc), (status = 400, body = ErrorDoc), (status = 403, body = ErrorDoc),
    (status = 409, body = ErrorDoc)))]
pub async fn registration(State(service): Shared, body: Body) -> Result<Json<IdentityDoc>, ApiError> {
    let request: RegistrationRequest = read_json(body).await?;
    let keeper = keeper(&service)?;
    if request.seconds > WINDOW_SECONDS_MAX {
        return Err(ApiError::bad_request(format!(
            "registration is opened for {WINDOW_SECONDS_MAX} s at most, not {}",
            request.seconds
        )));
    }
    let seconds = i64::try_from(request.seconds).unwrap_or(0);
    let time = (seconds > 0).then(|| SignedDuration::from_secs(seconds));
    blocking(move || keeper.set_window(time, Timestamp::now())).await?;
    identity(State(service)).await
}

/// An encrypted copy of identity and registered machines.
#[utoipa::path(post, path = "/v1/identity/export", request_body = BackupRequest, responses(
    (status = 200, body = BackupDoc), (status = 400, body = ErrorDoc), (status = 403, body = ErrorDoc),
    (status = 409, body = ErrorDoc)))]
pub async fn export(State(service): Shared, body: Body) -> Result<Json<BackupDoc>, ApiError> {
    let request: BackupRequest = read_json(body).await?;
    let keeper = keeper(&service)?;
    let passphrase = chosen(&request.passphrase)?;
    let bytes = blocking(move || keeper.export(&passphrase)).await?;
    let mut backup = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        let _ = write!(backup, "{byte:02x}");
    }
    Ok(Json(BackupDoc {
        schema: SCHEMA,
        backup,
    }))
}

/// The machines that registered.
#[utoipa::path(get, path = "/v1/registry", responses(
    (status = 200, body = RegistryDoc), (status = 403, body = ErrorDoc), (status = 409, body = ErrorDoc)))]
pub async fn registry(State(service): Shared) -> Result<Json<RegistryDoc>, ApiError> {
    let keeper = keeper(&service)?;
    let machines = blocking(move || {
        let speakers = keeper.state().speakers()?;
        let machines = keeper.machines();
        Ok::<_, KeeperError>(
            machines
                .iter()
                .map(|machine| document(machine, &speakers))
                .collect(),
        )
    })
    .await?;
    Ok(Json(RegistryDoc {
        schema: SCHEMA,
        machines,
    }))
}

/// Decides about a machine.
#[utoipa::path(post, path = "/v1/registry/{id}", request_body = DecideRequest, params(("id" = String, Path)), responses(
    (status = 200, body = DecidedDoc), (status = 400, body = ErrorDoc), (status = 403, body = ErrorDoc),
    (status = 409, body = ErrorDoc)))]
pub async fn decide(
    State(service): Shared,
    Path(id): Path<String>,
    body: Body,
) -> Result<Json<DecidedDoc>, ApiError> {
    let request: DecideRequest = read_json(body).await?;
    let keeper = keeper(&service)?;
    let id: MachineId = id
        .parse()
        .map_err(|error| ApiError::bad_request(format!("this cannot be the id of a machine: {error}")))?;
    let key = || {
        let text = request
            .key
            .as_deref()
            .ok_or_else(|| ApiError::bad_request("approving and declining name a key"))?;
        text.parse::<Fingerprint>().map_err(|error| {
            ApiError::bad_request(format!("this cannot be the fingerprint of a key: {error}"))
        })
    };
    let act = match request.verb {
        Verb::Approve => Act::Approve(key()?),
        Verb::Decline => Act::Decline(key()?),
        Verb::Revoke => Act::Revoke,
        Verb::Remove => Act::Remove,
    };
    let names = request.speaks_for;
    if names.len() > NAMES_MAX {
        return Err(ApiError::bad_request(format!(
            "at most {NAMES_MAX} names at once"
        )));
    }
    for name in &names {
        PairName::new(name, "disk").map_err(|error| {
            let name: String = name.chars().take(40).flat_map(char::escape_default).collect();
            ApiError::bad_request(format!(
                "\"{name}\" cannot be the name of a protected machine: {error}"
            ))
        })?;
    }
    let decided = blocking(move || {
        let names = match (act, names.is_empty(), keeper.machine(id)) {
            // Its own name, once: who was approved before keeps what he has.
            (Act::Approve(_), true, Some(machine)) if machine.approvals == 0 => {
                vec![machine.name.to_string()]
            }
            (Act::Approve(_), ..) => names,
            _ => Vec::new(),
        };
        let what = keeper.act(id, act, &names, Timestamp::now())?;
        let speakers = keeper.state().speakers()?;
        Ok::<_, KeeperError>(DecidedDoc {
            schema: SCHEMA,
            what: what.to_owned(),
            machine: keeper.machine(id).map(|machine| document(&machine, &speakers)),
        })
    })
    .await?;
    Ok(Json(decided))
}

fn document(machine: &Machine, speakers: &[(String, MachineId)]) -> RegisteredDoc {
    RegisteredDoc {
        id: machine.id.to_string(),
        name: machine.name.to_string(),
        role: machine.role.word().to_owned(),
        state: machine.state.word().to_owned(),
        key: machine.key.to_string(),
        waiting_key: machine.candidate.map(|key| key.to_string()),
        speaks_for: speakers
            .iter()
            .filter(|(_, id)| *id == machine.id)
            .map(|(name, _)| name.clone())
            .collect(),
        registered: machine.registered,
        changed: machine.changed,
        certificate_until: machine.not_after,
    }
}
