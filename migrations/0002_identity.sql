-- The tree compares an image with what was recorded of its file before it
-- shows anything of it: an image that was overwritten in place is refused.

DROP VIEW shown_disks;
CREATE VIEW shown_disks AS
    SELECT d.id, f.id AS folder, j.id AS backup_id, c.vm_name, d.disk_index,
           d.qcow2_path AS path, d.format, d.virtual_size, f.time,
           d.file_inode, d.file_size, d.file_mtime_ns
    FROM backup_disks d
    JOIN backup_jobs j ON j.id = d.backup_job_id
    JOIN vm_backup_contexts c ON c.context_id = j.vm_backup_context_id
    JOIN folders f ON f.backup_job_id = j.id
    WHERE j.status = 'completed' AND d.status IN ('completed', 'failed')
      AND d.qcow2_path IS NOT NULL;
