-- Mounts: what the mounted disk holds, and how many there have been, which must
-- outlive the rows.

-- A JSON list of the disk's volumes; NULL until the disk was attached.
ALTER TABLE restore_mounts ADD COLUMN volumes TEXT;

CREATE INDEX restore_mounts_unmounted_at ON restore_mounts (unmounted_at)
    WHERE unmounted_at IS NOT NULL;

-- Kept by the triggers alone.
CREATE TABLE restore_mounts_so_far (
    only_row INTEGER PRIMARY KEY CHECK (only_row = 1),
    mounts   INTEGER NOT NULL
);
INSERT INTO restore_mounts_so_far (only_row, mounts)
    SELECT 1, count(*) FROM restore_mounts WHERE status IN ('mounted', 'unmounting', 'unmounted');

CREATE TRIGGER restore_mounts_count_insert AFTER INSERT ON restore_mounts
WHEN NEW.status = 'mounted' BEGIN
    UPDATE restore_mounts_so_far SET mounts = mounts + 1;
END;

CREATE TRIGGER restore_mounts_count_update AFTER UPDATE OF status ON restore_mounts
WHEN NEW.status = 'mounted' AND OLD.status = 'mounting' BEGIN
    UPDATE restore_mounts_so_far SET mounts = mounts + 1;
END;
