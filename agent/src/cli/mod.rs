//! The command line: one file per noun, and the table of all verbs here.

pub mod address;
pub mod audit;
pub mod broker;
pub mod config;
pub mod disks;
pub mod events;
pub mod failover;
pub mod groups;
pub mod identity;
pub mod inspect;
pub mod jobs;
pub mod offline;
pub mod output;
pub mod ownership;
pub mod pair;
pub mod points;
pub mod register;
pub mod registered;
pub mod retention;
pub mod retention_init;
pub mod screen;
pub mod source;
pub mod status;
pub mod store;
pub mod target;

use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::error::{CliError, ExitCode};

/// Threads of the runtime: protocol work only, disks have their own.
const RUNTIME_THREADS: usize = 2;

/// The agent of the master target: brings machines home from a cloud to VMware ESXi.
#[derive(Debug, Parser)]
#[command(
    name = "mt-agent",
    version,
    max_term_width = 80,
    disable_help_subcommand = true
)]
pub struct Cli {
    /// Log what is needed to find a fault
    #[arg(long, short, global = true)]
    pub verbose: bool,

    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run the target: receive disks and write them to the paired target disks
    Target(target::TargetArgs),
    /// Run the broker: open disks for a target that is not root
    Broker(broker::BrokerArgs),
    /// Disks of this machine
    #[command(subcommand)]
    Disks(DisksVerb),
    /// What is happening, and what is wrong
    Status(status::StatusArgs),
    /// Pairs of protected disks and target disks
    #[command(subcommand)]
    Pair(PairVerb),
    /// Seedings and verifications, running and past
    #[command(subcommand)]
    Jobs(JobsVerb),
    /// Tell what happens, as it happens
    Events(output::ServiceArgs),
    /// The protected machine's side
    #[command(subcommand)]
    Source(SourceVerb),
    /// Compare a protected disk with its target disk; nothing is written
    Verify(source::VerifyArgs),
    /// The volume that keeps recovery points
    #[command(subcommand)]
    Retention(RetentionVerb),
    /// Recovery points of a machine
    #[command(subcommand)]
    Points(PointsVerb),
    /// Bring the disks of a machine to a recovery point
    Roll(failover::ToArgs),
    /// Make a machine's disks ready to be taken over, at a recovery point
    Failover(failover::ToArgs),
    /// Make a failover final
    Commit(failover::CommitArgs),
    /// Take a failover back and go on replicating
    Cancel(failover::BackArgs),
    /// Put disks back as they were before a failover that was committed
    Undo(failover::BackArgs),
    /// Replicate to a machine's disks anew after a failover, without its points
    Reprotect(failover::ReprotectArgs),
    /// Show or change which recovery points of a machine are kept
    Policy(retention::PolicyArgs),
    /// Groups of machines that share recovery points
    Groups(output::ServiceArgs),
    /// Who this appliance is
    #[command(subcommand)]
    Identity(IdentityVerb),
    /// The passphrase that machines register with
    #[command(subcommand)]
    Passphrase(PassphraseVerb),
    /// The time in which machines may register
    #[command(subcommand)]
    Registration(RegistrationVerb),
    /// Machines that have registered
    #[command(subcommand)]
    Machines(MachinesVerb),
    /// Changes that were asked for: by whom, when, and what came of them
    Audit(audit::AuditArgs),
    /// Register this machine with an appliance
    Register(register::RegisterArgs),
    /// Renew this machine's certificate now; sending does it when it is due
    Renew(register::RenewArgs),
    /// Configuration files
    #[command(subcommand)]
    Config(ConfigVerb),
    /// Print the OpenAPI document of the local socket
    #[command(hide = true)]
    Openapi,
}

#[derive(Debug, Subcommand)]
enum IdentityVerb {
    /// Show id, CA fingerprint and, once, the passphrase made at the first start
    Show(output::ServiceArgs),
    /// Write an encrypted backup of identity and registered machines
    Export(identity::ExportArgs),
    /// Make this appliance the one that a backup was written of
    Import(identity::ImportArgs),
}

