-- A state as an agent of before registration left it: one pair, seeded to its end. Never changed again.
PRAGMA journal_mode = WAL;

    CREATE TABLE pair (
        id INTEGER PRIMARY KEY,
        machine TEXT NOT NULL,
        disk TEXT NOT NULL,
        scsi_id TEXT NOT NULL UNIQUE,
        size INTEGER NOT NULL,
        protected_size INTEGER,
        logical_block_size INTEGER NOT NULL,
        generation INTEGER NOT NULL,
        adopted INTEGER NOT NULL,
        overwrite INTEGER NOT NULL,
        created TEXT NOT NULL,
        UNIQUE (machine, disk)
    ) STRICT;
    CREATE TABLE seeding (
        pair INTEGER PRIMARY KEY REFERENCES pair (id) ON DELETE CASCADE,
        seeding_id BLOB NOT NULL,
        durable INTEGER NOT NULL,
        size INTEGER NOT NULL,
        complete INTEGER NOT NULL,
        instance TEXT NOT NULL
    ) STRICT;
    CREATE TABLE job (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        document TEXT NOT NULL
    ) STRICT;

    CREATE TABLE machine (
        name TEXT PRIMARY KEY,
        document TEXT NOT NULL
    ) STRICT;
    CREATE TABLE setting (
        key TEXT PRIMARY KEY,
        value TEXT NOT NULL
    ) STRICT;

INSERT INTO pair (id, machine, disk, scsi_id, size, protected_size, logical_block_size, generation, adopted, overwrite, created)
    VALUES (1, 'db01', 'scsi0:1', 'naa.6000c290000000000000000000000001', 4194304, 4194304, 512, 4, 1, 0, '2026-03-02T10:14:07Z');
INSERT INTO seeding (pair, seeding_id, durable, size, complete, instance)
    VALUES (1, X'000102030405060708090A0B0C0D0E0F', 4194304, 4194304, 1, 'boot:1');
PRAGMA user_version = 2;
