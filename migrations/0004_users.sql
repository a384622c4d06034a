-- Who may use the HTTP side, with which VMs, and what was done by whom.

-- An id is never used again, as tokens are made out to it.
CREATE TABLE users (
    id            INTEGER PRIMARY KEY AUTOINCREMENT,
    name          TEXT NOT NULL UNIQUE CHECK (length(CAST(name AS BLOB)) BETWEEN 1 AND 64),
    role          TEXT NOT NULL CHECK (role IN ('admin', 'operator', 'viewer')),
    -- As a PHC string.
    password_hash TEXT NOT NULL CHECK (password_hash LIKE '$argon2id$%'),
    all_vms       INTEGER NOT NULL DEFAULT 0 CHECK (all_vms IN (0, 1)),
    -- A token holds for the generation that it was made for.
    generation    INTEGER NOT NULL CHECK (generation > 0),
    created_at    TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%SZ', 'now')),
    last_login_at TEXT
);

-- By the VM's name, which may be granted before its first backup.
CREATE TABLE user_grants (
    user_id INTEGER NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    vm_name TEXT NOT NULL CHECK (vm_name <> ''),
    PRIMARY KEY (user_id, vm_name)
) WITHOUT ROWID;

-- Tokens that were given back before their time.
CREATE TABLE revoked_tokens (
    id         TEXT PRIMARY KEY NOT NULL,
    expires_at TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX revoked_tokens_expires_at ON revoked_tokens (expires_at);

-- Names and ids as they were at the time: no row here hangs on another table,
-- or what is removed would take the record of its use along.
CREATE TABLE audit (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    -- To the millisecond: '2025-10-08T18:24:31.042Z'.
    at         TEXT NOT NULL,
    user       TEXT NOT NULL,
    address    TEXT NOT NULL,
    action     TEXT NOT NULL,
    vm_name    TEXT,
    backup_id  TEXT,
    disk_index INTEGER,
    mount_id   TEXT,
    path       TEXT,
    bytes      INTEGER,
    outcome    TEXT NOT NULL CHECK (outcome IN ('ok', 'refused', 'failed', 'cancelled')),
    detail     TEXT
);
-- Each in the order of the answers: none has to be sorted.
CREATE INDEX audit_at ON audit (at);
CREATE INDEX audit_user ON audit (user, at);
CREATE INDEX audit_action ON audit (action, at);
CREATE INDEX audit_vm ON audit (vm_name, at) WHERE vm_name IS NOT NULL;
CREATE INDEX audit_backup ON audit (backup_id, at) WHERE backup_id IS NOT NULL;
CREATE INDEX audit_mount ON audit (mount_id, at) WHERE mount_id IS NOT NULL;