#[derive(Debug, Subcommand)]
enum PassphraseVerb {
    /// Make another; the old one is worth nothing from then on
    Rotate(identity::RotateArgs),
}

#[derive(Debug, Subcommand)]
enum RegistrationVerb {
    /// Open registration
    Open(identity::OpenArgs),
    /// Close registration
    Close(output::ServiceArgs),
}

#[derive(Debug, Subcommand)]
enum MachinesVerb {
    /// List them, with their keys
    List(output::ServiceArgs),
    /// Let a machine connect and send
    Approve(registered::ApproveArgs),
    /// Do not let another key take the place of the one it has
    Decline(registered::KeyArgs),
    /// End its sessions and never let it connect again
    Revoke(registered::MachineArgs),
    /// Forget a machine that waits or was revoked
    Remove(registered::MachineArgs),
}

#[derive(Debug, Subcommand)]
enum PairVerb {
    /// Pair a protected disk with a target disk
    Add(pair::AddArgs),
    /// List pairs, where they are, and what speaks against their disks
    List(output::ServiceArgs),
    /// Remove a pair; its disk is not touched
    Remove(pair::RemoveArgs),
}

#[derive(Debug, Subcommand)]
enum JobsVerb {
    /// List jobs, newest first
    List(output::ServiceArgs),
    /// Show one job
    Show(jobs::ShowArgs),
}

#[derive(Debug, Subcommand)]
enum DisksVerb {
    /// List disks: SCSI ID, what is on them, who uses them, which may be targets
    List(disks::ListArgs),
}

#[derive(Debug, Subcommand)]
enum RetentionVerb {
    /// Set the configured folder up, or format a disk for it; one that holds
    /// something is refused
    Init(retention_init::InitArgs),
    /// Show the volume, and the store of each machine
    Status(output::ServiceArgs),
    /// Read every byte of the stores and say what is damaged; nothing is written
    Check(store::CheckArgs),
    /// Show what lies in the store of a machine; nothing is written
    Inspect(inspect::InspectArgs),
    /// Make the catalogue of a store anew from its segments
    Rebuild(store::RebuildArgs),
    /// Drop all points of a machine and begin anew
    Reset(retention::ResetArgs),
}

#[derive(Debug, Subcommand)]
enum PointsVerb {
    /// List points, oldest first
    List(points::ListArgs),
    /// Keep a point whatever the policy says
    Pin(points::PinArgs),
    /// Delete a point
    Delete(points::PointArgs),
    /// Serve a point over NBD, to look at it or to boot it
    Export(points::ExportArgs),
    /// End an export that was left served
    Unexport(points::UnexportArgs),
}

#[derive(Debug, Subcommand)]
enum SourceVerb {
    /// Send an image, block device or snapshot; only what differs travels
    Send(Box<source::SendArgs>),
}

#[derive(Debug, Subcommand)]
enum ConfigVerb {
    /// Check a file and say what is wrong with it
    Check {
        /// The file
        #[arg(value_name = "FILE")]
        path: PathBuf,
    },
}

