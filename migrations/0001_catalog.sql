-- The catalog: VMs, their backups, the disks of those, and who reads them.
--
-- Times are RFC 3339 in UTC to the second ('2025-10-08T18:24:31Z'), so that
-- they sort as text and SQLite's date functions read them.

CREATE TABLE repositories (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    path       TEXT NOT NULL UNIQUE CHECK (path LIKE '/%'),
    kind       TEXT NOT NULL CHECK (kind IN ('local', 'nfs', 'cifs', 'immutable')),
    created_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%SZ', 'now'))
);

CREATE TABLE vm_backup_contexts (
    context_id     TEXT PRIMARY KEY NOT NULL CHECK (context_id <> ''),
    -- A folder's name in the tree.
    vm_name        TEXT NOT NULL CHECK (vm_name NOT IN ('', '.', '..')
                       AND instr(vm_name, '/') = 0 AND instr(vm_name, char(0)) = 0
                       AND length(CAST(vm_name AS BLOB)) <= 255),
    repository_id  INTEGER REFERENCES repositories (id) ON DELETE RESTRICT,
    vm_path        TEXT,
    vcenter_host   TEXT,
    datacenter     TEXT,
    current_status TEXT NOT NULL DEFAULT 'ready',
    cpu_count      INTEGER CHECK (cpu_count >= 0),
    memory_mb      INTEGER CHECK (memory_mb >= 0),
    os_type        TEXT,
    power_state    TEXT,
    created_at     TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%SZ', 'now'))
);
CREATE INDEX vm_backup_contexts_vm_name ON vm_backup_contexts (vm_name);
CREATE INDEX vm_backup_contexts_repository_id ON vm_backup_contexts (repository_id);

-- The disks a VM has now, as the hub knows them; a backup has its own.
CREATE TABLE vm_disks (
    context_id      TEXT NOT NULL REFERENCES vm_backup_contexts (context_id) ON DELETE CASCADE,
    disk_index      INTEGER NOT NULL CHECK (disk_index >= 0),
    vmware_disk_key INTEGER,
    label           TEXT,
    size_gb         REAL CHECK (size_gb >= 0),
    datastore       TEXT,
    path            TEXT,
    PRIMARY KEY (context_id, disk_index)
) WITHOUT ROWID;

CREATE TABLE backup_jobs (
    -- A folder's name in the tree, beside the symbolic link 'latest'.
    id                   TEXT PRIMARY KEY NOT NULL CHECK (id NOT IN ('', '.', '..', 'latest')
                             AND instr(id, '/') = 0 AND instr(id, char(0)) = 0
                             AND length(CAST(id AS BLOB)) <= 255),
    vm_backup_context_id TEXT NOT NULL REFERENCES vm_backup_contexts (context_id) ON DELETE CASCADE,
    backup_type          TEXT NOT NULL CHECK (backup_type IN ('full', 'incremental')),
    status               TEXT NOT NULL CHECK (status IN ('started', 'in_progress', 'completed', 'failed')),
    parent_backup_id     TEXT REFERENCES backup_jobs (id) ON DELETE SET NULL,
    progress_percent     REAL CHECK (progress_percent BETWEEN 0 AND 100),
    bytes_transferred    INTEGER CHECK (bytes_transferred >= 0),
    total_bytes          INTEGER CHECK (total_bytes >= 0),
    error_message        TEXT,
    -- Whose word the status and the type are: a scan corrects its own only.
    recorded_by          TEXT NOT NULL DEFAULT 'hub' CHECK (recorded_by IN ('hub', 'scan')),
    created_at           TEXT NOT NULL CHECK (strftime('%s', created_at) IS NOT NULL),
    completed_at         TEXT
);
CREATE INDEX backup_jobs_context ON backup_jobs (vm_backup_context_id, created_at);
CREATE INDEX backup_jobs_parent ON backup_jobs (parent_backup_id);
CREATE INDEX backup_jobs_created_at ON backup_jobs (created_at);

