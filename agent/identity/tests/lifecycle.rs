//! An appliance and a machine from first boot to restored backup, over real TLS in memory, with the public interface
//! only: what the edges of the agent do, without their sockets and files.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::io::{Read, Write};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use mt_identity::control::{Appliance, Control, Now, Step};
use mt_identity::limits::{Admission, RateLimiter};
use mt_identity::member::Member;
use mt_identity::registration::{Client, ClientParams, ClientStep, Decoder, Fault};
use mt_identity::registry::{Pair, Registry, authorise};
use mt_identity::store::Identity;
use mt_identity::tls::{self, Purpose};
use mt_identity::{Code, Fingerprint, LeafKey, MachineId, MachineName, Passphrase, Role, backup, renewal};
use rustls::time_provider::TimeProvider;
use rustls::{ClientConnection, ConnectionCommon, ServerConnection, SideData};
use rustls_pki_types::UnixTime;

fn start() -> Timestamp {
    "2026-03-02T10:00:00Z".parse().unwrap()
}

#[derive(Debug)]
struct Clock(Timestamp);

impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        let seconds = u64::try_from(self.0.as_second()).ok()?;
        Some(UnixTime::since_unix_epoch(Duration::from_secs(seconds)))
    }
}

struct Lab {
    identity: Identity,
    registry: Registry,
    limiter: RateLimiter,
    admission: Admission,
    now: Timestamp,
}

fn carry<A: SideData, B: SideData>(from: &mut ConnectionCommon<A>, to: &mut ConnectionCommon<B>) -> usize {
    let mut bytes = Vec::new();
    while from.wants_write() {
        from.write_tls(&mut bytes).unwrap();
    }
    let mut rest = bytes.as_slice();
    while !rest.is_empty() {
        to.read_tls(&mut rest).unwrap();
        to.process_new_packets().unwrap();
    }
    bytes.len()
}

fn pump(client: &mut ClientConnection, server: &mut ServerConnection) {
    while carry(client, server) + carry(server, client) > 0 {}
}

fn say<D: SideData>(connection: &mut ConnectionCommon<D>, bytes: &[u8]) {
    connection.writer().write_all(bytes).unwrap();
}

fn heard<D: SideData>(connection: &mut ConnectionCommon<D>) -> Vec<u8> {
    let mut bytes = vec![0; 16 * 1024];
    let count = connection.reader().read(&mut bytes).unwrap_or(0);
    bytes.truncate(count);
    bytes
}

impl Lab {
    fn clock(&self) -> Arc<dyn TimeProvider> {
        Arc::new(Clock(self.now))
    }

    /// What the control port does with a connection until it ends; the machine's side is a closure that answers bytes.
    fn control_port(
        &mut self,
        mut client: ClientConnection,
        first: impl FnOnce(&ClientConnection) -> Vec<u8>,
        mut answer: impl FnMut(&[u8]) -> Option<Vec<u8>>,
    ) {
        let address: IpAddr = "192.0.2.7".parse().unwrap();
        let slot = self.admission.admit(address, Duration::ZERO).unwrap().slot;
        let credentials = self.identity.credentials().unwrap();
        let config =
            tls::control_server(&self.identity.trust().unwrap(), &credentials, self.clock()).unwrap();
        let mut server = ServerConnection::new(config).unwrap();
        pump(&mut client, &mut server);
        let peer = tls::control_peer(&server, &credentials).unwrap();
        let mut control = Control::new(peer, address);
        let bytes = first(&client);
        say(&mut client, &bytes);
        loop {
            pump(&mut client, &mut server);
            let bytes = heard(&mut server);
            self.admission.received(slot, bytes.len()).unwrap();
            let mut appliance = Appliance {
                identity: &self.identity,
                registry: &self.registry,
                limiter: &mut self.limiter,
            };
            let now = Now {
                wall: self.now,
                monotonic: Duration::from_secs(3600),
            };
            let (bytes, over) = match control.receive(&bytes, &mut appliance, now) {
                Step::More => (Vec::new(), false),
                Step::Send(bytes) => (bytes, false),
                Step::Grant { change, bytes } => {
                    self.registry.commit(*change);
                    (bytes, true)
                }
                Step::Refuse { bytes, .. } => (bytes.unwrap_or_default(), true),
            };
            say(&mut server, &bytes);
            pump(&mut client, &mut server);
            if let Some(bytes) = answer(&heard(&mut client)) {
                say(&mut client, &bytes);
            }
            if over {
                break;
            }
        }
        self.admission.release(slot);
    }

    fn register(&mut self, passphrase: &Passphrase, ca: Option<Fingerprint>) -> Result<Member, Fault> {
        // Stored before the first try, so that a machine whose answer is lost asks again as the same one.
        let mut member = Member::from_bytes(&Member::create().unwrap().to_bytes()).unwrap();
        let client = ClientConnection::new(
            tls::registration_client(ca, self.clock()).unwrap(),
            tls::server_name(),
        )
        .unwrap();
        let mut machine = None;
        let mut outcome = None;
        let machine = &mut machine;
        let params = |connection: &ClientConnection| ClientParams {
            passphrase: passphrase.clone(),
            channel: tls::client_channel(connection).unwrap(),
            role: Role::Source,
            id: member.id,
            name: MachineName::new("db01").unwrap(),
            key: &member.key,
            ca,
        };
        let cell = std::cell::RefCell::new(machine);
        self.control_port(
            client,
            |connection| {
                let (client, bytes) = Client::start(params(connection)).unwrap();
                **cell.borrow_mut() = Some(client);
                bytes
            },
            |bytes| match cell.borrow_mut().as_mut().unwrap().receive(bytes) {
                Ok(ClientStep::Send(bytes)) => Some(bytes),
                Ok(ClientStep::More) => None,
                Ok(ClientStep::Done(registered)) => {
                    outcome = Some(Ok(*registered));
                    None
                }
                Err(fault) => {
                    let bytes = fault.answer();
                    outcome.get_or_insert(Err(fault));
                    bytes
                }
            },
        );
        let registered = outcome.expect("a registration ends")?;
        assert_eq!(Some(registered.ca), ca);
        member.standing = Some(registered.into());
        Ok(Member::from_bytes(&member.to_bytes()).unwrap())
    }

