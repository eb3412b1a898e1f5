//! Writes the files in `tests/fixtures` anew: only for a new version of their formats, beside those of the old ones.
//!
//!     cargo run -p mt-identity --example make_fixtures -- FOLDER

use std::error::Error;
use std::path::PathBuf;

use jiff::Timestamp;
use mt_identity::ca::Request;
use mt_identity::member::{Member, Standing};
use mt_identity::registry::Registry;
use mt_identity::store::Identity;
use mt_identity::{Fingerprint, Leaf, MachineId, MachineName, Passphrase, Role, backup};

/// What the files open with. Known to everyone who reads this: the files are for tests.
const PASSPHRASE: &str = "0123456789ABCDEFGHJKMNPQRS";

fn main() -> Result<(), Box<dyn Error>> {
    let folder = PathBuf::from(std::env::args().nth(1).ok_or("name the folder to write to")?);
    let now: Timestamp = "2026-03-02T10:00:00Z".parse()?;
    let passphrase = Passphrase::parse(PASSPHRASE)?;
    let (mut identity, _) = Identity::create(now)?;
    identity.secrets.rotate(&passphrase)?;
    let mut registry = Registry::default();
    let (id, key, name) = (
        MachineId([1; 16]),
        Fingerprint([2; 32]),
        MachineName::new("db01")?,
    );
    registry.commit(registry.register(id, &name, Role::Source, key, now, now)?);
    registry.commit(registry.approve(id, key, now)?);
    registry.commit(registry.register(id, &name, Role::Source, Fingerprint([3; 32]), now, now)?);
    std::fs::write(
        folder.join("identity-v1.bin"),
        identity.to_bytes(registry.machines()),
    )?;
    std::fs::write(
        folder.join("backup-v1.bin"),
        backup::seal(&identity, registry.machines(), &passphrase)?,
    )?;
    let mut member = Member::create()?;
    let request = Request::check(&member.key.request()?)?;
    let signed = identity.ca.sign(&request, member.id, Role::Source, now)?;
    member.standing = Some(Standing {
        cas: identity.ca_certificates(),
        leaf: Leaf::read(&signed.certificate)?,
        certificate: signed.certificate,
    });
    std::fs::write(folder.join("member-v1.bin"), member.to_bytes())?;
    println!("CA fingerprint {}", identity.ca.fingerprint());
    Ok(())
}