-- A row promises content: an image that changed gets a new row, and an id is
-- never used again, for inode numbers are built on it.
CREATE TABLE backup_disks (
    id                INTEGER PRIMARY KEY AUTOINCREMENT,
    backup_job_id     TEXT NOT NULL REFERENCES backup_jobs (id) ON DELETE CASCADE,
    disk_index        INTEGER NOT NULL CHECK (disk_index BETWEEN 0 AND 4294967295),
    vmware_disk_key   INTEGER,
    label             TEXT,
    qcow2_path        TEXT CHECK (qcow2_path LIKE '/%'),
    format            TEXT NOT NULL DEFAULT 'qcow2' CHECK (format <> ''),
    disk_change_id    TEXT,
    size_gb           REAL CHECK (size_gb >= 0),
    -- Size of the disk in bytes.
    virtual_size      INTEGER CHECK (virtual_size >= 0),
    bytes_transferred INTEGER CHECK (bytes_transferred >= 0),
    -- 'missing': the image is gone; it is shown again if it returns unchanged.
    status            TEXT NOT NULL CHECK (status IN
                          ('pending', 'started', 'in_progress', 'completed', 'failed', 'missing')),
    error_message     TEXT,
    -- What the image's header names as its backing file, made absolute.
    backing_path      TEXT,
    -- The image file as last seen; NULL until a scan has seen it.
    file_inode        INTEGER,
    file_size         INTEGER,
    file_mtime_ns     INTEGER
);
CREATE INDEX backup_disks_job ON backup_disks (backup_job_id, disk_index);
CREATE INDEX backup_disks_path ON backup_disks (qcow2_path);
CREATE INDEX backup_disks_backing ON backup_disks (backing_path) WHERE backing_path IS NOT NULL;
CREATE INDEX backup_disks_missing ON backup_disks (id) WHERE status = 'missing';
CREATE UNIQUE INDEX backup_disks_live ON backup_disks (backup_job_id, disk_index)
    WHERE status <> 'missing';
CREATE UNIQUE INDEX backup_disks_live_path ON backup_disks (qcow2_path)
    WHERE status <> 'missing';

-- Each backup's place in the chain that starts with its full backup (number 1).
CREATE TABLE backup_chains (
    backup_job_id   TEXT PRIMARY KEY NOT NULL REFERENCES backup_jobs (id) ON DELETE CASCADE,
    full_backup_id  TEXT NOT NULL REFERENCES backup_jobs (id) ON DELETE CASCADE,
    sequence_number INTEGER NOT NULL CHECK (sequence_number >= 1)
);
CREATE INDEX backup_chains_full ON backup_chains (full_backup_id, sequence_number);

CREATE TABLE restore_mounts (
    id               TEXT PRIMARY KEY NOT NULL,
    backup_disk_id   INTEGER NOT NULL REFERENCES backup_disks (id) ON DELETE CASCADE,
    mount_path       TEXT,
    nbd_device       TEXT,
    filesystem_type  TEXT,
    mount_mode       TEXT NOT NULL DEFAULT 'read-only' CHECK (mount_mode = 'read-only'),
    status           TEXT NOT NULL CHECK (status IN
                         ('mounting', 'mounted', 'unmounting', 'failed', 'unmounted')),
    error_message    TEXT,
    created_at       TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%SZ', 'now')),
    last_accessed_at TEXT,
    expires_at       TEXT,
    unmounted_at     TEXT
);
CREATE UNIQUE INDEX restore_mounts_live_disk ON restore_mounts (backup_disk_id)
    WHERE status IN ('mounting', 'mounted', 'unmounting');
CREATE UNIQUE INDEX restore_mounts_live_device ON restore_mounts (nbd_device)
    WHERE status IN ('mounting', 'mounted', 'unmounting');
CREATE INDEX restore_mounts_disk ON restore_mounts (backup_disk_id);
CREATE INDEX restore_mounts_status ON restore_mounts (status);
CREATE INDEX restore_mounts_last_accessed_at ON restore_mounts (last_accessed_at);
CREATE INDEX restore_mounts_expires_at ON restore_mounts (expires_at);

-- The tree's folders: one for each VM name (several contexts may share it), one
-- for each backup below it. Kept by the triggers alone, whoever writes to the
-- tables above, so that they cannot drift from them.
CREATE TABLE folders (
    id            INTEGER PRIMARY KEY AUTOINCREMENT,
    parent        INTEGER REFERENCES folders (id) ON DELETE CASCADE,
    name          TEXT NOT NULL,
    -- NULL for a VM.
    backup_job_id TEXT UNIQUE REFERENCES backup_jobs (id) ON DELETE CASCADE,
    -- When the backup was taken, seconds since 1970; NULL for a VM.
    time          INTEGER,
    CHECK ((parent IS NULL) = (backup_job_id IS NULL)),
    CHECK ((parent IS NULL) = (time IS NULL))
);
CREATE UNIQUE INDEX folders_vm ON folders (name) WHERE parent IS NULL;
CREATE UNIQUE INDEX folders_backup ON folders (parent, name);
CREATE INDEX folders_time ON folders (parent, time);