impl Cli {
    /// Whether the answer is for a program, so that an error has to be one too.
    pub fn wants_json(&self) -> bool {
        match &self.verb {
            Verb::Disks(DisksVerb::List(args)) => args.json,
            Verb::Source(SourceVerb::Send(args)) => args.common.json,
            Verb::Verify(args) => args.common.json,
            Verb::Status(args) => args.json,
            Verb::Pair(PairVerb::Add(args)) => args.service.json,
            Verb::Pair(PairVerb::Remove(args)) => args.service.json,
            Verb::Jobs(JobsVerb::Show(args)) => args.service.json,
            Verb::Pair(PairVerb::List(args)) | Verb::Jobs(JobsVerb::List(args)) | Verb::Events(args) => {
                args.json
            }
            Verb::Retention(RetentionVerb::Status(args)) | Verb::Groups(args) => args.json,
            Verb::Retention(RetentionVerb::Init(args)) => args.service.json,
            Verb::Retention(RetentionVerb::Check(args)) => args.volume.service.json,
            Verb::Retention(RetentionVerb::Inspect(args)) => args.volume.service.json,
            Verb::Retention(RetentionVerb::Rebuild(args)) => args.volume.service.json,
            Verb::Retention(RetentionVerb::Reset(args)) => args.service.json,
            Verb::Points(PointsVerb::List(args)) => args.service.json,
            Verb::Points(PointsVerb::Pin(args)) => args.point.service.json,
            Verb::Points(PointsVerb::Delete(args)) => args.service.json,
            Verb::Points(PointsVerb::Export(args)) => args.point.service.json,
            Verb::Points(PointsVerb::Unexport(args)) => args.service.json,
            Verb::Roll(args) | Verb::Failover(args) => args.service.json,
            Verb::Commit(args) => args.service.json,
            Verb::Cancel(args) | Verb::Undo(args) => args.service.json,
            Verb::Reprotect(args) => args.service.json,
            Verb::Policy(args) => args.service.json,
            Verb::Identity(IdentityVerb::Show(args)) => args.json,
            Verb::Audit(args) => args.service.json,
            Verb::Identity(IdentityVerb::Export(args)) => args.service.json,
            Verb::Identity(IdentityVerb::Import(args)) => args.json,
            Verb::Passphrase(PassphraseVerb::Rotate(args)) => args.service.json,
            Verb::Registration(RegistrationVerb::Open(args)) => args.service.json,
            Verb::Registration(RegistrationVerb::Close(args)) => args.json,
            Verb::Machines(MachinesVerb::List(args)) => args.json,
            Verb::Machines(MachinesVerb::Approve(args)) => args.key.machine.service.json,
            Verb::Machines(MachinesVerb::Decline(args)) => args.machine.service.json,
            Verb::Machines(MachinesVerb::Revoke(args) | MachinesVerb::Remove(args)) => args.service.json,
            Verb::Register(args) => args.json,
            Verb::Renew(args) => args.json,
            Verb::Target(_) | Verb::Broker(_) | Verb::Config(_) | Verb::Openapi => false,
        }
    }
}