    /// Connects to the data port and opens a stream, as the appliance decides.
    fn open_stream(&self, machine: &Member, pair: &Pair<'_>, generation: u64) -> Result<(), Code> {
        let client = machine.client(Role::Server, Purpose::Data, self.clock()).unwrap();
        let mut client = ClientConnection::new(client, tls::server_name()).unwrap();
        let own = self.identity.credentials().unwrap();
        let server = tls::data_server(&self.identity.trust().unwrap(), &own, self.clock()).unwrap();
        let mut server = ServerConnection::new(server).unwrap();
        pump(&mut client, &mut server);
        let peer = tls::peer_of(&server).unwrap();
        let admitted = self
            .registry
            .admit(&peer, self.now)
            .map_err(|denial| denial.code())?;
        assert_eq!(self.registry.must_end(admitted.session()), None);
        authorise(admitted, Some(pair), generation).map_err(|denial| denial.code())
    }

    fn renew(&mut self, machine: &Member) -> Member {
        let config = machine
            .client(Role::Server, Purpose::Renewal, self.clock())
            .unwrap();
        let client = ClientConnection::new(config, tls::server_name()).unwrap();
        let key = LeafKey::generate().unwrap();
        let old = machine.standing.as_ref().unwrap().leaf.clone();
        let mut decoder = Decoder::default();
        let mut renewed = None;
        self.control_port(
            client,
            |_| renewal::request(&key).unwrap(),
            |bytes| {
                renewed = renewal::receive_answer(&mut decoder, bytes, &old, &key).unwrap();
                None
            },
        );
        machine.renewed(key, renewed.expect("a renewal is answered"))
    }
}

#[test]
fn from_first_boot_to_a_restored_backup() {
    let (identity, passphrase) = Identity::create(start()).unwrap();
    let fingerprint = identity.ca.fingerprint();
    let mut lab = Lab {
        identity,
        registry: Registry::default(),
        limiter: RateLimiter::default(),
        admission: Admission::default(),
        now: start(),
    };

    // 1. A wrong passphrase, then the right one as someone types it from the console.
    let refused = lab.register(&Passphrase::generate(), None).err().unwrap();
    assert_eq!(refused.code(), Some(Code::NotAuthenticated));
    lab.limiter = RateLimiter::default();
    let typed = Passphrase::parse(&passphrase.reveal().to_lowercase()).unwrap();
    let machine = lab.register(&typed, Some(fingerprint)).unwrap();

    // 2. Registered is not approved, and approved is not authorised for the pair of another.
    let own = Pair {
        source: machine.id,
        relays: &[],
        generation: 1,
    };
    let foreign = Pair {
        source: MachineId::random(),
        relays: &[],
        generation: 1,
    };
    assert_eq!(lab.open_stream(&machine, &own, 1), Err(Code::ApprovalPending));
    let change = lab
        .registry
        .approve(machine.id, machine.key.fingerprint(), lab.now)
        .unwrap();
    lab.registry.commit(change);
    assert_eq!(lab.open_stream(&machine, &own, 1), Ok(()));
    assert_eq!(lab.open_stream(&machine, &own, 0), Err(Code::Fenced));
    assert_eq!(lab.open_stream(&machine, &foreign, 1), Err(Code::PairUnknown));

    // 3. The backup is taken, months pass, the appliance is lost and restored: the machine's certificate has run out,
    //    and the machine comes home all the same.
    let chosen = Passphrase::generate();
    let saved = backup::seal(&lab.identity, lab.registry.machines(), &chosen).unwrap();
    drop(lab);
    let now = start() + SignedDuration::from_hours(24 * 120);
    let (mut identity, registry) = backup::open(&saved, &chosen).unwrap();
    assert!(identity.renew_own(now).unwrap());
    let mut lab = Lab {
        identity,
        registry,
        limiter: RateLimiter::default(),
        admission: Admission::default(),
        now,
    };
    assert_eq!(lab.open_stream(&machine, &own, 1), Err(Code::CertificateExpired));
    let renewed = lab.renew(&machine);
    assert_eq!(lab.open_stream(&renewed, &own, 1), Ok(()));
    let change = lab.registry.used(renewed.key.fingerprint(), lab.now).unwrap();
    lab.registry.commit(change);

    // 4. Revoked, whatever it holds.
    let session = lab.registry.machine(machine.id).unwrap().session();
    let change = lab.registry.revoke(machine.id, lab.now).unwrap();
    lab.registry.commit(change);
    assert_eq!(lab.registry.must_end(session).unwrap().code(), Code::Revoked);
    assert_eq!(lab.open_stream(&renewed, &own, 1), Err(Code::Revoked));
    assert_eq!(lab.admission.count(), 0);
}