CREATE TRIGGER vm_backup_contexts_folder_insert AFTER INSERT ON vm_backup_contexts BEGIN
    INSERT INTO folders (name) SELECT NEW.vm_name
        WHERE NOT EXISTS (SELECT 1 FROM folders WHERE parent IS NULL AND name = NEW.vm_name);
END;

CREATE TRIGGER vm_backup_contexts_folder_rename AFTER UPDATE OF vm_name ON vm_backup_contexts
WHEN OLD.vm_name <> NEW.vm_name BEGIN
    INSERT INTO folders (name) SELECT NEW.vm_name
        WHERE NOT EXISTS (SELECT 1 FROM folders WHERE parent IS NULL AND name = NEW.vm_name);
    UPDATE folders
        SET parent = (SELECT id FROM folders WHERE parent IS NULL AND name = NEW.vm_name)
        WHERE backup_job_id IN
            (SELECT id FROM backup_jobs WHERE vm_backup_context_id = NEW.context_id);
    DELETE FROM folders WHERE parent IS NULL AND name = OLD.vm_name
        AND NOT EXISTS (SELECT 1 FROM vm_backup_contexts WHERE vm_name = OLD.vm_name);
END;

CREATE TRIGGER vm_backup_contexts_folder_delete AFTER DELETE ON vm_backup_contexts BEGIN
    DELETE FROM folders WHERE parent IS NULL AND name = OLD.vm_name
        AND NOT EXISTS (SELECT 1 FROM vm_backup_contexts WHERE vm_name = OLD.vm_name);
END;

CREATE TRIGGER backup_jobs_folder_insert AFTER INSERT ON backup_jobs BEGIN
    INSERT INTO folders (parent, name, backup_job_id, time)
        SELECT f.id, NEW.id, NEW.id, CAST(strftime('%s', NEW.created_at) AS INTEGER)
        FROM vm_backup_contexts c JOIN folders f ON f.parent IS NULL AND f.name = c.vm_name
        WHERE c.context_id = NEW.vm_backup_context_id;
END;

CREATE TRIGGER backup_jobs_folder_update
AFTER UPDATE OF created_at, vm_backup_context_id ON backup_jobs
WHEN OLD.created_at <> NEW.created_at OR OLD.vm_backup_context_id <> NEW.vm_backup_context_id BEGIN
    UPDATE folders SET
        time = CAST(strftime('%s', NEW.created_at) AS INTEGER),
        parent = (SELECT f.id FROM vm_backup_contexts c
                  JOIN folders f ON f.parent IS NULL AND f.name = c.vm_name
                  WHERE c.context_id = NEW.vm_backup_context_id)
        WHERE backup_job_id = NEW.id;
END;

CREATE TRIGGER backup_jobs_id_is_final BEFORE UPDATE OF id ON backup_jobs
WHEN OLD.id <> NEW.id BEGIN
    SELECT RAISE(ABORT, 'the id of a backup cannot change');
END;

-- What the tree shows, said once: completed backups that have an image, and the
-- images that are not gone. An image that cannot be read is shown: using it
-- says why.
CREATE VIEW shown_disks AS
    SELECT d.id, f.id AS folder, j.id AS backup_id, c.vm_name, d.disk_index,
           d.qcow2_path AS path, d.format, d.virtual_size, f.time
    FROM backup_disks d
    JOIN backup_jobs j ON j.id = d.backup_job_id
    JOIN vm_backup_contexts c ON c.context_id = j.vm_backup_context_id
    JOIN folders f ON f.backup_job_id = j.id
    WHERE j.status = 'completed' AND d.status IN ('completed', 'failed')
      AND d.qcow2_path IS NOT NULL;

CREATE VIEW shown_backups AS
    SELECT f.id, f.parent, f.name, f.time
    FROM folders f JOIN backup_jobs j ON j.id = f.backup_job_id
    WHERE j.status = 'completed' AND EXISTS
        (SELECT 1 FROM backup_disks d WHERE d.backup_job_id = j.id
         AND d.status IN ('completed', 'failed') AND d.qcow2_path IS NOT NULL);

-- One row for each disk of a backup: the live one, or the one gone last.
CREATE VIEW current_disks AS
    SELECT * FROM backup_disks d WHERE d.status <> 'missing' OR NOT EXISTS
        (SELECT 1 FROM backup_disks o
         WHERE o.backup_job_id = d.backup_job_id AND o.disk_index = d.disk_index
           AND (o.status <> 'missing' OR o.id > d.id));
