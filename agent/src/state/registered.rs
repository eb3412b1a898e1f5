//! What is stored of machines that registered: the rows of the registry, and for which protected machines each speaks.

use mt_identity::registry::{Change, Machine, State as Standing};
use mt_identity::{Fingerprint, MachineId, MachineName, Role};
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::{State, StateError, conversion};

impl State {
    /// All machines that registered, in no order.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn registered(&self) -> Result<Vec<Machine>, StateError> {
        self.with(|connection| {
            let mut statement = connection.prepare_cached("SELECT * FROM registered")?;
            statement.query_map([], machine_of)?.collect()
        })
    }

    /// Stores what an act of the registry does. With `speaks_for` the machine speaks for these protected machines from
    /// now on, and the pair of a name and another machine that it belonged to before is a refusal: `Some` of the first.
    ///
    /// # Errors
    /// When the file cannot be written; nothing is changed then.
    pub fn store_registered(
        &self,
        change: &Change,
        speaks_for: &[String],
    ) -> Result<Option<(String, MachineId)>, StateError> {
        self.with(|connection| {
            let transaction = connection.unchecked_transaction()?;
            for name in speaks_for {
                if let Some(holder) = speaker(&transaction, name)?
                    && holder != change.id
                {
                    return Ok(Some((name.clone(), holder)));
                }
            }
            put(&transaction, change)?;
            for name in speaks_for {
                transaction
                    .prepare_cached("INSERT OR IGNORE INTO speaks_for (machine, registered) VALUES (?1, ?2)")?
                    .execute(params![name, change.id.0])?;
            }
            transaction.commit()?;
            Ok(None)
        })
    }

    /// The registered machine that speaks for a protected machine.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn speaker_for(&self, machine: &str) -> Result<Option<MachineId>, StateError> {
        self.with(|connection| speaker(connection, machine))
    }

    /// The protected machines that each registered machine speaks for.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn speakers(&self) -> Result<Vec<(String, MachineId)>, StateError> {
        self.with(|connection| {
            let mut statement =
                connection.prepare_cached("SELECT machine, registered FROM speaks_for ORDER BY machine")?;
            statement
                .query_map([], |row| Ok((row.get(0)?, MachineId(row.get(1)?))))?
                .collect()
        })
    }

    /// Takes the place of all machines: for an identity that is restored from a backup. Each active machine speaks for
    /// the protected machine of its own name, where no other does.
    ///
    /// # Errors
    /// When the file cannot be written; nothing is changed then.
    pub fn replace_registered<'a>(
        &self,
        machines: impl IntoIterator<Item = &'a Machine>,
    ) -> Result<(), StateError> {
        self.with(|connection| {
            let transaction = connection.unchecked_transaction()?;
            transaction.execute("DELETE FROM registered", [])?;
            for machine in machines {
                put_machine(&transaction, machine)?;
                if machine.state == Standing::Active {
                    transaction.execute(
                        "INSERT OR IGNORE INTO speaks_for (machine, registered) VALUES (?1, ?2)",
                        params![machine.name.as_str(), machine.id.0],
                    )?;
                }
            }
            transaction.commit()
        })
    }
}

fn speaker(connection: &Connection, machine: &str) -> rusqlite::Result<Option<MachineId>> {
    connection
        .prepare_cached("SELECT registered FROM speaks_for WHERE machine = ?1")?
        .query_row([machine], |row| row.get(0).map(MachineId))
        .optional()
}

fn put(connection: &Connection, change: &Change) -> rusqlite::Result<()> {
    match &change.after {
        Some(machine) => put_machine(connection, machine),
        None => connection
            .prepare_cached("DELETE FROM registered WHERE id = ?1")?
            .execute([change.id.0])
            .map(|_| ()),
    }
}

fn put_machine(connection: &Connection, machine: &Machine) -> rusqlite::Result<()> {
    connection
        .prepare_cached(
            "INSERT INTO registered (id, name, role, state, key, next_key, waiting_key, registered, changed, not_after, approvals)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)
             ON CONFLICT (id) DO UPDATE SET name = ?2, role = ?3, state = ?4, key = ?5, next_key = ?6, waiting_key = ?7,
                 registered = ?8, changed = ?9, not_after = ?10, approvals = ?11",
        )?
        .execute(params![
            machine.id.0,
            machine.name.as_str(),
            machine.role.word(),
            machine.state.word(),
            machine.key.0,
            machine.next.map(|key| key.0),
            machine.candidate.map(|key| key.0),
            machine.registered.to_string(),
            machine.changed.to_string(),
            machine.not_after.to_string(),
            machine.approvals,
        ])
        .map(|_| ())
}

fn machine_of(row: &Row<'_>) -> rusqlite::Result<Machine> {
    let name: String = row.get("name")?;
    let role: String = row.get("role")?;
    let state: String = row.get("state")?;
    let time = |column: usize, name: &str| {
        let text: String = row.get(name)?;
        text.parse().map_err(|error| conversion(column, error))
    };
    let unknown = |column, word: &str| {
        let text = format!("\"{}\" is not a word for it", word.escape_default());
        conversion(column, std::io::Error::other(text))
    };
    Ok(Machine {
        id: MachineId(row.get("id")?),
        name: MachineName::new(&name).map_err(|error| conversion(1, error))?,
        role: Role::from_word(&role).ok_or_else(|| unknown(2, &role))?,
        state: Standing::ALL
            .into_iter()
            .find(|known| known.word() == state)
            .ok_or_else(|| unknown(3, &state))?,
        key: Fingerprint(row.get("key")?),
        next: row.get::<_, Option<[u8; 32]>>("next_key")?.map(Fingerprint),
        candidate: row.get::<_, Option<[u8; 32]>>("waiting_key")?.map(Fingerprint),
        registered: time(7, "registered")?,
        changed: time(8, "changed")?,
        not_after: time(9, "not_after")?,
        approvals: row.get("approvals")?,
    })
}