/// Carries out what was asked for.
///
/// # Errors
/// Whatever keeps it from being done.
pub fn run(cli: Cli) -> Result<ExitCode, CliError> {
    match cli.verb {
        Verb::Disks(DisksVerb::List(args)) => {
            let scope = config::scope(args.config.as_deref())?;
            block_on(async {
                let paired = disks::paired().await;
                disks::list(&args, &scope, &paired).map(|()| ExitCode::Done)
            })
        }
        Verb::Config(ConfigVerb::Check { path }) => config::check(&path),
        Verb::Openapi => output::print(&crate::status::routes::openapi()).map(|()| ExitCode::Done),
        Verb::Status(args) => block_on(status::run(&args)),
        Verb::Pair(PairVerb::Add(args)) => block_on(pair::add(&args)),
        Verb::Pair(PairVerb::List(args)) => block_on(pair::list(&args)),
        Verb::Pair(PairVerb::Remove(args)) => block_on(pair::remove(&args)),
        Verb::Jobs(JobsVerb::List(args)) => block_on(jobs::list(&args)),
        Verb::Jobs(JobsVerb::Show(args)) => block_on(jobs::show(&args)),
        Verb::Events(args) => block_on(events::run(&args)),
        Verb::Retention(RetentionVerb::Init(args)) => block_on(retention_init::init(&args)),
        Verb::Retention(RetentionVerb::Status(args)) => block_on(retention::status(&args)),
        Verb::Retention(RetentionVerb::Check(args)) => block_on(store::check(&args)),
        Verb::Retention(RetentionVerb::Inspect(args)) => block_on(inspect::inspect(&args)),
        Verb::Retention(RetentionVerb::Rebuild(args)) => block_on(store::rebuild(&args)),
        Verb::Retention(RetentionVerb::Reset(args)) => block_on(retention::reset(&args)),
        Verb::Points(PointsVerb::List(args)) => block_on(points::list(&args)),
        Verb::Points(PointsVerb::Pin(args)) => block_on(points::pin(&args)),
        Verb::Points(PointsVerb::Delete(args)) => block_on(points::delete(&args)),
        Verb::Points(PointsVerb::Export(args)) => block_on(points::export(&args)),
        Verb::Points(PointsVerb::Unexport(args)) => block_on(points::unexport(&args)),
        Verb::Roll(args) => block_on(failover::roll(&args)),
        Verb::Failover(args) => block_on(failover::failover(&args)),
        Verb::Commit(args) => block_on(failover::commit(&args)),
        Verb::Cancel(args) => block_on(failover::cancel(&args)),
        Verb::Undo(args) => block_on(failover::undo(&args)),
        Verb::Reprotect(args) => block_on(failover::reprotect(&args)),
        Verb::Policy(args) => block_on(retention::policy(&args)),
        Verb::Groups(args) => block_on(retention::groups(&args)),
        Verb::Identity(IdentityVerb::Show(args)) => block_on(identity::show(&args)),
        Verb::Identity(IdentityVerb::Export(args)) => block_on(identity::export(&args)),
        Verb::Identity(IdentityVerb::Import(args)) => identity::import(&args),
        Verb::Passphrase(PassphraseVerb::Rotate(args)) => block_on(identity::rotate(&args)),
        Verb::Registration(RegistrationVerb::Open(args)) => block_on(identity::open(&args)),
        Verb::Registration(RegistrationVerb::Close(args)) => block_on(identity::close(&args)),
        Verb::Machines(MachinesVerb::List(args)) => block_on(registered::list(&args)),
        Verb::Machines(MachinesVerb::Approve(args)) => block_on(registered::approve(&args)),
        Verb::Machines(MachinesVerb::Decline(args)) => block_on(registered::decline(&args)),
        Verb::Machines(MachinesVerb::Revoke(args)) => block_on(registered::revoke(&args)),
        Verb::Machines(MachinesVerb::Remove(args)) => block_on(registered::remove(&args)),
        Verb::Audit(args) => block_on(audit::audit(&args)),
        Verb::Register(args) => block_on(register::register(&args)),
        Verb::Renew(args) => block_on(register::renew(&args)),
        Verb::Target(args) => block_on(target::run(&args)),
        Verb::Broker(args) => block_on(broker::run(&args)),
        Verb::Source(SourceVerb::Send(args)) => block_on(source::send(&args)),
        Verb::Verify(args) => block_on(source::verify(&args)),
    }
}

fn block_on(work: impl Future<Output = Result<ExitCode, CliError>>) -> Result<ExitCode, CliError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(RUNTIME_THREADS)
        .enable_all()
        .build();
    let runtime = runtime.map_err(|error| {
        CliError::new(
            ExitCode::Unexpected,
            format!("cannot start the asynchronous runtime: {error}"),
        )
    })?;
    let outcome = runtime.block_on(work);
    // A thread that hangs on a disk must not keep the process from ending.
    runtime.shutdown_background();
    outcome
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::Cli;

    /// Every help text, of every command, fits a terminal of 80 columns.
    #[test]
    fn help_is_at_most_80_columns_wide() {
        let mut commands = vec![Cli::command()];
        while let Some(mut command) = commands.pop() {
            let help = command.render_long_help().to_string();
            for line in help.lines() {
                assert!(line.chars().count() <= 80, "{}: {line:?}", command.get_name());
            }
            commands.extend(command.get_subcommands().cloned());
        }
        Cli::command().debug_assert();
    }
}
